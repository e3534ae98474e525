//! The whole of it: agents, Meta, and a client that is the kernel's own.

use crate::client::{AWAKE, Mount, Writing, seen};
use lab::{Lab, Options, ServerKind};
use reroute_core::ids::ScvmId;
use reroute_core::timeline::Event;
use std::time::{Duration, Instant};

/// Verifying the programs takes an emulated machine long.
const HEALTHY: Duration = Duration::from_secs(240);
const MOVED: Duration = Duration::from_secs(60);

/// Waits until host1 is logged in at `scvm`, and says what it saw there.
fn moved(lab: &Lab, scvm: impl Fn(ScvmId) -> bool) -> ScvmId {
    let at = lab::wait_for("host1 at another SCVM", MOVED, || match lab.login(1)? {
        Some((at, _)) if scvm(at) => Ok(at),
        other => anyhow::bail!("{other:?}"),
    });
    at.map_err(|error| lab.explain(error)).expect("it moves")
}

#[test]
#[ignore = "needs the kernel's NFS client: cargo xtask vm"]
fn the_client_survives_moves() {
    // One host with an agent: an emulated machine has little time.
    let options = Options::named("moves").server(ServerKind::Controllable).agentless(2).agentless(3);
    let lab = Lab::start(options).expect("the lab starts");
    lab.wait_healthy(HEALTHY).expect("the lab becomes healthy");
    let mount = Mount::new(&lab);
    let writing = Writing::start(&mount.path("blocks"));

    // A planned one.
    let (at, source) = (Instant::now(), mount.source());
    let out = lab.agent("host1", &["route", "set", "scvm2", "--for", "1h"]).expect("route set");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    moved(&lab, |scvm| scvm == ScvmId(2));
    writing.wait(Instant::now(), 50);
    let gap = writing.gap(at);
    seen(format_args!("move: planned, gap {} ms, {source} then {}", gap.as_millis(), mount.source()));
    assert!(gap < AWAKE, "it slept: {gap:?}");

    // The server dies: its kernel's farewell is held back, so nobody is refused before the route has moved.
    let out = lab.agent("host1", &["route", "auto"]).expect("route auto");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    moved(&lab, |scvm| scvm == ScvmId(1));
    writing.wait(Instant::now(), 50);
    let (at, source) = (Instant::now(), mount.source());
    lab.fault("server-killed", Some("scvm1")).expect("server-killed");
    let to = moved(&lab, |scvm| scvm != ScvmId(1));
    writing.wait(Instant::now(), 50);
    let gap = writing.gap(at);
    seen(format_args!(
        "move: server-killed, to {to}, gap {} ms, {source} then {}",
        gap.as_millis(),
        mount.source()
    ));
    let journal = lab.journal().expect("journal");
    for entry in &journal {
        if let Event::SocketsReset { count } = &entry.event {
            seen(format_args!("move: {} reset {count} sockets", entry.node));
        }
    }
    assert!(gap < AWAKE, "it slept: {gap:?}");

    let writes = writing.finish(&lab.root().join("export/blocks"));
    let applied = lab.applied().expect("applied");
    seen(format_args!("move: {writes} writes, all in the store; {applied}"));
    assert_eq!(applied["late_epoch"], 0, "{applied}");
}
