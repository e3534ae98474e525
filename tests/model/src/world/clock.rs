//! A node's clock: a zero of its own, a rate of its own, and no movement while its node is frozen.

use reroute_core::ids::BootNs;

/// Parts per million of true time that a clock with no drift counts.
pub const TRUE_RATE: u64 = 1_000_000;
/// Two clocks between these rates drift apart by 10 % at most: what Meta allows for.
pub const SLOWEST: u64 = 954_000;
pub const FASTEST: u64 = 1_046_000;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Clock {
    /// What it showed at `since` (true time, ns).
    shown: u64,
    since: u64,
    rate: u64,
    stopped: bool,
}

impl Clock {
    /// Shows `zero` at true time 0, and counts `rate` ppm of true time.
    pub fn new(zero: u64, rate: u64) -> Clock {
        Clock { shown: zero, since: 0, rate, stopped: false }
    }

    pub fn at(&self, now: u64) -> BootNs {
        if self.stopped {
            return BootNs(self.shown);
        }
        BootNs(self.shown + (now.saturating_sub(self.since)) * self.rate / TRUE_RATE)
    }

    /// True time at which it will show `local` or more, if it goes on.
    pub fn when(&self, local: BootNs) -> u64 {
        let wait = local.0.saturating_sub(self.shown);
        self.since + (wait * TRUE_RATE).div_ceil(self.rate)
    }

    pub fn stop(&mut self, now: u64) {
        self.shown = self.at(now).0;
        self.since = now;
        self.stopped = true;
    }

    pub fn go_on(&mut self, now: u64) {
        self.since = now;
        self.stopped = false;
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_clock_goes_on_from_where_it_stood() {
        let mut clock = Clock::new(5_000, 1_100_000);
        assert_eq!(clock.at(1_000), BootNs(6_100));
        clock.stop(1_000);
        assert_eq!(clock.at(9_000), BootNs(6_100));
        clock.go_on(9_000);
        assert_eq!(clock.at(10_000), BootNs(7_200));
        assert_eq!(clock.when(BootNs(7_200)), 10_000);
        for local in 6_101..7_000 {
            let when = clock.when(BootNs(local));
            assert!(clock.at(when).0 >= local && clock.at(when - 1).0 < local);
        }
    }
}
