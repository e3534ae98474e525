//! Clients without an agent that call here: what is told, to whom, and what becomes of their connections.

use super::world::*;
use crate::ids::*;
use crate::proto::{MetaReply, Order, ToMeta};
use crate::scvm::*;
use crate::timeline::Event;
use reroute_common::admission::{Word, rank};

impl Node {
    /// X has no agent, Y has one.
    fn know(&mut self) {
        let facts = [(X, false), (Y, true)].map(|(host, has_agent)| ClientFacts {
            host,
            has_agent,
            word: self.word(host),
            affirm_deadline: BootNs(0),
            connections: 2,
            in_progress: 0,
            replies: 0,
            blocked_until: BootNs(0),
        });
        self.machine.handle(Input::Clients(facts.to_vec()), self.now);
    }
    fn heard(&mut self, host: HostId, kind: SignalKind) {
        self.know();
        let signal = Signal { kind, at: self.now, host: Some(host), waiting: 0, age_ns: 0, limit_ns: 0 };
        self.feed(Input::Signal(signal));
    }
    /// Takes every LoginWanted out of the mail, and answers it if `answer`.
    fn wants(&mut self, answer: bool) -> Vec<ToMeta> {
        let mut found = Vec::new();
        while let Some(at) = self.mail.iter().position(|(_, m)| matches!(m, ToMeta::LoginWanted { .. })) {
            let (tag, msg) = self.mail.remove(at).unwrap();
            found.push(msg);
            if answer {
                self.feed(Input::Reply { tag, reply: Ok(MetaReply::Ok { term: TERM }) });
            }
        }
        found
    }
    /// Answers the last SessionOpen; those before it are lost.
    fn reopen(&mut self, logins: &[(HostId, Epoch)]) {
        let opens = |(tag, _): &(Tag, ToMeta)| matches!(tag, Tag::Open { .. });
        let last = self.mail.iter().rposition(opens).expect("a SessionOpen");
        self.mail.drain(..last);
        self.open(logins);
    }
    fn purges(&self, which: Purpose) -> usize {
        self.did(|e| matches!(e, Effect::PurgeSockets { purpose, .. } if *purpose == which))
    }
    fn faults(&self) -> Vec<String> {
        let whats = self.log.iter().filter_map(|(_, e)| match e {
            Effect::Journal { event: Event::Fault { what }, .. } => Some(what.clone()),
            _ => None,
        });
        whats.collect()
    }
}

fn up() -> Node {
    let mut node = Node::up(FencePolicy::Storage);
    node.know();
    node
}

#[test]
fn a_wish_is_told_at_once_and_again_while_it_lasts_and_no_longer() {
    let mut node = up();
    node.heard(X, SignalKind::LoginWanted);
    let first = ToMeta::LoginWanted { host: X, closed: Epoch(0), connections: 2, age_ns: 0 };
    assert_eq!(node.wants(true), [first]);
    assert_eq!(node.machine.health().held_clients, 1);
    // It goes on calling: every 200 ms, however often that is.
    let mut told = 0;
    for _ in 0..20 {
        node.run(100 * MS);
        node.heard(X, SignalKind::LoginWanted);
        told += node.wants(true).len();
    }
    assert!((9..=11).contains(&told), "{told} in 2 s");
    node.run(3 * SEC);
    node.wants(true);
    node.run(2 * SEC);
    assert!(node.wants(true).is_empty(), "it has gone");
    assert_eq!(node.machine.health().held_clients, 0);
}

#[test]
fn one_message_at_a_time_waits_for_its_reply() {
    let mut node = up();
    for _ in 0..10 {
        node.heard(X, SignalKind::LoginWanted);
        node.run(100 * MS);
    }
    assert_eq!(node.wants(false).len(), 1);
}

#[test]
fn hosts_with_an_agent_and_strangers_want_nothing() {
    let mut node = up();
    node.heard(Y, SignalKind::LoginWanted);
    node.heard(HostId(77), SignalKind::LoginWanted);
    assert!(node.wants(true).is_empty());
    assert_eq!(node.machine.health().held_clients, 0);
}

#[test]
fn who_is_served_wants_nothing() {
    let mut node = up();
    node.heard(X, SignalKind::LoginWanted);
    node.wants(true);
    node.order(Order::Admit { host: X, epoch: Epoch(1) });
    assert_eq!(node.word(X), Word::new(1, rank::ADMITTED));
    node.run(SEC);
    node.heard(X, SignalKind::LoginWanted);
    assert!(node.wants(true).is_empty(), "an event from before the admission");
    assert_eq!(node.machine.health().held_clients, 0);
}

#[test]
fn the_connection_it_calls_on_is_the_one_it_is_served_on() {
    let mut node = up();
    node.facts.last_reply_at = node.now;
    node.sockets.insert(X, 1);
    node.order(Order::Prepare { host: X, epoch: Epoch(1) });
    assert_eq!(node.purges(Purpose::Prepare), 0);
    let prepared = |epoch| ToMeta::Prepared { host: X, epoch: Epoch(epoch), error: None };
    assert!(node.answers().contains(&prepared(1)));
    // A host with an agent comes with new ones.
    node.order(Order::Prepare { host: Y, epoch: Epoch(1) });
    assert_eq!(node.purges(Purpose::Prepare), 1);

    node.order(Order::Admit { host: X, epoch: Epoch(1) });
    node.order(Order::Revoke { host: X, epoch: Epoch(1), planned: false });
    node.know();
    node.run(2 * MS);
    assert_eq!(node.sockets.get(&X), None, "the fence is proven: the old ones are closed at once");
    // It comes back with a new one, while it is shut out.
    node.sockets.insert(X, 1);
    node.facts.last_reply_at = node.now;
    node.order(Order::Prepare { host: X, epoch: Epoch(3) });
    assert!(node.answers().contains(&prepared(3)));
    assert_eq!((node.sockets.get(&X), node.purges(Purpose::Prepare)), (Some(&1), 1));
}

/// Half of a call may lie in a socket that outlived its login; the other half, held back since, must not complete it.
#[test]
fn what_may_hold_half_a_call_of_an_earlier_login_is_closed_before_the_next() {
    let mut node = up();
    node.sockets.insert(X, 1);
    node.order(Order::Admit { host: X, epoch: Epoch(1) });
    node.broken.insert(Part::Purge);
    node.order(Order::Revoke { host: X, epoch: Epoch(1), planned: false });
    node.run(SEC);
    node.broken.clear();
    node.know();
    node.facts.last_reply_at = node.now;
    node.order(Order::Prepare { host: X, epoch: Epoch(3) });
    assert_eq!((node.sockets.get(&X), node.purges(Purpose::Prepare)), (None, 1));
}

#[test]
fn connections_nobody_can_judge_are_closed_now_and_then_unless_they_are_served() {
    let mut node = up();
    for _ in 0..15 {
        node.heard(X, SignalKind::LoginWantedUnseen);
        node.run(100 * MS);
    }
    assert_eq!(node.purges(Purpose::Unseen), 2);
    assert!(node.wants(true).is_empty(), "whoever sent that, it moves nothing");
    node.order(Order::Admit { host: X, epoch: Epoch(1) });
    node.run(2 * SEC);
    node.heard(X, SignalKind::LoginWantedUnseen);
    assert_eq!(node.purges(Purpose::Unseen), 2);
}

#[test]
fn without_meta_it_is_served_for_its_lease_then_stands_still_and_this_is_said() {
    let mut node = up();
    node.order(Order::Admit { host: X, epoch: Epoch(1) });
    node.know();
    let lease = node.facts.session_deadline_no_agent;
    node.pass(7 * SEC, false);
    assert!(node.facts.session_deadline < node.now, "the session has lapsed");
    assert_eq!(node.facts.session_deadline_no_agent, lease, "nobody renews the lease");
    node.heard(X, SignalKind::LoginWanted);
    assert_eq!(node.machine.health().held_clients, 0, "its lease still runs");
    node.pass(2 * SEC, false);
    node.mail.clear();
    // TCP asks less and less often.
    for gap in [300, 300, 600, 1200, 2400] {
        node.heard(X, SignalKind::LoginWanted);
        node.pass(gap * MS, false);
    }
    node.heard(X, SignalKind::LoginWanted);
    assert!(node.wants(false).is_empty(), "there is nobody to tell");
    assert_eq!(node.word(X), Word::new(1, rank::ADMITTED), "nothing is killed, nothing shut");
    let said: Vec<_> = node.faults().into_iter().filter(|f| f.contains("stand still")).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0].contains("1 clients") && said[0].contains("no leader of Meta"), "{said:#?}");
    let view = node.machine.view(node.now);
    assert!(view.alarms.iter().any(|a| a.contains("stand still")), "{:?}", view.alarms);
    assert_eq!(view.held.len(), 1);
    assert!(view.held[0].waits_ns > 4 * SEC, "{:?}", view.held);

    // It is back, and names X. Its next call by itself may be far off: a new connection brings it now, and none of
    // it got in before the lease.
    node.sockets.insert(X, 1);
    node.log.clear();
    node.pass(SEC, false);
    node.reopen(&[(X, Epoch(1))]);
    assert_eq!(node.purges(Purpose::Unseen), 1);
    let purged = node.position(|e| matches!(e, Effect::PurgeSockets { purpose: Purpose::Unseen, .. }));
    assert!(purged < node.position(|e| matches!(e, Effect::Renew { .. })));
    node.run(50 * MS);
    assert_eq!(node.machine.health().held_clients, 0);
    assert_eq!(node.word(X), Word::new(1, rank::ADMITTED));
}

/// Its lease outlives the session by seconds: a new session that does not name it must not prolong it.
#[test]
fn whom_a_new_session_does_not_name_is_shut_out_though_its_lease_still_runs() {
    let mut node = up();
    node.order(Order::Admit { host: X, epoch: Epoch(1) });
    node.order(Order::Admit { host: Y, epoch: Epoch(1) });
    node.know();
    // Meta does not know this session any more: a new one begins before the leases of the old one are over.
    while !node.mail.iter().any(|(tag, _)| matches!(tag, Tag::KeepAlive { .. })) {
        node.pass(10 * MS, false);
    }
    let at = node.mail.iter().rposition(|(tag, _)| matches!(tag, Tag::KeepAlive { .. })).unwrap();
    let (tag, _) = node.mail.remove(at).unwrap();
    let reply = Ok(MetaReply::Refused { error: crate::proto::Refusal::NoSession });
    node.feed(Input::Reply { tag, reply });
    assert!(node.facts.session_deadline > node.now);
    node.log.clear();
    node.pass(10 * MS, false);
    node.reopen(&[]);
    assert_eq!(node.word(X), Word::new(1, rank::FENCED));
    let fenced = node.position(|e| matches!(e, Effect::Fence { host: X, .. }));
    assert!(fenced < node.position(|e| matches!(e, Effect::Renew { .. })));
    assert_eq!(node.word(Y), Word::new(1, rank::FENCED), "nor does a host stay that does not affirm it");
}
