//! Where to: the order of targets, the budget of moves, the wait before a return.

use crate::ids::*;

/// Smaller is better. The private path needs no route and is only where a host without one ends up.
pub(crate) fn rank(path: Path, local: ScvmId) -> u8 {
    match (path.network, path.scvm == local) {
        (Network::Storage, true) => 0,
        (Network::Storage, false) => 1,
        (Network::Management, true) => 2,
        (Network::Management, false) => 3,
        (Network::Private, _) => 4,
    }
}

/// SCVMs as a host prefers them: its own, then the others in an order of its own, so that the hosts of a dead SCVM
/// spread over those that are left (rendezvous hashing: losing one changes nothing among the rest).
pub(crate) fn preference(host: HostId, local: ScvmId, scvms: &[ScvmId]) -> Vec<ScvmId> {
    let mut order: Vec<ScvmId> = scvms.to_vec();
    order.sort_by_key(|s| (*s != local, std::cmp::Reverse(weight(host, *s)), *s));
    order.dedup();
    order
}

/// The finaliser of SplitMix64 over the pair.
fn weight(host: HostId, scvm: ScvmId) -> u64 {
    let mut z = (u64::from(host.0) << 32 | u64::from(scvm.0)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Moves per time: six at once, then one per 5 s. Returns are held back by [`HoldDown`] besides. A server that has conclusively failed is left without asking.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    tokens: u32,
    filled_at: BootNs,
}

impl Budget {
    const BURST: u32 = 6;
    const REFILL_NS: u64 = 5 * SEC;

    pub fn new(now: BootNs) -> Budget {
        Budget { tokens: Self::BURST, filled_at: now }
    }
    fn refill(&mut self, now: BootNs) {
        let tokens = now.since(self.filled_at) / Self::REFILL_NS;
        self.tokens = self.tokens.saturating_add(tokens.min(u64::from(Self::BURST)) as u32).min(Self::BURST);
        self.filled_at = self.filled_at.plus(tokens * Self::REFILL_NS);
    }
    pub fn left(&mut self, now: BootNs) -> u32 {
        self.refill(now);
        self.tokens
    }
    /// Every move counts, also those that need no token.
    pub fn spend(&mut self, now: BootNs) {
        self.refill(now);
        self.tokens = self.tokens.saturating_sub(1);
    }
}

/// How long a better target must have been well before the host goes there: short after one failure, doubling with
/// each further one up to the maximum, and forgetting one of them in each quiet time of that maximum's length.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HoldDown {
    first_ns: u64,
    max_ns: u64,
    departures: u32,
    since: BootNs,
}

impl HoldDown {
    pub fn new(first_ns: u64, max_ns: u64, now: BootNs) -> HoldDown {
        HoldDown { first_ns, max_ns: max_ns.max(first_ns), departures: 0, since: now }
    }
    fn decay(&mut self, now: BootNs) {
        let quiet = now.since(self.since) / self.max_ns.max(1);
        self.departures = self.departures.saturating_sub(quiet.min(u64::from(u32::MAX)) as u32);
        self.since = self.since.plus(quiet.saturating_mul(self.max_ns.max(1)));
    }
    /// The host had to leave a place.
    pub fn departed(&mut self, now: BootNs) {
        self.decay(now);
        self.departures = (self.departures + 1).min(32);
        self.since = now;
    }
    pub fn wait_ns(&mut self, now: BootNs) -> u64 {
        self.decay(now);
        let doublings = self.departures.saturating_sub(1);
        self.first_ns.saturating_mul(1 << doublings.min(31)).min(self.max_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn own_first_and_the_others_spread() {
        let scvms: Vec<ScvmId> = (1..=10).map(ScvmId).collect();
        let orders: Vec<_> = (1..=40).map(|h| preference(HostId(h), ScvmId(3), &scvms)).collect();
        assert!(orders.iter().all(|o| o[0] == ScvmId(3) && o.len() == 10));
        let second: BTreeSet<ScvmId> = orders.iter().map(|o| o[1]).collect();
        assert!(second.len() >= 6, "40 hosts of a dead SCVM spread over the others: {second:?}");
    }

    #[test]
    fn losing_one_changes_nothing_among_the_rest() {
        let all: Vec<ScvmId> = (1..=6).map(ScvmId).collect();
        let mut expected = preference(HostId(9), ScvmId(1), &all);
        expected.retain(|s| *s != ScvmId(4));
        let without: Vec<ScvmId> = all.iter().copied().filter(|s| *s != ScvmId(4)).collect();
        assert_eq!(preference(HostId(9), ScvmId(1), &without), expected);
    }

    #[test]
    fn the_wait_doubles_and_is_forgotten() {
        let mut hold = HoldDown::new(3 * SEC, 180 * SEC, BootNs(0));
        let waits: Vec<u64> = (1..=9)
            .map(|i| {
                hold.departed(BootNs(i * SEC));
                hold.wait_ns(BootNs(i * SEC)) / SEC
            })
            .collect();
        assert_eq!(waits, [3, 6, 12, 24, 48, 96, 180, 180, 180]);
        assert_eq!(hold.wait_ns(BootNs(9 * SEC + 6 * 180 * SEC)) / SEC, 12);
        assert_eq!(hold.wait_ns(BootNs(9 * SEC + 60 * 180 * SEC)) / SEC, 3);
    }

    #[test]
    fn six_moves_then_one_per_five_seconds() {
        let mut budget = Budget::new(BootNs(0));
        for _ in 0..6 {
            assert!(budget.left(BootNs(SEC)) > 0);
            budget.spend(BootNs(SEC));
        }
        assert_eq!(budget.left(BootNs(4 * SEC)), 0);
        assert_eq!(budget.left(BootNs(5 * SEC)), 1);
        assert_eq!(budget.left(BootNs(1000 * SEC)), 6);
    }
}
