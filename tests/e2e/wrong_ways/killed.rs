//! Meta, or the host's agent, dies at a step of a move and comes back: at every one.

use super::*;
use lab::handle::Report;
use lab::{Options, ProcessStatus, ServerKind};
use reroute_agent::fault_point;
use reroute_core::ids::BootNs;
use reroute_core::timeline::Event;

/// What takes the server away: it hangs with calls in its hands. Only of one with none the kernel says that it is idle,
/// which is what the host tells Meta of a fence, if nobody else does; and nobody lets go by pulse of a server that its
/// agent has shut before.
fn faults_for(point: &str) -> &'static [&'static str] {
    match point.split_once('-').map_or("", |(_, step)| step) {
        "tell-fenced" => &["meta-cut", "storage-blackhole"],
        "release-pulse" => &["meta-cut", "server-hung"],
        _ => &["server-hung"],
    }
}

fn lab(name: &str, storage_check: bool) -> Lab {
    let options = Options { storage_check, ..Options::named(name).server(ServerKind::Controllable) };
    // Home again soon, and out again as often as there are steps; and no limit grows with the latency of those that hang.
    let options = options.timing("hold_down_ms", 300).timing("hold_down_max_ms", 600);
    healthy(options.timing("unanswered_ceiling_ms", 100))
}

/// One move away, begun with `process` armed to die at `point`. None: it was made without coming by there.
fn armed_move(lab: &Lab, process: &str, point: &str) -> (BootNs, Option<ProcessStatus>) {
    if point.ends_with("tell-fenced") {
        // Calls of former moves whose end nobody saw are forgotten with the process that had them.
        lab.stop_process("scvm1/server", SOON).expect("stop");
        lab.start_process("scvm1/server").expect("start");
        lab.wait_healthy(HEALTHY).expect("home again, before the next move counts");
    }
    lab.stop_process(process, SOON).expect("stop");
    lab.start_process_with(process, &[(fault_point::VARIABLE, point)]).expect("start");
    lab.wait_healthy(HEALTHY).unwrap_or_else(|error| {
        let all = lab.journal().expect("journal");
        let last = &all[all.len().saturating_sub(60)..];
        panic!("{point}: {error:#}\n{}", story(last, BootNs(0)))
    });
    let began = now();
    for fault in faults_for(point) {
        lab.fault(fault, Some("scvm1")).expect(fault);
    }
    (began, lab.wait_process(process, SOON).ok())
}

/// One move away, with a death at `point`, and the way back.
fn dies_at(lab: &Lab, writer: &Writer, process: &str, point: &str, away: &mut u64) {
    // With replies that did not get out before the cut the kernel is not idle, and nobody tells of a fence by pulse:
    // then another time.
    let tries = if point.ends_with("tell-fenced") { 4 } else { 1 };
    let reached = (1..=tries).find_map(|attempt| match armed_move(lab, process, point) {
        (began, Some(died)) => Some((began, died)),
        (began, None) if attempt == tries => {
            panic!("{point} was not reached\n{}", story(&lab.journal().expect("journal"), began))
        }
        (_, None) => {
            println!("{point}: not reached");
            // Unarmed, or it may die on the way back.
            lab.stop_process(process, SOON).expect("stop");
            lab.start_process_with(process, &[(fault_point::VARIABLE, "")]).expect("start");
            lab.heal().expect("heal");
            lab.wait_healthy(HEALTHY).expect(point);
            None
        }
    });
    let (began, died) = reached.expect("or it has panicked");
    assert_eq!(died.exit.and_then(|e| e.signal), Some(libc::SIGABRT), "{point}");
    lab.start_process_with(process, &[(fault_point::VARIABLE, "")]).expect("start again");
    // Away, or back already: either way it is served.
    writer.wait_writes(now(), 500, SOON).unwrap_or_else(|error| {
        panic!("{point}: {error:#}\n{}", story(&lab.journal().expect("journal"), began))
    });
    *away += moves(&lab.journal().expect("journal"), began)
        .iter()
        .filter(|e| matches!(e, Event::RouteReplaced { path, .. } if path.scvm.0 != 1))
        .count() as u64;
    lab.heal().expect("heal");
    lab.wait_healthy(HEALTHY).expect(point);
    println!("{point}: gap {:.0} ms", gap_ms(writer, began));
}

fn walk(process: &str, steps: &[&str], storage_check: bool) -> Report {
    let lab = lab("killed", storage_check);
    let writer = writer(&lab);
    let mut away = 0;
    for step in steps {
        for side in ["before", "after"] {
            dies_at(&lab, &writer, process, &format!("{side}-{step}"), &mut away);
        }
    }
    println!("{} deaths at {} moves away", 2 * steps.len(), away);
    assert!(away >= steps.len() as u64, "{away} moves away from the hung server");
    let result = writer.stop().expect("the writer's result");
    tell(process, storage_check, &result);
    result
}

#[test]
fn the_hosts_agent_dies_at_every_step() {
    let result = walk("host1/agent", &fault_point::HOST, true);
    assert_eq!((result.lost_writes, result.stale_writes), (0, 0), "{result:#?}");
}

/// What a death must not undo rests on the storage too, where calls are in hand: the same story shows it.
#[test]
fn without_the_storage_check_a_death_in_mid_move_does_damage() {
    let result = walk("host1/agent", &["persist-released"], false);
    assert!(result.stale_writes > 0, "{result:#?}");
}

#[test]
fn meta_dies_at_every_step() {
    let result = walk("meta/agent", &fault_point::META, true);
    assert_eq!((result.lost_writes, result.stale_writes), (0, 0), "{result:#?}");
}
