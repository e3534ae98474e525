//! An operator ends the login, or keeps the host away; orders that cannot be meant.

use super::*;

fn evicted(world: &mut World, epoch: u64) {
    let reason = "by root: dead".into();
    world.order(Order::Evicted { from_epoch: Epoch(epoch - 1), epoch: Epoch(epoch), reason });
}

fn alive() -> Vec<(ScvmId, SessionState)> {
    [A, B, C].map(|s| (s, SessionState::Alive)).into()
}

#[test]
fn who_is_evicted_lets_go_on_record_says_so_and_asks_anew() {
    let mut world = World::settled();
    world.view(&alive());
    evicted(&mut world, 2);
    let persisted = world.log.iter().position(|(_, e)| matches!(e, Effect::Persist(r) if (r.epoch, r.scvm, r.released) == (Epoch(2), None, Some(Epoch(1)))));
    let told =
        world.log.iter().position(|(_, e)| matches!(e, Effect::Meta(ToMeta::Released { epoch: Epoch(1) })));
    assert!(persisted.unwrap() < told.unwrap(), "a successor must know of it before Meta does");
    world.log.clear();
    let (ask, _) = world.run_until_asked(SEC);
    assert!(!world.flags(A).iter().any(|(flag, _)| *flag == PulseFlag::Affirm), "{:?}", world.flags(A));
    let ToMeta::Move { from_epoch: Epoch(2), to, planned: false, reason, .. } = ask else {
        panic!("{ask:?}")
    };
    assert_eq!(to, A, "where its route leads");
    assert!(reason.contains("operator"), "{reason}");
    assert!(world.routes().is_empty(), "the route stays");
    let report = world.machine.report(world.now);
    assert_eq!((report.epoch, report.scvm, report.released), (Epoch(2), None, Some(Epoch(1))));
    assert!(report.error.unwrap().contains("by root: dead"));
    // The old connections were cut off: they are not waited for.
    world.log.clear();
    world.order(Order::Moving { from: Some(A), from_epoch: Epoch(1), to: A, epoch: Epoch(3) });
    world.run(50 * MS);
    world.order(Order::At { scvm: A, epoch: Epoch(3) });
    world.run(50 * MS);
    assert_eq!(world.resets(), [None]);
    assert!(world.flags(A).contains(&(PulseFlag::Affirm, Epoch(3))));
    assert_eq!(world.machine.report(world.now).error, None);
}

#[test]
fn an_eviction_that_comes_late_or_twice_changes_nothing() {
    let mut world = World::settled();
    evicted(&mut world, 2);
    world.order(Order::At { scvm: B, epoch: Epoch(3) });
    world.run(100 * MS);
    world.log.clear();
    evicted(&mut world, 2);
    world.run(100 * MS);
    assert_eq!(world.machine.report(world.now).scvm, Some(B));
    assert!(world.faults().iter().any(|f| f.contains("of the past")), "{:?}", world.faults());
}

/// A former leader that does not know it is over says what was true before the eviction, to a new instance.
#[test]
fn after_an_eviction_no_leader_from_before_it_is_heard() {
    let mut world = World::settled();
    world.order_of(2, Order::Evicted { from_epoch: Epoch(1), epoch: Epoch(2), reason: "by root".into() });
    let written = world.log.iter().rev().find_map(|(_, e)| match e {
        Effect::Persist(record) => Some(*record),
        _ => None,
    });
    let mut world = World::new(written.unwrap(), Found::Ours(storage(A)));
    world.run(SEC);
    let late = Order::At { scvm: A, epoch: Epoch(1) };
    world.input(Input::Order(FromMeta { term: Term(1), seq: 0, order: late }));
    world.run(SEC);
    assert_eq!(world.machine.report(world.now).scvm, None);
    assert!(world.faults().iter().any(|f| f.contains("is over")), "{:?}", world.faults());
    // Nor is a late eviction of a leader that is over.
    let late = Order::Evicted { from_epoch: Epoch(2), epoch: Epoch(3), reason: "by root".into() };
    world.input(Input::Order(FromMeta { term: Term(1), seq: 0, order: late }));
    assert_eq!(world.machine.report(world.now).epoch, Epoch(0));
}

#[test]
fn nothing_is_told_of_a_release_that_is_not_on_disk() {
    let mut world = World::settled();
    world.persist_error = Some("disk full".into());
    evicted(&mut world, 2);
    world.run(SEC);
    let told = |w: &World| w.messages().iter().filter(|m| matches!(m, ToMeta::Released { .. })).count();
    assert_eq!(told(&world), 0);
    world.persist_error = None;
    world.run(SEC);
    assert_eq!(told(&world), 1);
}

/// Meta, or its store, may have missed it: it asks again.
#[test]
fn a_release_is_told_until_it_is_taken() {
    let mut world = World::settled();
    world.meta_error = Some("away".into());
    evicted(&mut world, 2);
    world.run(SEC);
    let told = |w: &World| w.messages().iter().filter(|m| matches!(m, ToMeta::Released { .. })).count();
    assert!(told(&world) > 2, "{}", told(&world));
    world.meta_error = None;
    world.run(SEC);
    world.log.clear();
    world.run(SEC);
    assert_eq!(told(&world), 0);
    evicted(&mut world, 2);
    world.run(SEC);
    assert_eq!(told(&world), 1);
}

/// The agent restarts after the record was written: without a login, it asks when Meta has told it the epoch.
#[test]
fn a_successor_asks_from_the_epoch_that_meta_names() {
    let record = Record { epoch: Epoch(2), scvm: None, released: Some(Epoch(1)), term: Term(1) };
    let mut world = World::new(record, Found::Ours(storage(A)));
    world.view(&alive());
    world.run(SEC);
    evicted(&mut world, 2);
    world.log.clear();
    let (ask, _) = world.run_until_asked(SEC);
    assert!(matches!(ask, ToMeta::Move { from_epoch: Epoch(2), .. }), "{ask:?}");
}

#[test]
fn the_blocked_ask_rarely_and_say_why() {
    let mut world = World::settled();
    world.view(&alive());
    world.cut(A);
    let (ask, _) = world.run_until_asked(SEC);
    let ToMeta::Move { to, .. } = ask else { panic!("{ask:?}") };
    world.log.clear();
    let refused = |world: &mut World, to| {
        let (reason, actor) = ("maintenance".to_string(), "root".to_string());
        let error = Refusal::Blocked { id: BlockId(4), reason, actor, remaining_s: 100 };
        world.order(Order::MoveRefused { to, error });
    };
    let mut asked = 0;
    refused(&mut world, to);
    for _ in 0..500 {
        world.run(10 * MS);
        let asks = world.asks();
        if let Some(ToMeta::Move { to, .. }) = asks.last() {
            asked += asks.len();
            refused(&mut world, *to);
            world.log.retain(|(_, e)| !matches!(e, Effect::Meta(ToMeta::Move { .. })));
        }
    }
    assert!((2..=6).contains(&asked), "{asked} times in 5 s");
    let said = world.faults().iter().filter(|f| f.contains("block 4 by root: maintenance")).count();
    assert_eq!(said, 1, "{:?}", world.faults());
    assert_eq!(world.machine.report(world.now).scvm, Some(A), "the login stands");
}

#[test]
fn orders_that_cannot_be_meant_are_refused_by_name() {
    let at = |scvm, epoch| Order::At { scvm: ScvmId(scvm), epoch: Epoch(epoch) };
    let moving = |to, epoch| Order::Moving {
        from: Some(A),
        from_epoch: Epoch(1),
        to: ScvmId(to),
        epoch: Epoch(epoch),
    };
    for (order, named) in [
        (at(9, 2), "not in this host's configuration"),
        (moving(9, 2), "not in this host's configuration"),
        (at(2, 1 << 56), "no login can have"),
        (moving(2, 1 << 56), "no login can have"),
        (moving(2, 1), "no login can have"),
    ] {
        let mut world = World::settled();
        // Past the world's own belief in what Meta says.
        let line = FromMeta { term: Term(1), seq: 1, order: order.clone() };
        world.input(Input::Order(line));
        world.run(100 * MS);
        let report = world.machine.report(world.now);
        assert_eq!((report.scvm, report.epoch), (Some(A), Epoch(1)), "{order:?}");
        assert!(report.error.as_deref().is_some_and(|e| e.contains(named)), "{order:?}: {:?}", report.error);
        // The next one that can be clears it.
        world.order(at(1, 1));
        assert_eq!(world.machine.report(world.now).error, None, "{order:?}");
    }
}
