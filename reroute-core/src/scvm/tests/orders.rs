use super::super::*;
use super::world::*;
use crate::proto::{MetaReply, Order, Refusal, ToMeta};
use reroute_common::admission::{Word, rank};

fn prepared(node: &Node) -> Vec<Option<String>> {
    let all = node.answers().into_iter().filter_map(|m| match m {
        ToMeta::Prepared { error, .. } => Some(error),
        _ => None,
    });
    all.collect()
}
fn admitted(node: &Node) -> Vec<(Epoch, Option<String>)> {
    let all = node.answers().into_iter().filter_map(|m| match m {
        ToMeta::Admitted { epoch, error, .. } => Some((epoch, error)),
        _ => None,
    });
    all.collect()
}
fn prepare(node: &mut Node, epoch: u64) {
    node.null = Some(true);
    node.order(Order::Prepare { host: X, epoch: Epoch(epoch) });
}
fn admit(node: &mut Node, epoch: u64) {
    node.order(Order::Admit { host: X, epoch: Epoch(epoch) });
}

#[test]
fn prepare_purges_and_admits_nobody() {
    let mut node = Node::up(FencePolicy::Wait);
    node.sockets.insert(X, 3);
    prepare(&mut node, 2);
    assert_eq!(prepared(&node), [None]);
    assert!(node.sockets.is_empty());
    assert_eq!(node.word(X), Word::NONE);
}

#[test]
fn prepare_that_cannot_purge_tries_and_then_says_why() {
    let mut node = Node::up(FencePolicy::Wait);
    node.broken.insert(Part::Purge);
    prepare(&mut node, 2);
    prepare(&mut node, 2);
    node.run(30 * MS);
    assert!(prepared(&node).is_empty());
    node.run(100 * MS);
    assert!(matches!(&prepared(&node)[..], [Some(why)] if why.contains("cannot be closed")));
}

#[test]
fn nobody_is_prepared_at_a_server_that_is_not_well() {
    type Make = fn(&mut Node);
    let cases: [(&str, Make); 4] = [
        ("no server process", |n| n.feed(Input::ServerExited { pid: PID, incarnation: SERVER })),
        ("listens", |n| n.facts.listening = false),
        ("bypass", |n| n.feed(Input::Bypass { on: true, actor: "root".into() })),
        ("answer", |n| {
            n.facts.silent = true;
            n.run(200 * MS);
            n.feed(Input::NullRpc { answered: false, took_ns: 50 * MS, starved: false });
        }),
    ];
    for (word, make) in cases {
        let mut node = Node::up(FencePolicy::Wait);
        make(&mut node);
        prepare(&mut node, 2);
        assert!(
            matches!(&prepared(&node)[..], [Some(why)] if why.contains(word)),
            "{word}: {:?}",
            prepared(&node)
        );
        assert_eq!(node.did(|e| matches!(e, Effect::PurgeSockets { .. })), 0);
    }
}

#[test]
fn a_server_that_hangs_unused_is_found_before_anybody_moves_to_it() {
    let mut node = Node::up(FencePolicy::Wait);
    node.null = Some(false);
    node.order(Order::Prepare { host: X, epoch: Epoch(2) });
    assert!(matches!(&prepared(&node)[..], [Some(why)] if why.contains("NULL")));
    assert_eq!(node.kernel.null_failed, Some(true), "and the hosts hear of it by pulse");
    node.null = Some(true);
    node.run(200 * MS);
    assert_eq!(node.kernel.null_failed, Some(false));
    node.mail.clear();
    node.order(Order::Prepare { host: X, epoch: Epoch(2) });
    assert_eq!(prepared(&node), [None]);
}

#[test]
fn a_server_that_has_just_answered_is_not_asked() {
    let mut node = Node::up(FencePolicy::Wait);
    node.facts.last_reply_at = node.now;
    node.order(Order::Prepare { host: X, epoch: Epoch(2) });
    assert_eq!(prepared(&node), [None]);
    assert_eq!(node.did(|e| *e == Effect::ProbeNull), 0);
}

#[test]
fn a_late_prepare_does_not_touch_the_login_it_prepared() {
    let mut node = Node::up(FencePolicy::Wait);
    prepare(&mut node, 2);
    admit(&mut node, 2);
    node.sockets.insert(X, 1);
    prepare(&mut node, 2);
    assert_eq!(prepared(&node), [None, None]);
    assert_eq!(node.sockets[&X], 1);
}

#[test]
fn the_epoch_file_comes_before_the_kernel() {
    let mut node = Node::up(FencePolicy::Wait);
    admit(&mut node, 2);
    assert_eq!(admitted(&node), [(Epoch(2), None)]);
    let publish =
        node.position(|e| matches!(e, Effect::PublishEpochs { epochs } if epochs.get(&X) == Some(&Epoch(2))));
    assert!(publish < node.position(|e| matches!(e, Effect::Admit { .. })));
    assert_eq!(node.did(|e| matches!(e, Effect::Journal { event: Event::Admitted { .. }, .. })), 1);

    let mut node = Node::up(FencePolicy::Wait);
    node.broken.insert(Part::Epochs);
    admit(&mut node, 2);
    node.run(300 * MS);
    assert_eq!(node.did(|e| matches!(e, Effect::Admit { .. })), 0);
    assert!(matches!(&admitted(&node)[..], [(Epoch(2), Some(why))] if why.contains("epoch file")));
    node.broken.clear();
    node.mail.clear();
    admit(&mut node, 2);
    node.run(50 * MS);
    assert_eq!(admitted(&node), [(Epoch(2), None)]);
}

#[test]
fn a_kernel_that_does_not_admit_is_reported() {
    let mut node = Node::up(FencePolicy::Wait);
    node.broken.insert(Part::Admit);
    admit(&mut node, 2);
    node.run(200 * MS);
    assert!(matches!(&admitted(&node)[..], [(Epoch(2), Some(why))] if why.contains("broken")));
    assert!(node.epochs.is_empty(), "the epoch file takes it back");

    let mut node = Node::up(FencePolicy::Wait);
    node.kernel.words.insert(X, Word::new(2, rank::RELEASED));
    admit(&mut node, 2);
    assert!(matches!(&admitted(&node)[..], [(Epoch(2), Some(why))] if why.contains("closed")));
    assert_eq!(node.did(|e| matches!(e, Effect::Admit { .. })), 1, "stale is final");
    assert!(node.epochs.is_empty());
}

#[test]
fn admit_after_a_fence_of_that_epoch_is_refused_without_asking_the_kernel() {
    let mut node = Node::up(FencePolicy::Wait);
    node.broken.insert(Part::Fence);
    node.order(Order::Revoke { host: X, epoch: Epoch(4), planned: false });
    admit(&mut node, 4);
    admit(&mut node, 3);
    assert_eq!(node.did(|e| matches!(e, Effect::Admit { .. })), 0);
    assert!(admitted(&node).iter().all(|(_, error)| error.is_some()));
}

#[test]
fn a_revoke_overtakes_an_admission_that_waits_for_the_disk() {
    let mut node = Node::up(FencePolicy::Wait);
    node.broken.insert(Part::Epochs);
    admit(&mut node, 2);
    node.order(Order::Revoke { host: X, epoch: Epoch(2), planned: false });
    node.broken.clear();
    node.run(100 * MS);
    assert_eq!(node.word(X), Word::new(2, rank::FENCED));
    assert!(matches!(&admitted(&node)[..], [(Epoch(2), Some(why))] if why.contains("revoked")));
    assert!(node.epochs.is_empty());
}

#[test]
fn a_second_admit_of_the_same_epoch_is_answered_again() {
    let mut node = Node::up(FencePolicy::Wait);
    admit(&mut node, 2);
    admit(&mut node, 2);
    assert_eq!(admitted(&node), [(Epoch(2), None), (Epoch(2), None)]);
}

#[test]
fn an_answer_is_sent_until_meta_has_it() {
    let mut node = Node::up(FencePolicy::Wait);
    admit(&mut node, 2);
    let (tag, _) = node.mail.pop_front().unwrap();
    node.feed(Input::Reply { tag, reply: Err("unreachable".into()) });
    node.run(60 * MS);
    assert_eq!(admitted(&node), [(Epoch(2), None)]);
    let (tag, _) = node.mail.pop_front().unwrap();
    node.feed(Input::Reply { tag, reply: Ok(MetaReply::Ok { term: TERM }) });
    node.run(500 * MS);
    assert!(admitted(&node).is_empty());

    admit(&mut node, 3);
    let (tag, _) = node.mail.pop_front().unwrap();
    let error = Refusal::StaleEpoch { got: Epoch(3), current: Epoch(4) };
    node.feed(Input::Reply { tag, reply: Ok(MetaReply::Refused { error }) });
    node.run(500 * MS);
    assert!(admitted(&node).is_empty(), "Meta will not take it: its orders come again");
}

#[test]
fn a_release_takes_the_host_out_of_the_epoch_file() {
    let mut node = Node::up(FencePolicy::Wait);
    admit(&mut node, 2);
    node.kernel.words.insert(X, Word::new(2, rank::RELEASED));
    let signal = Signal {
        kind: SignalKind::Released(Epoch(2)),
        at: node.now,
        host: Some(X),
        waiting: 0,
        age_ns: 0,
        limit_ns: 2,
    };
    node.feed(Input::Signal(signal));
    assert!(node.epochs.is_empty());
}

#[test]
fn a_bypass_is_persisted_recorded_and_set_whatever_meta_does() {
    let mut node = Node::new(settings(FencePolicy::Wait));
    node.feed(Input::Tick);
    node.feed(Input::Bypass { on: true, actor: "alice".into() });
    assert_eq!(node.kernel.mode, Some(Mode::Bypass));
    assert_eq!(node.did(|e| matches!(e, Effect::PersistBypass { on: true })), 1);
    let recorded = |e: &Effect| matches!(e, Effect::Journal { event: Event::Bypass { on: true, actor }, .. } if actor == "alice");
    assert_eq!(node.did(recorded), 1);
    assert!(node.machine.view(node.now).alarms[0].contains("suspended"));
    assert!(node.machine.health().bypass);

    let mut node = Node::new(Settings { bypass: true, ..settings(FencePolicy::Wait) });
    node.feed(Input::Tick);
    assert_eq!(node.kernel.mode, Some(Mode::Bypass), "over a restart");
}

fn faults(node: &Node, word: &str) -> usize {
    node.did(|e| matches!(e, Effect::Journal { event: Event::Fault { what }, .. } if what.contains(word)))
}

#[test]
fn an_order_to_open_from_before_the_session_is_ignored_and_a_later_one_is_not() {
    let mut node = Node::up(FencePolicy::Wait);
    // Sent, but still on its way when the session is lost; the next one is opened over another network.
    node.seq += 1;
    let late = node.seq;
    node.pass(600 * MS, false);
    node.open(&[]);
    node.mail.clear();
    let term = TERM;
    for order in [Order::Prepare { host: X, epoch: Epoch(2) }, Order::Admit { host: X, epoch: Epoch(2) }] {
        node.feed(Input::Order { term, seq: late, order });
    }
    node.run(100 * MS);
    assert_eq!(node.word(X), Word::NONE);
    assert!(node.answers().is_empty() && node.epochs.is_empty());
    assert_eq!(faults(&node, "before the session"), 2);
    node.feed(Input::Order {
        term,
        seq: late,
        order: Order::Revoke { host: Y, epoch: Epoch(1), planned: false },
    });
    assert_eq!(node.word(Y), Word::new(1, rank::FENCED), "a revoke is obeyed however late");
    admit(&mut node, 2);
    assert_eq!(admitted(&node), [(Epoch(2), None)], "Meta repeats what still holds");
}

#[test]
fn nothing_is_opened_while_no_session_is_open() {
    let mut node = Node::up(FencePolicy::Wait);
    // Stunned for a second: the order is the first thing seen after it, before any tick could close the session.
    node.now = node.now.plus(SEC);
    admit(&mut node, 2);
    assert_eq!(node.word(X), Word::NONE);
    assert_eq!(faults(&node, "no session"), 1);
    admit(&mut node, 3);
    assert_eq!(node.word(X), Word::NONE, "nor while it is being opened");
    node.order(Order::Revoke { host: X, epoch: Epoch(3), planned: false });
    assert_eq!(node.word(X), Word::new(3, rank::FENCED));
}

#[test]
fn an_admission_that_waits_for_the_disk_ends_with_its_session() {
    let mut node = Node::up(FencePolicy::Wait);
    node.broken.insert(Part::Epochs);
    admit(&mut node, 2);
    node.now = node.now.plus(SEC);
    node.broken.clear();
    node.pass(50 * MS, false);
    node.open(&[]);
    node.run(100 * MS);
    assert_eq!(node.word(X), Word::NONE);
    assert_eq!(faults(&node, "ended meanwhile"), 1);
}
