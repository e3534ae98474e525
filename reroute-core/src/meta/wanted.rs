//! Clients without an agent: where they call is where they are to be served (design §6). Nobody asks for their moves but
//! the server they call at, so whoever alternates between servers is slowed here, by a budget.

use super::login::{Ask, push};
use super::record::Wanted;
use super::{Effect, SessionMaster};
use crate::ids::*;
use crate::proto::*;
use crate::timeline::Event;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};

/// What holds for clients without an agent. Times in ns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Agentless {
    /// Their lease at an SCVM: no affirmation of their own prolongs it.
    pub session_ns: u64,
    /// So many moves in a row, ...
    pub burst: u32,
    /// ... and then one in this time.
    pub move_every_ns: u64,
}

impl Default for Agentless {
    fn default() -> Agentless {
        Agentless { session_ns: 8 * SEC, burst: 3, move_every_ns: 30 * SEC }
    }
}

/// Moves that are remembered for the report.
const REMEMBERED: usize = 8;
/// A wish that was not repeated for this long is over.
const WANT_NS: u64 = SEC;

/// What a client without an agent was heard to want, and how often it got it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Calls {
    want: Option<Want>,
    budget: Budget,
    /// Last moves: when, from where, to where.
    moves: VecDeque<(BootNs, ScvmId, ScvmId)>,
    slowed_said: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Want {
    scvm: ScvmId,
    since: BootNs,
    heard: BootNs,
    connections: u32,
}

/// A wish as an SCVM tells of it.
pub(super) struct Told {
    pub(super) closed: Epoch,
    pub(super) connections: u32,
    pub(super) age_ns: u64,
}

/// [`Agentless::burst`] in a row, then one in each [`Agentless::move_every_ns`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    whole_at: BootNs,
}

impl Budget {
    /// How long the next one has to wait.
    pub(super) fn wait(&self, rule: &Agentless, now: BootNs) -> u64 {
        let owed = self.whole_at.since(now);
        owed.saturating_sub(u64::from(rule.burst.saturating_sub(1)).saturating_mul(rule.move_every_ns))
    }

    pub(super) fn charge(&mut self, rule: &Agentless, now: BootNs) {
        self.whole_at = self.whole_at.max(now).plus(rule.move_every_ns);
    }
}

impl Calls {
    /// How long the next move has to wait.
    fn wait(&self, rule: &Agentless, now: BootNs) -> u64 {
        self.budget.wait(rule, now)
    }

    /// A move from another server is on record.
    pub(super) fn charge(&mut self, rule: &Agentless, from: ScvmId, to: ScvmId, now: BootNs) {
        self.budget.charge(rule, now);
        self.moves.push_back((now, from, to));
        if self.moves.len() > REMEMBERED {
            self.moves.pop_front();
        }
        self.slowed_said = false;
    }

    /// Who alternates, between which, how often: said once for each move that has to wait.
    fn slowed(&mut self, rule: &Agentless, id: HostId, name: &str, now: BootNs) -> Option<String> {
        let wait = self.wait(rule, now);
        if wait == 0 || std::mem::replace(&mut self.slowed_said, true) {
            return None;
        }
        let first = self.moves.front().map_or(now, |m| m.0);
        let servers: BTreeSet<ScvmId> = self.moves.iter().flat_map(|m| [m.1, m.2]).collect();
        let servers: Vec<String> = servers.iter().map(ScvmId::to_string).collect();
        Some(format!(
            "{id} ({name}) alternates between {}: {} moves in {} s; the next not before {} s have passed: look who \
             changes its next hop",
            servers.join(" and "),
            self.moves.len(),
            now.since(first) / SEC,
            wait.div_ceil(SEC),
        ))
    }

    pub(super) fn view(&self, rule: &Agentless, now: BootNs) -> Option<WantView> {
        let want = self.want.filter(|w| now.since(w.heard) <= WANT_NS)?;
        let wait = self.wait(rule, now);
        Some(WantView {
            scvm: want.scvm,
            connections: want.connections,
            age_ns: now.since(want.since),
            slowed_ns: (wait > 0).then_some(wait),
        })
    }

    /// Whether it is another wish than the one before.
    fn hear(&mut self, scvm: ScvmId, connections: u32, now: BootNs) -> bool {
        let same = self.want.filter(|w| w.scvm == scvm && now.since(w.heard) <= WANT_NS);
        let since = same.map_or(now, |w| w.since);
        self.want = Some(Want { scvm, since, heard: now, connections });
        same.is_none()
    }
}

impl SessionMaster {
    /// The lease of this host at an SCVM.
    pub(super) fn lease_of(&self, has_agent: bool) -> u64 {
        if has_agent { self.settings.session_ns } else { self.settings.agentless.session_ns }
    }

    pub(super) fn login_wanted(
        &mut self,
        scvm: ScvmId,
        id: HostId,
        told: Told,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let name = self.settings.hosts.iter().find(|h| h.id == id).map_or("", |h| &h.name).to_string();
        let host = self.hosts.get_mut(&id).ok_or(Refusal::UnknownNode { node: NodeId::Host(id) })?;
        if host.has_agent {
            return Err(Refusal::WithAgent { host: id });
        }
        // By our clock, or somewhat later: the message took its time.
        let called = BootNs(now.0.saturating_sub(told.age_ns));
        // What an earlier term did, and when, is not known.
        let is_late = called <= host.since && host.since > self.started;
        let current = host.epoch();
        match host.record().map(|r| &r.login.state) {
            Some(LoginState::At { scvm: at, epoch, .. }) if *at == scvm && told.closed < *epoch => {
                // As the record says: an order that was lost comes again.
                push(NodeId::Scvm(scvm), Order::Admit { host: id, epoch: *epoch }, out);
                return Ok(());
            }
            Some(LoginState::Moving { to, .. }) if *to == scvm && !host.facts.unfit => {
                self.generation += u64::from(host.calls.hear(scvm, told.connections, now));
                return Ok(());
            }
            // It has moved since that call, or is about to.
            Some(_) if is_late => return Ok(()),
            _ => {}
        }
        if told.closed > current {
            if !std::mem::replace(&mut host.ahead_said, true) {
                let what = format!(
                    "{scvm} has shut {id} out at {}, but the record stands at {current}: was the store replaced by an older one?",
                    told.closed
                );
                out.push(Effect::Journal(Event::Fault { what }));
            }
            return Ok(());
        }
        self.generation += u64::from(host.calls.hear(scvm, told.connections, now));
        let begun = host.ask.as_ref().is_some_and(|ask| ask.wanted.to == scvm || called <= ask.since);
        if host.overtaking().is_some() || begun {
            return Ok(());
        }
        if host.calls.wait(&self.settings.agentless, now) > 0 {
            if let Some(what) = host.calls.slowed(&self.settings.agentless, id, &name, now) {
                out.push(Effect::Journal(Event::Fault { what }));
                self.generation += 1;
            }
            return Ok(());
        }
        self.blocked(id, now)?;
        if !self.is_target(scvm, now) {
            return Err(Refusal::TargetNotReady { scvm });
        }
        let Some(host) = self.hosts.get_mut(&id) else { return Ok(()) };
        let epoch = current.next();
        let reason = format!("it calls at {scvm}, on {} connections", told.connections);
        let wanted = Wanted { to: scvm, planned: false, reason, evidence: Vec::new() };
        host.ask = Some(Ask { wanted, epoch, since: now, prepared: false });
        host.resend_at = now.plus(self.settings.resend_ns);
        push(NodeId::Scvm(scvm), Order::Prepare { host: id, epoch }, out);
        Ok(())
    }
}
