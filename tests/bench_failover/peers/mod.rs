//! The peers: in the same lab without our agents, moving host1's route in their own way. Nobody fences anything there.
//!
//! Each trial has a writer of its own and begins with the route at home, so that one that never recovered leaves nothing
//! to the next.

pub mod keepalived;
pub mod legacy;

use crate::cases::{Strike, System};
use crate::plan::{Outcome, Turn};
use crate::trial::{Trial, WRITER, Watched, ms_since, watch};
use anyhow::{Context, bail};
use lab::control::Spec;
use lab::options::ServerKind;
use lab::topology::{Node, SERVICE};
use lab::{Lab, Writer, wait_for};
use reroute_agent::clock;
use reroute_core::ids::BootNs;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
const WRITES: u64 = 200;

pub trait Peer {
    fn system(&self) -> System;
    /// Everybody well, the route at home, and it decides from now on.
    fn begin(&self, lab: &Lab) -> anyhow::Result<()>;
    /// When it first acted on something since `at`.
    fn acted(&self, lab: &Lab, at: BootNs) -> anyhow::Result<Option<BootNs>>;
    /// What an operator does who wants host1 at scvm2.
    fn planned(&self, lab: &Lab) -> anyhow::Result<()>;
    /// All is healed: the route goes home, by its own means or by hand.
    fn end(&self, lab: &Lab) -> anyhow::Result<()>;
    /// How long its clockwork takes to come round: trials strike at different times of it.
    fn round(&self) -> Duration;
}

/// Runs the trials of a case.
pub fn run(turn: &Turn<'_>, server: ServerKind) -> anyhow::Result<Outcome> {
    turn.phase("starting 3 hosts, 3 SCVMs");
    let lab = Lab::start(turn.case.lab("peer", server)?.without_agents())?;
    let peer: Box<dyn Peer> = match turn.system {
        System::Keepalived => Box::new(keepalived::Keepalived::install(&lab)?),
        System::Legacy | System::Reroute => Box::new(legacy::Legacy::install(&lab)?),
    };
    let explained = |error: anyhow::Error| anyhow::anyhow!("{error:#}\n{}", lab.log_tails());
    Ok(turn.trials(|nth| trial(&lab, peer.as_ref(), turn, nth).map_err(explained)))
}

fn trial(lab: &Lab, peer: &dyn Peer, turn: &Turn<'_>, nth: usize) -> anyhow::Result<Trial> {
    lab.heal()?;
    peer.begin(lab)?;
    let writer = lab.writer(1, 1 + nth as u64, WRITER)?;
    writer.wait_writes(clock::now(), WRITES, SOON)?;
    // Spread evenly over its round, whatever the number of trials.
    std::thread::sleep(peer.round().mul_f64((nth as f64 + 0.5) / turn.trials.max(1) as f64));
    if !is_home(lab)? {
        bail!("the route has left home before anything was struck");
    }
    turn.phase("struck");
    let cut_off = peer.system().cut_off();
    let (at, watched) = match turn.case.strike {
        Strike::Fault(name) => {
            let at = lab.fault(name, None)?.at;
            (at, watch(&writer, at, cut_off, || Ok(true))?)
        }
        Strike::Planned => {
            let at = clock::now();
            peer.planned(lab)?;
            (at, watch(&writer, at, cut_off, || Ok(!is_home(lab)?))?)
        }
        Strike::Return(name) => {
            let away = lab.fault(name, None)?.at;
            let left = watch(&writer, away, cut_off, || Ok(!is_home(lab)?))?;
            let at = clock::now();
            lab.heal()?;
            let back = watch(&writer, at, peer.system().return_cut_off(), || is_home(lab))?;
            (at, Watched { recovered: left.recovered && back.recovered, ..back })
        }
    };
    let acted = peer.acted(lab, at)?;
    lab.heal()?;
    peer.end(lab)?;
    let (lost_writes, stale_writes) = damage(lab, writer)?;
    Ok(Trial {
        gap_ms: watched.gap_ms,
        recovered: watched.recovered,
        detect_ms: acted.map(|acted| ms_since(at, acted)),
        lost_writes,
        stale_writes,
        ..Trial::default()
    })
}

/// What is lost or stale when all is well again: a connection that still waits for a retransmission is reset first.
fn damage(lab: &Lab, writer: Writer<'_>) -> anyhow::Result<(u64, u64)> {
    run_on_host(lab, &["ss", "-K", "dst", &SERVICE.to_string()])?;
    let healed = clock::now();
    writer.wait_writes(healed, WRITES, SOON)?;
    let result = writer.stop()?;
    Ok((result.lost_writes, result.stale_writes))
}

fn home_hop() -> String {
    Node::Scvm(1).storage().to_string()
}

fn is_home(lab: &Lab) -> anyhow::Result<bool> {
    Ok(lab.next_hop(1)?.as_deref() == Some(&home_hop()))
}

/// By hand, whatever was there.
fn home(lab: &Lab) -> anyhow::Result<()> {
    let service = format!("{SERVICE}/32");
    while run_on_host(lab, &["ip", "route", "del", &service]).is_ok() {}
    run_on_host(lab, &["ip", "route", "add", &service, "via", &home_hop()])
}

fn run_on_host(lab: &Lab, command: &[&str]) -> anyhow::Result<()> {
    let out = lab.exec("host1", command)?;
    if !out.status.success() {
        bail!("{} on host1: {}", command.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// Starts a process of the lab, unless it runs.
fn keep_running(lab: &Lab, spec: &Spec) -> anyhow::Result<()> {
    let known = lab.status()?.processes.into_iter().find(|p| p.name == spec.name);
    match known {
        Some(process) if process.runs() => Ok(()),
        _ => lab.run(spec.clone()).map(drop).with_context(|| spec.name.clone()),
    }
}

/// Ends a process of the lab for good.
fn stop(lab: &Lab, name: &str) -> anyhow::Result<()> {
    if lab.process(name)?.runs() {
        lab.stop_process(name, SOON)?;
    }
    Ok(())
}

/// This program, as the lab's processes run it.
fn own_program() -> anyhow::Result<String> {
    Ok(std::env::current_exe()?.to_string_lossy().into_owned())
}

fn wait(what: &str, check: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    wait_for(what, SOON, check)
}
