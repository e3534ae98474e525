//! How far a move has come.

use super::route::NextStep;
use super::*;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ask {
    pub to: Path,
    pub from_epoch: Epoch,
    pub planned: bool,
    pub reason: String,
    pub pieces: Vec<Piece>,
    pub at: BootNs,
}

/// A server this host lets go of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LettingGo {
    pub epoch: Epoch,
    pub closed: bool,
    pub idle_told_at: Option<BootNs>,
    /// Meta has taken it in.
    pub idle_taken: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Moving {
    pub to: ScvmId,
    pub epoch: Epoch,
    pub letting_go: BTreeMap<ScvmId, LettingGo>,
    pub from_epoch: Epoch,
    pub since: BootNs,
    pub released_told: bool,
    /// The question behind this move, or a newer one because its target failed.
    pub ask: Option<Ask>,
    /// Meta itself ends a planned one that comes to nothing.
    pub planned: bool,
    /// By a view of Meta since the move began, the target has no session.
    pub target_lost: bool,
    /// The last question to Meta since the move began.
    pub asked_at: Option<BootNs>,
    /// The last thing that was seen to bring the move on: its begin, a fence that Meta knows of, a question.
    pub news_at: BootNs,
}

impl Moving {
    /// Every server that served before is known to be shut, and Meta knows it: only the target is waited for.
    pub fn is_open(&self) -> bool {
        self.released_told && self.letting_go.iter().all(|(scvm, l)| *scvm == self.to || l.idle_taken)
    }
}

/// A way that Meta has acknowledged, or that needs no acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Trip {
    pub path: Path,
    pub reason: String,
    /// When the host let go of its former server (a change of path: when it was decided).
    pub since: BootNs,
    /// The login is new: tell Meta of the arrival.
    pub login_is_new: bool,
    /// The host was at this very server before: its sockets are connected there.
    pub same_server: bool,
    /// Sockets bound to this host's address there may stay.
    pub keep: Option<Network>,
}

/// Route and sockets on the way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Arriving {
    pub trip: Trip,
    pub step: NextStep,
    pub retry_at: Option<BootNs>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Settled,
    Asked(Ask),
    Moving(Moving),
    Arriving(Arriving),
}

impl Phase {
    pub fn concerns(&self, scvm: ScvmId) -> bool {
        match self {
            Phase::Settled => false,
            Phase::Asked(ask) => ask.to.scvm == scvm,
            Phase::Moving(moving) => moving.to == scvm || moving.letting_go.contains_key(&scvm),
            Phase::Arriving(arriving) => arriving.trip.path.scvm == scvm,
        }
    }

    /// The epoch that is being let go of there, and whether its kernel has confirmed.
    pub fn letting_go(&self, scvm: ScvmId) -> Option<(Epoch, bool)> {
        match self {
            Phase::Moving(moving) => moving.letting_go.get(&scvm).map(|l| (l.epoch, l.closed)),
            _ => None,
        }
    }

    /// Under way, and what was let go of has not been told.
    pub fn wants_release(&self) -> bool {
        matches!(self, Phase::Moving(moving) if !moving.released_told)
    }

    pub fn ask(&self) -> Option<&Ask> {
        match self {
            Phase::Asked(ask) => Some(ask),
            Phase::Moving(moving) => moving.ask.as_ref(),
            _ => None,
        }
    }
}
