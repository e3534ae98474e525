//! A server that answers NULL, and none of the calls that need its storage.

use super::*;

const LONG: u64 = 3 * SEC;

/// Everybody's calls for data are answered, but at A for `ns`.
fn stuck(ns: u64) -> World {
    let mut world = World::settled();
    world.facts(A).data_silent = true;
    world.facts(A).data_reply_age_ns = u64::MAX;
    world.run(ns);
    world
}

fn kinds(message: &ToMeta) -> Vec<EvidenceKind> {
    let ToMeta::Move { evidence, planned: false, .. } = message else { panic!("{message:?}") };
    evidence.iter().map(|e| e.kind).collect()
}

#[test]
fn it_is_left_for_one_that_reaches_its_own() {
    let mut world = stuck(1900 * MS);
    assert_eq!(world.asks(), [], "a disk may take its time");
    world.run(200 * MS);
    let asks = world.asks();
    assert_eq!(asks.len(), 1);
    assert_eq!(kinds(&asks[0]), [EvidenceKind::DataSilent]);
}

#[test]
fn it_is_not_left_where_nobody_reaches_the_storage() {
    for spoil in [
        |f: &mut Facts| f.data_reply_age_ns = u64::MAX,
        |f: &mut Facts| f.data_silent = true,
        // Answered last before the trouble began: that says nothing.
        |f: &mut Facts| f.data_reply_age_ns = 10 * SEC,
    ] {
        let mut world = World::settled();
        for scvm in [B, C] {
            spoil(world.facts(scvm));
        }
        world.facts(A).data_silent = true;
        world.run(LONG);
        assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
        let said = world.faults();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("no other server is seen to answer them"), "{said:?}");
    }
}

#[test]
fn a_moment_in_which_data_flows_begins_the_wait_anew() {
    let mut world = stuck(1900 * MS);
    world.facts(A).data_silent = false;
    world.run(20 * MS);
    world.facts(A).data_silent = true;
    world.run(1900 * MS);
    assert_eq!(world.asks(), []);
}

#[test]
fn without_meta_it_is_not_left() {
    let mut world = World::settled();
    world.input(Input::MetaLink { up: false });
    world.facts(A).data_silent = true;
    world.run(LONG);
    assert_eq!((world.asks(), world.routes()), (vec![], vec![]));
    assert!(world.faults()[0].contains("no move can be asked for now"), "{:?}", world.faults());
}
