//! What nodes see, of themselves and of each other; and what proves that a server is shut.

use crate::ids::*;
use serde::{Deserialize, Serialize};

/// What an SCVM says of its own server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServerHealth {
    pub server_incarnation: Incarnation,
    /// A socket listens on the service port.
    pub listening: bool,
    /// The server process is alive (pidfd).
    pub process_alive: bool,
    /// `silent` or `unanswered` is raised in the kernel.
    pub stalled: bool,
    /// The NULL RPC to the local server failed while stalled.
    pub null_failed: bool,
    /// Networks whose NIC has no carrier.
    pub no_carrier: Vec<Network>,
    /// Enforcement is suspended here.
    pub bypass: bool,
    pub clients: u32,
    pub connections: u32,
    pub calls_waiting: u32,
    /// Clients without an agent that call here and are not served.
    #[serde(default)]
    pub held_clients: u32,
    /// Version of the list of blocks that the kernel enforces; 0: none is known to be.
    #[serde(default)]
    pub blocks: u64,
    /// Who else has its storage address, in words.
    #[serde(default)]
    pub duplicate: Option<String>,
}

/// A piece of evidence, with who saw it. Times are the observer's own clock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Evidence {
    pub kind: EvidenceKind,
    pub observer: NodeId,
    /// The path it speaks of, where it speaks of one.
    pub path: Option<Path>,
    pub at: BootNs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvidenceKind {
    /// The reflected pulse says nobody listens on the service port.
    ListenerGone,
    /// The server process has exited.
    ProcessExit,
    /// Calls wait and no reply leaves for anybody.
    Silent,
    /// The server's own agent got no answer to a NULL RPC.
    NullFailed,
    /// Calls for data wait and none is answered, while the server answers NULL: its storage is stuck.
    DataSilent,
    /// No pulse came back on a path while others answered.
    PathLost,
    /// The SCVM's NIC lost carrier.
    CarrierLost,
    /// No pulse came back on any path to this SCVM while others answered.
    AllPathsLost,
    /// Meta has not heard from the SCVM.
    KeepaliveLost,
    Operator,
}

/// Why nothing of the old epoch can be accepted or executed any more. In the order of what each takes on trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceProof {
    /// No server ever had this login.
    FirstLogin,
    /// The login goes back to the server that had it, and no other was admitted in between.
    SameServer,
    /// The old server's kernel: closed, and no call in progress (told by pulse).
    KernelIdle,
    /// The old server's agent: closed, and every call in progress was answered.
    Drained,
    /// It was a target only: the host had no route to it and affirmed it never; its session lease ran out.
    NeverServed,
    /// Closed, and the server process is dead and reaped (it had died by itself).
    ProcessDead,
    /// Closed, and the server process was killed and reaped.
    Killed,
    /// The hypervisor says that the SCVM's domain is dead.
    DomainDead,
    /// Closed; the storage refuses what the old owner still writes.
    Storage,
    /// Both leases ran out; the storage refuses what the old owner still writes.
    LeaseExpiredStorage,
    /// The configured fence command reported that the SCVM is fenced for good.
    FenceCommand,
    /// An operator vouched for it.
    Operator,
}

impl FenceProof {
    /// What the proof takes on trust; empty: nothing. Each plug-in says it of its own.
    pub fn does_not_cover(self) -> &'static str {
        crate::meta::does_not_cover(self)
    }
}

/// How a host stands, as it tells Meta.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostReport {
    /// The login it acts on (0: none).
    pub epoch: Epoch,
    pub scvm: Option<ScvmId>,
    /// The route to the service address as read back from the kernel.
    pub path: Option<Path>,
    pub reason: String,
    /// How long the route has stood, ns.
    pub route_age_ns: u64,
    /// A `released` record stands for this epoch.
    pub released: Option<Epoch>,
    pub last_move_gap_ns: Option<u64>,
    /// What blocks it, by name (a foreign route, for one).
    pub error: Option<String>,
    pub paths: Vec<PathHealth>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PathHealth {
    pub path: Path,
    pub state: Health,
    pub rtt_ns: Option<u64>,
    pub last_reply_age_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing heard of it yet.
    Unknown,
    Healthy,
    Suspect,
    Failed,
    Recovering,
}
