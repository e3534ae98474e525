//! When silence means something: pulses that are late, lost, or asked for early.

use super::faults::second;
use super::*;

#[test]
fn late_answers_are_no_gap() {
    let mut world = World::settled();
    world.slow = [(B, 4 * MS), (C, 4 * MS)].into();
    world.run(SEC);
    world.facts(A).listening = false;
    let (_, took) = world.run_until_asked(SEC);
    assert!(took <= 30 * MS, "{took}");
}

#[test]
fn agent_or_meta_silence_is_no_verdict() {
    let mut world = World::settled();
    world.facts(A).agent_age_ns = 60 * SEC;
    world.view(&[(A, SessionState::Lost), (B, SessionState::Alive), (C, SessionState::Alive)]);
    world.input(Input::MetaLink { up: false });
    world.run(10 * SEC);
    assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
    assert!(world.flags(A).contains(&(PulseFlag::Affirm, Epoch(1))));
}

#[test]
fn all_silent_together_is_about_me() {
    for silence in [35, 70, 200, 3000] {
        let mut world = World::settled();
        for scvm in [A, B, C] {
            world.cut(scvm);
        }
        world.run(silence * MS);
        let report = world.machine.report(world.now);
        assert!(report.paths.iter().all(|p| p.state != Health::Failed), "{:?}", report.paths);
        world.down.clear();
        world.run(SEC);
        assert_eq!((world.asks(), world.routes()), (vec![], vec![]), "after {silence} ms");
    }
}

#[test]
fn who_speaks_first_after_a_common_silence_condemns_nobody() {
    let mut world = World::settled();
    for scvm in [A, B, C] {
        world.cut(scvm);
    }
    world.run(300 * MS);
    world.down.retain(|p| p.scvm == A);
    world.run(20 * MS);
    world.down.clear();
    world.run(SEC);
    assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
}

#[test]
fn one_late_moment_begins_the_window_anew() {
    let mut world = World::settled();
    world.down.insert(storage(A));
    world.run(20 * MS);
    world.late_ns = 15 * MS;
    world.run(20 * MS);
    world.late_ns = 0;
    world.run(20 * MS);
    assert_eq!(world.asks(), [], "60 ms of silence, but only 20 of them were watched");
    world.run(30 * MS);
    assert_eq!(world.asks().len(), 1);
}

/// Times at which `path` was asked.
pub(super) fn asked(world: &World, path: Path) -> Vec<u64> {
    let at = |(at, e): &(BootNs, Effect)| {
        matches!(e, Effect::SendPulse { path: p, .. } if *p == path).then_some(at.0)
    };
    world.log.iter().filter_map(at).collect()
}

#[test]
fn who_is_in_doubt_is_asked_quickly_and_not_for_ever() {
    let mut world = World::settled();
    world.down.insert(storage(A));
    world.run(28 * MS);
    let times = asked(&world, storage(A));
    let gaps: Vec<u64> = times.windows(2).map(|w| (w[1] - w[0]) / MS).collect();
    assert_eq!(gaps[..4], [3, 2, 2, 2], "a pulse is overdue after 3 ms: {gaps:?}");
    world.run(12 * MS);
    assert!(asked(&world, storage(second())).len() >= 2, "who may be needed is asked more often, too");

    // Nobody speaks: that is about this host, and its pulses would settle nothing.
    let mut world = World::settled();
    for scvm in [A, B, C] {
        world.cut(scvm);
    }
    world.run(SEC);
    world.log.clear();
    world.run(SEC);
    assert!((90..=110).contains(&asked(&world, storage(A)).len()), "back to the beat");
    world.down.clear();
    world.run(100 * MS);
    world.log.clear();
    world.run(SEC);
    assert!((90..=110).contains(&asked(&world, storage(A)).len()));
}

#[test]
fn a_failure_that_is_hinted_at_is_confirmed_quickly() {
    let mut world = World::settled();
    world.facts(A).silent = true;
    world.run(20 * MS);
    world.facts(A).null_failed = true;
    let before = world.now;
    world.run(5 * MS);
    let (at, _) =
        world.log.iter().find(|(_, e)| matches!(e, Effect::Meta(ToMeta::Move { .. }))).expect("asked");
    assert!(at.since(before) <= 5 * MS, "two moments of the doubt, whatever the beat: {}", at.since(before));
}

/// One frame in twenty is lost, each way: no path is left for that.
#[test]
fn a_lossy_network_condemns_nobody() {
    let mut world = World::settled();
    let mut seed = 7u64;
    for _ in 0..30_000 {
        for scvm in [A, B, C] {
            for path in [storage(scvm), management(scvm)] {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                match (seed >> 33) % 1000 < 98 {
                    true => world.down.insert(path),
                    false => world.down.remove(&path),
                };
            }
        }
        world.run(2 * MS);
        world.log.retain(|(_, e)| !matches!(e, Effect::SendPulse { .. }));
    }
    assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
}

#[test]
fn a_late_sender_condemns_nobody() {
    let mut world = World::settled();
    world.late_ns = 15 * MS;
    world.cut(A);
    world.run(5 * SEC);
    assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
    world.late_ns = 0;
    world.run_until_asked(SEC);
}

#[test]
fn replies_that_waited_in_a_queue_are_old_news() {
    let mut world = World::settled();
    let facts = Facts { listening: false, scvm_stamp: u64::MAX, ..*world.facts(A) };
    for _ in 0..10 {
        let sent_at = BootNs(world.now.0 - 500 * MS);
        world.input(Input::Reply { path: storage(A), sent_at, facts });
    }
    assert_eq!(world.asks(), []);
}

#[test]
fn a_lost_pulse_now_and_then_is_nothing() {
    let mut world = World::settled();
    for _ in 0..100 {
        world.down.insert(storage(A));
        world.run(20 * MS);
        world.down.clear();
        world.run(30 * MS);
    }
    assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
}

/// One moment, told by three paths.
#[test]
fn one_moment_is_one_word() {
    let mut world = World::settled();
    world.facts(A).listening = false;
    // Until one tick has asked.
    let pulses = |w: &World| {
        w.log.iter().filter(|(_, e)| matches!(e, Effect::SendPulse { path, .. } if path.scvm == A)).count()
    };
    while pulses(&world) == 0 {
        world.run(MS);
    }
    let at: BTreeSet<u64> = world
        .log
        .iter()
        .filter_map(|(at, e)| matches!(e, Effect::SendPulse { path, .. } if path.scvm == A).then_some(at.0))
        .collect();
    assert_eq!(at.len(), 1, "one moment");
    world.facts(A).listening = true;
    assert_eq!(world.asks(), []);
}

/// The standbys were asked when the doubt began, and answer a little later than the server that has failed.
#[test]
fn a_verdict_does_not_wait_a_beat_for_its_target() {
    for phase in 0..60 {
        let mut world = World::settled();
        world.slow = [(B, MS), (C, MS)].into();
        world.run(200 * MS + phase * MS);
        world.log.clear();
        world.facts(A).listening = false;
        world.run(30 * MS);
        let first = |of: &dyn Fn(&Effect) -> bool| world.log.iter().find(|(_, e)| of(e)).map(|(at, _)| *at);
        let failed =
            first(&|e| matches!(e, Effect::Journal(Event::Health { path: None, to, .. }) if to == "failed"));
        let asked = first(&|e| matches!(e, Effect::Meta(ToMeta::Move { .. })));
        let (failed, asked) = (failed.expect("failed"), asked.expect("asked"));
        assert!(asked.since(failed) <= 2 * MS, "{} us, {phase}", asked.since(failed) / 1000);
    }
}
