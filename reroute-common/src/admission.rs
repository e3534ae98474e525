//! The admission word: who may call, at which epoch. It only grows.

/// `epoch << 8 | rank`, so that plain integer order is the order of admission's life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Word(pub u64);

/// What a word says at its epoch. Each later rank ends the ones before it.
pub mod rank {
    /// Known, not admitted (yet).
    pub const HELD: u8 = 0;
    /// Served here, while a lease runs.
    pub const ADMITTED: u8 = 1;
    /// The client's own host has let go.
    pub const RELEASED: u8 = 2;
    /// The SCVM's agent has shut the client out.
    pub const FENCED: u8 = 3;
}

impl Word {
    pub const NONE: Word = Word(0);

    pub const fn new(epoch: u64, rank: u8) -> Self {
        Word(epoch << 8 | rank as u64)
    }
    pub const fn epoch(self) -> u64 {
        self.0 >> 8
    }
    pub const fn rank(self) -> u8 {
        (self.0 & 0xff) as u8
    }
    pub const fn is_admitted(self) -> bool {
        self.rank() == rank::ADMITTED
    }
    /// Released or fenced at `epoch` or a later one: nothing of `epoch` gets in any more.
    pub const fn is_closed_for(self, epoch: u64) -> bool {
        self.epoch() > epoch || (self.epoch() == epoch && self.rank() >= rank::RELEASED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_epoch_then_rank() {
        let life = [
            Word::NONE,
            Word::new(1, rank::ADMITTED),
            Word::new(1, rank::RELEASED),
            Word::new(1, rank::FENCED),
            Word::new(2, rank::HELD),
            Word::new(2, rank::ADMITTED),
        ];
        assert!(life.windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn closed_means_this_epoch_or_later() {
        assert!(!Word::new(3, rank::ADMITTED).is_closed_for(3));
        assert!(Word::new(3, rank::RELEASED).is_closed_for(3));
        assert!(Word::new(4, rank::HELD).is_closed_for(3));
        assert!(!Word::new(2, rank::FENCED).is_closed_for(3));
    }
}
