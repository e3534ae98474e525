//! A move step by step, and each step's failure.

use super::*;

pub(super) fn moving(world: &mut World) {
    world.order(Order::Moving { from: Some(A), from_epoch: Epoch(1), to: B, epoch: Epoch(2) });
}

/// What happened, in order, without the pulses that repeat.
fn story(world: &World) -> Vec<String> {
    let mut story: Vec<String> = Vec::new();
    for (_, effect) in &world.log {
        let line = match effect {
            Effect::SendPulse { flag: PulseFlag::Probe, .. } => continue,
            Effect::SendPulse { path, flag, epoch, .. } => format!("{flag:?} {} {}", path.scvm.0, epoch.0),
            Effect::Meta(ToMeta::HostReport { .. }) | Effect::Journal(_) | Effect::ReadRoute => continue,
            Effect::PersistNotes(_)
            | Effect::AskHypervisor
            | Effect::AskOwnAddress
            | Effect::TrySizes(_)
            | Effect::FindSockets => {
                continue;
            }
            Effect::Meta(ToMeta::Released { epoch }) => format!("Released {}", epoch.0),
            Effect::Meta(ToMeta::FencedByPulse { scvm, epoch }) => format!("Idle {} {}", scvm.0, epoch.0),
            Effect::Meta(ToMeta::Arrived { epoch, path }) => format!("Arrived {} {}", epoch.0, path.network),
            Effect::Meta(message) => format!("{message:?}"),
            Effect::ReplaceRoute { path, .. } => format!("Route {} {}", path.scvm.0, path.network),
            Effect::DestroySockets { keep } => format!("Reset {keep:?}"),
            Effect::Persist(record) => {
                format!("Persist {} {:?}", record.epoch.0, record.released.map(|r| r.0))
            }
        };
        if story.last() != Some(&line) {
            story.push(line);
        }
    }
    story
}

#[test]
fn a_move_goes_step_by_step() {
    let mut world = World::settled();
    moving(&mut world);
    world.run(50 * MS);
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world.run(20 * MS);
    assert_eq!(
        story(&world),
        [
            "Persist 1 Some(1)",
            "Release 1 1",
            "Released 1",
            "Idle 1 1",
            "Persist 2 Some(1)",
            "Route 2 storage",
            "Reset None",
            "Affirm 2 2",
            "Persist 2 None",
            "Arrived 2 storage",
            "Affirm 2 2",
        ]
    );
    assert_eq!(world.machine.report(world.now).scvm, Some(B));
    assert!(world.machine.report(world.now).last_move_gap_ns.unwrap() >= 50 * MS);
}

#[test]
fn releases_go_out_on_every_network_until_the_kernel_says_closed() {
    let mut world = World::settled();
    world.cut(A);
    moving(&mut world);
    world.run(100 * MS);
    let networks: BTreeSet<Network> = world
        .log
        .iter()
        .filter_map(|(_, e)| match e {
            Effect::SendPulse { path, flag: PulseFlag::Release, .. } => Some(path.network),
            _ => None,
        })
        .collect();
    assert_eq!(networks.len(), 3);
    let count = |w: &World| {
        w.log.iter().filter(|(_, e)| matches!(e, Effect::SendPulse { flag: PulseFlag::Release, .. })).count()
    };
    assert!(count(&world) >= 30, "every 10 ms on three networks");
    world.down.clear();
    world.run(20 * MS);
    let closed = count(&world);
    world.run(100 * MS);
    assert_eq!(count(&world), closed, "closed was seen");
    assert!(story(&world).contains(&"Idle 1 1".to_string()));
}

#[test]
fn calls_in_progress_are_no_idle_kernel() {
    for busy in [
        |f: &mut Facts| f.in_progress = 1,
        |f: &mut Facts| f.orphans = 1,
        |f: &mut Facts| f.enforcing = false,
    ] {
        let mut world = World::settled();
        busy(world.facts(A));
        moving(&mut world);
        world.run(500 * MS);
        assert!(!story(&world).contains(&"Idle 1 1".to_string()));
    }
}

#[test]
fn what_is_not_on_disk_is_not_released() {
    let mut world = World::settled();
    world.persist_error = Some("no space left on device".into());
    moving(&mut world);
    world.run(300 * MS);
    let told = story(&world);
    assert!(told.iter().all(|line| line.starts_with("Persist")), "{told:?}");
    assert!(world.flags(A).iter().all(|(flag, _)| *flag == PulseFlag::Probe), "not affirmed either");
    assert_eq!(world.faults().len(), 1);
    world.persist_error = None;
    world.run(200 * MS);
    assert!(story(&world).contains(&"Released 1".to_string()));
}

#[test]
fn meta_asks_again_and_is_told_again() {
    let mut world = World::settled();
    moving(&mut world);
    moving(&mut world);
    let told = world.messages().iter().filter(|m| matches!(m, ToMeta::Released { .. })).count();
    assert_eq!(told, 2);
}

#[test]
fn a_release_that_meta_did_not_hear_is_told_again() {
    let mut world = World::settled();
    world.meta_error = Some("unreachable".into());
    moving(&mut world);
    world.meta_error = None;
    world.run(SEC);
    let told = world.messages().iter().filter(|m| matches!(m, ToMeta::Released { .. })).count();
    assert_eq!(told, 2);
}

#[test]
fn old_orders_change_nothing() {
    let mut world = World::settled();
    moving(&mut world);
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world.run(20 * MS);
    let before = world.machine.report(world.now);
    world.log.clear();
    world.input(Input::Order(FromMeta {
        term: Term(1),
        seq: 9,
        order: Order::At { scvm: A, epoch: Epoch(1) },
    }));
    world.order(Order::Moving { from: Some(A), from_epoch: Epoch(1), to: C, epoch: Epoch(2) });
    world.run(20 * MS);
    let after = world.machine.report(world.now);
    assert_eq!((before.scvm, before.epoch, before.path), (after.scvm, after.epoch, after.path));
    assert_eq!(world.routes(), []);
    assert_eq!(world.flags(B), [(PulseFlag::Affirm, Epoch(2))].into(), "affirmed all the while");
}

#[test]
fn a_planned_move_given_up_changes_no_route() {
    let mut world = World::settled();
    moving(&mut world);
    world.run(100 * MS);
    world.log.clear();
    world.order(Order::At { scvm: A, epoch: Epoch(3) });
    world.run(20 * MS);
    assert_eq!((world.routes(), world.resets()), (vec![], vec![]));
    assert_eq!(world.flags(A), [(PulseFlag::Affirm, Epoch(3))].into());
    assert!(world.messages().contains(&ToMeta::Arrived { epoch: Epoch(3), path: storage(A) }));
}

#[test]
fn after_a_long_vain_drain_the_client_connects_anew() {
    let mut world = World::settled();
    world.facts(A).in_progress = 1;
    moving(&mut world);
    world.run(2 * SEC);
    // As Meta gives up: back to where it was, at an epoch of its own.
    world.order(Order::Moving { from: Some(A), from_epoch: Epoch(1), to: A, epoch: Epoch(3) });
    world.run(20 * MS);
    world.log.clear();
    world.order(Order::At { scvm: A, epoch: Epoch(3) });
    world.run(20 * MS);
    assert_eq!((world.routes(), world.resets()), (vec![], vec![None]));
    assert_eq!(world.flags(A), [(PulseFlag::Affirm, Epoch(3))].into());
    let told: Vec<String> = story(&world).into_iter().filter(|l| !l.starts_with("Persist")).collect();
    assert_eq!(told, ["Reset None", "Affirm 1 3", "Arrived 3 storage", "Affirm 1 3"]);
    let journal = |e: &Effect| matches!(e, Effect::Journal(Event::SocketsReset { .. }));
    assert_eq!(world.log.iter().filter(|(_, e)| journal(e)).count(), 1);
    assert!(world.machine.report(world.now).last_move_gap_ns.unwrap() >= 2 * SEC);
}

#[test]
fn a_target_that_fails_on_arrival_is_left() {
    let mut world = World::settled();
    world.facts(A).listening = false;
    world.route_error = Some(RouteFailure::Failed("network is down".into()));
    moving(&mut world);
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world.facts(B).listening = false;
    world.run(100 * MS);
    assert!(world.asks().iter().any(|m| matches!(m, ToMeta::Move { from_epoch: Epoch(2), to: C, .. })));
}

#[test]
fn a_route_that_cannot_be_set_is_tried_again_and_told() {
    let mut world = World::settled();
    world.route_error = Some(RouteFailure::Failed("network is unreachable".into()));
    moving(&mut world);
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world.run(SEC);
    assert!(!world.messages().iter().any(|m| matches!(m, ToMeta::Arrived { .. })));
    assert_eq!(world.faults(), ["network is unreachable"], "said once");
    assert!(world.machine.report(world.now).error.unwrap().contains("unreachable"));
    world.route_error = None;
    world.run(200 * MS);
    assert!(world.messages().contains(&ToMeta::Arrived { epoch: Epoch(2), path: storage(B) }));
    assert_eq!(world.machine.report(world.now).error, None);
}

#[test]
fn the_return_is_planned_and_waits() {
    let mut world = World::settled();
    world.facts(A).listening = false;
    let (_, _) = world.run_until_asked(SEC);
    moving(&mut world);
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world.run(SEC);
    world.log.clear();
    world.facts(A).listening = true;
    let (message, took) = world.run_until_asked(10 * SEC);
    assert!(matches!(message, ToMeta::Move { from_epoch: Epoch(2), to: A, planned: true, .. }));
    assert!((3 * SEC..3300 * MS).contains(&took), "{took}");
}

#[test]
fn a_return_that_could_not_be_drained_is_not_begun() {
    let mut world = World::settled();
    world.facts(A).listening = false;
    let (_, _) = world.run_until_asked(SEC);
    moving(&mut world);
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world.facts(B).orphans = 2;
    world.facts(A).listening = true;
    world.log.clear();
    world.run(10 * SEC);
    assert_eq!(world.asks(), []);
    assert!(world.faults().iter().any(|f| f.contains("whose end nobody saw")), "{:?}", world.faults());
    world.facts(B).orphans = 0;
    world.run(SEC);
    assert_eq!(world.asks().len(), 1);
}

/// At B after a failure of A, which is well again: the return comes 3 s later.
fn away() -> World {
    let mut world = World::settled();
    world.facts(A).listening = false;
    let (_, _) = world.run_until_asked(SEC);
    moving(&mut world);
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world.facts(A).listening = true;
    world.log.clear();
    world
}

#[test]
fn a_return_is_not_begun_while_a_call_is_stuck() {
    let mut world = away();
    world.facts(B).in_progress = 1;
    world.facts(B).oldest_call_age_ns = 30 * SEC;
    world.run(10 * SEC);
    assert_eq!(world.asks(), []);
    assert!(world.faults().iter().any(|f| f.contains("has a call waiting")), "{:?}", world.faults());
    // Somebody else's, that one: ours come and go.
    world.facts(B).in_progress = 0;
    world.run(20 * MS);
    world.facts(B).in_progress = 1;
    world.run(100 * MS);
    assert_eq!(world.asks().len(), 1);

    let mut world = away();
    world.facts(B).in_progress = 1;
    world.facts(B).oldest_call_age_ns = 900 * MS;
    world.run(10 * SEC);
    assert!(!world.asks().is_empty(), "busy is not stuck");
}

#[test]
fn a_return_takes_a_quiet_moment_or_goes_after_a_second() {
    let mut world = away();
    world.facts(B).in_progress = 3;
    world.run(3500 * MS);
    assert_eq!(world.asks(), []);
    world.facts(B).in_progress = 0;
    world.run(10 * MS);
    let asked: Vec<BootNs> = asked_at(&world);
    assert_eq!(asked.len(), 1, "within a beat");
    assert_eq!(asked[0].0 % MS, 200_000, "with the reply that shows it, not a tick later");

    let mut world = away();
    world.facts(B).in_progress = 3;
    let (_, took) = world.run_until_asked(10 * SEC);
    assert!((4 * SEC..4300 * MS).contains(&took), "{took}");
}

fn asked_at(world: &World) -> Vec<BootNs> {
    let ask = |e: &Effect| matches!(e, Effect::Meta(ToMeta::Move { .. }));
    world.log.iter().filter(|(_, e)| ask(e)).map(|(at, _)| *at).collect()
}

#[test]
fn a_refused_target_is_not_asked_for_at_once_again() {
    let mut world = World::settled();
    world.facts(A).listening = false;
    let (message, _) = world.run_until_asked(SEC);
    let ToMeta::Move { to, .. } = message else { panic!() };
    world.log.clear();
    world.order(Order::MoveRefused { to, error: Refusal::TargetNotReady { scvm: to } });
    let (message, _) = world.run_until_asked(SEC);
    let ToMeta::Move { to: other, .. } = message else { panic!() };
    assert_ne!(other, to);
}

#[test]
fn the_first_login_takes_the_best_target() {
    let mut world = World::new(Record::default(), Found::None);
    world.run(SEC);
    assert_eq!(world.asks(), [], "Meta has not said that there is none");
    world.view(&[]);
    let (message, _) = world.run_until_asked(SEC);
    assert!(matches!(message, ToMeta::Move { from_epoch: Epoch(0), to: A, .. }));
    assert_eq!(world.routes(), []);
    world.order(Order::At { scvm: A, epoch: Epoch(1) });
    assert_eq!(world.routes(), [storage(A)]);
}

#[test]
fn a_first_login_is_no_flight() {
    let mut world = World::new(Record::default(), Found::None);
    world.view(&[]);
    world.run_until_asked(SEC);
    world.order(Order::Moving { from: None, from_epoch: Epoch(0), to: A, epoch: Epoch(1) });
    world.order(Order::At { scvm: A, epoch: Epoch(1) });
    world.run(SEC);
    // The first failure is the first: the way home is as short as after any other first one.
    world.down.extend([A, B, C].map(storage));
    world.run(SEC);
    assert_eq!(world.routes(), [storage(A), management(A)]);
    assert_eq!(world.machine.local(world.now).hold_down_ns, 3 * SEC);
    world.down.clear();
    world.run(4 * SEC);
    assert_eq!(world.routes(), [storage(A), management(A), storage(A)]);
}

#[test]
fn a_new_instance_affirms_unless_it_had_let_go() {
    let record = Record { epoch: Epoch(4), scvm: Some(B), released: None, term: Term(1) };
    let mut world = World::new(record, Found::Ours(storage(B)));
    world.run(100 * MS);
    assert_eq!(world.flags(B), [(PulseFlag::Affirm, Epoch(4))].into());

    let record = Record { released: Some(Epoch(4)), ..record };
    let mut world = World::new(record, Found::Ours(storage(B)));
    world.run(SEC);
    assert_eq!(world.flags(B), [(PulseFlag::Probe, Epoch(4))].into());
    assert_eq!(world.machine.report(world.now).released, Some(Epoch(4)));
    world.log.clear();
    world.order(Order::At { scvm: B, epoch: Epoch(4) });
    world.run(50 * MS);
    assert!(world.flags(B).contains(&(PulseFlag::Affirm, Epoch(4))), "Meta has confirmed it");
    assert_eq!(world.routes(), []);
}

/// A former leader that does not know it is over says what was true before: to an agent that has just started, and
/// whose predecessor had let go by order of the next leader.
#[test]
fn a_new_instance_does_not_hear_a_leader_whose_term_is_over() {
    let record = Record { epoch: Epoch(4), scvm: Some(B), released: None, term: Term(1) };
    let mut world = World::new(record, Found::Ours(storage(B)));
    world.run(SEC);
    let moving = Order::Moving { from: Some(B), from_epoch: Epoch(4), to: C, epoch: Epoch(5) };
    world.order_of(2, moving);
    let written = world.log.iter().rev().find_map(|(_, e)| match e {
        Effect::Persist(record) => Some(*record),
        _ => None,
    });
    let record = written.unwrap();
    assert_eq!((record.released, record.term), (Some(Epoch(4)), Term(2)));

    let mut world = World::new(record, Found::Ours(storage(B)));
    world.run(SEC);
    let late = Order::At { scvm: B, epoch: Epoch(4) };
    world.input(Input::Order(FromMeta { term: Term(1), seq: 0, order: late }));
    world.run(SEC);
    assert_eq!(world.flags(B), [(PulseFlag::Probe, Epoch(4))].into(), "not affirmed by a dead leader's word");
    let said = |e: &Effect| matches!(e, Effect::Journal(Event::Fault { what }) if what.contains("is over"));
    assert!(world.log.iter().any(|(_, e)| said(e)));
    world.order_of(2, Order::At { scvm: C, epoch: Epoch(5) });
    world.run(SEC);
    assert!(world.flags(C).contains(&(PulseFlag::Affirm, Epoch(5))));
}
