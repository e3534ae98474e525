//! What was found on a node, before anybody judges it.

use crate::netlink::nic::Nic;
use crate::netlink::route::Route;
use crate::sensor::Attachment;
use reroute_core::host::Life;
use reroute_core::ids::{FencePolicy, Network};
use reroute_core::sweep::Diagnosis;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// What could not be found out says why.
pub type Known<T> = Result<T, String>;

#[derive(Clone, Debug)]
pub struct Facts {
    /// Its names in the cluster, by role.
    pub nodes: Vec<(Role, String)>,
    pub machine: Machine,
    pub key_file: KeyFile,
    /// Of every role.
    pub state_dirs: Vec<(PathBuf, StateDir)>,
    pub meta: Vec<MetaAddress>,
    pub scvm: Option<Scvm>,
    pub host: Option<Host>,
    pub clients: Clients,
    /// Each SCVM's fence policy.
    pub policies: Vec<(String, FencePolicy)>,
    pub meta_role: Option<MetaRole>,
}

/// What the configuration says of clients without an agent.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    /// Their names.
    pub without_agent: Vec<String>,
    /// SCVMs whose loss is covered by no storage that refuses the old owner, and their policies.
    pub unfenced: Vec<(String, FencePolicy)>,
    /// Whether Meta has a fence command that can be run. None: only its own node's configuration tells.
    pub fence_command: Option<bool>,
}

/// A program that is to be run in an emergency.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    pub state: ProgramState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramState {
    Runs,
    /// It would be looked for where the agent happens to stand.
    Relative,
    NotExecutable,
    NoFile,
    /// It cannot be looked at; why.
    Unseen(String),
}

/// The hypervisor that is asked whether the local SCVM's domain is dead.
#[derive(Clone, Debug)]
pub struct Hypervisor {
    pub program: Program,
    /// As the configuration names it.
    pub domain: String,
    /// The life of each domain of that name.
    pub answer: Known<Vec<Life>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Scvm,
    Host,
    Meta,
}

#[derive(Clone, Debug)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// Capabilities that the agent needs and this process lacks.
    pub lacks: Vec<String>,
    /// The chosen one of /sys/kernel/security/lockdown.
    pub lockdown: Known<String>,
    pub clock_source: Known<String>,
    /// Whether a thread may become SCHED_FIFO.
    pub fifo: Known<()>,
    /// Bytes that may be locked; `None`: any number.
    pub memory_lock: Option<u64>,
    /// Whether the kernel can destroy sockets (CONFIG_INET_DIAG_DESTROY).
    pub destroys_sockets: Known<bool>,
}

#[derive(Clone, Debug)]
pub struct KeyFile {
    pub path: PathBuf,
    /// Permission bits and owner.
    pub mode: u32,
    pub owner: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateDir {
    Writable,
    Missing,
    NoDirectory,
    NotWritable,
}

/// An address that Meta is configured to answer on.
#[derive(Clone, Debug)]
pub struct MetaAddress {
    pub address: SocketAddr,
    pub reached: Known<()>,
    /// The SCVM that the configuration gives this address to.
    pub in_scvm: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Agent {
    pub socket: PathBuf,
    pub answer: Known<Answer>,
}

/// What a running agent says of itself.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub alarms: Vec<String>,
    pub attachments: Vec<Attachment>,
}

#[derive(Clone, Debug)]
pub struct Scvm {
    pub agent: Agent,
    pub interfaces: Vec<Interface>,
    pub service: Ipv4Addr,
    pub port: u16,
    /// Interfaces that carry the service address.
    pub service_on: Known<Vec<String>>,
    pub listening: Known<bool>,
    pub policy: FencePolicy,
    pub pidfile: PathBuf,
    /// Pid and name of the access server.
    pub server: Known<(u32, String)>,
    /// Interface, arp_announce and arp_ignore as they count there, for the networks that all SCVMs share.
    pub arp: Vec<(String, Known<(u32, u32)>)>,
    pub bpf_dir: PathBuf,
    pub bpffs: Known<()>,
    pub features: Vec<Feature>,
    pub btf: bool,
}

/// Something of the kernel that the programs use.
#[derive(Clone, Debug)]
pub struct Feature {
    pub name: &'static str,
    /// The first kernel that has it.
    pub since: &'static str,
    /// What takes its place; `None`: nothing can.
    pub instead: Option<&'static str>,
    pub found: Known<bool>,
}

#[derive(Clone, Debug)]
pub struct Interface {
    pub network: Network,
    pub name: String,
    /// The node's own address there.
    pub address: Ipv4Addr,
    /// `None`: there is no such interface.
    pub nic: Option<Nic>,
    pub has_address: bool,
    /// On an SCVM: how the programs would be attached, and why.
    pub planned: Known<(String, String)>,
    /// XDP and TC programs of others, in words.
    pub strangers: Known<Vec<String>>,
}

#[derive(Clone, Debug)]
pub struct Host {
    pub agent: Agent,
    pub interfaces: Vec<Interface>,
    pub service: Ipv4Addr,
    /// Our mark on routes.
    pub protocol: u8,
    /// Every /32 to the service address.
    pub routes: Known<Vec<Route>>,
    /// The next hops that the configuration knows.
    pub hops: Vec<Ipv4Addr>,
    /// The way to each SCVM, by each network that may carry NFS.
    pub paths: Vec<PathFound>,
    /// None: none is configured.
    pub hypervisor: Option<Hypervisor>,
}

/// What an SCVM's address suffers from, as seen from here now.
#[derive(Clone, Debug)]
pub struct PathFound {
    pub network: Network,
    pub scvm: String,
    pub address: Ipv4Addr,
    pub diagnosis: Known<Diagnosis>,
}

#[derive(Clone, Debug)]
pub struct MetaRole {
    pub agent: Agent,
    /// Addresses to listen on, and whether this node has them.
    pub listen: Vec<(SocketAddr, bool)>,
    /// What shows that this node is an SCVM.
    pub signs_of_scvm: Vec<String>,
    /// None: none is configured.
    pub fence_command: Option<Program>,
}
