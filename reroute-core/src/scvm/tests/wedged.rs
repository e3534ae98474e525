use super::super::*;
use super::world::*;
use crate::proto::Order;
use crate::timeline::Event;

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

fn said(node: &Node) -> usize {
    node.did(|e| matches!(e, Effect::Journal { event: Event::Fault { what }, .. } if what.contains("has got no reply for 5 s")))
}

fn alarm(node: &Node) -> bool {
    node.machine.view(node.now).alarms.iter().any(|a| a.contains("gets no replies"))
}

/// What waits may be executed yet: sent again by a new connection, it would be executed twice, and the second time over
/// what was written since.
fn left_alone(node: &Node) -> bool {
    !node.killed()
        && node.word(X).is_admitted()
        && node.did(|e| matches!(e, Effect::PurgeSockets { .. })) == 0
}

#[test]
fn a_client_without_replies_among_others_is_named_and_left_alone() {
    let mut node = world();
    pass(&mut node, 4900 * MS, true, || (1, 7));
    assert_eq!((said(&node), alarm(&node)), (0, false));
    pass(&mut node, 300 * MS, true, || (1, 7));
    assert_eq!((said(&node), alarm(&node)), (1, true));
    pass(&mut node, 70 * SEC, true, || (1, 7));
    assert_eq!((said(&node), alarm(&node)), (1, true), "once");
    assert!(left_alone(&node));
    // It goes on, and stands still again.
    pass(&mut node, 100 * MS, true, || (1, 8));
    assert!(!alarm(&node));
    pass(&mut node, 6 * SEC, true, || (1, 8));
    assert_eq!((said(&node), alarm(&node)), (2, true));
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
    assert_eq!((said(&node), alarm(&node)), (0, false));
}

#[test]
fn where_nobody_gets_replies_no_connection_is_to_blame() {
    let mut node = world();
    pass(&mut node, 20 * SEC, false, || (1, 7));
    assert_eq!((said(&node), alarm(&node)), (0, false));
    assert!(left_alone(&node));
}
