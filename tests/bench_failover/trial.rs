//! One trial, whoever is measured: the longest time without a completed write, and whether writes went on.

use lab::Writer;
use reroute_agent::clock;
use reroute_core::ids::BootNs;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Paced, so that three servers and seven agents on the same CPUs are not starved by their own client.
pub const WRITER: &[&str] =
    &["--outstanding", "4", "--interval-us", "500", "--max-seconds", "86400", "--expect-damage"];
/// Writes go on when so many were completed within this time, and the gap before them is over.
const FLOW: Duration = Duration::from_millis(300);
const ENOUGH: u64 = 30;
/// Looked after so often at first, and less often the longer it takes.
const LOOK: Duration = Duration::from_millis(20);
const SELDOM: Duration = Duration::from_secs(1);

/// What one trial gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Trial {
    pub gap_ms: f64,
    /// From the fault until a move was asked for; None: nobody noticed.
    pub detect_ms: Option<f64>,
    pub recovered: bool,
    pub lost_writes: u64,
    pub stale_writes: u64,
    /// Ours: the `unanswered` limit of the client at its server, ms, right before.
    pub limit_ms: Option<f64>,
    /// Ours: steps of the move, ms since the fault.
    pub steps: BTreeMap<String, f64>,
    /// Ours: what host1, scvm1 and Meta wrote down, from the fault to the first write after it.
    pub journal: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
pub struct Watched {
    pub gap_ms: f64,
    pub recovered: bool,
}

/// Whether writes flow: enough of them lately, and no gap that reaches into that time.
pub fn flows(writer: &Writer<'_>) -> anyhow::Result<bool> {
    let now = clock::now();
    let from = BootNs(now.0.saturating_sub(FLOW.as_nanos() as u64));
    let lately = writer.gap(from, Some(now))?;
    Ok(lately.completed >= ENOUGH && lately.longest_gap_ns < FLOW.as_nanos() as u64)
}

/// Waits until writes flow again and `settled` says so too, or until `cut_off` after `at`.
pub fn watch(
    writer: &Writer<'_>,
    at: BootNs,
    cut_off: Duration,
    settled: impl Fn() -> anyhow::Result<bool>,
) -> anyhow::Result<Watched> {
    let first_look = at.plus(FLOW.as_nanos() as u64);
    let deadline = at.plus(cut_off.as_nanos() as u64);
    loop {
        let now = clock::now();
        let recovered = now >= first_look && flows(writer)? && settled()?;
        if recovered || now >= deadline {
            let gap = writer.gap(at, Some(now.min(deadline)))?;
            let gap_ms = gap.longest_gap_ns as f64 / 1e6;
            return Ok(Watched { gap_ms, recovered });
        }
        std::thread::sleep((Duration::from_nanos(now.since(at)) / 20).clamp(LOOK, SELDOM));
    }
}

pub fn ms_since(at: BootNs, later: BootNs) -> f64 {
    later.since(at) as f64 / 1e6
}
