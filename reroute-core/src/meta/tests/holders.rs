//! Who holds what; ghosts; ending a login; and what agents say that cannot be.

use super::table::{at_a, send};
use super::world::{StoreOutcome, World};
use super::*;
use crate::block::*;
use crate::meta::holders::GHOST_NS;

pub(super) fn facts(connections: u32, pulse_age_ns: Option<u64>) -> HolderFacts {
    HolderFacts {
        host: X,
        epoch: Epoch(1),
        word: "admitted".into(),
        connections,
        in_progress: 0,
        orphans: 0,
        packet_age_ns: None,
        pulse_age_ns,
        affirm_ns: 0,
        blocked_packets: 0,
    }
}

fn says(w: &mut World, scvm: ScvmId, facts: HolderFacts) {
    let term = w.master.term();
    w.send(NodeId::Scvm(scvm), ToMeta::Holders { term, clients: vec![facts] });
    w.deliver(w.in_flight() - 1, false);
}

fn ghost(w: &World) -> bool {
    w.master.view(BootNs(w.now)).logins[0].ghost
}

fn evict() -> Ask {
    Ask::Evict { client: "x".into(), reason: "dead".into(), actor: "root".into() }
}

/// Rounds in which the host's agent is gone, and its server lives; only `facts` are seen of it.
fn silent_host(w: &mut World, until: u64, facts: &HolderFacts) {
    while w.now < until {
        for id in [A, B, C] {
            w.beat(id);
        }
        says(w, A, facts.clone());
        while w.in_flight() > 0 {
            w.deliver(0, false);
        }
        w.pass(400 * MS);
    }
}

#[test]
fn a_login_is_a_ghost_when_nothing_at_all_is_heard_of_its_client() {
    let mut w = at_a();
    let quiet = facts(0, Some(2 * GHOST_NS));
    let end = w.now + GHOST_NS + 20 * SEC;
    silent_host(&mut w, end - 60 * SEC, &quiet);
    assert!(!ghost(&w), "not yet");
    silent_host(&mut w, end, &quiet);
    assert!(ghost(&w));
    // Any sign of life, of any kind.
    let signs = [
        HolderFacts { connections: 1, ..quiet.clone() },
        HolderFacts { in_progress: 1, ..quiet.clone() },
        HolderFacts { orphans: 1, ..quiet.clone() },
        HolderFacts { packet_age_ns: Some(SEC), ..quiet.clone() },
        HolderFacts { pulse_age_ns: Some(SEC), ..quiet.clone() },
    ];
    for sign in signs {
        let soon = w.now + 2 * SEC;
        silent_host(&mut w, soon, &sign);
        assert!(!ghost(&w), "{sign:?}");
        let soon = w.now + 2 * SEC;
        silent_host(&mut w, soon, &quiet);
        assert!(ghost(&w));
    }
    w.report();
    w.deliver(w.in_flight() - 1, false);
    w.pass(20 * MS);
    assert!(!ghost(&w), "its agent is back");
}

/// The incident: a dead holder stayed registered, and kept every new one out.
#[test]
fn a_ghost_never_blocks_a_new_login() {
    for server_dead in [false, true] {
        let mut w = at_a();
        let quiet = facts(0, None);
        if server_dead {
            w.power(A);
        }
        let end = w.now + GHOST_NS + 60 * SEC;
        while w.now < end {
            for id in [A, B, C] {
                w.beat(id);
            }
            if !server_dead {
                says(&mut w, A, quiet.clone());
            }
            while w.in_flight() > 0 {
                w.deliver(0, false);
            }
            w.pass(400 * MS);
        }
        assert!(ghost(&w), "server dead: {server_dead}");
        // The host comes back with nothing on its disk, and asks as if it had never been there.
        w.host = super::world::Host::default();
        w.report();
        w.calm_round();
        w.host.moving = w.record().unwrap().epoch().0;
        let asked = w.now;
        w.ask(C, false);
        w.calm_until("the new login", |w| w.stands_at() == Some(C));
        // No later than the leases of the old one, which were over long ago.
        assert!(w.now - asked < 3 * settings(1).session_ns, "{} ms", (w.now - asked) / MS);
        assert!(!ghost(&w));
    }
}

#[test]
fn an_operator_ends_a_login_with_a_fence_and_a_later_one_needs_a_new_epoch() {
    let mut w = at_a();
    let Ok(Done::Evicted { epoch: Epoch(2), fencing, .. }) = w.operator(evict()) else {
        panic!("{:?}", w.told)
    };
    assert_eq!(fencing, [A]);
    assert_eq!(w.operator(evict()), Err(Denial::AlreadyEvicted { host: X }));
    w.calm_round();
    w.calm_round();
    w.pass(300 * MS);
    w.store(StoreOutcome::Done);
    let record = w.record().unwrap().clone();
    let LoginState::Evicted { fencing, actor, .. } = &record.login.state else { panic!("{record:?}") };
    assert_eq!((actor.as_str(), record.login.reason.as_str()), ("root", "dead"));
    assert_eq!(fencing[0].proof, Some(FenceProof::Drained), "as for any move");
    assert!(w.scvms[&A].word.fenced);
    assert!(
        w.journal.iter().any(|e| matches!(e, Event::Evicted { host: X, from: Some(A), epoch: Epoch(2), .. }))
    );
    assert_eq!(w.host.at, None, "the host has let go");
    // From the epoch before nobody logs in; from this one anybody does, and the same server, too.
    let wish = |from| ToMeta::Move {
        from_epoch: Epoch(from),
        to: A,
        planned: false,
        reason: String::new(),
        evidence: vec![],
    };
    let (reply, _) = send(&mut w.master, NodeId::Host(X), 900, wish(1), w.now);
    let stale = Refusal::StaleEpoch { got: Epoch(1), current: Epoch(2) };
    assert_eq!(reply, MetaReply::Refused { error: stale });
    w.ask(A, false);
    w.calm_until("logged in anew", |w| w.stands_at() == Some(A));
    assert_eq!(w.record().unwrap().epoch(), Epoch(3));
}

#[test]
fn an_eviction_survives_meta_and_lets_nobody_in_before_the_proof() {
    let mut w = at_a();
    w.scvms.get_mut(&A).unwrap().up = false;
    w.operator(evict()).unwrap();
    w.restart(true);
    // The host hears of it, C opens its session, and the host asks for C.
    w.calm_round();
    w.calm_round();
    w.ask(C, false);
    for _ in 0..4 {
        w.calm_round();
    }
    assert_eq!(w.record().unwrap().moving_to(), Some(C));
    assert_eq!(w.stands_at(), None, "A has not been heard, and its lease may run");
    w.calm_until("both leases are over", |w| w.stands_at() == Some(C));
    let LoginState::At { proof, .. } = w.record().unwrap().login.state else { panic!() };
    assert_eq!(proof, FenceProof::LeaseExpiredStorage);
}

#[test]
fn a_move_under_way_is_ended_with_all_that_it_had_to_fence() {
    let mut w = at_a();
    w.scvms.get_mut(&A).unwrap().waits = true;
    w.ask(C, true);
    w.calm_until("moving", |w| w.record().is_some_and(|r| r.moving_to() == Some(C)));
    let Ok(Done::Evicted { epoch, fencing, .. }) = w.operator(evict()) else { panic!("{:?}", w.told) };
    assert_eq!((epoch, fencing), (Epoch(3), vec![A]));
    w.scvms.get_mut(&A).unwrap().waits = false;
    w.calm_until("shut", |w| match &w.record().unwrap().login.state {
        LoginState::Evicted { fencing, .. } => fencing.iter().all(|f| f.proof.is_some()),
        _ => false,
    });
    assert!(w.scvms[&A].word.fenced);
}

#[test]
fn who_has_no_login_has_none_to_end() {
    let mut w = World::new();
    assert_eq!(w.operator(evict()), Err(Denial::NoLogin { host: X }));
    let nobody = Ask::Evict { client: "nobody".into(), reason: String::new(), actor: "root".into() };
    assert!(matches!(w.operator(nobody), Err(Denial::UnknownClient { .. })));
}

/// Every message that names an epoch, with one of the past and one of the future: refused by name, nothing changes.
#[test]
fn epochs_of_the_past_and_the_future_are_refused_by_name() {
    let mut w = at_a();
    w.ask(C, false);
    w.calm_until("at C", |w| w.stands_at() == Some(C));
    let before = w.record().cloned();
    let (host, scvm) = (NodeId::Host(X), NodeId::Scvm(C));
    let path = Path { scvm: C, network: Network::Storage };
    let wish =
        |e| ToMeta::Move { from_epoch: e, to: A, planned: false, reason: String::new(), evidence: vec![] };
    let proof = FenceProof::Drained;
    let why = String::new;
    type Message = Box<dyn Fn(Epoch) -> ToMeta>;
    let messages: Vec<(NodeId, Message, &[u64])> = vec![
        (host, Box::new(wish), &[1, 9]),
        (host, Box::new(move |epoch| ToMeta::Arrived { epoch, path }), &[1, 9]),
        // What was let go of long ago is no news, and no error.
        (host, Box::new(|epoch| ToMeta::Released { epoch }), &[9]),
        (host, Box::new(|epoch| ToMeta::FencedByPulse { scvm: C, epoch }), &[9]),
        (scvm, Box::new(|epoch| ToMeta::Prepared { host: X, epoch, error: None }), &[1, 9]),
        (scvm, Box::new(|epoch| ToMeta::Admitted { host: X, epoch, error: None }), &[1, 9]),
        (scvm, Box::new(move |epoch| ToMeta::Fenced { host: X, epoch, proof }), &[9]),
        (
            scvm,
            Box::new(move |epoch| ToMeta::FenceWaits {
                host: X,
                epoch,
                in_progress: 1,
                orphans: 0,
                why: why(),
            }),
            &[9],
        ),
    ];
    let mut seq = 1000;
    for (from, message, epochs) in &messages {
        for &epoch in *epochs {
            seq += 1;
            let msg = message(Epoch(epoch));
            let (reply, effects) = send(&mut w.master, *from, seq, msg.clone(), w.now);
            let MetaReply::Refused { error } = reply else { panic!("{msg:?}: {reply:?}") };
            let expected = Refusal::StaleEpoch { got: Epoch(epoch), current: Epoch(2) };
            assert_eq!(error, expected, "{msg:?}");
            assert!(error.to_string().contains("ask again"), "{error}");
            assert!(effects.is_empty(), "{msg:?}: {effects:?}");
        }
    }
    assert_eq!(w.record().cloned(), before);
}

/// A release of what was never given must not let leases that run count as over.
#[test]
fn a_release_of_the_future_proves_nothing() {
    let mut w = at_a();
    let future = ToMeta::Released { epoch: Epoch(50) };
    let (reply, _) = send(&mut w.master, NodeId::Host(X), 900, future, w.now);
    assert!(matches!(reply, MetaReply::Refused { error: Refusal::StaleEpoch { .. } }), "{reply:?}");
    let report =
        HostReport { epoch: Epoch(1), scvm: Some(A), released: Some(Epoch(50)), ..HostReport::default() };
    send(&mut w.master, NodeId::Host(X), 901, ToMeta::HostReport { report }, w.now);
    // Its host goes on affirming A, which Meta cannot reach; the move must wait for the host's own release.
    w.scvms.get_mut(&A).unwrap().up = false;
    let wish =
        ToMeta::Move { from_epoch: Epoch(1), to: C, planned: false, reason: String::new(), evidence: vec![] };
    send(&mut w.master, NodeId::Host(X), 902, wish, w.now);
    for _ in 0..60 {
        w.beat(C);
        w.pulse();
        w.store(StoreOutcome::Done);
        for at in (0..w.in_flight()).rev() {
            match w.network[at].clone() {
                super::world::Packet::Push { to: NodeId::Host(_), .. } => w.lose(at),
                _ => w.deliver(at, false),
            }
        }
        w.pass(50 * MS);
    }
    assert_eq!(w.stands_at(), None);
    assert!(!w.journal.iter().any(|e| matches!(e, Event::FenceProven { .. })), "{:?}", w.journal);
}

#[test]
fn two_agents_that_speak_as_one_host_are_named_once() {
    let mut w = at_a();
    let report = |w: &World| {
        let mut report = HostReport { epoch: Epoch(1), scvm: Some(A), ..HostReport::default() };
        report.route_age_ns = w.now;
        ToMeta::HostReport { report }
    };
    let speak = |w: &mut World, incarnation: u64, seq: u64| {
        let msg = report(w);
        w.next += 1;
        let (request, incarnation) = (RequestId(w.next), Incarnation(incarnation));
        let input = Input::Message { request, from: NodeId::Host(X), incarnation, seq, msg };
        w.now += 100 * MS;
        let effects = w.master.handle(input, BootNs(w.now));
        effects
            .iter()
            .filter(|e| matches!(e, Effect::Journal(Event::Fault { what }) if what.contains("two agents")))
            .count()
    };
    // Restarts, however many, are none.
    assert_eq!((10..20).map(|run| speak(&mut w, run, 1)).sum::<usize>(), 0);
    assert!(w.master.view(BootNs(w.now)).alarms.is_empty());
    w.now += 20 * SEC;
    let said: usize = (1..20).map(|seq| speak(&mut w, 30 + seq % 2, seq)).sum();
    assert_eq!(said, 1);
    let alarms = w.master.view(BootNs(w.now)).alarms;
    assert!(alarms.len() == 1 && alarms[0].contains("host 1"), "{alarms:?}");
    w.now += 20 * SEC;
    assert_eq!(speak(&mut w, 30, 100), 0);
    assert!(w.master.view(BootNs(w.now)).alarms.is_empty(), "one of them was stopped");
}
