//! The sensor: the programs in the kernel, and everything the SCVM's agent asks of them.
//!
//! Maps, links and the timer live in one bpffs directory per SCVM, so that they outlive the agent: the next one
//! adopts them, counters and admission included, and swaps the programs without losing a packet. Admission is never
//! written from here: the `control` program does it, run on demand, atomically beside the packet path.

mod attach;
mod choice;
mod clsact;
mod error;
mod events;
mod load;
mod raw;
mod strangers;
mod tables;

pub use attach::survey;
pub use choice::{Choice, MultiBuffer, ONE_BUFFER_MTU};
pub use error::SensorError;
pub use events::Events;
pub use strangers::strangers;

use crate::config::{AdmissionMode, Timing, XdpMode};
use aya::Ebpf;
use aya::maps::RingBuf;
use aya::programs::{TestRun, TestRunOptions, Xdp};
use reroute_common::admission::Word;
use reroute_common::control::{Command, MAGIC, op, result};
use reroute_common::flow::Flow;
use reroute_common::table::{Client, Config, Server, mode, pin};
use reroute_core::ids::{BootNs, Epoch, HostId, Incarnation, Network, ScvmId};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// What the sensor is to watch, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A directory on a bpffs, for the pins of this SCVM alone; made if it is not there.
    pub bpf_dir: PathBuf,
    pub scvm: ScvmId,
    pub scvm_boot: u64,
    pub mode: AdmissionMode,
    pub service: SocketAddr,
    pub timing: Timing,
    pub interfaces: Vec<(Network, String)>,
    pub clients: Vec<Registration>,
    pub xdp: XdpMode,
}

/// A host that may become a client here.
#[derive(Clone, Debug)]
pub struct Registration {
    pub host: HostId,
    pub addresses: Vec<(Network, IpAddr)>,
    pub pulse_key: [u64; 2],
    pub has_agent: bool,
}

/// How one interface is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub network: Network,
    pub interface: String,
    pub index: u32,
    /// `None`: it has none of its own.
    pub driver: Option<String>,
    /// Bytes, when the programs were attached.
    pub mtu: u32,
    /// `xdp native`, `xdp generic` or `tc`.
    pub ingress: String,
    pub ingress_link: LinkKind,
    /// `tcx` or `clsact`.
    pub egress: String,
    pub egress_link: LinkKind,
    /// Whether frames of more than one buffer are seen whole.
    pub multi_buffer: MultiBuffer,
    /// Why these, and not others.
    pub reason: String,
}

/// What holds a program on an interface when no agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkKind {
    #[serde(rename = "bpf link, pinned")]
    BpfLink,
    #[serde(rename = "netlink filter")]
    NetlinkFilter,
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
    bpf: Ebpf,
    tables: tables::Tables,
    attachments: Vec<Attachment>,
    adopted: bool,
    events: Option<RingBuf<aya::maps::MapData>>,
}

impl Sensor {
    /// Loads and attaches the programs, or adopts what is pinned in `bpf_dir`: then counters, admission and
    /// attachments go on. A start that fails leaves a directory that was empty empty.
    pub fn start(settings: Settings) -> Result<Sensor, SensorError> {
        let dir = settings.bpf_dir.clone();
        std::fs::create_dir_all(&dir)
            .map_err(|source| SensorError::Directory { dir: dir.clone(), source })?;
        let adopted = load::adoptable(&dir)?;
        let started = Sensor::start_in(settings, adopted);
        if started.is_err() && !adopted {
            // The first error is the one to report.
            let _ = remove(&dir);
        }
        started
    }

    fn start_in(settings: Settings, adopted: bool) -> Result<Sensor, SensorError> {
        let mut bpf = load::load(&settings)?;
        load::start_log(&mut bpf)?;
        let events = RingBuf::try_from(load::take_map(&mut bpf, pin::EVENTS)?)
            .map_err(|source| SensorError::Map { name: pin::EVENTS, source })?;
        let mut tables = tables::Tables::open(&mut bpf)?;
        tables.configure(&settings)?;
        tables.register(&settings.clients)?;
        load::pin_programs(&mut bpf, &settings.bpf_dir)?;
        let mut sensor = Sensor { bpf, tables, attachments: vec![], adopted, events: Some(events) };
        // First: packets are stamped with its ticks.
        sensor.command(Command { op: op::START_TIMER, ..BLANK })?;
        sensor.attachments = attach::attach_all(&mut sensor.bpf, &settings)?;
        Ok(sensor)
    }

    /// Whether maps of an earlier agent were found and taken over.
    pub fn adopted(&self) -> bool {
        self.adopted
    }
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// Opens admission for `host` at `epoch`. Again at the same epoch is no error, unless that was closed since.
    pub fn admit(&self, host: HostId, epoch: Epoch) -> Result<Answer, SensorError> {
        self.ask(op::ADMIT, host, epoch)
    }
    /// Shuts `host` out at `epoch`.
    pub fn fence(&self, host: HostId, epoch: Epoch) -> Result<Answer, SensorError> {
        self.ask(op::FENCE, host, epoch)
    }
    pub fn read(&self, host: HostId) -> Result<Answer, SensorError> {
        self.ask(op::READ, host, Epoch(0))
    }
    /// Moves both session deadlines forward (never back).
    pub fn renew(
        &self,
        session_deadline: BootNs,
        session_deadline_no_agent: BootNs,
    ) -> Result<(), SensorError> {
        let value2 = session_deadline_no_agent.0;
        self.command(Command { op: op::RENEW, value: session_deadline.0, value2, ..BLANK }).map(drop)
    }
    /// Says which process serves. If another one did before, that one must be reaped by now: its calls in progress
    /// and all orphans are forgotten. The first incarnation ever named, and the same again, forget nothing.
    pub fn server_started(&self, incarnation: Incarnation) -> Result<(), SensorError> {
        self.command(Command { op: op::SERVER, value: incarnation.0, ..BLANK }).map(drop)
    }

    /// One of [`reroute_common::table::mode`].
    pub fn set_mode(&mut self, mode: u32) -> Result<(), SensorError> {
        if ![mode::SHADOW, mode::ENFORCE, mode::BYPASS].contains(&mode) {
            return Err(SensorError::Mode { mode });
        }
        self.tables.set_mode(mode);
        Ok(())
    }
    /// Bits of [`reroute_common::pulse::server`] that userspace decides.
    pub fn set_agent_state(&mut self, bits: u32) -> Result<(), SensorError> {
        self.tables.set_agent_state(bits);
        Ok(())
    }
    /// A call of `host` older than `ns` raises `unanswered`; 0: the configuration's limit.
    pub fn set_unanswered_limit(&self, host: HostId, ns: u64) -> Result<(), SensorError> {
        self.tables.set_unanswered_limit(host, ns)
    }
    /// Keeps `host` away until then, whatever its word says; 0: no longer. It outlives the agent, and ends by itself.
    pub fn set_block(&self, host: HostId, until: BootNs) -> Result<(), SensorError> {
        self.tables.set_block(host, until.0)
    }
    /// When a packet of each client was last let in, or answered, boot ns. Goes through all connections.
    pub fn last_packets(&self) -> std::collections::BTreeMap<HostId, BootNs> {
        self.tables.last_packets()
    }
    /// Says that userspace is alive.
    pub fn touch(&mut self, now: BootNs) -> Result<(), SensorError> {
        self.tables.touch(now.0);
        Ok(())
    }

    /// What admission and the limits need of each registered client: words, leases, calls in progress, latencies. What is
    /// counted per packet and call is here only as far as connections that have ended counted it: [`Sensor::clients`].
    pub fn logins(&self) -> Result<Vec<Client>, SensorError> {
        self.tables.logins()
    }
    /// Registered slots, after slot 0 (host 0), where everybody unregistered is counted. Goes through all connections.
    pub fn clients(&self) -> Result<Vec<Client>, SensorError> {
        self.tables.clients()
    }
    /// Lines in use, open and closed, with their slots.
    pub fn flows(&self) -> Result<Vec<(u32, Flow)>, SensorError> {
        Ok(self.tables.flows())
    }
    /// Whether a call of anybody waits for its reply, and when the last reply left for anybody, boot ns.
    pub fn waiting(&self) -> (bool, u64) {
        self.tables.waiting()
    }
    pub fn server(&self) -> Result<Server, SensorError> {
        self.tables.server()
    }
    pub fn config(&self) -> Result<Config, SensorError> {
        self.tables.config()
    }
    /// The host with this client slot.
    pub fn host_of(&self, slot: u32) -> Option<HostId> {
        self.tables.host(slot)
    }
    /// The kernel's events: once per sensor. Needs a tokio runtime.
    pub fn events(&mut self) -> Result<Events, SensorError> {
        Events::new(self.events.take().ok_or(SensorError::EventsTaken)?)
    }

    fn ask(&self, op: u32, host: HostId, epoch: Epoch) -> Result<Answer, SensorError> {
        let client = self.tables.slot(host)?;
        let answer = self.command(Command { op, client, epoch: epoch.0, ..BLANK })?;
        Ok(Answer {
            word: Word(answer.word),
            in_progress: answer.in_progress,
            orphans: answer.orphans,
            stale: answer.result == result::STALE,
        })
    }

    /// Runs the `control` program with `command` as its packet.
    fn command(&self, command: Command) -> Result<Command, SensorError> {
        let name = load::CONTROL;
        let failed = |source| SensorError::Program { name, source };
        let program: &Xdp =
            self.bpf.program(name).ok_or(SensorError::NoProgram { name })?.try_into().map_err(failed)?;
        let mut out = [0_u8; size_of::<Command>()];
        let options = TestRunOptions {
            data_in: Some(raw::bytes_of(&command)),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        };
        program.test_run(options).map_err(failed)?;
        let answer: Command = raw::from_bytes(&out).ok_or(SensorError::NoProgram { name })?;
        match answer.result {
            result::OK | result::STALE => Ok(answer),
            result => Err(SensorError::Refused { op: command.op, result }),
        }
    }
}

const BLANK: Command = Command {
    magic: MAGIC,
    op: op::READ,
    client: 0,
    result: 0,
    epoch: 0,
    value: 0,
    value2: 0,
    word: 0,
    in_progress: 0,
    orphans: 0,
};

/// The programs as built for the kernel (ELF), for those who run one of them by themselves.
pub fn object() -> &'static [u8] {
    load::OBJECT
}

/// Takes everything out of the kernel that `bpf_dir` holds there: programs, counters, admission.
pub fn remove(bpf_dir: &Path) -> Result<(), SensorError> {
    let failed = |source| SensorError::Directory { dir: bpf_dir.to_path_buf(), source };
    for entry in std::fs::read_dir(bpf_dir).map_err(failed)? {
        attach::take_away(&entry.map_err(failed)?.path())?;
    }
    Ok(())
}

/// Lets everything through an interface by XDP, as long as it lives: what the other end of a veth pair needs so that
/// a native program's replies arrive there.
pub struct Pass {
    _bpf: Ebpf,
}

/// Attaches [`Pass`] to `interface`, natively.
pub fn attach_pass(interface: &str) -> Result<Pass, SensorError> {
    let mut bpf = load::load_pass()?;
    load::xdp(&mut bpf, load::PASS)?
        .attach(interface, aya::programs::xdp::XdpMode::Driver)
        .map_err(|source| SensorError::Program { name: load::PASS, source })?;
    Ok(Pass { _bpf: bpf })
}
