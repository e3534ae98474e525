//! Dry mode: everything is watched, nothing is touched.

use super::*;
use crate::host::dry::{Mode, ModeRefused};

/// A host that was just installed; the servers only watch, too.
fn installed(route: Found) -> World {
    let mut world = World::with(Settings { first_mode: Mode::Dry, ..settings() }, Record::default(), route);
    for scvm in [A, B, C] {
        world.facts(scvm).enforcing = false;
    }
    world.view(&[]);
    world.run(SEC);
    world
}

fn would(world: &World) -> Vec<Path> {
    let would = |(_, e): &(BootNs, Effect)| match e {
        Effect::Journal(Event::WouldMove { to, .. }) => Some(*to),
        _ => None,
    };
    world.log.iter().filter_map(would).collect()
}

fn touches(world: &World) -> Vec<Effect> {
    let touches = |e: &&(BootNs, Effect)| match &e.1 {
        Effect::ReplaceRoute { .. } | Effect::DestroySockets { .. } | Effect::Persist(_) => true,
        Effect::SendPulse { flag, .. } => *flag != PulseFlag::Probe,
        Effect::Meta(message) => !matches!(message, ToMeta::HostReport { .. }),
        _ => false,
    };
    world.log.iter().filter(touches).map(|(_, e)| e.clone()).collect()
}

#[test]
fn it_says_what_it_would_do_and_does_nothing() {
    let old_loop = Found::Foreign { path: Some(storage(A)), what: "proto static".into() };
    for route in [Found::None, Found::Ours(storage(A)), old_loop] {
        let mut world = installed(route);
        world.run(10 * SEC);
        world.log.clear();
        world.facts(A).listening = false;
        world.run(SEC);
        let said = would(&world);
        assert_eq!(said.len(), 1, "once: {said:?}");
        assert_ne!(said[0].scvm, A);
        world.facts(A).listening = true;
        world.run(10 * SEC);
        for scvm in [A, B, C] {
            world.down.insert(storage(scvm));
        }
        world.run(SEC);
        world.cut(A);
        world.run(SEC);
        world.down.clear();
        world.run(10 * SEC);
        assert_eq!(touches(&world), []);
    }
}

#[test]
fn it_is_as_quick_as_if_it_acted() {
    let mut world = installed(Found::Ours(storage(A)));
    world.log.clear();
    let before = world.now;
    world.down.insert(storage(A));
    world.run(SEC);
    let at = world.log.iter().find(|(_, e)| matches!(e, Effect::Journal(Event::WouldMove { .. }))).unwrap().0;
    assert!(at.since(before) <= 50 * MS, "{}", at.since(before));
}

#[test]
fn auto_ends_it_and_is_remembered() {
    let mut world = installed(Found::None);
    assert_eq!(world.machine.check_mode(Mode::Dry), Err(ModeRefused::Already));
    for scvm in [A, B, C] {
        world.facts(scvm).enforcing = true;
    }
    world.run(SEC);
    assert!(world.faults().iter().any(|f| f.contains("its calls are dropped there")), "{:?}", world.faults());
    assert_eq!(world.asks(), []);
    assert_eq!(world.machine.check_mode(Mode::Auto), Ok(()));
    world.input(Input::SetMode { mode: Mode::Auto, actor: "a".into() });
    world.run(SEC);
    assert!(!world.asks().is_empty(), "it logs in");
    let noted =
        world.log.iter().any(|(_, e)| matches!(e, Effect::PersistNotes(n) if n.mode == Some(Mode::Auto)));
    assert!(noted);
    assert_eq!(world.machine.local(world.now).mode, Mode::Auto);
}

#[test]
fn who_has_a_login_is_not_left_dry() {
    let world = World::settled();
    assert_eq!(world.machine.check_mode(Mode::Dry), Err(ModeRefused::LoggedIn(A)));
    // Nor does the configuration's default undo one.
    let record = Record { epoch: Epoch(1), scvm: Some(A), released: None, term: Term(1) };
    let dry = Settings { first_mode: Mode::Dry, ..settings() };
    let mut world = World::with(dry, record, Found::Ours(storage(A)));
    world.run(SEC);
    assert_eq!(world.flags(A), [(PulseFlag::Affirm, Epoch(1))].into());
}

#[test]
fn a_login_that_meta_has_on_record_is_not_taken_up() {
    let mut world = installed(Found::None);
    world.log.clear();
    world.order(Order::At { scvm: A, epoch: Epoch(4) });
    world.run(SEC);
    assert_eq!(touches(&world), []);
    assert!(world.faults().iter().any(|f| f.contains("takes it up")), "{:?}", world.faults());
}

/// Installed before modes were: a login on disk, no notes, [host] mode by default.
#[test]
fn a_host_with_a_login_that_is_evicted_logs_in_anew() {
    let record = Record { epoch: Epoch(1), scvm: Some(A), released: None, term: Term(1) };
    let settings = Settings { first_mode: Mode::Dry, ..settings() };
    let mut world = World::with(settings, record, Found::Ours(storage(A)));
    world.run(SEC);
    world.log.clear();
    world.order(Order::Evicted { from_epoch: Epoch(1), epoch: Epoch(2), reason: "by alice: test".into() });
    world.run(10 * SEC);
    assert!(!world.asks().is_empty(), "{:?}", world.faults());
}

/// `route dry` while the first login is on its way.
#[test]
fn who_has_asked_for_a_login_cannot_turn_dry() {
    let mut world = World::new(Record::default(), Found::None);
    world.view(&[]);
    world.run_until_asked(SEC);
    world.order(Order::Moving { from: None, from_epoch: Epoch(0), to: A, epoch: Epoch(1) });
    assert_eq!(world.machine.check_mode(Mode::Dry), Err(ModeRefused::OnTheWay));
    world.order(Order::At { scvm: A, epoch: Epoch(1) });
    world.run(SEC);
    assert_eq!(world.machine.check_mode(Mode::Dry), Err(ModeRefused::LoggedIn(A)));
}
