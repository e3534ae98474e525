//! A lab as its owner holds it: start, break, heal, wait, read back. It ends when this is dropped, and when this
//! process ends, however it does.

mod agents;
mod writer;

pub use agents::sample;
pub use writer::{Gap, Report, Writer};

use crate::control::{self, Injected, ProcessStatus, Request, Spec, Status};
use crate::directory::Directory;
use crate::namespace::NetNs;
use crate::options::Options;
use crate::supervisor::Announcement;
use anyhow::{Context, bail};
use reroute_core::ids::BootNs;
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub struct Lab {
    directory: Directory,
    /// As seen from the outside: `/proc/PID/root` of the supervisor.
    outside: PathBuf,
    options: Options,
    /// None: somebody else's lab.
    owned: Option<Child>,
}

/// Polls until `check` gives a value. Errors: the deadline, with what `check` said last.
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    mut check: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("{what}: not within {:.1} s", within.as_secs_f32())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Finds a program built together with this one: beside it, or above `deps/` for a test.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dirs: Vec<&Path> = exe.ancestors().skip(1).take(2).collect();
    dirs.iter()
        .map(|d| d.join(name))
        .find(|p| p.is_file())
        .with_context(|| format!("{name} is not in {}: build it with `cargo xtask build`", dirs[0].display()))
}

/// Errors, in words for the user, without root.
pub fn require_root() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the lab makes network namespaces and loads eBPF programs: run this as root (sudo)");
    }
    Ok(())
}

impl Lab {
    /// Starts a lab that lives as long as the returned value: servers answer and agents run. Takes about a second. Errors: no root, an id in use, something missing or failing inside (with the ends of its logs).
    pub fn start(options: Options) -> anyhow::Result<Lab> {
        let mut child = spawn(&options, true)?;
        ready(&mut child)?;
        let mut lab = Lab::attach(&options.id)?;
        lab.owned = Some(child);
        Ok(lab)
    }

    /// Starts a lab that stays until `down`, and lets go of it.
    pub fn start_detached(options: &Options) -> anyhow::Result<Lab> {
        let mut child = spawn(options, false)?;
        ready(&mut child)?;
        Lab::attach(&options.id)
    }

    /// A lab that runs already.
    pub fn attach(id: &str) -> anyhow::Result<Lab> {
        let directory = Directory::of(id)?;
        if !directory.is_held() {
            bail!("no lab {id:?} is up: start it with `reroute-lab up --id {id}`");
        }
        let pid = control::supervisor_pid(&directory.socket())?;
        let status: Status = control::ask(&directory.socket(), &Request::Status)?;
        let inside = status.root.strip_prefix("/").unwrap_or(&status.root);
        let outside = PathBuf::from(format!("/proc/{pid}/root")).join(inside);
        Ok(Lab { directory, outside, options: status.options, owned: None })
    }

    pub fn id(&self) -> &str {
        &self.directory.id
    }
    pub fn options(&self) -> &Options {
        &self.options
    }
    /// The lab's file system as this process can open it.
    pub fn root(&self) -> &Path {
        &self.outside
    }
    /// The same as processes of the lab see it.
    pub fn root_inside(&self) -> PathBuf {
        self.directory.fs()
    }

    pub fn ask<T: DeserializeOwned>(&self, request: &Request) -> anyhow::Result<T> {
        control::ask(&self.directory.socket(), request)
    }
    pub fn status(&self) -> anyhow::Result<Status> {
        self.ask(&Request::Status)
    }

    /// Breaks something (see [`crate::faults::FAULTS`]). `target`: None takes the first node of the fault's kind.
    pub fn fault(&self, name: &str, target: Option<&str>) -> anyhow::Result<Injected> {
        self.ask(&Request::Fault { name: name.into(), target: target.map(Into::into) })
    }
    /// Mends everything that stands. Returns what was done.
    pub fn heal(&self) -> anyhow::Result<Vec<String>> {
        self.ask(&Request::Heal { name: None, target: None })
    }

    /// Starts a process in a node; `spec.name` is `node/what`.
    pub fn run(&self, spec: Spec) -> anyhow::Result<ProcessStatus> {
        self.ask(&Request::Run { spec })
    }
    /// Starts a process of the lab again that has ended (`scvm1/agent`).
    pub fn start_process(&self, process: &str) -> anyhow::Result<ProcessStatus> {
        self.start_process_with(process, &[])
    }
    /// The same, with more in its environment from now on.
    pub fn start_process_with(&self, process: &str, env: &[(&str, &str)]) -> anyhow::Result<ProcessStatus> {
        let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        self.ask(&Request::Start { process: process.into(), env })
    }
    /// Returns the time right before the signal went out.
    pub fn signal(&self, process: &str, signal: i32) -> anyhow::Result<BootNs> {
        self.ask(&Request::Signal { process: process.into(), signal })
    }
    /// Sends SIGTERM and waits for the end.
    pub fn stop_process(&self, process: &str, within: Duration) -> anyhow::Result<ProcessStatus> {
        self.signal(process, libc::SIGTERM)?;
        self.wait_process(process, within)
    }
    pub fn wait_process(&self, process: &str, within: Duration) -> anyhow::Result<ProcessStatus> {
        self.ask(&Request::Wait { process: process.into(), within_ms: within.as_millis() as u64 })
    }
    pub fn process(&self, name: &str) -> anyhow::Result<ProcessStatus> {
        let status = self.status()?;
        status.processes.into_iter().find(|p| p.name == name).with_context(|| format!("no process {name:?}"))
    }

    /// `/proc/PID/stat` of a process that runs, from its state on.
    pub fn process_stat(&self, name: &str) -> anyhow::Result<Vec<String>> {
        // Its pid in the lab, whose /proc is seen through the supervisor's root.
        let root = self.outside.ancestors().find(|p| p.ends_with("root")).context("/proc/PID/root")?;
        let path = root.join(format!("proc/{}/stat", self.process(name)?.pid));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let (_, rest) = text.rsplit_once(')').context("no name in it")?;
        Ok(rest.split_whitespace().map(str::to_string).collect())
    }

    /// A command to a controllable server, e.g. `stuck write on` (see `reroute-nfsd --help`).
    pub fn server(&self, node: &str, command: &str) -> anyhow::Result<serde_json::Value> {
        let socket = self.outside.join(node).join(crate::supervisor::servers::SERVER_SOCKET);
        control::ask_line(&socket, command, Duration::from_secs(5)).with_context(|| format!("{node}/server"))
    }

    /// What the controllable servers applied to their store, and what of it late (`reroute-nfsd applied`).
    pub fn applied(&self) -> anyhow::Result<serde_json::Value> {
        let store = self.outside.join("export");
        let out = Command::new(binary("reroute-nfsd")?).args(["applied", "--store"]).arg(store).output()?;
        serde_json::from_slice(&out.stdout)
            .with_context(|| format!("reroute-nfsd applied: {}", String::from_utf8_lossy(&out.stderr)))
    }

    /// Runs a command in a node's network namespace and the lab's mounts; gives its output.
    pub fn exec(&self, node: &str, command: &[&str]) -> anyhow::Result<Output> {
        Command::new(binary("reroute-lab")?)
            .args(["exec", "--id", self.id(), node, "--"])
            .args(command)
            .stdin(Stdio::null())
            .output()
            .context("cannot run reroute-lab exec")
    }

    /// A node's network namespace: what is run in it is in the node's network and nowhere else.
    pub fn namespace(&self, node: &str) -> anyhow::Result<NetNs> {
        let pid = control::supervisor_pid(&self.directory.socket())?;
        let nodes = self.status()?.nodes;
        let fd = nodes.get(node).with_context(|| format!("no node {node:?}"))?;
        Ok(NetNs::open(&format!("/proc/{pid}/fd/{fd}"))?)
    }

    /// Ends of all logs, for messages about failures.
    pub fn log_tails(&self) -> String {
        let Ok(status) = self.status() else { return "the lab has ended".into() };
        let mut text = String::new();
        for process in &status.processes {
            let log = process.log.strip_prefix(self.root_inside()).map(|p| self.outside.join(p));
            text.push_str(&log_tail(process, &log.unwrap_or_default()));
        }
        text
    }

    /// `error` with what the SCVMs' kernels count, and the ends of all logs.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let mut flows = String::new();
        for i in 1..=crate::topology::PAIRS {
            let node = crate::topology::Node::Scvm(i).to_string();
            if let Ok(out) = self.agent(&node, &["flows", "--output", "json"]) {
                flows += &format!("{node}: {}", String::from_utf8_lossy(&out.stdout));
            }
        }
        anyhow::anyhow!("{error:#}\n{flows}\n{}", self.log_tails())
    }

    /// Ends the lab, if it is ours. Dropping it does the same.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(mut child) = self.owned.take() {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }

    /// Ends a lab that was started by `up`. Returns when everything of it is gone.
    pub fn down(self, within: Duration) -> anyhow::Result<()> {
        let _: serde_json::Value = self.ask(&Request::Down)?;
        wait_for("the lab's end", within, || match self.directory.is_held() {
            true => bail!("it still runs"),
            false => Ok(()),
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(options: &Options, owned: bool) -> anyhow::Result<Child> {
    require_root()?;
    let mut command = Command::new(binary("reroute-lab")?);
    command.args(["supervise", "--options", &serde_json::to_string(options)?]).stdout(Stdio::piped());
    if owned {
        command.arg("--owned").stdin(Stdio::piped());
    } else {
        command.stdin(Stdio::null()).stderr(Stdio::null());
    }
    command.spawn().context("cannot start the supervisor")
}

fn ready(child: &mut Child) -> anyhow::Result<()> {
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    match serde_json::from_str(line.trim()) {
        Ok(Announcement::Ready) => Ok(()),
        Ok(Announcement::Failed(why)) => {
            let _ = child.wait();
            bail!("the lab did not start: {why}")
        }
        Err(_) => {
            let status = child.wait()?;
            bail!("the lab's supervisor ended at once ({status})")
        }
    }
}

/// The last lines of a log, with a heading; nothing for an empty one.
pub(crate) fn log_tail(process: &ProcessStatus, log: &Path) -> String {
    // What has ended says why in more than a line.
    let lines = if process.runs() { 6 } else { 20 };
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().filter(|l| !l.contains("Changing log level")).collect();
    if all.is_empty() {
        return String::new();
    }
    let state = match &process.exit {
        None => "runs".to_string(),
        Some(exit) => match (exit.code, exit.signal) {
            (Some(code), _) => format!("exited with {code}"),
            (None, signal) => format!("killed by signal {}", signal.unwrap_or_default()),
        },
    };
    let tail = &all[all.len().saturating_sub(lines)..];
    format!("\n--- {} ({state})\n{}\n", process.name, tail.join("\n"))
}
