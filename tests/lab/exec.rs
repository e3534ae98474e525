//! `reroute-lab exec`: a command in a node, with this terminal.

use crate::control::{self, Request, Status};
use crate::directory::Directory;
use crate::namespace::NetNs;
use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

/// Runs `command` in the node's network namespace and the lab's mounts and pid namespace: it ends with the lab.
/// Returns its exit code (128 + signal if a signal ended it). Call it with no other thread around.
pub fn run(id: &str, node: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    crate::handle::require_root()?;
    let directory = Directory::of(id)?;
    if !directory.is_held() {
        bail!("no lab {id:?} is up: start it with `reroute-lab up --id {id}`");
    }
    let [program, arguments @ ..] = command else { bail!("no command") };
    let status: Status = control::ask(&directory.socket(), &Request::Status)?;
    let pid = control::supervisor_pid(&directory.socket())?;
    let fd = status.nodes.get(node).with_context(|| {
        let names: Vec<_> = status.nodes.keys().map(String::as_str).collect();
        format!("no node {node:?}: there are {}", names.join(", "))
    })?;
    let mounts = File::open(format!("/proc/{pid}/ns/mnt"))?;
    let pids = File::open(format!("/proc/{pid}/ns/pid"))?;
    let network = NetNs::open(&format!("/proc/{pid}/fd/{fd}"))?;
    let here = std::env::current_dir().ok();

    network.enter()?;
    move_into_link_name_space(pids.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    crate::sys::unshare(UnshareFlags::FS)?;
    move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
    if let Some(here) = here {
        // The same place as before, where it is to be seen from inside.
        let _ = std::env::set_current_dir(here);
    }
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("reroute-lab exec: {program}: {error}");
            return Ok(ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }));
        }
    };
    // Ctrl-C goes to the whole foreground group; the command decides what it means.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _ignored = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        (signal(SignalKind::interrupt()), signal(SignalKind::quit()))
    });
    let ended = child.wait()?;
    let code = ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or_default());
    Ok(ExitCode::from(code as u8))
}
