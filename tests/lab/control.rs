//! The control socket: one JSON request per line, one JSON reply per line.

use crate::options::Options;
use anyhow::Context;
use reroute_core::ids::BootNs;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// -> [`Status`]
    Status,
    /// -> [`Injected`]
    Fault { name: String, target: Option<String> },
    /// Undoes what stands (or the one fault named, at the one target named). -> `Vec<String>`, what was done.
    Heal {
        name: Option<String>,
        #[serde(default)]
        target: Option<String>,
    },
    /// Starts a process in a node. -> [`ProcessStatus`]
    Run { spec: Spec },
    /// Starts a known process again that has ended. -> [`ProcessStatus`]
    Start {
        process: String,
        /// Added to its environment, from now on.
        #[serde(default)]
        env: BTreeMap<String, String>,
    },
    /// -> BootNs, just before the signal went out
    Signal { process: String, signal: i32 },
    /// Waits until the process has ended. -> [`ProcessStatus`]
    Wait { process: String, within_ms: u64 },
    /// Ends the lab. The reply comes first.
    Down,
}

/// A process of the lab.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// `node/what`, e.g. `scvm1/server`.
    pub name: String,
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Has its own /run and /var/lib/nfs (Ganesha, rpcbind, sshd).
    #[serde(default)]
    pub private_run: bool,
}

impl Spec {
    pub fn new(name: impl Into<String>, argv: &[&str]) -> Spec {
        Spec {
            name: name.into(),
            argv: argv.iter().map(|a| a.to_string()).collect(),
            env: BTreeMap::new(),
            private_run: false,
        }
    }
    pub fn node(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessStatus {
    pub name: String,
    /// In the lab's pid namespace.
    pub pid: u32,
    pub started: BootNs,
    /// None: it runs.
    pub exit: Option<Exit>,
    pub log: PathBuf,
}

impl ProcessStatus {
    pub fn runs(&self) -> bool {
        self.exit.is_none()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    pub at: BootNs,
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

/// A fault in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Injected {
    pub name: String,
    pub target: String,
    /// CLOCK_BOOTTIME right before the call that makes it true.
    pub at: BootNs,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub options: Options,
    /// The lab's file system, as seen from inside.
    pub root: PathBuf,
    /// Node name -> file descriptor of its network namespace in the supervisor.
    pub nodes: BTreeMap<String, i32>,
    pub processes: Vec<ProcessStatus>,
    pub faults: Vec<Injected>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Ok(serde_json::Value),
    Error(String),
}

/// Asks the supervisor behind `socket`. Errors: it does not answer, or it refuses (in its own words).
pub fn ask<T: DeserializeOwned>(socket: &Path, request: &Request) -> anyhow::Result<T> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("no lab answers at {}", socket.display()))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    if reply.is_empty() {
        anyhow::bail!("the lab ended while it was asked");
    }
    match serde_json::from_str(&reply)? {
        Reply::Ok(value) => Ok(serde_json::from_value(value)?),
        Reply::Error(error) => anyhow::bail!("{error}"),
    }
}

/// Sends one line to a Unix socket and reads one line of JSON.
pub(crate) fn ask_line<T: DeserializeOwned>(
    socket: &Path,
    command: &str,
    within: Duration,
) -> anyhow::Result<T> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("nobody listens at {}", socket.display()))?;
    stream.set_read_timeout(Some(within))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).with_context(|| format!("no answer to {command:?}"))?;
    serde_json::from_str(&line).with_context(|| format!("the answer to {command:?} was {:?}", line.trim()))
}

/// The supervisor's pid as seen from here: that of the socket's owner.
pub fn supervisor_pid(socket: &Path) -> anyhow::Result<u32> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("no lab answers at {}", socket.display()))?;
    let owner = rustix::net::sockopt::socket_peercred(&stream)?;
    Ok(owner.pid.as_raw_nonzero().get() as u32)
}
