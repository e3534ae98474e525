use super::super::*;
use super::world::*;
use crate::proto::{FenceProof, Order, ToMeta};
use reroute_common::admission::{Word, rank};

pub(super) const E: Epoch = Epoch(3);

/// X is served here with calls in progress, and nobody gets replies, not even to NULL.
pub(super) fn served(policy: FencePolicy, calls: u32) -> Node {
    let mut node = Node::up(policy);
    node.order(Order::Admit { host: X, epoch: E });
    node.hung = true;
    node.calls(X, calls, 0);
    node.sockets.insert(X, 2);
    node.run(100 * MS);
    node.log.clear();
    node.mail.clear();
    node
}
pub(super) fn revoke(node: &mut Node, planned: bool) {
    node.order(Order::Revoke { host: X, epoch: E, planned });
}

#[test]
fn no_call_in_progress_is_proof_at_once() {
    let mut node = served(FencePolicy::Kill, 0);
    revoke(&mut node, false);
    assert_eq!(node.fenced(), [(E, FenceProof::Drained)]);
    assert_eq!(node.word(X), Word::new(3, rank::FENCED));
    assert_eq!(node.sockets[&X], 2, "no RST while the client's route still leads here");
    assert!(node.epochs.is_empty(), "and its line in the epoch file");
    assert_eq!(node.did(|e| matches!(e, Effect::Journal { event: Event::Fenced { .. }, .. })), 1);
    node.run(1100 * MS);
    assert_eq!(node.sockets.get(&X), None, "what is left goes later");
}

#[test]
fn who_comes_back_at_once_keeps_the_new_sockets() {
    let mut node = served(FencePolicy::Wait, 0);
    revoke(&mut node, false);
    node.order(Order::Prepare { host: X, epoch: Epoch(5) });
    assert_eq!(node.sockets.get(&X), None);
    node.order(Order::Admit { host: X, epoch: Epoch(5) });
    node.sockets.insert(X, 1);
    node.run(2000 * MS);
    assert_eq!(node.sockets[&X], 1);
}

#[test]
fn calls_that_finish_in_time_are_drained() {
    let mut node = served(FencePolicy::Storage, 3);
    revoke(&mut node, false);
    node.run(10 * MS);
    assert!(node.fenced().is_empty());
    node.calls(X, 0, 1);
    node.run(5 * MS);
    assert!(node.fenced().is_empty(), "an orphan is a call too");
    node.calls(X, 0, 0);
    node.run(2 * MS);
    assert_eq!(node.fenced(), [(E, FenceProof::Drained)]);
}

#[test]
fn policy_storage_proves_after_the_drain_time() {
    let mut node = served(FencePolicy::Storage, 1);
    let began = node.now;
    revoke(&mut node, false);
    node.run(19 * MS);
    assert!(node.fenced().is_empty());
    node.run(3 * MS);
    assert_eq!(node.fenced(), [(E, FenceProof::Storage)]);
    assert!(node.now.since(began) < 25 * MS);
    assert!(!node.killed());
}

#[test]
fn policy_kill_proves_only_when_the_process_has_terminated() {
    let mut node = served(FencePolicy::Kill, 1);
    node.reaps = false;
    revoke(&mut node, false);
    node.run(60 * MS);
    assert!(node.killed());
    assert_eq!(
        node.did(|e| matches!(e, Effect::Journal { event: Event::ServerKilled { pid: PID, .. }, .. })),
        1
    );
    node.run(300 * MS);
    assert!(node.fenced().is_empty(), "the signal is no proof");
    assert!(node.waits().unwrap().contains("not terminated"));
    node.feed(Input::ServerExited { pid: PID, incarnation: SERVER });
    assert_eq!(node.fenced(), [(E, FenceProof::Killed)]);
    assert_eq!(node.did(|e| matches!(e, Effect::KillServer { .. })), 1);
}

#[test]
fn nothing_is_killed_for_a_planned_move_until_it_becomes_urgent() {
    let mut node = served(FencePolicy::Kill, 1);
    revoke(&mut node, true);
    node.run(3000 * MS);
    assert!(!node.killed() && node.fenced().is_empty());
    assert!(node.waits().unwrap().contains("planned"));
    revoke(&mut node, false);
    node.run(60 * MS);
    assert!(node.killed());
    // And not the other way round.
    let mut node = served(FencePolicy::Kill, 1);
    revoke(&mut node, false);
    revoke(&mut node, true);
    node.run(60 * MS);
    assert!(node.killed());
}

#[test]
fn busy_is_not_killed() {
    let mut node = served(FencePolicy::Kill, 1);
    revoke(&mut node, false);
    for _ in 0..50 {
        node.facts.last_reply_at = node.now;
        node.run(20 * MS);
    }
    assert!(!node.killed());
    assert!(node.waits().unwrap().contains("busy"));
    node.run(200 * MS);
    assert!(!node.killed(), "it has worked since the fence");
    node.run(4000 * MS);
    assert!(node.killed(), "but it is not waited for, for ever");
}

#[test]
fn without_fresh_facts_nothing_is_killed() {
    let mut node = served(FencePolicy::Kill, 1);
    revoke(&mut node, false);
    // The sensor cannot be read: the machine only hears answers.
    let end = node.now.plus(500 * MS);
    while node.now < end {
        node.now = node.now.plus(5 * MS);
        let mut inputs = vec![Input::Tick];
        while let Some(input) = inputs.pop() {
            for effect in node.machine.handle(input, node.now) {
                assert!(!matches!(effect, Effect::KillServer { .. }));
                inputs.extend(node.perform(effect));
            }
        }
    }
    node.run(20 * MS);
    assert!(node.killed(), "now it is known that nobody gets replies");
}

#[test]
fn a_kill_that_fails_is_reported_and_tried_again() {
    let mut node = served(FencePolicy::Kill, 1);
    node.reaps = false;
    node.broken.insert(Part::Kill);
    revoke(&mut node, false);
    node.run(150 * MS);
    assert!(node.waits().unwrap().contains("not killed"));
    assert!(node.did(|e| matches!(e, Effect::KillServer { .. })) > 1);
    node.broken.clear();
    node.reaps = true;
    node.run(100 * MS);
    assert_eq!(node.fenced(), [(E, FenceProof::Killed)]);
}

#[test]
fn policy_wait_waits_and_says_so() {
    let mut node = served(FencePolicy::Wait, 2);
    revoke(&mut node, false);
    node.run(2000 * MS);
    assert!(node.fenced().is_empty() && !node.killed());
    let said =
        node.answers().iter().filter(|m| matches!(m, ToMeta::FenceWaits { in_progress: 2, .. })).count();
    assert!((3..=6).contains(&said), "now and then, not always: {said}");
    node.calls(X, 0, 0);
    node.run(20 * MS);
    assert_eq!(node.fenced(), [(E, FenceProof::Drained)]);
}

#[test]
fn a_server_that_died_by_itself_is_proof() {
    let mut node = served(FencePolicy::Wait, 2);
    node.feed(Input::ServerExited { pid: PID, incarnation: SERVER });
    node.facts.listening = false;
    revoke(&mut node, true);
    assert_eq!(node.fenced(), [(E, FenceProof::ProcessDead)]);

    let mut node = served(FencePolicy::Wait, 2);
    revoke(&mut node, false);
    node.run(100 * MS);
    assert!(node.fenced().is_empty());
    node.feed(Input::ServerExited { pid: PID, incarnation: SERVER });
    assert_eq!(node.fenced(), [(E, FenceProof::ProcessDead)], "dies while we wait");
}

#[test]
fn a_port_that_still_listens_is_somebody_we_do_not_know() {
    let mut node = served(FencePolicy::Wait, 2);
    node.feed(Input::ServerExited { pid: PID, incarnation: SERVER });
    revoke(&mut node, false);
    node.run(100 * MS);
    assert!(node.fenced().is_empty());
}

#[test]
fn a_server_never_seen_dead_is_not_dead() {
    let mut node = Node::new(settings(FencePolicy::Kill));
    node.facts.listening = false;
    node.feed(Input::Tick);
    node.open(&[(X, E)]);
    node.calls(X, 1, 0);
    revoke(&mut node, false);
    node.run(500 * MS);
    assert!(node.fenced().is_empty() && !node.killed());
    assert!(node.waits().unwrap().contains("no server process is known"));
}

#[test]
fn two_processes_must_both_go() {
    let mut node = served(FencePolicy::Kill, 1);
    node.feed(Input::ServerSeen { pid: 4300, incarnation: Incarnation(12) });
    node.run(100 * MS);
    node.reaps = false;
    revoke(&mut node, false);
    node.run(60 * MS);
    assert_eq!(node.did(|e| matches!(e, Effect::KillServer { .. })), 2);
    node.feed(Input::ServerExited { pid: PID, incarnation: SERVER });
    assert!(node.fenced().is_empty());
    node.feed(Input::ServerExited { pid: 4300, incarnation: Incarnation(12) });
    assert_eq!(node.fenced(), [(E, FenceProof::Killed)]);
}

#[test]
fn shadow_and_bypass_fence_nobody() {
    let shadow = Settings { mode: Mode::Shadow, ..settings(FencePolicy::Storage) };
    let mut node = Node::new(shadow);
    node.feed(Input::ServerSeen { pid: PID, incarnation: SERVER });
    node.feed(Input::Tick);
    node.open(&[(X, E)]);
    revoke(&mut node, false);
    node.run(100 * MS);
    assert!(node.fenced().is_empty());
    assert!(node.waits().unwrap().contains("shadow"));

    let mut node = served(FencePolicy::Storage, 0);
    node.feed(Input::Bypass { on: true, actor: "root".into() });
    assert_eq!(node.kernel.mode, Some(Mode::Bypass));
    revoke(&mut node, false);
    node.run(100 * MS);
    assert!(node.fenced().is_empty());
    assert!(node.waits().unwrap().contains("bypass"));
    node.feed(Input::Bypass { on: false, actor: "root".into() });
    node.run(50 * MS);
    assert_eq!(node.kernel.mode, Some(Mode::Enforce));
    assert_eq!(node.fenced(), [(E, FenceProof::Drained)]);
}

#[test]
fn a_proof_from_before_a_bypass_holds_no_more() {
    let mut node = served(FencePolicy::Wait, 0);
    revoke(&mut node, false);
    assert_eq!(node.fenced().len(), 1);
    node.feed(Input::Bypass { on: true, actor: "root".into() });
    node.calls(X, 4, 0);
    node.mail.clear();
    revoke(&mut node, false);
    node.run(50 * MS);
    assert!(node.fenced().is_empty());
    node.broken.insert(Part::Mode);
    node.feed(Input::Bypass { on: false, actor: "root".into() });
    node.calls(X, 0, 0);
    node.run(100 * MS);
    assert!(node.fenced().is_empty(), "the kernel does not enforce yet");
    node.broken.clear();
    node.run(100 * MS);
    assert_eq!(node.fenced(), [(E, FenceProof::Drained)]);
}

#[test]
fn the_same_order_again_gets_the_same_answer_and_does_nothing_twice() {
    let mut node = served(FencePolicy::Storage, 0);
    revoke(&mut node, false);
    revoke(&mut node, false);
    node.order(Order::Revoke { host: X, epoch: Epoch(2), planned: false });
    assert_eq!(
        node.fenced(),
        [(E, FenceProof::Drained), (E, FenceProof::Drained), (Epoch(2), FenceProof::Drained)]
    );
    assert_eq!(node.did(|e| matches!(e, Effect::Fence { .. })), 1);
}

#[test]
fn an_old_revoke_after_a_newer_login_is_answered_and_harms_nobody() {
    let mut node = served(FencePolicy::Kill, 0);
    node.order(Order::Admit { host: X, epoch: Epoch(5) });
    node.calls(X, 2, 0);
    node.log.clear();
    revoke(&mut node, false);
    node.run(500 * MS);
    assert_eq!(node.word(X), Word::new(5, rank::ADMITTED));
    assert!(!node.killed() && node.fenced().is_empty());
    assert!(node.waits().unwrap().contains("cannot be told apart"));
    node.calls(X, 0, 0);
    node.run(20 * MS);
    assert_eq!(node.fenced(), [(E, FenceProof::Drained)]);
    assert_eq!(node.sockets[&X], 2, "the newer login's sockets stay");
    assert_eq!(node.epochs[&X], Epoch(5));
}

#[test]
fn a_newer_login_here_ends_the_revoke_before_it_kills() {
    let mut node = served(FencePolicy::Kill, 1);
    revoke(&mut node, false);
    node.run(5 * MS);
    node.order(Order::Admit { host: X, epoch: Epoch(5) });
    node.run(500 * MS);
    assert!(!node.killed());
}

#[test]
fn each_failure_on_the_way_is_said_and_tried_again() {
    for part in [Part::Fence, Part::Read] {
        let mut node = served(FencePolicy::Wait, 1);
        node.broken.insert(part);
        revoke(&mut node, false);
        node.run(30 * MS);
        node.calls(X, 0, 0);
        node.run(40 * MS);
        assert!(node.fenced().is_empty(), "{part:?}");
        let faults = node.did(|e| matches!(e, Effect::Journal { event: Event::Fault { .. }, .. }));
        assert!(faults > 0 || node.waits().is_some(), "{part:?}");
        node.broken.clear();
        node.run(60 * MS);
        assert_eq!(node.fenced(), [(E, FenceProof::Drained)], "{part:?}");
    }
}

#[test]
fn sockets_that_resist_are_said_and_hold_up_nothing() {
    let mut node = served(FencePolicy::Wait, 0);
    node.broken.insert(Part::Purge);
    revoke(&mut node, false);
    assert_eq!(node.fenced(), [(E, FenceProof::Drained)]);
    node.run(3000 * MS);
    assert_eq!(node.did(|e| matches!(e, Effect::PurgeSockets { .. })), 5);
    assert_eq!(node.did(|e| matches!(e, Effect::Journal { event: Event::Fault { .. }, .. })), 1);
}

#[test]
fn a_planned_move_with_orphans_is_told_at_once_and_shuts_nobody_out() {
    for policy in [FencePolicy::Kill, FencePolicy::Wait] {
        let mut node = served(policy, 0);
        node.calls(X, 1, 2);
        revoke(&mut node, true);
        let said = |m: &ToMeta| matches!(m, ToMeta::FenceWaits { orphans: 2, in_progress: 1, .. });
        assert_eq!(node.answers().iter().filter(|m| said(m)).count(), 1);
        assert!(node.waits().unwrap().contains("orphan"));
        node.run(3000 * MS);
        assert_eq!(node.word(X), Word::new(3, rank::ADMITTED), "served until Meta has decided");
        assert_eq!(node.epochs[&X], E);
        node.order(Order::Admit { host: X, epoch: E });
        assert!(
            matches!(node.answers().last(), Some(ToMeta::Admitted { error: Some(_), .. })),
            "a late copy"
        );
        // Meta repeats the order: looked at anew.
        node.mail.clear();
        revoke(&mut node, true);
        assert!(node.waits().unwrap().contains("orphan"));
        node.broken.insert(Part::Read);
        revoke(&mut node, true);
        assert!(node.waits().unwrap().contains("counted"));
        node.broken.clear();
        node.calls(X, 1, 0);
        revoke(&mut node, true);
        assert_eq!(node.word(X), Word::new(3, rank::FENCED));
        node.calls(X, 0, 0);
        node.run(20 * MS);
        assert_eq!(node.fenced(), [(E, FenceProof::Drained)]);
        assert!(node.epochs.is_empty());
        assert_eq!(node.did(|e| matches!(e, Effect::Journal { event: Event::Fenced { .. }, .. })), 1);
    }
}

#[test]
fn a_planned_move_that_becomes_urgent_fences_in_spite_of_orphans() {
    let mut node = served(FencePolicy::Wait, 0);
    node.calls(X, 0, 1);
    revoke(&mut node, true);
    assert_eq!(node.word(X), Word::new(3, rank::ADMITTED));
    revoke(&mut node, false);
    assert_eq!(node.word(X), Word::new(3, rank::FENCED));
    assert!(node.epochs.is_empty());
    // And one that Meta has given up: the next login here ends the revoke.
    let mut node = served(FencePolicy::Wait, 0);
    node.calls(X, 0, 1);
    revoke(&mut node, true);
    node.order(Order::Admit { host: X, epoch: Epoch(5) });
    node.run(100 * MS);
    assert_eq!(node.word(X), Word::new(5, rank::ADMITTED));
    assert_eq!(node.did(|e| matches!(e, Effect::Fence { .. })), 0);
}

#[test]
fn policy_storage_does_not_wait_long_for_orphans_of_a_planned_move() {
    let mut node = served(FencePolicy::Storage, 1);
    revoke(&mut node, true);
    node.run(100 * MS);
    assert!(node.fenced().is_empty(), "calls on a connection may finish");
    node.calls(X, 0, 1);
    node.run(20 * MS);
    assert_eq!(node.fenced(), [(E, FenceProof::Storage)]);
    let mut node = served(FencePolicy::Storage, 0);
    node.calls(X, 0, 1);
    revoke(&mut node, true);
    node.run(25 * MS);
    assert_eq!(node.fenced(), [(E, FenceProof::Storage)]);
}
