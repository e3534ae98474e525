//! A kernel that destroys no sockets.

use super::moving::moving;
use super::*;

fn at(network: Network, port: u16) -> OldSocket {
    OldSocket { network: Some(network), port }
}

/// Moved from A to B at epoch 2, with these from before.
fn moved(sockets: &[OldSocket]) -> World {
    let mut world = World::settled();
    world.stay = Some(sockets.to_vec());
    moving(&mut world);
    world.run(50 * MS);
    assert_eq!(asked(&world), [], "not before the login stands");
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world
}

/// When the server was asked, and for which ports.
fn asked(world: &World) -> Vec<(BootNs, Vec<u16>)> {
    let each = world.log.iter().filter_map(|(at, e)| match e {
        Effect::Meta(ToMeta::ResetWanted { epoch: Epoch(2), network: Network::Storage, ports, .. }) => {
            Some((*at, ports.clone()))
        }
        Effect::Meta(ToMeta::ResetWanted { .. }) => panic!("{e:?}"),
        _ => None,
    });
    each.collect()
}

fn position(world: &World, wanted: impl Fn(&Effect) -> bool) -> usize {
    world.log.iter().position(|(_, e)| wanted(e)).expect("the effect")
}

fn ended(world: &World) -> Option<u32> {
    world.log.iter().find_map(|(_, e)| match e {
        Effect::Journal(Event::OldConnectionsEnded { connections, .. }) => Some(*connections),
        _ => None,
    })
}

#[test]
fn the_new_server_is_asked_once_the_route_stands_and_the_login_is_affirmed() {
    let mut world = moved(&[at(Network::Storage, 700), at(Network::Storage, 701)]);
    let route = position(&world, |e| matches!(e, Effect::ReplaceRoute { .. }));
    let affirmed =
        position(&world, |e| matches!(e, Effect::SendPulse { flag: PulseFlag::Affirm, epoch: Epoch(2), .. }));
    let reset = position(&world, |e| matches!(e, Effect::Meta(ToMeta::ResetWanted { .. })));
    assert!(route < affirmed && affirmed < reset);
    assert_eq!(asked(&world)[0].1, [700, 701]);
    assert!(world.messages().iter().any(|m| matches!(m, ToMeta::Arrived { epoch: Epoch(2), .. })));
    let standing = world.machine.local(world.now).reset.unwrap();
    assert_eq!((standing.connections, standing.left, standing.asked), (2, 2, 1));

    world.stay = Some(Vec::new());
    world.run(100 * MS);
    assert_eq!(ended(&world), Some(2));
    assert_eq!(world.machine.local(world.now).reset.unwrap().left, 0);
    let looks = |w: &World| w.log.iter().filter(|(_, e)| matches!(e, Effect::FindSockets)).count();
    let before = looks(&world);
    world.run(5 * SEC);
    assert_eq!((asked(&world).len(), looks(&world)), (1, before), "and that is the end of it");
}

#[test]
fn what_stays_is_asked_for_again_a_few_times_and_then_named() {
    let mut world = moved(&[at(Network::Storage, 700), at(Network::Storage, 701)]);
    world.run(100 * MS);
    world.stay = Some(vec![at(Network::Storage, 701)]);
    world.run(20 * SEC);
    let asked = asked(&world);
    assert_eq!(asked.len(), 6);
    assert!(asked[1..].iter().all(|(_, ports)| *ports == [701]), "{asked:?}");
    for pair in asked.windows(2) {
        let pause = pair[1].0.since(pair[0].0);
        assert!((500 * MS..700 * MS).contains(&pause), "a TCP answers once in 500 ms: {pause}");
    }
    assert!(world.faults().iter().any(|f| f.contains("have not ended after 6 resets")));
    assert_eq!(world.machine.local(world.now).reset.unwrap().left, 1);
    assert_eq!(ended(&world), None);
}

#[test]
fn a_question_that_nobody_took_is_asked_again_soon() {
    let mut world = World::settled();
    world.stay = Some(vec![at(Network::Storage, 700)]);
    moving(&mut world);
    world.run(50 * MS);
    world.meta_error = Some("no answer".into());
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world.meta_error = None;
    world.run(250 * MS);
    let asked = asked(&world);
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[1].0.since(asked[0].0) >= 100 * MS);
}

#[test]
fn another_move_ends_the_asking() {
    let mut world = moved(&[at(Network::Storage, 700)]);
    world.order(Order::Moving { from: Some(B), from_epoch: Epoch(2), to: C, epoch: Epoch(3) });
    let before = asked(&world).len();
    world.run(5 * SEC);
    assert_eq!(asked(&world).len(), before);
}

#[test]
fn a_login_that_has_moved_on_ends_the_asking() {
    let mut world = moved(&[at(Network::Storage, 700)]);
    let (network, ports) = (Network::Storage, vec![700]);
    let message = ToMeta::ResetWanted { epoch: Epoch(2), network, ports, own: false };
    let error = Refusal::StaleEpoch { got: Epoch(2), current: Epoch(3) };
    world.input(Input::MetaAnswer { message, result: Ok(MetaReply::Refused { error }) });
    world.run(5 * SEC);
    assert_eq!(asked(&world).len(), 1);
}

#[test]
fn those_of_another_address_are_named_and_not_asked_for() {
    let stranger = OldSocket { network: None, port: 703 };
    let world = moved(&[at(Network::Private, 702), stranger, at(Network::Storage, 700)]);
    assert_eq!(asked(&world)[0].1, [700]);
    assert!(world.faults().iter().any(|f| f.starts_with("2 connections stay")), "{:?}", world.faults());
    let world = moved(&[at(Network::Private, 702)]);
    assert_eq!(asked(&world), [], "nobody could do anything");
}

#[test]
fn a_server_that_was_restarted_in_place_is_asked_too() {
    let mut world = World::settled();
    moving(&mut world);
    world.run(50 * MS);
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world.run(100 * MS);
    world.stay = Some(vec![at(Network::Storage, 700)]);
    world.facts(B).server = Incarnation(2);
    world.run(100 * MS);
    assert_eq!(asked(&world)[0].1, [700]);
}

/// Whether the server's own ends go as well.
fn own(world: &World) -> Vec<bool> {
    let each = world.log.iter().filter_map(|(_, e)| match e {
        Effect::Meta(ToMeta::ResetWanted { own, .. }) => Some(*own),
        _ => None,
    });
    each.collect()
}

#[test]
fn the_servers_own_ends_go_only_where_the_server_is_the_same() {
    let world = moved(&[at(Network::Storage, 700)]);
    assert_eq!(own(&world), [false], "what it has from that port is new");
    // The route is gone and put back: another connection has shut those by this path meanwhile.
    let mut world = World::settled();
    world.stay = Some(vec![at(Network::Storage, 700)]);
    world.route = Found::None;
    world.input(Input::RouteRead(Ok(Found::None)));
    assert_eq!(own(&world), [true]);
}

/// Meta goes away when the host has just arrived, and is back after three seconds.
#[test]
fn a_reset_that_nobody_heard_is_asked_for_again() {
    let mut world = World::settled();
    world.stay = Some(vec![OldSocket { network: Some(Network::Storage), port: 700 }]);
    moving(&mut world);
    world.run(50 * MS);
    world.meta_error = Some("no leader".into());
    world.order(Order::At { scvm: B, epoch: Epoch(2) });
    world.run(3 * SEC);
    world.meta_error = None;
    world.log.clear();
    world.run(10 * SEC);
    let asked = world.messages().iter().filter(|m| matches!(m, ToMeta::ResetWanted { .. })).count();
    assert!(asked > 0, "{:?}", world.machine.local(world.now).faults);
}

/// A move to B came to nothing; back at A after half a second in which A has dropped what came.
#[test]
fn the_same_servers_own_ends_go() {
    let mut world = World::settled();
    world.stay = Some(vec![OldSocket { network: Some(Network::Storage), port: 700 }]);
    moving(&mut world);
    world.run(500 * MS);
    world.order(Order::Moving { from: Some(A), from_epoch: Epoch(1), to: A, epoch: Epoch(3) });
    world.run(20 * MS);
    world.order(Order::At { scvm: A, epoch: Epoch(3) });
    let own: Vec<bool> = world
        .messages()
        .iter()
        .filter_map(|m| match m {
            ToMeta::ResetWanted { own, .. } => Some(*own),
            _ => None,
        })
        .collect();
    assert_eq!(own, [true], "the server has stayed the same (adr/0026): these are its old connections");
}
