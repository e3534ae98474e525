//! Whether an ESXi host is to leave where it is, and where to: targets in the order of hosts with an agent, a budget, and
//! a growing wait before a return.

use super::super::{Effect, SessionMaster};
use super::Host;
use super::failed::Peers;
use crate::esxi::Wish;
use crate::host::choice::{preference, rank};
use crate::ids::*;
use crate::proto::*;
use crate::timeline::Event;

/// A failure must have stood for so long: a server that is back at once is not left.
const STANDS_NS: u64 = 50 * MS;

/// What a wish rests on: it stands no longer than that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    Failed,
    Drained,
    Better,
}

impl SessionMaster {
    /// Returns whether the wish is another one than before.
    pub(super) fn decide(
        &self,
        id: HostId,
        host: &mut Host,
        peers: &Peers,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> bool {
        let Some(place) = self.place(id, host) else { return host.wish.take().is_some() };
        let evidence = self.failure(place, peers, now);
        let failing = match evidence.is_empty() {
            true => None,
            false => Some(host.failing.unwrap_or(now)),
        };
        host.failing = failing;
        let cause = match failing {
            Some(since) if now.since(since) >= STANDS_NS => Some(Cause::Failed),
            Some(_) => None,
            None if self.drains.contains_key(&place.scvm) => Some(Cause::Drained),
            None => Some(Cause::Better),
        };
        if let Some((wish, stands_on)) = &host.wish {
            let holds = match stands_on {
                Cause::Failed => failing.is_some(),
                other => cause == Some(*other),
            };
            // One stalled call at the target is no reason to begin anew while the server that is left is dead.
            let stands = self.is_fit(wish.to, peers, now)
                || *stands_on == Cause::Failed && self.is_there(wish.to, peers, now);
            if holds && stands {
                return false;
            }
        }
        let had = host.wish.take().is_some();
        let Some(cause) = cause else { return had };
        let Some(to) = self.target(id, host, place, cause, peers, now) else { return had };
        // The last one is kept for a failure.
        let rule = &self.settings.agentless;
        let kept = if cause == Cause::Failed { 0 } else { rule.move_every_ns };
        if host.budget.wait(rule, BootNs(now.0.saturating_sub(kept))) > 0 {
            return had;
        }
        host.budget.charge(&self.settings.agentless, now);
        let reason = match cause {
            Cause::Failed => {
                host.hold.departed(now);
                let words: Vec<String> =
                    evidence.iter().map(|e| format!("{:?} by {}", e.kind, e.observer)).collect();
                format!("{place} has failed: {}", words.join(", "))
            }
            Cause::Drained => format!("{} is being drained", place.scvm),
            Cause::Better => format!("{to} is a better place, and has been well for long enough"),
        };
        host.wishes += 1;
        // Of another term another number: what a former leader wished is not this.
        let number = self.settings.term.0 << 32 | u64::from(host.wishes);
        let leave = self.to_leave(id, host, place, peers, now);
        if let Some(by) = host.by {
            let (from, reason) = (Some(place), reason.clone());
            out.push(Effect::Journal(Event::NextHopWanted { host: id, from, to, by, reason, evidence }));
        }
        host.wish = Some((Wish { number, to, leave, reason }, cause));
        true
    }

    /// Fit to take a host now, by its own word and nobody's contrary one.
    fn is_fit(&self, path: Path, peers: &Peers, now: BootNs) -> bool {
        let Some(session) = self.sessions.get(&path.scvm).filter(|s| s.is_live()) else { return false };
        let fresh = session.renewed.is_some_and(|at| now.since(at) <= 3 * self.settings.keepalive_ns);
        let health = &session.health;
        let well = health.process_alive && health.listening && !health.stalled && !health.null_failed;
        let reachable = !health.no_carrier.contains(&path.network);
        fresh
            && well
            && reachable
            && !health.bypass
            && !self.drains.contains_key(&path.scvm)
            && self.failure(path, peers, now).is_empty()
    }

    /// It lives, and nothing says that it has failed.
    fn is_there(&self, path: Path, peers: &Peers, now: BootNs) -> bool {
        let Some(session) = self.sessions.get(&path.scvm).filter(|s| s.is_live()) else { return false };
        let health = &session.health;
        session.renewed.is_some_and(|at| now.since(at) <= 3 * self.settings.keepalive_ns)
            && health.process_alive
            && health.listening
            && !health.bypass
            && !health.no_carrier.contains(&path.network)
            && !self.drains.contains_key(&path.scvm)
            && self.failure(path, peers, now).is_empty()
    }

    fn target(
        &self,
        id: HostId,
        host: &mut Host,
        place: Path,
        cause: Cause,
        peers: &Peers,
        now: BootNs,
    ) -> Option<Path> {
        let local = self.settings.hosts.iter().find(|h| h.id == id)?.local_scvm;
        let scvms: Vec<ScvmId> = self.settings.scvms.iter().map(|s| s.id).collect();
        let order = preference(id, local, &scvms);
        let paths = [Network::Storage, Network::Management]
            .into_iter()
            .flat_map(|network| order.iter().map(move |&scvm| Path { scvm, network }));
        let mut fit: Vec<Path> = paths.filter(|p| *p != place && self.is_fit(*p, peers, now)).collect();
        match cause {
            Cause::Failed => {}
            Cause::Drained => fit.retain(|p| p.scvm != place.scvm),
            Cause::Better => {
                // The private network needs no route, and leads to the local server: nothing is better.
                let settled = matches!(
                    self.hosts.get(&id)?.record()?.login.state,
                    LoginState::At { scvm, .. } if scvm == place.scvm
                );
                if place.network == Network::Private || !settled {
                    return None;
                }
                let wait = host.hold.wait_ns(now);
                let stable = |scvm: ScvmId| {
                    let session = self.sessions.get(&scvm);
                    session.is_some_and(|s| s.state == SessionState::Alive && now.since(s.since) >= wait)
                };
                fit.retain(|p| rank(*p, local) < rank(place, local) && stable(p.scvm));
            }
        }
        // Whoever is in doubt may be about to be lost: a host that was sent there waits for its TCP to try again. Then the
        // first of its rank in the host's own order.
        let doubtful = |p: &Path| self.sessions.get(&p.scvm).is_none_or(|s| s.state != SessionState::Alive);
        fit.into_iter().min_by_key(|p| (doubtful(p), rank(*p, local)))
    }

    /// Whose next hops may be replaced: the server that is left, the one of the login, and whoever cannot take a host.
    fn to_leave(&self, id: HostId, host: &Host, place: Path, peers: &Peers, now: BootNs) -> Vec<ScvmId> {
        let unfit = |scvm: ScvmId| {
            let networks = [Network::Storage, Network::Management];
            !networks.into_iter().any(|network| self.is_fit(Path { scvm, network }, peers, now))
        };
        let known = [Some(place.scvm), self.server_of(id), host.done.map(|(path, _)| path.scvm)];
        let all = self.settings.scvms.iter().map(|s| s.id);
        all.filter(|scvm| known.contains(&Some(*scvm)) || unfit(*scvm)).collect()
    }
}
