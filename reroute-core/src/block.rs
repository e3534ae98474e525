//! Blocks: an operator keeps a client away from every server for a time.
//!
//! A block outlives Meta and its node, so its end is kept by the wall clock. Whoever enforces it counts down what
//! remains by its own CLOCK_BOOTTIME: no SCVM ever sees a stamp of another clock (`docs/adr/0019-blocks.md`).

use crate::ids::{BlockId, HostId, MS, SEC, ScvmId, WallMs};
use serde::{Deserialize, Serialize};

/// The longest block: who needs more means another thing (take the client out of the configuration).
pub const LONGEST_MS: u64 = 31 * 24 * 3600 * 1000;
/// Blocks that have ended are remembered, so that a removal that comes too late is told what happened.
pub const REMEMBERED: usize = 64;

/// Every block, as the store holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockList {
    /// Grows with each change; a block's id is the version that brought it.
    pub version: u64,
    /// The wall clock at the last change: it is never taken to be earlier again.
    pub written: WallMs,
    pub blocks: Vec<Block>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Block {
    pub id: BlockId,
    pub host: HostId,
    pub reason: String,
    /// Who asked for it.
    pub actor: String,
    pub added: WallMs,
    pub for_ms: u64,
    pub expires: WallMs,
    pub removed: Option<Removed>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removed {
    pub actor: String,
    pub at: WallMs,
}

impl BlockList {
    /// What remains of a block when the wall clock says `wall`, ns; 0: it has ended. A clock that was set back gives
    /// no more than the whole time, and not what had passed when the list was last written.
    pub fn remaining_ns(&self, block: &Block, wall: WallMs) -> u64 {
        if block.removed.is_some() {
            return 0;
        }
        let wall = wall.max(self.written);
        block.expires.0.saturating_sub(wall.0).min(block.for_ms).saturating_mul(MS)
    }
}

/// What an SCVM is told: all blocks that run, with what remains of each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockOrder {
    /// Of the list; an older one than is known changes nothing.
    pub version: u64,
    pub blocks: Vec<BlockEntry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockEntry {
    pub id: BlockId,
    pub host: HostId,
    /// From now on, by the clock of whoever reads this, ns.
    pub remaining_ns: u64,
}

/// A block that runs, for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockView {
    #[serde(flatten)]
    pub block: Block,
    pub remaining_ns: u64,
    /// SCVMs whose kernel is not known to enforce it.
    pub unconfirmed: Vec<ScvmId>,
}

/// What an SCVM sees of one client, for `logins`. Ages and remaining times in ns, by its own clock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HolderFacts {
    pub host: HostId,
    /// The admission word's epoch ...
    pub epoch: crate::ids::Epoch,
    /// ... and rank: `held`, `admitted`, `released`, `fenced`.
    pub word: String,
    pub connections: u32,
    pub in_progress: u32,
    pub orphans: u32,
    /// Since a packet that was let in, either way; `None`: none since the kernel began to count.
    pub packet_age_ns: Option<u64>,
    /// Since its host's last valid pulse.
    pub pulse_age_ns: Option<u64>,
    /// What remains of its host's own affirmation.
    pub affirm_ns: u64,
    /// Packets dropped because it is blocked.
    pub blocked_packets: u64,
}

/// The same at Meta: with the age of the news.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HolderView {
    /// Since the SCVM said so, ns.
    pub heard_age_ns: u64,
    #[serde(flatten)]
    pub facts: HolderFacts,
}

/// What an operator may ask of Meta about holders and blocks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ask {
    /// `client`: a host by its name, id, storage or management address. `sure`: although it is being served.
    AddBlock {
        client: String,
        for_ms: u64,
        reason: String,
        actor: String,
        sure: bool,
    },
    RemoveBlock {
        id: BlockId,
        actor: String,
    },
    /// Ends a client's login.
    Evict {
        client: String,
        reason: String,
        actor: String,
    },
}

/// It is done, and durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "done", rename_all = "snake_case")]
pub enum Done {
    /// `version`: of the list that has it; an SCVM that names that one or a later enforces it.
    Blocked {
        block: Block,
        version: u64,
    },
    Unblocked {
        block: Block,
        version: u64,
    },
    /// The login has ended at `epoch`; `fencing`: servers still to be proven shut.
    Evicted {
        host: HostId,
        epoch: crate::ids::Epoch,
        fencing: Vec<ScvmId>,
    },
}

/// Nothing was changed (but see [`Denial::Store`]); each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Denial {
    #[error("no client {client:?}: give the name, id or address of one of [[cluster.hosts]]")]
    UnknownClient { client: String },
    #[error("a reason is required: say why with --reason")]
    NoReason,
    #[error("a block ends by itself: give --for more than 0 and at most {} days", LONGEST_MS / 86_400_000)]
    BadDuration { for_ms: u64 },
    #[error(
        "{host} is being served: {connections} connections at {scvm}; its virtual machines lose their storage: repeat with --yes if that is meant"
    )]
    InUse { host: HostId, scvm: ScvmId, connections: u32 },
    #[error("there is no {id}: see `reroute-agent block ls --all`")]
    UnknownBlock { id: BlockId },
    #[error("{id} of {host} ended by itself {ago_s} s ago: nothing to remove")]
    BlockExpired { id: BlockId, host: HostId, ago_s: u64 },
    #[error("{id} of {host} was removed already, by {actor}: nothing to remove")]
    BlockRemoved { id: BlockId, host: HostId, actor: String },
    #[error("{host} has no login: nothing to end (see `reroute-agent logins`)")]
    NoLogin { host: HostId },
    #[error("the login of {host} has ended already: nothing to end (see `reroute-agent logins`)")]
    AlreadyEvicted { host: HostId },
    #[error("a change is being written to the store: ask again")]
    Busy,
    #[error("the store did not take the change: {why}; look at what stands before you ask again")]
    Store { why: String },
}

/// An expiry for people, s.
pub(crate) fn seconds(ns: u64) -> u64 {
    ns / SEC
}
