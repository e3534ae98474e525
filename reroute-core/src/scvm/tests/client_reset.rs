use super::super::*;
use super::world::*;
use crate::proto::{MOST_RESET, Order};

const E: Epoch = Epoch(3);

/// X is served here.
fn world() -> Node {
    let mut node = Node::up(FencePolicy::Kill);
    node.order(Order::Admit { host: X, epoch: E });
    assert!(node.word(X).is_admitted());
    node.log.clear();
    node
}

fn ask(node: &mut Node, epoch: Epoch, ports: &[u16]) {
    let (network, ports) = (Network::Storage, ports.to_vec());
    node.order(Order::ResetClient { host: X, epoch, network, ports, own: false });
}

/// Ports and round of each.
fn resets(node: &Node) -> Vec<(Vec<u16>, u32)> {
    let each = node.log.iter().filter_map(|(_, e)| match e {
        Effect::ResetClient { host: X, network: Network::Storage, ports, round, .. } => {
            Some((ports.clone(), *round))
        }
        Effect::ResetClient { .. } => panic!("{e:?}"),
        _ => None,
    });
    each.collect()
}

fn faults(node: &Node) -> Vec<String> {
    let what = node.log.iter().filter_map(|(_, e)| match e {
        Effect::Journal { event: Event::Fault { what }, .. } => Some(what.clone()),
        _ => None,
    });
    what.collect()
}

#[test]
fn who_is_served_at_that_epoch_is_rid_of_its_old_connections() {
    let mut node = world();
    ask(&mut node, E, &[700, 0, 701, 700]);
    assert_eq!(resets(&node), [(vec![700, 701], 1)]);
    let told = Event::ClientReset { host: X, epoch: E, tickled: 2, destroyed: 0 };
    assert_eq!(node.did(|e| matches!(e, Effect::Journal { event, .. } if *event == told)), 1);
    let view = node.machine.view(node.now);
    let standing = view.hosts.iter().find(|h| h.host == X).and_then(|h| h.reset.clone()).unwrap();
    assert_eq!((standing.connections, standing.round), (2, 1));
}

#[test]
fn nothing_is_sent_before_it_is_admitted() {
    let mut node = Node::up(FencePolicy::Kill);
    ask(&mut node, E, &[700]);
    node.order(Order::Prepare { host: X, epoch: E });
    ask(&mut node, E, &[700]);
    // Ordered, but the kernel has not taken it.
    node.broken.insert(Part::Admit);
    node.order(Order::Admit { host: X, epoch: E });
    ask(&mut node, E, &[700]);
    assert_eq!(resets(&node), []);
    assert!(faults(&node).iter().any(|f| f.contains("is not admitted here at")), "{:?}", faults(&node));
    node.broken.clear();
    node.run(100 * MS);
    assert!(node.word(X).is_admitted());
    ask(&mut node, E, &[700]);
    assert_eq!(resets(&node).len(), 1);
}

#[test]
fn never_at_another_epoch_nor_after_a_fence() {
    let mut node = world();
    ask(&mut node, Epoch(2), &[700]);
    ask(&mut node, Epoch(4), &[700]);
    assert_eq!(resets(&node), []);
    // The fence was asked for and has not reached the kernel: it counts at once.
    node.broken.insert(Part::Fence);
    node.order(Order::Revoke { host: X, epoch: E, planned: false });
    assert!(node.word(X).is_admitted());
    ask(&mut node, E, &[700]);
    node.broken.clear();
    node.run(100 * MS);
    ask(&mut node, E, &[700]);
    assert_eq!(resets(&node), []);
}

#[test]
fn an_order_from_before_the_session_is_not_followed() {
    let mut node = world();
    node.seq += 1;
    let (network, ports) = (Network::Storage, vec![700]);
    let order = Order::ResetClient { host: X, epoch: E, network, ports, own: false };
    node.feed(Input::Order { term: TERM, seq: 0, order });
    assert_eq!(resets(&node), []);
    node.pass(2 * SEC, false);
    ask(&mut node, E, &[700]);
    assert_eq!(resets(&node), [], "no session is open any more");
}

#[test]
fn many_connections_and_many_requests_are_bounded() {
    let mut node = world();
    let ports: Vec<u16> = (1000..2000).collect();
    ask(&mut node, E, &ports);
    assert_eq!(resets(&node)[0].0.len(), MOST_RESET);
    // A copy that comes at once does nothing.
    ask(&mut node, E, &ports);
    assert_eq!(resets(&node).len(), 1);
    for _ in 0..20 {
        node.run(600 * MS);
        ask(&mut node, E, &[700]);
    }
    let rounds: Vec<u32> = resets(&node).iter().map(|(_, round)| *round).collect();
    assert_eq!(rounds, [1, 2, 3, 4, 5, 6, 7, 8], "and then no more");
    assert!(faults(&node).iter().any(|f| f.contains("left alone")));
    // Another matter, much later.
    node.run(11 * SEC);
    ask(&mut node, E, &[700]);
    assert_eq!(resets(&node).len(), 9);
}

#[test]
fn what_could_not_be_sent_is_said() {
    let mut node = world();
    node.broken.insert(Part::Tickle);
    ask(&mut node, E, &[700]);
    assert!(faults(&node).iter().any(|f| f.contains("were not reset: broken")), "{:?}", faults(&node));
    assert_eq!(node.did(|e| matches!(e, Effect::Journal { event: Event::ClientReset { .. }, .. })), 0);
    node.broken.clear();
    node.run(600 * MS);
    ask(&mut node, E, &[700]);
    assert_eq!(node.did(|e| matches!(e, Effect::Journal { event: Event::ClientReset { .. }, .. })), 1);
}
