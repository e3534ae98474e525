use super::super::*;
use super::world::*;
use crate::proto::Order;

const E: Epoch = Epoch(3);

/// X is served here and has a call in progress; replies leave for others.
fn world() -> Node {
    let mut node = Node::up(FencePolicy::Kill);
    node.order(Order::Admit { host: X, epoch: E });
    node.log.clear();
    node
}

/// Lets `ns` pass; X has got `replies` by then, one after the other if `moving`.
fn pass(node: &mut Node, ns: u64, others: bool, mut replies: impl FnMut() -> (u32, u64)) {
    let end = node.now.plus(ns);
    while node.now < end {
        if others {
            node.facts.last_reply_at = node.now;
        }
        let (in_progress, replies) = replies();
        let facts = ClientFacts {
            host: X,
            has_agent: true,
            word: node.word(X),
            affirm_deadline: node.now.plus(SEC),
            blocked_until: BootNs(0),
            connections: 1,
            in_progress,
            replies,
        };
        node.feed(Input::Clients(vec![facts]));
        node.run(50 * MS);
    }
}

fn resets(node: &Node) -> usize {
    node.did(|e| matches!(e, Effect::PurgeSockets { host: X, purpose: Purpose::Wedged, .. }))
}

#[test]
fn a_client_without_replies_among_others_is_reset_once_and_then_said_to_be_hopeless() {
    let mut node = world();
    pass(&mut node, 4900 * MS, true, || (1, 7));
    assert_eq!(resets(&node), 0);
    pass(&mut node, 300 * MS, true, || (1, 7));
    assert_eq!(resets(&node), 1);
    assert!(!node.machine.view(node.now).alarms.iter().any(|a| a.contains("gets no replies")));
    pass(&mut node, 6 * SEC, true, || (1, 7));
    assert_eq!(resets(&node), 1, "not again and again");
    assert!(node.machine.view(node.now).alarms.iter().any(|a| a.contains("gets no replies")));
    assert!(!node.killed() && node.word(X).is_admitted(), "nothing else happens to it");
    pass(&mut node, 60 * SEC, true, || (1, 7));
    assert_eq!(resets(&node), 2, "after a minute, once more");
}

#[test]
fn slow_is_not_wedged_and_neither_is_idle() {
    let mut node = world();
    let mut calls = 0;
    pass(&mut node, 20 * SEC, true, || {
        calls += 1;
        (4, calls / 60) // a reply in three seconds
    });
    pass(&mut node, 20 * SEC, true, || (0, 1));
    assert_eq!(resets(&node), 0);
}

#[test]
fn where_nobody_gets_replies_no_connection_is_to_blame() {
    let mut node = world();
    pass(&mut node, 20 * SEC, false, || (1, 7));
    assert_eq!(resets(&node), 0);
}

#[test]
fn a_reset_that_failed_is_tried_again() {
    let mut node = world();
    node.broken.insert(Part::Purge);
    pass(&mut node, 6 * SEC, true, || (1, 7));
    assert_eq!(resets(&node), 1);
    node.broken.clear();
    pass(&mut node, 5 * SEC, true, || (1, 7));
    assert_eq!(resets(&node), 2);
}
