//! Slots of one file that are written again and again, each with what it must hold. The file is read locally, with
//! no NFS in between: it is the ground truth.

use crate::block::{self, Damage, Header};
use serde::Serialize;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// One block of the file. Never more than one write of it is outstanding.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Sequence of the last acknowledged write; 0: none yet.
    acked: u64,
    /// Sequence that was acknowledged before that one.
    previous: u64,
    /// Sequence of the last issued write.
    issued: u64,
    in_flight: bool,
    /// What was found instead and is counted already.
    reported: Option<Found>,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    /// A whole block of this writer, for this offset.
    Seq(u64),
    /// A whole block that does not belong here.
    Foreign,
    Empty,
    Torn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An acknowledged write is not there.
    Lost,
    /// It was there, and an older one has been applied over it.
    Stale,
}

/// One damaged block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: Kind,
    pub file: String,
    pub offset: u64,
    pub found: Found,
    /// Sequence of the last acknowledged write of this block.
    pub acked: u64,
    /// When it was found, CLOCK_BOOTTIME ns.
    pub at: u64,
}

pub struct Ring {
    pub name: String,
    file: File,
    writer: u64,
    slots: Vec<Slot>,
    next: usize,
}

impl Ring {
    pub fn new(name: &str, file: File, writer: u64, slots: usize) -> Ring {
        Ring { name: name.to_owned(), file, writer, slots: vec![Slot::default(); slots.max(1)], next: 0 }
    }

    pub fn offset(slot: usize) -> u64 {
        (slot * block::SIZE) as u64
    }

    /// Takes the next slot that has no write outstanding, for write `seq`. The slot is checked first: what is
    /// overwritten could not be judged later. None: all are outstanding.
    pub fn begin(&mut self, seq: u64, at: u64) -> std::io::Result<Option<(usize, Option<Finding>)>> {
        let count = self.slots.len();
        let Some(slot) =
            (self.next..self.next + count).map(|s| s % count).find(|s| !self.slots[*s].in_flight)
        else {
            return Ok(None);
        };
        let finding = self.check(slot, at, false)?;
        self.next = (slot + 1) % count;
        let state = &mut self.slots[slot];
        state.issued = seq;
        state.in_flight = true;
        Ok(Some((slot, finding)))
    }

    /// The outstanding write of `slot` was acknowledged.
    pub fn acknowledged(&mut self, slot: usize, at: u64) -> std::io::Result<Option<Finding>> {
        let state = &mut self.slots[slot];
        state.previous = state.acked;
        state.acked = state.issued;
        state.in_flight = false;
        state.reported = None;
        self.check(slot, at, true)
    }

    /// Checks every slot. Findings are reported once until the slot is written again.
    pub fn check_all(&mut self, at: u64) -> std::io::Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for slot in 0..self.slots.len() {
            findings.extend(self.check(slot, at, false)?);
        }
        Ok(findings)
    }

    /// The first slot from `from` on that holds an acknowledged block and has no write outstanding, with that block's
    /// sequence.
    pub fn readable(&self, from: usize) -> Option<(usize, u64)> {
        let count = self.slots.len();
        let written = |s: &usize| !self.slots[*s].in_flight && self.slots[*s].acked > 0;
        (from..from + count).map(|s| s % count).find(written).map(|s| (s, self.slots[s].acked))
    }

    /// Whether a READ of `slot` may give `bytes`: the block that was acknowledged when the READ was issued (`acked`), or
    /// a later one, half written only if a write was issued meanwhile.
    pub fn may_read(&self, slot: usize, acked: u64, bytes: &[u8]) -> bool {
        let issued = self.slots[slot].issued;
        match self.classify(slot, bytes) {
            Found::Seq(seq) => (acked..=issued).contains(&seq),
            Found::Torn => issued > acked,
            Found::Foreign | Found::Empty => false,
        }
    }

    fn check(&mut self, slot: usize, at: u64, just_acknowledged: bool) -> std::io::Result<Option<Finding>> {
        let found = self.read(slot)?;
        let state = &mut self.slots[slot];
        let Some(kind) = judge(state, found, just_acknowledged) else { return Ok(None) };
        if state.reported == Some(found) {
            return Ok(None);
        }
        state.reported = Some(found);
        Ok(Some(Finding {
            kind,
            file: self.name.clone(),
            offset: Self::offset(slot),
            found,
            acked: state.acked,
            at,
        }))
    }

    fn read(&self, slot: usize) -> std::io::Result<Found> {
        let mut bytes = [0; block::SIZE];
        let mut have = 0;
        while have < bytes.len() {
            match self.file.read_at(&mut bytes[have..], Self::offset(slot) + have as u64)? {
                0 => break,
                n => have += n,
            }
        }
        Ok(self.classify(slot, &bytes[..have]))
    }

    fn classify(&self, slot: usize, bytes: &[u8]) -> Found {
        match block::decode(bytes) {
            Ok(Header { writer, seq, offset }) if writer == self.writer && offset == Self::offset(slot) => {
                Found::Seq(seq)
            }
            Ok(_) => Found::Foreign,
            Err(Damage::Empty) => Found::Empty,
            Err(Damage::Magic | Damage::Checksum) => Found::Torn,
        }
    }
}

/// None: all is well. A slot with a write outstanding may hold anything from the acknowledged to the issued one,
/// and be caught half written. Right after its acknowledgement a write that was never applied shows the one before it;
/// anything older than that has been applied late.
fn judge(slot: &Slot, found: Found, just_acknowledged: bool) -> Option<Kind> {
    match found {
        Found::Seq(seq) if seq >= slot.acked && seq <= slot.issued => None,
        Found::Seq(seq) if seq < slot.acked && !(just_acknowledged && seq == slot.previous) => {
            Some(Kind::Stale)
        }
        Found::Empty if slot.acked == 0 => None,
        Found::Torn if slot.in_flight => None,
        _ => Some(Kind::Lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::encode;

    fn ring(slots: usize) -> Ring {
        let path = std::env::temp_dir().join(format!("reroute-ring-{}-{slots}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        Ring::new("hot", file, 9, slots)
    }

    fn apply(ring: &Ring, slot: usize, seq: u64) {
        let offset = Ring::offset(slot);
        ring.file.write_all_at(&encode(Header { writer: 9, seq, offset }), offset).unwrap();
    }

    #[test]
    fn an_older_block_over_an_acknowledged_one_is_stale_once() {
        let mut ring = ring(2);
        let (slot, none) = ring.begin(1, 0).unwrap().unwrap();
        assert_eq!((slot, none), (0, None));
        apply(&ring, 0, 1);
        assert_eq!(ring.acknowledged(0, 1).unwrap(), None);
        assert_eq!(ring.begin(2, 2).unwrap().unwrap().0, 1);
        assert_eq!(ring.begin(3, 3).unwrap().unwrap().0, 0);
        apply(&ring, 0, 3);
        assert_eq!(ring.acknowledged(0, 4).unwrap(), None);
        apply(&ring, 0, 1);
        let finding = ring.check_all(5).unwrap().pop().unwrap();
        assert_eq!((finding.kind, finding.found, finding.acked), (Kind::Stale, Found::Seq(1), 3));
        assert_eq!(ring.check_all(6).unwrap(), []);
    }

    #[test]
    fn an_acknowledged_block_that_is_not_there_is_lost() {
        let mut ring = ring(3);
        ring.begin(1, 0).unwrap().unwrap();
        assert_eq!(ring.acknowledged(0, 1).unwrap().unwrap().kind, Kind::Lost);
        assert_eq!(ring.begin(2, 0).unwrap().unwrap().0, 1);
        apply(&ring, 1, 2);
        ring.acknowledged(1, 1).unwrap();
        ring.file.write_all_at(&[1; 64], Ring::offset(1)).unwrap();
        assert_eq!(ring.check_all(2).unwrap()[0].found, Found::Torn);
    }

    #[test]
    fn at_its_acknowledgement_a_write_is_lost_or_overwritten_by_a_late_one() {
        let mut ring = ring(1);
        for seq in [1, 2] {
            ring.begin(seq, 0).unwrap().unwrap();
            apply(&ring, 0, seq);
            assert_eq!(ring.acknowledged(0, 0).unwrap(), None);
        }
        ring.begin(3, 0).unwrap().unwrap();
        assert_eq!(ring.acknowledged(0, 0).unwrap().unwrap().kind, Kind::Lost);
        ring.begin(4, 0).unwrap().unwrap();
        apply(&ring, 0, 1);
        assert_eq!(ring.acknowledged(0, 0).unwrap().unwrap().kind, Kind::Stale);
    }

    #[test]
    fn a_read_gives_the_acknowledged_block_or_a_later_one() {
        let block = |seq| encode(Header { writer: 9, seq, offset: 0 });
        let mut ring = ring(4);
        assert_eq!(ring.readable(0), None);
        ring.begin(5, 0).unwrap().unwrap();
        assert_eq!(ring.readable(0), None, "outstanding");
        apply(&ring, 0, 5);
        ring.acknowledged(0, 1).unwrap();
        assert_eq!(ring.readable(3), Some((0, 5)));
        assert!(ring.may_read(0, 5, &block(5)));
        let torn = [block(5)[..2048].to_vec(), block(6)[2048..].to_vec()].concat();
        for bad in [block(4), block(6), torn.clone(), vec![0; 4096], Vec::new()] {
            assert!(!ring.may_read(0, 5, &bad));
        }
        // Slots 1 to 3, then 0 again: now a later block, or a mix of both, is right as well.
        (6..10).for_each(|seq| drop(ring.begin(seq, 2).unwrap().unwrap()));
        assert!(
            ring.may_read(0, 5, &block(9)) && ring.may_read(0, 5, &torn) && !ring.may_read(0, 5, &block(4))
        );
    }

    #[test]
    fn a_slot_with_a_write_outstanding_is_not_taken_again() {
        let mut ring = ring(2);
        assert_eq!(ring.begin(1, 0).unwrap().unwrap().0, 0);
        assert_eq!(ring.begin(2, 0).unwrap().unwrap().0, 1);
        assert!(ring.begin(3, 0).unwrap().is_none());
        // Applied, not yet acknowledged: as good as not applied.
        apply(&ring, 0, 1);
        assert_eq!(ring.check_all(1).unwrap(), []);
    }
}
