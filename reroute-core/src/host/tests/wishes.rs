//! What operators want: an SCVM that is being drained is left, a pinned place is gone to and kept.

use super::*;

fn drain(world: &mut World, scvms: &[ScvmId]) {
    let login = Login {
        host: HostId(1),
        state: LoginState::At { scvm: A, epoch: Epoch(1), proof: FenceProof::FirstLogin },
        term: Term(1),
        reason: String::new(),
    };
    let view = ClusterView {
        sessions: all_alive(),
        logins: vec![LoginView {
            login,
            age_ns: 0,
            does_not_cover: String::new(),
            holder: None,
            ghost: false,
        }],
        draining: scvms.iter().map(|scvm| is_drained(*scvm)).collect(),
        ..ClusterView::default()
    };
    world.order(Order::View { view });
}

fn wishes(world: &World) -> Vec<(ScvmId, bool)> {
    let wish = |m: ToMeta| match m {
        ToMeta::Move { to, planned, .. } => Some((to, planned)),
        _ => None,
    };
    world.asks().into_iter().filter_map(wish).collect()
}

/// Meta does what was asked for.
fn follow(world: &mut World, from: ScvmId, to: ScvmId, epoch: u64) {
    let (from, from_epoch) = (Some(from), Epoch(epoch - 1));
    world.order(Order::Moving { from, from_epoch, to, epoch: Epoch(epoch) });
    world.run(20 * MS);
    world.order(Order::At { scvm: to, epoch: Epoch(epoch) });
    world.log.clear();
}

fn set(world: &mut World, scvm: ScvmId, network: Option<Network>, until: Option<BootNs>) {
    world.machine.check_pin(scvm, network, world.now).unwrap();
    let pin = Pin { scvm, network, until, actor: "alice".into() };
    world.input(Input::Pin(Some(pin)));
}

#[test]
fn a_draining_scvm_is_left_by_a_planned_move_and_not_returned_to() {
    let mut world = World::settled();
    drain(&mut world, &[A]);
    let (_, took) = world.run_until_asked(SEC);
    assert!(took <= 20 * MS, "at once: {took}");
    let [(to, true)] = wishes(&world)[..] else { panic!("{:?}", wishes(&world)) };
    assert_ne!(to, A);
    follow(&mut world, A, to, 2);
    world.run(20 * SEC);
    assert_eq!(wishes(&world), [], "the local one is better, but it is being drained");
    drain(&mut world, &[]);
    world.run(20 * SEC);
    assert_eq!(wishes(&world).first(), Some(&(A, true)));
}

#[test]
fn nobody_flees_to_a_draining_scvm_and_who_cannot_leave_says_why() {
    let mut world = World::settled();
    drain(&mut world, &[B]);
    world.facts(A).listening = false;
    world.run_until_asked(SEC);
    assert_eq!(wishes(&world), [(C, false)]);

    let mut world = World::settled();
    drain(&mut world, &[A, B, C]);
    world.run(5 * SEC);
    assert_eq!(wishes(&world), []);
    assert!(world.faults().iter().any(|f| f.contains("no other server can take this host")));

    // Calls whose end nobody saw: a planned move would wait for them in vain.
    let mut world = World::settled();
    world.facts(A).orphans = 2;
    world.run(20 * MS);
    drain(&mut world, &[A]);
    world.run(5 * SEC);
    assert_eq!(wishes(&world), []);
    assert!(world.faults().iter().any(|f| f.contains("whose end nobody saw")), "{:?}", world.faults());
}

#[test]
fn a_drain_waits_for_a_quiet_moment_and_not_for_ever() {
    let mut world = World::settled();
    world.facts(A).in_progress = 2;
    world.run(20 * MS);
    drain(&mut world, &[A]);
    let (_, took) = world.run_until_asked(5 * SEC);
    assert!((900 * MS..1200 * MS).contains(&took), "{took}");
}

#[test]
fn a_pinned_server_is_gone_to_at_once_and_kept() {
    let mut world = World::settled();
    set(&mut world, C, None, None);
    world.run(20 * MS);
    assert_eq!(wishes(&world), [(C, true)]);
    follow(&mut world, A, C, 2);
    world.run(30 * SEC);
    assert_eq!(wishes(&world), [], "home is better, but C is pinned");
    assert_eq!(world.machine.path_now(), storage(C));
    // Its storage path is lost: the same server by another network, though another server is there by storage.
    world.down.insert(storage(C));
    world.run(SEC);
    assert_eq!((wishes(&world), world.machine.path_now()), (vec![], management(C)));
    world.down.clear();
    world.run(30 * SEC);
    assert_eq!((wishes(&world), world.machine.path_now()), (vec![], storage(C)), "back on storage, at C");
    // Conclusively failed: left all the same.
    world.facts(C).listening = false;
    let (message, _) = world.run_until_asked(SEC);
    assert!(matches!(message, ToMeta::Move { to, planned: false, .. } if to != C), "{message:?}");
    world.input(Input::Pin(None));
    assert_eq!(world.machine.pinned(), None);
}

#[test]
fn after_its_time_or_when_it_is_taken_back_the_host_goes_home() {
    for expires in [true, false] {
        let mut world = World::settled();
        let until = expires.then(|| world.now.plus(10 * SEC));
        set(&mut world, C, None, until);
        world.run(20 * MS);
        follow(&mut world, A, C, 2);
        world.run(9 * SEC);
        assert_eq!(wishes(&world), []);
        if !expires {
            world.input(Input::Pin(None));
        }
        world.run(10 * SEC);
        assert_eq!(wishes(&world).first(), Some(&(A, true)));
        assert_eq!(world.machine.pinned(), None);
    }
}

#[test]
fn another_path_of_the_same_server_needs_no_meta() {
    let mut world = World::settled();
    world.input(Input::MetaLink { up: false });
    set(&mut world, A, Some(Network::Management), None);
    world.run(20 * MS);
    assert_eq!((wishes(&world), world.routes()), (vec![], vec![management(A)]));
    world.run(30 * SEC);
    assert_eq!(world.machine.path_now(), management(A), "storage is better, but management is pinned");
}

#[test]
fn a_pin_survives_a_restart_and_is_written_before_long() {
    let mut world = World::settled();
    set(&mut world, C, None, Some(BootNs(500 * SEC)));
    let noted = world.log.iter().rev().find_map(|(_, e)| match e {
        Effect::PersistNotes(notes) => Some(notes.clone()),
        _ => None,
    });
    let notes = noted.expect("written");
    assert_eq!(notes.pin.as_ref().map(|p| p.scvm), Some(C));
    let record = Record { epoch: Epoch(1), scvm: Some(A), released: None, term: Term(0) };
    let mut world = World::new(record, Found::Ours(storage(A)));
    world.machine = Machine::new(settings(), record, world.now).with_notes(notes);
    world.input(Input::RouteRead(Ok(Found::Ours(storage(A)))));
    world.input(Input::MetaLink { up: true });
    world.run(10 * SEC);
    assert_eq!(wishes(&world).first(), Some(&(C, true)));
}

#[test]
fn a_pin_that_makes_no_sense_is_refused_by_name() {
    let mut world = World::settled();
    let check = |w: &World, scvm, network| w.machine.check_pin(scvm, network, w.now).unwrap_err();
    assert_eq!(check(&world, A, None), PinRefused::AlreadyThere(storage(A)));
    assert_eq!(check(&world, ScvmId(9), None), PinRefused::Unknown(ScvmId(9)));
    assert_eq!(check(&world, B, Some(Network::Private)), PinRefused::Private);
    drain(&mut world, &[B]);
    assert_eq!(check(&world, B, None), PinRefused::Draining(B));
    drain(&mut world, &[]);
    world.cut(C);
    world.run(2 * SEC);
    assert!(matches!(check(&world, C, None), PinRefused::NotAlive { .. }));
    world.facts(B).listening = false;
    world.run(2 * SEC);
    assert!(matches!(check(&world, B, None), PinRefused::NotAlive { why, .. } if why.contains("failed")));
    world.input(Input::RouteRead(Ok(Found::Foreign { what: "theirs".into(), path: None })));
    assert_eq!(check(&world, B, None), PinRefused::Foreign("theirs".into()));
}
