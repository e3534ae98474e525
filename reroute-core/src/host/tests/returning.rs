//! Back from the management network, whatever else keeps the host from better places.

use super::*;

fn drained(scvm: ScvmId) -> Order {
    let draining = vec![is_drained(scvm)];
    Order::View { view: ClusterView { sessions: all_alive(), draining, ..ClusterView::default() } }
}

/// Local A is drained (its kernel answers pulses); the host is at B, whose storage path is lost and comes back.
#[test]
fn back_from_management_though_a_better_one_cannot_be_gone_to() {
    let record = Record { epoch: Epoch(1), scvm: Some(B), released: None, term: Term(1) };
    let mut world = World::new(record, Found::Ours(storage(B)));
    world.order(drained(A));
    world.run(10 * SEC);
    world.log.clear();
    world.down.extend([storage(A), storage(B), storage(C)]);
    world.run(SEC);
    assert_eq!(world.routes(), [management(B)]);
    world.down.clear();
    world.run(600 * SEC);
    assert_eq!(world.asks(), []);
    assert_eq!(world.routes(), [management(B), storage(B)], "stays on the management network");
}

/// The same by a session that Meta has lost: A's agent is dead.
#[test]
fn back_from_management_though_the_local_agent_is_dead() {
    let record = Record { epoch: Epoch(1), scvm: Some(B), released: None, term: Term(1) };
    let mut world = World::new(record, Found::Ours(storage(B)));
    world.view(&[(A, SessionState::Lost), (B, SessionState::Alive), (C, SessionState::Alive)]);
    world.run(10 * SEC);
    world.log.clear();
    world.down.extend([storage(A), storage(B), storage(C)]);
    world.run(SEC);
    world.down.clear();
    world.run(600 * SEC);
    assert_eq!(world.routes(), [management(B), storage(B)], "stays on the management network");
}

/// At B; its storage network is cut for a second. Local A could be gone to, all the while.
fn b_after_a_cut(spoil: impl Fn(&mut World)) -> World {
    let record = Record { epoch: Epoch(1), scvm: Some(B), released: None, term: Term(1) };
    let mut world = World::new(record, Found::Ours(storage(B)));
    world.run(SEC);
    world.log.clear();
    world.down.extend([storage(A), storage(B), storage(C)]);
    world.run(SEC);
    assert_eq!(world.routes(), [management(B)]);
    spoil(&mut world);
    world.down.clear();
    world.run(600 * SEC);
    world
}

/// Calls that were in progress when the sockets were destroyed: B's kernel never sees their end.
#[test]
fn orphans_do_not_keep_a_host_on_the_management_network() {
    let world = b_after_a_cut(|w| w.facts(B).orphans = 1);
    assert_eq!(world.routes(), [management(B), storage(B)], "{:?}", world.faults());
}

#[test]
fn without_meta_the_better_path_to_the_same_server_is_taken() {
    let world = b_after_a_cut(|w| w.input(Input::MetaLink { up: false }));
    assert_eq!(world.routes(), [management(B), storage(B)], "{:?}", world.faults());
}

#[test]
fn a_drained_server_that_cannot_be_left_is_reached_by_the_better_path() {
    let world = b_after_a_cut(|w| {
        w.facts(B).orphans = 1;
        w.order(drained(B));
    });
    assert_eq!(world.routes(), [management(B), storage(B)], "{:?}", world.faults());
}
