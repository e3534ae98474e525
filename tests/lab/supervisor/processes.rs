//! The processes of a lab: each in a node's network namespace, known by pidfd, reaped by a thread of its own.

use crate::control::{Exit, ProcessStatus, Spec};
use crate::namespace::NetNs;
use crate::sys;
use anyhow::{Context, bail};
use reroute_agent::clock;
use reroute_core::ids::BootNs;
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::UnshareFlags;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

#[derive(Default)]
pub struct Processes {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    table: Mutex<BTreeMap<String, Process>>,
    changed: Condvar,
}

struct Process {
    spec: Spec,
    status: ProcessStatus,
    handle: Arc<OwnedFd>,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Process>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Processes {
    /// Starts `spec` in `ns`. `root` is the lab's file system. Errors: one of that name runs; it cannot be started.
    pub fn start(&self, spec: Spec, ns: &NetNs, root: &Path) -> anyhow::Result<ProcessStatus> {
        if self.shared.table().get(&spec.name).is_some_and(|p| p.status.runs()) {
            bail!("{} runs already", spec.name);
        }
        let what = spec.name.split('/').nth(1).filter(|w| !w.is_empty());
        let what = what.with_context(|| format!("process name {:?} must be node/what", spec.name))?;
        let log = root.join(spec.node()).join("log").join(format!("{what}.log"));
        // One thread for the life of the child: what asks to die with the thread that started it lives until it ends.
        let (started, start) = mpsc::channel();
        let (shared, name, argv) = (self.shared.clone(), spec.name.clone(), spec.argv.join(" "));
        let (ns, root) = (ns.try_clone()?, root.to_path_buf());
        std::thread::Builder::new().name("reaper".into()).spawn(move || {
            let child = ns.enter().map_err(Into::into).and_then(|()| enlist(&shared, spec, &root, log));
            match child {
                Ok((child, status)) => {
                    let name = status.name.clone();
                    let _ = started.send(Ok(status));
                    reap(&shared, &name, child);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        start.recv()?.with_context(|| format!("cannot start {name} ({argv})"))
    }

    /// What `name` was started with. Errors: never started.
    pub fn spec(&self, name: &str) -> anyhow::Result<Spec> {
        self.with(name, |p| p.spec.clone())
    }

    pub fn status(&self, name: &str) -> anyhow::Result<ProcessStatus> {
        self.with(name, |p| p.status.clone())
    }

    pub fn list(&self) -> Vec<ProcessStatus> {
        self.shared.table().values().map(|p| p.status.clone()).collect()
    }

    /// By this the very process that runs now is meant, even after its pid has gone to another.
    pub fn handle(&self, name: &str) -> anyhow::Result<Arc<OwnedFd>> {
        self.with(name, |p| p.handle.clone())
    }

    /// Returns the time right before the signal went out. Errors: it does not run.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<BootNs> {
        let handle = self.handle(name)?;
        let at = clock::now();
        pidfd_send_signal(&*handle, signal).with_context(|| format!("{name} does not run"))?;
        Ok(at)
    }

    /// Waits until `name` has ended.
    pub fn wait(&self, name: &str, within: Duration) -> anyhow::Result<ProcessStatus> {
        let deadline = Instant::now() + within;
        let mut table = self.shared.table();
        loop {
            match table.get(name) {
                None => bail!("no process {name:?} was ever started"),
                Some(p) if !p.status.runs() => return Ok(p.status.clone()),
                Some(_) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{name} still runs after {} s", within.as_secs_f32());
            }
            table = self.shared.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn with<T>(&self, name: &str, read: impl FnOnce(&Process) -> T) -> anyhow::Result<T> {
        let table = self.shared.table();
        match table.get(name) {
            Some(process) => Ok(read(process)),
            None => {
                let names: Vec<_> = table.keys().map(String::as_str).collect();
                bail!("no process {name:?}: there are {}", names.join(", "))
            }
        }
    }
}

/// Starts the child and puts it into the table.
fn enlist(shared: &Shared, spec: Spec, root: &Path, log: PathBuf) -> anyhow::Result<(Child, ProcessStatus)> {
    let child = spawn(&spec, root, &log)?;
    let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).context("pidfd_open")?;
    let status =
        ProcessStatus { name: spec.name.clone(), pid: child.id(), started: clock::now(), exit: None, log };
    let process = Process { spec, status: status.clone(), handle: Arc::new(handle) };
    shared.table().insert(status.name.clone(), process);
    Ok((child, status))
}

fn reap(shared: &Shared, name: &str, mut child: Child) {
    let status = child.wait();
    let at = clock::now();
    if let Some(process) = shared.table().get_mut(name).filter(|p| p.status.pid == child.id()) {
        let status = status.ok();
        process.status.exit =
            Some(Exit { at, code: status.and_then(|s| s.code()), signal: status.and_then(|s| s.signal()) });
    }
    shared.changed.notify_all();
}

/// Runs on a thread that is in the node's network namespace; what it unshares here is the child's (and the thread's) alone.
fn spawn(spec: &Spec, root: &Path, log: &Path) -> anyhow::Result<Child> {
    let [program, arguments @ ..] = spec.argv.as_slice() else { bail!("no command") };
    // Before the mounts change: the node's log directory is one.
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    if spec.private_run {
        private_run(root, spec.node()).context("cannot give it a /run of its own")?;
    }
    Ok(Command::new(program)
        .args(arguments)
        .envs(&spec.env)
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?)
}

/// Puts the node's own directories at /run and /var/lib/nfs for this thread; the lab's file system stays where it is.
fn private_run(root: &Path, node: &str) -> anyhow::Result<()> {
    sys::unshare(UnshareFlags::NEWNS)?;
    let run = root.join(node).join("run");
    for dir in ["ganesha", "rpcbind", "lock", "sshd"] {
        std::fs::create_dir_all(run.join(dir))?;
    }
    let inside = run.join(root.strip_prefix("/run").unwrap_or(Path::new("reroute-lab")));
    std::fs::create_dir_all(&inside)?;
    mount_bind(root, &inside)?;
    mount_bind_recursive(&run, "/run")?;
    if Path::new("/var/lib/nfs").is_dir() {
        mount("reroute-lab", "/var/lib/nfs", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)?;
        std::fs::create_dir_all("/var/lib/nfs/ganesha")?;
    }
    Ok(())
}
