//! The writer in a lab without agents: what it tells can be relied on before anything is built on it.

use lab::{Lab, Options, ServerKind};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// A server that hangs for 5 s is seen as a gap of 5 s, and nothing is lost.
fn a_hang_is_a_gap(server: ServerKind) {
    let lab = Lab::start(Options::named("writer").server(server).without_agents()).unwrap();
    let writer = lab.writer(1, 1, &[]).unwrap();
    writer.wait_writes(reroute_agent::clock::now(), 50, SOON).unwrap();
    let hung = lab.fault("server-hung", None).unwrap();
    writer.wait_writes(hung.at.plus(5_000_000_000), 50, SOON).unwrap();
    let gap = writer.gap(hung.at, None).unwrap();
    assert!((4_500_000_000..8_000_000_000).contains(&gap.longest_gap_ns), "{gap:?}");
    assert!(gap.from < hung.at.0 + 100_000_000, "{gap:?}");
    let report = writer.stop().unwrap();
    assert_eq!((report.lost_writes, report.stale_writes), (0, 0), "{report:?}");
    assert!(report.completed > 100, "{report:?}");
}

#[test]
fn a_hang_is_a_gap_with_ganesha() {
    a_hang_is_a_gap(ServerKind::Ganesha);
}

#[test]
fn a_hang_is_a_gap_with_the_controllable_server() {
    a_hang_is_a_gap(ServerKind::Controllable);
}
