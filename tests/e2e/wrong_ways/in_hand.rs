//! Calls in the hands of a server that nobody can ask: what moves the login is a proof that does not cover them, but
//! for the storage below, which refuses the old owner.

use super::*;
use lab::{Options, ServerKind};
use reroute_core::proto::FenceProof;

/// Faults that take a server away with calls in its hands, and what may prove the fence.
struct Case {
    name: &'static str,
    faults: &'static [&'static str],
    proofs: &'static [FenceProof],
}

const UNREACHABLE: Case = Case {
    name: "hung, and its SCVM cut off from Meta",
    faults: &["meta-cut", "server-hung"],
    proofs: &[FenceProof::LeaseExpiredStorage],
};
const CUT_FROM_HOSTS: Case = Case {
    name: "its SCVM cut off from the hosts, not from Meta",
    faults: &["host-cut"],
    proofs: &[FenceProof::Storage],
};
const FROZEN: Case = Case {
    name: "its SCVM stands still for 5 s",
    faults: &["scvm-frozen"],
    proofs: &[FenceProof::LeaseExpiredStorage],
};

fn taken_away(case: &Case, storage_check: bool) {
    let options = Options { storage_check, ..Options::named("inhand").server(ServerKind::Controllable) };
    let lab = healthy(options);
    let writer = writer(&lab);
    // The calls are taken in, and stay there.
    lab.server("scvm1", "stuck write on").expect("stuck");
    lab::wait_for("writes held by the server", SOON, || {
        let stats = lab.server("scvm1", "stats")?;
        let count = |what: &str| stats[what]["write"].as_u64().unwrap_or_default();
        match count("calls").saturating_sub(count("replies")) {
            OUTSTANDING => Ok(()),
            held => anyhow::bail!("{held} held"),
        }
    })
    .expect("held");
    let before = now();
    for fault in case.faults {
        lab.fault(fault, Some("scvm1")).expect(fault);
    }
    let (_, proof) = wait_moved(&lab, 1);
    let journal = lab.journal().expect("journal");
    assert!(case.proofs.contains(&proof), "{proof:?}\n{}", story(&journal, before));
    // Every slot is written anew.
    writer.wait_writes(now(), 1000, SOON).expect("writes at the new server");
    lab.heal().expect("heal");
    lab.server("scvm1", "clear").expect("clear");
    lab::wait_for("the old server to be done with them", SOON, || {
        let stats = lab.server("scvm1", "stats")?;
        let (calls, replies) = (&stats["calls"]["write"], &stats["replies"]["write"]);
        let refused = stats["refused_stale"].as_u64().unwrap_or_default();
        if storage_check && refused == 0 || !storage_check && calls != replies {
            anyhow::bail!("{stats}");
        }
        Ok(())
    })
    .expect("done");
    writer.wait_writes(now(), 100, SOON).expect("writes go on");
    judge(case.name, storage_check, writer);
}

#[test]
fn hung_and_cut_off_from_meta() {
    taken_away(&UNREACHABLE, true);
}
#[test]
fn hung_and_cut_off_from_meta_without_the_storage_check() {
    taken_away(&UNREACHABLE, false);
}
#[test]
fn cut_off_from_the_hosts() {
    taken_away(&CUT_FROM_HOSTS, true);
}
#[test]
fn cut_off_from_the_hosts_without_the_storage_check() {
    taken_away(&CUT_FROM_HOSTS, false);
}
#[test]
fn standing_still() {
    taken_away(&FROZEN, true);
}
#[test]
fn standing_still_without_the_storage_check() {
    taken_away(&FROZEN, false);
}

/// Cut off from Meta alone, with its host beside it: nothing moves, and nobody waits.
#[test]
fn cut_off_from_meta_alone_nothing_happens() {
    let lab = healthy(Options::named("metacut"));
    let writer = writer(&lab);
    let before = login(&lab.view().expect("view"), 1).expect("login");
    let injected = lab.fault("meta-cut", Some("scvm1")).expect("fault");
    // The session's lease has run out, and its host's own keeps it open.
    lab.wait_view("the session lost", SOON, |view| {
        let state = view.sessions.iter().find(|s| s.scvm.0 == 1).map(|s| s.state);
        (state != Some(reroute_core::proto::SessionState::Lost)).then(|| format!("{state:?}"))
    })
    .expect("lost");
    writer.wait_writes(now(), 500, SOON).expect("writes go on");
    let gap = gap_ms(&writer, injected.at);
    println!("meta-cut: longest gap {gap:.1} ms");
    assert!(gap < 500.0, "{gap} ms");
    assert_eq!(login(&lab.view().expect("view"), 1).expect("login"), before);
    lab.heal().expect("heal");
    lab.wait_healthy(HEALTHY).expect("healthy again");
    assert!(moves(&lab.journal().expect("journal"), injected.at).is_empty());
    judge("cut off from Meta alone", true, writer);
}
