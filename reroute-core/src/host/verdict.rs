//! One server: what its kernel says of it in the pulses, and when that means that it has failed.

use super::case::{Case, Change};
use super::path::DOUBT_NS;
use crate::ids::*;
use crate::proto::{Evidence, EvidenceKind};
use reroute_common::admission::{Word, rank};
use serde::{Deserialize, Serialize};

/// A server without calls for data is not known to reach its storage again: for so long it counts as stuck still.
const STUCK_PAUSE_NS: u64 = SEC;

/// What an SCVM's agent said holds for this long after its last sign of life in the kernel.
const AGENT_WORD_NS: u64 = 300 * MS;

/// Where a client stands in an SCVM's kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Rank {
    #[default]
    Held,
    Admitted,
    Released,
    Fenced,
}

impl From<Word> for Rank {
    /// A rank that is not known is no admission.
    fn from(word: Word) -> Rank {
        match word.rank() {
            rank::HELD => Rank::Held,
            rank::ADMITTED => Rank::Admitted,
            rank::RELEASED => Rank::Released,
            _ => Rank::Fenced,
        }
    }
}

/// What a verified pulse reply says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Facts {
    pub scvm_boot: u64,
    /// The SCVM's own clock: echoed, never compared with ours.
    pub scvm_stamp: u64,
    pub server: Incarnation,
    /// This host's admission there.
    pub word_epoch: Epoch,
    pub word_rank: Rank,
    pub lease_ns: u64,
    pub listening: bool,
    pub silent: bool,
    /// As last said by the SCVM's agent, which may be gone: see [`Facts::null_failed_now`].
    pub null_failed: bool,
    pub enforcing: bool,
    /// Calls for data wait over their limit, and none is answered for anybody, whatever else is.
    pub data_silent: bool,
    /// Since a call for data was last answered there, for anybody.
    pub data_reply_age_ns: u64,
    /// Calls of this host accepted there and not answered.
    pub in_progress: u32,
    pub orphans: u32,
    pub calls_waiting: u32,
    /// Of the calls waiting there, of whomever; 0: none waits.
    pub oldest_call_age_ns: u64,
    pub agent_age_ns: u64,
}

impl Facts {
    /// The kernel lets nothing of `epoch` in any more.
    pub fn is_closed_for(&self, epoch: Epoch) -> bool {
        self.word_epoch > epoch || (self.word_epoch == epoch && self.word_rank >= Rank::Released)
    }
    /// Closed, and enforced, and nothing of this host is still being worked on.
    pub fn is_idle_for(&self, epoch: Epoch) -> bool {
        self.enforcing && self.is_closed_for(epoch) && self.in_progress == 0 && self.orphans == 0
    }
    /// The bit is the agent's and outlives it: from one that is not heard of any more it says nothing.
    pub fn null_failed_now(&self) -> bool {
        self.null_failed && self.agent_age_ns <= AGENT_WORD_NS
    }
    /// What is to be held against the server. Not silence with calls of one sort only: that is another matter.
    fn against(&self) -> Vec<EvidenceKind> {
        use EvidenceKind::*;
        let says =
            [(ListenerGone, !self.listening), (Silent, self.silent), (NullFailed, self.null_failed_now())];
        says.into_iter().filter(|(_, holds)| *holds).map(|(kind, _)| kind).collect()
    }
    /// The server is there, its storage is not.
    fn is_without_storage(&self) -> bool {
        self.data_silent && self.listening && !self.null_failed_now()
    }
    /// Fit to take a client.
    pub fn is_well(&self) -> bool {
        self.listening && !self.silent && !self.null_failed_now()
    }
}

/// A piece of evidence of this host's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Piece {
    pub kind: EvidenceKind,
    pub path: Option<Path>,
    pub at: BootNs,
}

impl Piece {
    pub fn of(self, host: HostId) -> Evidence {
        Evidence { kind: self.kind, observer: NodeId::Host(host), path: self.path, at: self.at }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct ServerState {
    pub facts: Option<Facts>,
    pub case: Case,
    pub well_since: Option<BootNs>,
    /// What its kernel says has been bad since then, without a break.
    pub ill_since: Option<BootNs>,
    /// Not one reply since then showed this host without calls in progress.
    pub busy_since: Option<BootNs>,
    /// It has been without its storage since then.
    pub without_storage_since: Option<BootNs>,
    /// It was last seen to be.
    stuck_at: Option<BootNs>,
}

impl ServerState {
    /// Boot and stamp to echo.
    pub fn echo(&self) -> (u64, u64) {
        self.facts.map_or((0, 0), |f| (f.scvm_boot, f.scvm_stamp))
    }

    /// A fresh reply to a pulse that left at `asked_at`. Returns what it changes.
    pub fn heard(&mut self, path: Path, asked_at: BootNs, facts: Facts, now: BootNs) -> Option<Change> {
        if self.facts.is_some_and(|f| f.scvm_boot == facts.scvm_boot && f.scvm_stamp > facts.scvm_stamp) {
            return None; // overtaken by a later one on another network
        }
        self.facts = Some(facts);
        let since = |holds: bool, before: Option<BootNs>| holds.then(|| before.unwrap_or(now));
        self.well_since = since(facts.is_well(), self.well_since);
        self.ill_since = since(!facts.is_well(), self.ill_since);
        let stuck = facts.is_without_storage();
        // A connection that was reset has no calls for a moment: no answer, and no end of it.
        let goes_on = |since: BootNs| {
            stuck
                || facts.data_reply_age_ns >= now.since(since)
                    && self.stuck_at.is_some_and(|at| now.since(at) <= STUCK_PAUSE_NS)
        };
        self.without_storage_since =
            self.without_storage_since.filter(|since| goes_on(*since)).or(stuck.then_some(now));
        self.stuck_at = if stuck { Some(now) } else { self.stuck_at };
        self.busy_since = since(facts.in_progress > 0, self.busy_since);
        self.case.hear(&facts.against(), path, asked_at, now)
    }

    /// Its kernel speaks of a failure that is not one yet: until when it is to be asked quickly.
    pub fn doubt_until(&self) -> Option<BootNs> {
        self.ill_since.filter(|_| !self.case.stands()).map(|since| since.plus(DOUBT_NS))
    }

    /// A call for data was answered there within the last `ns`, and none waits for too long.
    pub fn reaches_storage(&self, ns: u64) -> bool {
        self.facts.is_some_and(|f| !f.data_silent && f.data_reply_age_ns < ns)
    }

    /// Every path to it was found lost. Returns what that changes.
    pub fn all_paths_lost(&mut self, now: BootNs) -> Option<Change> {
        self.well_since = None;
        self.case.found(EvidenceKind::AllPathsLost, now)
    }
}
