//! `reroute-writer` in a host of the lab, driven by its control socket.

use super::{Lab, binary, wait_for};
use crate::control::{ProcessStatus, Spec, ask_line};
use crate::options::ServerKind;
use crate::topology::{NFS_PORT, Node, SERVICE};
use anyhow::{Context, bail};
use reroute_core::ids::BootNs;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::time::Duration;

pub struct Writer<'a> {
    lab: &'a Lab,
    name: String,
    socket: PathBuf,
}

/// The longest time without a completed sync write that touches a window. Times in CLOCK_BOOTTIME ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Gap {
    pub longest_gap_ns: u64,
    pub from: u64,
    pub to: u64,
    /// Completions inside the window.
    pub completed: u64,
}

/// Counts of a writer: so far, or at its end. Every block was read back from the exported directory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Report {
    /// Acknowledged writes.
    pub completed: u64,
    /// Acknowledged, and not there.
    pub lost_writes: u64,
    /// Overwritten by something older.
    pub stale_writes: u64,
    /// READs that gave something else than what had been acknowledged.
    #[serde(default)]
    pub bad_reads: u64,
    /// Connections after the first one.
    #[serde(default)]
    pub reconnects: u64,
    pub longest_gap_ns: u64,
    /// With `--metadata`.
    #[serde(default)]
    pub metadata: Option<serde_json::Value>,
    /// What was found where, in the writer's words.
    #[serde(default)]
    pub findings: Vec<serde_json::Value>,
}

impl Report {
    /// Names that are missing, or there against an acknowledgement.
    pub fn metadata_damage(&self) -> u64 {
        self.metadata.as_ref().and_then(|m| m["damage"].as_u64()).unwrap_or_default()
    }
}

impl Lab {
    /// Starts a writer on host `host`; `id` tells writers of one lab apart. Returns when it has completed writes.
    pub fn writer(&self, host: u32, id: u64, extra: &[&str]) -> anyhow::Result<Writer<'_>> {
        let node = Node::Host(host).to_string();
        let what = format!("writer{id}");
        let inside = self.root_inside();
        let socket = format!("{node}/{what}.sock");
        let mount_port = match self.options().server {
            ServerKind::Ganesha => 20048,
            ServerKind::Controllable => NFS_PORT,
        };
        let export = inside.join("export");
        let url = format!(
            "nfs://{SERVICE}{}?version=3&nfsport={NFS_PORT}&mountport={mount_port}",
            export.display()
        );
        let argv = [
            binary("reroute-writer")?.to_string_lossy().into_owned(),
            "--url".into(),
            url,
            "--backing".into(),
            export.to_string_lossy().into_owned(),
            "--id".into(),
            id.to_string(),
            "--control".into(),
            inside.join(&socket).to_string_lossy().into_owned(),
        ];
        let argv = argv.into_iter().chain(extra.iter().map(|a| a.to_string())).collect();
        let name = format!("{node}/{what}");
        self.run(Spec { argv, ..Spec::new(&name, &[]) })?;
        let writer = Writer { lab: self, name, socket: self.root().join(socket) };
        wait_for("the writer's first writes", Duration::from_secs(35), || {
            writer.still_runs()?;
            match writer.gap(BootNs(0), None)?.completed {
                0 => bail!("none completed yet"),
                _ => Ok(()),
            }
        })
        .map_err(|e| self.explain(e))?;
        Ok(writer)
    }
}

impl Writer<'_> {
    pub fn name(&self) -> &str {
        &self.name
    }

    fn still_runs(&self) -> anyhow::Result<()> {
        match self.lab.process(&self.name)?.exit {
            None => Ok(()),
            Some(exit) => bail!("{} has ended: {exit:?}", self.name),
        }
    }

    /// One command, one line of JSON.
    pub fn ask<T: DeserializeOwned>(&self, command: &str, within: Duration) -> anyhow::Result<T> {
        ask_line(&self.socket, command, within).with_context(|| self.name.clone())
    }

    /// Longest gap that touches the window; `to`: None is now.
    pub fn gap(&self, from: BootNs, to: Option<BootNs>) -> anyhow::Result<Gap> {
        let to = to.map_or(0, |t| t.0);
        self.ask(&format!("gap {} {to}", from.0), Duration::from_secs(5))
    }

    /// Counts so far, every block checked.
    pub fn snapshot(&self) -> anyhow::Result<Report> {
        self.ask("snapshot", Duration::from_secs(30))
    }

    /// Waits until `count` writes were completed after `from`.
    pub fn wait_writes(&self, from: BootNs, count: u64, within: Duration) -> anyhow::Result<()> {
        wait_for("writes", within, || {
            let completed = self.gap(from, None)?.completed;
            if completed < count {
                bail!("{completed} of {count} completed");
            }
            Ok(())
        })
        .map_err(|e| self.lab.explain(e))
    }

    /// Drains, verifies, ends. Returns its result.
    pub fn stop(self) -> anyhow::Result<Report> {
        let result: Report = self.ask("stop", Duration::from_secs(90))?;
        let ended: ProcessStatus = self.lab.wait_process(&self.name, Duration::from_secs(10))?;
        match ended.exit.and_then(|e| e.code) {
            Some(0 | 1) => Ok(result),
            code => bail!("{} ended with {code:?}: {}", self.name, self.lab.log_tails()),
        }
    }
}
