//! The rules one by one.

use super::world::{StoreOutcome, World};
use super::*;

/// A world in which the host is logged in at A.
pub(super) fn at_a() -> World {
    let mut w = World::new();
    w.calm_round();
    w.ask(A, false);
    w.calm_until("first login", |w| w.stands_at() == Some(A));
    w.calm_round();
    w
}

fn state(w: &World) -> &LoginState {
    &w.record().expect("stored").login.state
}

#[test]
fn first_login_needs_no_fence_and_happens_once() {
    let w = at_a();
    assert_eq!(*state(&w), LoginState::At { scvm: A, epoch: Epoch(1), proof: FenceProof::FirstLogin });
    assert!(w.journal.iter().any(|e| matches!(e, Event::LoginStored { host: X, scvm: A, epoch: Epoch(1) })));
}

#[test]
fn a_move_names_its_proof_and_is_told_in_order() {
    let mut w = at_a();
    w.ask(C, false);
    w.calm_until("at C", |w| w.stands_at() == Some(C));
    assert_eq!(*state(&w), LoginState::At { scvm: C, epoch: Epoch(2), proof: FenceProof::Drained });
    let order: Vec<u8> = w
        .journal
        .iter()
        .filter_map(|e| match e {
            Event::MoveRecorded { epoch: Epoch(2), from: Some(A), to: C, .. } => Some(1),
            Event::RevokeSent { scvm: A, epoch: Epoch(1), .. } => Some(2),
            Event::FenceProven { scvm: A, epoch: Epoch(1), .. } => Some(3),
            Event::LoginStored { scvm: C, epoch: Epoch(2), .. } => Some(4),
            _ => None,
        })
        .collect();
    assert_eq!(order, [1, 2, 3, 4]);
}

pub(super) fn send(
    w: &mut SessionMaster,
    from: NodeId,
    seq: u64,
    msg: ToMeta,
    now: u64,
) -> (MetaReply, Vec<Effect>) {
    let input = Input::Message { request: RequestId(seq), from, incarnation: Incarnation(77), seq, msg };
    let mut effects = handle(w, input, BootNs(now));
    let at = effects.iter().position(|e| matches!(e, Effect::Reply { .. })).expect("answered");
    match effects.remove(at) {
        Effect::Reply { reply, .. } => (reply, effects),
        _ => unreachable!(),
    }
}

fn refused(reply: MetaReply) -> Refusal {
    match reply {
        MetaReply::Refused { error } => error,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn refusals_are_named_and_change_nothing() {
    let w = at_a();
    let now = w.now;
    let host = NodeId::Host(X);
    let wish = |from_epoch, to| ToMeta::Move {
        from_epoch: Epoch(from_epoch),
        to,
        planned: false,
        reason: String::new(),
        evidence: vec![],
    };
    let health = well();
    let cases = [
        (host, wish(1, ScvmId(9)), Refusal::UnknownScvm { scvm: ScvmId(9) }),
        (host, wish(0, C), Refusal::StaleEpoch { got: Epoch(0), current: Epoch(1) }),
        (host, wish(1, A), Refusal::MoveToSelf { scvm: A }),
        (
            host,
            ToMeta::SessionOpen { boot: Incarnation(1), health: health.clone() },
            Refusal::WrongSender { node: host },
        ),
        (
            NodeId::Scvm(A),
            ToMeta::Released { epoch: Epoch(1) },
            Refusal::WrongSender { node: NodeId::Scvm(A) },
        ),
        (NodeId::Scvm(A), ToMeta::KeepAlive { term: Term(1), health: health.clone() }, Refusal::NoSession),
        (
            NodeId::Scvm(ScvmId(9)),
            ToMeta::KeepAlive { term: Term(1), health },
            Refusal::UnknownNode { node: NodeId::Scvm(ScvmId(9)) },
        ),
        (
            NodeId::Scvm(A),
            ToMeta::Fenced { host: X, epoch: Epoch(1), proof: FenceProof::Killed },
            Refusal::ProofNotAllowed { node: NodeId::Scvm(A), proof: FenceProof::Killed },
        ),
        (
            NodeId::Scvm(A),
            ToMeta::Fenced { host: X, epoch: Epoch(1), proof: FenceProof::Drained },
            Refusal::StaleEpoch { got: Epoch(1), current: Epoch(1) },
        ),
    ];
    for (from, msg, want) in cases {
        let mut master = w.master.clone();
        let (reply, effects) = send(&mut master, from, 1, msg.clone(), now);
        assert_eq!(refused(reply), want, "{msg:?}");
        assert_eq!(effects, [], "{msg:?}");
        assert_eq!(master.view(BootNs(now)), w.master.view(BootNs(now)), "{msg:?}");
    }
}

#[test]
fn a_dead_target_is_refused() {
    let mut w = at_a();
    w.power(C);
    for _ in 0..15 {
        w.calm_round();
    }
    let wish =
        ToMeta::Move { from_epoch: Epoch(1), to: C, planned: false, reason: String::new(), evidence: vec![] };
    let (reply, _) = send(&mut w.master, NodeId::Host(X), 1, wish, w.now);
    assert_eq!(refused(reply), Refusal::TargetNotReady { scvm: C });
    assert_eq!(w.master.view(BootNs(w.now)).sessions[2].state, SessionState::Lost);
}

#[test]
fn a_stale_fence_proves_nothing() {
    let mut w = at_a();
    w.ask(C, false);
    w.calm_until("at C", |w| w.stands_at() == Some(C));
    w.ask(A, false);
    w.calm_until("back at A", |w| w.stands_at() == Some(A));
    // From A again; A is dead to the network, and only its old words turn up.
    w.power(A);
    w.ask(C, false);
    w.calm_until("moving", |w| w.record().is_some_and(|r| r.epoch() == Epoch(4)));
    let admits = w.admits;
    for (seq, epoch) in [(1, 1), (2, 2), (3, 4), (4, 9)] {
        let msg = ToMeta::Fenced { host: X, epoch: Epoch(epoch), proof: FenceProof::Drained };
        let (reply, effects) = send(&mut w.master, NodeId::Scvm(A), seq, msg, w.now);
        assert_eq!(refused(reply), Refusal::StaleEpoch { got: Epoch(epoch), current: Epoch(4) });
        assert_eq!(effects, []);
    }
    assert_eq!(w.admits, admits);
    let msg = ToMeta::Fenced { host: X, epoch: Epoch(3), proof: FenceProof::Drained };
    let (_, effects) = send(&mut w.master, NodeId::Scvm(A), 5, msg, w.now);
    assert!(
        effects.contains(&Effect::Push {
            node: NodeId::Scvm(C),
            order: Order::Admit { host: X, epoch: Epoch(4) }
        })
    );
}

#[test]
fn a_dead_server_with_storage_is_left_after_its_leases_and_not_before() {
    let mut w = at_a();
    for _ in 0..30 {
        w.calm_round();
    }
    w.power(A);
    let died = w.now;
    w.ask(C, false);
    w.calm_until("at C", |w| w.stands_at() == Some(C));
    assert_eq!(
        *state(&w),
        LoginState::At { scvm: C, epoch: Epoch(2), proof: FenceProof::LeaseExpiredStorage }
    );
    assert!(w.now - died > 500 * MS, "not before the session lease had run out");
}

#[test]
fn after_a_restart_expiry_waits_for_the_longest_session() {
    let mut w = at_a();
    w.power(A);
    w.ask(C, false);
    w.calm_round();
    w.restart(false);
    let restarted = w.now;
    w.calm_until("at C", |w| w.stands_at() == Some(C));
    assert!(w.now - restarted > 1000 * MS);
    assert_eq!(w.record().expect("stored").login.term, Term(2));
}

#[test]
fn a_dead_server_with_kill_is_never_left_by_expiry() {
    let mut w = at_a();
    w.ask(B, false);
    w.calm_until("at B", |w| w.stands_at() == Some(B));
    w.power(B);
    w.ask(C, false);
    for _ in 0..100 {
        w.calm_round();
    }
    assert!(matches!(state(&w), LoginState::Moving { to: C, epoch: Epoch(3), .. }));
    // The host itself knows better: the old kernel said by pulse that it is shut and idle.
    let msg = ToMeta::FencedByPulse { scvm: B, epoch: Epoch(2) };
    w.scvms.get_mut(&B).expect("configured").word = Default::default();
    let input = Input::Message {
        request: RequestId(1),
        from: NodeId::Host(X),
        incarnation: Incarnation(9),
        seq: 1,
        msg,
    };
    let effects = handle(&mut w.master, input, BootNs(w.now));
    assert!(
        effects.contains(&Effect::Push {
            node: NodeId::Scvm(C),
            order: Order::Admit { host: X, epoch: Epoch(3) }
        })
    );
}

#[test]
fn a_planned_move_that_cannot_drain_goes_back() {
    let mut w = at_a();
    w.scvms.get_mut(&A).expect("configured").waits = true;
    w.ask(C, true);
    w.calm_until("back at A", |w| {
        w.stands_at() == Some(A) && w.record().is_some_and(|r| r.epoch() == Epoch(3))
    });
    assert_eq!(*state(&w), LoginState::At { scvm: A, epoch: Epoch(3), proof: FenceProof::SameServer });
}

#[test]
fn a_target_that_cannot_admit_is_told_and_left_for_another() {
    let mut w = at_a();
    w.scvms.get_mut(&C).expect("configured").cannot_admit = true;
    w.ask(C, false);
    w.calm_until("refused", |w| w.host.refused > 0);
    w.ask(B, false);
    w.calm_until("at B", |w| w.stands_at() == Some(B));
    let LoginState::At { epoch, .. } = state(&w) else { panic!() };
    assert_eq!(*epoch, Epoch(3));
    let fenced_c = w.journal.iter().any(|e| matches!(e, Event::FenceProven { scvm: C, epoch: Epoch(2), .. }));
    assert!(fenced_c, "C may have admitted at epoch 2: it is fenced before B opens");
}

#[test]
fn a_store_that_refuses_leaves_the_login_where_it_was() {
    let mut w = at_a();
    w.ask(C, false);
    while w.in_flight() > 0 {
        w.deliver(0, false);
    }
    w.store(StoreOutcome::Refused);
    assert_eq!(w.stands_at(), Some(A));
    w.calm_round();
    assert_eq!(w.host.refused, 1);
    w.ask(C, false);
    w.calm_until("at C", |w| w.stands_at() == Some(C));
}

#[test]
fn copies_change_nothing_and_get_the_same_answer() {
    let w = at_a();
    let mut master = w.master.clone();
    let wish =
        ToMeta::Move { from_epoch: Epoch(1), to: C, planned: false, reason: String::new(), evidence: vec![] };
    let (first, effects) = send(&mut master, NodeId::Host(X), 100, wish.clone(), w.now);
    assert!(effects.iter().any(|e| matches!(e, Effect::Push { order: Order::Prepare { .. }, .. })));
    let (second, effects) = send(&mut master, NodeId::Host(X), 100, wish.clone(), w.now);
    assert_eq!((first, effects), (second, vec![]));
    for seq in 101..200 {
        send(&mut master, NodeId::Host(X), seq, ToMeta::Released { epoch: Epoch(0) }, w.now);
    }
    assert_eq!(refused(send(&mut master, NodeId::Host(X), 100, wish, w.now).0), Refusal::TooOld { seq: 100 });
}

#[test]
fn health_and_late_keepalives_show() {
    let mut w = at_a();
    let seen = |w: &World| w.master.view(BootNs(w.now)).sessions[0].clone();
    assert_eq!((seen(&w).state, seen(&w).reason), (SessionState::Alive, String::new()));
    w.pass(320 * MS);
    assert_eq!(seen(&w).state, SessionState::Suspect);
    let generation = w.master.generation();
    w.pass(300 * MS);
    assert_eq!(seen(&w).state, SessionState::Lost);
    assert!(w.master.generation() > generation);
    let mut health = well();
    health.process_alive = false;
    let (_, _) =
        send(&mut w.master, NodeId::Scvm(A), 1, ToMeta::SessionOpen { boot: Incarnation(1), health }, w.now);
    assert_eq!(
        (seen(&w).state, seen(&w).reason),
        (SessionState::Suspect, "the server process is dead".into())
    );
}

#[test]
fn what_comes_late_is_no_use_and_no_harm() {
    let mut w = at_a();
    w.ask(C, false);
    w.calm_until("at C", |w| w.stands_at() == Some(C));
    for (seq, from, msg) in [
        (1, NodeId::Scvm(A), ToMeta::Fenced { host: X, epoch: Epoch(1), proof: FenceProof::Drained }),
        (2, NodeId::Host(X), ToMeta::FencedByPulse { scvm: A, epoch: Epoch(1) }),
        (3, NodeId::Scvm(C), ToMeta::Admitted { host: X, epoch: Epoch(2), error: None }),
    ] {
        let (reply, effects) = send(&mut w.master, from, seq, msg, w.now);
        assert_eq!((reply, effects), (MetaReply::Ok { term: Term(1) }, vec![]));
    }
}

#[test]
fn a_lapsed_session_is_not_revived() {
    let mut w = at_a();
    let scvm = NodeId::Scvm(A);
    let open = ToMeta::SessionOpen { boot: Incarnation(1), health: well() };
    let beat = ToMeta::KeepAlive { term: Term(1), health: well() };
    send(&mut w.master, scvm, 1, open, w.now);
    let later = w.now + 540 * MS;
    assert_eq!(send(&mut w.master, scvm, 2, beat.clone(), later).0, MetaReply::Ok { term: Term(1) });
    let lapsed = later + 551 * MS;
    assert_eq!(refused(send(&mut w.master, scvm, 3, beat.clone(), lapsed).0), Refusal::NoSession);
    let old_term = ToMeta::KeepAlive { term: Term(0), health: well() };
    assert_eq!(refused(send(&mut w.master, scvm, 4, old_term, later).0), Refusal::NoSession);
}

/// A store that nobody can read may hold the move to B already, and that record does not fence C: C must not open.
#[test]
fn nobody_is_admitted_while_the_store_may_say_otherwise() {
    let w = at_a();
    let (mut m, now, version) = (w.master.clone(), w.now, w.store[&X].version);
    let wish = |from_epoch, to| ToMeta::Move {
        from_epoch: Epoch(from_epoch),
        to,
        planned: false,
        reason: String::new(),
        evidence: vec![],
    };
    let prepared = |epoch| ToMeta::Prepared { host: X, epoch: Epoch(epoch), error: None };
    let stored = |effects: &[Effect]| {
        effects
            .iter()
            .find_map(|e| match e {
                Effect::Store { record, .. } => Some(record.clone()),
                _ => None,
            })
            .expect("asked to store")
    };
    let admits = |effects: &[Effect]| {
        effects.iter().any(|e| matches!(e, Effect::Push { order: Order::Admit { .. }, .. }))
    };
    send(&mut m, NodeId::Host(X), 1, wish(1, C), now);
    send(&mut m, NodeId::Scvm(C), 2, prepared(2), now);
    handle(&mut m, Input::StoreDone { host: X, version: version + 1 }, BootNs(now));
    send(&mut m, NodeId::Host(X), 3, wish(2, B), now);
    let (_, effects) = send(&mut m, NodeId::Scvm(B), 4, prepared(3), now);
    let to_b = stored(&effects);
    assert_eq!(to_b.fencing().len(), 1, "C was told nothing yet: only A needs a fence");

    // On its way to the store, and then perhaps there.
    let fenced = ToMeta::Fenced { host: X, epoch: Epoch(1), proof: FenceProof::Drained };
    for lost in [false, true] {
        let mut m = m.clone();
        if lost {
            handle(&mut m, Input::StoreFailed { host: X, why: "test".into(), found: None }, BootNs(now));
        }
        let (_, effects) = send(&mut m, NodeId::Scvm(A), 5, fenced.clone(), now);
        assert!(!admits(&effects), "{effects:?}");
        let open = ToMeta::SessionOpen { boot: Incarnation(1), health: well() };
        let (reply, _) = send(&mut m, NodeId::Scvm(C), 6, open, now);
        assert_eq!(
            reply,
            MetaReply::Session { term: Term(1), logins: vec![], orders_to: 0, blocks: Default::default() }
        );
        if lost {
            // What it knows is written again, and so it learns what is there.
            let later = BootNs(now + 300 * MS);
            let effects = handle(&mut m, Input::Tick, later);
            assert!(!admits(&effects), "{effects:?}");
            assert_eq!(stored(&effects).moving_to(), Some(C));
            let found = Some(Some(Versioned { version: version + 2, record: to_b.clone() }));
            handle(&mut m, Input::StoreFailed { host: X, why: "conflict".into(), found }, later);
            assert_eq!(m.view(later).logins[0].login, to_b.login);
        }
    }
}

/// A client that cannot end its connections itself: passed on to the server that has admitted it, and to no other.
#[test]
fn a_reset_goes_to_the_server_of_that_very_epoch_or_nowhere() {
    let mut w = at_a();
    let host = NodeId::Host(X);
    let wish = |epoch, ports: &[u16]| ToMeta::ResetWanted {
        epoch: Epoch(epoch),
        network: Network::Storage,
        ports: ports.to_vec(),
        own: false,
    };
    let order = |effects: &[Effect]| match effects {
        [Effect::Push { node, order: Order::ResetClient { host: X, epoch, network, ports, own: false } }] => {
            (*node, *epoch, *network, ports.clone())
        }
        other => panic!("{other:?}"),
    };
    let (reply, effects) = send(&mut w.master.clone(), host, 1, wish(1, &[700, 701]), w.now);
    assert_eq!(reply, MetaReply::Ok { term: Term(1) });
    assert_eq!(order(&effects), (NodeId::Scvm(A), Epoch(1), Network::Storage, vec![700, 701]));
    let many: Vec<u16> = (1..=1000).collect();
    let (_, effects) = send(&mut w.master.clone(), host, 1, wish(1, &many), w.now);
    assert_eq!(order(&effects).3.len(), MOST_RESET);
    for epoch in [0, 2] {
        let (reply, effects) = send(&mut w.master.clone(), host, 1, wish(epoch, &[700]), w.now);
        assert_eq!(refused(reply), Refusal::StaleEpoch { got: Epoch(epoch), current: Epoch(1) });
        assert_eq!(effects, []);
    }
    let (reply, _) = send(&mut w.master.clone(), NodeId::Scvm(C), 1, wish(1, &[700]), w.now);
    assert_eq!(refused(reply), Refusal::WrongSender { node: NodeId::Scvm(C) });
    // On record, and not admitted yet: neither the old one nor the new one.
    w.scvms.get_mut(&A).unwrap().waits = true;
    w.ask(C, true);
    w.calm_until("under way", |w| w.record().is_some_and(|r| r.moving_to().is_some()));
    for epoch in [1, 2] {
        let (reply, effects) = send(&mut w.master.clone(), host, 1, wish(epoch, &[700]), w.now);
        assert_eq!(refused(reply), Refusal::StaleEpoch { got: Epoch(epoch), current: Epoch(2) });
        assert!(!effects.iter().any(|e| matches!(e, Effect::Push { order: Order::ResetClient { .. }, .. })));
    }
}
