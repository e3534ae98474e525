//! Blocks: on record, counted down, told, and in the way of logins.

use super::table::{at_a, send};
use super::world::World;
use super::*;
use crate::block::*;

const HOUR_MS: u64 = 3_600_000;

fn block(client: &str, for_ms: u64) -> Ask {
    let (reason, actor) = ("maintenance".to_string(), "root".to_string());
    Ask::AddBlock { client: client.into(), for_ms, reason, actor, sure: true }
}

fn remove(id: u64) -> Ask {
    Ask::RemoveBlock { id: BlockId(id), actor: "root".into() }
}

fn remaining_s(w: &World) -> Vec<u64> {
    w.master.view(BootNs(w.now)).blocks.iter().map(|b| b.remaining_ns / SEC).collect()
}

#[test]
fn what_is_wrong_with_a_wish_is_named_and_nothing_changes() {
    let mut w = at_a();
    let no_reason = Ask::AddBlock {
        client: "x".into(),
        for_ms: 1000,
        reason: " ".into(),
        actor: "root".into(),
        sure: true,
    };
    assert_eq!(w.operator(no_reason), Err(Denial::NoReason));
    assert_eq!(w.operator(block("x", 0)), Err(Denial::BadDuration { for_ms: 0 }));
    assert!(matches!(w.operator(block("x", LONGEST_MS + 1)), Err(Denial::BadDuration { .. })));
    assert!(matches!(w.operator(block("y", 1000)), Err(Denial::UnknownClient { .. })));
    assert_eq!(w.operator(remove(1)), Err(Denial::UnknownBlock { id: BlockId(1) }));
    assert!(w.master.view(BootNs(w.now)).blocks.is_empty());
    // By name, id, or address.
    for client in ["x", "1", "10.0.0.101", "10.1.0.101"] {
        assert!(w.operator(block(client, 1000)).is_ok(), "{client}");
    }
}

#[test]
fn who_is_being_served_is_blocked_only_by_somebody_who_is_sure() {
    let mut w = at_a();
    let term = w.master.term();
    let clients = vec![super::holders::facts(2, None)];
    w.send(NodeId::Scvm(A), ToMeta::Holders { term, clients });
    w.deliver(w.in_flight() - 1, false);
    let Ask::AddBlock { client, for_ms, reason, actor, .. } = block("x", 1000) else { unreachable!() };
    let unsure = Ask::AddBlock { client, for_ms, reason, actor, sure: false };
    assert_eq!(w.operator(unsure), Err(Denial::InUse { host: X, scvm: A, connections: 2 }));
    assert!(w.operator(block("x", 1000)).is_ok());
}

#[test]
fn the_blocked_neither_log_in_nor_move_and_their_login_stands() {
    let mut w = at_a();
    w.operator(block("x", HOUR_MS)).unwrap();
    w.calm_round();
    assert!([A, B, C].iter().all(|s| w.scvms[s].blocks == Some(1)), "every SCVM is told");
    let wish =
        ToMeta::Move { from_epoch: Epoch(1), to: C, planned: false, reason: String::new(), evidence: vec![] };
    let (reply, effects) = send(&mut w.master, NodeId::Host(X), 900, wish.clone(), w.now);
    let MetaReply::Refused { error } = reply else { panic!("{reply:?}") };
    assert!(matches!(&error, Refusal::Blocked { id: BlockId(1), remaining_s: 3550..=3600, .. }), "{error:?}");
    assert!(error.to_string().contains("maintenance"), "{error}");
    assert!(effects.is_empty(), "{effects:?}");
    assert_eq!(w.stands_at(), Some(A), "and a block ends no login");
    assert!(!w.journal.iter().any(|e| matches!(e, Event::RevokeSent { .. })), "nor fences anybody");
    // It ends by itself.
    w.pass(HOUR_MS * MS);
    for _ in 0..3 {
        w.calm_round();
    }
    let (reply, _) = send(&mut w.master, NodeId::Host(X), 901, wish, w.now);
    assert!(matches!(reply, MetaReply::Ok { .. }), "{reply:?}");
    assert!(w.journal.iter().any(|e| matches!(e, Event::BlockEnded { id: BlockId(1), by: None, .. })));
}

/// What is on record goes on; what was only asked for has not begun.
#[test]
fn a_move_that_was_asked_for_before_the_block_does_not_begin() {
    let mut w = at_a();
    let wish =
        ToMeta::Move { from_epoch: Epoch(1), to: C, planned: false, reason: String::new(), evidence: vec![] };
    let (reply, _) = send(&mut w.master, NodeId::Host(X), 900, wish, w.now);
    assert!(matches!(reply, MetaReply::Ok { .. }), "{reply:?}");
    w.operator(block("x", HOUR_MS)).unwrap();
    let ready = ToMeta::Prepared { host: X, epoch: Epoch(2), error: None };
    let (_, effects) = send(&mut w.master, NodeId::Scvm(C), 901, ready, w.now);
    assert_eq!(effects, []);
    w.calm_round();
    assert_eq!((w.stands_at(), w.host.refused), (Some(A), 1));
}

#[test]
fn a_block_is_removed_once_and_an_ended_one_not_at_all() {
    let mut w = at_a();
    w.operator(block("x", HOUR_MS)).unwrap();
    w.operator(block("x", 2000)).unwrap();
    assert!(matches!(w.operator(remove(1)), Ok(Done::Unblocked { version: 3, .. })));
    let again = w.operator(remove(1)).unwrap_err();
    assert!(matches!(&again, Denial::BlockRemoved { actor, .. } if actor == "root"), "{again}");
    w.pass(5 * SEC);
    for _ in 0..2 {
        let expired = w.operator(remove(2)).unwrap_err();
        assert_eq!(expired, Denial::BlockExpired { id: BlockId(2), host: X, ago_s: 3 });
    }
    // A restart does not forget why.
    w.restart(false);
    assert!(matches!(w.operator(remove(2)), Err(Denial::BlockExpired { ago_s: 3, .. })));
    assert!(matches!(w.operator(remove(1)), Err(Denial::BlockRemoved { .. })));
    assert_eq!(w.operator(remove(7)), Err(Denial::UnknownBlock { id: BlockId(7) }));
}

#[test]
fn a_restart_neither_forgets_a_block_nor_makes_it_longer() {
    let mut w = at_a();
    w.operator(block("x", HOUR_MS)).unwrap();
    w.pass(600 * SEC);
    w.restart(false);
    assert_eq!(remaining_s(&w), [3000]);
    // The node was down for ten minutes: its own clock did not run, the wall clock did.
    w.wall += 600_000;
    w.restart(false);
    assert_eq!(remaining_s(&w), [2400]);
    // A wall clock that was set back by a day gives no more than was left when it was last written down.
    w.wall -= 24 * HOUR_MS;
    w.restart(false);
    assert_eq!(remaining_s(&w), [3600]);
    w.wall += 24 * HOUR_MS;
    w.restart(false);
    w.operator(remove(9)).unwrap_err();
    assert_eq!(remaining_s(&w), [2400]);
    // Nor what had passed when the list was last written.
    w.operator(block("x", HOUR_MS)).unwrap();
    w.wall -= 24 * HOUR_MS;
    w.restart(false);
    assert_eq!(remaining_s(&w), [2400, 3600]);
}

/// While Meta runs, its own clock counts: whatever somebody does to the wall clock.
#[test]
fn the_wall_clock_is_asked_only_at_a_start() {
    let mut w = at_a();
    w.operator(block("x", HOUR_MS)).unwrap();
    w.wall += 2 * HOUR_MS;
    w.operator(block("x", 2 * HOUR_MS)).unwrap();
    assert_eq!(remaining_s(&w), [3600, 7200]);
    w.wall -= 5 * HOUR_MS;
    w.operator(remove(2)).unwrap();
    assert_eq!(remaining_s(&w), [3600]);
}

#[test]
fn an_scvm_that_was_away_is_told_with_its_session_and_named_until_then() {
    let mut w = at_a();
    w.power(B);
    w.operator(block("x", HOUR_MS)).unwrap();
    for _ in 0..20 {
        w.calm_round();
    }
    let open = |w: &World| w.master.view(BootNs(w.now)).blocks[0].unconfirmed.clone();
    assert_eq!(open(&w), [B]);
    w.power(B);
    for _ in 0..5 {
        w.calm_round();
    }
    assert!(open(&w).is_empty(), "{:?}", open(&w));
}

#[test]
fn a_line_that_was_lost_is_sent_again() {
    let mut w = at_a();
    w.operator(block("x", HOUR_MS)).unwrap();
    while w.in_flight() > 0 {
        w.lose(0);
    }
    for _ in 0..30 {
        w.calm_round();
    }
    assert!(w.master.view(BootNs(w.now)).blocks[0].unconfirmed.is_empty());
}

#[test]
fn what_the_store_did_not_take_is_told_and_blocks_nobody() {
    let mut w = at_a();
    let ask = |w: &mut World, result: Result<(), (String, Option<BlockList>)>| {
        w.next += 1;
        let wall = WallMs(w.wall);
        w.input(Input::Ask { ticket: Ticket(w.next), ask: block("x", HOUR_MS), wall });
        let pending = w.pending_blocks.take().unwrap();
        w.input(Input::BlocksStored { result, wall });
        (w.told.pop().unwrap(), pending)
    };
    let (told, pending) = ask(&mut w, Err(("disk full".into(), Some(BlockList::default()))));
    assert!(matches!(told, Err(Denial::Store { .. })), "{told:?}");
    assert!(w.master.view(BootNs(w.now)).blocks.is_empty());
    // Written after all, as the store itself shows.
    let (told, _) = ask(&mut w, Err(("broke off".into(), Some(pending))));
    assert!(matches!(told, Ok(Done::Blocked { .. })), "{told:?}");
    assert_eq!(w.master.view(BootNs(w.now)).blocks.len(), 1);
}

#[test]
fn ended_blocks_are_remembered_but_not_for_ever() {
    let mut w = at_a();
    for _ in 0..REMEMBERED + 10 {
        w.operator(block("x", 1000)).unwrap();
        w.pass(2 * SEC);
    }
    w.operator(block("x", HOUR_MS)).unwrap();
    assert_eq!(w.blocks.blocks.len(), REMEMBERED + 1);
    assert_eq!(w.master.view(BootNs(w.now)).blocks.len(), 1);
}
