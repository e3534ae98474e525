//! Anything in any order: what must never happen does not ([`World::check`] looks at every effect).

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Run(u64),
    Late(u64),
    Cut(Path),
    Heal,
    Blackout(u64),
    Server(ScvmId, u8),
    Restart(ScvmId),
    /// Meta goes on with whatever was asked last: Moving, then At after this many ms.
    Follow(u64),
    GiveUp,
    Refuse,
    MetaLink(bool),
    MetaError(bool),
    PersistError(bool),
    RouteError(bool),
    Flush,
    Foreign,
    Adopt,
    Carrier(Network, bool),
}

fn scvm() -> impl Strategy<Value = ScvmId> {
    (1..=3u32).prop_map(ScvmId)
}

fn op() -> impl Strategy<Value = Op> {
    let network = prop_oneof![Just(Network::Storage), Just(Network::Management)];
    let path = (scvm(), network.clone()).prop_map(|(scvm, network)| Path { scvm, network });
    prop_oneof![
        4 => (10..400u64).prop_map(Op::Run),
        1 => (1000..8000u64).prop_map(Op::Run),
        1 => (0..25u64).prop_map(Op::Late),
        3 => path.prop_map(Op::Cut),
        2 => Just(Op::Heal),
        1 => (20..500u64).prop_map(Op::Blackout),
        3 => (scvm(), any::<u8>()).prop_map(|(s, b)| Op::Server(s, b)),
        1 => scvm().prop_map(Op::Restart),
        5 => (0..200u64).prop_map(Op::Follow),
        1 => Just(Op::GiveUp),
        1 => Just(Op::Refuse),
        1 => any::<bool>().prop_map(Op::MetaLink),
        1 => any::<bool>().prop_map(Op::MetaError),
        1 => any::<bool>().prop_map(Op::PersistError),
        1 => any::<bool>().prop_map(Op::RouteError),
        1 => Just(Op::Flush),
        1 => Just(Op::Foreign),
        1 => Just(Op::Adopt),
        1 => (network, any::<bool>()).prop_map(|(n, c)| Op::Carrier(n, c)),
    ]
}

struct Meta {
    at: ScvmId,
    epoch: u64,
}

fn apply(world: &mut World, meta: &mut Meta, op: &Op) {
    let log_from = world.log.len();
    let before = world.clone();
    match op {
        Op::Run(ms) => world.run(ms * MS),
        Op::Late(ms) => world.late_ns = ms * MS,
        Op::Cut(path) => {
            world.down.insert(*path);
        }
        Op::Heal => {
            world.down.clear();
            for facts in world.facts.values_mut() {
                (facts.listening, facts.silent, facts.null_failed, facts.enforcing) =
                    (true, false, false, true);
            }
        }
        Op::Blackout(ms) => {
            // Settled first, so that no earlier fault is still being found out.
            let down = world.down.clone();
            for scvm in [A, B, C] {
                world.cut(scvm);
            }
            let asked = world.asks().len();
            let quiet =
                before.down.is_empty() && before.late_ns == 0 && !before.machine.is_urgent(before.now);
            let well = before.facts.values().all(Facts::is_well);
            // Without carrier of its own the host knows already whose fault it is.
            let wired =
                [Network::Storage, Network::Management].into_iter().all(|n| before.machine.has_carrier(n));
            world.run(ms * MS);
            if quiet && well && wired && matches!(before.machine.phase, phase::Phase::Settled) {
                let news = &world.asks()[asked..];
                let unplanned =
                    news.iter().filter(|m| matches!(m, ToMeta::Move { planned: false, .. })).count();
                assert_eq!(unplanned, 0, "all were silent together");
            }
            world.down = down;
        }
        Op::Server(scvm, bits) => {
            let facts = world.facts(*scvm);
            facts.listening = bits & 3 != 0;
            facts.silent = bits & 4 != 0;
            facts.null_failed = bits & 8 != 0;
            facts.enforcing = bits & 48 != 0;
            facts.in_progress = u32::from(bits & 64 != 0);
        }
        Op::Restart(scvm) => world.facts(*scvm).server.0 += 1,
        Op::Follow(ms) => {
            let asked = world.asks();
            if let Some(ToMeta::Move { to, .. }) = asked.last()
                && *to != meta.at
            {
                let (from, from_epoch) = (meta.at, meta.epoch);
                meta.epoch += 1;
                world.order(Order::Moving {
                    from: Some(from),
                    from_epoch: Epoch(from_epoch),
                    to: *to,
                    epoch: Epoch(meta.epoch),
                });
                world.run(ms * MS);
                meta.at = *to;
                world.order(Order::At { scvm: *to, epoch: Epoch(meta.epoch) });
            }
        }
        Op::GiveUp => {
            meta.epoch += 1;
            let other = [A, B, C].into_iter().find(|s| *s != meta.at).unwrap();
            world.order(Order::Moving {
                from: Some(meta.at),
                from_epoch: Epoch(meta.epoch - 1),
                to: other,
                epoch: Epoch(meta.epoch),
            });
            world.run(50 * MS);
            meta.epoch += 1;
            world.order(Order::At { scvm: meta.at, epoch: Epoch(meta.epoch) });
        }
        Op::Refuse => {
            if let Some(ToMeta::Move { to, .. }) = world.asks().last() {
                let (to, error) = (*to, Refusal::TargetNotReady { scvm: *to });
                world.order(Order::MoveRefused { to, error });
            }
        }
        Op::MetaLink(up) => world.input(Input::MetaLink { up: *up }),
        Op::MetaError(on) => world.meta_error = on.then(|| "unreachable".into()),
        Op::PersistError(on) => world.persist_error = on.then(|| "disk".into()),
        Op::RouteError(on) => world.route_error = on.then(|| RouteFailure::Failed("down".into())),
        Op::Flush => {
            world.route = Found::None;
            world.adopted = false;
            world.input(Input::RouteRead(Ok(Found::None)));
        }
        Op::Foreign => {
            let theirs = Found::Foreign { what: "theirs".into(), path: None };
            // Leave was given for the one that stands.
            world.adopted &= world.route == theirs;
            world.route = theirs;
            world.input(Input::RouteRead(Ok(world.route.clone())));
        }
        Op::Adopt => {
            world.adopted = true;
            world.input(Input::Adopt);
        }
        Op::Carrier(network, carrier) => {
            world.input(Input::Interface { network: *network, carrier: *carrier });
        }
    }
    // Whoever was unfit all the while is never asked for.
    if let Op::Run(_) = op {
        for (at, effect) in &world.log[log_from..] {
            let Effect::Meta(ToMeta::Move { to, .. }) = effect else { continue };
            if at.since(before.now) > 300 * MS {
                let facts = &world.facts[to];
                assert!(facts.listening && facts.enforcing && !facts.silent && !facts.null_failed);
                let reachable = [storage(*to), management(*to)].iter().any(|p| !world.down.contains(p));
                assert!(reachable, "{to} cannot be reached");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_must_never_happen_does_not(ops in prop::collection::vec(op(), 1..40)) {
        let mut world = World::settled();
        let mut meta = Meta { at: A, epoch: 1 };
        for op in &ops {
            apply(&mut world, &mut meta, op);
        }
        // And when all is well again, the host ends where its login is, with the route there.
        world.late_ns = 0;
        world.meta_error = None;
        world.persist_error = None;
        world.route_error = None;
        apply(&mut world, &mut meta, &Op::Heal);
        world.adopted = true;
        world.input(Input::Adopt);
        for network in [Network::Storage, Network::Management] {
            world.input(Input::Interface { network, carrier: true });
        }
        world.input(Input::MetaLink { up: true });
        world.run(3 * SEC);
        world.order(Order::At { scvm: meta.at, epoch: Epoch(meta.epoch) });
        world.run(3 * SEC);
        let report = world.machine.report(world.now);
        prop_assert_eq!((report.scvm, report.epoch), (Some(meta.at), Epoch(meta.epoch)));
        prop_assert_eq!(report.path.map(|p| p.scvm), Some(meta.at));
        prop_assert!(world.flags(meta.at).contains(&(PulseFlag::Affirm, Epoch(meta.epoch))));
    }
}
