//! Calls that are still on their way when their client has gone on elsewhere: they arrive seconds later, at a server
//! whose kernel has the old connection open as if nothing had happened.

use super::*;
use lab::Options;
use reroute_common::table::{drop, mode};

/// Keeps the calls of host1 on their way to scvm1's storage address. Nobody notices but the writer.
fn hold_calls(lab: &Lab, writer: &Writer) {
    lab.fault("storage-tcp-held", Some("scvm1")).expect("held");
    wait_stuck(writer, Duration::from_millis(20));
}

/// The SCVM's agent would close old connections a second after the fence: only what the kernel does counts here.
fn away_with_calls_on_their_way(lab: &Lab, writer: &Writer) {
    hold_calls(lab, writer);
    lab.fault("host-cut", Some("scvm1")).expect("cut");
    wait_moved(lab, 1);
    writer.wait_writes(now(), 1000, SOON).expect("writes at the new server");
}

/// The old server is fenced, and alone again: its agent stands still, its old connections are open.
fn late_calls_at_the_old_server(fence: bool) {
    let lab = healthy(Options::named("late").timing("hold_down_ms", 15_000));
    let writer = paced_writer(&lab, 64, 2000);
    hold_calls(&lab, &writer);
    lab.fault("host-cut", Some("scvm1")).expect("cut");
    wait_moved(&lab, 1);
    lab.fault("agent-stopped", Some("scvm1")).expect("stopped");
    writer.wait_writes(now(), 1000, SOON).expect("writes at the new server");
    if !fence {
        set_kernel_mode(&lab, "scvm1", mode::BYPASS);
    }
    let before = host1(&lab, "scvm1");
    lab.ask::<Vec<String>>(&lab::control::Request::Heal { name: Some("host-cut".into()), target: None })
        .expect("heal");
    lab.ask::<Vec<String>>(&lab::control::Request::Heal {
        name: Some("storage-tcp-held".into()),
        target: None,
    })
    .expect("heal");
    if fence {
        let count = |c: &Client| c.drops[drop::NOT_ADMITTED];
        wait_count(&lab, "scvm1", "late calls dropped", count, count(&before));
    }
    writer.wait_writes(now(), 1000, SOON).expect("writes go on");
    judge("calls 2 s late at the old server", fence, writer);
}

#[test]
fn late_calls_meet_the_fence() {
    late_calls_at_the_old_server(true);
}
#[test]
fn without_the_fence_late_calls_are_executed() {
    late_calls_at_the_old_server(false);
}

/// There and back again while the calls are on their way: the old server is the one that serves, at a new epoch.
#[test]
fn late_calls_after_the_return_find_their_connection_closed() {
    let lab = healthy(Options::named("return"));
    let writer = paced_writer(&lab, 64, 2000);
    away_with_calls_on_their_way(&lab, &writer);
    lab.ask::<Vec<String>>(&lab::control::Request::Heal { name: Some("host-cut".into()), target: None })
        .expect("heal");
    // Home again, by management or storage: new connections do not get through to storage yet.
    lab.wait_view("host1 at home", HEALTHY, |view| match login(view, 1) {
        Some((at, ..)) if at.0 == 1 => None,
        other => Some(format!("{other:?}")),
    })
    .expect("home");
    lab.heal().expect("heal");
    writer.wait_writes(now(), 1000, SOON).expect("writes at home");
    judge("calls late at a server that was left and returned to", true, writer);
}

/// The host's storage link dies: the same server by management, no epoch, no Meta. Then the calls arrive.
fn late_calls_by_the_old_path(safeguard: bool) {
    let lab = healthy(Options::named("latepath"));
    let writer = paced_writer(&lab, 64, 2000);
    hold_calls(&lab, &writer);
    lab.fault("host-storage-cut", Some("host1")).expect("cut");
    lab::wait_for("the route by management", SOON, || match lab.next_hop(1)? {
        Some(hop) if hop.starts_with("192.168.85.21") => Ok(()),
        other => anyhow::bail!("{other:?}"),
    })
    .expect("route");
    writer.wait_writes(now(), 1000, SOON).expect("writes by the new path");
    if !safeguard {
        set_kernel_mode(&lab, "scvm1", mode::BYPASS);
    }
    lab.ask::<Vec<String>>(&lab::control::Request::Heal {
        name: Some("storage-tcp-held".into()),
        target: None,
    })
    .expect("heal");
    writer.wait_writes(now(), 1000, SOON).expect("writes go on");
    judge("calls 2 s late by the old path to the same server", safeguard, writer);
}

#[test]
fn late_calls_by_the_old_path_are_refused() {
    late_calls_by_the_old_path(true);
}
#[test]
fn without_enforcement_late_calls_by_the_old_path_are_executed() {
    late_calls_by_the_old_path(false);
}
