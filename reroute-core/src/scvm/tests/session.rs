use super::super::*;
use super::world::*;
use crate::proto::{MetaReply, Order, Refusal, ToMeta};
use reroute_common::admission::{Word, rank};

fn renewals(node: &Node) -> Vec<BootNs> {
    let all = node.log.iter().filter_map(|(_, e)| match e {
        Effect::Renew { deadline, .. } => Some(*deadline),
        _ => None,
    });
    all.collect()
}

fn mail(node: &mut Node, wanted: fn(&Tag) -> bool) -> Tag {
    let at = node.mail.iter().position(|(tag, _)| wanted(tag)).expect("the message");
    node.mail.remove(at).unwrap().0
}
fn keepalive(node: &mut Node) -> Tag {
    mail(node, |tag| matches!(tag, Tag::KeepAlive { .. }))
}
fn open(node: &mut Node) -> Tag {
    mail(node, |tag| matches!(tag, Tag::Open { .. }))
}

#[test]
fn a_session_serves_whom_meta_names_and_renews_from_the_send_stamp() {
    let mut node = Node::new(settings(FencePolicy::Wait));
    node.feed(Input::Tick);
    let asked = node.now;
    node.pass(30 * MS, false);
    assert!(renewals(&node).is_empty(), "nothing before Meta has answered");
    node.open(&[(X, Epoch(3))]);
    assert_eq!(node.word(X), Word::new(3, rank::ADMITTED));
    assert_eq!(node.epochs[&X], Epoch(3));
    assert_eq!(renewals(&node), [asked.plus(500 * MS)]);
    assert!(node.answers().is_empty(), "no order, no answer");

    node.pass(75 * MS, false);
    let tag = keepalive(&mut node);
    let Tag::KeepAlive { sent_at, term, .. } = tag else { panic!("{tag:?}") };
    assert_eq!(
        (sent_at, term),
        (asked.plus(100 * MS), TERM),
        "100 ms after the open, whatever the reply took"
    );
    node.pass(200 * MS, false);
    let later = node.mail.iter().filter(|(tag, _)| matches!(tag, Tag::KeepAlive { .. })).count();
    assert_eq!(later, 2, "sends overlap");
    node.feed(Input::Reply { tag, reply: Ok(MetaReply::Ok { term: TERM }) });
    assert_eq!(renewals(&node).last(), Some(&sent_at.plus(500 * MS)));
}

#[test]
fn a_lapsed_session_opens_anew_and_late_replies_of_the_old_one_renew_nothing() {
    let mut node = Node::up(FencePolicy::Wait);
    node.pass(150 * MS, false);
    let late = keepalive(&mut node);
    node.pass(600 * MS, false);
    let reopened = open(&mut node);
    node.log.clear();
    node.feed(Input::Reply { tag: late, reply: Ok(MetaReply::Ok { term: TERM }) });
    assert!(renewals(&node).is_empty());
    let reply =
        Ok(MetaReply::Session { term: TERM, logins: vec![], orders_to: 0, blocks: Default::default() });
    node.feed(Input::Reply { tag: reopened, reply });
    assert_eq!(renewals(&node).len(), 1);
    node.feed(Input::Reply { tag: late, reply: Ok(MetaReply::Ok { term: TERM }) });
    assert_eq!(renewals(&node).len(), 1, "the same term, but an earlier session");
}

#[test]
fn another_term_and_no_session_both_open_anew() {
    for reply in [
        MetaReply::Ok { term: Term(8) },
        MetaReply::Refused { error: Refusal::NoSession },
        MetaReply::Session { term: Term(9), logins: vec![], orders_to: 0, blocks: Default::default() },
    ] {
        let mut node = Node::up(FencePolicy::Wait);
        node.pass(100 * MS, false);
        let tag = keepalive(&mut node);
        node.log.clear();
        node.feed(Input::Reply { tag, reply: Ok(reply) });
        assert!(renewals(&node).is_empty());
        open(&mut node);
    }
}

#[test]
fn an_order_of_a_newer_leader_opens_anew_and_one_of_an_older_is_refused() {
    let mut node = Node::up(FencePolicy::Wait);
    node.feed(Input::Order {
        term: Term(6),
        seq: 1,
        order: Order::Revoke { host: X, epoch: Epoch(1), planned: false },
    });
    assert_eq!(node.did(|e| matches!(e, Effect::Fence { .. })), 0);
    assert_eq!(node.did(|e| matches!(e, Effect::Journal { event: Event::Fault { .. }, .. })), 1);
    node.feed(Input::Order {
        term: Term(8),
        seq: 1,
        order: Order::Revoke { host: X, epoch: Epoch(1), planned: false },
    });
    assert_eq!(node.did(|e| matches!(e, Effect::Fence { .. })), 1);
    let tag = open(&mut node);
    node.log.clear();
    node.feed(Input::Reply {
        tag,
        reply: Ok(MetaReply::Session {
            term: TERM,
            logins: vec![(Y, Epoch(1))],
            orders_to: 0,
            blocks: Default::default(),
        }),
    });
    assert!(renewals(&node).is_empty(), "the leader of that term is gone");
    assert_eq!(node.word(Y), Word::NONE);
}

#[test]
fn meta_out_of_reach_is_asked_again_and_said_once() {
    let mut node = Node::new(settings(FencePolicy::Wait));
    node.feed(Input::Tick);
    for _ in 0..5 {
        let tag = open(&mut node);
        node.feed(Input::Reply { tag, reply: Err("refused".into()) });
        node.pass(100 * MS, false);
    }
    assert_eq!(node.did(|e| matches!(e, Effect::Journal { event: Event::Fault { .. }, .. })), 1);
}

#[test]
fn a_reply_that_never_comes_does_not_stop_us() {
    let mut node = Node::new(settings(FencePolicy::Wait));
    node.feed(Input::Tick);
    open(&mut node);
    node.pass(1100 * MS, false);
    open(&mut node);
}

/// A host served here, then the session lapses, and Meta names it no more.
fn forgotten(affirmed: bool, lapse: bool) -> Node {
    let mut node = Node::new(settings(FencePolicy::Storage));
    node.feed(Input::Tick);
    node.open(&[(X, Epoch(3))]);
    node.pass(if lapse { 700 * MS } else { 200 * MS }, false);
    if !lapse {
        let tag = keepalive(&mut node);
        node.feed(Input::Reply { tag, reply: Err("timeout".into()) });
        let tag = keepalive(&mut node);
        node.feed(Input::Reply { tag, reply: Ok(MetaReply::Refused { error: Refusal::NoSession }) });
    }
    let until = if affirmed { node.now.plus(90 * MS) } else { node.now };
    node.clients(&[(X, until)]);
    node.log.clear();
    node
}

#[test]
fn after_a_lapse_a_host_that_meta_does_not_name_is_shut_out_before_the_lease_opens() {
    let mut node = forgotten(false, true);
    node.broken.insert(Part::Fence);
    node.open(&[]);
    node.run(50 * MS);
    assert!(renewals(&node).is_empty(), "not before the fence stands");
    node.broken.clear();
    node.run(50 * MS);
    assert_eq!(node.word(X), Word::new(3, rank::FENCED));
    let fence = node.position(|e| matches!(e, Effect::Fence { .. }));
    assert!(fence < node.position(|e| matches!(e, Effect::Renew { .. })));
    assert_eq!(node.did(|e| matches!(e, Effect::KillServer { .. } | Effect::PurgeSockets { .. })), 0);
    assert!(node.epochs.is_empty());
}

/// By our own clock the lease has not run out, by Meta's it has: our clock has stood still, and meanwhile the host was
/// moved. What opens the session again must not open the word.
#[test]
fn a_clock_that_stood_still_does_not_keep_a_host_that_meta_does_not_name() {
    let mut node = forgotten(false, false);
    node.open(&[]);
    assert_eq!(node.word(X), Word::new(3, rank::FENCED));
    let fence = node.position(|e| matches!(e, Effect::Fence { .. }));
    assert!(fence < node.position(|e| matches!(e, Effect::Renew { .. })));
}

#[test]
fn who_affirms_us_still_is_not_shut_out() {
    for lapse in [true, false] {
        let mut node = forgotten(true, lapse);
        node.open(&[]);
        assert!(renewals(&node).is_empty(), "by a stamp from before the session, perhaps");
        node.clients(&[(X, node.now.plus(101 * MS))]);
        node.run(20 * MS);
        assert_eq!(node.word(X), Word::new(3, rank::ADMITTED), "lapse {lapse}");
        assert!(!renewals(&node).is_empty());
        node.run(200 * MS);
        assert_eq!(node.word(X), Word::new(3, rank::ADMITTED), "lapse {lapse}");
    }
}

/// The same affirmation, but nothing follows it: it was sent before our clock stood still.
#[test]
fn an_affirmation_from_before_a_stop_does_not_last() {
    let mut node = forgotten(true, false);
    node.open(&[]);
    node.run(150 * MS);
    assert_eq!(node.word(X), Word::new(3, rank::FENCED));
    let fence = node.position(|e| matches!(e, Effect::Fence { .. }));
    assert!(fence < node.position(|e| matches!(e, Effect::Renew { .. })));
}

#[test]
fn an_order_that_overtook_the_session_reply_is_obeyed_when_it_is_repeated() {
    let mut node = forgotten(false, true);
    node.order(Order::Admit { host: X, epoch: Epoch(5) });
    // The list was made before the order.
    node.open(&[]);
    assert_eq!(node.word(X), Word::new(3, rank::FENCED));
    node.order(Order::Admit { host: X, epoch: Epoch(5) });
    assert_eq!(node.word(X), Word::new(5, rank::ADMITTED));
    assert_eq!(renewals(&node).len(), 1);
}

#[test]
fn news_is_told_at_once_and_not_in_a_flood() {
    let mut node = Node::up(FencePolicy::Wait);
    node.pass(20 * MS, false);
    node.mail.clear();
    node.feed(Input::ServerExited { pid: PID, incarnation: SERVER });
    let health = |node: &Node| match node.mail.back() {
        Some((_, ToMeta::KeepAlive { health, .. })) => health.clone(),
        other => panic!("{other:?}"),
    };
    assert!(!health(&node).process_alive);
    node.mail.clear();
    for i in 0..20 {
        node.now = node.now.plus(MS);
        node.feed(Input::Carrier { network: Network::Storage, up: i % 2 == 1 });
    }
    assert!((1..=3).contains(&node.mail.len()), "{}", node.mail.len());
}
