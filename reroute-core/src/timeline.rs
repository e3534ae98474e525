//! The events a move is explained by afterwards. Each agent appends them to its journal; `at` is that node's clock.

use crate::ids::*;
use crate::proto::{Evidence, FenceProof};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// A line of a journal (JSON).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    pub at: BootNs,
    /// Name of the node that writes.
    pub node: String,
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The agent is up; `adopted` says what it found standing.
    Started { role: String, adopted: String },
    /// SCVM: the kernel said so (`at` is the kernel's stamp). `signal` is silent, unanswered, listener_gone, carrier_lost, ... or its end.
    KernelSignal { signal: String, host: Option<HostId>, age_ns: u64, limit_ns: u64, waiting: u32 },
    /// SCVM: the server process was seen to begin or to end.
    ServerProcess { pid: u32, alive: bool },
    /// SCVM: SIGKILL was sent, so that a host's calls in progress cannot run any more.
    ServerKilled { pid: u32, host: HostId, epoch: Epoch, why: String },
    /// SCVM: the local NULL RPC, asked because of a suspicion.
    NullRpc { answered: bool, took_ns: u64 },
    /// Host: a path or server changed its state.
    Health { path: Option<Path>, scvm: ScvmId, from: String, to: String, reason: String },
    /// Host: where to, and why.
    Verdict { from: Option<ScvmId>, to: Path, reason: String, evidence: Vec<Evidence> },
    /// Host in dry mode: what it would do now.
    WouldMove { to: Path, reason: String },
    /// Host: an operator chose the mode (dry, auto).
    ModeSet { mode: String, actor: String },
    /// Meta: the move is on record.
    MoveRecorded {
        host: HostId,
        from: Option<ScvmId>,
        to: ScvmId,
        epoch: Epoch,
        planned: bool,
        reason: String,
    },
    /// Host: persisted, no affirmation after this.
    Released { epoch: Epoch },
    /// Meta: the order went out on every network.
    RevokeSent { host: HostId, scvm: ScvmId, epoch: Epoch },
    /// SCVM: the kernel's word says fenced.
    Fenced { host: HostId, epoch: Epoch, in_progress: u32, orphans: u32 },
    /// Meta: the old server is shut, by this proof.
    FenceProven { host: HostId, scvm: ScvmId, epoch: Epoch, proof: FenceProof, does_not_cover: String },
    /// Meta: the fence command was started for these logins (host, epoch).
    FenceCommandStarted { scvm: ScvmId, run: u64, attempt: u32, logins: Vec<(HostId, Epoch)> },
    /// Meta: it came to an end. `outcome` is fenced, failed or refused; `output` the end of what it wrote.
    FenceCommandEnded { scvm: ScvmId, run: u64, outcome: String, why: String, took_ns: u64, output: String },
    /// Meta: an operator gave his word that this server can neither accept nor execute anything of that login.
    Vouched { host: HostId, scvm: ScvmId, epoch: Epoch, actor: String },
    /// Meta: an operator began (or ended) to drain an SCVM.
    Draining { scvm: ScvmId, on: bool, actor: String },
    /// Host: an operator pinned the route to a place (None: no more), or the time of that has passed.
    Pinned { to: Option<String>, actor: String },
    /// Host: what the hypervisor says of the SCVM beside it.
    Domain { what: String },
    /// SCVM: the kernel's word says admitted.
    Admitted { host: HostId, epoch: Epoch },
    /// Meta: the login stands.
    LoginStored { host: HostId, scvm: ScvmId, epoch: Epoch },
    /// Host: replaced and read back.
    RouteReplaced { path: Path, epoch: Epoch, reason: String },
    /// Host: the route was gone or changed by another hand.
    RouteDisturbed { found: String },
    /// Host or SCVM: sockets destroyed.
    SocketsReset { count: u32 },
    /// Host: its kernel destroys no sockets; its server is asked to have these connections end.
    ResetAsked { scvm: ScvmId, epoch: Epoch, connections: u32, round: u32 },
    /// SCVM: done. `destroyed`: sockets of its own; to the other ports a tickle went.
    ClientReset { host: HostId, epoch: Epoch, tickled: u32, destroyed: u32 },
    /// Host: these have ended, so long after the first asking.
    OldConnectionsEnded { connections: u32, took_ns: u64 },
    /// SCVM, kernel stamp: the first reply to this host since it was admitted here.
    FirstReply { host: HostId, epoch: Epoch },
    /// Meta: an operator keeps a client away for a time; it is on record.
    BlockAdded { id: BlockId, host: HostId, reason: String, actor: String, for_ms: u64 },
    /// Meta: a block was removed by somebody, or its time is over.
    BlockEnded { id: BlockId, host: HostId, by: Option<String> },
    /// SCVM: the kernel keeps the client away for this long from now; 0: no more.
    BlockSet { host: HostId, for_ns: u64 },
    /// Meta: an operator ended the login; it is on record.
    Evicted { host: HostId, from: Option<ScvmId>, epoch: Epoch, actor: String, reason: String },
    /// Meta: this SCVM is to change the next hop of a host without an agent, and looks after its login until then.
    Appointed { host: HostId, scvm: ScvmId, why: String },
    /// Meta: the next hop of a host without an agent is to lead there.
    NextHopWanted {
        host: HostId,
        from: Option<Path>,
        to: Path,
        by: ScvmId,
        reason: String,
        evidence: Vec<Evidence>,
    },
    /// SCVM: it was changed over ssh, and read back.
    NextHopSet { host: HostId, from: Option<Ipv4Addr>, to: Ipv4Addr, took_ns: u64, reason: String },
    /// An operator suspended or restored enforcement.
    Bypass { on: bool, actor: String },
    /// Anything refused or failed that somebody should look at.
    Fault { what: String },
}
