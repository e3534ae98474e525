//! Who holds what: what servers say of their clients, which logins nobody stands behind, and ending one.

use super::{Effect, Record, SessionMaster, Ticket};
use crate::block::*;
use crate::ids::*;
use crate::proto::{Login, LoginState, Refusal, SessionState};
use crate::timeline::Event;

/// What a server said longer ago is not shown as what stands.
const FRESH_NS: u64 = 5 * SEC;
/// A client of which nothing was heard for so long, and of which nothing is open or in progress, counts as dead. An NFS
/// client that is idle closes its connections after five minutes: less would name the living.
pub const GHOST_NS: u64 = 600 * SEC;

impl SessionMaster {
    pub(super) fn holders(
        &mut self,
        scvm: ScvmId,
        incarnation: Incarnation,
        term: Term,
        clients: Vec<HolderFacts>,
        now: BootNs,
    ) -> Result<(), Refusal> {
        self.judge(scvm, now);
        let ours = self.settings.term;
        let session = self.sessions.get_mut(&scvm).filter(|s| s.is_live() && s.incarnation == incarnation);
        let session = session.filter(|_| term == ours).ok_or(Refusal::NoSession)?;
        for facts in clients.into_iter().filter(|f| self.hosts.contains_key(&f.host)) {
            session.holders.insert(facts.host, (now, facts));
        }
        session.holders.retain(|_, (heard, _)| now.since(*heard) < FRESH_NS);
        Ok(())
    }

    fn facts_at(&self, scvm: ScvmId, host: HostId, now: BootNs) -> Option<HolderView> {
        let (heard, facts) = self.sessions.get(&scvm)?.holders.get(&host)?;
        let heard_age_ns = now.since(*heard);
        (heard_age_ns < FRESH_NS).then(|| HolderView { heard_age_ns, facts: facts.clone() })
    }

    /// What the server that holds a login sees of the client.
    pub(super) fn holder(&self, login: &Login, now: BootNs) -> Option<HolderView> {
        match &login.state {
            LoginState::At { scvm, .. } => self.facts_at(*scvm, login.host, now),
            LoginState::Moving { fencing, .. } | LoginState::Evicted { fencing, .. } => {
                fencing.iter().find_map(|f| self.facts_at(f.scvm, login.host, now))
            }
        }
    }

    /// Where a client has connections, and how many.
    pub(super) fn serving(&self, host: HostId, now: BootNs) -> Option<(ScvmId, u32)> {
        let open = self.sessions.keys().filter_map(|scvm| {
            let facts = self.facts_at(*scvm, host, now)?.facts;
            (facts.connections > 0).then_some((*scvm, facts.connections))
        });
        open.max_by_key(|(_, connections)| *connections)
    }

    /// Nothing has been heard of the client for [`GHOST_NS`], by anybody, and nothing of it is open or in progress.
    fn is_ghost(&self, host: HostId, now: BootNs) -> bool {
        let Some(login) = self.hosts.get(&host) else { return false };
        let Some(LoginState::At { scvm, .. }) = login.record().map(|r| &r.login.state) else { return false };
        let quiet = |age: Option<u64>| age.is_none_or(|age| age >= GHOST_NS);
        let reported = login.report.as_ref().map(|(_, at)| now.since(*at));
        // What was heard before this Meta started is not known to it.
        if now.since(self.started.max(login.since)) < GHOST_NS || !quiet(reported) {
            return false;
        }
        let Some(session) = self.sessions.get(scvm) else { return true };
        match (self.facts_at(*scvm, host, now), session.state) {
            (Some(HolderView { facts, .. }), _) => {
                let open = facts.connections > 0 || facts.in_progress > 0 || facts.orphans > 0;
                !open && quiet(facts.packet_age_ns) && quiet(facts.pulse_age_ns)
            }
            // A server that nobody has heard of for as long serves nobody: its lease is over.
            (None, SessionState::Lost | SessionState::Absent) => now.since(session.since) >= GHOST_NS,
            // A server that is there and does not speak of it knows nothing of it.
            (None, _) => false,
        }
    }

    pub(super) fn judge_ghosts(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        let ids: Vec<HostId> = self.hosts.keys().copied().collect();
        for id in ids {
            let ghost = self.is_ghost(id, now);
            let Some(host) = self.hosts.get_mut(&id) else { continue };
            if std::mem::replace(&mut host.ghost, ghost) == ghost {
                continue;
            }
            self.generation += 1;
            if ghost {
                let what = format!(
                    "the login of {id} is a ghost: nothing was heard of it for {} min; it is in nobody's way, and goes with the next login or `logins evict`",
                    GHOST_NS / (60 * SEC)
                );
                out.push(Effect::Journal(Event::Fault { what }));
            }
        }
    }

    /// Ends a login: a record that serves nobody, and a fence for everybody who may have served.
    pub(super) fn evict(
        &mut self,
        ticket: Ticket,
        id: HostId,
        reason: String,
        actor: String,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<(), Denial> {
        let term = self.settings.term;
        let Some(host) = self.hosts.get_mut(&id) else { return Err(Denial::NoLogin { host: id }) };
        if host.storing.is_some() || host.uncertain || now < host.store_again {
            return Err(Denial::Busy);
        }
        let last = host.with_proofs().ok_or(Denial::NoLogin { host: id })?;
        if matches!(last.login.state, LoginState::Evicted { .. }) {
            return Err(Denial::AlreadyEvicted { host: id });
        }
        // A move that was asked for and is not on record has not begun.
        if let Some(ask) = host.ask.take() {
            let to = ask.wanted.to;
            super::login::refuse(id, to, Refusal::StaleEpoch { got: ask.epoch, current: last.epoch() }, out);
        }
        let record = Record::evicted(&last, host.facts.admit_sent, actor, reason, term);
        host.evicting = Some(ticket);
        host.store(id, record, false, out);
        Ok(())
    }
}
