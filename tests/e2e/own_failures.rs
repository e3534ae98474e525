//! Our own parts die. None of it may be felt: no write waits longer than 50 ms, no route moves, and whoever comes
//! back adopts what stands.

use crate::support::*;
use lab::{Lab, Options, Writer};
use reroute_core::ids::BootNs;
use reroute_core::timeline::Event;

const UNNOTICED_MS: f64 = 50.0;

fn kill_and_restart(lab: &Lab, writer: &Writer, fault: &str, process: &str, role: &str) {
    let before = login(&lab.view().expect("view"), 1).expect("login");
    let injected = lab.fault(fault, None).expect(fault);
    // Long enough for every lease (500 ms) to have needed somebody else to keep it.
    wait_until(writer, BootNs(injected.at.0 + 3_000_000_000));
    let restarted_at = now();
    lab.heal().expect("heal");
    lab.wait_healthy(HEALTHY).expect("healthy again");
    wait_until(writer, BootNs(restarted_at.0 + 2_000_000_000));

    let journal = lab.journal().expect("journal");
    let gap = gap_ms(writer, injected.at);
    println!("{fault}: longest gap {gap:.1} ms");
    assert!(gap < UNNOTICED_MS, "{fault}: {gap} ms\n{}", story(&journal, injected.at));
    let moved = moves(&journal, injected.at);
    assert!(moved.is_empty(), "{fault}: {moved:?}\n{}", story(&journal, injected.at));
    assert_eq!(login(&lab.view().expect("view"), 1).expect("login"), before);
    let node = process.split('/').next().expect("node");
    let (_, adopted) = first(lab, restarted_at, "start", |e| match &e.event {
        Event::Started { role: r, adopted } if r == role && e.node == node => Some(adopted.clone()),
        _ => None,
    });
    println!("{fault}: adopted {adopted}");
    assert!(!adopted.is_empty(), "{process} says what it found");
}

/// Keeps the writes flowing until a moment: waits on completions, not on the clock.
fn wait_until(writer: &Writer, until: BootNs) {
    while now() < until {
        writer.wait_writes(now(), 20, SOON).expect("writes go on");
    }
}

#[test]
fn nobody_notices_the_death_of_an_agent() {
    let lab = healthy(Options::named("own"));
    let writer = lab.writer(1, 1, &[]).expect("writer");
    writer.wait_writes(now(), 200, SOON).expect("writes");
    kill_and_restart(&lab, &writer, "agent-killed", "scvm1/agent", "scvm");
    kill_and_restart(&lab, &writer, "host-agent-killed", "host1/agent", "host");
    kill_and_restart(&lab, &writer, "meta-killed", "meta/agent", "meta");
    assert_intact(writer);
}

/// The safeguard behind it: with both leases gone, admission closes by rule, and the next renewal opens it.
#[test]
fn without_agent_and_host_the_lease_runs_out_and_comes_back() {
    let lab = healthy(Options::named("leases"));
    let writer = lab.writer(1, 1, &[]).expect("writer");
    lab.fault("host-agent-killed", Some("host1")).expect("fault");
    let injected = lab.fault("agent-killed", Some("scvm1")).expect("fault");
    lab::wait_for("admission to close", SOON, || {
        let last = writer.gap(injected.at, None)?;
        if last.longest_gap_ns < 1_000_000_000 {
            anyhow::bail!("longest gap {} ms", last.longest_gap_ns / 1_000_000);
        }
        Ok(())
    })
    .expect("both leases ran out");
    lab.heal().expect("heal");
    lab.wait_healthy(HEALTHY).expect("healthy again");
    writer.wait_writes(now(), 50, SOON).expect("writes");
    assert!(moves(&lab.journal().expect("journal"), injected.at).is_empty());
    assert_intact(writer);
}
