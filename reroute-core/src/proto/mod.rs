//! What agents and Meta say to each other: HTTP bodies and lines of the push stream, as JSON.
//!
//! An agent POSTs [`ToMeta`] and reads [`MetaReply`]; Meta's orders come on the push stream as [`FromMeta`], on every
//! network, each with a number, so that a second copy is recognised. Every message names term or epoch where it
//! matters: what comes late is refused by name, not by luck.

mod evidence;
mod view;

pub use evidence::*;
pub use view::*;

use crate::block::{BlockOrder, HolderFacts};
use crate::esxi::{DriveReport, Wish};
use crate::ids::*;
use serde::{Deserialize, Serialize};

pub const VERSION: u32 = 1;
/// Connections of one client that are reset at a time.
pub const MOST_RESET: usize = 64;

/// A POST body. The MAC over it travels in a header.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    pub version: u32,
    pub cluster: String,
    pub from: NodeId,
    pub incarnation: Incarnation,
    /// Counts up per incarnation: a message that came by two networks is handled once.
    pub seq: u64,
    pub msg: ToMeta,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToMeta {
    // --- from an SCVM ---
    /// A session begins (agent start, new term, lapse). Meta answers [`MetaReply::Session`] with what stands. `boot`: of
    /// the SCVM's kernel, as its pulses tell it.
    SessionOpen { boot: Incarnation, health: ServerHealth },
    /// Every 100 ms.
    KeepAlive { term: Term, health: ServerHealth },
    /// [`Order::Prepare`] done: no old socket of the host is left here (or `error` says why not).
    Prepared { host: HostId, epoch: Epoch, error: Option<String> },
    /// The host is shut out at `epoch`, and calls in progress are covered by `proof`.
    Fenced { host: HostId, epoch: Epoch, proof: FenceProof },
    /// The fence stands, but nothing covers the calls in progress yet.
    FenceWaits { host: HostId, epoch: Epoch, in_progress: u32, orphans: u32, why: String },
    /// The host is served here from now on (or `error` says why not).
    Admitted { host: HostId, epoch: Epoch, error: Option<String> },
    /// A client without an agent calls here on an established connection, and is held back: its login is wanted here.
    /// Repeated while it does. `age_ns`: since its last call; `closed`: up to this epoch it is not admitted here.
    LoginWanted { host: HostId, closed: Epoch, connections: u32, age_ns: u64 },
    /// Once a second, for people: who holds what here. Changes nothing.
    Holders { term: Term, clients: Vec<HolderFacts> },
    /// What came of a look at an ESXi host, or of a change of its next hop ([`Order::Drive`]).
    Driven { host: HostId, report: DriveReport },
    /// Answer to [`Order::AskPeer`]: asked after that order had come, `scvm` answers by no network, and others do.
    PeerSilent { scvm: ScvmId },

    // --- from a host ---
    /// After start, after each reconnect of the push stream, and every second.
    HostReport { report: HostReport },
    /// Move the login: `from_epoch` is what the host knows (0: no login yet).
    Move { from_epoch: Epoch, to: ScvmId, planned: bool, reason: String, evidence: Vec<Evidence> },
    /// `epoch` is released: persisted, no affirmation of it was sent after this.
    Released { epoch: Epoch },
    /// The old server's kernel itself says, by pulse, that it is closed with no call in progress.
    FencedByPulse { scvm: ScvmId, epoch: Epoch },
    /// Answer to [`Order::AskDomain`], from a host that runs beside this SCVM: its hypervisor, asked after that order
    /// had come, says that what `host` was logged in to at `epoch` is dead. `boot`: only the domain that ran this
    /// kernel boot is, another one runs in its place; None: no domain of this SCVM runs here at all.
    DomainDead { scvm: ScvmId, host: HostId, epoch: Epoch, boot: Option<Incarnation> },
    /// The route stands, old sockets are gone, the new server is affirmed.
    Arrived { epoch: Epoch, path: Path },
    /// The route stands, and this host's kernel cannot destroy the sockets from before it: the server at `epoch` is to
    /// have these end, bound to its address on `network`. Repeated while they stay, a bounded number of times. `own`: see
    /// [`Order::ResetClient`].
    ResetWanted { epoch: Epoch, network: Network, ports: Vec<u16>, own: bool },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MetaReply {
    /// Taken in; what comes of it comes by push.
    Ok { term: Term },
    /// To SessionOpen: the session holds in this term; serve exactly these.
    Session {
        term: Term,
        logins: Vec<(HostId, Epoch)>,
        /// Number of the last order sent to this SCVM before this session: what it ordered up to there holds no more.
        #[serde(default)]
        orders_to: u64,
        /// Who is blocked.
        #[serde(default)]
        blocks: BlockOrder,
    },
    /// Nothing was changed.
    Refused { error: Refusal },
}

/// Named refusals; each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Refusal {
    #[error("no session in this term: open one")]
    NoSession,
    #[error("this Meta is not known to lead ({why}): ask again, it goes on when the store confirms it")]
    NotLeader { why: String },
    #[error("version {got} is not spoken here, only {want}: install the same release on every node")]
    Version { got: u32, want: u32 },
    #[error("cluster id {got:?} is not ours: check [cluster] id in the configuration")]
    Cluster { got: String },
    #[error("{node} is not in this cluster's configuration")]
    UnknownNode { node: NodeId },
    #[error("no {scvm} in this cluster: see `reroute-agent status`")]
    UnknownScvm { scvm: ScvmId },
    #[error("the login stands at {current}, not at {got}: ask again with the current one")]
    StaleEpoch { got: Epoch, current: Epoch },
    #[error("already served by {scvm}: nothing to move")]
    MoveToSelf { scvm: ScvmId },
    #[error("{scvm} has no live session: choose another target")]
    TargetNotReady { scvm: ScvmId },
    #[error("{scvm} is being drained: choose another target, or end that with `reroute-agent drain --undo`")]
    Draining { scvm: ScvmId },
    #[error("{scvm} is not being drained: see `reroute-agent status`")]
    NotDraining { scvm: ScvmId },
    #[error(
        "no other SCVM can take the hosts of {scvm} (each has lost its session, is not well, or is being drained): mend one first"
    )]
    NowhereToGo { scvm: ScvmId },
    #[error("nothing waits for an operator's word on {scvm} and {host}: {why}")]
    NothingToVouch { host: HostId, scvm: ScvmId, why: String },
    #[error(
        "{node} does not run beside {scvm}: only a host whose `local_scvm` it is can say what its hypervisor knows"
    )]
    NotBeside { node: NodeId, scvm: ScvmId },
    #[error(
        "the dead domain of {scvm} is not known to be the one that had the last session: another one may have been admitted since"
    )]
    OtherInstance { scvm: ScvmId },
    #[error(
        "blocked by {actor} for another {remaining_s} s ({id}: {reason}): wait for its end, or `reroute-agent block rm {}`", id.0
    )]
    Blocked { id: BlockId, reason: String, actor: String, remaining_s: u64 },
    #[error("a move of this host is under way (to {to}, {epoch}): wait for it")]
    MoveInProgress { to: ScvmId, epoch: Epoch },
    #[error("the store did not take the change: {why}")]
    Store { why: String },
    #[error("this message is not for a {node} to send")]
    WrongSender { node: NodeId },
    #[error(
        "{host} is configured without an agent (`agent = false`): stop the one that runs there, or correct its entry on every node"
    )]
    WithoutAgent { host: HostId },
    #[error(
        "{host} is configured with an agent, which moves its login itself: correct its entry on this SCVM, or on Meta"
    )]
    WithAgent { host: HostId },
    #[error("{proof:?} is not {node}'s to give under its fence policy: correct `policy` or the sender")]
    ProofNotAllowed { node: NodeId, proof: FenceProof },
    #[error("message {seq} is too old to be told from a copy: send it anew")]
    TooOld { seq: u64 },
}

/// A line of the push stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FromMeta {
    pub term: Term,
    /// Counts up per term and node; 0 for the first line of each stream.
    pub seq: u64,
    pub order: Order,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Order {
    /// First line of each stream; and sent when nothing else was for 1 s.
    Hello { cluster: String },
    /// The cluster as Meta sees it: after connecting and on each change.
    View { view: ClusterView },

    // --- to an SCVM ---
    /// Make ready to admit `host` at `epoch`: purge its old sockets. Admits nobody.
    Prepare { host: HostId, epoch: Epoch },
    /// Shut `host` out at `epoch`, cover the calls in progress, say with which proof.
    Revoke { host: HostId, epoch: Epoch, planned: bool },
    /// Serve `host` at `epoch`.
    Admit { host: HostId, epoch: Epoch },
    /// The connections that `host`, which is served here at `epoch`, still has from these ports of its address on
    /// `network` lead to nobody: have them end. `own`: those too whose other end is here; else they are the client's new
    /// ones, from the same port. Not repeated by Meta; the host asks again.
    ResetClient { host: HostId, epoch: Epoch, network: Network, ports: Vec<u16>, own: bool },
    /// These clients are kept away, and nobody else.
    Blocks { list: BlockOrder },
    /// You are appointed to drive this ESXi host: rehearse the login, and see to the wish, if there is one. Repeated
    /// every second; who does not hear it for a while is not appointed any more.
    Drive { host: HostId, wish: Option<Wish> },
    /// Does this SCVM answer you, by any network? [`ToMeta::PeerSilent`] if not, nothing if it does.
    AskPeer { scvm: ScvmId },

    // --- to a host ---
    /// The move is on record: release `from` now, wait for [`Order::At`].
    Moving { from: Option<ScvmId>, from_epoch: Epoch, to: ScvmId, epoch: Epoch },
    /// The login stands: route there, reset sockets, affirm. Also the answer to a report that shows another state.
    At { scvm: ScvmId, epoch: Epoch },
    /// To a host beside `scvm`: is the domain dead that `host` was logged in to at `epoch`? Only what the hypervisor
    /// says from now on counts; [`ToMeta::DomainDead`] if it is, nothing if not.
    AskDomain { scvm: ScvmId, host: HostId, epoch: Epoch },
    /// An operator has ended the login at `epoch`: let `from_epoch` go. A new login has to be asked for from `epoch`.
    Evicted { from_epoch: Epoch, epoch: Epoch, reason: String },
    /// The move you asked for will not happen; the login stands as it did.
    MoveRefused { to: ScvmId, error: Refusal },
}
