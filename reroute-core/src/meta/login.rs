//! One host's login: what is on record, what is on its way there, what was heard since, and the orders that follow.

use super::record::Wanted;
use super::wanted::Calls;
use super::{Effect, Record, Ticket, Versioned};
use crate::ids::*;
use crate::proto::*;
use std::collections::{BTreeMap, BTreeSet};

/// One host's login: the record, what is on its way to the store, and what was heard since the record changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct HostLogin {
    pub(super) has_agent: bool,
    pub(super) stored: Option<Versioned>,
    pub(super) since: BootNs,
    pub(super) storing: Option<Storing>,
    /// After a failed store: not again before this.
    pub(super) store_again: BootNs,
    /// The store may hold a later record than we know of: nobody is admitted until that is settled.
    pub(super) uncertain: bool,
    pub(super) ask: Option<Ask>,
    pub(super) facts: Facts,
    /// The host's own word that it released up to this epoch, and when it was first heard.
    pub(super) released: Option<(Epoch, BootNs)>,
    /// The host acts on the login as it stands.
    pub(super) settled: bool,
    pub(super) report: Option<(HostReport, BootNs)>,
    pub(super) ahead_said: bool,
    /// Of a client without an agent.
    pub(super) calls: Calls,
    pub(super) resend_at: BootNs,
    /// The operator whose wish to end the login is on its way to the store.
    pub(super) evicting: Option<Ticket>,
    pub(super) ghost: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Storing {
    pub(super) record: Record,
    /// A host asked for it and is told if it fails.
    pub(super) asked: bool,
}

/// A move that was asked for; its target makes ready. Nothing is on record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ask {
    pub(super) wanted: Wanted,
    pub(super) epoch: Epoch,
    pub(super) since: BootNs,
    pub(super) prepared: bool,
}

/// Heard since the record's epoch began; a restart forgets it and asks anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    pub(super) proofs: BTreeMap<(ScvmId, Epoch), FenceProof>,
    /// The target may have been told to admit.
    pub(super) admit_sent: bool,
    pub(super) admitted: bool,
    pub(super) revoked: BTreeSet<ScvmId>,
    /// An old server waits for calls in progress: it would, whatever the target and the epoch.
    pub(super) waits: bool,
    /// The target cannot admit at this epoch. At the next it may.
    pub(super) unfit: bool,
    /// An old server can never say that it has drained.
    pub(super) undrainable: bool,
}

impl HostLogin {
    pub(super) fn new(stored: Option<Versioned>, has_agent: bool, now: BootNs) -> HostLogin {
        let settled = stored.as_ref().is_none_or(|v| v.record.moving_to().is_none());
        HostLogin {
            has_agent,
            // An earlier term may have sent anything that its record allowed.
            facts: Facts { admit_sent: stored.is_some(), ..Facts::default() },
            stored,
            since: now,
            storing: None,
            store_again: now,
            uncertain: false,
            ask: None,
            released: None,
            // Of a login that stands, the host's next report tells; a move is resumed.
            settled,
            report: None,
            ahead_said: false,
            calls: Calls::default(),
            resend_at: now,
            evicting: None,
            ghost: false,
        }
    }

    pub(super) fn record(&self) -> Option<&Record> {
        self.stored.as_ref().map(|v| &v.record)
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.record().map(Record::epoch).unwrap_or_default()
    }

    /// What the record asks to have fenced, of which `scvm` speaks at `epoch`. None: the login stands at a later
    /// epoch, and what comes late is of no use and no harm. Any other epoch than the one asked for proves nothing.
    pub(super) fn awaited(&self, scvm: ScvmId, epoch: Epoch) -> Result<Option<Fencing>, Refusal> {
        let current = self.epoch();
        let record = self.record();
        let entry = record.and_then(|r| r.fencing().iter().find(|f| f.scvm == scvm && f.epoch == epoch));
        match entry {
            Some(entry) => Ok(Some(entry.clone())),
            None if epoch < current && record.is_some_and(|r| r.moving_to().is_none()) => Ok(None),
            None => Err(Refusal::StaleEpoch { got: epoch, current }),
        }
    }

    /// The best proof so far.
    pub(super) fn proof(&self, fencing: &Fencing) -> Option<FenceProof> {
        let heard = self.facts.proofs.get(&(fencing.scvm, fencing.epoch)).copied();
        [fencing.proof, heard].into_iter().flatten().min()
    }

    pub(super) fn is_proven(&self, fencing: &Fencing) -> bool {
        fencing.proof.is_some() || self.facts.proofs.contains_key(&(fencing.scvm, fencing.epoch))
    }

    /// A move is under way, and every server that may have served before is known to be shut: its target may admit.
    /// Not so while a later record is, or may be, on its way to the store: that one says nothing of this target.
    pub(super) fn is_open(&self) -> bool {
        let overtaken = self.uncertain || self.overtaking().is_some();
        let proven = |r: &Record| r.moving_to().is_some() && r.required().all(|f| self.is_proven(f));
        !overtaken && self.record().is_some_and(proven)
    }

    /// The record of a later epoch that is on its way to the store.
    pub(super) fn overtaking(&self) -> Option<&Record> {
        self.storing.as_ref().map(|s| &s.record).filter(|r| r.epoch() > self.epoch())
    }

    /// The record with the proofs heard since.
    pub(super) fn with_proofs(&self) -> Option<Record> {
        let mut record = self.record()?.clone();
        if let LoginState::Moving { fencing, .. } | LoginState::Evicted { fencing, .. } =
            &mut record.login.state
        {
            for f in fencing {
                let heard = self.facts.proofs.get(&(f.scvm, f.epoch)).copied();
                f.proof = [f.proof, heard].into_iter().flatten().min();
            }
        }
        Some(record)
    }

    /// The host does not act on the record yet, by its own word.
    pub(super) fn must_hear(&self) -> bool {
        match self.record().map(|r| &r.login.state) {
            _ if !self.has_agent => false,
            Some(LoginState::At { .. }) => !self.settled,
            Some(LoginState::Moving { .. }) => !self.has_released(),
            Some(LoginState::Evicted { .. }) => !self.settled || !self.has_released(),
            None => false,
        }
    }

    /// It affirms its old server no more. Without an agent nobody affirms.
    pub(super) fn has_released(&self) -> bool {
        let from = self.record().and_then(|r| r.from);
        !self.has_agent || from.is_none_or(|from| self.released.is_some_and(|(epoch, _)| epoch >= from.epoch))
    }

    /// Tells the host what the record says.
    pub(super) fn tell_host(&self, id: HostId, out: &mut Vec<Effect>) {
        // What may have been overtaken is not told as the truth.
        let Some(record) = self.record().filter(|_| self.has_agent && !self.uncertain) else { return };
        let order = match &record.login.state {
            LoginState::At { scvm, epoch, .. } => Order::At { scvm: *scvm, epoch: *epoch },
            LoginState::Moving { to, epoch, .. } => Order::Moving {
                from: record.from.map(|f| f.scvm),
                from_epoch: record.from.map(|f| f.epoch).unwrap_or_default(),
                to: *to,
                epoch: *epoch,
            },
            LoginState::Evicted { epoch, actor, .. } => Order::Evicted {
                from_epoch: record.from.map(|f| f.epoch).unwrap_or_default(),
                epoch: *epoch,
                reason: format!("by {actor}: {}", record.login.reason),
            },
        };
        push(NodeId::Host(id), order, out);
    }

    /// Every order that waits for its answer but those that ask for proofs; only those to `only`, if given.
    pub(super) fn orders(&mut self, id: HostId, only: Option<NodeId>, out: &mut Vec<Effect>) {
        let wants = |node: NodeId| only.is_none_or(|o| o == node);
        if let Some(ask) = &self.ask {
            let (to, epoch) = (NodeId::Scvm(ask.wanted.to), ask.epoch);
            if wants(to) {
                push(to, Order::Prepare { host: id, epoch }, out);
            }
        }
        let Some(record) = self.record().filter(|_| !self.uncertain).cloned() else { return };
        let host = NodeId::Host(id);
        match &record.login.state {
            LoginState::At { .. } => {
                if wants(host) && (only.is_some() || self.must_hear()) {
                    self.tell_host(id, out);
                }
            }
            LoginState::Moving { .. } | LoginState::Evicted { .. } => {
                if wants(host) && (only.is_some() || self.must_hear()) {
                    self.tell_host(id, out);
                }
                if let LoginState::Moving { to, epoch, .. } = &record.login.state
                    && self.is_open()
                    && !self.facts.admitted
                    && wants(NodeId::Scvm(*to))
                {
                    self.facts.admit_sent = true;
                    let order = Order::Admit { host: id, epoch: *epoch };
                    push(NodeId::Scvm(*to), order, out);
                }
            }
        }
    }

    pub(super) fn refuse_asked(
        &self,
        id: HostId,
        asked: bool,
        record: &Record,
        why: String,
        out: &mut Vec<Effect>,
    ) {
        if asked && let Some(to) = record.moving_to() {
            refuse(id, to, Refusal::Store { why }, out);
        }
    }

    pub(super) fn store(&mut self, id: HostId, record: Record, asked: bool, out: &mut Vec<Effect>) {
        let expected = self.stored.as_ref().map(|v| v.version);
        out.push(Effect::Store { host: id, expected, record: record.clone() });
        self.storing = Some(Storing { record, asked });
    }

    /// Takes the next step to the store: a move whose target is ready, or a login that stands.
    pub(super) fn advance(&mut self, id: HostId, term: Term, now: BootNs, out: &mut Vec<Effect>) {
        if self.storing.is_some() || now < self.store_again {
            return;
        }
        if let Some(ask) = self.ask.take_if(|a| a.prepared) {
            let (to, current) = (ask.wanted.to, self.epoch());
            if ask.epoch != current.next() {
                return refuse(id, to, Refusal::StaleEpoch { got: ask.epoch, current }, out);
            }
            let last = self.with_proofs();
            let record = Record::moving(id, last.as_ref(), ask.wanted, self.facts.admit_sent, term);
            self.store(id, record, true, out);
        } else if self.facts.admitted
            && self.is_open()
            && let Some(at) = self.with_proofs().and_then(|r| r.arrived(term))
        {
            self.store(id, at, false, out);
        }
    }
}

pub(super) fn push(node: NodeId, order: Order, out: &mut Vec<Effect>) {
    out.push(Effect::Push { node, order });
}

pub(super) fn refuse(id: HostId, to: ScvmId, error: Refusal, out: &mut Vec<Effect>) {
    out.push(Effect::Push { node: NodeId::Host(id), order: Order::MoveRefused { to, error } });
}
