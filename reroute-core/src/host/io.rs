//! What the machine is told, and what it wants done.

use super::*;

/// What the machine is told once. Times in ns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settings {
    pub host: HostId,
    pub local: ScvmId,
    pub scvms: Vec<ScvmId>,
    /// Those whose storage refuses a former owner (policy `storage`): calls of unknown fate do no harm there.
    pub checked_by_storage: Vec<ScvmId>,
    pub pulse_ns: u64,
    /// Pulses to the active server while it, or a path to it, is in doubt.
    pub doubt_ns: u64,
    pub standby_ns: u64,
    /// Pulses to all that are neither active nor standby.
    pub rest_ns: u64,
    pub path_lost_ns: u64,
    /// The mode, until an operator has chosen one.
    pub first_mode: Mode,
    pub hold_down_ns: u64,
    pub hold_down_max_ns: u64,
}

/// What outlives the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The last login acted on (0: none).
    pub epoch: Epoch,
    pub scvm: Option<ScvmId>,
    /// This epoch and all before it were let go: never affirmed again.
    pub released: Option<Epoch>,
    /// Of the last leader whose order was followed: none of an earlier term is.
    #[serde(default)]
    pub term: Term,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Input {
    /// When [`Machine::next_tick`] wants it; `due` is when this one should have come.
    Tick {
        due: BootNs,
    },
    /// A verified pulse reply.
    Reply {
        path: Path,
        sent_at: BootNs,
        facts: Facts,
    },
    /// A pulse has left (or not: `error` is the network stack's hard no), at `at` instead of `due`.
    Sent {
        path: Path,
        due: BootNs,
        at: BootNs,
        error: Option<String>,
    },
    /// A push stream of Meta is open (`true`), or the last one has closed.
    MetaLink {
        up: bool,
    },
    Order(FromMeta),
    /// What became of a message: `Err` says why nobody took it.
    MetaAnswer {
        message: ToMeta,
        result: Result<MetaReply, String>,
    },
    /// Carrier of the host's own interface.
    Interface {
        network: Network,
        carrier: bool,
    },
    /// The route as it stands: after start, after every change seen, and when asked for.
    RouteRead(Result<Found, String>),
    RouteSet {
        path: Path,
        result: Result<(), RouteFailure>,
    },
    SocketsReset(Result<u32, String>),
    /// Instead: this kernel destroys none, or is not to. These are there still.
    SocketsStay(Vec<OldSocket>),
    /// Those of them that are there now.
    SocketsFound(Result<Vec<OldSocket>, String>),
    Persisted {
        record: Record,
        result: Result<(), String>,
    },
    NotesPersisted {
        notes: Notes,
        result: Result<(), String>,
    },
    /// An operator allows a foreign route to be taken over.
    Adopt,
    /// An operator wants this host to be there ([`Machine::check_pin`] has passed), or wherever it is best.
    Pin(Option<Pin>),
    /// An operator chooses the mode ([`Machine::check_mode`] has passed).
    SetMode {
        mode: Mode,
        actor: String,
    },
    /// What became of [`Effect::TrySizes`], or why nothing could be tried.
    SizesTried(Result<SizesTried, String>),
    /// Who answered to [`Effect::AskOwnAddress`], or why nobody could be asked.
    OwnAddress(Result<duplicate::Claims, String>),
    /// What the hypervisor answered to [`Effect::AskHypervisor`]: every domain of this node. The asking began then.
    Hypervisor {
        began: BootNs,
        result: Result<Vec<Domain>, String>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Effect {
    SendPulse {
        path: Path,
        flag: PulseFlag,
        epoch: Epoch,
        scvm_boot: u64,
        scvm_stamp: u64,
        due: BootNs,
    },
    Meta(ToMeta),
    ReadRoute,
    /// Look, replace atomically, read back. `adopt`: take over what others have set.
    ReplaceRoute {
        path: Path,
        adopt: bool,
    },
    /// All of this host's sockets to the service address; with `keep`, only if some are not bound to its address there.
    DestroySockets {
        keep: Option<Network>,
    },
    /// Which of the sockets that could not be destroyed are there still?
    FindSockets,
    Persist(Record),
    PersistNotes(Notes),
    /// Ask on the storage network who else has this host's address.
    AskOwnAddress,
    /// A full and a small echo on each of these. One sweep at a time.
    TrySizes(Vec<Path>),
    /// Ask the hypervisor for its domains. One at a time.
    AskHypervisor,
    Journal(Event),
}

pub(crate) type Effects = Vec<Effect>;
