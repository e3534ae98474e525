//! Random loss, duplication, reordering, dead SCVMs, a failing store and restarts: [`World`] checks every step.

use super::world::{StoreOutcome, World};
use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Beat(ScvmId),
    Pulse,
    Report,
    Ask(ScvmId, bool),
    Deliver(usize, bool),
    Lose(usize),
    Store(StoreOutcome),
    Hang(bool),
    Power(ScvmId),
    Waits(ScvmId, bool),
    CannotAdmit(ScvmId, bool),
    Connect(NodeId),
    Evict,
    Block,
    Restart(bool),
    Calm,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let scvm = || prop_oneof![Just(A), Just(B), Just(C)];
    let node = prop_oneof![Just(NodeId::Host(X)), scvm().prop_map(NodeId::Scvm)];
    let outcome = prop_oneof![
        8 => Just(StoreOutcome::Done),
        1 => Just(StoreOutcome::Refused),
        1 => Just(StoreOutcome::Unknown),
        1 => Just(StoreOutcome::Lost),
    ];
    let step = prop_oneof![
        6 => (1u64..150).prop_map(|ms| Step::Pass(ms * MS)),
        1 => (500u64..2500).prop_map(|ms| Step::Pass(ms * MS)),
        6 => scvm().prop_map(Step::Beat),
        4 => Just(Step::Pulse),
        2 => Just(Step::Report),
        5 => (scvm(), any::<bool>()).prop_map(|(s, p)| Step::Ask(s, p)),
        24 => (any::<usize>(), prop::bool::weighted(0.15)).prop_map(|(i, again)| Step::Deliver(i, again)),
        3 => any::<usize>().prop_map(Step::Lose),
        8 => outcome.prop_map(Step::Store),
        1 => any::<bool>().prop_map(Step::Hang),
        1 => scvm().prop_map(Step::Power),
        1 => (scvm(), any::<bool>()).prop_map(|(s, w)| Step::Waits(s, w)),
        1 => (scvm(), any::<bool>()).prop_map(|(s, w)| Step::CannotAdmit(s, w)),
        2 => node.prop_map(Step::Connect),
        1 => Just(Step::Evict),
        1 => Just(Step::Block),
        1 => any::<bool>().prop_map(Step::Restart),
        3 => Just(Step::Calm),
    ];
    prop::collection::vec(step, 1..150)
}

fn run(world: &mut World, steps: Vec<Step>) {
    for step in steps {
        let n = world.in_flight();
        match step {
            Step::Pass(ns) => world.pass(ns),
            Step::Beat(s) => world.beat(s),
            Step::Pulse => world.pulse(),
            Step::Report => world.report(),
            Step::Ask(s, planned) => world.ask(s, planned),
            Step::Deliver(i, again) if n > 0 => world.deliver(i % n, again),
            Step::Lose(i) if n > 0 => world.lose(i % n),
            Step::Deliver(..) | Step::Lose(_) => {}
            Step::Store(outcome) => world.store(outcome),
            Step::Hang(hangs) => world.hang(hangs),
            Step::Power(s) => world.power(s),
            Step::Waits(s, w) => world.scvms.get_mut(&s).expect("configured").waits = w,
            Step::CannotAdmit(s, w) => world.scvms.get_mut(&s).expect("configured").cannot_admit = w,
            Step::Connect(node) => world.input(Input::Connected { node }),
            Step::Evict => world.evict(),
            Step::Block => world.block(300),
            Step::Restart(written) => world.restart(written),
            Step::Calm => world.calm_round(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_two_servers_and_never_stuck(steps in steps(), target in prop_oneof![Just(A), Just(B), Just(C)]) {
        let mut world = World::new();
        run(&mut world, steps);
        // When all is well again, the host gets where it wants to be.
        world.hang(false);
        for id in [A, B, C] {
            let s = world.scvms.get_mut(&id).expect("configured");
            (s.waits, s.cannot_admit) = (false, false);
            if !s.up {
                world.power(id);
            }
        }
        for _ in 0..12 {
            if world.stands_at() == Some(target) {
                break;
            }
            world.calm_round();
            world.calm_round();
            world.ask(target, false);
            for _ in 0..10 {
                world.calm_round();
            }
        }
        world.calm_until("the login stands at the target", |w| w.stands_at() == Some(target));
    }
}
