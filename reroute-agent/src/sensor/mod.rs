//! The sensor: the programs in the kernel, and everything the SCVM's agent asks of them.
//!
//! Maps, programs' links and the timer live in one bpffs directory per SCVM, so that they outlive the agent: the
//! next one adopts them, counters and admission included, and swaps the programs without losing a packet. Admission
//! is never written from here: the `control` program does it, run on demand, atomically beside the packet path.

mod error;
mod events;
mod raw;

pub use error::SensorError;
pub use events::Events;

use crate::config::{AdmissionMode, Timing, XdpMode};
use reroute_common::admission::Word;
use reroute_common::flow::Flow;
use reroute_common::table::{Client, Config, Server};
use reroute_core::ids::{BootNs, Epoch, HostId, Incarnation, Network, ScvmId};
use std::net::{IpAddr, SocketAddrV4};
use std::path::PathBuf;

/// What the sensor is to watch, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A directory on a bpffs, for the pins of this SCVM alone; made if it is not there.
    pub bpf_dir: PathBuf,
    pub scvm: ScvmId,
    pub scvm_boot: u64,
    pub mode: AdmissionMode,
    pub service: SocketAddrV4,
    pub timing: Timing,
    pub interfaces: Vec<(Network, String)>,
    pub clients: Vec<Registration>,
    pub xdp: XdpMode,
}

/// A host that may become a client here.
#[derive(Clone, Debug)]
pub struct Registration {
    pub host: HostId,
    pub addresses: [(Network, IpAddr); 3],
    pub pulse_key: [u64; 2],
    pub has_agent: bool,
}

/// How one interface is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub network: Network,
    pub interface: String,
    /// `xdp native` or `xdp generic`.
    pub ingress: String,
    /// `tcx` or `clsact`.
    pub egress: String,
    /// Why these, and not better ones.
    pub reason: String,
}

/// What the kernel says of a client after a command: the word first, then the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub word: Word,
    /// Calls accepted and not answered (a packet being judged counts as one).
    pub in_progress: u32,
    /// Calls whose connection is gone or was lost sight of.
    pub orphans: u32,
    /// The word already stood beyond what was asked: nothing changed.
    pub stale: bool,
}

pub struct Sensor {
    attachments: Vec<Attachment>,
    adopted: bool,
}

#[allow(unused_variables)]
impl Sensor {
    /// Loads and attaches the programs, or adopts what is pinned in `bpf_dir`.
    pub fn start(settings: Settings) -> Result<Sensor, SensorError> {
        Err(SensorError::UnderConstruction)
    }
    /// Whether maps of an earlier agent were found and taken over.
    pub fn adopted(&self) -> bool {
        self.adopted
    }
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }
    /// Opens admission for `host` at `epoch`.
    pub fn admit(&self, host: HostId, epoch: Epoch) -> Result<Answer, SensorError> {
        Err(SensorError::UnderConstruction)
    }
    /// Shuts `host` out at `epoch`.
    pub fn fence(&self, host: HostId, epoch: Epoch) -> Result<Answer, SensorError> {
        Err(SensorError::UnderConstruction)
    }
    pub fn read(&self, host: HostId) -> Result<Answer, SensorError> {
        Err(SensorError::UnderConstruction)
    }
    /// Moves both session deadlines forward (never back).
    pub fn renew(
        &self,
        session_deadline: BootNs,
        session_deadline_no_agent: BootNs,
    ) -> Result<(), SensorError> {
        Err(SensorError::UnderConstruction)
    }
    /// A new server process serves, the old one is reaped: its calls in progress and orphans are forgotten.
    pub fn server_started(&self, incarnation: Incarnation) -> Result<(), SensorError> {
        Err(SensorError::UnderConstruction)
    }
    /// One of [`reroute_common::table::mode`].
    pub fn set_mode(&mut self, mode: u32) -> Result<(), SensorError> {
        Err(SensorError::UnderConstruction)
    }
    /// Bits of [`reroute_common::pulse::server`] that userspace decides.
    pub fn set_agent_state(&mut self, bits: u32) -> Result<(), SensorError> {
        Err(SensorError::UnderConstruction)
    }
    /// Says that userspace is alive.
    pub fn touch(&mut self, now: BootNs) -> Result<(), SensorError> {
        Err(SensorError::UnderConstruction)
    }
    /// Registered slots, and slot 0 (host 0), where everybody unregistered is counted.
    pub fn clients(&self) -> Result<Vec<Client>, SensorError> {
        Err(SensorError::UnderConstruction)
    }
    /// Lines in use, with their slots.
    pub fn flows(&self) -> Result<Vec<(u32, Flow)>, SensorError> {
        Err(SensorError::UnderConstruction)
    }
    pub fn server(&self) -> Result<Server, SensorError> {
        Err(SensorError::UnderConstruction)
    }
    pub fn config(&self) -> Result<Config, SensorError> {
        Err(SensorError::UnderConstruction)
    }
    pub fn host_of(&self, slot: u32) -> Option<HostId> {
        None
    }
    /// The kernel's events: once per sensor.
    pub fn events(&mut self) -> Result<Events, SensorError> {
        Err(SensorError::UnderConstruction)
    }
}
