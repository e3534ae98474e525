//! Newtypes by role. Numbers that must not be mixed up are not plain numbers.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number!(/// A hypervisor host, the NFS client. Never 0.
    HostId(u32), "host ");
number!(/// A storage VM and its access server. Never 0.
    ScvmId(u32), "scvm ");
number!(/// Counts the moves of one host's login: whoever holds a higher epoch is right.
    Epoch(u64), "epoch ");
number!(/// Counts Meta's leaders: grows with each start, kept in the store.
    Term(u64), "term ");
number!(/// Tells one run of a process (agent, server) from the next.
    Incarnation(u64), "incarnation ");

number!(/// Names a block of a client; never 0.
    BlockId(u64), "block ");

/// The wall clock (UTC), ms since 1970. Decides nothing but what must outlive a reboot; never compared with [`BootNs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallMs(pub u64);

/// CLOCK_BOOTTIME of one node, ns. Stamps of two nodes are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootNs(pub u64);

pub const MS: u64 = 1_000_000;
pub const SEC: u64 = 1_000 * MS;

impl BootNs {
    /// Time since `earlier`, ns; 0 if that is in the future.
    pub fn since(self, earlier: BootNs) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
    pub fn plus(self, ns: u64) -> BootNs {
        BootNs(self.0.saturating_add(ns))
    }
}

impl Epoch {
    /// The admission word has room for no later one.
    pub const LAST: Epoch = Epoch((1 << 56) - 1);

    /// Whether it can be the epoch of a login: 0 means none.
    pub fn is_login(self) -> bool {
        (1..=Epoch::LAST.0).contains(&self.0)
    }
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// The networks a host reaches an SCVM by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The virtual switch of host and local SCVM: what is left when no route is set.
    Private,
    Storage,
    Management,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Network::Private => "private",
            Network::Storage => "storage",
            Network::Management => "management",
        })
    }
}

/// A way to a server: which SCVM, by which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Path {
    pub scvm: ScvmId,
    pub network: Network,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.scvm, self.network)
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeId {
    Host(HostId),
    Scvm(ScvmId),
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeId::Host(id) => write!(f, "{id}"),
            NodeId::Scvm(id) => write!(f, "{id}"),
        }
    }
}

/// What an SCVM is known by: its id and its address on each network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ScvmInfo {
    pub id: ScvmId,
    pub name: String,
    pub storage: IpAddr,
    pub management: IpAddr,
    /// What covers calls in progress when this server is fenced.
    pub policy: FencePolicy,
}

impl ScvmInfo {
    /// Next hop of a route by `network`; none by the private one, which needs no route.
    pub fn address(&self, network: Network) -> Option<IpAddr> {
        match network {
            Network::Private => None,
            Network::Storage => Some(self.storage),
            Network::Management => Some(self.management),
        }
    }
}

/// A client: a host and its three addresses, or a plain NFS client, which has no private one (unspecified) and no SCVM
/// of its own (id 0).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostInfo {
    pub id: HostId,
    pub name: String,
    pub private: IpAddr,
    pub storage: IpAddr,
    pub management: IpAddr,
    pub local_scvm: ScvmId,
    /// It sends pulses and moves its own route. Without: its next hop is changed by others, and its packets tell where.
    pub has_agent: bool,
}

/// How calls that a server had accepted are kept from running after the move (design §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FencePolicy {
    /// The storage below refuses the former owner's writes.
    Storage,
    /// The server process is killed and reaped.
    Kill,
    /// Neither: the move waits until every call in progress has been answered.
    Wait,
}
