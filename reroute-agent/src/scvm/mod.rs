//! Role `scvm`: watches, admits and fences the NFS clients of one storage VM.
//!
//! | thread | runs |
//! |---|---|
//! | `scvm` (real time) | sensor, machine, link to Meta, server process, timers: [`driver`] |
//! | `epoch-file` (real time) | writes the epoch file |
//! | `journal` | appends the journal |
//! | `service` | operators' socket and `/metrics`, from snapshots: [`operator`], [`metrics`] |
//! | `esxi` | the next hops of ESXi hosts, when Meta appoints this SCVM: [`crate::esxi`] |
//!
//! All inputs to the machine go through one unbounded queue on one thread; what fills it is bounded: one result per
//! effect, orders that Meta bounds, and transitions that the kernel counts as lost when its ring is full.

mod driver;
mod effects;
mod epoch_file;
mod facts;
pub mod latency;
pub(crate) mod listener;
mod metrics;
mod null_rpc;
mod operator;
mod pidfd;
mod probes;
mod readings;
pub mod report;
mod run_delay;
pub(crate) mod server_process;
mod tickle;

use crate::config::{AdmissionMode, Config, ns};
use crate::journal::Journal;
use crate::sensor::{Registration, Sensor};
use crate::{clock, keys, realtime, sensor};
use anyhow::{Context, bail};
use reroute_core::ids::{Incarnation, ScvmId};
use reroute_core::scvm::{Mode, Settings};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Runs until SIGTERM or SIGINT; routes, admission and pins stay as they are.
///
/// Errors: another instance has the pins; the state directory, the programs or the sockets cannot be had.
pub fn run(config: Config) -> anyhow::Result<()> {
    let scvm = config.scvm()?.clone();
    let entry = config.cluster.scvm(scvm.id).context("this SCVM is not in [[cluster.scvms]]")?.clone();
    check_bpffs(&scvm.bpf_dir)?;
    let _lock = lock(&scvm.bpf_dir)?;
    let bypass_file = BypassFile::at(scvm.state_dir.join("bypass"));
    let bypass = read_bypass(&bypass_file.path)?;
    let journal = Journal::open(&scvm.state_dir, &entry.name)
        .with_context(|| format!("cannot write a journal in {}", scvm.state_dir.display()))?;
    let incarnation = clock::new_incarnation();
    let sensor = Sensor::start(sensor_settings(&config, scvm.id)?).context("cannot start the sensor")?;
    let timing = config.timing;
    let settings = Settings {
        id: scvm.id,
        boot: Incarnation(clock::boot_id().context("cannot read the boot id")?),
        policy: entry.server.policy,
        mode: match scvm.mode {
            AdmissionMode::Enforce => Mode::Enforce,
            AdmissionMode::Shadow => Mode::Shadow,
        },
        bypass,
        keepalive_ns: ns(timing.keepalive_ms),
        session_ns: ns(timing.session_ms),
        session_no_agent_ns: ns(timing.session_no_agent_ms),
        affirm_ns: ns(config.timing.affirm_ms),
        silent_ns: ns(timing.silent_ms),
        drain_ns: ns(timing.drain_ms),
        planned_drain_ns: ns(timing.planned_drain_ms),
        null_rpc_ns: ns(timing.null_rpc_ms),
    };
    let start = driver::Start { config, scvm, entry, settings, sensor, journal, bypass_file, incarnation };
    let thread = realtime::run("scvm", async move || driver::run(start).await)?;
    match thread.join() {
        Ok(result) => result,
        Err(_) => bail!("the scvm thread has panicked"),
    }
}

/// The pins must be on a bpffs: looked at before anything is made.
pub(crate) fn check_bpffs(bpf_dir: &Path) -> anyhow::Result<()> {
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    let there = bpf_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let found = rustix::fs::statfs(there).with_context(|| format!("cannot look at {}", there.display()))?;
    if found.f_type as u64 != BPF_FS_MAGIC {
        let dir = bpf_dir.display();
        bail!(
            "[scvm] bpf_dir {dir} is not on a bpffs: mount one above it (`mount -t bpf bpf DIR`), or correct it"
        );
    }
    Ok(())
}

/// One instance per directory of pins: the lock is on the directory itself, and ends with the process.
fn lock(bpf_dir: &Path) -> anyhow::Result<OwnedFd> {
    use rustix::fs::{FlockOperation, Mode, OFlags};
    let shown = bpf_dir.display();
    std::fs::create_dir_all(bpf_dir).with_context(|| {
        format!("cannot make {shown}: is a bpffs mounted there (`mount -t bpf bpf ...`)?")
    })?;
    let fd = rustix::fs::open(bpf_dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("cannot open {shown}"))?;
    rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another instance works in {shown}: stop it first"))?;
    Ok(fd)
}

fn sensor_settings(config: &Config, id: ScvmId) -> anyhow::Result<sensor::Settings> {
    let scvm = config.scvm()?;
    let clients = config.cluster.clients_at(id).into_iter().map(|client| Registration {
        host: client.id,
        addresses: client.addresses.into_iter().map(|(network, at)| (network, at.into())).collect(),
        pulse_key: keys::pulse_key(&config.key, client.id, id),
        has_agent: client.has_agent,
    });
    Ok(sensor::Settings {
        bpf_dir: scvm.bpf_dir.clone(),
        scvm: id,
        scvm_boot: clock::boot_id().context("cannot read the boot id")?,
        mode: scvm.mode,
        service: SocketAddr::from((config.cluster.service_address, config.cluster.service_port)),
        timing: config.timing,
        interfaces: scvm.interfaces.each().map(|(network, name)| (network, name.to_string())).to_vec(),
        clients: clients.collect(),
        xdp: scvm.xdp,
    })
}

/// Whether an operator's suspension stands from before. Errors: the file is there, but says neither on nor off.
fn read_bypass(file: &Path) -> anyhow::Result<bool> {
    match std::fs::read_to_string(file) {
        Ok(text) => match text.trim() {
            "on" => Ok(true),
            "off" => Ok(false),
            other => bail!("{} says {other:?}, not `on` or `off`: correct or remove it", file.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Keeps an operator's decision over a crash of the node too. Disks may be slow, so each write has a thread of its own;
/// whatever order they come to it in, the last decision stands.
struct BypassFile {
    path: PathBuf,
    decisions: u64,
    written: Arc<Mutex<u64>>,
}

impl BypassFile {
    fn at(path: PathBuf) -> BypassFile {
        BypassFile { path, decisions: 0, written: Arc::default() }
    }

    /// Writes this decision, unless a later one has been written by then.
    fn writer(&mut self, on: bool) -> impl FnOnce() -> std::io::Result<()> + Send + use<> {
        self.decisions += 1;
        let (decision, written, path) = (self.decisions, self.written.clone(), self.path.clone());
        move || {
            let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
            if *written < decision {
                write_bypass(&path, on)?;
                *written = decision;
            }
            Ok(())
        }
    }
}

fn write_bypass(file: &Path, on: bool) -> std::io::Result<()> {
    use std::io::Write;
    let temporary = file.with_extension("new");
    let mut new = std::fs::File::create(&temporary)?;
    new.write_all(if on { b"on\n" } else { b"off\n" })?;
    new.sync_all()?;
    std::fs::rename(&temporary, file)?;
    file.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("reroute-scvm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn one_instance_per_directory() {
        let dir = dir("lock");
        let first = lock(&dir).unwrap();
        let error = format!("{:#}", lock(&dir).unwrap_err());
        assert!(error.contains("another instance"), "{error}");
        drop(first);
        lock(&dir).unwrap();
    }

    #[test]
    fn pins_elsewhere_than_on_a_bpffs_are_refused() {
        let dir = dir("nobpf").join("s1");
        let error = check_bpffs(&dir).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf"), "{error}");
        assert!(!dir.exists(), "nothing was made");
    }

    #[test]
    fn bypass_survives_and_rubbish_is_refused() {
        let file = dir("bypass").join("bypass");
        let _ = std::fs::remove_file(&file);
        assert!(!read_bypass(&file).unwrap());
        write_bypass(&file, true).unwrap();
        assert!(read_bypass(&file).unwrap());
        write_bypass(&file, false).unwrap();
        assert!(!read_bypass(&file).unwrap());
        std::fs::write(&file, "maybe").unwrap();
        assert!(format!("{:#}", read_bypass(&file).unwrap_err()).contains("correct or remove"));
    }

    /// Switched on and off again while the disk was slow: what was written first must not stand.
    #[test]
    fn the_last_decision_stands_in_whatever_order_they_are_written() {
        let dir = dir("bypass-order");
        let mut file = BypassFile::at(dir.join("bypass"));
        let (on, off) = (file.writer(true), file.writer(false));
        off().unwrap();
        on().unwrap();
        assert!(!read_bypass(&file.path).unwrap());
        // One that failed is no decision: the machine asks again.
        std::fs::create_dir(dir.join("bypass.new")).unwrap();
        assert!(file.writer(true)().is_err());
        std::fs::remove_dir(dir.join("bypass.new")).unwrap();
        file.writer(true)().unwrap();
        assert!(read_bypass(&file.path).unwrap());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
