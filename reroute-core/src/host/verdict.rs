//! One server: what its kernel says of it in the pulses, and when that means that it has failed.

use crate::ids::*;
use crate::proto::{Evidence, EvidenceKind};
use reroute_common::admission::{Word, rank};

/// Consecutive replies that must say the same before it counts.
const CONSECUTIVE: u32 = 2;
/// Consecutive good replies before a failed server counts as well again.
const RECOVERED: u32 = 3;
/// What an SCVM's agent said holds for this long after its last sign of life in the kernel.
const AGENT_WORD_NS: u64 = 300 * MS;

/// Where a client stands in an SCVM's kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
    fn hung(&self) -> bool {
        self.silent && self.null_failed_now()
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
    not_listening: u32,
    hung: u32,
    well: u32,
    pub well_since: Option<BootNs>,
    /// Not one reply since then showed this host without calls in progress.
    pub busy_since: Option<BootNs>,
    /// Why it has failed; empty: it has not.
    pub failed: Vec<Piece>,
}

impl ServerState {
    /// Boot and stamp to echo.
    pub fn echo(&self) -> (u64, u64) {
        self.facts.map_or((0, 0), |f| (f.scvm_boot, f.scvm_stamp))
    }

    /// A fresh reply. Returns true if the server was found to have failed, or to be well again.
    pub fn heard(&mut self, path: Path, facts: Facts, now: BootNs) -> bool {
        if self.facts.is_some_and(|f| f.scvm_boot == facts.scvm_boot && f.scvm_stamp > facts.scvm_stamp) {
            return false; // overtaken by a later one on another network
        }
        self.facts = Some(facts);
        let count = |counter: u32, holds: bool| if holds { counter.saturating_add(1) } else { 0 };
        self.not_listening = count(self.not_listening, !facts.listening);
        self.hung = count(self.hung, facts.hung());
        self.well = count(self.well, facts.is_well());
        if self.well == 0 {
            self.well_since = None;
        } else if self.well_since.is_none() {
            self.well_since = Some(now);
        }
        self.busy_since = (facts.in_progress > 0).then(|| self.busy_since.unwrap_or(now));
        let piece = |kind| Piece { kind, path: Some(path), at: now };
        if self.failed.is_empty() {
            if self.not_listening >= CONSECUTIVE {
                self.failed = vec![piece(EvidenceKind::ListenerGone)];
            } else if self.hung >= CONSECUTIVE {
                self.failed = vec![piece(EvidenceKind::Silent), piece(EvidenceKind::NullFailed)];
            }
            !self.failed.is_empty()
        } else if self.well >= RECOVERED {
            self.failed.clear();
            true
        } else {
            false
        }
    }

    /// Every path to it was found lost. Returns true if that is news.
    pub fn all_paths_lost(&mut self, now: BootNs) -> bool {
        self.well = 0;
        self.well_since = None;
        if !self.failed.is_empty() {
            return false;
        }
        self.failed = vec![Piece { kind: EvidenceKind::AllPathsLost, path: None, at: now }];
        true
    }
}
