//! The workspace: where it is, how it is built.

use anyhow::{Context, bail};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(1).map(Path::to_path_buf).unwrap_or_default()
}

pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

pub fn require_root(what: &str) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("{what} makes network namespaces and loads eBPF programs: run it as root (sudo)");
    }
    Ok(())
}

/// The agent and the lab's programs, as they ship.
pub fn build(quiet: bool) -> anyhow::Result<()> {
    let mut command = cargo(&["build", "--release", "--bins", "-p", "reroute-agent", "-p", "reroute-tests"]);
    if quiet {
        command.arg("--quiet");
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the build failed; if something is missing on this machine, run `cargo xtask setup`");
    }
    Ok(())
}

/// Becomes the lab's command line; returns only when it cannot.
pub fn exec_lab(args: &[String]) -> anyhow::Result<()> {
    let lab = target().join("release/reroute-lab");
    let error = Command::new(&lab).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", lab.display()))
}
