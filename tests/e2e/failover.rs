//! A writer on host1, and something breaks.

use lab::{Lab, Options, ServerKind, Writer, wait_for};
use reroute_agent::clock;
use reroute_core::ids::{BootNs, Epoch, ScvmId};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
/// Longest time without a completed write that a move may cost, ns.
const BOUND: u64 = 500_000_000;

fn healthy(name: &str, server: ServerKind) -> Lab {
    let lab = Lab::start(Options::named(name).server(server)).unwrap();
    lab.wait_healthy(Duration::from_secs(30)).unwrap();
    lab
}

fn logins(lab: &Lab) -> Vec<Option<(ScvmId, Epoch)>> {
    (1..=3).map(|host| lab.login(host).unwrap()).collect()
}

fn below_bound(lab: &Lab, writer: &Writer<'_>, what: &str, from: BootNs, to: Option<BootNs>) {
    let gap = writer.gap(from, to).unwrap();
    assert!(
        gap.longest_gap_ns < BOUND,
        "{what}: {gap:?}\n{:#?}\n{}",
        lab.journal().unwrap(),
        lab.log_tails()
    );
}

/// Ends the writer: nothing lost, nothing stale, and with the controllable server nothing applied late.
fn undamaged(lab: &Lab, writer: Writer<'_>) {
    let report = writer.stop().unwrap();
    assert_eq!((report.lost_writes, report.stale_writes), (0, 0), "{report:#?}\n{}", lab.log_tails());
    if lab.options().server == ServerKind::Controllable {
        let applied = lab.applied().unwrap();
        assert_eq!(
            (applied["late_epoch"].as_u64(), applied["late_sequence"].as_u64()),
            (Some(0), Some(0)),
            "{applied}"
        );
        assert!(applied["writes"].as_u64().unwrap() > 0, "{applied}");
    }
}

/// Host1 goes elsewhere within the bound, the others stay, and it comes home within the bound.
fn moves_away_and_home(fault: &str, server: ServerKind) {
    let lab = healthy("move", server);
    let before = logins(&lab);
    let writer = lab.writer(1, 1, &[]).unwrap();
    writer.wait_writes(clock::now(), 100, SOON).unwrap();

    let struck = lab.fault(fault, Some("scvm1")).unwrap();
    let (elsewhere, epoch) = wait_for("host1 to be logged in elsewhere", SOON, || {
        let login = lab.login(1)?.filter(|(scvm, _)| *scvm != ScvmId(1));
        login.ok_or_else(|| anyhow::anyhow!("not yet"))
    })
    .map_err(|e| lab.explain(e))
    .unwrap();
    assert!(epoch > before[0].unwrap().1);
    writer.wait_writes(clock::now(), 100, SOON).unwrap();
    let hop = lab.next_hop(1).unwrap();
    assert_eq!(hop, Some(format!("10.10.85.{}", 20 + elsewhere.0)), "the kernel's route");
    assert_eq!(logins(&lab)[1..], before[1..], "hosts 2 and 3 have nothing to do with it");
    below_bound(&lab, &writer, fault, struck.at, None);

    let healed = clock::now();
    lab.heal().unwrap();
    lab.wait_healthy(Duration::from_secs(60)).unwrap();
    writer.wait_writes(clock::now(), 100, SOON).unwrap();
    below_bound(&lab, &writer, "the way home", healed, None);
    undamaged(&lab, writer);
}

/// I/O goes on at the same server, and after the healing all is as it was.
fn moves_nothing(fault: &str, target: &str, within: u64) {
    let lab = healthy("stay", ServerKind::Ganesha);
    let before = logins(&lab);
    let hops: Vec<_> = (1..=3).map(|i| lab.next_hop(i).unwrap()).collect();
    let writer = lab.writer(1, 1, &[]).unwrap();
    writer.wait_writes(clock::now(), 100, SOON).unwrap();
    let struck = lab.fault(fault, Some(target)).unwrap();
    // Long enough for every lease to run out, were it not renewed.
    writer.wait_writes(struck.at.plus(2_000_000_000), 100, SOON).unwrap();
    lab.heal().unwrap();
    let healed = clock::now();
    lab.wait_healthy(Duration::from_secs(30)).unwrap();
    writer.wait_writes(healed.plus(1_000_000_000), 100, SOON).unwrap();
    let gap = writer.gap(struck.at, None).unwrap();
    assert!(gap.longest_gap_ns < within, "{gap:?}\n{}", lab.log_tails());
    assert_eq!(logins(&lab), before);
    assert_eq!((1..=3).map(|i| lab.next_hop(i).unwrap()).collect::<Vec<_>>(), hops);
    undamaged(&lab, writer);
}

#[test]
fn a_killed_server_is_left() {
    moves_away_and_home("server-killed", ServerKind::Ganesha);
}

#[test]
fn a_hung_server_is_left() {
    moves_away_and_home("server-hung", ServerKind::Ganesha);
}

#[test]
fn a_cut_off_server_is_left() {
    moves_away_and_home("storage-link-cut", ServerKind::Ganesha);
}

#[test]
fn a_killed_server_over_checking_storage_is_left() {
    moves_away_and_home("server-killed", ServerKind::Controllable);
}

#[test]
fn a_hung_server_over_checking_storage_is_left() {
    moves_away_and_home("server-hung", ServerKind::Controllable);
}

#[test]
fn a_cut_off_server_over_checking_storage_is_left() {
    moves_away_and_home("storage-link-cut", ServerKind::Controllable);
}

#[test]
fn io_goes_on_without_the_agent_of_the_server() {
    moves_nothing("agent-killed", "scvm1", 200_000_000);
}

#[test]
fn io_goes_on_without_the_agent_of_the_host() {
    moves_nothing("host-agent-killed", "host1", 200_000_000);
}

#[test]
fn io_goes_on_without_meta() {
    moves_nothing("meta-killed", "meta", 200_000_000);
}
