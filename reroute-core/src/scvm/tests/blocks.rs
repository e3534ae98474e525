//! Whom an operator keeps away.

use super::world::*;
use crate::block::{BlockEntry, BlockOrder};
use crate::ids::*;
use crate::proto::Order;
use crate::scvm::*;

const HOUR: u64 = 3600 * SEC;

fn list(version: u64, blocks: &[(u64, HostId, u64)]) -> BlockOrder {
    let entry =
        |&(id, host, remaining_ns): &(u64, HostId, u64)| BlockEntry { id: BlockId(id), host, remaining_ns };
    BlockOrder { version, blocks: blocks.iter().map(entry).collect() }
}

fn up() -> Node {
    let mut node = Node::up(FencePolicy::Storage);
    node.clients(&[(X, BootNs(0)), (Y, BootNs(0))]);
    node
}

fn blocks(node: &mut Node, list: BlockOrder) {
    node.order(Order::Blocks { list });
}

fn end(node: &Node, host: HostId) -> u64 {
    node.kernel.blocked.get(&host).map_or(0, |until| until.0)
}

#[test]
fn a_block_reaches_the_kernel_and_is_confirmed_only_then() {
    let mut node = up();
    node.broken.insert(Part::Block);
    blocks(&mut node, list(3, &[(3, X, HOUR)]));
    assert_eq!(node.machine.health().blocks, 0, "not enforced, not confirmed");
    node.broken.clear();
    node.run(SEC);
    assert_eq!(node.machine.health().blocks, 3);
    let asked_at = node.now;
    assert!(end(&node, X) <= asked_at.0 + HOUR, "no longer than asked");
    assert!(end(&node, X) > asked_at.0 + HOUR - 2 * SEC);
    assert_eq!(end(&node, Y), 0);
    assert!(node.machine.view(node.now).hosts.iter().all(|h| h.revoke.is_none()), "nobody is fenced by it");
    blocks(&mut node, list(4, &[]));
    assert_eq!((end(&node, X), node.machine.health().blocks), (0, 4));
}

#[test]
fn copies_late_or_repeated_make_no_block_longer_and_bring_none_back() {
    let mut node = up();
    blocks(&mut node, list(3, &[(3, X, HOUR)]));
    let asked = end(&node, X);
    node.run(10 * SEC);
    // The same line, ten seconds on its way.
    blocks(&mut node, list(3, &[(3, X, HOUR)]));
    assert_eq!(end(&node, X), asked);
    blocks(&mut node, list(4, &[]));
    assert_eq!(end(&node, X), 0);
    blocks(&mut node, list(3, &[(3, X, HOUR)]));
    assert_eq!((end(&node, X), node.machine.health().blocks), (0, 4), "an older list is no news");
}

#[test]
fn of_two_blocks_the_longer_one_holds() {
    let mut node = up();
    blocks(&mut node, list(2, &[(1, X, HOUR), (2, X, 2 * HOUR)]));
    let longer = end(&node, X);
    assert_eq!(longer, node.now.0 + 2 * HOUR);
    blocks(&mut node, list(3, &[(1, X, HOUR)]));
    assert_eq!(end(&node, X), node.now.0 + HOUR);
}

#[test]
fn what_comes_without_a_session_waits_for_the_next_one() {
    let mut node = up();
    node.pass(SEC, false);
    node.mail.retain(|(tag, _)| matches!(tag, Tag::Open { .. }));
    blocks(&mut node, list(3, &[(3, X, HOUR)]));
    assert_eq!(end(&node, X), 0, "it may have waited in a buffer for hours");
    node.open_with(&[], list(3, &[(3, X, HOUR / 2)]));
    assert_eq!(end(&node, X), node.now.0 + HOUR / 2);
}

#[test]
fn a_new_agent_leaves_the_kernels_blocks_alone_until_it_hears() {
    let mut old = up();
    blocks(&mut old, list(3, &[(3, X, HOUR)]));
    let stands = end(&old, X);
    let mut node = Node::new(settings(FencePolicy::Storage));
    node.kernel.blocked = old.kernel.blocked.clone();
    node.clients(&[(X, BootNs(0))]);
    node.feed(Input::ServerSeen { pid: PID, incarnation: SERVER });
    node.pass(SEC, false);
    assert_eq!(end(&node, X), stands);
    assert_eq!(node.machine.health().blocks, 0);
    // A store that was replaced by an older one: the session's answer is what counts.
    node.mail.retain(|(tag, _)| matches!(tag, Tag::Open { .. }));
    while node.mail.len() > 1 {
        node.mail.pop_front();
    }
    node.open_with(&[], list(2, &[]));
    assert_eq!((end(&node, X), node.machine.health().blocks), (0, 2));
}

#[test]
fn bypass_lets_the_blocked_in_and_says_so() {
    let mut node = up();
    blocks(&mut node, list(3, &[(3, X, HOUR)]));
    node.feed(Input::Bypass { on: true, actor: "test".into() });
    let alarms = node.machine.view(node.now).alarms;
    assert!(alarms.iter().any(|a| a.contains("blocked clients get in all the same")), "{alarms:?}");
    assert_eq!(end(&node, X), node.now.0 + HOUR, "and the block itself stands");
    assert_eq!(node.machine.health().blocks, 0, "but is enforced by nobody");
    node.feed(Input::Bypass { on: false, actor: "test".into() });
    assert_eq!(node.machine.health().blocks, 3);
    assert!(node.machine.view(node.now).alarms.is_empty());
}

#[test]
fn an_epoch_that_no_login_can_have_is_refused_by_name() {
    for epoch in [Epoch(0), Epoch(Epoch::LAST.0 + 1)] {
        for order in [
            Order::Revoke { host: X, epoch, planned: false },
            Order::Admit { host: X, epoch },
            Order::Prepare { host: X, epoch },
        ] {
            let mut node = up();
            node.order(order.clone());
            node.run(100 * MS);
            assert_eq!(node.word(X).0, 0, "{order:?}");
            let named = |e: &Effect| matches!(e, Effect::Journal { event: crate::timeline::Event::Fault { what }, .. } if what.contains("no"));
            assert!(node.did(named) > 0, "{order:?}");
        }
    }
}
