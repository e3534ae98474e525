//! The access server: its process, its kernel's facts, and whether it still answers.

use super::RETRY_NS;
use super::io::{Effect, Outcome, ServerFacts, Signal, SignalKind};
use crate::ids::*;
use crate::timeline::Event;
use std::collections::{BTreeMap, BTreeSet};

/// While suspected, the server is asked this often.
const PROBE_EVERY_NS: u64 = 100 * MS;
/// Nobody suspects the server, but somebody waits: it is asked no more often than this.
const EARLY_EVERY_NS: u64 = 20 * MS;
/// For so long, probes that fail for want of a CPU say nothing.
const STARVED_NS: u64 = 5 * SEC;
/// Facts older than this decide nothing that cannot be taken back.
const FRESH_NS: u64 = 10 * MS;

/// A NULL call whose time is over. One that was not answered is still waited for: an answer that comes after all, or
/// the end of its connection, is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probed {
    /// Not later than the moment it left.
    pub sent_at: BootNs,
    pub answered: bool,
    /// How long the answer took, or was waited for when the time was over.
    pub took_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    silent_ns: u64,
    facts: ServerFacts,
    facts_at: BootNs,
    /// Processes held by pidfd. More than one only while a restart overlaps.
    living: BTreeMap<Incarnation, u32>,
    /// Processes known to have terminated, by this agent's own eyes.
    dead: BTreeSet<Incarnation>,
    seen_at: BootNs,
    /// Why no process is known.
    pub problem: Option<String>,
    /// Told to the kernel, answer outstanding; or failed, and to be told again then.
    registering: Option<(Incarnation, Option<BootNs>)>,
    /// A stall was signalled since the last facts.
    signalled: bool,
    /// When the probe under way was sent.
    probing: Option<BootNs>,
    probed: Option<Probed>,
    /// Probes say nothing since then.
    starved_since: Option<BootNs>,
    /// Somebody wants to know now, suspicion or not.
    probe_wanted: bool,
    next_probe: BootNs,
    next_early: BootNs,
    last_answer: Option<bool>,
    null_failed: bool,
    /// NULL_FAILED as the kernel has it; `None`: not known.
    null_in_kernel: Option<bool>,
    null_setting: Option<(bool, Option<BootNs>)>,
    pub no_carrier: BTreeSet<Network>,
}

impl Server {
    pub fn new(silent_ns: u64, now: BootNs) -> Server {
        Server {
            silent_ns,
            facts: ServerFacts::default(),
            facts_at: BootNs(0),
            living: BTreeMap::new(),
            dead: BTreeSet::new(),
            seen_at: now,
            problem: None,
            registering: None,
            signalled: false,
            probing: None,
            probed: None,
            starved_since: None,
            probe_wanted: false,
            next_probe: now,
            next_early: now,
            last_answer: None,
            null_failed: false,
            null_in_kernel: None,
            null_setting: None,
            no_carrier: BTreeSet::new(),
        }
    }

    pub fn facts(&self) -> &ServerFacts {
        &self.facts
    }
    pub fn learn(&mut self, facts: ServerFacts, now: BootNs) {
        self.facts = facts;
        self.facts_at = now;
        self.signalled = false;
    }
    pub fn is_alive(&self) -> bool {
        !self.living.is_empty()
    }
    pub fn living(&self) -> &BTreeMap<Incarnation, u32> {
        &self.living
    }
    pub fn incarnation(&self) -> Incarnation {
        self.living.keys().next_back().copied().unwrap_or(self.facts.incarnation)
    }
    pub fn stalled(&self) -> bool {
        self.signalled || self.facts.silent || self.facts.stalled_flows > 0
    }
    pub fn null_failed(&self) -> bool {
        self.null_failed
    }

    /// The last probe that is over.
    pub fn probed(&self) -> Option<Probed> {
        self.probed
    }

    /// Replies still leave, or left until just now: it is busy, not dead. Not knowing counts as busy.
    pub fn replies_leave(&self, now: BootNs) -> bool {
        let sign_of_life = self.facts.last_reply_at.max(self.seen_at);
        now.since(self.facts_at) > FRESH_NS || now.since(sign_of_life) <= self.silent_ns
    }

    /// A reply left so lately that asking would tell nothing new.
    pub fn answered_lately(&self, now: BootNs) -> bool {
        now.since(self.facts_at) <= FRESH_NS && now.since(self.facts.last_reply_at) <= self.silent_ns
    }

    /// Have the server asked at once; the answer comes as [`Server::null_rpc`].
    pub fn want_probe(&mut self) {
        self.probe_wanted = true;
    }

    /// Somebody waits, and nobody got a reply for a moment: no suspicion yet, but when it becomes one, the answer to a
    /// question of now is known.
    pub fn quiet(&mut self, now: BootNs) {
        if self.next_early <= now && !self.is_suspected() {
            self.next_early = now.plus(EARLY_EVERY_NS);
            self.probe_wanted = true;
        }
    }

    fn is_suspected(&self) -> bool {
        self.stalled() || self.null_failed
    }

    /// When a NULL call whose time is over speaks against the server: it still waits, and then no reply has left for long
    /// enough. None: it does not.
    fn in_vain_from(&self) -> Option<BootNs> {
        let waits = |p: &Probed| !p.answered && p.sent_at > self.facts.last_reply_at;
        let probed = self.probed.filter(waits)?;
        let from = self.facts.last_reply_at.max(self.seen_at).plus(self.silent_ns + 1);
        (from < probed.sent_at.plus(PROBE_EVERY_NS)).then_some(from)
    }

    /// The process that had the calls is dead and reaped, and no other one has taken its port.
    pub fn is_proven_dead(&self) -> bool {
        self.living.is_empty() && self.dead.contains(&self.facts.incarnation) && !self.facts.listening
    }

    pub fn seen(&mut self, pid: u32, incarnation: Incarnation, now: BootNs, out: &mut Vec<Effect>) {
        if self.living.insert(incarnation, pid).is_none() {
            self.seen_at = now;
            out.push(Effect::Journal { at: now, event: Event::ServerProcess { pid, alive: true } });
        }
    }

    pub fn exited(&mut self, pid: u32, incarnation: Incarnation, now: BootNs, out: &mut Vec<Effect>) {
        self.living.remove(&incarnation);
        if self.dead.insert(incarnation) {
            out.push(Effect::Journal { at: now, event: Event::ServerProcess { pid, alive: false } });
        }
        // Incarnations do not repeat: a few are enough to know the one that the kernel knows.
        while self.dead.len() > 16 {
            self.dead.pop_first();
        }
    }

    pub fn carrier(&mut self, network: Network, up: bool) -> bool {
        if up { self.no_carrier.remove(&network) } else { self.no_carrier.insert(network) }
    }

    pub fn signal(&mut self, signal: &Signal) {
        match signal.kind {
            SignalKind::Unanswered | SignalKind::Silent => self.signalled = true,
            SignalKind::ListenerGone => self.facts.listening = false,
            SignalKind::ListenerBack => self.facts.listening = true,
            _ => {}
        }
    }

    /// False: it says nothing, and is asked again.
    pub fn null_rpc(
        &mut self,
        answered: bool,
        took_ns: u64,
        starved: bool,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> bool {
        let excused = self.starved_since.is_none_or(|since| now.since(since) < STARVED_NS);
        if !answered && starved && excused {
            if self.starved_since.is_none() {
                let what =
                    "the server has not answered NULL, but waits for a CPU: load is not a hang, asked again";
                out.push(Effect::Journal { at: now, event: Event::Fault { what: what.into() } });
            }
            self.starved_since.get_or_insert(now);
            self.probing = None;
            self.next_probe = now;
            return false;
        }
        self.starved_since = None;
        match self.probing.take() {
            Some(sent_at) => self.probed = Some(Probed { sent_at, answered, took_ns }),
            // The connection of a call that was waited for has ended: it says nothing any more.
            None if !answered => {
                self.probed = None;
                self.next_probe = now;
                return false;
            }
            // Late, but an answer.
            None => {
                if let Some(probed) = &mut self.probed {
                    *probed = Probed { answered, took_ns, ..*probed };
                }
            }
        }
        self.probe_wanted = false;
        // A reply that has left since spoils what the call says: another one, at once.
        let spoilt = !answered && self.probed.is_some_and(|p| p.sent_at <= self.facts.last_reply_at);
        self.next_probe = if spoilt { now } else { now.plus(PROBE_EVERY_NS) };
        // That it answers is no news where nobody had a doubt.
        let is_news = !answered || self.last_answer.is_some() || self.is_suspected();
        if is_news && self.last_answer != Some(answered) {
            self.last_answer = Some(answered);
            out.push(Effect::Journal { at: now, event: Event::NullRpc { answered, took_ns } });
        }
        self.null_failed = !answered && !self.replies_leave(now);
        true
    }

    /// What follows from the facts: probes, the bit in the pulses, the kernel's idea of the server process.
    /// `wanted_from`: a revoke wants to know whether the server answers, by a probe sent then or later.
    pub fn tick(&mut self, wanted_from: Option<BootNs>, now: BootNs, out: &mut Vec<Effect>) {
        if self.null_failed && now.since(self.facts_at) <= FRESH_NS && self.replies_leave(now) {
            self.null_failed = false;
        }
        if self.in_vain_from().is_some_and(|from| from <= now) && !self.replies_leave(now) {
            self.null_failed = true;
        }
        let suspected = self.is_suspected() || wanted_from.is_some();
        let idle = self.probing.is_none();
        if !suspected && idle {
            self.last_answer = None;
        }
        let unknown = wanted_from.is_some_and(|from| self.probed.is_none_or(|p| p.sent_at < from));
        if idle && (self.probe_wanted || unknown || suspected && self.next_probe <= now) {
            self.probing = Some(now);
            out.push(Effect::ProbeNull);
        }

        let setting = self.null_setting.is_some_and(|(_, again)| again.is_none_or(|at| at > now));
        if self.null_in_kernel != Some(self.null_failed) && !setting {
            self.null_setting = Some((self.null_failed, None));
            out.push(Effect::SetAgentState { null_failed: self.null_failed });
        }

        let mut living = self.living.keys().copied();
        let registering = self.registering.is_some_and(|(_, again)| again.is_none_or(|at| at > now));
        // With two alive, the older one may still execute calls: the kernel must not forget them.
        if let (Some(incarnation), None) = (living.next(), living.next())
            && incarnation != self.facts.incarnation
            && !registering
        {
            self.registering = Some((incarnation, None));
            out.push(Effect::ServerStarted { incarnation });
        }
    }

    pub fn agent_state_set(&mut self, result: Outcome<()>, now: BootNs, out: &mut Vec<Effect>) {
        let Some((value, _)) = self.null_setting.take() else { return };
        match result {
            Ok(()) => self.null_in_kernel = Some(value),
            Err(why) => {
                self.null_setting = Some((value, Some(now.plus(RETRY_NS))));
                let what = format!("NULL_FAILED={value} was not put into the pulses: {why}");
                out.push(Effect::Journal { at: now, event: Event::Fault { what } });
            }
        }
    }

    pub fn registered(
        &mut self,
        incarnation: Incarnation,
        result: Outcome<()>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        match result {
            Ok(()) => {
                self.registering = None;
                self.facts.incarnation = incarnation;
            }
            Err(why) => {
                self.registering = Some((incarnation, Some(now.plus(RETRY_NS))));
                let what = format!("the kernel was not told of the new server process: {why}");
                out.push(Effect::Journal { at: now, event: Event::Fault { what } });
            }
        }
    }

    pub fn wake_at(&self) -> Option<BootNs> {
        let probe = self.is_suspected() && self.probing.is_none();
        [
            probe.then_some(self.next_probe),
            self.in_vain_from().filter(|_| !self.null_failed),
            self.null_setting.and_then(|(_, again)| again),
            self.registering.and_then(|(_, again)| again),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
