//! Faults that take more than a signal or a link: power, a server's own doings, burdens, clocks, disks, a second station.

use super::Supervisor;
use super::servers::SERVER_SOCKET;
use crate::control::{Spec, ask_line};
use crate::faults::{DEAD, Load};
use crate::hypervisor;
use crate::namespace::NetNs;
use crate::topology::{self, HOST_PRIVATE, Node, PAIRS, SWITCH};
use crate::wall_clock::{self, Stepped};
use anyhow::{Context, bail};
use clap::ValueEnum;
use reroute_agent::clock;
use reroute_core::ids::BootNs;
use rustix::fs::statvfs;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const REAPED: Duration = Duration::from_secs(10);
const ANSWERS: Duration = Duration::from_secs(5);
/// Somebody may write while a file system is made as small as what is on it.
const TRIES: u32 = 50;
/// Of a node's directory: file systems of their own.
pub const DISKS: [&str; 2] = ["state", "log"];

/// What is needed to take a fault back, by fault and node.
pub type Undo = Mutex<BTreeMap<(String, String), Undone>>;

pub enum Undone {
    Clock(Stepped),
    /// Lives as long as this.
    Station {
        _ns: NetNs,
    },
    /// The number it had.
    Domain(u32),
}

fn number(node: &str) -> anyhow::Result<u32> {
    match Node::parse(node) {
        Some(Node::Scvm(i) | Node::Host(i)) => Ok(i),
        _ => bail!("{node} belongs to no pair"),
    }
}

impl Supervisor {
    fn undo(&self) -> MutexGuard<'_, BTreeMap<(String, String), Undone>> {
        self.undo.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn undo_with(&self, fault: &str, node: &str, how: Undone) {
        self.undo().insert((fault.into(), node.into()), how);
    }
    fn undone(&self, fault: &str, node: &str) -> Option<Undone> {
        self.undo().remove(&(fault.into(), node.into()))
    }

    pub(super) fn power_off(&self, fault: &str, node: &str, known: bool) -> anyhow::Result<BootNs> {
        let at = self.disturb(fault, node, DEAD)?;
        self.signal_all(node, Signal::STOP);
        let pair = number(node)?;
        if known && let Some(domain) = hypervisor::number(&self.root, pair)? {
            hypervisor::set(&self.root, pair, &[])?;
            self.undo_with(fault, node, Undone::Domain(domain));
        }
        Ok(at)
    }

    /// What ran there ends before a frame passes, and is not heard of again.
    pub(super) fn power_on(&self, fault: &str, node: &str) -> anyhow::Result<()> {
        let services: Vec<String> = ["server", "agent"].map(|what| format!("{node}/{what}")).into();
        let services: Vec<String> = services.into_iter().filter(|p| self.processes.spec(p).is_ok()).collect();
        for process in &services {
            // It may have ended already.
            let _ = self.processes.signal(process, Signal::KILL);
            self.processes.wait(process, REAPED)?;
        }
        if let Some(Undone::Domain(before)) = self.undone(fault, node) {
            hypervisor::set(&self.root, number(node)?, &[(before + 1, "r-----")])?;
        }
        self.thaw(fault, node);
        for process in &services {
            self.run(self.processes.spec(process)?)?;
        }
        Ok(())
    }

    pub(super) fn tell_server(&self, node: &str, commands: &[&str]) -> anyhow::Result<BootNs> {
        let socket = self.root.join(node).join(SERVER_SOCKET);
        let at = clock::now();
        for command in commands {
            let answer: Value =
                ask_line(&socket, command, ANSWERS).with_context(|| format!("{node}/server"))?;
            if let Some(error) = answer.get("error") {
                bail!("{node}/server: {error}");
            }
        }
        Ok(at)
    }

    /// One that has ended meanwhile has forgotten what it was told.
    pub(super) fn server_told(
        &self,
        node: &str,
        tell: impl FnOnce() -> anyhow::Result<BootNs>,
    ) -> anyhow::Result<String> {
        if self.processes.status(&format!("{node}/server"))?.runs() {
            tell()?;
        }
        Ok("it answers".into())
    }

    pub(super) fn wedge(&self, node: &str, on: &str) -> anyhow::Result<BootNs> {
        let host = Node::Host(number(node)?);
        let addresses: [Ipv4Addr; 3] = [host.storage(), host.management(), HOST_PRIVATE];
        let commands = addresses.map(|a| format!("wedge {a} {on}"));
        self.tell_server(node, &commands.each_ref().map(String::as_str))
    }

    fn load_process(fault: &str, node: &str, load: Load) -> anyhow::Result<(String, u32)> {
        // Packets come from another pair's host.
        let host = number(node)? % PAIRS + 1;
        let at = if load == Load::Packets { Node::Host(host).to_string() } else { node.to_string() };
        Ok((format!("{at}/{fault}"), host))
    }

    pub(super) fn load(&self, fault: &str, node: &str, load: Load) -> anyhow::Result<BootNs> {
        let (name, host) = Self::load_process(fault, node, load)?;
        let binary = std::env::current_exe()?.to_string_lossy().into_owned();
        let kind = load.to_possible_value().context("a burden without a name")?;
        let (host, scvm) = (host.to_string(), number(node)?.to_string());
        let argv =
            [binary.as_str(), "load", kind.get_name(), "--host", host.as_str(), "--scvm", scvm.as_str()];
        let at = clock::now();
        self.run(Spec::new(name, &argv))?;
        Ok(at)
    }

    pub(super) fn unload(&self, fault: &str, node: &str, load: Load) -> anyhow::Result<()> {
        let (name, _) = Self::load_process(fault, node, load)?;
        let _ = self.processes.signal(&name, Signal::KILL);
        self.processes.wait(&name, REAPED).map(|_| ())
    }

    pub(super) fn step_clock(&self, fault: &str, node: &str, seconds: i64) -> anyhow::Result<BootNs> {
        let agent = format!("{node}/agent");
        let (pid, handle) = (self.processes.status(&agent)?.pid, self.processes.handle(&agent)?);
        let at = clock::now();
        let stepped = wall_clock::step(pid, handle, seconds).with_context(|| agent.clone())?;
        self.undo_with(fault, node, Undone::Clock(stepped));
        Ok(at)
    }

    /// An agent that was started anew meanwhile has the right time.
    pub(super) fn step_clock_back(&self, fault: &str, node: &str) -> anyhow::Result<()> {
        let Some(Undone::Clock(stepped)) = self.undone(fault, node) else { return Ok(()) };
        let agent = self.processes.status(&format!("{node}/agent"))?;
        if agent.runs() && agent.pid == stepped.pid() { stepped.undo() } else { Ok(()) }
    }

    pub(super) fn fill_disk(&self, node: &str) -> anyhow::Result<BootNs> {
        let at = clock::now();
        for disk in DISKS {
            fill(&self.root.join(node).join(disk))?;
        }
        Ok(at)
    }

    pub(super) fn make_room(&self, node: &str) -> anyhow::Result<()> {
        for disk in DISKS {
            resize(&self.root.join(node).join(disk), "size=50%")?;
        }
        Ok(())
    }

    pub(super) fn impersonate(&self, fault: &str, node: &str, network: &str) -> anyhow::Result<BootNs> {
        let target = Node::parse(node).with_context(|| format!("no node {node:?}"))?;
        let (ns, address) = topology::second_station(self.namespace(SWITCH)?, target, network)?;
        let at = clock::now();
        topology::batch(&ns, &format!("address add {address}/24 dev {network}0\n"))?;
        self.undo_with(fault, node, Undone::Station { _ns: ns });
        Ok(at)
    }

    pub(super) fn send_away(&self, fault: &str, node: &str) -> anyhow::Result<()> {
        let target = Node::parse(node).with_context(|| format!("no node {node:?}"))?;
        topology::unplug_second_station(self.namespace(SWITCH)?, target)?;
        self.undone(fault, node);
        Ok(())
    }
}

/// Makes a tmpfs as small as what is on it.
fn fill(disk: &Path) -> anyhow::Result<()> {
    let mut tried = Ok(());
    for _ in 0..TRIES {
        let stat = statvfs(disk)?;
        let used = (stat.f_blocks - stat.f_bfree).max(1) * stat.f_frsize;
        tried = resize(disk, &format!("size={used}"));
        if tried.is_ok() {
            break;
        }
    }
    tried
}

fn resize(disk: &Path, size: &str) -> anyhow::Result<()> {
    mount_remount(disk, MountFlags::NOSUID | MountFlags::NODEV, size)
        .with_context(|| format!("cannot remount {} with {size}", disk.display()))
}
