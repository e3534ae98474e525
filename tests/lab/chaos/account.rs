//! What a run amounts to: moves, proofs and gaps out of the journals and the writers' logs.

use super::oplog::Writes;
use crate::demo::timeline::proof_name;
use reroute_core::ids::{BootNs, Epoch, HostId, ScvmId};
use reroute_core::timeline::{Entry, Event};
use serde::Serialize;
use std::collections::BTreeMap;

/// A move that begins this long after a fault was healed may still be its doing.
const AFTERMATH_NS: u64 = 2_000_000_000;

/// What became of an injection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Struck {
    pub fault: String,
    pub target: String,
    /// None: it could not be done; `skipped` says why.
    pub at: Option<BootNs>,
    pub healed: Option<BootNs>,
    pub skipped: Option<String>,
}

impl Struck {
    fn stood(&self, at: BootNs, aftermath: u64) -> bool {
        self.at.is_some_and(|begin| begin <= at) && self.healed.is_none_or(|end| at <= end.plus(aftermath))
    }
    pub fn stands(&self, at: BootNs) -> bool {
        self.stood(at, 0)
    }
}

/// A host's login that went to another server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Move {
    pub host: HostId,
    pub from: ScvmId,
    pub to: ScvmId,
    pub epoch: Epoch,
    /// When the login stood at `to`.
    pub at: BootNs,
    /// When Meta took it on record, and why; None: that line of the journal died with Meta.
    pub recorded: Option<BootNs>,
    pub routed: Option<BootNs>,
    pub planned: bool,
    pub reason: String,
}

impl Move {
    pub fn begin(&self) -> BootNs {
        self.recorded.unwrap_or(self.at)
    }
}

/// Moves that were completed from `from` on, by time; and what contradicts itself: one epoch of one host at two servers.
pub fn moves(journal: &[Entry], from: BootNs) -> (Vec<Move>, Vec<String>) {
    let mut moves: Vec<Move> = Vec::new();
    let mut contradictions = Vec::new();
    let mut logins: BTreeMap<(HostId, Epoch), ScvmId> = BTreeMap::new();
    let mut at_server: BTreeMap<HostId, ScvmId> = BTreeMap::new();
    for entry in journal {
        let (host, scvm, epoch, routed) = match &entry.event {
            Event::LoginStored { host, scvm, epoch } => (*host, *scvm, *epoch, None),
            // Says the same, should Meta have died before it had written its own line.
            Event::RouteReplaced { path, epoch, .. } => match host_of(&entry.node) {
                Some(host) => (host, path.scvm, *epoch, Some(entry.at)),
                None => continue,
            },
            _ => continue,
        };
        match logins.get(&(host, epoch)) {
            Some(known) if *known == scvm => {
                let same = moves.iter_mut().find(|m| m.host == host && m.epoch == epoch);
                if let Some(m) = same
                    && m.routed.is_none()
                {
                    m.routed = routed;
                }
                continue;
            }
            Some(known) => {
                contradictions.push(format!("{host} is logged in at {known} and at {scvm}, both at {epoch}"));
                continue;
            }
            None => logins.insert((host, epoch), scvm),
        };
        let before = at_server.insert(host, scvm);
        if let Some(before) = before.filter(|b| *b != scvm && entry.at >= from) {
            moves.push(Move {
                host,
                from: before,
                to: scvm,
                epoch,
                at: entry.at,
                recorded: None,
                routed,
                planned: false,
                reason: String::new(),
            });
        }
    }
    for entry in journal {
        if let Event::MoveRecorded { host, epoch, planned, reason, .. } = &entry.event
            && let Some(m) = moves.iter_mut().find(|m| m.host == *host && m.epoch == *epoch)
        {
            (m.recorded, m.planned, m.reason) = (Some(entry.at), *planned, reason.clone());
        }
    }
    (moves, contradictions)
}

fn host_of(node: &str) -> Option<HostId> {
    node.strip_prefix("host")?.parse().ok().map(HostId)
}

/// How often each proof was given, from `from` on.
pub fn proofs(journal: &[Entry], from: BootNs) -> BTreeMap<String, u64> {
    let mut proofs = BTreeMap::new();
    for entry in journal.iter().filter(|e| e.at >= from) {
        if let Event::FenceProven { proof, .. } = &entry.event {
            *proofs.entry(proof_name(*proof)).or_default() += 1;
        }
    }
    proofs
}

/// How long the writes of the moved host stood still for a move, ms.
pub fn gap_ms(m: &Move, writes: &BTreeMap<u32, Writes>) -> Option<f64> {
    let (gap, _) = writes.get(&m.host.0)?.gap(m.begin().0, m.routed.unwrap_or(m.at).0);
    Some(gap as f64 / 1e6)
}

/// A time without a completed write on one host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standstill {
    pub host: u32,
    /// Since the begin of the run.
    pub at_s: f64,
    pub ms: f64,
    /// Faults that stood meanwhile.
    pub standing: Vec<String>,
}

impl std::fmt::Display for Standstill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let standing = self.standing.join(", ");
        write!(f, "{:.1} ms on host{} at {:.1} s, under: {standing}", self.ms, self.host, self.at_s)
    }
}

/// The five longest of the run, longest first.
pub fn longest(
    writes: &BTreeMap<u32, Writes>,
    struck: &[Struck],
    begin: BootNs,
    end: BootNs,
) -> Vec<Standstill> {
    let mut gaps: Vec<(u64, u64, u32)> = Vec::new();
    for (host, writes) in writes {
        gaps.extend(writes.gaps(begin.0, end.0).map(|(gap, from)| (gap, from, *host)));
        gaps.sort_unstable_by(|a, b| b.cmp(a));
        gaps.truncate(5);
    }
    let told = |(gap, from, host): (u64, u64, u32)| {
        let stood = |s: &&Struck| {
            s.at.is_some_and(|at| at.0 < from + gap) && s.healed.is_none_or(|healed| healed.0 > from)
        };
        let standing = struck.iter().filter(stood).map(|s| format!("{} at {}", s.fault, s.target)).collect();
        let at_s = BootNs(from).since(begin) as f64 / 1e9;
        Standstill { host, at_s, ms: gap as f64 / 1e6, standing }
    };
    gaps.into_iter().map(told).collect()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    /// By nearest rank; zeros of nothing.
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let nth = (share * values.len() as f64).ceil() as usize;
            values.get(nth.saturating_sub(1)).copied().unwrap_or_default()
        };
        Spread { p50: rank(0.5), p99: rank(0.99), max: rank(1.0) }
    }
}

/// One fault over the whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PerFault {
    pub injected: u64,
    /// Could not be done: what it would have struck was gone already.
    pub skipped: u64,
    /// Unplanned moves that began while it was the last to have struck.
    pub moves: u64,
    /// Longest time without a completed write on any host while it stood, and a second longer, ms; not of its making alone
    /// where others stood too.
    pub worst_gap_ms: f64,
}

pub fn per_fault(
    struck: &[Struck],
    moves: &[Move],
    writes: &BTreeMap<u32, Writes>,
    end: BootNs,
) -> BTreeMap<String, PerFault> {
    let mut table: BTreeMap<String, PerFault> = BTreeMap::new();
    for s in struck {
        let line = table.entry(s.fault.clone()).or_default();
        let Some(at) = s.at else {
            line.skipped += 1;
            continue;
        };
        line.injected += 1;
        let until = s.healed.unwrap_or(end).plus(1_000_000_000);
        let worst = writes.values().map(|w| w.gap(at.0, until.0).0).max().unwrap_or_default();
        line.worst_gap_ms = line.worst_gap_ms.max(worst as f64 / 1e6);
    }
    for m in moves.iter().filter(|m| !m.planned) {
        let last = struck.iter().filter(|s| s.stood(m.begin(), AFTERMATH_NS)).max_by_key(|s| s.at);
        if let Some(line) = last.and_then(|s| table.get_mut(&s.fault)) {
            line.moves += 1;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::oplog;
    use reroute_core::ids::{Network, Path};
    use reroute_core::proto::FenceProof;

    const MS: u64 = 1_000_000;

    fn entry(ms: u64, node: &str, event: Event) -> Entry {
        Entry { at: BootNs(ms * MS), node: node.into(), event }
    }
    fn stored(ms: u64, scvm: u32, epoch: u64) -> Entry {
        entry(ms, "meta", Event::LoginStored { host: HostId(1), scvm: ScvmId(scvm), epoch: Epoch(epoch) })
    }
    fn routed(ms: u64, node: &str, scvm: u32, epoch: u64) -> Entry {
        let path = Path { scvm: ScvmId(scvm), network: Network::Storage };
        entry(ms, node, Event::RouteReplaced { path, epoch: Epoch(epoch), reason: String::new() })
    }
    fn recorded(ms: u64, epoch: u64, planned: bool) -> Entry {
        let (host, to, epoch) = (HostId(1), ScvmId(2), Epoch(epoch));
        entry(ms, "meta", Event::MoveRecorded { host, from: None, to, epoch, planned, reason: "why".into() })
    }
    fn struck(fault: &str, at: u64, healed: u64) -> Struck {
        Struck {
            fault: fault.into(),
            target: "scvm1".into(),
            at: Some(BootNs(at * MS)),
            healed: Some(BootNs(healed * MS)),
            skipped: None,
        }
    }

    #[test]
    fn a_move_is_a_login_elsewhere_told_once_by_whoever_lived() {
        let journal = [
            stored(1, 1, 1),
            routed(2, "host1", 1, 1),
            recorded(10, 2, false),
            stored(12, 2, 2),
            routed(13, "host1", 2, 2),
            // Another path of the same server, then back to the same server at a new epoch: no moves.
            routed(20, "host1", 2, 2),
            stored(22, 2, 3),
            // Meta died before it wrote of this one.
            routed(30, "host1", 3, 4),
        ];
        let (moves, bad) = moves(&journal, BootNs(5 * MS));
        assert_eq!(bad, Vec::<String>::new());
        let short: Vec<_> = moves.iter().map(|m| (m.from.0, m.to.0, m.epoch.0, m.begin().0 / MS)).collect();
        assert_eq!(short, [(1, 2, 2, 10), (2, 3, 4, 30)]);
        assert_eq!(moves[0].routed, Some(BootNs(13 * MS)));
        assert_eq!(moves[0].reason, "why");
        assert_eq!(super::moves(&journal, BootNs(15 * MS)).0.len(), 1, "only those since the begin");
    }

    #[test]
    fn one_epoch_at_two_servers_is_a_contradiction() {
        let (_, bad) = moves(&[stored(1, 1, 1), stored(2, 2, 2), routed(3, "host1", 3, 2)], BootNs(0));
        assert_eq!(bad.len(), 1, "{bad:?}");
    }

    #[test]
    fn proofs_are_counted_by_name_since_the_begin() {
        let proven = |ms| {
            let (host, scvm, epoch) = (HostId(1), ScvmId(1), Epoch(1));
            let proof = FenceProof::Killed;
            entry(ms, "meta", Event::FenceProven { host, scvm, epoch, proof, does_not_cover: String::new() })
        };
        let proofs = proofs(&[proven(1), proven(5), proven(6)], BootNs(2 * MS));
        assert_eq!(proofs.into_iter().collect::<Vec<_>>(), [("killed".to_string(), 2)]);
    }

    #[test]
    fn a_move_belongs_to_the_last_fault_and_a_return_to_none() {
        let journal = [
            stored(1, 1, 1),
            recorded(2_100, 2, false),
            stored(2_110, 2, 2),
            recorded(9_000, 3, true),
            stored(9_001, 1, 3),
        ];
        let (moves, _) = moves(&journal, BootNs(0));
        let faults = [struck("agent-killed", 1_000, 8_000), struck("server-killed", 2_000, 2_050)];
        let times: Vec<u64> = [1_000, 2_095, 2_140, 4_000].iter().map(|t| t * MS).collect();
        let writes = BTreeMap::from([(1, oplog::at(&times))]);
        let table = per_fault(&faults, &moves, &writes, BootNs(9_000 * MS));
        assert_eq!(table["server-killed"].moves, 1);
        assert_eq!(table["agent-killed"].moves, 0);
        assert_eq!(table["agent-killed"].worst_gap_ms, 1_860.0);
        assert_eq!(gap_ms(&moves[0], &writes), Some(45.0));
    }

    #[test]
    fn the_longest_standstills_come_with_what_stood() {
        let times = [[1_000, 1_010, 1_500].map(|t| t * MS), [1_000, 3_000, 3_001].map(|t| t * MS)];
        let writes = BTreeMap::from([(1, oplog::at(&times[0])), (2, oplog::at(&times[1]))]);
        let faults = [struck("agent-killed", 990, 1_005), struck("server-killed", 1_400, 1_600)];
        let longest = longest(&writes, &faults, BootNs(1_000 * MS), BootNs(4_000 * MS));
        let short: Vec<_> = longest.iter().map(|s| (s.host, s.ms, s.standing.len())).collect();
        assert_eq!(short, [(2, 2_000.0, 2), (1, 490.0, 1), (1, 10.0, 1), (2, 1.0, 0)]);
        assert_eq!(longest[1].to_string(), "490.0 ms on host1 at 0.0 s, under: server-killed at scvm1");
    }

    #[test]
    fn ranks() {
        let spread = Spread::of((1..=200).map(f64::from).collect());
        assert_eq!(spread, Spread { p50: 100.0, p99: 198.0, max: 200.0 });
        assert_eq!(Spread::of(vec![3.0]), Spread { p50: 3.0, p99: 3.0, max: 3.0 });
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }
}
