//! What the tests share: a healthy lab with a writer, and questions to the journal.

use aya::maps::{Array, Map, MapData};
use lab::{Injected, Lab, Options, Writer};
use reroute_core::ids::{BootNs, ScvmId};
use reroute_core::proto::{ClusterView, FenceProof, LoginState};
use reroute_core::timeline::{Entry, Event};
use std::time::Duration;

pub const HEALTHY: Duration = Duration::from_secs(60);
pub const SOON: Duration = Duration::from_secs(20);

pub fn healthy(options: Options) -> Lab {
    let lab = Lab::start(options).expect("the lab starts");
    lab.wait_healthy(HEALTHY).expect("the lab becomes healthy");
    lab
}

/// Waits until host1's agent knows the domain beside it, in a lab with a hypervisor: or it can say nothing of it later.
pub fn domain_known(lab: &Lab) {
    lab::wait_for("the domain known", SOON, || {
        let notes = std::fs::read_to_string(lab.root().join("host1/state/notes.json"))?;
        anyhow::ensure!(notes.contains(&lab::hypervisor::uuid(1)), "{notes}");
        Ok(())
    })
    .expect("known");
}

/// Where `host` is logged in, once nothing moves.
pub fn login(view: &ClusterView, host: u32) -> Option<(ScvmId, u64, FenceProof)> {
    view.logins.iter().find(|l| l.login.host.0 == host).and_then(|l| match l.login.state {
        LoginState::At { scvm, epoch, proof } => Some((scvm, epoch.0, proof)),
        LoginState::Moving { .. } | LoginState::Evicted { .. } => None,
    })
}

/// Breaks something and waits until host1 is served by another SCVM; returns the fault, and how the login stands.
pub fn fault_and_move(lab: &Lab, writer: &Writer, fault: &str) -> (Injected, (ScvmId, u64, FenceProof)) {
    let before = login(&lab.view().expect("view"), 1).expect("host1 is logged in");
    let injected = lab.fault(fault, Some("scvm1")).expect(fault);
    let view = lab
        .wait_view("host1 served by another SCVM", SOON, |view| match login(view, 1) {
            Some((scvm, ..)) if scvm != before.0 => None,
            other => Some(format!("{other:?}")),
        })
        .expect("the login moves");
    writer.wait_writes(now(), 50, SOON).expect("writes go on");
    (injected, login(&view, 1).expect("at"))
}

pub fn now() -> BootNs {
    reroute_agent::clock::now()
}

/// The first event at or after `from` that `pick` accepts. The agents write their journals a little later than they
/// act: waits for it. Panics with the whole story if it does not come.
pub fn first<T>(lab: &Lab, from: BootNs, what: &str, pick: impl Fn(&Entry) -> Option<T>) -> (BootNs, T) {
    let found = lab::wait_for(what, SOON, || {
        let journal = lab.journal()?;
        let found = journal.iter().filter(|e| e.at >= from).find_map(|e| pick(e).map(|t| (e.at, t)));
        found.ok_or_else(|| anyhow::anyhow!("the journal has only:\n{}", story(&journal, from)))
    });
    found.unwrap_or_else(|error| panic!("{error:#}"))
}

pub fn story(journal: &[Entry], from: BootNs) -> String {
    let lines = journal.iter().filter(|e| e.at >= from);
    lines
        .map(|e| format!("{:>9} us {:6} {:?}", e.at.since(from) / 1000, e.node, e.event))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Routes replaced and moves recorded since `from`.
pub fn moves(journal: &[Entry], from: BootNs) -> Vec<Event> {
    let is_move = |e: &Event| matches!(e, Event::MoveRecorded { .. } | Event::RouteReplaced { .. });
    journal.iter().filter(|e| e.at >= from && is_move(&e.event)).map(|e| e.event.clone()).collect()
}

/// Stops the writer and asserts that nothing was lost or applied late.
pub fn assert_intact(writer: Writer) {
    let result = writer.stop().expect("the writer's result");
    assert_eq!(result.lost_writes, 0, "{result:#?}");
    assert_eq!(result.stale_writes, 0, "{result:#?}");
    assert_eq!(result.bad_reads, 0, "{result:#?}");
}

/// Longest gap between completed writes since `from`, ms.
pub fn gap_ms(writer: &Writer, from: BootNs) -> f64 {
    writer.gap(from, None).expect("gap").longest_gap_ns as f64 / 1e6
}

/// A table of a node's kernel.
pub fn table<V: aya::Pod>(lab: &Lab, node: &str, name: &str) -> Array<MapData, V> {
    let path = lab.root().join(node).join("bpf").join(name);
    let map = MapData::from_pin(&path).expect("a pinned map");
    Map::Array(map).try_into().expect("an array")
}
