use super::super::*;
use super::world::*;

fn probes(node: &Node) -> usize {
    node.did(|e| matches!(e, Effect::ProbeNull))
}
fn signal(node: &mut Node, kind: SignalKind) {
    let at = node.now;
    let signal = Signal { kind, at, host: None, waiting: 1, age_ns: 51 * MS, limit_ns: 50 * MS };
    node.feed(Input::Signal(signal));
}
fn null(node: &mut Node, answered: bool) {
    node.feed(Input::NullRpc { answered, took_ns: 50 * MS, starved: false });
}

#[test]
fn a_stall_is_asked_about_at_once_and_a_hung_server_is_told_in_the_pulses() {
    let mut node = Node::up(FencePolicy::Wait);
    assert_eq!(probes(&node), 0);
    signal(&mut node, SignalKind::Silent);
    assert_eq!(probes(&node), 1);
    node.facts.silent = true;
    node.run(50 * MS);
    assert_eq!(probes(&node), 1, "one at a time");
    assert!(!node.machine.health().null_failed);
    null(&mut node, false);
    assert!(node.machine.health().null_failed);
    assert_eq!(node.kernel.null_failed, Some(true));
    node.run(90 * MS);
    assert_eq!(probes(&node), 1);
    node.run(20 * MS);
    assert_eq!(probes(&node), 2, "again every 100 ms");
    node.facts.silent = false;
    null(&mut node, true);
    assert_eq!(node.kernel.null_failed, Some(false));
    node.run(500 * MS);
    assert_eq!(probes(&node), 2, "well again");
    assert_eq!(node.did(|e| matches!(e, Effect::Journal { event: Event::NullRpc { .. }, .. })), 2);
}

#[test]
fn who_waits_is_a_question_before_it_is_a_suspicion() {
    let mut node = Node::up(FencePolicy::Wait);
    for _ in 0..3 {
        let asked = probes(&node);
        node.feed(Input::Quiet);
        assert_eq!(probes(&node), asked + 1);
        node.feed(Input::Quiet);
        null(&mut node, true);
        node.feed(Input::Quiet);
        node.run(15 * MS);
        assert_eq!(probes(&node), asked + 1, "not with every look");
        node.run(6 * MS);
    }
    assert!(!node.machine.health().null_failed);
    assert_eq!(node.did(|e| matches!(e, Effect::Journal { .. })), 0, "nobody had a doubt");
}

#[test]
fn an_early_question_counts_when_silence_does() {
    // Replies left until 10 ms before, and may leave for 50 ms more.
    let asked = |reply: bool| {
        let mut node = Node::up(FencePolicy::Wait);
        node.facts.last_reply_at = node.now;
        node.run(10 * MS);
        node.feed(Input::Quiet);
        node.run(15 * MS);
        null(&mut node, false);
        node.run(20 * MS);
        assert!(!node.machine.health().null_failed, "replies may still leave");
        if reply {
            node.facts.last_reply_at = node.now;
        }
        node.run(6 * MS);
        node
    };
    let node = asked(false);
    assert!(node.machine.health().null_failed, "and nobody asked again for it");
    assert_eq!((probes(&node), node.kernel.null_failed), (1, Some(true)));
    let mut node = asked(true);
    node.run(60 * MS);
    assert!(!node.machine.health().null_failed, "a reply left after it");
    // What was asked long ago says nothing, however quiet it is now.
    node.run(SEC);
    assert!(!node.machine.health().null_failed);
}

#[test]
fn a_failed_server_is_asked_until_it_answers_even_when_nobody_waits() {
    let mut node = Node::up(FencePolicy::Wait);
    signal(&mut node, SignalKind::Unanswered);
    null(&mut node, false);
    for _ in 0..3 {
        let asked = probes(&node);
        node.run(110 * MS);
        assert_eq!(probes(&node), asked + 1);
        null(&mut node, false);
    }
    assert!(node.machine.health().null_failed);
}

#[test]
fn while_replies_leave_no_failed_probe_counts() {
    let mut node = Node::up(FencePolicy::Wait);
    node.facts.stalled_flows = 1;
    for _ in 0..20 {
        node.facts.last_reply_at = node.now;
        node.run(20 * MS);
        null(&mut node, false);
        assert!(!node.machine.health().null_failed);
    }
    node.run(60 * MS);
    null(&mut node, false);
    assert!(node.machine.health().null_failed);
    node.facts.last_reply_at = node.now;
    node.run(20 * MS);
    assert!(!node.machine.health().null_failed, "a reply left: busy, not dead");
}

#[test]
fn the_pulse_bit_is_tried_until_it_is_set() {
    let mut node = Node::up(FencePolicy::Wait);
    signal(&mut node, SignalKind::Silent);
    node.facts.silent = true;
    node.broken.insert(Part::Pulse);
    null(&mut node, false);
    assert_eq!(node.kernel.null_failed, Some(false));
    node.broken.clear();
    node.run(50 * MS);
    assert_eq!(node.kernel.null_failed, Some(true));
}

#[test]
fn a_new_server_is_told_to_the_kernel_only_when_the_old_one_is_reaped() {
    let mut node = Node::up(FencePolicy::Wait);
    let next = Incarnation(12);
    node.feed(Input::ServerSeen { pid: 4300, incarnation: next });
    node.run(300 * MS);
    assert_eq!(node.facts.incarnation, SERVER, "the old one may still execute calls");
    node.broken.insert(Part::Register);
    node.feed(Input::ServerExited { pid: PID, incarnation: SERVER });
    assert_eq!(node.facts.incarnation, SERVER);
    node.broken.clear();
    node.run(50 * MS);
    assert_eq!(node.facts.incarnation, next);
    assert!(node.machine.health().process_alive);
}

#[test]
fn the_agent_may_be_there_before_the_server() {
    let mut node = Node::new(settings(FencePolicy::Wait));
    node.facts = ServerFacts::default();
    node.feed(Input::ServerProblem(Some("pidfile /run/nfs.pid cannot be read".into())));
    node.feed(Input::Tick);
    assert!(!node.machine.health().process_alive);
    assert!(node.machine.view(node.now).alarms.iter().any(|a| a.contains("/run/nfs.pid")));
    node.run(300 * MS);
    assert_eq!(node.did(|e| matches!(e, Effect::ServerStarted { .. })), 0);
    node.feed(Input::ServerProblem(None));
    node.feed(Input::ServerSeen { pid: PID, incarnation: SERVER });
    assert_eq!(node.facts.incarnation, SERVER);
    assert!(node.machine.health().process_alive);
}

#[test]
fn an_agent_that_comes_back_does_not_announce_the_same_server_again() {
    let mut node = Node::new(settings(FencePolicy::Wait));
    node.feed(Input::ServerSeen { pid: PID, incarnation: SERVER });
    node.run(100 * MS);
    assert_eq!(node.did(|e| matches!(e, Effect::ServerStarted { .. })), 0, "its calls in progress stand");
}

#[test]
fn signals_are_recorded_with_the_kernels_stamp() {
    let mut node = Node::up(FencePolicy::Wait);
    let stamp = BootNs(node.now.0 - 3 * MS);
    let first = SignalKind::FirstReply(Epoch(4));
    let signal = Signal { kind: first, at: stamp, host: Some(X), waiting: 0, age_ns: 0, limit_ns: 4 };
    node.feed(Input::Signal(signal));
    let event = Event::FirstReply { host: X, epoch: Epoch(4) };
    assert_eq!(node.did(|e| *e == Effect::Journal { at: stamp, event: event.clone() }), 1);
}

#[test]
fn carrier_is_told_once_per_change() {
    let mut node = Node::up(FencePolicy::Wait);
    for up in [true, false, false, true] {
        node.feed(Input::Carrier { network: Network::Storage, up });
    }
    assert_eq!(node.did(|e| matches!(e, Effect::Journal { event: Event::KernelSignal { .. }, .. })), 2);
    assert!(node.machine.health().no_carrier.is_empty());
}

#[test]
fn a_server_that_waits_for_a_cpu_is_asked_again_before_it_counts_as_failed() {
    let mut node = Node::up(FencePolicy::Wait);
    signal(&mut node, SignalKind::Silent);
    node.facts.silent = true;
    let starved = Input::NullRpc { answered: false, took_ns: 50 * MS, starved: true };
    for asked in 1..=100 {
        assert_eq!(probes(&node), asked, "at once");
        node.now = node.now.plus(50 * MS);
        node.feed(starved.clone());
        assert!(!node.machine.health().null_failed);
    }
    let said = |e: &Effect| matches!(e, Effect::Journal { event: Event::Fault { what }, .. } if what.contains("waits for a CPU"));
    assert_eq!(node.did(said), 1, "said once");
    node.now = node.now.plus(50 * MS);
    node.feed(starved);
    assert!(node.machine.health().null_failed, "not for ever");
}

#[test]
fn a_late_answer_is_an_answer() {
    let mut node = Node::up(FencePolicy::Wait);
    signal(&mut node, SignalKind::Silent);
    node.facts.silent = true;
    node.run(60 * MS);
    null(&mut node, false);
    assert!(node.machine.health().null_failed);
    node.run(10 * MS);
    null(&mut node, true);
    assert_eq!(node.kernel.null_failed, Some(false), "without another probe");
    assert_eq!(probes(&node), 1);
}

#[test]
fn a_call_whose_connection_has_ended_says_nothing() {
    let mut node = Node::up(FencePolicy::Kill);
    signal(&mut node, SignalKind::Silent);
    node.facts.silent = true;
    node.run(60 * MS);
    null(&mut node, false);
    let asked = probes(&node);
    node.feed(Input::NullRpc { answered: false, took_ns: 0, starved: false });
    assert_eq!(probes(&node), asked + 1, "asked anew, at once");
    node.calls(X, 1, 0);
    node.order(crate::proto::Order::Admit { host: X, epoch: Epoch(3) });
    node.order(crate::proto::Order::Revoke { host: X, epoch: Epoch(3), planned: false });
    node.run(40 * MS);
    assert!(!node.killed(), "by a call that nobody waits for");
}
