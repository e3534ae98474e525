//! The route under other hands.

use super::*;

fn foreign() -> Found {
    Found::Foreign { what: "via 10.10.85.99 proto 4".into(), path: None }
}

#[test]
fn a_flushed_route_is_put_back_and_stray_sockets_go() {
    let mut world = World::settled();
    world.route = Found::None;
    world.input(Input::RouteRead(Ok(Found::None)));
    assert_eq!(world.routes(), [storage(A)]);
    assert_eq!(world.resets(), [None]);
    assert_eq!(world.asks(), []);
    assert!(world.machine.report(world.now).reason.contains("put back"));
}

#[test]
fn a_flushed_route_waits_for_its_interface() {
    let mut world = World::settled();
    world.cut(A);
    world.cut(B);
    world.cut(C);
    world.input(Input::Interface { network: Network::Management, carrier: false });
    world.input(Input::Interface { network: Network::Storage, carrier: false });
    world.route = Found::None;
    world.input(Input::RouteRead(Ok(Found::None)));
    world.run(SEC);
    assert_eq!(world.routes(), []);
    world.down.clear();
    world.input(Input::Interface { network: Network::Storage, carrier: true });
    assert_eq!(world.routes(), [storage(A)]);
}

#[test]
fn a_foreign_route_blocks_until_it_is_adopted() {
    let mut world = World::settled();
    world.route = foreign();
    world.input(Input::RouteRead(Ok(foreign())));
    world.facts(A).listening = false;
    world.run(5 * SEC);
    assert_eq!((world.routes(), world.asks()), (vec![], vec![]));
    let error = world.machine.report(world.now).error.unwrap();
    assert!(error.contains("route adopt") && error.contains("10.10.85.99"), "{error}");
    world.adopted = true;
    world.input(Input::Adopt);
    assert_eq!(world.routes(), [storage(A)]);
    world.run(50 * MS);
    assert_eq!(world.asks().len(), 1, "and now the dead server is left");
    assert!(world.machine.report(world.now).error.is_none());
}

#[test]
fn a_foreign_route_that_goes_away_by_itself_is_forgotten() {
    let mut world = World::settled();
    world.route = foreign();
    world.input(Input::RouteRead(Ok(foreign())));
    world.run(100 * MS);
    world.route = Found::None;
    world.input(Input::RouteRead(Ok(Found::None)));
    assert_eq!(world.routes(), [storage(A)]);
    assert!(world.machine.report(world.now).error.is_none());
}

#[test]
fn nothing_is_changed_before_the_first_login() {
    for route in [Found::None, foreign(), Found::Ours(storage(C))] {
        let mut world = World::new(Record::default(), route);
        world.run(5 * SEC);
        assert_eq!((world.routes(), world.resets(), world.asks()), (vec![], vec![], vec![]));
    }
}

#[test]
fn a_foreign_route_holds_up_the_first_login() {
    let mut world = World::new(Record::default(), foreign());
    world.view(&[]);
    world.run(5 * SEC);
    assert_eq!(world.asks(), []);
    world.adopted = true;
    world.input(Input::Adopt);
    world.run(50 * MS);
    assert_eq!(world.asks().len(), 1);
    world.order(Order::At { scvm: A, epoch: Epoch(1) });
    assert_eq!(world.routes(), [storage(A)]);
}

#[test]
fn a_route_of_ours_that_serves_is_kept_at_the_first_login() {
    let mut world = World::new(Record::default(), Found::Ours(storage(C)));
    world.view(&[]);
    let (message, _) = world.run_until_asked(SEC);
    assert!(matches!(message, ToMeta::Move { to: C, .. }));
    world.order(Order::At { scvm: C, epoch: Epoch(1) });
    world.run(50 * MS);
    assert_eq!((world.routes(), world.resets()), (vec![], vec![]));
    assert!(world.messages().contains(&ToMeta::Arrived { epoch: Epoch(1), path: storage(C) }));
}

#[test]
fn a_crash_between_login_and_route_is_made_good() {
    let record = Record { epoch: Epoch(1), scvm: Some(A), released: Some(Epoch(1)), term: Term(1) };
    let mut world = World::new(record, Found::Ours(storage(A)));
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    assert_eq!(world.routes(), [storage(B)]);
    assert_eq!(world.resets().last(), Some(&None));
}

/// The client's calls were acknowledged by the old server's kernel, say: it would wait for ever. Nobody has to be asked.
#[test]
fn a_crash_between_route_and_sockets_is_made_good() {
    let record = Record { epoch: Epoch(2), scvm: Some(B), released: Some(Epoch(1)), term: Term(1) };
    let world = World::new(record, Found::Ours(storage(B)));
    assert_eq!((world.routes(), world.resets()), (vec![], vec![None]));
    assert!(world.messages().contains(&ToMeta::Arrived { epoch: Epoch(2), path: storage(B) }));
    let last = world.log.iter().rev().find_map(|(_, e)| match e {
        Effect::Persist(record) => Some(*record),
        _ => None,
    });
    assert_eq!(last, Some(Record { released: None, ..record }), "made good once");
}

/// Sockets of another source reach nobody by this path; the others are left alone.
#[test]
fn a_restart_ends_stray_sockets_only() {
    let record = Record { epoch: Epoch(2), scvm: Some(B), released: None, term: Term(1) };
    let mut world = World::new(record, Found::Ours(storage(B)));
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world.run(SEC);
    assert_eq!((world.routes(), world.resets()), (vec![], vec![Some(Network::Storage)]));
}

#[test]
fn leave_is_given_for_one_foreign_route_only() {
    let mut world = World::new(Record::default(), foreign());
    world.adopted = true;
    world.input(Input::Adopt);
    // Before it was used, another one stands there.
    world.adopted = false;
    world.route = Found::Foreign { what: "via 10.10.85.77 proto 5".into(), path: None };
    world.input(Input::RouteRead(Ok(world.route.clone())));
    world.view(&[]);
    world.run(2 * SEC);
    world.order(Order::At { scvm: A, epoch: Epoch(1) });
    world.run(2 * SEC);
    assert_eq!(world.routes(), []);
    assert!(world.machine.report(world.now).error.unwrap().contains("10.10.85.77"));
}
