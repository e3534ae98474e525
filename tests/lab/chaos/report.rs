//! The figures of a run, and what was wrong with it.

use super::Options;
use super::account::{self, Move, PerFault, Spread};
use super::run::Ran;
use super::schedule::Schedule;
use crate::options::ServerKind;
use reroute_core::ids::BootNs;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub what: String,
    pub host: Option<u32>,
    /// When it was found.
    pub at: BootNs,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

/// `chaos.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub minutes: f64,
    pub seed: u64,
    pub server: ServerKind,
    /// Logins that went to another server, since the first fault.
    pub moves: u64,
    /// Of these: on the way home, or another planned one.
    pub planned_moves: u64,
    pub lost_writes: u64,
    pub stale_writes: u64,
    pub bad_reads: u64,
    /// Completed sync writes of all hosts.
    pub writes: u64,
    /// How long a host's writes stood still for each of its moves.
    pub gap_ms: Spread,
    /// Longest times without a completed write on a host, with or without a move; longest first.
    pub longest: Vec<account::Standstill>,
    /// FenceProven by proof.
    pub proofs: BTreeMap<String, u64>,
    pub faults: BTreeMap<String, PerFault>,
    pub violations: Vec<Violation>,
    pub notes: Vec<String>,
    #[serde(skip)]
    pub all_moves: Vec<Move>,
}

pub fn outcome(options: &Options, schedule: &Schedule, ran: &Ran) -> Outcome {
    let (moves, contradictions) = account::moves(&ran.journal, ran.begin);
    let sum = |pick: fn(&crate::handle::Report) -> u64| ran.reports.values().map(pick).sum::<u64>();
    let mut outcome = Outcome {
        minutes: options.minutes,
        seed: schedule.seed,
        server: options.server,
        moves: moves.len() as u64,
        planned_moves: moves.iter().filter(|m| m.planned).count() as u64,
        lost_writes: sum(|r| r.lost_writes),
        stale_writes: sum(|r| r.stale_writes),
        bad_reads: sum(|r| r.bad_reads),
        writes: sum(|r| r.completed),
        gap_ms: Spread::of(moves.iter().filter_map(|m| account::gap_ms(m, &ran.writes)).collect()),
        longest: account::longest(&ran.writes, &ran.struck, ran.begin, ran.end),
        proofs: account::proofs(&ran.journal, ran.begin),
        faults: account::per_fault(&ran.struck, &moves, &ran.writes, ran.healed),
        violations: ran.violations.clone(),
        notes: ran.notes.clone(),
        all_moves: moves,
    };
    let mut found = |what: String, host| {
        outcome.violations.push(Violation { what, host, at: ran.end });
    };
    for (host, report) in &ran.reports {
        let damage = [
            (report.lost_writes, "lost writes"),
            (report.stale_writes, "stale writes"),
            (report.bad_reads, "reads that gave something else than what was acknowledged"),
            (report.metadata_damage(), "names that are not as they were acknowledged"),
        ];
        for (count, what) in damage.into_iter().filter(|(count, _)| *count > 0) {
            found(format!("host{host}: {count} {what}"), Some(*host));
        }
    }
    contradictions.into_iter().for_each(|what| found(what, None));
    let (moved, owed) = (outcome.moves, options.moves_owed());
    if moved < owed {
        let what = format!("{moved} moves in {} min, {owed} are owed", options.minutes);
        outcome.violations.push(Violation { what, host: None, at: ran.end });
    }
    outcome
}

/// For people.
pub fn text(o: &Outcome) -> String {
    let mut text = format!(
        "\nseed {}, {} min, {:?}: {} moves ({} planned), {} writes, {} lost, {} stale, {} bad reads\n",
        o.seed,
        o.minutes,
        o.server,
        o.moves,
        o.planned_moves,
        o.writes,
        o.lost_writes,
        o.stale_writes,
        o.bad_reads
    );
    let _ = writeln!(
        text,
        "gap of a move: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        o.gap_ms.p50, o.gap_ms.p99, o.gap_ms.max
    );
    for s in &o.longest {
        let _ = writeln!(text, "standstill: {s}");
    }
    let proofs: Vec<String> = o.proofs.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let _ = writeln!(text, "proofs: {}\n", if proofs.is_empty() { "none".into() } else { proofs.join(", ") });
    let _ = write!(
        text,
        "{:<24} {:>8} {:>8} {:>6}  {:>12}",
        "fault", "injected", "skipped", "moves", "worst gap"
    );
    for (name, f) in &o.faults {
        let _ = write!(
            text,
            "\n{name:<24} {:>8} {:>8} {:>6}  {:>9.1} ms",
            f.injected, f.skipped, f.moves, f.worst_gap_ms
        );
    }
    for note in &o.notes {
        let _ = write!(text, "\nnote: {note}");
    }
    for violation in &o.violations {
        let _ = write!(text, "\nVIOLATION: {violation}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::Report;

    fn ran(host1: Report) -> Ran {
        Ran {
            begin: BootNs(1),
            healed: BootNs(2),
            end: BootNs(3),
            struck: Vec::new(),
            journal: Vec::new(),
            writes: BTreeMap::new(),
            reports: BTreeMap::from([(1, host1)]),
            violations: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn of(options: &Options, report: Report) -> Vec<String> {
        let schedule = Schedule { seed: 1, total_ms: 1, injections: Vec::new() };
        let outcome = outcome(options, &schedule, &ran(report));
        outcome.violations.iter().map(ToString::to_string).collect()
    }

    fn clean() -> Report {
        serde_json::from_str(r#"{"completed":9,"lost_writes":0,"stale_writes":0,"longest_gap_ns":0}"#)
            .unwrap()
    }

    #[test]
    fn every_kind_of_damage_is_a_violation_by_name() {
        let owes_nothing = Options { minutes: 0.1, ..Options::default() };
        assert_eq!(of(&owes_nothing, clean()), Vec::<String>::new());
        let names = Some(serde_json::json!({ "damage": 3 }));
        let damaged = Report { lost_writes: 1, stale_writes: 2, bad_reads: 4, metadata: names, ..clean() };
        let found = of(&owes_nothing, damaged);
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[0], "host1: 1 lost writes");
        assert_eq!(found[1], "host1: 2 stale writes");
    }

    #[test]
    fn too_few_moves_are_a_violation_unless_the_faults_were_chosen() {
        let found = of(&Options::default(), clean());
        assert_eq!(found, ["0 moves in 10 min, 20 are owed"]);
        let chosen = Options { faults: vec!["agent-killed".into()], ..Options::default() };
        assert_eq!(of(&chosen, clean()), Vec::<String>::new());
    }
}
