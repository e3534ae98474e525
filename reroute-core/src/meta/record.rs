//! The stored record of a login.

use crate::ids::*;
use crate::proto::{Evidence, FenceProof, Fencing, Login, LoginState};
use serde::{Deserialize, Serialize};

/// What the store holds per host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub login: Login,
    /// Where the host's route leads while the login moves, and the epoch it affirmed there. None: no login yet.
    pub from: Option<Holder>,
    /// What the move was asked for with.
    pub evidence: Vec<Evidence>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    pub scvm: ScvmId,
    pub epoch: Epoch,
}

/// A record with the number the store gave it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Versioned {
    pub version: u64,
    pub record: Record,
}

/// A move as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub to: ScvmId,
    pub planned: bool,
    pub reason: String,
    pub evidence: Vec<Evidence>,
}

impl Record {
    pub fn epoch(&self) -> Epoch {
        self.login.epoch()
    }

    /// The target, if a move is under way.
    pub fn moving_to(&self) -> Option<ScvmId> {
        match self.login.state {
            LoginState::Moving { to, .. } => Some(to),
            LoginState::At { .. } | LoginState::Evicted { .. } => None,
        }
    }

    pub(super) fn fencing(&self) -> &[Fencing] {
        match &self.login.state {
            LoginState::Moving { fencing, .. } | LoginState::Evicted { fencing, .. } => fencing,
            LoginState::At { .. } => &[],
        }
    }

    /// What must be proven before the target opens. A server need not be shut for itself to open; its own entry stays
    /// on record all the same: should it never open, the next target still has to wait for it.
    pub(super) fn required(&self) -> impl Iterator<Item = &Fencing> {
        let to = self.moving_to();
        self.fencing().iter().filter(move |f| Some(f.scvm) != to)
    }

    /// The record that begins a move, after `last`. `target_maybe_admitted`: whether the target of a move that is
    /// under way may have been told to admit; if not, it need not be fenced.
    pub(super) fn moving(
        host: HostId,
        last: Option<&Record>,
        wanted: Wanted,
        target_maybe_admitted: bool,
        term: Term,
    ) -> Record {
        let Wanted { to, planned, reason, evidence } = wanted;
        let (fencing, from, epoch) = Record::left(last, target_maybe_admitted);
        let state = LoginState::Moving { fencing, to, epoch: epoch.next(), planned };
        Record { login: Login { host, state, term, reason }, from, evidence }
    }

    /// The record that ends a login by an operator's will, after `last`.
    pub(super) fn evicted(
        last: &Record,
        target_maybe_admitted: bool,
        actor: String,
        reason: String,
        term: Term,
    ) -> Record {
        let (fencing, from, epoch) = Record::left(Some(last), target_maybe_admitted);
        let state = LoginState::Evicted { fencing, epoch: epoch.next(), actor };
        let login = Login { host: last.login.host, state, term, reason };
        Record { login, from, evidence: Vec::new() }
    }

    /// Who has to be shut after `last` before anybody else opens; where the host's route leads; the epoch so far.
    fn left(last: Option<&Record>, target_maybe_admitted: bool) -> (Vec<Fencing>, Option<Holder>, Epoch) {
        match last {
            None => (Vec::new(), None, Epoch::default()),
            Some(Record { login, from, .. }) => match &login.state {
                LoginState::At { scvm, epoch, .. } => {
                    let holder = Holder { scvm: *scvm, epoch: *epoch };
                    (vec![Fencing { scvm: *scvm, epoch: *epoch, proof: None }], Some(holder), *epoch)
                }
                LoginState::Moving { fencing, to: target, epoch, .. } => {
                    let mut fencing = fencing.clone();
                    if target_maybe_admitted {
                        // A later admission outdates what was proven of an earlier one.
                        fencing.retain(|f| f.scvm != *target);
                        fencing.push(Fencing { scvm: *target, epoch: *epoch, proof: None });
                    }
                    (fencing, *from, *epoch)
                }
                LoginState::Evicted { fencing, epoch, .. } => (fencing.clone(), *from, *epoch),
            },
        }
    }

    /// The record that ends the move: the login stands at its target. None if no move is under way, or not all is proven.
    pub(super) fn arrived(&self, term: Term) -> Option<Record> {
        let LoginState::Moving { to, epoch, .. } = &self.login.state else { return None };
        let trivial = if self.from.is_none() { FenceProof::FirstLogin } else { FenceProof::SameServer };
        // The record names the proof that takes most on trust.
        let proof = self.required().map(|f| f.proof).try_fold(trivial, |most, p| Some(most.max(p?)))?;
        let state = LoginState::At { scvm: *to, epoch: *epoch, proof };
        let login = Login { host: self.login.host, state, term, reason: self.login.reason.clone() };
        Some(Record { login, from: None, evidence: self.evidence.clone() })
    }
}
