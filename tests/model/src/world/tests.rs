use super::clock::TRUE_RATE;
use super::*;
use std::hash::{DefaultHasher, Hash, Hasher};

fn world(canonical: bool) -> World {
    let mut settings = Settings::new(1, vec![FencePolicy::Storage; 2]);
    settings.canonical = canonical;
    World::new(settings, |_| Clock::new(SEC, TRUE_RATE))
}

fn hash(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Whatever is enabled happens at once, in the order of `pick`, until `until` holds.
fn drive(world: &mut World, mut pick: impl FnMut(usize) -> usize, until: impl Fn(&World) -> bool) {
    for step in world.begin() {
        world.apply(step);
    }
    for _ in 0..200_000 {
        if until(world) {
            return;
        }
        let steps: Vec<Step> = world.enabled().into_iter().filter(|s| !matches!(s, Step::Lose(_))).collect();
        let step = if steps.is_empty() { Step::Pass(MS) } else { steps[pick(steps.len())] };
        world.apply(step);
        assert_eq!(world.violations(), []);
    }
    panic!("it never came to that: {:?}", world.store);
}

#[test]
fn a_host_logs_in_and_writes_in_whatever_order_things_happen() {
    for seed in 0..5 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = world(true);
        drive(&mut world, |n| rng.usize(0..n), |w| w.host(HostId(1)).client.done() >= 5);
        assert_eq!(world.stands(HostId(1)).map(|(s, _)| s), Some(ScvmId(1)));
        assert_eq!(world.leads_to(HostId(1)).scvm, ScvmId(1));
    }
}

#[test]
fn the_same_steps_lead_to_the_same_world() {
    let run = || {
        let mut world = world(true);
        drive(&mut world, |_| 0, |w| w.stands(HostId(1)).is_some());
        world
    };
    let (mut a, b) = (run(), run());
    assert!(a == b && hash(&a) == hash(&b));
    a.apply(Step::Fault(Fault::HangServer(ScvmId(1))));
    assert!(a != b && hash(&a) != hash(&b));
}

/// Worlds that differ only in what was sent first are one.
#[test]
fn the_order_of_sending_does_not_number_what_is_under_way() {
    let mut world = world(true);
    for step in world.begin() {
        world.apply(step);
    }
    world.apply(Step::Pass(20 * MS));
    let wakes: Vec<Step> = world
        .enabled()
        .into_iter()
        .filter(|s| matches!(s, Step::Wake(Node::Host(_) | Node::Scvm(_))))
        .collect();
    assert!(wakes.len() >= 2);
    let (mut one, mut other) = (world.clone(), world);
    for step in &wakes {
        one.apply(*step);
    }
    for step in wakes.iter().rev() {
        other.apply(*step);
    }
    assert_eq!(hash(&one), hash(&other));
}

#[test]
fn a_hung_server_is_left_and_its_late_writes_are_refused() {
    let mut world = world(false);
    drive(&mut world, |_| 0, |w| w.host(HostId(1)).client.done() >= 5);
    world.apply(Step::Fault(Fault::HangServer(ScvmId(1))));
    let mut elsewhere = false;
    for _ in 0..2_000_000 {
        let done = world.host(HostId(1)).client.done();
        if elsewhere && done >= 20 {
            break;
        }
        let step =
            world.enabled().into_iter().find(|s| !matches!(s, Step::Lose(_))).unwrap_or(Step::Pass(MS));
        world.apply(step);
        if !elsewhere && world.stands(HostId(1)).is_some_and(|(s, _)| s == ScvmId(2)) {
            elsewhere = true;
        }
    }
    assert!(elsewhere, "{:?}", world.store);
    world.apply(Step::Fault(Fault::ResumeServer(ScvmId(1))));
    let mut late = 0;
    let execution = |world: &World| {
        let is_there = |p: &Pending| matches!(p, Pending::Execute { scvm: ScvmId(1), .. });
        world.flight.iter().find(|(_, p)| is_there(p)).map(|(id, _)| id)
    };
    while let Some(id) = execution(&world) {
        world.apply(Step::Do(id));
        late += 1;
    }
    assert!(late > 0, "the hung server had read nothing");
    assert_eq!(world.violations(), []);
}
