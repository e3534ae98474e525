//! A server that hangs with calls in its hands, and wakes up after the move. The storage check is what keeps it from
//! overwriting newer data; without it the very same test sees damage.

use crate::support::*;
use lab::handle::Report;
use lab::{Lab, Options, ServerKind};
use reroute_core::proto::FenceProof;
use serde_json::Value;

/// Calls of the writer in the old server's hands when it stops.
const OUTSTANDING: u64 = 8;

struct Outcome {
    result: Report,
    /// `stats` of the old server, after it woke up.
    old_server: Value,
}

/// Calls are taken in and held, the process stops, the login moves, the process goes on.
fn hangs_and_wakes_up(storage_check: bool) -> Outcome {
    let options = Options { storage_check, ..Options::named("wakeup").server(ServerKind::Controllable) };
    let lab = healthy(options);
    let writer =
        lab.writer(1, 1, &["--outstanding", &OUTSTANDING.to_string(), "--expect-damage"]).expect("writer");
    writer.wait_writes(now(), 500, SOON).expect("writes");

    lab.server("scvm1", "stuck write on").expect("stuck");
    hold_some_writes(&lab);
    let old = lab.process("scvm1/server").expect("server");
    let (injected, (_, _, proof)) = fault_and_move(&lab, &writer, "server-hung");
    assert_eq!(proof, FenceProof::Storage);
    let journal = lab.journal().expect("journal");
    println!("{}", story(&journal, injected.at));

    // Every hot slot is written anew before the old server wakes up: an old write would be an older one.
    writer.wait_writes(now(), 2000, SOON).expect("writes at the new server");
    lab.heal().expect("SIGCONT");
    let same = lab.process("scvm1/server").expect("server");
    assert!(same.runs() && same.pid == old.pid, "policy storage kills nobody");
    lab.server("scvm1", "clear").expect("clear");
    writer.wait_writes(now(), 2000, SOON).expect("writes go on");
    let old_server = lab.server("scvm1", "stats").expect("stats");
    Outcome { result: writer.stop().expect("result"), old_server }
}

fn hold_some_writes(lab: &Lab) {
    lab::wait_for("writes held by the server", SOON, || {
        let stats = lab.server("scvm1", "stats")?;
        let count = |what: &str| stats[what]["write"].as_u64().unwrap_or_default();
        match count("calls").saturating_sub(count("replies")) {
            OUTSTANDING => Ok(()),
            held => anyhow::bail!("{held} held: {stats}"),
        }
    })
    .expect("held");
}

#[test]
fn the_storage_refuses_the_old_owner() {
    let Outcome { result, old_server } = hangs_and_wakes_up(true);
    println!("with the check: {result:?} {old_server}");
    assert_eq!(result.lost_writes, 0, "{result:#?}");
    assert_eq!(result.stale_writes, 0, "{result:#?}");
    assert!(old_server["refused_stale"].as_u64() > Some(0), "the old server did try: {old_server:#}");
}

#[test]
fn without_the_storage_check_old_writes_are_applied() {
    let Outcome { result, old_server } = hangs_and_wakes_up(false);
    println!("without the check: {result:?} {old_server}");
    assert!(result.stale_writes > 0, "{result:#?}");
}
