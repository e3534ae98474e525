//! Ours: a lab for each fault, and one writer in it through all of its trials.
//!
//! Before the first trial the client's limit of `unanswered` follows its latency (adr/0012: 8 spans of 2 s with replies,
//! and 2,000 replies). Between trials the host is home again and everybody well. Two things would make
//! every trial after the first few another story than a first failure, and neither is part of the gap: the wait before a
//! return is 1 s and does not double (`hold_down_ms`, `hold_down_max_ms`), and when a host's budget of moves runs low
//! its agent is started anew.

use crate::cases::{Case, Strike, System};
use crate::plan::{Outcome, Turn};
use crate::trial::{Trial, WRITER, flows, ms_since, watch};
use anyhow::{Context, bail};
use lab::demo::timeline::{self, Window};
use lab::options::ServerKind;
use lab::topology::{Node, PAIRS};
use lab::{Lab, Writer, wait_for};
use reroute_agent::clock;
use reroute_core::ids::{BootNs, HostId};
use reroute_core::timeline::{Entry, Event};
use std::time::{Duration, Instant};

pub const HEALTHY: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(20);
/// Eight spans of 2 s, and the next look at them.
const SPANS: Duration = Duration::from_secs(17);
/// ... and what a busy machine adds.
const LEARNT: Duration = Duration::from_secs(60);
/// [`Timing::unanswered_ms`], µs: what holds until a client's latency is known.
///
/// [`Timing::unanswered_ms`]: reroute_agent::config::Timing
const UNKNOWN_US: u64 = 50_000;
/// There and back, and one more.
const BUDGET: u64 = 3;
const HOLD_DOWN_MS: u64 = 1000;
const WRITES: u64 = 200;
/// A write every 20 ms shows that a server reaches its storage.
const OTHERS: &[&str] = &["--outstanding", "1", "--interval-us", "20000", "--max-bytes", "4194304"];

/// Runs the trials of a case. `learn`: wait for the limit first.
pub fn run(turn: &Turn<'_>, server: ServerKind, learn: bool) -> anyhow::Result<Outcome> {
    let case = turn.case;
    let options = case
        .lab("bench", server)?
        .timing("hold_down_ms", HOLD_DOWN_MS)
        .timing("hold_down_max_ms", HOLD_DOWN_MS);
    turn.phase("starting 3 hosts, 3 SCVMs, and Meta");
    let lab = Lab::start(options)?;
    lab.wait_healthy(HEALTHY)?;
    let writer = lab.writer(1, 1, WRITER)?;
    let others: Vec<Writer<'_>> = match case.needs_others() {
        true => {
            (2..=PAIRS).map(|host| lab.writer(host, u64::from(host), OTHERS)).collect::<Result<_, _>>()?
        }
        false => Vec::new(),
    };
    if learn {
        turn.phase("the writer's latency is learnt");
        learnt(&lab)?;
    }
    let bench = Bench { lab: &lab, writer: &writer, case };
    let mut outcome = turn.trials(|nth| bench.trial(nth).map_err(|error| lab.explain(error)));
    turn.phase("reading back every write");
    for writer in others.into_iter().chain([writer]) {
        match (writer.stop(), outcome.trials.last_mut()) {
            // The same writers for all trials: damage is that of the case.
            (Ok(result), Some(last)) => {
                last.lost_writes += result.lost_writes;
                last.stale_writes += result.stale_writes;
            }
            (Ok(_), None) => {}
            (Err(error), _) => {
                outcome.trouble.get_or_insert(error);
            }
        }
    }
    Ok(outcome)
}

/// Waits until host1 has written for as long as its limit at scvm1 needs to come down, and that is not the default any
/// more. Where the machine is busy the limit that follows the client may be a higher one: it is told with each trial.
pub fn learnt(lab: &Lab) -> anyhow::Result<()> {
    let begun = Instant::now();
    wait_for("a limit that follows the client", LEARNT, || match limit_us(lab)? {
        _ if begun.elapsed() < SPANS => bail!("its latency is not known yet"),
        UNKNOWN_US => bail!("it is the default still"),
        _ => Ok(()),
    })
}

/// What a call of host1 may take at scvm1 before its kernel says so, µs.
fn limit_us(lab: &Lab) -> anyhow::Result<u64> {
    let out = lab.agent("scvm1", &["flows", "--output", "json"])?;
    let flows: serde_json::Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("flows of scvm1: {}", String::from_utf8_lossy(&out.stderr).trim()))?;
    let clients = flows["clients"].as_array().context("flows without clients")?;
    let host = clients.iter().find(|c| c["host"] == "host1").context("host1 is no client of scvm1")?;
    host["unanswered_limit_us"].as_u64().context("no limit")
}

struct Bench<'a> {
    lab: &'a Lab,
    writer: &'a Writer<'a>,
    case: &'a Case,
}

impl Bench<'_> {
    fn trial(&self, nth: usize) -> anyhow::Result<Trial> {
        self.at_home()?;
        let limit_ms = limit_us(self.lab)? as f64 / 1e3;
        // Where between two pulses or keepalives it strikes is left to neither.
        std::thread::sleep(Duration::from_micros(20_000 + (nth as u64 * 7_919) % 100_000));
        let cut_off = System::Reroute.cut_off();
        let trial = match self.case.strike {
            Strike::Fault(name) => {
                let at = self.lab.fault(name, None)?.at;
                self.measured(at, cut_off)?
            }
            Strike::Planned => {
                let at = clock::now();
                self.operator(&["route", "set", "scvm2"])?;
                self.measured(at, cut_off)?
            }
            Strike::Return(name) => {
                let away = self.lab.fault(name, None)?.at;
                if !watch(self.writer, away, cut_off, || self.asked(away).map(|d| d.is_some()))?.recovered {
                    bail!("{name}: the host did not leave: nothing to return from");
                }
                let at = clock::now();
                self.lab.heal()?;
                let home = Node::Scvm(1).storage().to_string();
                let cut_off = System::Reroute.return_cut_off();
                self.measured_until(at, cut_off, || Ok(self.lab.next_hop(1)?.as_deref() == Some(&home)))?
            }
        };
        Ok(Trial { limit_ms: Some(limit_ms), ..trial })
    }

    /// Well, at home, with writes that flow and moves left.
    fn at_home(&self) -> anyhow::Result<()> {
        self.lab.heal()?;
        if self.case.strike == Strike::Planned {
            // Nothing is pinned before the first trial.
            let _ = self.lab.agent("host1", &["route", "auto"])?;
        }
        self.lab.wait_healthy(HEALTHY)?;
        let local = &self.lab.agent_status("host1")?["local"];
        if local["budget"].as_u64().context("host1 tells no budget")? < BUDGET {
            self.lab.stop_process("host1/agent", SOON)?;
            self.lab.start_process("host1/agent")?;
            self.lab.wait_healthy(HEALTHY)?;
        }
        wait_for("writes that flow", SOON, || match flows(self.writer)? {
            true => Ok(()),
            false => bail!("they do not"),
        })?;
        self.writer.wait_writes(clock::now(), WRITES, SOON)
    }

    fn operator(&self, args: &[&str]) -> anyhow::Result<()> {
        let out = self.lab.agent("host1", args)?;
        if !out.status.success() {
            bail!("{}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }

    fn measured(&self, at: BootNs, cut_off: Duration) -> anyhow::Result<Trial> {
        self.measured_until(at, cut_off, || self.asked(at).map(|d| d.is_some()))
    }

    /// From `at` on, until writes flow again and `settled` says so.
    fn measured_until(
        &self,
        at: BootNs,
        cut_off: Duration,
        settled: impl Fn() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Trial> {
        let watched = watch(self.writer, at, cut_off, settled)?;
        let journal = self.lab.journal()?;
        let window = Window {
            host: HostId(1),
            host_name: "host1",
            scvm_name: "scvm1",
            fault: self.case.name,
            from: at,
            to: clock::now(),
        };
        let steps = timeline::read(&journal, &window).steps;
        let end = at.plus((watched.gap_ms * 1e6) as u64);
        let told =
            |e: &&Entry| (at..=end).contains(&e.at) && matches!(e.node.as_str(), "host1" | "scvm1" | "meta");
        let line = |e: &Entry| format!("{:.1} {} {:?}", ms_since(at, e.at), e.node, e.event);
        let journal = journal.iter().filter(told).map(line).collect();
        Ok(Trial {
            gap_ms: watched.gap_ms,
            recovered: watched.recovered,
            detect_ms: self.asked(at)?.map(|asked| ms_since(at, asked)),
            steps: steps.into_iter().map(|s| (s.event.to_string(), s.at_us as f64 / 1e3)).collect(),
            journal,
            ..Trial::default()
        })
    }

    /// When host1 first asked for another place since `at`.
    fn asked(&self, at: BootNs) -> anyhow::Result<Option<BootNs>> {
        let journal = self.lab.journal()?;
        let verdict = journal
            .iter()
            .find(|e| e.at >= at && e.node == "host1" && matches!(e.event, Event::Verdict { .. }));
        Ok(verdict.map(|e| e.at))
    }
}
