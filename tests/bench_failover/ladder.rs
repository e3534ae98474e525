//! The ladder: faults that must move nothing, close no admission and kill no server, each for a while under writers on
//! all hosts. A rung says something only where the fault was felt: a burden that costs nothing, and a client that is
//! not stuck, are no figures.

use crate::ours::{HEALTHY, learnt};
use crate::rows::{Kept, Rung, ladder_table};
use crate::trial::{WRITER, flows};
use anyhow::{Context, bail};
use lab::burden::Burden;
use lab::demo::progress::Progress;
use lab::faults::outcomes::{OUTCOMES, Outcome, Then};
use lab::faults::{Action, Fault};
use lab::options::{Options, ServerKind};
use lab::topology::{Node, PAIRS};
use lab::{Lab, Writer, wait_for};
use reroute_agent::clock;
use reroute_core::ids::{BootNs, FencePolicy};
use reroute_core::timeline::{Entry, Event};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A burden ends by itself: it is laid on anew after this.
const ANEW: Duration = Duration::from_secs(12);
const SOON: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(200);
/// Of host2 and host3, which share the CPUs with host1's.
const OTHERS: &[&str] = &[
    "--outstanding",
    "4",
    "--interval-us",
    "3000",
    "--max-bytes",
    "4194304",
    "--max-seconds",
    "86400",
    "--expect-damage",
];
/// A client that is served by the same server as the one that is wedged: a server that serves nobody is another fault.
const SECOND: u32 = 2;
/// A wedged client writes nothing for so long at least.
const STUCK: Duration = Duration::from_secs(1);
/// Why the kernel drops packets of a client that it served.
const CLOSED: [&str; 2] = ["not_admitted", "lease_expired"];

/// Those named, or all that must move nothing by the table of outcomes. Errors: a name that is not among them.
pub fn wanted(names: &[String]) -> anyhow::Result<Vec<&'static Outcome>> {
    let all = || OUTCOMES.iter().filter(|o| matches!(o.then, Then::Nothing { .. }));
    if let Some(name) = names.iter().find(|name| !all().any(|o| o.fault == name.trim())) {
        let known: Vec<_> = all().map(|o| o.fault).collect();
        bail!("{name:?} is not on the ladder: there are {}", known.join(", "));
    }
    Ok(all().filter(|o| names.is_empty() || names.iter().any(|name| name.trim() == o.fault)).collect())
}

/// Whether every rung could be measured.
pub fn run(
    rungs: &[&'static Outcome],
    seconds: u64,
    server: ServerKind,
    learn: bool,
    kept: &mut Kept,
) -> anyhow::Result<bool> {
    let progress = Progress::new();
    let mut complete = true;
    for outcome in rungs {
        match rung(outcome, seconds, server, learn, &progress) {
            Ok(rung) => {
                progress.say(&format!(
                    "{:<18} {seconds} s: {} moves, longest gap {:.1} ms, admission closed {} times, {} servers killed",
                    rung.fault, rung.moves, rung.max_gap_ms, rung.admission_closed, rung.servers_killed
                ));
                kept.rung(rung)?;
            }
            Err(error) => {
                progress.say(&format!("{}: FAILED: {error:#}", outcome.fault));
                complete = false;
            }
        }
    }
    progress.say(&format!("\n{}", ladder_table(&kept.figures.ladder)));
    Ok(complete)
}

fn rung(
    outcome: &Outcome,
    seconds: u64,
    server: ServerKind,
    learn: bool,
    progress: &Progress,
) -> anyhow::Result<Rung> {
    let phase = |what: &str| progress.phase(&format!("ladder {}: {what}", outcome.fault));
    let fault = Fault::find(outcome.fault)?;
    // Where a server could be killed, that none is means something.
    let mut options = Options::named("ladder").server(server).policy(FencePolicy::Kill);
    if fault.check(&options).is_err() {
        options = outcome.lab.options("ladder");
    }
    options.faults_stand = true;
    phase("starting 3 hosts, 3 SCVMs, and Meta");
    let lab = Lab::start(options)?;
    lab.wait_healthy(HEALTHY)?;
    let wedged = fault.action == Action::Wedge;
    if wedged {
        lab.pin(SECOND, 1, SOON)?;
    }
    let writers = writers(&lab)?;
    if learn {
        phase("the writer's latency is learnt");
        learnt(&lab)?;
    }
    all_flow(&writers)?;
    let before = closed(&lab)?;
    let target = outcome.targets()?.into_iter().next().context("nowhere to strike")?;
    let mut burden = match fault.action {
        Action::Load(load) => Some(Burden::before(&lab, fault.name, load, &target)?),
        _ => None,
    };
    phase("it stands");
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let at = strike(&lab, outcome)?;
    let mut laid_on = begun;
    while Instant::now() < end {
        std::thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
        lab.status().context("the lab has ended")?;
        if let Some(burden) = &mut burden
            && laid_on.elapsed() >= ANEW
            && Instant::now() < end
        {
            burden.count(&lab)?;
            lab.heal()?;
            strike(&lab, outcome)?;
            laid_on = Instant::now();
        }
    }
    let over = clock::now();
    let stood = begun.elapsed();
    if let Some(burden) = &mut burden {
        burden.count(&lab)?;
    }
    lab.heal()?;
    phase("healed");
    all_flow(&writers).map_err(|error| lab.explain(error))?;
    // Agents that were down say what has become of them.
    let after = wait_for("every SCVM's counts", SOON, || closed(&lab))?;
    let journal = lab.journal()?;
    let gaps: Vec<Duration> = writers
        .iter()
        .map(|w| Ok(Duration::from_nanos(w.gap(at, Some(over))?.longest_gap_ns)))
        .collect::<anyhow::Result<_>>()?;
    let gap = longest_gap(wedged, &gaps)?;
    if let Some(burden) = burden {
        progress.say(&format!("{}: {}", fault.name, burden.felt(stood)?));
    }
    for writer in writers {
        writer.stop()?;
    }
    let dropped =
        after.iter().filter(|(of, count)| **count > before.get(*of).copied().unwrap_or(0.0)).count();
    Ok(Rung {
        fault: outcome.fault.into(),
        seconds,
        moves: count(&journal, at, |e| matches!(e, Event::MoveRecorded { .. } | Event::RouteReplaced { .. })),
        max_gap_ms: gap.as_secs_f64() * 1e3,
        admission_closed: count(&journal, at, |e| matches!(e, Event::Fenced { .. })) + dropped as u64,
        servers_killed: servers_killed(&journal, at),
    })
}

/// One on every host, host1's first.
fn writers(lab: &Lab) -> anyhow::Result<Vec<Writer<'_>>> {
    (1..=PAIRS)
        .map(|host| lab.writer(host, u64::from(host), if host == 1 { WRITER } else { OTHERS }))
        .collect()
}

fn all_flow(writers: &[Writer<'_>]) -> anyhow::Result<()> {
    wait_for("writes that flow", SOON, || match writers.iter().map(flows).collect::<Result<Vec<_>, _>>()? {
        flow if flow.iter().all(|flows| *flows) => Ok(()),
        flow => bail!("by host they do: {flow:?}"),
    })
}

/// Of all writers; where host1's is wedged, of the others: that it stands still is the fault itself, and must be.
fn longest_gap(wedged: bool, gaps: &[Duration]) -> anyhow::Result<Duration> {
    let stuck = gaps.first().copied().unwrap_or_default();
    if wedged && stuck < STUCK {
        bail!("host1's client was to be wedged, and wrote nothing for {stuck:.1?} only");
    }
    gaps.iter().skip(usize::from(wedged)).max().copied().context("no writer")
}

/// At every node of the table. Returns when the first was struck.
fn strike(lab: &Lab, outcome: &Outcome) -> anyhow::Result<BootNs> {
    let mut first = None;
    for target in outcome.targets()? {
        let at = lab.fault(outcome.fault, Some(&target))?.at;
        first.get_or_insert(at);
    }
    first.context("nowhere to strike")
}

fn count(journal: &[Entry], from: BootNs, which: impl Fn(&Event) -> bool) -> u64 {
    journal.iter().filter(|e| e.at >= from && which(&e.event)).count() as u64
}

fn servers_killed(journal: &[Entry], from: BootNs) -> u64 {
    let pids: BTreeSet<(&str, u32)> = journal
        .iter()
        .filter(|e| e.at >= from)
        .filter_map(|e| match e.event {
            Event::ServerKilled { pid, .. } | Event::ServerProcess { pid, alive: false } => {
                Some((e.node.as_str(), pid))
            }
            _ => None,
        })
        .collect();
    pids.len() as u64
}

/// Packets dropped because a client was not served (any more), by SCVM, client and reason.
fn closed(lab: &Lab) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut drops = BTreeMap::new();
    for i in 1..=PAIRS {
        let node = Node::Scvm(i).to_string();
        let text = lab.metrics(&node).with_context(|| format!("metrics of {node}"))?;
        let samples = text.lines().filter(|line| {
            line.starts_with("reroute_dropped_packets_total{")
                && CLOSED.iter().any(|reason| line.contains(&format!("reason=\"{reason}\"")))
        });
        for sample in samples {
            let (name, value) = sample.rsplit_once(' ').context("a sample without a value")?;
            drops.insert(format!("{node} {name}"), value.parse().with_context(|| sample.to_string())?);
        }
    }
    Ok(drops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reroute_core::ids::{Epoch, HostId};

    #[test]
    fn rungs_are_what_must_move_nothing() {
        let all: Vec<_> = wanted(&[]).expect("all of them").iter().map(|o| o.fault).collect();
        assert!(
            all.contains(&"server-slow") && all.contains(&"duplicate-ip") && !all.contains(&"server-hung")
        );
        assert_eq!(wanted(&["lossy-5".into()]).expect("one").len(), 1);
        let unknown = wanted(&["server-killed".into()]).unwrap_err().to_string();
        assert!(unknown.contains("not on the ladder") && unknown.contains("lossy-5"), "{unknown}");
    }

    #[test]
    fn the_longest_gap_is_that_of_writers_which_are_not_wedged() {
        let ms = |all: [u64; 3]| all.map(Duration::from_millis);
        let gap = |wedged, all| longest_gap(wedged, &ms(all)).map(|d| d.as_millis());
        assert_eq!(gap(false, [9, 7, 8]).expect("a gap"), 9);
        assert_eq!(gap(false, [7, 8, 9]).expect("a gap"), 9);
        assert_eq!(gap(true, [5000, 7, 12]).expect("a gap"), 12);
        let why = gap(true, [900, 7, 12]).unwrap_err().to_string();
        assert!(why.contains("wedged") && why.contains("900"), "{why}");
    }

    #[test]
    fn a_server_that_was_killed_and_seen_to_end_counts_once() {
        let entry = |at, node: &str, event| Entry { at: BootNs(at), node: node.into(), event };
        let killed = |pid| Event::ServerKilled { pid, host: HostId(1), epoch: Epoch(2), why: String::new() };
        let journal = [
            entry(1, "scvm1", Event::ServerProcess { pid: 7, alive: false }),
            entry(5, "scvm1", killed(8)),
            entry(6, "scvm1", Event::ServerProcess { pid: 8, alive: false }),
            entry(7, "scvm1", Event::ServerProcess { pid: 9, alive: true }),
            entry(8, "scvm2", Event::ServerProcess { pid: 8, alive: false }),
        ];
        assert_eq!(servers_killed(&journal, BootNs(5)), 2);
        assert_eq!(count(&journal, BootNs(6), |e| matches!(e, Event::ServerProcess { .. })), 3);
    }
}
