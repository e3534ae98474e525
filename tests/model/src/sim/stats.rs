//! What runs add up to.

use super::Outcome;
use reroute_core::ids::*;
use reroute_core::proto::FenceProof;
use std::collections::BTreeMap;
use std::fmt;

#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub seeds: u64,
    pub steps: u64,
    /// Simulated, ns.
    pub time: u64,
    pub first_logins: u64,
    pub moves: u64,
    /// Moves to the host's own SCVM.
    pub returns: u64,
    pub writes: u64,
    pub faults: u64,
    pub proofs: BTreeMap<FenceProof, u64>,
    /// From the last write before a move to the first one after it, ns.
    pub gaps: Vec<u64>,
    /// See [`crate::world::oracle::Oracle::overtaken`].
    pub overtaken: u64,
    pub violations: u64,
    pub failed: Vec<u64>,
}

impl Stats {
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.steps += outcome.steps;
        self.time += outcome.time;
        self.first_logins += outcome.first_logins;
        self.moves += outcome.moves;
        self.returns += outcome.returns;
        self.writes += outcome.writes;
        self.faults += outcome.faults;
        for (proof, number) in &outcome.proofs {
            *self.proofs.entry(*proof).or_default() += number;
        }
        self.gaps.extend(&outcome.gaps);
        self.overtaken += outcome.overtaken;
        self.violations += outcome.violations.len() as u64;
        if !outcome.violations.is_empty() {
            self.failed.push(outcome.seed);
        }
    }

    /// The gap that `share` of 1 are not longer than, ns.
    pub fn gap(&self, share: f64) -> Option<u64> {
        let mut gaps = self.gaps.clone();
        gaps.sort_unstable();
        let last = gaps.len().checked_sub(1)?;
        gaps.get((last as f64 * share).round() as usize).copied()
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |share| self.gap(share).unwrap_or(0) as f64 / MS as f64;
        writeln!(
            f,
            "sim: {} seeds, {} steps, {:.0} s simulated, {} faults, {} writes",
            self.seeds,
            self.steps,
            self.time as f64 / SEC as f64,
            self.faults,
            self.writes
        )?;
        writeln!(
            f,
            "sim: {} moves, {} first logins, {} returns; gaps ms p50 {:.1} p99 {:.1} max {:.1}",
            self.moves,
            self.first_logins,
            self.returns,
            ms(0.5),
            ms(0.99),
            ms(1.0)
        )?;
        let proofs: Vec<String> = self.proofs.iter().map(|(p, n)| format!("{p:?} {n}")).collect();
        writeln!(f, "sim: proofs {}", proofs.join(", "))?;
        writeln!(
            f,
            "sim: {} writes overtaken within one login after a change of path (no move)",
            self.overtaken
        )?;
        write!(f, "sim: {} violations in {} seeds {:?}", self.violations, self.failed.len(), self.failed)
    }
}
