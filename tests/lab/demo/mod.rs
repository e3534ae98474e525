//! Three failures of one server under a writer, each from a healthy cluster, each explained on one timeline; and the
//! way back home.

pub mod progress;
pub mod timeline;

use crate::handle::{Lab, require_root, wait_for};
use crate::options::Options;
use anyhow::{Context, bail};
use progress::Progress;
use reroute_core::ids::HostId;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use timeline::{Step, Timeline, Window};

const FAULTS: [&str; 3] = ["server-killed", "server-hung", "storage-link-cut"];
/// A longest gap must stay below this.
const BOUND_MS: f64 = 500.0;
/// Completed writes before a fault and after each change.
const WRITES: u64 = 200;
const HEALTHY: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
struct Report {
    faults: Vec<Outcome>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    name: String,
    /// Longest time without a completed write, from the fault until it was healed.
    gap_ms: f64,
    lost_writes: u64,
    stale_writes: u64,
    /// The same from the healing until the host was home again.
    return_gap_ms: f64,
    proof: String,
    timeline: Vec<Step>,
}

/// Runs the demo; writes the figures to `json`. Errors: no root, a lab that does not work, a gap of 500 ms or more, a
/// lost or stale write, a step without an explanation.
pub fn run(json: &Path) -> anyhow::Result<()> {
    require_root()?;
    let progress = Progress::new();
    progress.phase("starting 3 hosts, 3 SCVMs with NFS-Ganesha, and Meta");
    let lab = Lab::start(Options::named("demo"))?;
    let mut outcomes = Vec::new();
    let mut complaints = Vec::new();
    for (id, name) in (1..).zip(FAULTS) {
        let (outcome, timeline) = fail_over(&lab, name, id, &progress).with_context(|| name.to_string())?;
        if outcome.gap_ms >= BOUND_MS {
            complaints.push(format!("{name}: a gap of {:.1} ms, not below {BOUND_MS}", outcome.gap_ms));
        }
        if outcome.return_gap_ms >= BOUND_MS {
            complaints.push(format!("{name}: {:.1} ms on the way back", outcome.return_gap_ms));
        }
        if outcome.lost_writes + outcome.stale_writes > 0 {
            complaints.push(format!("{name}: lost or stale writes"));
        }
        if !timeline.missing().is_empty() {
            complaints.push(format!("{name}: no {} on the timeline", timeline.missing().join(", ")));
        }
        outcomes.push(outcome);
    }
    progress.phase("ending the lab");
    lab.stop();
    progress.say(&table(&outcomes));
    if let Some(dir) = json.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(json, serde_json::to_string_pretty(&Report { faults: outcomes })? + "\n")
        .with_context(|| format!("cannot write {}", json.display()))?;
    progress.say(&format!("\nfigures in {}", json.display()));
    drop(progress);
    if !complaints.is_empty() {
        bail!("{}", complaints.join("; "));
    }
    Ok(())
}

fn fail_over(lab: &Lab, name: &str, id: u64, progress: &Progress) -> anyhow::Result<(Outcome, Timeline)> {
    progress.phase(&format!("{name}: waiting for a healthy cluster"));
    lab.wait_healthy(HEALTHY)?;
    let writer = lab.writer(1, id, &[])?;
    writer.wait_writes(reroute_agent::clock::now(), WRITES, Duration::from_secs(10))?;
    lab.wait_healthy(HEALTHY)?;

    progress.phase(&format!("{name}: strikes scvm1"));
    let fault = lab.fault(name, Some("scvm1"))?;
    let read = |to| -> anyhow::Result<Timeline> {
        let window = Window {
            host: HostId(1),
            host_name: "host1",
            scvm_name: "scvm1",
            fault: name,
            from: fault.at,
            to,
        };
        Ok(timeline::read(&lab.journal()?, &window))
    };
    // A step that never comes is a complaint at the end; first the whole story.
    let explained = wait_for("the whole timeline", Duration::from_secs(10), || {
        let missing = read(reroute_agent::clock::now())?.missing();
        if missing.is_empty() { Ok(()) } else { bail!("no {}", missing.join(", ")) }
    });
    writer.wait_writes(reroute_agent::clock::now(), WRITES, Duration::from_secs(30))?;
    let healed_at = reroute_agent::clock::now();
    let timeline = read(healed_at)?;
    let gap = writer.gap(fault.at, Some(healed_at))?;
    progress.say(&story(name, &timeline, &gap));
    if let Err(why) = explained {
        progress.say(&format!("  {why:#}"));
    }

    progress.phase(&format!("{name}: healed; the host returns home when scvm1 has been well for a while"));
    let healed = lab.heal()?;
    lab.wait_healthy(HEALTHY)?;
    let home_at = reroute_agent::clock::now();
    writer.wait_writes(home_at, WRITES, Duration::from_secs(10))?;
    let back = writer.gap(healed_at, None)?;
    progress.say(&format!(
        "  healed ({}); home again {:.1} s later, longest gap on the way back {:.1} ms",
        healed.join(", "),
        home_at.since(healed_at) as f64 / 1e9,
        back.longest_gap_ns as f64 / 1e6
    ));
    progress.phase(&format!("{name}: reading back every write"));
    let result = writer.stop()?;
    let outcome = Outcome {
        name: name.into(),
        gap_ms: gap.longest_gap_ns as f64 / 1e6,
        lost_writes: result.lost_writes,
        stale_writes: result.stale_writes,
        return_gap_ms: back.longest_gap_ns as f64 / 1e6,
        proof: timeline.proof.map(timeline::proof_name).unwrap_or_default(),
        timeline: timeline.steps.clone(),
    };
    Ok((outcome, timeline))
}

fn story(name: &str, timeline: &Timeline, gap: &crate::handle::Gap) -> String {
    let mut text = format!("\n{name}\n");
    for step in &timeline.steps {
        text.push_str(&format!(
            "  {:>9} µs  {:<15} {:<6} {}\n",
            step.at_us, step.event, step.node, step.detail
        ));
    }
    text.push_str(&format!(
        "  longest gap between completed writes: {:.1} ms",
        gap.longest_gap_ns as f64 / 1e6
    ));
    text
}

fn table(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "\n{:<18} {:>11} {:>11} {:>12} {:>11}  {}",
        "fault", "longest gap", "lost writes", "stale writes", "return gap", "proof"
    );
    for o in outcomes {
        text.push_str(&format!(
            "\n{:<18} {:>8.1} ms {:>11} {:>12} {:>8.1} ms  {}",
            o.name, o.gap_ms, o.lost_writes, o.stale_writes, o.return_gap_ms, o.proof
        ));
    }
    text
}
