//! The hypervisor's word on the domain of the local SCVM: what proves its death, and all that does not.

use super::*;

const UUID: &str = "5b2a3f4e-0c1d-4e2f-8a9b-1c2d3e4f5a6b";
const X: HostId = HostId(9);

fn domain(id: u32, life: Life) -> Domain {
    Domain { id, uuid: UUID.into(), name: "scvm1".into(), life }
}
fn dom0() -> Domain {
    Domain { id: 0, uuid: "0".into(), name: "Domain-0".into(), life: Life::Alive }
}

/// A host that has known the domain (number 7) for a while.
fn knowing() -> World {
    let record = Record { epoch: Epoch(1), scvm: Some(A), released: None, term: Term(0) };
    let mut world = World::new(record, Found::Ours(storage(A)));
    world.machine = Machine::new(settings(), record, world.now).with_hypervisor("scvm1".into(), 100);
    world.domains = Ok(vec![dom0(), domain(7, Life::Alive)]);
    world.input(Input::RouteRead(Ok(Found::Ours(storage(A)))));
    world.input(Input::MetaLink { up: true });
    world.run(15 * SEC);
    let known = world.machine.notes.domain.clone().expect("known");
    assert_eq!((known.id, known.boot), (7, Some(7)), "with its kernel's boot, by pulse");
    world.log.clear();
    world
}

fn ask(world: &mut World, epoch: u64) {
    world.order(Order::AskDomain { scvm: A, host: X, epoch: Epoch(epoch) });
    world.run(20 * MS);
}

fn told(world: &World) -> Vec<(Epoch, Option<Incarnation>)> {
    let dead = |m: ToMeta| match m {
        ToMeta::DomainDead { scvm: A, host: X, epoch, boot } => Some((epoch, boot)),
        ToMeta::DomainDead { .. } => panic!("{m:?}"),
        _ => None,
    };
    world.messages().into_iter().filter_map(dead).collect()
}

fn dies(world: &mut World, domains: Result<Vec<Domain>, String>) {
    world.cut(A);
    world.run(200 * MS);
    world.domains = domains;
}

#[test]
fn a_domain_that_is_gone_dying_or_crashed_is_dead_and_only_who_asks_is_told() {
    for rest in [vec![], vec![domain(7, Life::Dead)]] {
        let mut world = knowing();
        dies(&mut world, Ok([vec![dom0()], rest].concat()));
        world.run(10 * SEC);
        assert_eq!(told(&world), [], "nobody has asked");
        ask(&mut world, 4);
        assert_eq!(told(&world), [(Epoch(4), None)]);
        world.run(10 * SEC);
        assert_eq!(told(&world).len(), 1, "once per question");
    }
}

#[test]
fn anything_else_is_no_proof() {
    let other = Domain { id: 8, uuid: "other".into(), name: "vm1".into(), life: Life::Dead };
    let nameless = Domain { id: 9, uuid: "nameless".into(), name: String::new(), life: Life::Alive };
    for (what, domains) in [
        ("alive (paused and blocked are)", Ok(vec![dom0(), domain(7, Life::Alive)])),
        ("suspended", Ok(vec![dom0(), domain(7, Life::Suspended)])),
        ("a transient failure", Err("xl: exit code 1".to_string())),
        ("somebody else's", Ok(vec![dom0(), domain(7, Life::Alive), other])),
    ] {
        let mut world = knowing();
        dies(&mut world, domains);
        for _ in 0..5 {
            ask(&mut world, 4);
        }
        assert_eq!(told(&world), [], "{what}");
    }
    // It runs under another name or number, or under one that nobody can tell: another instance may serve.
    let renamed = Domain { name: "scvm1--migratedaway".into(), ..domain(7, Life::Alive) };
    for rest in [renamed, domain(8, Life::Alive), nameless] {
        let mut world = knowing();
        dies(&mut world, Ok(vec![dom0(), rest]));
        ask(&mut world, 4);
        assert!(told(&world).iter().all(|(_, boot)| *boot == Some(Incarnation(7))), "{:?}", told(&world));
    }
}

#[test]
fn who_was_suspended_and_is_gone_may_go_on_elsewhere() {
    let mut world = knowing();
    dies(&mut world, Ok(vec![dom0(), domain(7, Life::Suspended)]));
    ask(&mut world, 4);
    world.domains = Ok(vec![dom0()]);
    ask(&mut world, 4);
    assert_eq!(told(&world), []);
}

#[test]
fn a_name_never_seen_alive_proves_nothing() {
    let record = Record { epoch: Epoch(1), scvm: Some(A), released: None, term: Term(0) };
    let mut world = World::new(record, Found::Ours(storage(A)));
    world.machine = Machine::new(settings(), record, world.now).with_hypervisor("scvm-1".into(), 100);
    world.domains = Ok(vec![dom0(), domain(7, Life::Alive)]);
    world.run(5 * SEC);
    world.cut(A);
    world.run(SEC);
    ask(&mut world, 4);
    assert_eq!(told(&world), []);
}

#[test]
fn a_domain_that_is_not_the_scvms_is_found_out_by_the_pulses() {
    let mut world = knowing();
    world.domains = Ok(vec![dom0()]);
    for _ in 0..5 {
        ask(&mut world, 4);
        world.run(200 * MS);
    }
    assert_eq!(told(&world), []);
    // The answer to a question takes a while, and pulses come back meanwhile.
    world.hypervisor_waits = true;
    ask(&mut world, 5);
    world.run(50 * MS);
    let began = world.reading.take().expect("asked");
    world.input(Input::Hypervisor { began, result: Ok(vec![dom0()]) });
    assert_eq!(told(&world), []);
    assert!(world.faults().iter().any(|f| f.contains("is [host] hypervisor.domain the right one")));
}

#[test]
fn a_restarted_domain_proves_the_end_of_the_old_one_only() {
    let mut world = knowing();
    dies(&mut world, Ok(vec![dom0(), domain(8, Life::Alive)]));
    ask(&mut world, 4);
    assert_eq!(told(&world), [(Epoch(4), Some(Incarnation(7)))], "the kernel that ran in number 7");
    world.log.clear();
    // And so it stays while the new one boots; when that is dead too, nothing runs any more.
    ask(&mut world, 4);
    assert_eq!(told(&world), [(Epoch(4), Some(Incarnation(7)))]);
    world.log.clear();
    world.domains = Ok(vec![dom0()]);
    ask(&mut world, 4);
    assert_eq!(told(&world), [(Epoch(4), None)]);
}

/// The SCVM was restarted, and is there again before anybody asks: its new domain is known, and nothing is amiss.
#[test]
fn the_new_domain_is_known_once_the_old_one_is_gone() {
    for boot in [7, 8] {
        let mut world = knowing();
        world.domains = Ok(vec![dom0(), domain(8, Life::Alive)]);
        world.facts(A).scvm_boot = boot;
        world.run(15 * SEC);
        let known = world.machine.notes.domain.clone().expect("known");
        assert_eq!((known.id, known.boot), (8, Some(boot)));
        assert_eq!(world.faults(), Vec::<String>::new());
    }
}

#[test]
fn only_what_was_read_after_the_question_answers_it() {
    let mut world = knowing();
    dies(&mut world, Ok(vec![dom0()]));
    world.hypervisor_waits = true;
    world.run(6 * SEC);
    let began = world.reading.take().expect("the regular look");
    // A reading is under way when the question comes: its answer is not for that.
    ask(&mut world, 4);
    assert_eq!(world.reading, None, "one at a time");
    world.hypervisor_waits = false;
    world.input(Input::Hypervisor { began, result: Ok(vec![dom0()]) });
    assert_eq!(told(&world), [], "it may have been read before");
    world.run(20 * MS);
    assert_eq!(told(&world), [(Epoch(4), None)], "the next one is for it");
}

#[test]
fn a_new_agent_knows_the_domain_and_a_rebooted_node_that_it_is_gone() {
    let notes = knowing().machine.notes.clone();
    let record = Record { epoch: Epoch(1), scvm: Some(A), released: None, term: Term(0) };
    for (boot, life, dead) in [(100, Life::Alive, false), (101, Life::Alive, true)] {
        let mut world = World::new(record, Found::Ours(storage(A)));
        let machine = Machine::new(settings(), record, world.now).with_hypervisor("scvm1".into(), boot);
        world.machine = machine.with_notes(notes.clone());
        world.cut(A);
        world.domains = Ok(vec![dom0(), domain(7, life)]);
        world.run(SEC);
        ask(&mut world, 4);
        // The same number and UUID under another boot of the node is another instance.
        assert_eq!(!told(&world).is_empty(), dead);
        world.domains = Ok(vec![dom0()]);
        ask(&mut world, 5);
        assert!(told(&world).contains(&(Epoch(5), None)));
    }
}

#[test]
fn other_hosts_and_other_servers_are_not_spoken_of() {
    let mut world = knowing();
    dies(&mut world, Ok(vec![dom0()]));
    world.order(Order::AskDomain { scvm: B, host: X, epoch: Epoch(4) });
    world.run(SEC);
    assert!(!world.messages().iter().any(|m| matches!(m, ToMeta::DomainDead { .. })));
}
