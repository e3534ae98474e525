//! Carries out a schedule. One thread does everything in turn: break, heal, and what a service manager would do.

use super::account::Struck;
use super::oplog::Writes;
use super::report::Violation;
use super::schedule::{Schedule, Step};
use crate::control::{ProcessStatus, Request, Status};
use crate::demo::progress::Progress;
use crate::faults::{Action, Fault};
use crate::handle::{Lab, Report, Writer, wait_for};
use crate::options::ServerKind;
use crate::topology::{Node, PAIRS};
use anyhow::{Context, bail};
use reroute_agent::clock;
use reroute_core::ids::BootNs;
use reroute_core::timeline::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What ended is looked for this often.
const LOOK: Duration = Duration::from_millis(500);
/// A processes is started again and every fault healed within this time.
const MEND: Duration = Duration::from_secs(60);
/// Writers go on this long after the last host has recovered: what comes late comes by then (a hung server goes on after
/// 5 s, and all of them have been continued before).
const SETTLE: Duration = Duration::from_secs(5);
/// A host goes on when it has completed this many writes.
const WRITES: u64 = 50;

/// A run as it was.
pub struct Ran {
    pub begin: BootNs,
    /// When everything was healed.
    pub healed: BootNs,
    pub end: BootNs,
    pub struck: Vec<Struck>,
    pub journal: Vec<Entry>,
    /// By host.
    pub writes: BTreeMap<u32, Writes>,
    pub reports: BTreeMap<u32, Report>,
    pub violations: Vec<Violation>,
    /// Odd, and nobody's fault here.
    pub notes: Vec<String>,
}

struct Runner<'a> {
    lab: &'a Lab,
    progress: &'a Progress,
    writers: BTreeMap<u32, Writer<'a>>,
    struck: Vec<Struck>,
    violations: Vec<Violation>,
    notes: Vec<String>,
    /// Ends that were judged: process, when.
    judged: BTreeSet<(String, u64)>,
}

/// Errors: the writers do not start, or the lab itself fails. What the run is about comes back as violations.
pub fn run(lab: &Lab, schedule: &Schedule, recover: Duration, progress: &Progress) -> anyhow::Result<Ran> {
    progress.phase("a writer on every host");
    let writers = start_writers(lab, schedule)?;
    let none = |i: &super::schedule::Injection| Struck {
        fault: i.fault.clone(),
        target: i.target.clone(),
        at: None,
        healed: None,
        skipped: None,
    };
    let mut runner = Runner {
        lab,
        progress,
        writers,
        struck: schedule.injections.iter().map(none).collect(),
        violations: Vec::new(),
        notes: Vec::new(),
        judged: BTreeSet::new(),
    };
    let (begin, start) = (clock::now(), Instant::now());
    for (at_ms, step) in schedule.steps() {
        runner.wait_until(start + Duration::from_millis(at_ms))?;
        match step {
            Step::Inject(nth) => runner.inject(nth, start, schedule.injections[nth].until_ms - at_ms),
            Step::Heal(nth) => runner.heal(nth, start),
        }
    }
    runner.wait_until(start + Duration::from_millis(schedule.total_ms))?;
    progress.phase("everything healed: every host must go on");
    let healed = runner.mend();
    runner.all_go_on(healed, recover);
    progress.phase("what comes late may come");
    runner.wait_until(Instant::now() + SETTLE)?;
    progress.phase("reading back every write");
    runner.finish(begin, healed)
}

fn start_writers<'a>(lab: &'a Lab, schedule: &Schedule) -> anyhow::Result<BTreeMap<u32, Writer<'a>>> {
    let seconds = (schedule.total_ms / 1000 + 3600).to_string();
    let mut writers = BTreeMap::new();
    for host in 1..=PAIRS {
        let log = lab.root_inside().join(log_file(host));
        let log = log.to_string_lossy();
        // Paced: three writers, three servers and seven agents share the machine, and gaps are to be theirs.
        let mut extra =
            vec!["--outstanding", "4", "--reads", "1", "--interval-us", "2000", "--expect-damage"];
        extra.extend(["--max-bytes", "16777216", "--max-seconds", &seconds, "--log", &log]);
        if host == 1 {
            extra.push("--metadata");
        }
        writers.insert(host, lab.writer(host, u64::from(host), &extra)?);
    }
    Ok(writers)
}

/// In the lab's file system.
fn log_file(host: u32) -> String {
    format!("{}/writer{host}.oplog", Node::Host(host))
}

impl Runner<'_> {
    fn violation(&mut self, what: String, host: Option<u32>) {
        self.progress.say(&format!("VIOLATION: {what}"));
        self.violations.push(Violation { what, host, at: clock::now() });
    }

    fn say(&self, start: Instant, text: &str) {
        self.progress.say(&format!("{:7.1} s  {text}", start.elapsed().as_secs_f32()));
    }

    /// Errors: the lab has ended.
    fn wait_until(&mut self, deadline: Instant) -> anyhow::Result<()> {
        loop {
            self.look()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    fn inject(&mut self, nth: usize, start: Instant, for_ms: u64) {
        let (fault, target) = (self.struck[nth].fault.clone(), self.struck[nth].target.clone());
        match self.lab.fault(&fault, Some(&target)) {
            Ok(injected) => {
                self.struck[nth].at = Some(injected.at);
                self.say(start, &format!("{fault} at {target} for {:.1} s", for_ms as f64 / 1e3));
            }
            Err(error) => {
                let why = format!("{error:#}");
                self.say(start, &format!("{fault} at {target}: not possible now: {why}"));
                // What it would strike is gone: by another fault, or by a policy that kills.
                if !why.contains("does not run") {
                    self.violation(format!("{fault} at {target} could not be done: {why}"), None);
                }
                self.struck[nth].skipped = Some(why);
            }
        }
    }

    fn heal(&mut self, nth: usize, start: Instant) {
        if self.struck[nth].at.is_none() {
            return;
        }
        // What ended and is started again by this could not be judged afterwards.
        if let Err(error) = self.look() {
            self.violation(format!("{error:#}"), None);
        }
        let (name, target) = (self.struck[nth].fault.clone(), self.struck[nth].target.clone());
        let request = Request::Heal { name: Some(name.clone()), target: Some(target.clone()) };
        match self.lab.ask::<Vec<String>>(&request) {
            Ok(done) => self.say(start, &format!("healed: {}", done.join(", "))),
            // It stands on; healing everything at the end is the last try.
            Err(error) => self.notes.push(format!("{name} at {target} was not healed in time: {error:#}")),
        }
        self.struck[nth].healed = Some(clock::now());
    }

    /// Judges what has ended since, and starts it again as a service manager would, unless a fault keeps it down.
    fn look(&mut self) -> anyhow::Result<()> {
        let status = self.lab.status().context("the lab has ended")?;
        for process in &status.processes {
            let Some(exit) = &process.exit else { continue };
            if self.judged.insert((process.name.clone(), exit.at.0)) {
                self.judge(process, exit.at);
            }
            let node = process.name.split('/').next().unwrap_or_default();
            let kept_down = status.faults.iter().any(|f| f.target == node);
            if !kept_down && is_service(process) {
                // It may have been started by a healing in between.
                if let Err(error) = self.lab.start_process(&process.name) {
                    self.notes.push(format!("{} was not started again: {error:#}", process.name));
                }
            }
        }
        Ok(())
    }

    fn judge(&mut self, process: &ProcessStatus, at: BootNs) {
        let (name, exit) = (&process.name, &process.exit);
        let Some(exit) = exit else { return };
        let (node, what) = name.split_once('/').unwrap_or((name, ""));
        let killed = exit.signal == Some(libc::SIGKILL);
        let struck = self.struck.iter().any(|s| s.target == node && s.stands(at));
        let how = match (exit.code, exit.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        match what {
            "agent" if killed && struck => {}
            "agent" => self.violation(format!("{name} died of itself ({how})"), host_of(node)),
            "server" if killed => {}
            // A burden of ours, healed.
            what if Fault::find(what).is_ok_and(|f| matches!(f.action, Action::Load(_))) => {}
            "server" => self.notes.push(format!("{name} ended by itself ({how})")),
            _ => self.violation(format!("{name} ended ({how})"), host_of(node)),
        }
    }

    /// Heals what stands, until nothing stands and everything runs. Returns when that was.
    fn mend(&mut self) -> BootNs {
        let lab = self.lab;
        let mended = wait_for("everything healed", MEND, || {
            lab.heal()?;
            let status = lab.status()?;
            let down: Vec<&str> = status
                .processes
                .iter()
                .filter(|p| is_service(p) && !p.runs())
                .map(|p| p.name.as_str())
                .collect();
            match (standing(&status), down) {
                (faults, down) if faults.is_empty() && down.is_empty() => Ok(()),
                (faults, down) => bail!("broken: {faults:?}; down: {down:?}"),
            }
        });
        if let Err(error) = mended {
            self.violation(format!("a fault is left after healing: {error:#}"), None);
        }
        if let Err(error) = self.look() {
            self.violation(format!("{error:#}"), None);
        }
        let now = clock::now();
        for s in self.struck.iter_mut().filter(|s| s.at.is_some() && s.healed.is_none()) {
            s.healed = Some(now);
        }
        now
    }

    fn all_go_on(&mut self, from: BootNs, within: Duration) {
        let deadline = Instant::now() + within;
        let mut late = Vec::new();
        for (host, writer) in &self.writers {
            let left = deadline.saturating_duration_since(Instant::now());
            let gone_on = wait_for("writes", left, || match writer.gap(from, None)?.completed {
                WRITES.. => Ok(()),
                few => bail!("{few} of {WRITES} completed"),
            });
            if let Err(error) = gone_on {
                late.push((
                    *host,
                    format!("host{host} does not go on after everything was healed: {error:#}"),
                ));
            }
        }
        for (host, what) in late {
            self.violation(what, Some(host));
        }
        // Or else it died meanwhile and was never looked at.
        if let Err(error) = self.look() {
            self.violation(format!("{error:#}"), None);
        }
    }

    fn finish(mut self, begin: BootNs, healed: BootNs) -> anyhow::Result<Ran> {
        let (mut reports, mut writes) = (BTreeMap::new(), BTreeMap::new());
        for (host, writer) in std::mem::take(&mut self.writers) {
            match stop(self.lab, host, writer) {
                Ok((report, log)) => {
                    reports.insert(host, report);
                    writes.insert(host, log);
                }
                Err(error) => self.violation(format!("the writer of host{host}: {error:#}"), Some(host)),
            }
        }
        self.panics()?;
        self.applied_late()?;
        let journal = self.lab.journal()?;
        let (lab_end, struck) = (clock::now(), self.struck);
        let (violations, notes) = (self.violations, self.notes);
        Ok(Ran { begin, healed, end: lab_end, struck, journal, writes, reports, violations, notes })
    }

    /// The controllable servers log what they apply: damage that was written over since is seen there.
    fn applied_late(&mut self) -> anyhow::Result<()> {
        if self.lab.options().server != ServerKind::Controllable {
            return Ok(());
        }
        let applied = self.lab.applied()?;
        let count = |what: &str| applied[what].as_u64().with_context(|| format!("no {what} in {applied}"));
        let (epoch, sequence) = (count("late_epoch")?, count("late_sequence")?);
        if epoch + sequence > 0 {
            let what = format!(
                "the store applied {epoch} writes of an earlier epoch and {sequence} older ones over newer ones"
            );
            self.violation(what, None);
        }
        Ok(())
    }

    /// A panic need not end a process: the logs tell.
    fn panics(&mut self) -> anyhow::Result<()> {
        for node in Node::all() {
            let log = self.lab.node_log(&format!("{node}/agent"))?;
            if let Some(line) = log.lines().find(|l| l.contains("panicked at")) {
                self.violation(format!("{node}/agent: {}", line.trim()), host_of(&node.to_string()));
            }
        }
        Ok(())
    }
}

fn stop(lab: &Lab, host: u32, writer: Writer<'_>) -> anyhow::Result<(Report, Writes)> {
    let report = writer.stop()?;
    let log = Writes::parse(&std::fs::read(lab.root().join(log_file(host)))?)?;
    if log.completed() != report.completed {
        bail!("{} writes in its log, {} in its report", log.completed(), report.completed);
    }
    Ok((report, log))
}

fn is_service(process: &ProcessStatus) -> bool {
    process.name.ends_with("/agent") || process.name.ends_with("/server")
}

fn standing(status: &Status) -> Vec<String> {
    status.faults.iter().map(|f| format!("{} at {}", f.name, f.target)).collect()
}

fn host_of(node: &str) -> Option<u32> {
    node.strip_prefix("host")?.parse().ok()
}
