//! One fault at a time: what it means, and what it does not.

use super::silence::asked;
use super::*;
use crate::proto::EvidenceKind::*;

/// Target, planned, kinds of evidence.
fn ask(message: &ToMeta) -> (ScvmId, bool, Vec<EvidenceKind>) {
    match message {
        ToMeta::Move { to, planned, evidence, .. } => {
            (*to, *planned, evidence.iter().map(|e| e.kind).collect())
        }
        other => panic!("{other:?}"),
    }
}

pub(super) fn second() -> ScvmId {
    choice::preference(HostId(1), A, &[A, B, C])[1]
}

#[test]
fn well_means_quiet() {
    let mut world = World::settled();
    world.run(20 * SEC);
    assert_eq!(world.asks(), []);
    assert_eq!(world.routes(), []);
    assert_eq!(world.faults(), Vec::<String>::new());
    assert_eq!(world.flags(A), [(PulseFlag::Affirm, Epoch(1))].into());
    assert_eq!(world.flags(B), [(PulseFlag::Probe, Epoch(0))].into());
}

#[test]
fn a_lost_storage_path_moves_to_another_scvms_storage() {
    let mut world = World::settled();
    world.down.insert(storage(A));
    let (message, took) = world.run_until_asked(SEC);
    assert_eq!(ask(&message), (second(), false, vec![PathLost]));
    assert!((25 * MS..=50 * MS).contains(&took), "{took}");
}

#[test]
fn own_storage_network_dead_means_management_and_back() {
    let mut world = World::settled();
    world.down.extend([storage(A), storage(B), storage(C)]);
    world.run(200 * MS);
    assert_eq!(world.routes(), [management(A)]);
    assert_eq!(world.resets(), [None]);
    assert_eq!(world.asks(), [], "the same server: nobody is asked");
    assert_eq!(world.flags(A), [(PulseFlag::Affirm, Epoch(1))].into());
    world.down.clear();
    world.run(2900 * MS);
    assert_eq!(world.routes().len(), 1, "not before it was well for the hold-down");
    world.run(400 * MS);
    assert_eq!(world.routes(), [management(A), storage(A)]);
}

/// On the management network, while the storage network has been back for `back_ns`.
fn on_the_way_back(back_ns: u64) -> World {
    let mut world = World::settled();
    world.down.extend([storage(A), storage(B), storage(C)]);
    world.run(200 * MS);
    world.down.clear();
    world.run(back_ns);
    assert_eq!((world.asks(), world.routes()), (vec![], vec![management(A)]));
    world
}

#[test]
fn a_busy_moment_on_the_way_back_is_no_reason_for_another_server() {
    for at in [500, 1500, 2500] {
        let mut world = on_the_way_back(at * MS);
        world.facts(A).silent = true;
        world.run(50 * MS);
        world.facts(A).silent = false;
        world.run((3250 - at) * MS);
        assert_eq!(world.routes(), [management(A), storage(A)], "it is as busy by either network");
        world.run(10 * SEC);
        assert_eq!((world.asks(), world.routes().len()), (vec![], 2), "busy after {at} ms");
    }
}

#[test]
fn a_gap_on_the_way_back_is_no_reason_for_another_server() {
    for at in [500, 1500, 2500] {
        let mut world = on_the_way_back(at * MS);
        world.down.insert(storage(A));
        world.run(40 * MS);
        world.down.clear();
        world.run(2900 * MS);
        assert_eq!(world.routes(), [management(A)], "well for the hold-down, from the gap on");
        world.run(10 * SEC);
        assert_eq!((world.asks(), world.routes()), (vec![], vec![management(A), storage(A)]), "{at} ms");
    }
}

/// Its storage path is well now and then: another server's is better than none.
#[test]
fn gaps_without_end_are_a_reason_for_another_server() {
    let mut world = on_the_way_back(500 * MS);
    world.facts(A).in_progress = 1;
    let from = world.now;
    while world.asks().is_empty() {
        world.down.insert(storage(A));
        world.run(40 * MS);
        world.down.clear();
        world.run(960 * MS);
        assert!(world.now.since(from) <= 9 * SEC);
    }
    assert_eq!(world.routes(), [management(A)]);
    let (to, planned, _) = ask(&world.asks()[0]);
    assert_eq!((to, planned), (second(), true));
    assert!(world.now.since(from) >= 5 * SEC);
}

/// The storage network dies under load, and just then two or three pulses by management are lost or late.
#[test]
fn a_stutter_of_management_is_no_reason_to_leave_the_server() {
    for begins in (0..=80).step_by(10) {
        for lasts in [10, 15, 20] {
            let mut world = World::settled();
            world.down.extend([storage(A), storage(B), storage(C)]);
            world.run(begins * MS);
            world.down.insert(management(A));
            world.run(lasts * MS);
            world.down.remove(&management(A));
            world.run(SEC);
            assert_eq!(world.asks(), [], "{lasts} ms, {begins} ms after");
            assert_eq!(world.routes(), [management(A)], "{lasts} ms, {begins} ms after");
        }
    }
}

#[test]
fn a_short_outage_of_the_own_storage_network_uses_up_no_epoch() {
    for outage in [31, 35, 45, 60, 70, 90, 120, 150, 200, 300, 600] {
        let mut world = World::settled();
        world.down.extend([storage(A), storage(B), storage(C)]);
        world.run(outage * MS);
        world.down.clear();
        world.run(10 * SEC);
        assert_eq!(world.asks(), [], "{outage} ms");
        assert_eq!(world.routes().last().unwrap_or(&storage(A)), &storage(A), "{outage} ms");
    }
}

#[test]
fn no_carrier_of_ones_own_is_believed_at_once() {
    let mut world = World::settled();
    world.down.extend([storage(A), storage(B), storage(C)]);
    world.input(Input::Interface { network: Network::Storage, carrier: false });
    assert_eq!(world.routes(), [management(A)], "in the same moment");
}

#[test]
fn a_dead_scvm_is_left_when_all_its_paths_are_silent() {
    let mut world = World::settled();
    world.cut(A);
    let (message, took) = world.run_until_asked(SEC);
    let (to, planned, evidence) = ask(&message);
    assert_eq!((to, planned), (second(), false));
    assert!(evidence == [AllPathsLost] || evidence == [PathLost], "{evidence:?}");
    assert!(took <= 50 * MS, "{took}");
}

/// Standbys are asked every 50 ms in quiet times: where in that beat the failure falls makes no difference.
#[test]
fn a_dead_scvm_is_left_as_soon_at_any_moment() {
    for lead in 0..50 {
        let mut world = World::settled();
        world.run(lead * MS);
        world.cut(A);
        let from = world.now;
        while world.asks().is_empty() {
            world.run(MS);
            assert!(world.now.since(from) <= 42 * MS, "{lead} ms after a beat");
        }
        // Others are asked as soon as there is a doubt: who has heard nobody for 25 ms would doubt himself.
        let at = |scvm| asked(&world, storage(scvm)).into_iter().find(|at| *at >= from.0).unwrap() - from.0;
        assert!(at(B) <= 15 * MS, "{lead} ms after a beat: {} ns", at(B));
    }
}

#[test]
fn a_listener_gone_is_left_after_two_replies() {
    let mut world = World::settled();
    world.facts(A).listening = false;
    let (message, took) = world.run_until_asked(SEC);
    assert_eq!(ask(&message), (second(), false, vec![ListenerGone]));
    assert!(took <= 20 * MS, "{took}");
}

#[test]
fn silent_alone_is_busy_and_with_null_failed_it_is_hung() {
    let mut world = World::settled();
    world.facts(A).silent = true;
    world.facts(A).calls_waiting = 100;
    world.run(5 * SEC);
    assert_eq!(world.asks(), []);
    world.facts(A).silent = false;
    world.facts(A).null_failed = true;
    world.run(5 * SEC);
    assert_eq!(world.asks(), []);
    world.facts(A).silent = true;
    let (message, _) = world.run_until_asked(SEC);
    assert_eq!(ask(&message), (second(), false, vec![Silent, NullFailed]));
}

#[test]
fn what_a_dead_agent_said_of_its_server_is_not_held_against_it() {
    let mut world = World::settled();
    world.facts(A).null_failed = true;
    world.facts(A).agent_age_ns = 301 * MS;
    world.run(SEC);
    world.facts(A).silent = true;
    world.run(500 * MS);
    assert_eq!(world.asks(), [], "silent alone is busy");
    for scvm in [B, C] {
        world.facts(scvm).null_failed = true;
        world.facts(scvm).agent_age_ns = 301 * MS;
    }
    world.facts(A).listening = false;
    let (message, _) = world.run_until_asked(SEC);
    assert_eq!(ask(&message).0, second(), "fit to take a client");

    let mut world = World::settled();
    world.facts(A).silent = true;
    world.facts(A).null_failed = true;
    world.facts(A).agent_age_ns = 300 * MS;
    world.run_until_asked(SEC);
}

#[test]
fn a_place_just_taken_is_not_left_for_a_better_one() {
    let mut world = World::settled();
    // The others' storage is slow to be heard of, so it was well all the while when it comes into view.
    world.facts(B).enforcing = false;
    world.facts(C).enforcing = false;
    world.down.insert(storage(A));
    world.run(200 * MS);
    assert_eq!(world.routes(), [management(A)]);
    world.facts(B).enforcing = true;
    world.facts(C).enforcing = true;
    world.run(2500 * MS);
    assert_eq!(world.asks(), []);
    world.run(SEC);
    assert_eq!(world.asks().len(), 1);
}

#[test]
fn no_healthy_target_means_stay() {
    for spoil in [
        |f: &mut Facts| f.listening = false,
        |f: &mut Facts| f.silent = true,
        |f: &mut Facts| f.null_failed = true,
        |f: &mut Facts| f.enforcing = false,
    ] {
        let mut world = World::settled();
        for scvm in [B, C] {
            spoil(world.facts(scvm));
        }
        world.run(SEC);
        world.facts(A).listening = false;
        world.run(2 * SEC);
        assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
    }
}

#[test]
fn a_target_that_meta_calls_lost_is_none() {
    let mut world = World::settled();
    let third = if second() == B { C } else { B };
    world.view(&[(A, SessionState::Alive), (second(), SessionState::Lost), (third, SessionState::Suspect)]);
    world.facts(A).listening = false;
    let (message, _) = world.run_until_asked(SEC);
    assert_eq!(ask(&message).0, third);
}

#[test]
fn without_meta_the_same_server_by_management() {
    let mut world = World::settled();
    world.input(Input::MetaLink { up: false });
    world.down.insert(storage(A));
    world.run(200 * MS);
    assert_eq!((world.asks(), world.routes()), (vec![], vec![management(A)]));
}

#[test]
fn a_meta_that_does_not_answer_is_not_waited_for() {
    let mut world = World::settled();
    world.meta_error = Some("no address answered".into());
    world.down.insert(storage(A));
    world.run(200 * MS);
    assert_eq!(world.routes(), [management(A)]);
}

#[test]
fn the_budget_ends_path_hunting() {
    let mut world = World::settled();
    let (mut at, mut epoch) = (A, 1);
    let mut moves = 0;
    // Whichever storage path is used dies; the others come back at once.
    for _ in 0..200 {
        world.down = [storage(at)].into();
        world.run(150 * MS);
        if let Some(ToMeta::Move { to, .. }) = world.asks().pop() {
            world.log.clear();
            epoch += 1;
            moves += 1;
            world.order(Order::Moving {
                from: Some(at),
                from_epoch: Epoch(epoch - 1),
                to,
                epoch: Epoch(epoch),
            });
            world.order(Order::At { scvm: to, epoch: Epoch(epoch) });
            at = to;
        }
    }
    assert!((4..=8).contains(&moves), "30 s: a burst of four and one per ten seconds, not {moves}");
}

#[test]
fn who_stays_on_a_lost_path_says_why() {
    // No way to A is left, so that only a move helps.
    let lost = |world: &mut World| world.down.extend([storage(A), management(A)]);

    let mut world = World::settled();
    world.input(Input::MetaLink { up: false });
    lost(&mut world);
    world.run(2 * SEC);
    let why = |world: &World| world.machine.report(world.now).error.unwrap_or_default();
    assert_eq!(why(&world), "scvm 1 by storage is lost, but Meta is out of reach");

    let mut world = World::settled();
    for scvm in [B, C] {
        world.facts(scvm).enforcing = false;
    }
    world.run(200 * MS);
    lost(&mut world);
    world.run(500 * MS);
    assert_eq!(why(&world), "", "not before the others had their time");
    world.run(2 * SEC);
    let no_target = "no other path leads to a server that can take this host";
    assert_eq!(why(&world), format!("scvm 1 by storage is lost, but {no_target}"));
    assert_eq!(world.faults().len(), 1, "said once");

    let mut world = World::settled();
    for _ in 0..6 {
        world.machine.budget.spend(world.now);
    }
    lost(&mut world);
    world.run(2 * SEC);
    assert!(why(&world).ends_with("but the budget of moves is used up (one more every 5 s)"));
    assert_eq!(world.asks(), []);
    world.run(10 * SEC);
    assert!(!world.asks().is_empty());
}

#[test]
fn a_restart_in_place_resets_the_sockets() {
    let mut world = World::settled();
    world.facts(A).server = Incarnation(2);
    world.run(50 * MS);
    assert_eq!(world.resets(), [None]);
    world.run(SEC);
    assert_eq!(world.resets().len(), 1, "once");
    assert_eq!(world.routes(), []);
}

#[test]
fn the_same_inputs_give_the_same_effects() {
    let run = || {
        let mut world = World::settled();
        world.cut(A);
        world.run(SEC);
        world.down.clear();
        world.run(SEC);
        (world.log, world.machine)
    };
    assert!(run() == run());
}

#[test]
fn the_work_per_host_is_the_same_in_a_large_cluster() {
    let pulses = |scvms: u32| {
        let settings = Settings { scvms: (1..=scvms).map(ScvmId).collect(), ..settings() };
        let record = Record { epoch: Epoch(1), scvm: Some(A), released: None, term: Term(1) };
        let mut machine = Machine::new(settings, record, BootNs(0));
        let sent = (1..=200).map(|i| {
            let effects = machine.handle(Input::Tick { due: BootNs(i * 10 * MS) }, BootNs(i * 10 * MS));
            effects.iter().filter(|e| matches!(e, Effect::SendPulse { .. })).count()
        });
        let sent: Vec<usize> = sent.collect();
        let second = &sent[100..];
        assert!(second.iter().all(|n| *n <= 3 + 4 + 2 * 20), "no moment has to carry them all: {second:?}");
        second.iter().sum::<usize>()
    };
    // Active: 3 paths at 100/s; standbys: 2 by 2 paths at 20/s; everybody else once a second.
    assert_eq!(pulses(3), 300 + 80);
    assert_eq!(pulses(1000), 300 + 80 + 997 * 2);
}
