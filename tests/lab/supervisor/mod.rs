//! The supervisor: owner of everything in a lab.
//!
//! Two processes. The outer one (`supervise`) makes a pid namespace and starts the inner one (`init`), which is pid 1
//! there and has its own mounts: when it ends, however it ends, the kernel kills every process of the lab, and with the
//! last of them go the namespaces, the tmpfs and the bpffs. The inner one ends when the outer one does
//! (PR_SET_PDEATHSIG), when its owner closes its standard input, on SIGTERM or SIGINT, or when asked to.
//!
//! Threads of the inner one: the main one waits for the end; one accepts control connections and starts one for each;
//! one per child reaps it; one watches standard input.

mod agents;
mod disturb;
pub mod esxi;
mod processes;
mod requests;
pub(crate) mod servers;
mod special;
mod strikes;

use crate::control::{Injected, Status};
use crate::directory::Directory;
use crate::namespace::NetNs;
use crate::options::Options;
use crate::sys;
use crate::topology::{self, Node};
use anyhow::{Context, bail};
use processes::Processes;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

/// First and only line on the supervisor's standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Announcement {
    Ready,
    /// It could not start, and nothing is left of it.
    Failed(String),
}

/// The outer process. Returns when the lab has ended; what went wrong has been announced.
pub fn supervise(options: &str, owned: bool) -> bool {
    // Ctrl-C is for the owner, whose end is then seen by the closed pipe.
    let _ = rustix::process::setsid();
    let ended = hold_and_run(options, owned);
    if let Err(error) = &ended {
        announce(&Announcement::Failed(format!("{error:#}")));
    }
    ended.is_ok_and(|status| status.success())
}

fn hold_and_run(options: &str, owned: bool) -> anyhow::Result<ExitStatus> {
    let parsed: Options = serde_json::from_str(options).context("--options")?;
    let directory = Directory::of(&parsed.id)?;
    let lock = directory.hold()?;
    let result = start_inner(options, owned, &directory);
    let removed = directory.remove().with_context(|| format!("cannot remove {}", directory.path.display()));
    drop(lock);
    removed.and(result)
}

fn start_inner(options: &str, owned: bool, directory: &Directory) -> anyhow::Result<ExitStatus> {
    sys::unshare(UnshareFlags::NEWPID).context("cannot make a pid namespace (needs root: CAP_SYS_ADMIN)")?;
    let mut inner = Command::new("/proc/self/exe")
        .arg0("reroute-lab")
        .args(["init", "--options", options])
        .args(owned.then_some("--owned"))
        .spawn()?;
    std::fs::write(directory.pid_file(), format!("{}\n", inner.id()))?;
    // A signal to this process is passed on: the inner one ends in order, then this one.
    let pid = rustix::process::Pid::from_child(&inner);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ended = std::pin::pin!(until_signalled());
        loop {
            tokio::select! {
                end = &mut ended => {
                    end?;
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                    return Ok(inner.wait()?);
                }
                () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {
                    if let Some(status) = inner.try_wait()? {
                        return Ok(status);
                    }
                }
            }
        }
    })
}

fn announce(what: &Announcement) {
    if let Ok(line) = serde_json::to_string(what) {
        // The owner may be gone, or have heard enough.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

async fn until_signalled() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {}, _ = hup.recv() => {} }
    Ok(())
}

/// The inner process: pid 1 of the lab. Returns when the lab ends; everything else in it dies with the return.
pub fn init(options: &str, owned: bool) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if std::process::id() != 1 {
        bail!("`init` is started by `supervise` alone");
    }
    let options: Options = serde_json::from_str(options).context("--options")?;
    // Before there are threads: all of them, and every child, live in it.
    sys::unshare(UnshareFlags::NEWNS).context("cannot make a mount namespace")?;
    let (end, ended) = mpsc::channel::<()>();
    // Signals and the owner's death count from the first moment.
    let by_signal = end.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let _ = runtime.block_on(until_signalled());
        let _ = by_signal.send(());
    })?;
    let by_owner = end.clone();
    if owned {
        std::thread::Builder::new().name("owner".into()).spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = by_owner.send(());
        })?;
    }
    let starting = end.clone();
    std::thread::Builder::new().name("start".into()).spawn(move || {
        match Supervisor::start(options, starting.clone()) {
            Ok(()) => announce(&Announcement::Ready),
            Err(error) => {
                announce(&Announcement::Failed(format!("{error:#}")));
                let _ = starting.send(());
            }
        }
    })?;
    let _ = ended.recv();
    Ok(())
}

pub struct Supervisor {
    options: Options,
    /// The lab's file system.
    root: PathBuf,
    nodes: BTreeMap<String, NetNs>,
    processes: Processes,
    faults: Mutex<Vec<Injected>>,
    disturbed: disturb::Standing,
    undo: special::Undo,
    /// XDP programs on the far ends of the SCVMs' links; they stay while these are open.
    _pass: Vec<OwnedFd>,
    end: mpsc::Sender<()>,
}

impl Supervisor {
    fn start(options: Options, end: mpsc::Sender<()>) -> anyhow::Result<()> {
        let directory = Directory::of(&options.id)?;
        let root = directory.fs();
        mount_file_systems(&root)?;
        let nodes = topology::build()?;
        let pass = attach_pass_programs(&nodes)?;
        let supervisor = Arc::new(Supervisor {
            options,
            root,
            nodes,
            processes: Processes::default(),
            faults: Mutex::default(),
            disturbed: disturb::Standing::default(),
            undo: special::Undo::default(),
            _pass: pass,
            end,
        });
        // Before the servers: a test that waits for a slow start can look inside.
        requests::listen(supervisor.clone(), &directory.socket())?;
        if supervisor.options.hypervisor {
            crate::hypervisor::install(&supervisor.root).context("the stand-in for xl")?;
        }
        let up = servers::start(&supervisor)
            .and_then(|()| esxi::start(&supervisor))
            .and_then(|()| if supervisor.options.agents { agents::start(&supervisor) } else { Ok(()) });
        up.map_err(|error| anyhow::anyhow!("{error:#}\n{}", supervisor.log_tails()))
    }

    fn faults(&self) -> MutexGuard<'_, Vec<Injected>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node_dir(&self, node: Node) -> PathBuf {
        self.root.join(node.to_string())
    }

    fn namespace(&self, node: &str) -> anyhow::Result<&NetNs> {
        self.nodes.get(node).with_context(|| {
            let names: Vec<_> = self.nodes.keys().map(String::as_str).collect();
            format!("no node {node:?}: there are {}", names.join(", "))
        })
    }

    fn status(&self) -> Status {
        Status {
            options: self.options.clone(),
            root: self.root.clone(),
            nodes: self.nodes.iter().map(|(name, ns)| (name.clone(), ns.fd())).collect(),
            processes: self.processes.list(),
            faults: self.faults().clone(),
        }
    }

    /// Last lines of every log that has any.
    fn log_tails(&self) -> String {
        let mut text = String::new();
        for process in self.processes.list() {
            text.push_str(&crate::handle::log_tail(&process, &process.log));
        }
        text
    }
}

/// The lab's own tmpfs, two more per node that can be filled, a bpffs per SCVM, and a /proc of this pid namespace.
fn mount_file_systems(root: &Path) -> anyhow::Result<()> {
    // What is mounted in here must not show outside.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .context("cannot make the mounts private")?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    mount("proc", "/proc", "proc", plain | MountFlags::NOEXEC, None).context("cannot mount /proc")?;
    mount("reroute-lab", root, "tmpfs", plain, None)
        .with_context(|| format!("cannot mount a tmpfs at {}", root.display()))?;
    std::fs::create_dir_all(root.join("export"))?;
    for node in Node::all() {
        let dir = root.join(node.to_string());
        for disk in special::DISKS {
            let disk = dir.join(disk);
            std::fs::create_dir_all(&disk)?;
            mount("reroute-lab", &disk, "tmpfs", plain, None)
                .with_context(|| format!("cannot mount a tmpfs at {}", disk.display()))?;
        }
        if let Node::Scvm(_) = node {
            let bpf = dir.join("bpf");
            std::fs::create_dir_all(&bpf)?;
            mount("bpf", &bpf, "bpf", plain, None).context("cannot mount a bpffs")?;
        }
    }
    Ok(())
}

fn attach_pass_programs(nodes: &BTreeMap<String, NetNs>) -> anyhow::Result<Vec<OwnedFd>> {
    let mut links = Vec::new();
    let mut attach = |node: &str, interface: String| -> anyhow::Result<()> {
        let link = nodes[node].run(|| -> anyhow::Result<OwnedFd> {
            let index = reroute_agent::config::interface_index(&interface).context("no such interface")?;
            Ok(sys::attach_xdp_pass(index)?)
        })?;
        links.push(link.with_context(|| format!("cannot attach XDP to {interface} in {node}"))?);
        Ok(())
    };
    for i in 1..=topology::PAIRS {
        attach(&Node::Host(i).to_string(), "nfs0".into())?;
        attach(topology::SWITCH, Node::Scvm(i).port("sto"))?;
        attach(topology::SWITCH, Node::Scvm(i).port("mgt"))?;
    }
    Ok(links)
}

/// A program built together with this one. Errors: it is not there.
fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let dirs: Vec<PathBuf> =
        std::env::current_exe()?.ancestors().skip(1).take(2).map(Path::to_path_buf).collect();
    dirs.iter()
        .map(|d| d.join(name))
        .find(|p| p.is_file())
        .with_context(|| format!("{name} is not in {}: build it with `cargo xtask build`", dirs[0].display()))
}
