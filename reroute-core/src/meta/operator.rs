//! What operators ask of Meta: to drain an SCVM, and to vouch for a server that nothing else can prove to be shut.

use super::proofs::Heard;
use super::{Effect, Record, RequestId, SessionMaster, Waiting};
use crate::ids::*;
use crate::proto::*;
use crate::timeline::Event;
use serde::{Deserialize, Serialize};

/// `actor` says who asks, as it goes on record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OperatorAsk {
    /// All hosts leave by planned moves, and nobody moves there.
    Drain { scvm: ScvmId, draining: Draining },
    /// Hosts may return.
    Undrain { scvm: ScvmId, actor: String },
    /// Who is still logged in there, and why.
    Drained { scvm: ScvmId },
    /// What a vouch would be for.
    Unproven { host: HostId, scvm: ScvmId },
    /// `epoch`: as it was shown to the operator.
    Vouch { host: HostId, scvm: ScvmId, epoch: Epoch, actor: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum OperatorAnswer {
    /// `draining`: None once it is over.
    Drain {
        scvm: ScvmId,
        draining: Option<Draining>,
        still: Vec<StillThere>,
    },
    Unproven {
        host: HostId,
        waiting: Waiting,
        takes_on_trust: String,
    },
    Vouched {
        host: HostId,
        scvm: ScvmId,
        epoch: Epoch,
    },
}

/// A host that has not left yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StillThere {
    pub host: HostId,
    pub name: String,
    pub epoch: Epoch,
    pub why: String,
}

/// On its way to the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Storing {
    draining: Option<Draining>,
    actor: String,
    request: RequestId,
}

impl SessionMaster {
    pub(super) fn operator(
        &mut self,
        request: RequestId,
        ask: OperatorAsk,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        let answer = match ask {
            _ if !self.leads(now) => Err(self.not_leader(now)),
            OperatorAsk::Drain { scvm, draining } => {
                let actor = draining.actor.clone();
                self.drain(request, scvm, Some(draining), actor, now, out)
            }
            OperatorAsk::Undrain { scvm, actor } => self.drain(request, scvm, None, actor, now, out),
            OperatorAsk::Drained { scvm } => self.known(scvm).map(|()| Some(self.drained(scvm, now))),
            OperatorAsk::Unproven { host, scvm } => self.to_vouch(host, scvm, now).map(|waiting| {
                let takes_on_trust = FenceProof::Operator.does_not_cover().to_string();
                Some(OperatorAnswer::Unproven { host, waiting, takes_on_trust })
            }),
            OperatorAsk::Vouch { host, scvm, epoch, actor } => {
                self.vouch(host, scvm, epoch, actor, now, out).map(Some)
            }
        };
        // None: when the store has it.
        if let Some(answer) = answer.transpose() {
            out.push(Effect::Answer { request, answer });
        }
    }

    fn known(&self, scvm: ScvmId) -> Result<(), Refusal> {
        match self.sessions.contains_key(&scvm) {
            true => Ok(()),
            false => Err(Refusal::UnknownScvm { scvm }),
        }
    }

    fn drain(
        &mut self,
        request: RequestId,
        scvm: ScvmId,
        draining: Option<Draining>,
        actor: String,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<Option<OperatorAnswer>, Refusal> {
        self.known(scvm)?;
        if self.draining.contains_key(&scvm) {
            let why = "another request to drain it, or to end that, is being written: ask again".to_string();
            return Err(Refusal::Store { why });
        }
        match (&draining, self.drains.contains_key(&scvm)) {
            (Some(_), true) => return Ok(Some(self.drained(scvm, now))),
            (None, false) => return Err(Refusal::NotDraining { scvm }),
            (Some(_), false) => {
                let others: Vec<ScvmId> = self
                    .sessions
                    .keys()
                    .copied()
                    .filter(|other| *other != scvm && !self.drains.contains_key(other))
                    .collect();
                let somewhere = others.into_iter().any(|other| self.is_target(other, now));
                if !somewhere && !self.still_there(scvm, now).is_empty() {
                    return Err(Refusal::NowhereToGo { scvm });
                }
            }
            (None, true) => {}
        }
        out.push(Effect::StoreDraining { scvm, draining: draining.clone() });
        self.draining.insert(scvm, Storing { draining, actor, request });
        Ok(None)
    }

    pub(super) fn draining_stored(
        &mut self,
        scvm: ScvmId,
        result: Result<(), String>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        let Some(Storing { draining, actor, request }) = self.draining.remove(&scvm) else { return };
        let answer = match result {
            Ok(()) => {
                let on = draining.is_some();
                match draining {
                    Some(draining) => self.drains.insert(scvm, draining),
                    None => self.drains.remove(&scvm),
                };
                self.generation += 1;
                out.push(Effect::Journal(Event::Draining { scvm, on, actor }));
                Ok(self.drained(scvm, now))
            }
            Err(why) => Err(Refusal::Store { why }),
        };
        out.push(Effect::Answer { request, answer });
    }

    fn drained(&self, scvm: ScvmId, now: BootNs) -> OperatorAnswer {
        let draining = self.drains.get(&scvm).cloned();
        OperatorAnswer::Drain { scvm, draining, still: self.still_there(scvm, now) }
    }

    /// Every host that this SCVM may still serve, by the record.
    fn still_there(&self, scvm: ScvmId, now: BootNs) -> Vec<StillThere> {
        let mut all = Vec::new();
        for (id, host) in &self.hosts {
            let Some(record) = host.record() else { continue };
            let why = match &record.login.state {
                LoginState::At { scvm: at, .. } if *at == scvm => match &host.report {
                    _ if !host.has_agent => self.why_driven_stays(*id),
                    None => "its agent has not been heard: it cannot leave".to_string(),
                    Some((_, heard)) if now.since(*heard) > 5 * SEC => {
                        format!("its agent was last heard {} s ago", now.since(*heard) / SEC)
                    }
                    Some((report, _)) => match &report.error {
                        Some(error) => error.clone(),
                        None => "it has not asked to leave yet".to_string(),
                    },
                },
                LoginState::Moving { to, .. } if *to == scvm => "it moves there".to_string(),
                LoginState::Moving { to, .. } => {
                    let waits = self.waits_for(*id, now).into_iter().find(|w| w.scvm == scvm);
                    let Some(waiting) = waits else { continue };
                    format!("it moves to {to} and waits for {}", waiting.proofs.join(" or "))
                }
                LoginState::Evicted { .. } => {
                    let waits = self.waits_for(*id, now).into_iter().find(|w| w.scvm == scvm);
                    let Some(waiting) = waits else { continue };
                    format!("it was evicted and waits for {}", waiting.proofs.join(" or "))
                }
                LoginState::At { .. } => continue,
            };
            let name = self.settings.hosts.iter().find(|h| h.id == *id).map(|h| h.name.clone());
            all.push(StillThere { host: *id, name: name.unwrap_or_default(), epoch: record.epoch(), why });
        }
        all
    }

    /// What waits for an operator's word. Errors: nothing does, and why.
    fn to_vouch(&self, host: HostId, scvm: ScvmId, now: BootNs) -> Result<Waiting, Refusal> {
        let login = self.hosts.get(&host).ok_or(Refusal::UnknownNode { node: NodeId::Host(host) })?;
        let nothing = |why: &str| Refusal::NothingToVouch { host, scvm, why: why.to_string() };
        let stands = |r: &Record| matches!(r.login.state, LoginState::At { .. });
        // One that is in the configuration no more is known if a move waits for it.
        let waits = self.waits_for(host, now).into_iter().find(|w| w.scvm == scvm);
        if waits.is_none() {
            self.known(scvm)?;
        }
        if login.record().is_none_or(stands) {
            return Err(nothing("no move of this host is under way"));
        }
        let waiting = waits.ok_or_else(|| nothing("its move does not wait for this server (any more)"))?;
        if waiting.goes_back {
            return Err(nothing("the move is planned: it goes back by itself when it cannot come to an end"));
        }
        Ok(waiting)
    }

    fn vouch(
        &mut self,
        host: HostId,
        scvm: ScvmId,
        epoch: Epoch,
        actor: String,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<OperatorAnswer, Refusal> {
        let waiting = self.to_vouch(host, scvm, now)?;
        if waiting.epoch != epoch {
            return Err(Refusal::StaleEpoch { got: epoch, current: waiting.epoch });
        }
        out.push(Effect::Journal(Event::Vouched { host, scvm, epoch, actor }));
        self.heard(host, scvm, epoch, Heard::Operator, now, out)?;
        Ok(OperatorAnswer::Vouched { host, scvm, epoch })
    }
}
