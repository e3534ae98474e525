//! One host's revoke: fence, cover the calls in progress, prove it.

use super::hung::{self, Judgement};
use super::io::{Answer, Effect, Outcome, Purpose};
use super::outbox::{Kind, Outbox};
use super::server::Server;
use super::{RETRY_NS, Settings};
use crate::ids::*;
use crate::proto::{FenceProof, ToMeta};
use crate::timeline::Event;
use purge::Purging;
use std::collections::BTreeSet;

mod purge;

/// Counts are polled this often while the drain time runs, and less often after it.
const POLL_NS: u64 = MS;
const POLL_LATE_NS: u64 = 10 * MS;
/// A fence that waits says so again after this long.
const SAY_AGAIN_NS: u64 = 500 * MS;
/// A killed process that has not terminated after this long is reported.
const REAP_NS: u64 = 100 * MS;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// A planned move, and only calls that end by themselves would prove the fence: is there one that cannot? The
    /// host stays admitted until that is known, and Meta's next order asks again.
    Looking { reading: bool },
    /// The kernel was asked, or (after a failure) is asked again then.
    Fencing { retry_at: Option<BootNs> },
    /// The word is closed; calls in progress may finish. `poll_at` is `None` while the counts are being read.
    Draining { since: BootNs, poll_at: Option<BootNs>, alive: BTreeSet<Incarnation> },
    /// SIGKILL is on its way; each pidfd tells when its process is reaped.
    Killing { since: BootNs, targets: BTreeSet<Incarnation> },
    /// Told to Meta; what is left of the host's sockets goes later.
    Proven { proof: FenceProof, purge: Option<Purging> },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revoke {
    pub host: HostId,
    pub epoch: Epoch,
    planned: bool,
    stage: Stage,
    last: Option<Answer>,
    /// That the fence stands is on record.
    journaled: bool,
    said: Option<(String, BootNs)>,
    /// Its route leads elsewhere already: what is left of its sockets need not wait.
    pub closes_at_once: bool,
}

/// What a decision rests on.
pub struct World<'a> {
    pub settings: &'a Settings,
    pub server: &'a Server,
    /// Why nothing counts as fenced here; `None` while enforcing.
    pub lenient: Option<&'static str>,
}

impl Revoke {
    pub fn start(
        host: HostId,
        epoch: Epoch,
        planned: bool,
        policy: FencePolicy,
        out: &mut Vec<Effect>,
    ) -> Revoke {
        let stage = Stage::Looking { reading: false };
        let mut revoke = Revoke {
            host,
            epoch,
            planned,
            stage,
            last: None,
            journaled: false,
            said: None,
            closes_at_once: false,
        };
        if planned && policy != FencePolicy::Storage {
            revoke.look(out)
        } else {
            revoke.fence(out)
        }
        revoke
    }

    fn look(&mut self, out: &mut Vec<Effect>) {
        self.stage = Stage::Looking { reading: true };
        out.push(Effect::ReadCounts { host: self.host, epoch: self.epoch });
    }

    fn fence(&mut self, out: &mut Vec<Effect>) {
        self.stage = Stage::Fencing { retry_at: None };
        out.push(Effect::Fence { host: self.host, epoch: self.epoch });
    }

    /// From here on the host is being shut out.
    pub fn fences(&self) -> bool {
        !matches!(self.stage, Stage::Looking { .. })
    }

    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The same order again (Meta has no answer yet), or the planned move became urgent.
    pub fn again(&mut self, planned: bool, outbox: &mut Outbox, out: &mut Vec<Effect>) {
        self.planned &= planned;
        match self.stage {
            Stage::Proven { proof, .. } => self.tell(proof, outbox, out),
            Stage::Looking { .. } if !self.planned => self.fence(out),
            Stage::Looking { reading: false } => {
                self.said = None;
                self.look(out)
            }
            // Said anew with the next decision.
            _ => self.said = None,
        }
    }

    fn tell(&self, proof: FenceProof, outbox: &mut Outbox, out: &mut Vec<Effect>) {
        let msg = ToMeta::Fenced { host: self.host, epoch: self.epoch, proof };
        outbox.send(self.host, Kind::Fence, msg, out);
    }

    /// Enforcement was suspended: whatever was proven holds no more.
    pub fn doubt(&mut self) {
        if self.fences() {
            self.stage = Stage::Fencing { retry_at: Some(BootNs(0)) };
        }
    }

    pub fn fence_answer(
        &mut self,
        epoch: Epoch,
        answer: &Outcome<Answer>,
        world: &World,
        now: BootNs,
        outbox: &mut Outbox,
        out: &mut Vec<Effect>,
    ) {
        if epoch != self.epoch || self.stage != (Stage::Fencing { retry_at: None }) {
            return;
        }
        match answer {
            Ok(answer) if answer.word.is_closed_for(epoch.0) => {
                if !self.journaled {
                    self.journaled = true;
                    let (host, in_progress, orphans) = (self.host, answer.in_progress, answer.orphans);
                    let event = Event::Fenced { host, epoch, in_progress, orphans };
                    out.push(Effect::Journal { at: now, event });
                }
                let alive = world.server.living().keys().copied().collect();
                let poll_at = Some(now.plus(POLL_NS));
                self.stage = Stage::Draining { since: now, poll_at, alive };
                self.last = Some(*answer);
                self.decide(world, now, outbox, out);
            }
            Ok(answer) => {
                let why = format!("the kernel did not close the word (it stands at {:#x})", answer.word.0);
                self.fence_again(why, now, outbox, out);
            }
            Err(why) => self.fence_again(format!("the kernel did not fence: {why}"), now, outbox, out),
        }
    }

    fn fence_again(&mut self, why: String, now: BootNs, outbox: &mut Outbox, out: &mut Vec<Effect>) {
        self.stage = Stage::Fencing { retry_at: Some(now.plus(RETRY_NS)) };
        self.wait(why, now, outbox, out);
    }

    pub fn counts(
        &mut self,
        epoch: Epoch,
        answer: &Outcome<Answer>,
        world: &World,
        now: BootNs,
        outbox: &mut Outbox,
        out: &mut Vec<Effect>,
    ) {
        if self.stage == (Stage::Looking { reading: true }) && epoch == self.epoch {
            return self.looked(answer, now, outbox, out);
        }
        let Stage::Draining { since, poll_at, .. } = &mut self.stage else { return };
        if epoch != self.epoch || poll_at.is_some() {
            return;
        }
        let late = now.since(*since) > world.settings.drain_ns;
        *poll_at = Some(now.plus(if late { POLL_LATE_NS } else { POLL_NS }));
        match answer {
            Ok(answer) => {
                self.last = Some(*answer);
                self.decide(world, now, outbox, out);
            }
            Err(why) => self.wait(format!("calls in progress cannot be counted: {why}"), now, outbox, out),
        }
    }

    fn looked(&mut self, answer: &Outcome<Answer>, now: BootNs, outbox: &mut Outbox, out: &mut Vec<Effect>) {
        let why = match answer {
            Ok(answer) if answer.orphans == 0 => return self.fence(out),
            Ok(answer) => {
                self.last = Some(*answer);
                let orphans = answer.orphans;
                format!("not fenced for a planned move: {orphans} orphan calls may never be seen to end")
            }
            Err(why) => format!("calls in progress cannot be counted: {why}"),
        };
        self.stage = Stage::Looking { reading: false };
        self.wait(why, now, outbox, out);
    }

    /// Every word here is a reason for or against letting the next server open.
    fn decide(&mut self, world: &World, now: BootNs, outbox: &mut Outbox, out: &mut Vec<Effect>) {
        let (Stage::Draining { since, alive, .. }, Some(answer)) = (&self.stage, self.last) else { return };
        if let Some(why) = world.lenient {
            return self.wait(format!("nothing is fenced here: {why}"), now, outbox, out);
        }
        let reaped = !alive.is_empty() && alive.iter().all(|i| !world.server.living().contains_key(i));
        if answer.idle() {
            return self.prove(FenceProof::Drained, now, outbox, out);
        }
        if superseded(&answer, self.epoch) {
            let why = format!(
                "admitted here at {} since: calls of both epochs cannot be told apart",
                Epoch(answer.word.epoch())
            );
            return self.wait(why, now, outbox, out);
        }
        if reaped || world.server.is_proven_dead() {
            return self.prove(FenceProof::ProcessDead, now, outbox, out);
        }
        let settings = world.settings;
        // An orphan is seldom seen to end: nothing is gained by waiting long for it, with the host shut out.
        let patient = self.planned && answer.orphans == 0;
        let time = if patient { settings.planned_drain_ns } else { settings.drain_ns };
        // Of a server that answers nothing, no call will end by itself.
        let hopeless = settings.policy == FencePolicy::Kill
            && !self.planned
            && answer.word.epoch() == self.epoch.0
            && hung::answers_nothing(settings, world.server, *since, now);
        if now.since(*since) < time && !hopeless {
            return;
        }
        let why = match settings.policy {
            FencePolicy::Storage => return self.prove(FenceProof::Storage, now, outbox, out),
            FencePolicy::Wait => "policy is wait: every call in progress must be answered",
            FencePolicy::Kill if answer.word.epoch() != self.epoch.0 => "the word stands at a later epoch",
            FencePolicy::Kill if self.planned => "the move is planned: nothing is killed for it",
            FencePolicy::Kill => match hung::judge(settings, world.server, *since, now) {
                Judgement::Kill(why) => return self.kill(why, world, now, out),
                Judgement::Spare(why) => why,
                Judgement::Open => return,
            },
        };
        self.wait(why.to_string(), now, outbox, out);
    }

    /// The server must be asked before it may be killed: by a probe sent then or later.
    pub fn probe_from(&self, world: &World) -> Option<BootNs> {
        match (&self.stage, self.last) {
            (Stage::Draining { since, .. }, Some(answer))
                if world.settings.policy == FencePolicy::Kill
                    && !self.planned
                    && world.lenient.is_none()
                    && answer.word.epoch() == self.epoch.0 =>
            {
                Some(hung::probe_from(world.settings, world.server, *since))
            }
            _ => None,
        }
    }

    /// Something is known that may decide: with counts read now.
    pub fn look_again(&mut self, now: BootNs) {
        if let Stage::Draining { poll_at: Some(at), .. } = &mut self.stage {
            *at = now.min(*at);
        }
    }

    fn kill(&mut self, why: String, world: &World, now: BootNs, out: &mut Vec<Effect>) {
        let (host, epoch) = (self.host, self.epoch);
        let targets: BTreeSet<_> = world.server.living().keys().copied().collect();
        for (&incarnation, &pid) in world.server.living() {
            let (calls, orphans) = self.last.map_or((0, 0), |a| (a.in_progress, a.orphans));
            let why = format!("{calls} calls in progress, {orphans} orphans: {why}");
            out.push(Effect::Journal { at: now, event: Event::ServerKilled { pid, host, epoch, why } });
            out.push(Effect::KillServer { incarnation });
        }
        self.stage = Stage::Killing { since: now, targets };
    }

    /// Only the signal failed: back to waiting, and to trying.
    pub fn kill_failed(
        &mut self,
        incarnation: Incarnation,
        why: &str,
        now: BootNs,
        outbox: &mut Outbox,
        out: &mut Vec<Effect>,
    ) {
        if let Stage::Killing { since, targets } = &self.stage
            && targets.contains(&incarnation)
        {
            let poll_at = Some(now.plus(RETRY_NS));
            self.stage = Stage::Draining { since: *since, poll_at, alive: targets.clone() };
            self.wait(format!("the server process was not killed: {why}"), now, outbox, out);
        }
    }

    pub fn server_exited(
        &mut self,
        incarnation: Incarnation,
        world: &World,
        now: BootNs,
        outbox: &mut Outbox,
        out: &mut Vec<Effect>,
    ) {
        match &mut self.stage {
            Stage::Killing { targets, .. } => {
                targets.remove(&incarnation);
                if targets.is_empty() {
                    self.prove(FenceProof::Killed, now, outbox, out);
                }
            }
            Stage::Draining { alive, .. } if world.lenient.is_none() => {
                let reaped =
                    !alive.is_empty() && alive.iter().all(|i| !world.server.living().contains_key(i));
                if reaped && !self.last.is_some_and(|a| superseded(&a, self.epoch)) {
                    self.prove(FenceProof::ProcessDead, now, outbox, out);
                }
            }
            _ => {}
        }
    }

    fn prove(&mut self, proof: FenceProof, now: BootNs, outbox: &mut Outbox, out: &mut Vec<Effect>) {
        // After a later login here, the sockets there are now are that one's.
        let stale = self.last.is_some_and(|a| superseded(&a, self.epoch));
        let purge = (!stale).then(|| Purging::after(now, self.closes_at_once));
        self.stage = Stage::Proven { proof, purge };
        self.tell(proof, outbox, out);
    }

    /// Says why the fence waits: when the reason changes, and now and then.
    fn wait(&mut self, why: String, now: BootNs, outbox: &mut Outbox, out: &mut Vec<Effect>) {
        if self.said.as_ref().is_some_and(|(said, at)| *said == why && now.since(*at) < SAY_AGAIN_NS) {
            return;
        }
        let (in_progress, orphans) = self.last.map_or((0, 0), |a| (a.in_progress, a.orphans));
        let (host, epoch) = (self.host, self.epoch);
        self.said = Some((why.clone(), now));
        let msg = ToMeta::FenceWaits { host, epoch, in_progress, orphans, why };
        outbox.send(host, Kind::Fence, msg, out);
    }

    pub fn tick(&mut self, world: &World, now: BootNs, outbox: &mut Outbox, out: &mut Vec<Effect>) {
        let (host, epoch) = (self.host, self.epoch);
        match &mut self.stage {
            Stage::Fencing { retry_at } if retry_at.is_some_and(|at| at <= now) => {
                if let Some(why) = world.lenient {
                    *retry_at = Some(now.plus(POLL_LATE_NS));
                    self.wait(format!("nothing is fenced here: {why}"), now, outbox, out);
                } else {
                    *retry_at = None;
                    out.push(Effect::Fence { host, epoch });
                }
            }
            Stage::Draining { poll_at, .. } if poll_at.is_some_and(|at| at <= now) => {
                *poll_at = None;
                out.push(Effect::ReadCounts { host, epoch });
            }
            Stage::Killing { since, .. } if now.since(*since) >= REAP_NS => {
                let why = "the server process was killed, but has not terminated yet (uninterruptible I/O?)";
                self.wait(why.to_string(), now, outbox, out);
            }
            Stage::Proven { purge: Some(purge), .. } if purge.at.is_some_and(|at| at <= now) => {
                purge.at = None;
                out.push(Effect::PurgeSockets { host, epoch, purpose: Purpose::Fence });
            }
            _ => {}
        }
    }

    pub fn wake_at(&self) -> Option<BootNs> {
        match &self.stage {
            Stage::Looking { .. } => None,
            Stage::Fencing { retry_at } => *retry_at,
            Stage::Draining { poll_at, .. } => *poll_at,
            Stage::Killing { since, .. } => {
                let said = self.said.as_ref().map_or(BootNs(0), |(_, at)| at.plus(SAY_AGAIN_NS));
                Some(said.max(since.plus(REAP_NS)))
            }
            Stage::Proven { purge, .. } => purge.and_then(|p| p.at),
        }
    }
}

/// The word stands at a later login of the same host here: the fence changed nothing.
fn superseded(answer: &Answer, epoch: Epoch) -> bool {
    answer.word.epoch() > epoch.0 && answer.word.is_admitted()
}
