//! Another station with this host's address is named, and nothing else comes of it.

use super::*;
use crate::duplicate::Claims;
use crate::sweep::Mac;

fn claimed_by(macs: &[Mac]) -> Result<Claims, String> {
    Ok(Claims { address: [10, 10, 85, 11].into(), macs: macs.iter().copied().collect() })
}

#[test]
fn it_is_named_until_it_is_gone_and_moves_nothing() {
    let mut world = World::settled();
    world.machine = world.machine.clone().with_duplicate_watch();
    world.claims = claimed_by(&[Mac([2, 0, 0, 0, 0, 7])]);
    world.run(3 * SEC);
    let error = world.machine.report(world.now).error.expect("named");
    assert!(error.contains("10.10.85.11 is used by 02:00:00:00:00:07 too"), "{error}");
    world.claims = claimed_by(&[]);
    world.run(3 * SEC);
    assert_eq!(world.machine.report(world.now).error, None);
    let moves = |e: &Effect| matches!(e, Effect::ReplaceRoute { .. } | Effect::Meta(ToMeta::Move { .. }));
    assert!(!world.log.iter().any(|(_, e)| moves(e)));
}
