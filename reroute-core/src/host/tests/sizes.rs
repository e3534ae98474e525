//! Full frames are lost, pulses are not.

use super::*;
use crate::sweep::Outcome;

const FULL: Outcome = Outcome::Answers { rtt_ns: RTT };
const SMALL: Outcome = Outcome::SmallOnly { rtt_ns: RTT, told: None };

/// Each path that is tried gets `outcome`, for `ns`.
fn tried(world: &mut World, ns: u64, outcome: impl FnMut(Path) -> Outcome) {
    tried_with(world, ns, true, 1500, outcome);
}

fn tried_with(world: &mut World, ns: u64, waits: bool, mtu: u32, mut outcome: impl FnMut(Path) -> Outcome) {
    let end = world.now.plus(ns);
    while world.now < end {
        world.run(20 * MS);
        let asked: Vec<Vec<Path>> = world
            .log
            .iter()
            .filter_map(|(at, e)| match e {
                Effect::TrySizes(paths) if at.0 > world.now.0 - 20 * MS => Some(paths.clone()),
                _ => None,
            })
            .collect();
        for paths in asked {
            let paths = paths.into_iter().map(|path| Tried { path, mtu, outcome: outcome(path) }).collect();
            world.input(Input::SizesTried(Ok(SizesTried { paths, waits: Some(waits) })));
        }
    }
}

fn settled() -> World {
    let mut world = World::settled();
    world.machine = world.machine.with_size_checks();
    tried(&mut world, SEC, |_| FULL);
    world.log.clear();
    world
}

#[test]
fn the_own_link_lets_no_full_frames_pass() {
    let mut world = settled();
    tried(&mut world, 200 * MS, |p| if p.network == Network::Storage { SMALL } else { FULL });
    assert_eq!(world.routes(), [], "a few may be a moment's");
    tried(&mut world, 800 * MS, |p| if p.network == Network::Storage { SMALL } else { FULL });
    assert_eq!((world.asks(), world.routes()), (vec![], vec![management(A)]));
    let report = world.machine.report(world.now);
    assert!(report.reason.contains("MTU"), "{}", report.reason);
    tried(&mut world, 5 * SEC, |p| if p.network == Network::Storage { SMALL } else { FULL });
    assert_eq!(world.routes(), [management(A)], "pulses alone do not bring it back");
    tried(&mut world, 5 * SEC, |_| FULL);
    assert_eq!(world.routes(), [management(A), storage(A)]);
}

#[test]
fn one_scvms_link_lets_no_full_frames_pass() {
    let mut world = settled();
    tried(&mut world, 1500 * MS, |p| if p == storage(A) { SMALL } else { FULL });
    let asks = world.asks();
    assert!(
        matches!(&asks[..], [ToMeta::Move { to, reason, .. }] if *to != A && reason.contains("MTU")),
        "{asks:?}"
    );
}

#[test]
fn who_filters_echoes_is_not_suspected_and_neither_is_who_never_passed_them() {
    for outcome in [Outcome::Silent, Outcome::Refused(crate::sweep::Obstacle::NoRoute)] {
        let mut world = settled();
        tried(&mut world, 5 * SEC, |_| outcome);
        assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
    }
    let mut world = World::settled();
    world.machine = world.machine.with_size_checks();
    tried(&mut world, 5 * SEC, |_| SMALL);
    assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
    assert!(world.faults().iter().any(|f| f.contains("is the MTU the same")), "{:?}", world.faults());
}

#[test]
fn echoes_alone_change_no_path_and_neither_does_another_mtu() {
    let mut world = settled();
    tried_with(&mut world, 10 * SEC, false, 1500, |_| SMALL);
    assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
    assert!(world.faults().iter().any(|f| f.contains("is the MTU the same")), "{:?}", world.faults());
    // The first segment that is not acknowledged makes it two.
    tried(&mut world, SEC, |p| if p.network == Network::Storage { SMALL } else { FULL });
    assert_eq!(world.routes(), [management(A)]);

    // Set on this host before the others: TCP has agreed on a smaller segment.
    let mut world = settled();
    tried_with(&mut world, 10 * SEC, true, 9000, |_| SMALL);
    assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
    let not_sent =
        |_| Outcome::SmallOnly { rtt_ns: RTT, told: Some(crate::sweep::Obstacle::NotSent { errno: 12 }) };
    let mut world = settled();
    tried(&mut world, 10 * SEC, not_sent);
    assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
}

/// Three full frames in ten are lost, and three small ones in a hundred, for a minute and a half.
#[test]
fn a_queue_that_drops_full_frames_first_is_no_mtu() {
    let mut world = settled();
    let mut seed = 11u64;
    tried(&mut world, 90 * SEC, |_| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // As measured for such a sweep.
        if (seed >> 33) % 1000 < 130 { SMALL } else { FULL }
    });
    assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
}

#[test]
fn who_answers_no_echo_any_more_is_not_held_to_be_narrow() {
    let mut world = settled();
    tried(&mut world, 2 * SEC, |p| if p.network == Network::Storage { SMALL } else { FULL });
    assert_eq!(world.routes(), [management(A)]);
    tried(&mut world, 10 * SEC, |p| if p.network == Network::Storage { Outcome::Silent } else { FULL });
    assert_eq!(world.routes(), [management(A), storage(A)]);
}

/// Its own server's link, behind a port with another MTU since it came back: nobody goes home to that.
#[test]
fn a_path_that_passes_small_frames_only_is_no_place_to_go_to() {
    let mut world = settled();
    world.cut(A);
    tried(&mut world, 200 * MS, |_| FULL);
    let asks = world.asks();
    let [ToMeta::Move { to, .. }] = &asks[..] else { panic!("{asks:?}") };
    let to = *to;
    world.order(Order::Moving { from: Some(A), from_epoch: Epoch(1), to, epoch: Epoch(2) });
    world.run(20 * MS);
    world.order(Order::At { scvm: to, epoch: Epoch(2) });
    world.down.clear();
    world.log.clear();
    tried_with(&mut world, 30 * SEC, false, 1500, |p| if p == storage(A) { SMALL } else { FULL });
    assert_eq!(world.asks(), []);
    // And nobody flees there while another one is well.
    world.facts(to).listening = false;
    let (message, _) = world.run_until_asked(SEC);
    assert!(!matches!(message, ToMeta::Move { to: A, .. }), "{message:?}");
}

#[test]
fn a_path_that_is_not_tried_any_more_is_no_doubt() {
    let mut world = settled();
    tried(&mut world, 60 * MS, |p| if p == storage(C) { SMALL } else { FULL });
    world.down.insert(storage(C));
    world.input(Input::Interface { network: Network::Management, carrier: false });
    tried(&mut world, 2 * SEC, |_| FULL);
    world.log.clear();
    tried(&mut world, 2 * SEC, |p| if p == storage(C) { Outcome::Silent } else { FULL });
    let sweeps = world.log.iter().filter(|(_, e)| matches!(e, Effect::TrySizes(_))).count();
    assert!(sweeps <= 5, "{sweeps}");
}
