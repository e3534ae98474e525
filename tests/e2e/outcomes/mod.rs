//! Every fault of the catalogue, one test each: what comes of it is what `lab::faults::outcomes` says, by name in `status`,
//! and no write of any host is lost or applied late.

mod moving;
mod still;

use crate::support::*;
use lab::faults::outcomes::{Needs, OUTCOMES, Outcome, Then};
use lab::{Injected, Lab, Writer};
use reroute_core::ids::BootNs;
use reroute_core::timeline::{Entry, Event};
use std::time::Duration;

macro_rules! walked {
    ($($test:ident: $fault:literal),* $(,)?) => {
        $(#[test] fn $test() { walk($fault) })*
        const WALKED: &[&str] = &[$($fault),*];
    };
}

walked! {
    server_killed: "server-killed",
    storage_hung: "storage-hung",
    mtu_mismatch: "mtu-mismatch",
    scvm_mtu_mismatch: "scvm-mtu-mismatch",
    link_flap: "link-flap",
    fifo_hogs: "fifo-hogs",
    server_hung: "server-hung",
    storage_link_cut: "storage-link-cut",
    storage_blackhole: "storage-blackhole",
    one_way_loss: "one-way-loss",
    storage_delay_2s: "storage-delay-2s",
    host_cut: "host-cut",
    scvm_dead: "scvm-dead",
    scvm_dead_known: "scvm-dead-known",
    scvm_frozen: "scvm-frozen",
    host_storage_cut: "host-storage-cut",
    host_one_way_loss: "host-one-way-loss",
    server_slow: "server-slow",
    one_client_wedged: "one-client-wedged",
    lossy_5: "lossy-5",
    cpu_hogs: "cpu-hogs",
    timer_storm: "timer-storm",
    packet_flood: "packet-flood",
    agent_killed: "agent-killed",
    agent_stopped: "agent-stopped",
    host_agent_killed: "host-agent-killed",
    meta_killed: "meta-killed",
    meta_restarted: "meta-restarted",
    meta_cut: "meta-cut",
    clock_step: "clock-step",
    clock_step_back: "clock-step-back",
    log_disk_full: "log-disk-full",
    duplicate_ip: "duplicate-ip",
}

#[test]
fn every_row_is_walked() {
    let mut walked = WALKED.to_vec();
    let mut rows: Vec<&str> = OUTCOMES.iter().map(|o| o.fault).collect();
    walked.sort_unstable();
    rows.sort_unstable();
    assert_eq!(walked, rows);
}

fn walk(fault: &str) {
    let outcome = Outcome::of(fault).expect("it is in the table");
    match (outcome.lab, outcome.then) {
        (Needs::Shared, Then::Nothing { held }) => still::stays(outcome, held),
        _ => {
            let lab = healthy(outcome.lab.options("outcome"));
            moving::moves(&lab, outcome);
        }
    }
}

/// One on every host, paced: gaps are to be the cluster's and not a full machine's.
fn writers(lab: &Lab, number: u64) -> Vec<Writer<'_>> {
    let flags = ["--outstanding", "4", "--reads", "1", "--interval-us", "3000", "--max-bytes", "4194304"];
    (1..=lab::topology::PAIRS)
        .map(|host| lab.writer(host, 10 * number + u64::from(host), &flags).expect("writer"))
        .collect()
}

fn all_go_on(writers: &[Writer], from: BootNs) {
    for writer in writers {
        writer.wait_writes(from, 50, SOON).unwrap_or_else(|e| panic!("{}: {e:#}", writer.name()));
    }
}

/// Strikes all its targets. Returns the first of them.
fn strike(lab: &Lab, outcome: &Outcome) -> Injected {
    let targets = outcome.targets().expect("targets");
    let struck: Vec<Injected> =
        targets.iter().map(|t| lab.fault(outcome.fault, Some(t)).expect(outcome.fault)).collect();
    struck.into_iter().next().expect("a target")
}

/// What is wrong is not said before.
fn nothing_said(lab: &Lab, outcome: &Outcome) {
    if let Some(cause) = outcome.cause {
        let text = lab.status_text(cause.on).expect("status");
        assert_eq!(cause.is_said(&text), None, "said of a healthy lab:\n{text}");
    }
}

fn cause_is_said(lab: &Lab, outcome: &Outcome, from: BootNs) {
    let Some(cause) = outcome.cause else { return };
    let said = lab::wait_for("the cause in `status`", SOON, || {
        let text = lab.status_text(cause.on)?;
        cause.is_said(&text).ok_or_else(|| anyhow::anyhow!("none of {:?} in\n{text}", cause.words))
    });
    let journal = || story(&lab.journal().expect("journal"), from);
    let said = said.unwrap_or_else(|e| panic!("{}: {e:#}\n{}", outcome.fault, journal()));
    println!("{}: {} says {said:?} after {} ms", outcome.fault, cause.on, now().since(from) / 1_000_000);
}

/// When a host's route came to lead elsewhere, or back.
fn routed(entry: &Entry, host: u32) -> Option<reroute_core::ids::Path> {
    match &entry.event {
        Event::RouteReplaced { path, .. } if entry.node == format!("host{host}") => Some(*path),
        _ => None,
    }
}

fn within(what: &str, from: BootNs, at: BootNs, bound: Duration) {
    let took = Duration::from_nanos(at.since(from));
    println!("{what}: new route after {:.1} ms", took.as_secs_f64() * 1e3);
    assert!(took <= bound, "{what}: new route after {took:?}, later than {bound:?}");
}
