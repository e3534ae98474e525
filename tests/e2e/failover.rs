//! The three faults of the demo: who moves where, by which proof, in which order, with nothing lost or applied late.

use crate::support::*;
use lab::Options;
use reroute_core::ids::ScvmId;
use reroute_core::proto::FenceProof;
use reroute_core::timeline::{Entry, Event};
use std::time::Duration;

fn proof(e: &Entry) -> Option<FenceProof> {
    match &e.event {
        Event::FenceProven { proof, host, .. } if host.0 == 1 => Some(*proof),
        _ => None,
    }
}
fn admitted(e: &Entry) -> Option<u64> {
    matches!(&e.event, Event::Admitted { host, .. } if host.0 == 1 && e.node != "scvm1").then_some(e.at.0)
}
fn route(e: &Entry) -> Option<u64> {
    matches!(&e.event, Event::RouteReplaced { .. } if e.node == "host1").then_some(e.at.0)
}
fn reset(e: &Entry) -> Option<u32> {
    match &e.event {
        Event::SocketsReset { count } if e.node == "host1" => Some(*count),
        _ => None,
    }
}

/// One fault from health to health. Returns the proof the move rested on.
fn fails_over_and_returns(fault: &str) -> FenceProof {
    let lab = healthy(Options::named(fault));
    let writer = lab.writer(1, 1, &["--outstanding", "4", "--metadata"]).expect("writer");
    writer.wait_writes(now(), 200, SOON).expect("writes");

    let (injected, (scvm, epoch, _)) = fault_and_move(&lab, &writer, fault);
    assert_ne!(scvm, ScvmId(1));
    let gap = gap_ms(&writer, injected.at);
    println!("{fault}: gap {gap:.1} ms, epoch {epoch}");
    assert!(gap < 500.0, "{fault}: longest gap {gap} ms");

    // Fence, then admission, then route, then sockets: the order that keeps one writer.
    let (proven_at, proof) = first(&lab, injected.at, "fence proof", proof);
    let (admitted_at, _) = first(&lab, injected.at, "admission", admitted);
    let (route_at, _) = first(&lab, injected.at, "route", route);
    let (reset_at, count) = first(&lab, injected.at, "sockets reset", reset);
    let order = [proven_at, admitted_at, route_at, reset_at];
    assert!(order.is_sorted(), "{}", story(&lab.journal().expect("journal"), injected.at));
    // A server that dies by itself may take the connection along before it is fenced; a fenced one may not.
    assert!(count >= 1 || fault == "server-killed", "the client's connection was reset");

    let healed_at = now();
    lab.heal().expect("heal");
    lab.wait_healthy(HEALTHY).expect("back home");
    writer.wait_writes(now(), 50, SOON).expect("writes at home");
    let back = gap_ms(&writer, healed_at);
    println!("{fault}: way back, gap {back:.1} ms");
    assert!(back < 500.0, "{fault}: longest gap on the way back {back} ms");
    assert_intact(writer);
    proof
}

#[test]
fn server_killed() {
    let proof = fails_over_and_returns("server-killed");
    assert!(matches!(proof, FenceProof::ProcessDead | FenceProof::KernelIdle), "{proof:?}");
}

#[test]
fn server_hung_is_killed_and_reaped_before_the_next_one_opens() {
    let proof = fails_over_and_returns("server-hung");
    assert!(matches!(proof, FenceProof::Killed), "{proof:?}");
}

#[test]
fn storage_link_cut() {
    let proof = fails_over_and_returns("storage-link-cut");
    // Idle at that moment, or with replies that can no longer leave: then its death is the proof.
    assert!(matches!(proof, FenceProof::KernelIdle | FenceProof::Drained | FenceProof::Killed), "{proof:?}");
}

/// Policy `kill` may end the server of an SCVM whose link was cut: what mends the link brings it back as well.
#[test]
fn a_server_killed_behind_a_cut_link_comes_back_with_it() {
    let lab = healthy(Options::named("cutkill"));
    lab.fault("storage-link-cut", Some("scvm1")).expect("fault");
    lab.signal("scvm1/server", libc::SIGKILL).expect("kill");
    lab.wait_process("scvm1/server", SOON).expect("it ends");
    lab.heal().expect("heal");
    assert!(lab.process("scvm1/server").expect("server").runs());
    lab.wait_healthy(HEALTHY).expect("back home");
}

/// Policy `kill` by the lab's own record: the old process had ended when the new epoch was admitted.
#[test]
fn the_killed_server_is_gone_at_admission() {
    let lab = healthy(Options::named("reaped"));
    let writer = lab.writer(1, 1, &["--outstanding", "4"]).expect("writer");
    let old = lab.process("scvm1/server").expect("server");
    let (injected, _) = fault_and_move(&lab, &writer, "server-hung");
    let (admitted_at, _) = first(&lab, injected.at, "admission", admitted);
    let new = lab.process("scvm1/server").expect("server");
    assert_eq!(new.pid, old.pid, "nobody restarted it");
    // The lab reaps it a moment after the kernel has it dead; the agent's pidfd said so before it proved anything.
    assert_eq!(new.exit.expect("it has ended").signal, Some(libc::SIGKILL));
    let (dead_at, _) = first(&lab, injected.at, "server's death", |e| match e.event {
        Event::ServerProcess { pid, alive: false } if pid == old.pid => Some(()),
        _ => None,
    });
    assert!(dead_at < admitted_at, "{}", story(&lab.journal().expect("journal"), injected.at));
    assert_intact(writer);
}

/// The host's own storage NIC: another network of the same server, no epoch, no Meta.
#[test]
fn host_storage_cut_changes_the_path_not_the_server() {
    let lab = healthy(Options::named("hostcut"));
    let writer = lab.writer(1, 1, &[]).expect("writer");
    let before = login(&lab.view().expect("view"), 1).expect("login");
    let injected = lab.fault("host-storage-cut", Some("host1")).expect("fault");
    lab::wait_for("the route by management", SOON, || match lab.next_hop(1)? {
        Some(hop) if hop.starts_with("192.168.85.") => Ok(()),
        other => anyhow::bail!("{other:?}"),
    })
    .expect("route");
    writer.wait_writes(now(), 50, SOON).expect("writes");
    assert_eq!(login(&lab.view().expect("view"), 1).expect("login").1, before.1, "same epoch");
    println!("host-storage-cut: gap {:.1} ms", gap_ms(&writer, injected.at));
    lab.heal().expect("heal");
    lab.wait_healthy(Duration::from_secs(60)).expect("back on storage");
    assert_intact(writer);
}
