//! One sweep over many addresses by ICMP echo (RFC 792): who answers, by full frames or by small ones only, and what
//! stands in the way. A second opinion: what is silent here may be filtered, so no verdict rests on it alone.
//!
//! Full frames with "don't fragment" go first, to everybody. Whoever has not answered when its patience is over is asked
//! again, by a full frame and a small one, up to [`Settings::tries`] times in all. Patience follows the slowest answer so
//! far; whoever does the sending reads what has come before it says that time has passed, so that its own delay is
//! nobody's silence.

mod diagnosis;
#[cfg(test)]
mod tests;

pub use diagnosis::{Diagnosis, LinkFacts, Mac, diagnose};

use crate::ids::*;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Length of an echo's ICMP payload, by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Size {
    /// Fills the link's MTU.
    Full,
    Small,
}

/// Times in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Rounds of requests per address; at least 1.
    pub tries: u8,
    /// A request counts as lost after this at the earliest, ...
    pub patience_ns: u64,
    /// ... and at the latest, however slow the others' answers are.
    pub longest_patience_ns: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { tries: 3, patience_ns: 2 * MS, longest_patience_ns: 200 * MS }
    }
}

/// Position of an address in the list that is swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(pub u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    pub target: Index,
    pub size: Size,
    /// From 0 on.
    pub round: u8,
}

/// What somebody on the way, or our own kernel, says instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Obstacle {
    /// Destination unreachable: net, host, protocol (RFC 792 codes 0 to 3), or no link address found.
    Unreachable { by: Ipv4Addr },
    /// Communication administratively prohibited (RFC 1812 codes 9, 10, 13).
    Prohibited { by: Ipv4Addr },
    /// Fragmentation needed and DF set (code 4), with the next hop's MTU (RFC 1191); 0: not told.
    FragmentationNeeded { by: Ipv4Addr, mtu: u16 },
    /// No route from here.
    NoRoute,
    /// The packet did not leave this host: errno.
    NotSent { errno: i32 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// These have just been handed to the kernel.
    Sent(Vec<Probe>),
    Reply(Probe),
    Obstacle {
        probe: Probe,
        what: Obstacle,
    },
    /// Everything that has come so far has been told.
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// In this order; each comes back as [`Input::Sent`] or [`Input::Obstacle`].
    Send(Vec<Probe>),
    /// See [`Sweep::outcomes`].
    Done,
}

/// What became of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// Full frames pass both ways; round trip, ns.
    Answers {
        rtt_ns: u64,
    },
    /// Small ones pass, full ones do not.
    SmallOnly {
        rtt_ns: u64,
        told: Option<Obstacle>,
    },
    /// Somebody said why not.
    Refused(Obstacle),
    Silent,
}

#[derive(Clone, Copy, Debug, Default)]
struct Target {
    /// Rounds that have begun.
    rounds: u8,
    /// When the last request of the present round was sent; None: it is on its way to the kernel.
    sent_at: Option<BootNs>,
    full_ns: Option<u64>,
    small_ns: Option<u64>,
    obstacle: Option<Obstacle>,
    /// First transmission times by round: an answer names its round, so that its time is not guessed (Karn).
    at: [BootNs; MAX_TRIES],
}

/// What [`Settings::tries`] may be at most.
pub const MAX_TRIES: usize = 8;

#[derive(Clone, Debug)]
pub struct Sweep {
    settings: Settings,
    targets: Vec<Target>,
    slowest_ns: u64,
    done: bool,
}

impl Sweep {
    /// The first round's requests are the first effect.
    pub fn new(count: u16, settings: Settings) -> (Sweep, Vec<Effect>) {
        let tries = settings.tries.clamp(1, MAX_TRIES as u8);
        let target = Target { rounds: 1, ..Target::default() };
        let sweep = Sweep {
            settings: Settings { tries, ..settings },
            targets: vec![target; usize::from(count)],
            slowest_ns: 0,
            done: count == 0,
        };
        let first = |i| Probe { target: Index(i), size: Size::Full, round: 0 };
        let effect = match count {
            0 => Effect::Done,
            count => Effect::Send((0..count).map(first).collect()),
        };
        (sweep, vec![effect])
    }

    pub fn handle(&mut self, input: Input, now: BootNs) -> Vec<Effect> {
        match input {
            Input::Sent(probes) => {
                for probe in probes {
                    if let Some(target) = self.target(probe) {
                        target.sent_at = Some(now);
                        if let Some(at) = target.at.get_mut(usize::from(probe.round)) {
                            *at = now;
                        }
                    }
                }
                Vec::new()
            }
            Input::Reply(probe) => {
                self.answered(probe, now);
                Vec::new()
            }
            Input::Obstacle { probe, what } => {
                if let Some(target) = self.target(probe) {
                    // What did not leave waits for the next round like what was lost.
                    target.sent_at.get_or_insert(now);
                    target.obstacle = Some(what);
                }
                Vec::new()
            }
            Input::Tick => self.tick(now),
        }
    }

    fn target(&mut self, probe: Probe) -> Option<&mut Target> {
        self.targets.get_mut(usize::from(probe.target.0)).filter(|t| probe.round < t.rounds)
    }

    fn answered(&mut self, probe: Probe, now: BootNs) {
        let Some(target) = self.target(probe) else { return };
        let sent = target.at.get(usize::from(probe.round)).copied().unwrap_or_default();
        // An answer to what we have not sent yet is none.
        if sent == BootNs(0) || target.sent_at.is_none() {
            return;
        }
        let rtt_ns = now.since(sent);
        let known = match probe.size {
            Size::Full => &mut target.full_ns,
            Size::Small => &mut target.small_ns,
        };
        known.get_or_insert(rtt_ns);
        self.slowest_ns = self.slowest_ns.max(rtt_ns);
    }

    /// How long a request is waited for, as it stands.
    pub fn patience_ns(&self) -> u64 {
        let Settings { patience_ns, longest_patience_ns, .. } = self.settings;
        self.slowest_ns.saturating_mul(2).clamp(patience_ns, longest_patience_ns.max(patience_ns))
    }

    fn tick(&mut self, now: BootNs) -> Vec<Effect> {
        if self.done {
            return Vec::new();
        }
        let (patience, tries) = (self.patience_ns(), self.settings.tries);
        let mut again = Vec::new();
        let mut open = false;
        for (i, target) in (0u16..).zip(&mut self.targets) {
            if target.full_ns.is_some() {
                continue;
            }
            let lost = target.sent_at.is_some_and(|at| now.since(at) >= patience);
            if lost && target.rounds < tries {
                let round = target.rounds;
                target.rounds += 1;
                target.sent_at = None;
                again.push(Probe { target: Index(i), size: Size::Full, round });
                if target.small_ns.is_none() {
                    again.push(Probe { target: Index(i), size: Size::Small, round });
                }
            }
            open |= !lost || target.sent_at.is_none();
        }
        self.done = !open;
        match (again.is_empty(), self.done) {
            (false, _) => vec![Effect::Send(again)],
            (true, true) => vec![Effect::Done],
            (true, false) => Vec::new(),
        }
    }

    /// When [`Input::Tick`] is of use next; None: it is over.
    pub fn wake_at(&self) -> Option<BootNs> {
        let waits = self.targets.iter().filter(|t| t.full_ns.is_none()).filter_map(|t| t.sent_at);
        let first = waits.min()?;
        (!self.done).then(|| first.plus(self.patience_ns()))
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    /// One per address, in order.
    pub fn outcomes(&self) -> Vec<Outcome> {
        let outcome = |t: &Target| match (t.full_ns, t.small_ns, t.obstacle) {
            (Some(rtt_ns), ..) => Outcome::Answers { rtt_ns },
            (None, Some(rtt_ns), told) => Outcome::SmallOnly { rtt_ns, told },
            (None, None, Some(what)) => Outcome::Refused(what),
            (None, None, None) => Outcome::Silent,
        };
        self.targets.iter().map(outcome).collect()
    }
}
