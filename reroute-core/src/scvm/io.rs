//! What goes into the machine and what comes out of it.
//!
//! Each effect that can fail names the input it comes back as.

use crate::duplicate::Claims;
use crate::ids::*;
use crate::proto::{MetaReply, Order, ToMeta};
use crate::timeline::Event;
use reroute_common::admission::Word;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Result of an effect; the error is for people.
pub type Outcome<T> = Result<T, String>;

/// How the kernel treats who is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Counts what it would drop.
    Shadow,
    Enforce,
    /// An operator suspended enforcement.
    Bypass,
}

/// What the kernel says of the server as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServerFacts {
    /// The incarnation the kernel was told of; 0: none yet.
    pub incarnation: Incarnation,
    pub listening: bool,
    /// When a reply last left for anybody; 0: never.
    pub last_reply_at: BootNs,
    pub waiting: u32,
    pub silent: bool,
    pub stalled_flows: u32,
    /// Session leases as they stand in the kernel.
    pub session_deadline: BootNs,
    pub session_deadline_no_agent: BootNs,
}

/// A word of the kernel, in a recording.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Word")]
struct AsNumber(u64);

/// What the kernel says of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClientFacts {
    pub host: HostId,
    pub has_agent: bool,
    #[serde(with = "AsNumber")]
    pub word: Word,
    /// Until when its own host affirms it.
    pub affirm_deadline: BootNs,
    /// Until when an operator keeps it away; 0: nobody does.
    pub blocked_until: BootNs,
    pub connections: u32,
    /// Calls accepted and not answered.
    pub in_progress: u32,
    /// Calls ever answered.
    pub replies: u64,
}

/// The kernel's answer to a command: the word as it stands, and the counts read after it was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Answer {
    #[serde(with = "AsNumber")]
    pub word: Word,
    pub in_progress: u32,
    pub orphans: u32,
    /// The word stood beyond what was asked: nothing changed.
    pub stale: bool,
}

impl Answer {
    /// No call is left that could still be executed.
    pub fn idle(&self) -> bool {
        self.in_progress == 0 && self.orphans == 0
    }
}

/// A transition that the programs reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Signal {
    pub kind: SignalKind,
    pub at: BootNs,
    pub host: Option<HostId>,
    pub waiting: u32,
    pub age_ns: u64,
    pub limit_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SignalKind {
    Unanswered,
    UnansweredEnd,
    Silent,
    SilentEnd,
    ListenerGone,
    ListenerBack,
    /// A client acknowledges nothing of what was sent to it.
    Unacked,
    UnackedEnd,
    Retransmit(Way),
    RetransmitEnd(Way),
    ZeroWindow(Way),
    ZeroWindowEnd(Way),
    Reset(Way),
    FirstReply(Epoch),
    Released(Epoch),
    /// A client without an agent calls, and is held back.
    LoginWanted,
    /// The same, on a connection that nobody can judge.
    LoginWantedUnseen,
}

/// Which way the packets go that a signal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Way {
    /// From the client.
    In,
    /// From the server.
    Out,
}

/// What a message to Meta was, given back with its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tag {
    Open {
        session: u64,
        sent_at: BootNs,
    },
    /// `sent_at` is not later than the moment it left: leases count from it.
    KeepAlive {
        session: u64,
        term: Term,
        sent_at: BootNs,
    },
    /// The answer to an order.
    Answer {
        id: u64,
    },
}

/// Why a host's sockets are destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Purpose {
    Prepare,
    Fence,
    /// Of a client without an agent that is not served: it is to come with new ones.
    Unseen,
}

/// Sockets of a host: how many were destroyed, how many are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Purge {
    pub destroyed: u32,
    pub left: u32,
}

/// Connections that a client is to be rid of: to so many ports a tickle went; so many were sockets of our own, destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tickled {
    pub tickled: u32,
    pub destroyed: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// Read just now: comes before each other input, so that decisions rest on the present.
    Server(ServerFacts),
    Clients(Vec<ClientFacts>),
    Signal(Signal),
    /// Calls waited at the last look already, a few ms ago, and no reply has left for anybody since.
    Quiet,
    /// A server process, by the pidfile: alive and held by a pidfd.
    ServerSeen {
        pid: u32,
        incarnation: Incarnation,
    },
    /// It has terminated, every thread of it (its pidfd is readable, or it was found gone).
    ServerExited {
        pid: u32,
        incarnation: Incarnation,
    },
    /// Why no server process is known (or `None`: one is).
    ServerProblem(Option<String>),
    Carrier {
        network: Network,
        up: bool,
    },
    /// An operator suspends (`on`) or restores enforcement.
    Bypass {
        on: bool,
        actor: String,
    },
    /// `seq` counts up per term.
    Order {
        term: Term,
        seq: u64,
        order: Order,
    },
    Reply {
        tag: Tag,
        reply: Outcome<MetaReply>,
    },

    Renewed(Outcome<()>),
    EpochsPublished(Outcome<()>),
    AdmitAnswer {
        host: HostId,
        epoch: Epoch,
        answer: Outcome<Answer>,
    },
    FenceAnswer {
        host: HostId,
        epoch: Epoch,
        answer: Outcome<Answer>,
    },
    Counts {
        host: HostId,
        epoch: Epoch,
        answer: Outcome<Answer>,
    },
    Purged {
        host: HostId,
        epoch: Epoch,
        purpose: Purpose,
        purge: Outcome<Purge>,
    },
    ClientReset {
        host: HostId,
        epoch: Epoch,
        result: Outcome<Tickled>,
    },
    /// A probe has been answered, or its time is over: then it is waited for still, and a late answer is told as well,
    /// or (`answered: false` without a probe under way) the end of its connection.
    NullRpc {
        answered: bool,
        took_ns: u64,
        /// Meanwhile the server had work and waited for a CPU.
        starved: bool,
    },
    AgentStateSet(Outcome<()>),
    BlockSet {
        host: HostId,
        until: BootNs,
        result: Outcome<()>,
    },
    ModeSet {
        mode: Mode,
        result: Outcome<()>,
    },
    BypassPersisted(Outcome<()>),
    /// Who else has this SCVM's storage address.
    OwnAddress(Outcome<Claims>),
    KillSent {
        incarnation: Incarnation,
        result: Outcome<()>,
    },
    ServerRegistered {
        incarnation: Incarnation,
        result: Outcome<()>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// → [`Input::Reply`]
    Send {
        tag: Tag,
        msg: ToMeta,
    },
    /// Move the session leases forward → [`Input::Renewed`]
    Renew {
        deadline: BootNs,
        deadline_no_agent: BootNs,
    },
    /// Replace the epoch file → [`Input::EpochsPublished`]; one at a time.
    PublishEpochs {
        epochs: BTreeMap<HostId, Epoch>,
    },
    /// → [`Input::AdmitAnswer`]
    Admit {
        host: HostId,
        epoch: Epoch,
    },
    /// → [`Input::FenceAnswer`]
    Fence {
        host: HostId,
        epoch: Epoch,
    },
    /// → [`Input::Counts`]
    ReadCounts {
        host: HostId,
        epoch: Epoch,
    },
    /// Destroy the host's sockets to the service → [`Input::Purged`]
    PurgeSockets {
        host: HostId,
        epoch: Epoch,
        purpose: Purpose,
    },
    /// Have the client's connections from these ports of its address on `network` end: where there is a socket here it is
    /// left alone, or destroyed (`own`); else a segment goes out that fits nothing → [`Input::ClientReset`]
    ResetClient {
        host: HostId,
        epoch: Epoch,
        network: Network,
        ports: Vec<u16>,
        own: bool,
        /// Counts up per host: the numbers in the segment differ from the last one's.
        round: u32,
    },
    /// Ask the local server → [`Input::NullRpc`]; one at a time.
    ProbeNull,
    /// Put NULL_FAILED into the pulses, or take it out → [`Input::AgentStateSet`]
    SetAgentState {
        null_failed: bool,
    },
    /// Keep a client away until then (0: no longer) → [`Input::BlockSet`]
    SetBlock {
        host: HostId,
        until: BootNs,
    },
    /// → [`Input::ModeSet`]
    SetMode {
        mode: Mode,
    },
    /// Ask on the storage network who else has this SCVM's address → [`Input::OwnAddress`]
    AskOwnAddress,
    /// Keep an operator's decision over restarts of the agent → [`Input::BypassPersisted`]
    PersistBypass {
        on: bool,
    },
    /// SIGKILL through the pidfd → [`Input::KillSent`], then [`Input::ServerExited`]
    KillServer {
        incarnation: Incarnation,
    },
    /// Tell the kernel: the old process is reaped, this one serves → [`Input::ServerRegistered`]
    ServerStarted {
        incarnation: Incarnation,
    },
    Journal {
        at: BootNs,
        event: Event,
    },
}
