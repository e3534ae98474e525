//! What operators ask of Meta.

use super::proofs::b_is_dead;
use super::table::{at_a, send};
use super::world::World;
use super::*;

fn ask(w: &mut World, ask: OperatorAsk) -> Result<OperatorAnswer, Refusal> {
    w.answers.clear();
    w.input(Input::Operator { request: RequestId(1), ask });
    let mut answers = std::mem::take(&mut w.answers);
    assert_eq!(answers.len(), 1, "answered once");
    answers.remove(0)
}

fn drain(scvm: ScvmId) -> OperatorAsk {
    OperatorAsk::Drain { scvm, draining: Draining { actor: "alice".into(), at_unix_ms: 5 } }
}

fn vouch(scvm: ScvmId, epoch: u64) -> OperatorAsk {
    OperatorAsk::Vouch { host: X, scvm, epoch: Epoch(epoch), actor: "alice".into() }
}

#[test]
fn a_drain_is_durable_shown_and_refuses_moves_there() {
    let mut w = at_a();
    let OperatorAnswer::Drain { draining: Some(d), still, .. } = ask(&mut w, drain(A)).unwrap() else {
        panic!()
    };
    assert_eq!(d.actor, "alice");
    assert_eq!(still.iter().map(|s| s.host).collect::<Vec<_>>(), [X]);
    assert_eq!(w.drains.len(), 1, "stored");
    // Asked twice: the same, and nothing is written.
    assert!(ask(&mut w, drain(A)).is_ok());
    assert_eq!(w.journal.iter().filter(|e| matches!(e, Event::Draining { .. })).count(), 1);
    w.ask(C, true);
    w.calm_until("at C", |w| w.stands_at() == Some(C));
    let answer = ask(&mut w, OperatorAsk::Drained { scvm: A }).unwrap();
    assert!(matches!(answer, OperatorAnswer::Drain { still, .. } if still.is_empty()));
    // Nobody moves there: not by a restart of Meta either.
    w.restart(false);
    for _ in 0..20 {
        w.calm_round();
    }
    assert_eq!(w.master.view(BootNs(w.now)).draining[0].scvm, A);
    let back =
        ToMeta::Move { from_epoch: Epoch(2), to: A, planned: true, reason: String::new(), evidence: vec![] };
    let (reply, _) = send(&mut w.master, NodeId::Host(X), 1, back.clone(), w.now);
    assert_eq!(reply, MetaReply::Refused { error: Refusal::Draining { scvm: A } });
    let undo = |scvm| OperatorAsk::Undrain { scvm, actor: "bob".into() };
    assert!(ask(&mut w, undo(A)).is_ok());
    assert!(w.drains.is_empty());
    let (reply, _) = send(&mut w.master, NodeId::Host(X), 2, back, w.now);
    assert!(matches!(reply, MetaReply::Ok { .. }), "{reply:?}");
    assert_eq!(ask(&mut w, undo(A)), Err(Refusal::NotDraining { scvm: A }));
    assert_eq!(ask(&mut w, drain(ScvmId(9))), Err(Refusal::UnknownScvm { scvm: ScvmId(9) }));
}

#[test]
fn a_drain_that_leaves_no_place_to_go_is_refused() {
    let mut w = at_a();
    ask(&mut w, drain(B)).unwrap();
    w.power(C);
    for _ in 0..20 {
        w.calm_round();
    }
    assert_eq!(ask(&mut w, drain(A)), Err(Refusal::NowhereToGo { scvm: A }));
    assert!(ask(&mut w, drain(C)).is_ok(), "nobody is logged in there");
}

#[test]
fn a_drain_that_is_not_written_does_not_stand() {
    let mut w = at_a();
    let effects = w.master.handle(Input::Operator { request: RequestId(1), ask: drain(A) }, BootNs(w.now));
    assert!(matches!(effects[..], [Effect::StoreDraining { scvm: A, .. }]), "{effects:?}");
    assert!(w.master.view(BootNs(w.now)).draining.is_empty(), "not before it is durable");
    let again = w.master.handle(Input::Operator { request: RequestId(2), ask: drain(A) }, BootNs(w.now));
    assert!(matches!(again[..], [Effect::Answer { answer: Err(Refusal::Store { .. }), .. }]));
    let failed = Input::DrainingStored { scvm: A, result: Err("disk full".into()) };
    let effects = w.master.handle(failed, BootNs(w.now));
    assert!(
        matches!(&effects[..], [Effect::Answer { answer: Err(Refusal::Store { why }), .. }] if why == "disk full")
    );
    assert!(w.master.view(BootNs(w.now)).draining.is_empty());
}

#[test]
fn an_operators_word_moves_what_nothing_else_can_and_is_recorded() {
    let mut w = b_is_dead();
    for _ in 0..60 {
        w.calm_round();
    }
    assert!(w.record().unwrap().moving_to().is_some(), "policy kill: nothing proves it");
    let shown = ask(&mut w, OperatorAsk::Unproven { host: X, scvm: B }).unwrap();
    let OperatorAnswer::Unproven { waiting, takes_on_trust, .. } = shown else { panic!("{shown:?}") };
    assert_eq!((waiting.epoch, waiting.session), (Epoch(2), SessionState::Lost));
    assert!(takes_on_trust.contains("operator's word"));
    assert_eq!(
        ask(&mut w, vouch(B, 1)),
        Err(Refusal::StaleEpoch { got: Epoch(1), current: Epoch(2) }),
        "not for what was not shown"
    );
    w.scvms.get_mut(&B).unwrap().called = false; // by the operator's hand
    assert!(ask(&mut w, vouch(B, 2)).is_ok());
    w.calm_until("at C", |w| w.stands_at() == Some(C));
    let state = &w.record().unwrap().login.state;
    assert!(matches!(state, LoginState::At { proof: FenceProof::Operator, .. }), "{state:?}");
    assert!(w.journal.iter().any(|e| matches!(e, Event::Vouched { actor, .. } if actor == "alice")));
}

/// Nobody but an operator can speak for an SCVM that was taken out of the configuration with a login on it.
#[test]
fn a_login_at_an_scvm_that_is_configured_no_more_can_be_moved_on() {
    let mut w = b_is_dead();
    w.master.settings.scvms.retain(|s| s.id != B);
    w.master.sessions.remove(&B);
    for _ in 0..60 {
        w.calm_round();
    }
    assert!(w.record().unwrap().moving_to().is_some());
    let unknown = OperatorAsk::Unproven { host: X, scvm: ScvmId(9) };
    assert_eq!(ask(&mut w, unknown), Err(Refusal::UnknownScvm { scvm: ScvmId(9) }));
    let shown = ask(&mut w, OperatorAsk::Unproven { host: X, scvm: B }).unwrap();
    let OperatorAnswer::Unproven { waiting, .. } = shown else { panic!("{shown:?}") };
    assert_eq!((waiting.epoch, waiting.session), (Epoch(2), SessionState::Absent));
    w.scvms.get_mut(&B).unwrap().called = false; // by the operator's hand
    assert!(ask(&mut w, vouch(B, 2)).is_ok());
    w.calm_until("at C", |w| w.stands_at() == Some(C));
}

/// Who was evicted, and is kept away, asks for no move: its old server has to be proven shut all the same.
#[test]
fn an_operators_word_holds_for_an_eviction_too() {
    let mut w = b_is_dead();
    w.operator(Ask::Evict { client: "x".into(), reason: "dead".into(), actor: "alice".into() }).unwrap();
    for _ in 0..20 {
        w.calm_round();
    }
    let waits = w.master.waits_for(X, BootNs(w.now));
    assert!(waits[..].iter().any(|w| w.proofs.iter().any(|p| p.contains("vouch"))), "{waits:?}");
    w.scvms.get_mut(&B).unwrap().called = false; // by the operator's hand
    ask(&mut w, vouch(B, 2)).unwrap();
    for _ in 0..10 {
        w.calm_round();
    }
    let Some(LoginState::Evicted { fencing, .. }) = w.record().map(|r| &r.login.state) else { panic!() };
    assert_eq!(fencing[..], [Fencing { scvm: B, epoch: Epoch(2), proof: Some(FenceProof::Operator) }]);
}

#[test]
fn a_word_that_nothing_waits_for_is_refused_by_name() {
    let mut w = at_a();
    let nothing = |answer: Result<OperatorAnswer, Refusal>| match answer {
        Err(Refusal::NothingToVouch { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert!(nothing(ask(&mut w, vouch(A, 1))).contains("no move"));
    let unknown = OperatorAsk::Vouch { host: HostId(9), scvm: A, epoch: Epoch(1), actor: "a".into() };
    assert_eq!(ask(&mut w, unknown), Err(Refusal::UnknownNode { node: NodeId::Host(HostId(9)) }));
    // A planned move goes back by itself.
    w.scvms.get_mut(&A).unwrap().waits = true;
    w.ask(C, true);
    w.calm_until("moving", |w| w.record().is_some_and(|r| r.moving_to() == Some(C)));
    assert!(nothing(ask(&mut w, vouch(A, 1))).contains("planned"));
    // The target is not what the move waits to be shut.
    let mut w = b_is_dead();
    assert!(nothing(ask(&mut w, vouch(C, 3))).contains("does not wait"));
}
