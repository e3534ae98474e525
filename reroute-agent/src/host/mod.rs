//! The host role: I/O around [`reroute_core::host`].
//!
//! One real-time thread runs the machine, its pulses, its netlink and the link to Meta ([`driver`]). Disk writes go to
//! tokio's blocking pool and come back as inputs; operators and `/metrics` are on service's thread and ask by a queue.

mod driver;
mod effects;
pub mod hypervisor;
mod kernel;
mod metrics;
mod notes;
mod operator;
mod persist;
mod pulse;

pub use operator::{Adopted, PinWish, Pinned, Status};

use crate::cli::Refused;
use crate::config::{Config, ConfigError};
use crate::journal::Journal;
use crate::realtime;
use anyhow::Context;
use reroute_core::host::Settings;
use reroute_core::ids::{FencePolicy, SEC};
use tokio::signal::unix::{SignalKind, signal};

/// Runs until SIGTERM or SIGINT; the route stays as it is. Errors: another instance runs, the state on disk cannot be
/// read, an address or interface of the configuration is not there, no real-time rights.
pub fn run(config: Config) -> anyhow::Result<()> {
    let host = config.host()?.clone();
    let _lock = persist::Lock::take(&host.state_dir).map_err(refused)?;
    let parts = prepare(config)?;
    let thread = realtime::run("host", async move || {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        driver::run(parts, stop).await
    })?;
    match thread.join() {
        Ok(result) => result,
        Err(_) => anyhow::bail!("the host thread has panicked: see its message above"),
    }
}

fn prepare(config: Config) -> anyhow::Result<driver::Parts> {
    let host = config.host()?.clone();
    let node = config.cluster.host(host.id).context("checked with the section")?.clone();
    let record = persist::load(&host.state_dir, &config.cluster.id).map_err(refused)?;
    let boot = crate::clock::boot_id().context("cannot read this node's boot id")?;
    let notes = notes::load(&host.state_dir, &config.cluster.id, boot).map_err(refused)?;
    let journal = Journal::open(&host.state_dir, &node.name)
        .with_context(|| format!("cannot open the journal in {}", host.state_dir.display()))?;
    Ok(driver::Parts { settings: settings(&config)?, config, host, node, record, notes, boot, journal })
}

/// Nothing was touched: exit code 2.
fn refused(error: persist::StateError) -> Refused {
    Refused(error.to_string())
}

fn settings(config: &Config) -> Result<Settings, ConfigError> {
    let host = config.host()?;
    let ns = crate::config::ns;
    let t = &config.timing;
    Ok(Settings {
        host: host.id,
        local: config.cluster.host(host.id).map(|h| h.local_scvm).unwrap_or_default(),
        scvms: config.cluster.scvms.iter().map(|s| s.id).collect(),
        checked_by_storage: config
            .cluster
            .scvms
            .iter()
            .filter(|s| s.server.policy == FencePolicy::Storage)
            .map(|s| s.id)
            .collect(),
        pulse_ns: ns(t.pulse_ms),
        doubt_ns: ns(t.doubt_pulse_ms),
        standby_ns: ns(t.standby_pulse_ms),
        rest_ns: SEC,
        path_lost_ns: ns(t.path_lost_ms),
        first_mode: config.host()?.mode,
        hold_down_ns: ns(t.hold_down_ms),
        hold_down_max_ns: ns(t.hold_down_max_ms),
    })
}

#[cfg(test)]
mod tests;
