//! The leader's lease: nothing is renewed, admitted or told, and no expiry proves anything, unless the store confirms.

use super::table::{at_a, send};
use super::world::StoreOutcome;
use super::*;

fn keepalive() -> ToMeta {
    ToMeta::KeepAlive { term: Term(1), health: well() }
}

fn post(seq: u64, msg: ToMeta) -> Input {
    let from = NodeId::Scvm(A);
    Input::Message { request: RequestId(seq), from, incarnation: Incarnation(77), seq, msg }
}

fn replies(effects: &[Effect]) -> Vec<(u64, MetaReply)> {
    let reply = |e: &Effect| match e {
        Effect::Reply { request, reply } => Some((request.0, reply.clone())),
        _ => None,
    };
    effects.iter().filter_map(reply).collect()
}

fn not_leader(replies: &[(u64, MetaReply)]) -> bool {
    replies.iter().all(|(_, r)| matches!(r, MetaReply::Refused { error: Refusal::NotLeader { .. } }))
}

/// A master that has just begun, with a session of A and its lease confirmed now.
fn fresh(now: u64) -> SessionMaster {
    let w = at_a();
    let mut m = SessionMaster::new(settings(1), w.store.clone(), BootNs(now));
    send(&mut m, NodeId::Scvm(A), 1, ToMeta::SessionOpen { boot: Incarnation(1), health: well() }, now);
    m
}

#[test]
fn a_renewal_waits_for_a_confirmation_asked_after_it_came() {
    let mut m = fresh(1000 * MS);
    let at = |ms: u64| BootNs((1000 + ms) * MS);
    // One is under way already when the keepalive comes: it says nothing of the time after its asking.
    assert_eq!(m.handle(Input::Tick, at(100)), [Effect::ConfirmLease]);
    assert_eq!(m.handle(post(2, keepalive()), at(110)), []);
    assert_eq!(m.handle(Input::LeaseConfirmed, at(115)), [Effect::ConfirmLease]);
    let done = m.handle(Input::LeaseConfirmed, at(116));
    assert_eq!(replies(&done), [(2, MetaReply::Ok { term: Term(1) })]);
    // A copy of what was answered needs none: it counts from when it was sent.
    assert_eq!(replies(&m.handle(post(2, keepalive()), at(900))).len(), 1);
}

#[test]
fn a_lease_counts_from_the_asking() {
    let mut m = fresh(1000 * MS);
    let at = |ms: u64| BootNs((1000 + ms) * MS);
    assert!(m.leads(at(299)) && !m.leads(at(300)));
    assert_eq!(m.handle(Input::Tick, at(200)), [Effect::ConfirmLease]);
    m.handle(Input::LeaseConfirmed, at(290));
    assert!(m.leads(at(499)) && !m.leads(at(500)));
    assert_eq!(m.leadership(at(450)).left_ns, 50 * MS);
}

#[test]
fn a_store_that_hangs_lets_the_sessions_lapse_and_says_so() {
    let mut m = fresh(1000 * MS);
    let at = |ms: u64| BootNs((1000 + ms) * MS);
    assert_eq!(m.handle(Input::Tick, at(100)), [Effect::ConfirmLease]);
    let mut answered = Vec::new();
    let mut faults = Vec::new();
    for ms in (120..1100).step_by(20) {
        let mut effects = m.handle(Input::Tick, at(ms));
        if ms % 100 == 0 {
            effects.extend(m.handle(post(ms, keepalive()), at(ms)));
        }
        assert!(!effects.contains(&Effect::ConfirmLease), "one at a time, however long it takes");
        answered.extend(replies(&effects));
        faults.extend(effects.into_iter().filter_map(|e| match e {
            Effect::Journal(Event::Fault { what }) => Some(what),
            _ => None,
        }));
    }
    assert!(answered.len() >= 8 && not_leader(&answered), "{answered:?}");
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].contains("has not answered for"), "{faults:?}");
    assert_eq!(m.view(at(1100)).sessions[0].state, SessionState::Lost);
    assert!(!m.leadership(at(1100)).leads);

    // The answer to what was asked a second ago is not enough; the next one is.
    assert_eq!(m.handle(Input::LeaseConfirmed, at(1110)), [Effect::ConfirmLease]);
    assert!(!m.leads(at(1110)));
    m.handle(Input::LeaseConfirmed, at(1112));
    assert!(m.leads(at(1112)));
    let (reply, _) = send(&mut m, NodeId::Scvm(A), 5000, keepalive(), 2112 * MS);
    assert_eq!(reply, MetaReply::Refused { error: Refusal::NoSession }, "a lapsed session is not revived");
}

#[test]
fn a_store_that_fails_is_asked_again() {
    let mut m = fresh(1000 * MS);
    let at = |ms: u64| BootNs((1000 + ms) * MS);
    m.handle(Input::Tick, at(100));
    m.handle(Input::LeaseFailed { why: "disk on fire".into() }, at(101));
    assert_eq!(m.handle(Input::Tick, at(110)), []);
    assert_eq!(m.handle(Input::Tick, at(121)), [Effect::ConfirmLease]);
    m.handle(Input::LeaseFailed { why: "disk on fire".into() }, at(122));
    assert_eq!(m.leadership(at(122)).problem.as_deref(), Some("disk on fire"));
    m.handle(post(9, keepalive()), at(142));
    m.handle(Input::LeaseConfirmed, at(143));
    assert_eq!(m.leadership(at(143)).problem, None);
}

#[test]
fn a_later_term_ends_it_for_good() {
    let mut m = fresh(1000 * MS);
    let now = BootNs(1100 * MS);
    assert_eq!(m.handle(post(2, keepalive()), now), [Effect::ConfirmLease]);
    let end = m.handle(Input::LeaseOver { later: Term(2) }, now);
    assert!(not_leader(&replies(&end)) && replies(&end).len() == 1, "{end:?}");
    assert!(end.contains(&Effect::StepDown { later: Term(2) }));
    m.handle(Input::LeaseConfirmed, now);
    assert!(!m.leads(now));
    assert!(not_leader(&replies(&m.handle(post(3, keepalive()), now))));
    assert_eq!(m.handle(Input::Tick, BootNs(1500 * MS)), []);
}

/// The old server is dead, its leases have run out: while the store says nothing, nobody concludes anything from it.
#[test]
fn expiry_proves_nothing_without_the_store() {
    let mut w = at_a();
    for _ in 0..40 {
        w.calm_round();
    }
    w.power(A);
    w.ask(C, false);
    while w.in_flight() > 0 {
        w.deliver(0, false);
        w.store(StoreOutcome::Done);
    }
    assert_eq!(w.record().and_then(|r| r.moving_to()), Some(C));
    w.hang(true);
    let admits = w.admits;
    for _ in 0..40 {
        w.beat(C);
        w.pulse();
        w.report();
        while w.in_flight() > 0 {
            w.deliver(0, false);
        }
        w.pass(50 * MS);
    }
    assert_eq!(w.admits, admits, "nobody is admitted on an unconfirmed lease");
    let proven = |w: &super::world::World| {
        w.journal.iter().any(|e| matches!(e, Event::FenceProven { epoch: Epoch(1), .. }))
    };
    assert!(!proven(&w));
    w.hang(false);
    w.calm_until("at C", |w| w.stands_at() == Some(C));
    assert!(proven(&w));
}

/// What was observed after the last confirmation was asked is not used, however well the lease still stands: the
/// next leader may have begun meanwhile, and have renewed what seems expired here.
#[test]
fn expiry_is_judged_as_of_the_last_confirmation() {
    let mut w = at_a();
    w.ask(C, false);
    // C's session and the move stand; A is silent from here on.
    let is_a = |p: &super::world::Packet| {
        matches!(p, super::world::Packet::ToMeta { from: NodeId::Scvm(A), .. })
            || matches!(p, super::world::Packet::Push { to: NodeId::Scvm(A), .. })
    };
    for _ in 0..40 {
        w.network.retain(|p| !is_a(p));
        while !w.network.is_empty() {
            w.deliver(0, false);
            w.store(StoreOutcome::Done);
            w.network.retain(|p| !is_a(p));
        }
        if w.record().and_then(|r| r.moving_to()) == Some(C) {
            break;
        }
        w.pass(10 * MS);
    }
    let mut m = SessionMaster::new(settings(2), w.store.clone(), BootNs(w.now));
    let start = w.now;
    let at = |ms: u64| BootNs(start + ms * MS);
    let mut seq = 1;
    let mut say = |m: &mut SessionMaster, from, msg, ms: u64| {
        seq += 1;
        send(m, from, seq, msg, start + ms * MS).1
    };
    say(&mut m, NodeId::Scvm(C), ToMeta::SessionOpen { boot: Incarnation(1), health: well() }, 0);
    say(&mut m, NodeId::Host(X), ToMeta::Released { epoch: Epoch(1) }, 0);
    for ms in (20..=1400).step_by(20) {
        handle(&mut m, Input::Tick, at(ms));
    }
    // 1.3 s and drift after the start expiry begins to prove something. The last confirmation was asked before.
    let admit = |effects: &[Effect]| {
        effects.iter().any(|e| matches!(e, Effect::Push { order: Order::Admit { .. }, .. }))
    };
    let mut asked = None;
    for ms in (1402..1440).step_by(2) {
        let effects = m.handle(Input::Tick, at(ms));
        if effects.contains(&Effect::ConfirmLease) {
            asked = Some(ms);
        }
        assert!(m.leads(at(ms)) && !admit(&effects), "at {ms}");
    }
    let mut effects = Vec::new();
    let mut ms = 1440;
    while asked.is_none() {
        effects = m.handle(Input::Tick, at(ms));
        asked = effects.contains(&Effect::ConfirmLease).then_some(ms);
        ms += 2;
        assert!(!admit(&effects));
    }
    assert!(asked.is_some_and(|ms| ms > 1430), "asked at {asked:?}, after the time");
    m.handle(Input::LeaseConfirmed, at(ms));
    effects.extend(m.handle(Input::Tick, at(ms + 2)));
    assert!(admit(&effects), "{effects:?}");
}

/// Orders of a lapsed leader stay inside, and go out again when it leads again.
#[test]
fn nothing_is_told_while_the_lease_is_out() {
    let mut w = at_a();
    let told = |effects: &[Effect]| {
        effects
            .iter()
            .any(|e| matches!(e, Effect::Push { order: Order::At { .. } | Order::Moving { .. }, .. }))
    };
    w.hang(true);
    w.now += 400 * MS;
    let connected = Input::Connected { node: NodeId::Host(X) };
    assert!(!told(&w.master.handle(connected.clone(), BootNs(w.now))));
    let tick = w.master.handle(Input::Tick, BootNs(w.now));
    assert!(tick.contains(&Effect::ConfirmLease) && !told(&tick));
    // It connected in vain, and need not do so again.
    assert!(told(&w.master.handle(Input::LeaseConfirmed, BootNs(w.now))));
    w.hang(false);
    w.input(Input::Tick);
    assert!(told(&w.master.handle(connected, BootNs(w.now))));
}
