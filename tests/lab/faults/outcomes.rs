//! What each fault leads to, from a healthy lab with a writer on every host. `e2e outcomes` walks this table.
//!
//! Where a fault lies decides more than what it is. Targets come in one order (local storage, another storage, management):
//! what spoils the storage link of an *SCVM* leaves every other one's, and the login moves; what spoils that of a *host*
//! leaves none, and the same server is reached by management. So `one-way-loss` and `scvm-mtu-mismatch` (of the SCVM's link)
//! move the login, `host-one-way-loss` and `mtu-mismatch` (of the host's) change the path.
//!
//! Times are bounds that a run on a busy machine must keep, from the fault to the new route; how fast it goes is for
//! `cargo xtask bench failover` to say.
//!
//! A lab has one kernel and two CPUs or so for all of its nodes. `cpu-hogs` and `fifo-hogs` starve hosts, SCVMs, Meta, the
//! servers and the writers alike: they show that nobody takes his own starvation for another's death, and that no lease
//! is lost for want of a CPU. They do not show that a healthy node tells a starved one from a dead one.

use super::{Action, Fault};
use crate::options::{Options, ServerKind};
use reroute_core::ids::{FencePolicy, Network};
use std::time::Duration;

#[derive(Debug)]
pub struct Outcome {
    pub fault: &'static str,
    pub then: Then,
    /// What an operator reads meanwhile. None: nothing is wrong with the cluster, or nobody there can know.
    pub cause: Option<Cause>,
    pub lab: Needs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The login of the host beside the struck SCVM goes to another SCVM's storage address.
    Moves { within: Duration },
    /// The struck host reaches the same server, at the same epoch, by this network; when all is mended, by storage again.
    ChangesPath { to: Network, within: Duration, back_within: Duration },
    /// No route and no login changes, no packet of anybody is refused, no server is killed, for as long as it stands.
    Nothing { held: Duration },
}

/// One of these words is in what `reroute-agent status` prints on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    pub on: &'static str,
    pub words: &'static [&'static str],
}

impl Cause {
    /// Which of them.
    pub fn is_said(&self, text: &str) -> Option<&'static str> {
        self.words.iter().copied().find(|word| text.contains(word))
    }
}

/// The storage path is found lost first, or all paths at once: which it is depends on a pulse.
const CUT_OFF: &[&str] = &["is lost", "AllPathsLost"];

/// The lab in which it is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// NFS-Ganesha, policy `kill`, hosts that can ask their hypervisor.
    Ganesha,
    /// The controllable server, policy `storage`, likewise.
    Storage,
    /// The controllable server, policy `kill`: that nothing is killed means something. One lab for all.
    Shared,
}

impl Needs {
    pub fn options(self, name: &str) -> Options {
        let options = Options::named(name);
        match self {
            Needs::Ganesha => options.hypervisor(),
            Needs::Storage => options.server(ServerKind::Controllable).hypervisor(),
            Needs::Shared => options.server(ServerKind::Controllable).policy(FencePolicy::Kill),
        }
    }
}

impl Outcome {
    pub fn of(fault: &str) -> Option<&'static Outcome> {
        OUTCOMES.iter().find(|o| o.fault == fault)
    }

    /// The nodes it is tried on at once: one of each role where it strikes any.
    pub fn targets(&self) -> anyhow::Result<Vec<String>> {
        let fault = Fault::find(self.fault)?;
        match fault.action {
            Action::StepClock(_) | Action::FillDisk => {
                ["host1", "scvm1", "meta"].map(|n| fault.target(Some(n))).into_iter().collect()
            }
            _ => Ok(vec![fault.target(None)?]),
        }
    }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const fn says(on: &'static str, words: &'static [&'static str]) -> Option<Cause> {
    Some(Cause { on, words })
}

const fn moves(fault: &'static str, lab: Needs, within_ms: u64, cause: Option<Cause>) -> Outcome {
    Outcome { fault, then: Then::Moves { within: ms(within_ms) }, cause, lab }
}

const fn changes_path(fault: &'static str, within_ms: u64, cause: Option<Cause>) -> Outcome {
    // Storage is stable when it was well for 3 s without a break, the first time.
    let then = Then::ChangesPath { to: Network::Management, within: ms(within_ms), back_within: ms(10_000) };
    Outcome { fault, then, cause, lab: Needs::Ganesha }
}

const fn nothing(fault: &'static str, held_ms: u64, cause: Option<Cause>) -> Outcome {
    Outcome { fault, then: Then::Nothing { held: ms(held_ms) }, cause, lab: Needs::Shared }
}

/// One line for each fault of the catalogue.
pub const OUTCOMES: &[Outcome] = &[
    moves("server-killed", Needs::Ganesha, 500, says("meta", &["the server process is dead"])),
    moves("server-hung", Needs::Ganesha, 500, says("meta", &["Silent"])),
    moves("storage-hung", Needs::Storage, 8000, says("meta", &["no call for data is answered"])),
    moves("storage-link-cut", Needs::Ganesha, 500, says("meta", &["no carrier on the storage network"])),
    moves("storage-blackhole", Needs::Ganesha, 500, says("meta", &["is lost"])),
    moves("one-way-loss", Needs::Ganesha, 500, says("meta", &["is lost"])),
    moves("storage-delay-2s", Needs::Ganesha, 500, says("meta", &["is lost"])),
    moves("scvm-mtu-mismatch", Needs::Ganesha, 2000, says("meta", &["MTU"])),
    moves("host-cut", Needs::Storage, 500, says("meta", CUT_OFF)),
    // Nobody is left to say anything: both leases have to run out.
    moves("scvm-dead", Needs::Storage, 2000, says("meta", &["scvm1: session lost"])),
    moves("scvm-dead-known", Needs::Ganesha, 1000, says("meta", &["domain dead"])),
    moves("scvm-frozen", Needs::Storage, 2000, says("meta", CUT_OFF)),
    changes_path("host-storage-cut", 500, says("host1", &["is lost"])),
    changes_path("host-one-way-loss", 500, says("host1", &["is lost"])),
    changes_path("link-flap", 500, says("host1", &["put back: no route was found", "is lost"])),
    changes_path("mtu-mismatch", 2000, says("host1", &["MTU"])),
    nothing("server-slow", 6000, says("meta", &["calls wait too long"])),
    nothing("one-client-wedged", 4000, says("meta", &["calls wait too long"])),
    nothing("lossy-5", 4000, None),
    nothing("cpu-hogs", 4000, None),
    nothing("fifo-hogs", 4000, None),
    nothing("timer-storm", 3000, None),
    nothing("packet-flood", 3000, None),
    nothing("agent-killed", 2000, says("meta", &["no keepalive"])),
    nothing("agent-stopped", 2000, says("meta", &["no keepalive"])),
    // Missed after 5 s.
    nothing("host-agent-killed", 2000, says("meta", &["host1: agent not heard"])),
    nothing("meta-killed", 2000, says("host1", &["Meta cannot be reached"])),
    nothing("meta-restarted", 2000, None),
    nothing("meta-cut", 2000, says("meta", &["no keepalive"])),
    nothing("clock-step", 2000, None),
    nothing("clock-step-back", 2000, None),
    nothing("log-disk-full", 2000, says("scvm1", &["journal entries were lost: look at the disk"])),
    nothing("duplicate-ip", 2000, says("meta", &["duplicate address"])),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_fault_has_one_outcome_in_a_lab_that_can_do_it() {
        let faults: BTreeSet<&str> = Fault::all().map(|f| f.name).collect();
        let rows: BTreeSet<&str> = OUTCOMES.iter().map(|o| o.fault).collect();
        assert_eq!(faults, rows);
        assert_eq!(rows.len(), OUTCOMES.len());
        for outcome in OUTCOMES {
            let fault = Fault::find(outcome.fault).unwrap();
            fault.check(&outcome.lab.options("x")).unwrap();
            assert!(!outcome.targets().unwrap().is_empty());
            let shared = outcome.lab == Needs::Shared;
            assert_eq!(shared, matches!(outcome.then, Then::Nothing { .. }), "{}", outcome.fault);
        }
    }
}
