//! Full frames are lost, pulses are not.

use super::*;
use crate::sweep::Outcome;

const FULL: Outcome = Outcome::Answers { rtt_ns: RTT };
const SMALL: Outcome = Outcome::SmallOnly { rtt_ns: RTT, told: None };

/// Each path that is tried gets `outcome`, for `ns`.
fn tried(world: &mut World, ns: u64, outcome: impl Fn(Path) -> Outcome) {
    let end = world.now.plus(ns);
    while world.now < end {
        world.run(100 * MS);
        let asked: Vec<Vec<Path>> = world
            .log
            .iter()
            .filter_map(|(at, e)| match e {
                Effect::TrySizes(paths) if at.0 > world.now.0 - 100 * MS => Some(paths.clone()),
                _ => None,
            })
            .collect();
        for paths in asked {
            world.input(Input::SizesTried(Ok(paths.into_iter().map(|p| (p, outcome(p))).collect())));
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
    tried(&mut world, 400 * MS, |p| if p.network == Network::Storage { SMALL } else { FULL });
    assert_eq!(world.routes(), [], "once may be a moment's");
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
    assert!(world.faults().iter().any(|f| f.contains("never passed")), "{:?}", world.faults());
}
