//! Invariant 1 of design §8, and what has been seen on the way.

use super::nodes::node;
use super::world::World;
use reroute_core::ids::*;
use reroute_core::proto::{FenceProof, LoginState};
use reroute_core::timeline::Event;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, Hash)]
pub struct Oracle {
    pub violation: Option<String>,
    /// The highest epoch whose call each server has answered.
    replied: BTreeMap<ScvmId, Epoch>,
    /// Proofs taken for each server's epochs.
    proofs: BTreeMap<(ScvmId, Epoch), FenceProof>,
    /// Where the login stood, in turn.
    pub stood: Vec<ScvmId>,
    /// A leader died or was stopped while a move was on record.
    lost_in_move: Option<Term>,
    /// A later one brought it to its end.
    pub survived: bool,
    evicted: bool,
    /// An evicted client has a login again.
    pub came_back: bool,
    /// A client whose server was not renewed is held back there.
    pub stands_still: Option<(ScvmId, Epoch)>,
    /// And was served there again, at the same epoch.
    pub went_on: bool,
}

impl Oracle {
    pub fn leader_lost(&mut self, term: Term, moving: bool) {
        if moving {
            self.lost_in_move = Some(term);
        }
    }

    pub fn journal(&mut self, event: &Event) {
        if let Event::FenceProven { scvm, epoch, proof, .. } = event {
            // Of two, the one that takes more on trust.
            let known = self.proofs.entry((*scvm, *epoch)).or_insert(*proof);
            *known = (*known).max(*proof);
        }
    }

    pub fn recorded(&mut self, term: Term, state: &LoginState) {
        self.evicted |= matches!(state, LoginState::Evicted { .. });
        if let LoginState::At { scvm, .. } = state {
            self.came_back |= self.evicted;
            if self.stood.last() != Some(scvm) {
                self.stood.push(*scvm);
            }
            self.survived |= self.lost_in_move.is_some_and(|lost| term > lost);
        }
    }

    fn proven(&self, scvm: ScvmId, from: Epoch, which: [FenceProof; 2]) -> bool {
        let mut proofs = self.proofs.range((scvm, from)..=(scvm, Epoch(u64::MAX)));
        proofs.any(|(_, proof)| which.contains(proof))
    }

    /// A server carries out a call that was let in at `epoch`. Too late if another one has answered at a later epoch;
    /// unless the proof that covers it says that the storage refuses it now.
    pub fn executed(&mut self, scvm: ScvmId, epoch: Epoch) {
        let later = self.replied.iter().find(|(s, e)| **s != scvm && **e > epoch);
        if let Some((other, at)) = later
            && !self.proven(scvm, epoch, [FenceProof::LeaseExpiredStorage, FenceProof::Storage])
        {
            self.violation = Some(format!(
                "{scvm} executes a call of {epoch} after the first reply of {other} at {at}; proofs {:?}",
                self.proofs
            ));
        }
    }

    pub fn replied(&mut self, scvm: ScvmId, epoch: Epoch) {
        let known = self.replied.entry(scvm).or_default();
        *known = epoch.max(*known);
        self.went_on |= self.stands_still == Some((scvm, epoch));
    }
}

impl World {
    /// After each event: no two servers admit the host. One whose clock stood still may, until the leases are over that
    /// count from before, if it was passed over by a proof that takes its clock on trust.
    pub fn check(&mut self) {
        let mut admitting = Vec::new();
        for id in self.story.scvms() {
            let s = self.scvm(id);
            if s.clock.stands() || !s.kernel.admits(self.local(node(NodeId::Scvm(id)))) {
                continue;
            }
            let epoch = Epoch(s.kernel.word().epoch());
            let stunned = s.stunned.is_some_and(|end| s.kernel.lease_end() <= end);
            let trusted = [FenceProof::LeaseExpiredStorage, FenceProof::NeverServed];
            if !(stunned && self.oracle.proven(id, epoch, trusted)) {
                admitting.push((id, epoch));
            }
        }
        if admitting.len() > 1 && self.oracle.violation.is_none() {
            let what = format!("two servers admit the host: {admitting:?}; proofs {:?}", self.oracle.proofs);
            self.oracle.edit().violation = Some(what);
        }
    }

    pub fn moving(&self) -> bool {
        self.store.login.as_ref().is_some_and(|(_, r)| r.moving_to().is_some())
    }
}
