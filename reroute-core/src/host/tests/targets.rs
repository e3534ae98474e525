//! A target that does not take the host once Meta has it on record.

use super::moving::moving;
use super::*;

#[test]
fn a_target_that_fails_meanwhile_is_replaced() {
    let mut world = World::settled();
    world.facts(A).listening = false;
    world.run(50 * MS);
    moving(&mut world);
    world.log.clear();
    world.facts(B).listening = false;
    world.run(100 * MS);
    let asks = world.asks();
    assert!(matches!(asks[..], [ToMeta::Move { from_epoch: Epoch(2), to: C, .. }]), "{asks:?}");
    world.order(Order::Moving { from: Some(B), from_epoch: Epoch(2), to: C, epoch: Epoch(3) });
    world.run(20 * MS);
    world.order(Order::At { scvm: C, epoch: Epoch(3) });
    assert_eq!(world.routes(), [storage(C)]);
}

/// A has failed and Meta has the move to B on record.
fn leaving_a() -> World {
    let mut world = World::settled();
    world.facts(A).listening = false;
    let (_, _) = world.run_until_asked(SEC);
    moving(&mut world);
    world.run(50 * MS);
    world.log.clear();
    world
}

fn asked_for(world: &World) -> Vec<(ScvmId, Epoch, bool)> {
    let asks = world.asks().into_iter();
    asks.map(|m| match m {
        ToMeta::Move { to, from_epoch, planned, .. } => (to, from_epoch, planned),
        other => panic!("{other:?}"),
    })
    .collect()
}

/// Nobody pulses it, no address leads there, and its login would stand for ever.
#[test]
fn a_server_that_is_configured_no_more_is_left() {
    for route in [Found::OursElsewhere("via 10.0.0.9".into()), Found::None] {
        let gone = ScvmId(9);
        let record = Record { epoch: Epoch(4), scvm: Some(gone), released: None, term: Term(1) };
        let mut world = World::new(record, route);
        world.run(2 * SEC);
        assert_eq!(asked_for(&world).first(), Some(&(A, Epoch(4), false)));
        assert_eq!(world.routes(), [], "no way leads there");
        world.order(Order::Moving { from: Some(gone), from_epoch: Epoch(4), to: A, epoch: Epoch(5) });
        assert!(world.messages().contains(&ToMeta::Released { epoch: Epoch(4) }));
        world.order(Order::At { scvm: A, epoch: Epoch(5) });
        assert_eq!(world.routes(), [storage(A)]);
    }
}

/// Meta goes back from a planned move that comes to nothing, but not to a dead server; and no hypervisor, fence command or
/// operator speaks for one while the move is planned. So the host says that it is urgent now, and asks for the same target.
#[test]
fn a_planned_move_away_from_a_server_that_dies_meanwhile_becomes_urgent() {
    let mut world = World::settled();
    let pin = Pin { scvm: B, network: None, until: None, actor: "alice".into() };
    world.input(Input::Pin(Some(pin)));
    world.run_until_asked(2 * SEC);
    assert_eq!(asked_for(&world), [(B, Epoch(1), true)]);
    world.facts(A).in_progress = 1;
    moving(&mut world);
    world.log.clear();
    world.run(3 * SEC);
    assert_eq!(asked_for(&world), [], "it drains: Meta decides for how long");
    world.cut(A);
    world.run(500 * MS);
    assert_eq!(asked_for(&world), [(B, Epoch(2), false)]);
    // Asked once more if nothing comes of it, and not once it is on record.
    world.order(Order::Moving { from: Some(A), from_epoch: Epoch(1), to: B, epoch: Epoch(3) });
    world.log.clear();
    world.run(5 * SEC);
    assert_eq!(asked_for(&world), []);
}

#[test]
fn a_target_whose_agent_dies_meanwhile_is_replaced() {
    for state in [SessionState::Lost, SessionState::Absent] {
        let mut world = leaving_a();
        world.view(&[(A, SessionState::Suspect), (B, SessionState::Suspect), (C, SessionState::Alive)]);
        world.run(200 * MS);
        assert_eq!(asked_for(&world), []);
        world.view(&[(A, SessionState::Suspect), (B, state), (C, SessionState::Alive)]);
        world.run(200 * MS);
        assert_eq!(asked_for(&world), [(C, Epoch(2), false)]);
    }
    // What was seen before the move began is older than Meta's choice.
    let mut world = World::settled();
    world.view(&[(B, SessionState::Lost)]);
    moving(&mut world);
    world.run(500 * MS);
    assert_eq!(asked_for(&world), []);
}

#[test]
fn a_target_that_cannot_admit_is_replaced() {
    let mut world = leaving_a();
    world.order(Order::MoveRefused { to: B, error: Refusal::TargetNotReady { scvm: B } });
    world.run(20 * MS);
    assert_eq!(asked_for(&world), [(C, Epoch(2), false)]);
    // That one is refused too: B again, as nobody else is left, and without haste.
    world.facts(C).listening = false;
    world.order(Order::MoveRefused { to: C, error: Refusal::TargetNotReady { scvm: C } });
    world.log.clear();
    for _ in 0..15 {
        world.order(Order::MoveRefused { to: B, error: Refusal::TargetNotReady { scvm: B } });
        world.run(200 * MS);
    }
    let asked = asked_for(&world);
    assert!(asked.iter().all(|a| *a == (B, Epoch(2), false)), "{asked:?}");
    assert!((3..=4).contains(&asked.len()), "{asked:?}");
    // At the next epoch the story is the same one: one departure, one gap, and B may be asked again.
    world.order(Order::Moving { from: Some(A), from_epoch: Epoch(1), to: B, epoch: Epoch(3) });
    world.order(Order::At { scvm: B, epoch: Epoch(3) });
    assert_eq!(world.routes(), [storage(B)]);
    assert_eq!(world.machine.local(world.now).hold_down_ns, 3 * SEC);
    assert!(world.machine.report(world.now).last_move_gap_ns.unwrap() >= 3 * SEC);
}

#[test]
fn a_target_that_says_nothing_is_waited_for_a_second() {
    let mut world = leaving_a();
    let (_, took) = world.run_until_asked(5 * SEC);
    assert!((900 * MS..1100 * MS).contains(&took), "{took}");
    assert_eq!(asked_for(&world), [(C, Epoch(2), false)]);

    // Nobody else: the same again, and Meta's word that it goes on is no fault.
    let mut world = leaving_a();
    world.facts(C).listening = false;
    world.run(2500 * MS);
    assert_eq!(asked_for(&world), [(B, Epoch(2), false); 2]);
    let error = Refusal::MoveInProgress { to: B, epoch: Epoch(2) };
    world.order(Order::MoveRefused { to: B, error });
    assert_eq!(world.machine.report(world.now).error, None);
}

#[test]
fn a_fence_that_is_waited_for_is_no_fault_of_the_target() {
    // The old server still works on a call, and would with any target.
    let mut world = World::settled();
    world.facts(A).in_progress = 1;
    moving(&mut world);
    world.run(30 * SEC);
    assert_eq!(asked_for(&world), []);
    world.facts(A).in_progress = 0;
    world.run(500 * MS);
    assert_eq!(asked_for(&world), [], "the target's time begins when the fence is proven");
    world.run(700 * MS);
    assert_eq!(asked_for(&world), [(A, Epoch(2), false)], "back to where all is well");

    // The old server is dead: its lease may have to run out first.
    let mut world = World::settled();
    world.cut(A);
    world.run_until_asked(SEC);
    moving(&mut world);
    world.log.clear();
    world.run(9900 * MS);
    assert_eq!(asked_for(&world), []);
    world.run(200 * MS);
    assert_eq!(asked_for(&world).len(), 1);
}

#[test]
fn a_former_target_is_let_go_of_too() {
    let mut world = leaving_a();
    // It admitted, and its agent died before it could say so.
    (world.facts(B).word_epoch, world.facts(B).word_rank) = (Epoch(2), Rank::Admitted);
    world.view(&[(B, SessionState::Lost)]);
    world.run(20 * MS);
    world.order(Order::Moving { from: Some(A), from_epoch: Epoch(1), to: C, epoch: Epoch(3) });
    world.run(50 * MS);
    assert!(world.flags(B).contains(&(PulseFlag::Release, Epoch(2))));
    assert!(world.messages().contains(&ToMeta::FencedByPulse { scvm: B, epoch: Epoch(2) }));
    // Not when it becomes the target again.
    world.order(Order::Moving { from: Some(A), from_epoch: Epoch(1), to: B, epoch: Epoch(4) });
    world.log.clear();
    world.run(50 * MS);
    assert!(world.flags(B).iter().all(|(flag, _)| *flag == PulseFlag::Probe), "{:?}", world.flags(B));
    world.order(Order::At { scvm: B, epoch: Epoch(4) });
    world.run(50 * MS);
    assert!(world.flags(B).contains(&(PulseFlag::Affirm, Epoch(4))));
}
