//! Whom a revoke kills: who is hung, and not who is only quiet.

use super::super::*;
use super::revoke::{E, revoke, served};
use super::world::*;
use crate::proto::FenceProof;

/// How long after the fence the server was killed.
fn fence_to_kill(node: &Node) -> u64 {
    let at = |i: usize| node.log[i].0;
    at(node.position(|e| matches!(e, Effect::KillServer { .. })))
        .since(at(node.position(|e| matches!(e, Effect::Fence { .. }))))
}
fn why_killed(node: &Node) -> String {
    let why = node.log.iter().find_map(|(_, e)| match e {
        Effect::Journal { event: Event::ServerKilled { why, .. }, .. } => Some(why.clone()),
        _ => None,
    });
    why.expect("a kill in the journal")
}

#[test]
fn quiet_is_not_hung_who_answers_null_is_not_killed_until_the_bound() {
    for (calls, orphans) in [(1, 0), (0, 1)] {
        let mut node = served(FencePolicy::Kill, calls);
        node.calls(X, calls, orphans);
        node.hung = false;
        node.null = Some(true);
        revoke(&mut node, false);
        node.run(290 * MS);
        assert!(!node.killed() && node.fenced().is_empty());
        assert!(node.waits().unwrap().contains("answers NULL"));
        let asked = node.did(|e| *e == Effect::ProbeNull);
        assert!((2..=4).contains(&asked), "every 100 ms: {asked}");
        node.run(100 * MS);
        assert_eq!(node.fenced(), [(E, FenceProof::Killed)]);
        assert!(why_killed(&node).contains("unanswered 300 ms"), "{}", why_killed(&node));
    }
    // The call comes to its end: nothing was lost.
    let mut node = served(FencePolicy::Kill, 1);
    node.hung = false;
    node.null = Some(true);
    revoke(&mut node, false);
    node.run(200 * MS);
    node.calls(X, 0, 0);
    node.run(20 * MS);
    assert_eq!(node.fenced(), [(E, FenceProof::Drained)]);
    node.run(6000 * MS);
    assert!(!node.killed());
}

#[test]
fn a_server_whose_replies_cannot_leave_is_not_waited_for() {
    let mut node = served(FencePolicy::Kill, 1);
    node.hung = false;
    node.null = Some(true);
    node.feed(Input::Carrier { network: Network::Storage, up: false });
    revoke(&mut node, false);
    node.run(30 * MS);
    assert_eq!(node.fenced(), [(E, FenceProof::Killed)]);
    assert!(why_killed(&node).contains("no carrier"), "{}", why_killed(&node));
}

#[test]
fn a_hung_server_is_killed_when_a_probe_of_now_has_failed() {
    // Not asked before the fence.
    let mut node = served(FencePolicy::Kill, 1);
    revoke(&mut node, false);
    assert_eq!(node.did(|e| *e == Effect::ProbeNull), 1, "asked at once");
    node.run(49 * MS);
    assert!(!node.killed() && node.waits().is_none());
    node.run(5 * MS);
    assert!(why_killed(&node).contains("NULL"));
    // Suspected before, whenever the fence comes: it is killed soon, and never by a probe from long ago.
    let mut soonest = u64::MAX;
    for lead in (0..300).step_by(7) {
        let mut node = served(FencePolicy::Kill, 1);
        node.facts.silent = true;
        node.run(lead * MS);
        revoke(&mut node, false);
        node.run(80 * MS);
        let took = fence_to_kill(&node);
        assert!(took <= 75 * MS, "lead {lead} ms: {took} ns");
        soonest = took.min(soonest);
    }
    assert!(
        soonest <= 2 * MS,
        "a call that has waited long enough already leaves nothing to wait for: {soonest}"
    );
}

#[test]
fn a_probe_from_before_the_fence_does_not_count_when_a_reply_has_left_since() {
    let mut node = served(FencePolicy::Kill, 1);
    node.facts.silent = true;
    node.run(10 * MS);
    node.facts.last_reply_at = node.now;
    node.run(10 * MS);
    revoke(&mut node, false);
    node.run(49 * MS);
    assert!(!node.killed(), "the probe was sent before the last reply");
    node.run(45 * MS);
    assert!(node.killed(), "asked anew, and silent since");
}

#[test]
fn a_null_call_that_is_refused_at_once_gives_the_server_no_less_time() {
    let mut node = served(FencePolicy::Kill, 1);
    node.hung = false;
    node.null = Some(false);
    revoke(&mut node, false);
    node.run(49 * MS);
    assert!(!node.killed());
    node.run(15 * MS);
    assert!(node.killed());
}

#[test]
fn a_server_that_waits_for_a_cpu_is_not_killed() {
    let mut node = served(FencePolicy::Kill, 1);
    node.hung = false;
    revoke(&mut node, false);
    node.run(50 * MS);
    node.feed(Input::NullRpc { answered: false, took_ns: 50 * MS, starved: true });
    node.run(30 * MS);
    assert!(!node.killed());
    node.feed(Input::NullRpc { answered: true, took_ns: 30 * MS, starved: true });
    node.run(30 * MS);
    assert!(node.waits().unwrap().contains("answers NULL"));
}
