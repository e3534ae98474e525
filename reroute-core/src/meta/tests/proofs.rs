//! The plug-ins one by one: who asks for what, what counts, what never does.

use super::table::{at_a, send};
use super::world::World;
use super::*;

/// Logged in at B (policy kill), which then falls silent, process, kernel and all; a move to C is on record.
pub(super) fn b_is_dead() -> World {
    let mut w = at_a();
    w.ask(B, false);
    w.calm_until("at B", |w| w.stands_at() == Some(B));
    w.calm_round();
    w.power(B);
    w.ask(C, false);
    w.calm_until("moving", |w| w.record().is_some_and(|r| r.moving_to() == Some(C)));
    w
}

const COMMAND: FenceCommandSettings = FenceCommandSettings { retry_ns: 5 * SEC, also_after_ns: None };

fn local_host(w: &mut World, scvm: ScvmId) {
    w.master.settings.hosts[0].local_scvm = scvm;
}

fn refused(reply: MetaReply) -> Option<Refusal> {
    match reply {
        MetaReply::Refused { error } => Some(error),
        _ => None,
    }
}

fn rounds(w: &mut World, n: u32) {
    for _ in 0..n {
        w.calm_round();
    }
}

fn dead(epoch: u64, boot: Option<u64>) -> ToMeta {
    ToMeta::DomainDead { scvm: B, host: X, epoch: Epoch(epoch), boot: boot.map(Incarnation) }
}

fn proof_on_record(w: &World) -> Option<FenceProof> {
    match w.record()?.login.state {
        LoginState::At { proof, .. } => Some(proof),
        LoginState::Moving { .. } | LoginState::Evicted { .. } => None,
    }
}

#[test]
fn the_order_of_proofs_is_that_of_their_trust_and_each_says_it() {
    use FenceProof::*;
    let order = [
        FirstLogin,
        SameServer,
        KernelIdle,
        Drained,
        NeverServed,
        ProcessDead,
        Killed,
        DomainDead,
        Storage,
        LeaseExpiredStorage,
        FenceCommand,
        Operator,
    ];
    assert!(order.is_sorted());
    let trusting: Vec<bool> = order.iter().map(|p| !p.does_not_cover().is_empty()).collect();
    assert_eq!(trusting, [[false; 4].as_slice(), &[true; 8]].concat());
}

#[test]
fn the_hypervisor_is_asked_when_the_move_is_on_record_and_its_host_alone_may_answer() {
    let mut w = b_is_dead();
    let asked = |effects: &[Effect]| {
        effects.iter().any(|e| {
            *e == Effect::Push {
                node: NodeId::Host(X),
                order: Order::AskDomain { scvm: B, host: X, epoch: Epoch(2) },
            }
        })
    };
    // Host X runs beside A.
    let effects = w.master.handle(Input::Tick, BootNs(w.now + SEC));
    assert!(!asked(&effects));
    let (reply, effects) = send(&mut w.master, NodeId::Host(X), 1, dead(2, None), w.now);
    assert_eq!(refused(reply), Some(Refusal::NotBeside { node: NodeId::Host(X), scvm: B }));
    assert_eq!(effects, []);

    local_host(&mut w, B);
    let effects = w.master.handle(Input::Tick, BootNs(w.now + 2 * SEC));
    assert!(asked(&effects), "{effects:?}");
    let (reply, effects) = send(&mut w.master, NodeId::Host(X), 2, dead(2, None), w.now);
    assert_eq!(refused(reply), None);
    let admit = Effect::Push { node: NodeId::Scvm(C), order: Order::Admit { host: X, epoch: Epoch(3) } };
    assert!(effects.contains(&admit), "{effects:?}");
    assert!(effects.iter().any(|e| matches!(
        e,
        Effect::Journal(Event::FenceProven { proof: FenceProof::DomainDead, does_not_cover, .. })
            if does_not_cover.contains("migrated")
    )));
}

#[test]
fn of_a_planned_move_no_hypervisor_no_command_and_no_operator_is_asked() {
    for planned in [true, false] {
        let mut w = match planned {
            false => b_is_dead(),
            true => {
                let mut w = at_a();
                w.ask(B, false);
                w.calm_until("at B", |w| w.stands_at() == Some(B));
                w.calm_round();
                w.scvms.get_mut(&B).expect("configured").waits = true;
                w.ask(C, true);
                w.calm_until("moving", |w| w.record().is_some_and(|r| r.moving_to() == Some(C)));
                w
            }
        };
        local_host(&mut w, B);
        w.master.command = Some(COMMAND);
        let before = w.master.clone();
        // Time passes: while all have their sessions ...
        let mut until = |times: Vec<u64>| -> Vec<Effect> {
            times.iter().flat_map(|at| handle(&mut w.master, Input::Tick, BootNs(w.now + at))).collect()
        };
        let early = until((1..=4).map(|i| i * 90 * MS).collect());
        // ... and until nobody has been heard for long. The second tick of each finds the lease confirmed anew, and
        // orders are due again.
        let late = until((1..20).flat_map(|i| [i * SEC, i * SEC + 250 * MS]).collect());
        let domain = |e: &Effect| matches!(e, Effect::Push { order: Order::AskDomain { .. }, .. });
        let command = |e: &Effect| matches!(e, Effect::RunFenceCommand(_));
        let all: Vec<Effect> = early.iter().chain(&late).cloned().collect();
        assert_eq!(!all.iter().any(command), planned, "{all:?}");
        let effects = if planned { early } else { late };
        assert_eq!(!effects.iter().any(domain), planned, "{effects:?}");
        let operator = |w: Waiting| w.proofs.iter().any(|p| p.contains("vouch"));
        let waits = before.waits_for(X, BootNs(w.now + 300 * MS));
        assert_eq!(!waits.into_iter().any(operator), planned);
    }
}

/// Meta goes back from a planned move that comes to nothing, but not to a server without a session: were nobody asked
/// then, the host would stand still for ever.
#[test]
fn of_a_planned_move_whose_old_server_is_gone_hypervisor_and_operator_are_asked() {
    let mut w = at_a();
    w.ask(B, false);
    w.calm_until("at B", |w| w.stands_at() == Some(B));
    w.calm_round();
    local_host(&mut w, B);
    w.master.settings.planned_drain_ns = 2 * SEC;
    w.scvms.get_mut(&B).expect("configured").waits = true;
    w.ask(C, true);
    w.calm_until("moving", |w| w.record().is_some_and(|r| r.moving_to() == Some(C)));
    w.power(B);
    rounds(&mut w, 60);
    assert!(
        w.record().is_some_and(|r| r.moving_to() == Some(C)),
        "it neither goes on nor back: {:?}",
        w.record()
    );
    let names = w.master.waits_for(X, BootNs(w.now)).into_iter().flat_map(|w| w.proofs);
    assert!(names.into_iter().any(|p| p.contains("vouch")));
    let due = w.now + SEC;
    let effects = handle(&mut w.master, Input::Tick, BootNs(due));
    let domain = |e: &Effect| matches!(e, Effect::Push { order: Order::AskDomain { .. }, .. });
    assert!(effects.iter().any(domain), "{effects:?}");
    let (reply, effects) = send(&mut w.master, NodeId::Host(X), 1, dead(2, None), due);
    assert_eq!(refused(reply), None);
    let admit = Effect::Push { node: NodeId::Scvm(C), order: Order::Admit { host: X, epoch: Epoch(3) } };
    assert!(effects.contains(&admit), "{effects:?}");
}

#[test]
fn a_domain_of_the_past_or_the_future_proves_nothing() {
    let mut w = b_is_dead();
    local_host(&mut w, B);
    for (seq, epoch) in [(1, 1), (2, 3), (3, 9)] {
        let (reply, effects) = send(&mut w.master, NodeId::Host(X), seq, dead(epoch, None), w.now);
        let stale = Refusal::StaleEpoch { got: Epoch(epoch), current: Epoch(3) };
        assert_eq!((refused(reply), effects), (Some(stale), vec![]));
    }
}

#[test]
fn with_another_domain_in_its_place_the_dead_one_must_have_had_the_last_session() {
    let mut w = b_is_dead();
    local_host(&mut w, B);
    // The World's SCVMs open their sessions on this boot.
    let last = w.master.sessions[&B].boot.expect("a session was opened");
    for (seq, boot) in [(1, last.0 + 1), (2, 0)] {
        let (reply, effects) = send(&mut w.master, NodeId::Host(X), seq, dead(2, Some(boot)), w.now);
        assert_eq!((refused(reply), effects), (Some(Refusal::OtherInstance { scvm: B }), vec![]));
    }
    // A new Meta has heard of no session of it: nobody knows which domain had the last one.
    let mut restarted = SessionMaster::new(settings(2), w.store.clone(), BootNs(w.now));
    restarted.settings.hosts[0].local_scvm = B;
    let (reply, _) = send(&mut restarted, NodeId::Host(X), 1, dead(2, Some(last.0)), w.now);
    assert_eq!(refused(reply), Some(Refusal::OtherInstance { scvm: B }));
    let (reply, _) = send(&mut restarted, NodeId::Host(X), 2, dead(2, None), w.now);
    assert_eq!(refused(reply), None, "none at all runs: that covers all of them");

    let (reply, effects) = send(&mut w.master, NodeId::Host(X), 3, dead(2, Some(last.0)), w.now);
    assert_eq!(refused(reply), None);
    assert!(effects.iter().any(|e| matches!(e, Effect::Push { order: Order::Admit { .. }, .. })));
}

#[test]
fn a_dead_vm_under_kill_waits_for_a_proof_and_the_fence_command_gives_it() {
    let mut w = b_is_dead();
    rounds(&mut w, 60);
    assert!(w.commands.is_empty(), "none is configured");
    w.master.command = Some(COMMAND);
    rounds(&mut w, 10);
    let [run] = &w.commands[..] else { panic!("one at a time: {:?}", w.commands) };
    assert_eq!((run.attempt, run.scvm.id, run.logins.as_slice()), (1, B, [(X, Epoch(2))].as_slice()));
    let run = run.run;
    let ended =
        |run, outcome| Input::FenceCommandEnded { scvm: B, run, outcome, took_ns: 1, output: String::new() };
    // What nobody started ends nothing.
    w.input(ended(run + 7, FenceCommandOutcome::Fenced));
    assert!(w.record().expect("stored").moving_to().is_some());
    w.input(ended(run, FenceCommandOutcome::Failed { why: "exit code 1".into() }));
    rounds(&mut w, 20);
    assert_eq!(w.commands.len(), 1, "not again at once");
    rounds(&mut w, 100);
    assert_eq!(w.commands.len(), 2);
    let second = w.commands[1].run;
    w.scvms.get_mut(&B).expect("configured").called = false; // it is powered off now
    w.input(ended(second, FenceCommandOutcome::Fenced));
    w.calm_until("at C", |w| w.stands_at() == Some(C));
    assert_eq!(proof_on_record(&w), Some(FenceProof::FenceCommand));
    let view = w.master.view(BootNs(w.now));
    assert!(view.logins[0].does_not_cover.contains("exit code"), "{:?}", view.logins);
    let outcomes: Vec<&str> = w
        .journal
        .iter()
        .filter_map(|e| match e {
            Event::FenceCommandEnded { outcome, .. } => Some(outcome.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(outcomes, ["failed", "fenced"]);
}

#[test]
fn a_command_that_refuses_is_not_asked_again() {
    let mut w = b_is_dead();
    w.master.command = Some(COMMAND);
    rounds(&mut w, 30);
    let run = w.commands[0].run;
    let outcome = FenceCommandOutcome::Refused { why: "no power switch".into() };
    w.input(Input::FenceCommandEnded { scvm: B, run, outcome, took_ns: 1, output: String::new() });
    rounds(&mut w, 200);
    assert_eq!(w.commands.len(), 1);
    let waits = w.master.waits_for(X, BootNs(w.now));
    assert!(waits[0].proofs.iter().any(|p| p == "the fence command refused"), "{waits:?}");
}

#[test]
fn no_command_while_the_session_lives_or_somebody_is_served_there() {
    // Its session lives: only after the configured time, if any.
    for also_after_ns in [None, Some(2 * SEC)] {
        let mut w = at_a();
        w.ask(B, false);
        w.calm_until("at B", |w| w.stands_at() == Some(B));
        w.master.command = Some(FenceCommandSettings { also_after_ns, ..COMMAND });
        // A hung server that its agent can neither kill nor drain: it beats, and answers no order.
        w.ask(C, false);
        let began = w.now;
        while w.now - began < 4 * SEC {
            w.silence = Some(B);
            w.calm_round();
        }
        assert_eq!(!w.commands.is_empty(), also_after_ns.is_some(), "{also_after_ns:?}");
    }
    // Another host is logged in at B and finds it well.
    let mut w = b_is_dead();
    w.master.command = Some(COMMAND);
    let other = HostId(2);
    let at = LoginState::At { scvm: B, epoch: Epoch(5), proof: FenceProof::Drained };
    let login = Login { host: other, state: at, term: Term(1), reason: String::new() };
    let record = Record { login, from: None, evidence: vec![] };
    let stored = Some(Versioned { version: 1, record });
    let mut host = crate::meta::login::HostLogin::new(stored, true, BootNs(w.now));
    let path = Path { scvm: B, network: Network::Storage };
    let health = |state| PathHealth { path, state, rtt_ns: None, last_reply_age_ns: None };
    let report = |state| HostReport {
        epoch: Epoch(5),
        scvm: Some(B),
        path: Some(path),
        paths: vec![health(state)],
        ..HostReport::default()
    };
    for _ in 0..40 {
        host.report = Some((report(Health::Healthy), BootNs(w.now)));
        w.master.hosts.insert(other, host.clone());
        w.calm_round();
    }
    assert!(w.commands.is_empty(), "it would take the server from a host that is served");
    host.report = Some((report(Health::Failed), BootNs(w.now)));
    w.master.hosts.insert(other, host);
    rounds(&mut w, 10);
    assert_eq!(w.commands.len(), 1);
}

#[test]
fn of_several_proofs_the_one_is_kept_that_takes_least_on_trust() {
    let mut w = b_is_dead();
    local_host(&mut w, B);
    let entry = || Fencing { scvm: B, epoch: Epoch(2), proof: None };
    let known = |m: &SessionMaster| m.hosts[&X].proof(&entry());
    let mut m = w.master.clone();
    let now = BootNs(w.now);
    let mut out = Vec::new();
    for (proof, kept) in [
        (FenceProof::Operator, FenceProof::Operator),
        (FenceProof::FenceCommand, FenceProof::FenceCommand),
        (FenceProof::Operator, FenceProof::FenceCommand),
        (FenceProof::DomainDead, FenceProof::DomainDead),
        (FenceProof::KernelIdle, FenceProof::KernelIdle),
        (FenceProof::Killed, FenceProof::KernelIdle),
    ] {
        m.prove(X, B, Epoch(2), proof, now, &mut out).expect("awaited");
        assert_eq!(known(&m), Some(kept), "after {proof:?}");
    }
    let admits = out.iter().filter(|e| matches!(e, Effect::Push { order: Order::Admit { .. }, .. })).count();
    assert!(admits >= 1);
}

#[test]
fn a_release_of_an_epoch_that_was_never_given_out_is_refused() {
    let mut w = at_a();
    let (reply, effects) =
        send(&mut w.master, NodeId::Host(X), 1, ToMeta::Released { epoch: Epoch(1000) }, w.now);
    assert_eq!(refused(reply), Some(Refusal::StaleEpoch { got: Epoch(1000), current: Epoch(1) }));
    assert_eq!(effects, []);
    // Else the host's silence would count as its release from then on: the affirm lease proves nothing by itself.
    w.power(A);
    w.ask(C, false);
    w.calm_until("moving", |w| w.record().is_some_and(|r| r.moving_to() == Some(C)));
    w.host.released = 0;
    assert!(w.master.hosts[&X].released.is_none_or(|(epoch, _)| epoch <= Epoch(2)));
}

#[test]
fn epochs_of_the_past_and_the_future_are_named_in_every_message() {
    let w = at_a();
    let host = NodeId::Host(X);
    let path = Path { scvm: A, network: Network::Storage };
    let wish = |epoch| ToMeta::Move {
        from_epoch: Epoch(epoch),
        to: C,
        planned: false,
        reason: String::new(),
        evidence: vec![],
    };
    for epoch in [0, 7] {
        let epoch_ = Epoch(epoch);
        for (from, msg) in [
            (host, wish(epoch)),
            (host, ToMeta::Arrived { epoch: epoch_, path }),
            (NodeId::Scvm(A), ToMeta::Admitted { host: X, epoch: epoch_, error: None }),
        ] {
            let mut m = w.master.clone();
            let (reply, effects) = send(&mut m, from, 1, msg.clone(), w.now);
            assert_eq!(
                refused(reply),
                Some(Refusal::StaleEpoch { got: epoch_, current: Epoch(1) }),
                "{msg:?}"
            );
            assert_eq!(effects, [], "{msg:?}");
        }
    }
    // What speaks of a fence that nobody waits for any more is no harm; of one to come it is refused.
    for msg in [
        ToMeta::FencedByPulse { scvm: A, epoch: Epoch(7) },
        ToMeta::DomainDead { scvm: A, host: X, epoch: Epoch(7), boot: None },
    ] {
        let (reply, _) = send(&mut w.master.clone(), host, 1, msg, w.now);
        assert_eq!(refused(reply), Some(Refusal::StaleEpoch { got: Epoch(7), current: Epoch(1) }));
    }
    assert!(Refusal::StaleEpoch { got: Epoch(7), current: Epoch(1) }.to_string().contains("ask again"));
}
