//! Moves that are overtaken by moves, in small steps.

use super::table::{at_a, send};
use super::world::{Packet, StoreOutcome, World};
use super::*;

/// The master in small steps: a move is asked for, its target makes ready, the record is stored (and returned).
struct Steps {
    m: SessionMaster,
    now: u64,
    seq: u64,
    stored: Versioned,
}

impl Steps {
    fn at(w: &World) -> Steps {
        Steps { m: w.master.clone(), now: w.now, seq: 0, stored: w.store[&X].clone() }
    }

    fn say(&mut self, from: NodeId, msg: ToMeta) -> Vec<Effect> {
        self.seq += 1;
        let (reply, effects) = send(&mut self.m, from, self.seq, msg, self.now);
        assert!(!matches!(reply, MetaReply::Refused { .. }), "{reply:?}");
        effects
    }

    fn move_to(&mut self, to: ScvmId, planned: bool) -> Vec<(ScvmId, u64, bool)> {
        let from_epoch = self.stored.record.epoch();
        let wish = ToMeta::Move { from_epoch, to, planned, reason: String::new(), evidence: vec![] };
        self.say(NodeId::Host(X), wish);
        let ready = ToMeta::Prepared { host: X, epoch: from_epoch.next(), error: None };
        let effects = self.say(NodeId::Scvm(to), ready);
        self.take(&effects);
        let entry = |f: &Fencing| (f.scvm, f.epoch.0, f.proof.is_some());
        self.stored.record.fencing().iter().map(entry).collect()
    }

    /// The store takes what it is asked to; what comes of that.
    fn take(&mut self, effects: &[Effect]) -> Vec<Effect> {
        let stores = |e: &Effect| match e {
            Effect::Store { record, .. } => Some(record.clone()),
            _ => None,
        };
        let record = effects.iter().find_map(stores).expect("asked to store");
        self.stored = Versioned { version: self.stored.version + 1, record };
        handle(&mut self.m, Input::StoreDone { host: X, version: self.stored.version }, BootNs(self.now))
    }

    fn restart(&mut self, term: u64) {
        self.m = SessionMaster::new(settings(term), [(X, self.stored.clone())].into(), BootNs(self.now));
        for scvm in [A, B, C] {
            self.say(NodeId::Scvm(scvm), ToMeta::SessionOpen { boot: Incarnation(1), health: well() });
        }
    }

    fn fenced(&mut self, scvm: ScvmId, epoch: u64) -> Vec<Effect> {
        let proof = FenceProof::Drained;
        self.say(NodeId::Scvm(scvm), ToMeta::Fenced { host: X, epoch: Epoch(epoch), proof })
    }
}

fn admits(effects: &[Effect]) -> Vec<(NodeId, u64)> {
    let admit = |e: &Effect| match e {
        Effect::Push { node, order: Order::Admit { epoch, .. } } => Some((*node, epoch.0)),
        _ => None,
    };
    effects.iter().filter_map(admit).collect()
}

/// Back to the server that had the login, and away from it again before it opened: what it may still execute is
/// waited for, as is the target in between.
#[test]
fn a_server_gone_back_to_and_left_again_is_still_fenced() {
    let mut s = Steps::at(&at_a());
    assert_eq!(s.move_to(C, false), [(A, 1, false)]);
    s.restart(2);
    assert_eq!(s.move_to(A, false), [(A, 1, false), (C, 2, false)]);
    let effects = handle(&mut s.m, Input::Connected { node: NodeId::Scvm(A) }, BootNs(s.now));
    assert_eq!(effects, [], "A is not shut for itself to open, and does not open before C is shut");
    assert_eq!(s.move_to(B, false), [(A, 1, false), (C, 2, false)]);
    assert_eq!(admits(&s.fenced(C, 2)), []);
    assert_eq!(admits(&s.fenced(A, 1)), [(NodeId::Scvm(B), 4)]);
}

/// The same of a target that is asked for again, and then left.
#[test]
fn a_target_asked_for_twice_and_left_is_still_fenced() {
    let mut s = Steps::at(&at_a());
    assert_eq!(s.move_to(C, true), [(A, 1, false)]);
    s.restart(2);
    assert_eq!(s.move_to(C, false), [(A, 1, false), (C, 2, false)]);
    assert_eq!(s.move_to(B, false), [(A, 1, false), (C, 2, false)]);
    assert_eq!(admits(&s.fenced(A, 1)), []);
    assert_eq!(admits(&s.fenced(C, 2)), [(NodeId::Scvm(B), 4)]);
}

/// A target that may have been admitted is fenced at that epoch; what was proven of an earlier one is outdated.
#[test]
fn a_later_admission_outdates_an_earlier_proof() {
    let mut s = Steps::at(&at_a());
    s.move_to(C, false);
    s.restart(2);
    s.move_to(A, false);
    assert_eq!(admits(&s.fenced(A, 1)), [], "true, but not what A waits for");
    assert_eq!(admits(&s.fenced(C, 2)), [(NodeId::Scvm(A), 3)]);
    assert_eq!(s.move_to(B, false), [(C, 2, true), (A, 3, false)]);
}

/// A target that died before the host ever had a route to it holds nobody up, whatever its policy: the host goes back
/// when its session lease has run out, and not before.
#[test]
fn a_target_that_never_served_is_passed_over_after_its_lease() {
    let mut w = at_a();
    w.ask(B, false);
    let is_admit = |p: &Packet| matches!(p, Packet::Push { order: Order::Admit { .. }, .. });
    while !w.network.iter().any(is_admit) {
        w.deliver(0, false);
        w.store(StoreOutcome::Done);
    }
    w.power(B);
    let died = w.now;
    w.ask(A, false);
    w.calm_until("back at A", |w| w.stands_at() == Some(A));
    let state = &w.record().expect("stored").login.state;
    assert_eq!(*state, LoginState::At { scvm: A, epoch: Epoch(3), proof: FenceProof::NeverServed });
    assert!(w.now - died > 500 * MS, "not before the session lease had run out");
}

/// Without a route the private network leads to the SCVM beside the host: flushed in mid-move, say. From its admission on
/// that one may have served, whether the host was ever told to go there or not.
#[test]
fn a_target_beside_the_host_may_have_served_without_a_route() {
    for (beside, policy) in [(B, FencePolicy::Kill), (C, FencePolicy::Storage)] {
        let mut w = at_a();
        w.master.settings.hosts[0].local_scvm = beside;
        w.ask(beside, false);
        let is_admit = |p: &Packet| matches!(p, Packet::Push { order: Order::Admit { .. }, .. });
        while !w.network.iter().any(is_admit) {
            w.deliver(0, false);
            w.store(StoreOutcome::Done);
        }
        w.power(beside);
        w.ask(A, false);
        for _ in 0..60 {
            w.calm_round();
        }
        let state = &w.record().expect("stored").login.state;
        let proof = match state {
            LoginState::At { proof, .. } => Some(*proof),
            _ => None,
        };
        let covers = FenceProof::LeaseExpiredStorage;
        assert_eq!(proof, (policy == FencePolicy::Storage).then_some(covers), "{state:?}");
    }
}

/// The server that had the login has served, at whatever later epoch it is fenced.
#[test]
fn a_server_gone_back_to_is_not_one_that_never_served() {
    let mut w = at_a();
    w.ask(B, false);
    w.calm_until("at B", |w| w.stands_at() == Some(B));
    let mut s = Steps::at(&w);
    s.move_to(C, false);
    s.restart(2);
    s.move_to(B, false);
    assert_eq!(admits(&s.fenced(C, 3)), [(NodeId::Scvm(B), 4)]);
    assert_eq!(s.move_to(A, false), [(C, 3, true), (B, 4, false)]);
    s.say(NodeId::Host(X), ToMeta::Released { epoch: Epoch(2) });
    for _ in 0..100 {
        s.now += 100 * MS;
        let effects = handle(&mut s.m, Input::Tick, BootNs(s.now));
        assert_eq!(admits(&effects), [], "policy kill: its own agent has to say so");
    }
}

/// A planned move whose old server has orphans that only a kill could cover goes back at once; one that only has to
/// wait for replies, or whose storage covers them, goes on.
#[test]
fn a_planned_move_that_can_never_drain_goes_back_at_once() {
    for (from, to, orphans, back) in [(B, C, 1, true), (B, C, 0, false), (C, B, 1, false)] {
        let mut w = at_a();
        w.ask(from, false);
        w.calm_until("there", |w| w.stands_at() == Some(from));
        let mut s = Steps::at(&w);
        s.move_to(to, true);
        let why = "test".to_string();
        let waits = ToMeta::FenceWaits { host: X, epoch: Epoch(2), in_progress: orphans, orphans, why };
        let effects = s.say(NodeId::Scvm(from), waits);
        let stores = effects.iter().any(|e| matches!(e, Effect::Store { .. }));
        assert_eq!(stores, back, "{from} {orphans}: {effects:?}");
        if back {
            s.take(&effects);
            assert_eq!((s.stored.record.moving_to(), s.stored.record.epoch()), (Some(from), Epoch(4)));
            let effects = handle(&mut s.m, Input::Connected { node: NodeId::Scvm(from) }, BootNs(s.now));
            assert_eq!(admits(&effects), [(NodeId::Scvm(from), 4)], "it serves again");
        }
    }
}

/// A target that was told to admit and not heard of again is passed over when its lease has run out. The order turns
/// up after all, when it has a session again.
#[test]
fn an_order_from_before_the_session_opens_nobody() {
    let mut w = at_a();
    w.ask(C, false);
    // All but the order to admit arrives; then C is cut off for as long as its lease lasts.
    let is_admit = |p: &Packet| matches!(p, Packet::Push { order: Order::Admit { .. }, .. });
    for _ in 0..100 {
        w.store(StoreOutcome::Done);
        match w.network.iter().position(|p| !is_admit(p)) {
            Some(at) => w.deliver(at, false),
            None => break,
        }
    }
    let late = w.network.pop().filter(is_admit).expect("C was told to admit");
    let cut = |p: &Packet| match p {
        Packet::ToMeta { from: node, .. }
        | Packet::Reply { to: node, .. }
        | Packet::Push { to: node, .. } => *node == NodeId::Scvm(C),
    };
    w.ask(A, false);
    for _ in 0..60 {
        w.pulse();
        w.report();
        w.beat(A);
        while let Some(at) = w.network.iter().position(|p| !cut(p)) {
            w.deliver(at, false);
            w.store(StoreOutcome::Done);
        }
        w.network.clear();
        w.pass(50 * MS);
    }
    assert_eq!(w.stands_at(), Some(A), "{:?}", w.record());
    w.calm_round();
    w.calm_round();
    w.network.push(late);
    w.deliver(0, false);
    assert_eq!(w.scvms[&C].word, Default::default(), "it opens nobody");
    w.check();
    // A later one is under a new number.
    w.ask(C, false);
    w.calm_until("at C", |w| w.stands_at() == Some(C));
}
