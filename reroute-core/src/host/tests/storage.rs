//! A server that answers NULL, and none of the calls that need its storage.

use super::*;

const LONG: u64 = 6 * SEC;

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
    let mut world = stuck(4900 * MS);
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
        |f: &mut Facts| f.data_reply_age_ns = 20 * SEC,
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
    let mut world = stuck(4900 * MS);
    world.facts(A).data_silent = false;
    world.facts(A).data_reply_age_ns = 0;
    world.run(20 * MS);
    world.facts(A).data_silent = true;
    world.run(4900 * MS);
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

/// The client has begun a new connection: no call for a moment, and then they wait again.
#[test]
fn a_moment_without_calls_is_no_answer() {
    let mut world = stuck(4100 * MS);
    world.facts(A).data_silent = false;
    world.run(200 * MS);
    world.facts(A).data_silent = true;
    world.run(600 * MS);
    assert_eq!(world.asks(), []);
    world.run(300 * MS);
    assert_eq!(world.asks().len(), 1, "5 s after the first of them");
}

/// A's storage is stuck; B's and C's are not.
fn left_stuck_a() -> World {
    let mut world = World::settled();
    world.facts(A).data_silent = true;
    world.facts(A).data_reply_age_ns = u64::MAX;
    let (message, _) = world.run_until_asked(LONG);
    let ToMeta::Move { to, .. } = message else { panic!() };
    world.order(Order::Moving { from: Some(A), from_epoch: Epoch(1), to, epoch: Epoch(2) });
    world.run(20 * MS);
    world.order(Order::At { scvm: to, epoch: Epoch(2) });
    world.log.clear();
    world
}

#[test]
fn no_return_to_a_server_that_says_its_storage_is_stuck() {
    let mut world = left_stuck_a();
    world.run(60 * SEC);
    assert_eq!(world.asks(), [], "A says DATA_SILENT in each pulse");
}

#[test]
fn no_failover_to_a_server_that_says_its_storage_is_stuck() {
    let record = Record { epoch: Epoch(1), scvm: Some(B), released: None, term: Term(1) };
    let mut world = World::new(record, Found::Ours(storage(B)));
    world.facts(A).data_silent = true;
    world.facts(A).data_reply_age_ns = u64::MAX;
    world.run(SEC);
    world.log.clear();
    world.facts(B).listening = false;
    let (message, _) = world.run_until_asked(SEC);
    assert!(matches!(message, ToMeta::Move { to: C, .. }), "{message:?}");
}

/// Nobody is left there who could call, so its kernel has nothing to say.
#[test]
fn no_quick_return_to_a_server_whose_storage_was_stuck_and_that_has_no_client() {
    let mut world = left_stuck_a();
    world.facts(A).data_silent = false;
    world.run(60 * SEC);
    assert_eq!(world.asks(), [], "nothing has shown that A reaches its storage");
}
