//! How a login moves: Prepare → Moving on record → release and revoke → proofs → Admit → At on record.

use super::login::{Facts, Storing, push, refuse};
use super::proofs::{self, Heard};
use super::record::Wanted;
use super::{Effect, Record, SessionMaster, Versioned, with_drift};
use crate::block::{Denial, Done};
use crate::ids::*;
use crate::proto::*;
use crate::timeline::Event;

impl SessionMaster {
    pub(super) fn connected(&mut self, node: NodeId, now: BootNs, out: &mut Vec<Effect>) {
        if let NodeId::Scvm(scvm) = node {
            self.tell_blocks(Some(scvm), now, out);
        }
        for (id, host) in &mut self.hosts {
            host.orders(*id, Some(node), out);
        }
        for id in self.hosts.keys().copied().collect::<Vec<HostId>>() {
            self.ask_for_proofs(id, Some(node), now, out);
        }
    }

    pub(super) fn prepared(
        &mut self,
        scvm: ScvmId,
        id: HostId,
        epoch: Epoch,
        error: Option<String>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let term = self.settings.term;
        let host = self.hosts.get_mut(&id).ok_or(Refusal::UnknownNode { node: NodeId::Host(id) })?;
        let current = host.epoch();
        // What is made ready for is the epoch that comes next; no later one can have been asked for.
        if epoch < current || epoch > current.next() {
            return Err(Refusal::StaleEpoch { got: epoch, current });
        }
        let Some(ask) = host.ask.as_mut().filter(|a| a.wanted.to == scvm && a.epoch == epoch) else {
            return Ok(());
        };
        ask.prepared = error.is_none();
        if let Some(why) = error {
            host.ask = None;
            let what = format!("{scvm} cannot make ready for {id} at {epoch}: {why}");
            out.push(Effect::Journal(Event::Fault { what }));
            refuse(id, scvm, Refusal::TargetNotReady { scvm }, out);
        }
        host.advance(id, term, now, out);
        Ok(())
    }

    pub(super) fn fenced(
        &mut self,
        scvm: ScvmId,
        id: HostId,
        epoch: Epoch,
        proof: FenceProof,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if self.policy(scvm).is_none_or(|policy| !proofs::agent_may_say(policy, proof)) {
            return Err(Refusal::ProofNotAllowed { node: NodeId::Scvm(scvm), proof });
        }
        self.heard(id, scvm, epoch, Heard::Agent(proof), now, out)
    }

    /// Takes a proof in, if the record waits for one of exactly this server and epoch.
    pub(super) fn prove(
        &mut self,
        id: HostId,
        scvm: ScvmId,
        epoch: Epoch,
        proof: FenceProof,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let (term, resend) = (self.settings.term, self.settings.resend_ns);
        let host = self.hosts.get_mut(&id).ok_or(Refusal::UnknownNode { node: NodeId::Host(id) })?;
        let current = host.epoch();
        let Some(entry) = host.awaited(scvm, epoch)? else { return Ok(()) };
        // Of several the one is kept that takes least on trust; what takes nothing cannot be bettered.
        if host.proof(&entry).is_some_and(|known| known <= proof || known.does_not_cover().is_empty()) {
            return Ok(());
        }
        host.facts.proofs.insert((scvm, epoch), proof);
        let does_not_cover = proof.does_not_cover().to_string();
        out.push(Effect::Journal(Event::FenceProven { host: id, scvm, epoch, proof, does_not_cover }));
        if host.is_open()
            && let Some(to) = host.record().and_then(Record::moving_to)
        {
            host.facts.admit_sent = true;
            host.resend_at = now.plus(resend);
            push(NodeId::Scvm(to), Order::Admit { host: id, epoch: current }, out);
        }
        host.advance(id, term, now, out);
        Ok(())
    }

    pub(super) fn fence_waits(
        &mut self,
        scvm: ScvmId,
        id: HostId,
        epoch: Epoch,
        (in_progress, orphans, why): (u32, u32, String),
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        // No reply will ever come for an orphan, and in a planned move nobody is killed.
        let undrainable =
            orphans > 0 && matches!(self.policy(scvm), Some(FencePolicy::Kill | FencePolicy::Wait));
        let host = self.hosts.get_mut(&id).ok_or(Refusal::UnknownNode { node: NodeId::Host(id) })?;
        let Some(entry) = host.awaited(scvm, epoch)? else { return Ok(()) };
        // What the target still has to drain does not keep it from opening.
        if host.record().and_then(Record::moving_to) == Some(scvm) {
            return Ok(());
        }
        let proven = host.is_proven(&entry);
        host.facts.undrainable |= undrainable && !proven;
        if !proven && !host.facts.waits {
            host.facts.waits = true;
            let what = format!(
                "{scvm} is shut for {id} at {epoch}, but {in_progress} calls in progress and {orphans} orphans are not covered: {why}"
            );
            out.push(Effect::Journal(Event::Fault { what }));
        }
        self.give_up(id, now, out);
        Ok(())
    }

    pub(super) fn admitted(
        &mut self,
        scvm: ScvmId,
        id: HostId,
        epoch: Epoch,
        error: Option<String>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let term = self.settings.term;
        let host = self.hosts.get_mut(&id).ok_or(Refusal::UnknownNode { node: NodeId::Host(id) })?;
        let current = host.epoch();
        let stands = match host.record().map(|r| &r.login.state) {
            Some(LoginState::At { scvm: at, .. }) => *at == scvm,
            Some(LoginState::Moving { to, .. }) => *to == scvm,
            Some(LoginState::Evicted { .. }) | None => false,
        };
        if !stands || epoch != current {
            return Err(Refusal::StaleEpoch { got: epoch, current });
        }
        let moving = host.record().is_some_and(|r| r.moving_to().is_some());
        if let Some(why) = error {
            let what = format!("{scvm} cannot admit {id} at {epoch}: {why}");
            if moving {
                if !std::mem::replace(&mut host.facts.unfit, true) {
                    out.push(Effect::Journal(Event::Fault { what }));
                }
                // Told again with each answer, until the host asks for another target.
                refuse(id, scvm, Refusal::TargetNotReady { scvm }, out);
            }
            self.give_up(id, now, out);
        } else if moving {
            if host.is_open() {
                host.facts.admitted = true;
            } else {
                let what = format!("{scvm} says that it admitted {id} at {epoch}, which nobody ordered");
                out.push(Effect::Journal(Event::Fault { what }));
            }
            host.advance(id, term, now, out);
        }
        Ok(())
    }

    /// An epoch that was never given out was never let go of either: such a word would stand for all that come.
    pub(super) fn released(&mut self, id: HostId, epoch: Epoch, now: BootNs) -> Result<(), Refusal> {
        let Some(host) = self.hosts.get_mut(&id) else { return Ok(()) };
        let current = host.epoch();
        if epoch > current {
            return Err(Refusal::StaleEpoch { got: epoch, current });
        }
        if host.released.is_none_or(|(known, _)| known < epoch) {
            host.released = Some((epoch, now));
        }
        Ok(())
    }

    pub(super) fn store_done(&mut self, id: HostId, version: u64, now: BootNs, out: &mut Vec<Effect>) {
        let (term, resend) = (self.settings.term, self.settings.resend_ns);
        let agentless = &self.settings.agentless;
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let Some(Storing { record, .. }) = host.storing.take() else { return };
        let new_epoch = record.epoch() != host.epoch();
        let from = record.from.map(|f| f.scvm);
        host.stored = Some(Versioned { version, record: record.clone() });
        host.resend_at = now.plus(resend);
        host.uncertain = false;
        match record.login.state {
            LoginState::At { scvm, epoch, .. } => {
                host.since = now;
                host.settled = false;
                host.facts.proofs.clear();
                out.push(Effect::Journal(Event::LoginStored { host: id, scvm, epoch }));
                host.tell_host(id, out);
                self.generation += 1;
            }
            LoginState::Moving { to, epoch, planned, .. } if new_epoch => {
                host.since = now;
                if let Some(from) = from.filter(|_| !host.has_agent) {
                    host.calls.charge(agentless, from, to, now);
                }
                // Proofs name server and epoch: those that the new record asks for still hold.
                let proofs = std::mem::take(&mut host.facts.proofs);
                host.facts = Facts { proofs, ..Facts::default() };
                host.settled = false;
                let reason = record.login.reason;
                let event = Event::MoveRecorded { host: id, from, to, epoch, planned, reason };
                out.push(Effect::Journal(event));
                if host.has_released() {
                    // It learns the new epoch by this; else `orders` tells it.
                    host.tell_host(id, out);
                }
                host.orders(id, None, out);
                self.generation += 1;
            }
            LoginState::Evicted { fencing, epoch, actor } if new_epoch => {
                host.since = now;
                let proofs = std::mem::take(&mut host.facts.proofs);
                host.facts = Facts { proofs, ..Facts::default() };
                host.settled = false;
                let reason = record.login.reason;
                out.push(Effect::Journal(Event::Evicted { host: id, from, epoch, actor, reason }));
                host.orders(id, None, out);
                if let Some(ticket) = host.evicting.take() {
                    let fencing = fencing.iter().filter(|f| !host.is_proven(f)).map(|f| f.scvm).collect();
                    let answer = Ok(Done::Evicted { host: id, epoch, fencing });
                    out.push(Effect::Told { ticket, answer });
                }
                self.generation += 1;
            }
            LoginState::Moving { .. } | LoginState::Evicted { .. } => self.generation += 1,
        }
        if new_epoch {
            self.ask_for_proofs(id, None, now, out);
        }
        if let Some(host) = self.hosts.get_mut(&id) {
            host.advance(id, term, now, out);
        }
    }

    pub(super) fn store_failed(
        &mut self,
        id: HostId,
        why: String,
        found: Option<Option<Versioned>>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        let resend = self.settings.resend_ns;
        let Some(host) = self.hosts.get_mut(&id) else { return };
        // What the store was told may be there all the same.
        if let (Some(Some(found)), Some(storing)) = (&found, &host.storing)
            && found.record == storing.record
        {
            let version = found.version;
            return self.store_done(id, version, now, out);
        }
        let Some(Storing { record, asked }) = host.storing.take() else { return };
        if let Some(ticket) = host.evicting.take() {
            out.push(Effect::Told { ticket, answer: Err(Denial::Store { why: why.clone() }) });
        }
        host.store_again = now.plus(resend);
        out.push(Effect::Journal(Event::Fault { what: format!("the record of {id} was not stored: {why}") }));
        host.uncertain |= found.is_none() && record.epoch() > host.epoch();
        if let Some(found) = found {
            host.uncertain = false;
            if found == host.stored {
                return host.refuse_asked(id, asked, &record, why, out);
            }
            // Somebody else wrote: the record is the truth, and nothing heard before speaks of it.
            host.stored = found;
            host.facts = Facts { admit_sent: true, ..Facts::default() };
            host.settled = false;
            host.since = now;
            self.generation += 1;
        }
        host.refuse_asked(id, asked, &record, why, out);
    }

    pub(super) fn tick(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        self.tick_lease(now, out);
        let scvms: Vec<ScvmId> = self.sessions.keys().copied().collect();
        for scvm in scvms {
            self.judge(scvm, now);
        }
        self.tick_blocks(now, out);
        self.judge_ghosts(now, out);
        let hosts: Vec<HostId> = self.hosts.keys().copied().collect();
        for id in hosts {
            self.expire(id, now, out);
            self.give_up(id, now, out);
            let due = self.hosts.get(&id).is_some_and(|h| now >= h.resend_at);
            self.tick_host(id, now, out);
            if due {
                self.ask_for_proofs(id, None, now, out);
            }
        }
        self.drive(now, out);
    }

    fn tick_host(&mut self, id: HostId, now: BootNs, out: &mut Vec<Effect>) {
        let (term, resend, patience) =
            (self.settings.term, self.settings.resend_ns, with_drift(self.settings.session_ns));
        let Some(host) = self.hosts.get_mut(&id) else { return };
        if let Some(ask) = host.ask.take_if(|a| !a.prepared && now.since(a.since) > patience) {
            let scvm = ask.wanted.to;
            refuse(id, scvm, Refusal::TargetNotReady { scvm }, out);
        }
        host.advance(id, term, now, out);
        if now < host.resend_at {
            return;
        }
        host.resend_at = now.plus(resend);
        host.orders(id, None, out);
        // A store that may hold more than we know is asked by writing what we know. And
        // a move that takes longer than this keeps its proofs on record: who gave one may be gone after a restart.
        if host.storing.is_none()
            && now >= host.store_again
            && let Some(mut record) = host.with_proofs()
            && (host.uncertain || host.record() != Some(&record))
        {
            // A former leader's, perhaps: the store takes none of an earlier term.
            record.login.term = term;
            host.store(id, record, false, out);
        }
    }

    /// A planned move that cannot come to an end goes back to where the login was. An unplanned one never does:
    /// its host asks for another target.
    fn give_up(&mut self, id: HostId, now: BootNs, out: &mut Vec<Effect>) {
        let term = self.settings.term;
        let (drain, grace) = (self.settings.planned_drain_ns, self.settings.session_ns);
        let Some(host) = self.hosts.get(&id) else { return };
        let Some(record) = host.record() else { return };
        let LoginState::Moving { to, planned: true, .. } = record.login.state else { return };
        let Some(from) = record.from.filter(|f| f.scvm != to) else { return };
        let took = now.since(host.since);
        let over = host.facts.undrainable
            || (host.facts.waits && took >= drain)
            || (host.facts.unfit && (took >= drain || host.is_open()))
            || took >= drain.saturating_add(grace);
        if !over || host.storing.is_some() || now < host.store_again || host.facts.admitted {
            return;
        }
        self.judge(from.scvm, now);
        if !self.sessions.get(&from.scvm).is_some_and(|s| s.is_live()) {
            return;
        }
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let last = host.with_proofs();
        let wanted = Wanted {
            to: from.scvm,
            planned: true,
            reason: format!("the planned move to {to} was given up after {} ms", took / MS),
            evidence: Vec::new(),
        };
        let record = Record::moving(id, last.as_ref(), wanted, host.facts.admit_sent, term);
        host.ask = None;
        host.store(id, record, false, out);
    }
}
