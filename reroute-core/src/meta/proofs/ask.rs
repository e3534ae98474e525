//! Where the plug-ins meet the logins: who is asked, and what comes of what is heard.

use super::{Case, Heard, Want, applying, judge, wants};
use crate::ids::*;
use crate::meta::login::push;
use crate::meta::{Effect, SessionMaster, with_drift};
use crate::proto::*;
use crate::timeline::Event;

/// A host's report counts for this long.
const REPORT_NS: u64 = 3 * SEC;

impl SessionMaster {
    fn case<'a>(&'a self, host: HostId, fencing: &'a Fencing, now: BootNs) -> Option<Case<'a>> {
        let login = self.hosts.get(&host)?;
        let record = login.record()?;
        let planned = match record.login.state {
            LoginState::Moving { planned, .. } => planned,
            // Whom an operator has evicted is shut out, whatever runs.
            LoginState::Evicted { .. } => false,
            LoginState::At { .. } => return None,
        };
        let scvm = fencing.scvm;
        let left = record.from.map(|f| f.scvm).filter(|from| record.moving_to() != Some(*from));
        let lives = |scvm| self.sessions.get(&scvm).is_some_and(|s| s.is_live());
        let goes_back = planned && left.is_some_and(lives);
        let session = self.sessions.get(&fencing.scvm);
        // All as it was when a confirmation was asked that has come true since: another leader that began before then
        // would be known, and one that began later finds these leases over.
        let then = self.lease.confirmed().filter(|_| self.leads(now));
        let has_agent = login.has_agent;
        let affirmed = match (record.from, login.released) {
            _ if !has_agent => false,
            // Never told At before this: never affirmed anybody.
            (None, _) => false,
            (Some(from), Some((epoch, heard))) => {
                let over = |then: BootNs| then.since(heard) > with_drift(self.settings.affirm_ns);
                epoch < from.epoch || !then.is_some_and(over)
            }
            (Some(_), None) => true,
        };
        Some(Case {
            host,
            fencing,
            planned,
            goes_back,
            scvm,
            policy: self.policy(scvm),
            beside: self
                .settings
                .hosts
                .iter()
                .filter(|h| h.has_agent && h.local_scvm == scvm)
                .map(|h| h.id)
                .collect(),
            session: session.map_or(SessionState::Absent, |s| s.state),
            boot: session.and_then(|s| s.boot),
            session_expired: then
                .is_some_and(|then| self.session_expired(scvm, self.lease_of(has_agent), then)),
            affirmed,
            // A client without an agent calls at the target before that is admitted, and is served from then on.
            // Nor does it take a route to call at the SCVM beside the host: the private network leads there without one.
            target_only: has_agent
                && !self.settings.hosts.iter().any(|h| h.id == host && h.local_scvm == fencing.scvm)
                && record.from.is_some_and(|from| fencing.scvm != from.scvm && fencing.epoch > from.epoch),
            serves_others: self.serves_others(scvm, host, now),
            waits_ns: now.since(login.since),
            command: self.command,
        })
    }

    /// Whether a host other than `host` is logged in there and, by its own fresh report, served.
    fn serves_others(&self, scvm: ScvmId, host: HostId, now: BootNs) -> bool {
        self.hosts.iter().filter(|(id, _)| **id != host).any(|(_, login)| {
            let at = login
                .record()
                .is_some_and(|r| matches!(r.login.state, LoginState::At { scvm: at, .. } if at == scvm));
            at && login.report.as_ref().is_some_and(|(report, heard)| {
                let healthy = |p: &PathHealth| p.path.scvm == scvm && p.state == Health::Healthy;
                now.since(*heard) <= REPORT_NS && report.paths.iter().any(healthy)
            })
        })
    }

    fn unproven(&self, id: HostId) -> Vec<Fencing> {
        let Some(host) = self.hosts.get(&id) else { return Vec::new() };
        let required = host.record().into_iter().flat_map(|r| r.required());
        required.filter(|f| !host.is_proven(f)).cloned().collect()
    }

    /// Asks whoever can prove what this login still waits for; only `only`, if given.
    pub(in crate::meta) fn ask_for_proofs(
        &mut self,
        id: HostId,
        only: Option<NodeId>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        if self.hosts.get(&id).is_none_or(|h| h.uncertain) {
            return;
        }
        for fencing in self.unproven(id) {
            let Some(case) = self.case(id, &fencing, now) else { continue };
            for want in wants(&case) {
                match want {
                    Want::Order(node, order) if only.is_none_or(|only| only == node) => {
                        let revoke = matches!(order, Order::Revoke { .. });
                        if revoke
                            && let Some(host) = self.hosts.get_mut(&id)
                            && host.facts.revoked.insert(fencing.scvm)
                        {
                            let Fencing { scvm, epoch, .. } = fencing;
                            out.push(Effect::Journal(Event::RevokeSent { host: id, scvm, epoch }));
                        }
                        push(node, order, out);
                    }
                    Want::Command if only.is_none() => {
                        let waiting = self.waiting_for_command(fencing.scvm, now);
                        self.run_command(fencing.scvm, waiting, now, out);
                    }
                    Want::Order(..) | Want::Command => {}
                }
            }
        }
    }

    /// All logins that a run of the fence command for this server would be for.
    fn waiting_for_command(&self, scvm: ScvmId, now: BootNs) -> Vec<(HostId, Epoch)> {
        let mut all = Vec::new();
        for id in self.hosts.keys().copied().filter(|id| self.hosts.get(id).is_some_and(|h| !h.uncertain)) {
            for fencing in self.unproven(id).into_iter().filter(|f| f.scvm == scvm) {
                let wanted = self
                    .case(id, &fencing, now)
                    .is_some_and(|case| wants(&case).iter().any(|want| matches!(want, Want::Command)));
                if wanted {
                    all.push((id, fencing.epoch));
                }
            }
        }
        all
    }

    /// Something was heard that may prove that `scvm` is shut for this host at `epoch`.
    pub(in crate::meta) fn heard(
        &mut self,
        id: HostId,
        scvm: ScvmId,
        epoch: Epoch,
        heard: Heard,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let host = self.hosts.get(&id).ok_or(Refusal::UnknownNode { node: NodeId::Host(id) })?;
        let Some(entry) = host.awaited(scvm, epoch)? else { return Ok(()) };
        let Some(case) = self.case(id, &entry, now) else { return Ok(()) };
        match judge(&case, heard)? {
            Some(proof) => self.prove(id, scvm, epoch, proof, now, out),
            None => Ok(()),
        }
    }

    /// Time has passed: what does that prove?
    pub(in crate::meta) fn expire(&mut self, id: HostId, now: BootNs, out: &mut Vec<Effect>) {
        for fencing in self.unproven(id) {
            let _ = self.heard(id, fencing.scvm, fencing.epoch, Heard::Time, now, out);
        }
    }

    /// What a move waits for, for people: the server, the epoch, since when, and what could prove it.
    pub fn waits_for(&self, id: HostId, now: BootNs) -> Vec<Waiting> {
        let all = self.unproven(id);
        let each = all.iter().filter_map(|fencing| {
            let case = self.case(id, fencing, now)?;
            let mut proofs: Vec<String> = applying(&case).into_iter().map(String::from).collect();
            proofs.extend(self.command_says(fencing.scvm, (id, fencing.epoch)).map(String::from));
            Some(Waiting {
                scvm: fencing.scvm,
                epoch: fencing.epoch,
                planned: case.planned,
                goes_back: case.goes_back,
                session: case.session,
                serves_others: case.serves_others,
                waits_ns: case.waits_ns,
                proofs,
            })
        });
        each.collect()
    }
}

/// A server that a move waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Waiting {
    pub scvm: ScvmId,
    pub epoch: Epoch,
    pub planned: bool,
    /// Planned, and Meta ends it by going back if it comes to nothing.
    #[serde(default)]
    pub goes_back: bool,
    pub session: SessionState,
    pub serves_others: bool,
    pub waits_ns: u64,
    /// What could prove that it is shut, in words.
    pub proofs: Vec<String>,
}
