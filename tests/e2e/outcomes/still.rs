//! Faults of which nothing may come: no route or login changes, no packet is refused, no server is killed. One lab for
//! all of them, as none of them changes it; a test that fails leaves a new one to the next.

use super::*;
use lab::burden::Burden;
use lab::faults::{Action, Fault};
use lab::topology::{Node, PAIRS};
use reroute_common::table::{Client, MAX_CLIENTS, drop, pin};
use reroute_core::ids::{Epoch, ScvmId};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Ends with this process, as every lab does.
static LAB: Mutex<Option<Lab>> = Mutex::new(None);
static WRITERS: AtomicU64 = AtomicU64::new(1);
/// A host that scvm1 serves as well, so that its server answers somebody.
const SECOND: u32 = 2;

/// What may not change.
#[derive(Debug, PartialEq)]
struct Standing {
    logins: Vec<Option<(ScvmId, Epoch)>>,
    next_hops: Vec<Option<String>>,
    /// Process id of each server.
    servers: Vec<u32>,
    /// Packets of hosts that no admission let in.
    refused: u64,
}

pub fn stays(outcome: &Outcome, held: Duration) {
    let mut slot = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    // It comes back when all went well.
    let lab = slot.take().unwrap_or_else(|| healthy(outcome.lab.options("still")));
    lab.wait_healthy(HEALTHY).expect("healthy");
    let fault = Fault::find(outcome.fault).expect("fault");
    let wedged = fault.action == Action::Wedge;
    if wedged {
        lab.pin(SECOND, 1, SOON).expect("another client of the same server");
    }
    let writers = writers(&lab, WRITERS.fetch_add(1, Ordering::Relaxed));
    all_go_on(&writers, now());
    nothing_said(&lab, outcome);
    let before = standing(&lab);
    let burden = match fault.action {
        Action::Load(load) => {
            Some(Burden::before(&lab, outcome.fault, load, "scvm1").expect("figures of before"))
        }
        _ => None,
    };

    let struck = strike(&lab, outcome);
    until(BootNs(struck.at.0 + held.as_nanos() as u64));
    match fault.action {
        Action::Wedge => {
            writers[1].wait_writes(now(), 50, SOON).expect("another client of the same server goes on");
            let stuck = writers[0].gap(BootNs(struck.at.0 + 1_000_000_000), None).expect("gap");
            assert_eq!(stuck.completed, 0, "the wedged one does not");
        }
        Action::FillDisk => write_journals(&lab),
        _ => {}
    }
    if let Some(mut burden) = burden {
        burden.count(&lab).expect("it runs");
        println!("{}: {}", outcome.fault, burden.felt(held).expect("a burden"));
    }
    cause_is_said(&lab, outcome, struck.at);
    judge(&lab, outcome, &before, struck.at);
    if wedged {
        is_left_alone(&lab, struck.at);
    }
    lab.heal().expect("heal");
    if fault.action == Action::FillDisk {
        journal_goes_on(&lab);
    }
    all_go_on(&writers, now());
    judge(&lab, outcome, &before, struck.at);
    writers.into_iter().for_each(assert_intact);
    if wedged {
        lab.unpin(SECOND).expect("it goes home");
    }
    lab.wait_healthy(HEALTHY).expect("healthy again");
    *slot = Some(lab);
}

/// Waits while the fault stands.
fn until(at: BootNs) {
    std::thread::sleep(Duration::from_nanos(at.since(now())));
}

fn judge(lab: &Lab, outcome: &Outcome, before: &Standing, from: BootNs) {
    let journal = lab.journal().expect("journal");
    let told = || format!("{}:\n{}", outcome.fault, story(&journal, from));
    let after =
        lab::wait_for("how it stands", SOON, || try_standing(lab)).unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(&after, before, "{}", told());
    let changes = moves(&journal, from);
    assert!(changes.is_empty(), "{changes:?}\n{}", told());
    let shut = journal.iter().filter(|e| e.at >= from).find(|e| {
        matches!(e.event, Event::Fenced { .. } | Event::ServerKilled { .. } | Event::Released { .. })
    });
    assert_eq!(shut, None, "{}", told());
}

fn standing(lab: &Lab) -> Standing {
    lab::wait_for("how it stands", SOON, || try_standing(lab)).expect("standing")
}

/// As hosts and kernels have it, which is known without Meta and without an SCVM's agent.
fn try_standing(lab: &Lab) -> anyhow::Result<Standing> {
    let words = |i: u32| {
        let clients = clients(lab, i);
        let admitted = clients.iter().find(|c| c.host == i).map(|c| reroute_common::admission::Word(c.word));
        admitted.filter(|w| w.is_admitted()).map(|w| (ScvmId(i), Epoch(w.epoch())))
    };
    let refused = |c: &Client| c.drops[drop::NOT_ADMITTED] + c.drops[drop::LEASE_EXPIRED];
    Ok(Standing {
        logins: (1..=PAIRS).map(words).collect(),
        next_hops: (1..=PAIRS).map(|i| lab.next_hop(i)).collect::<anyhow::Result<_>>()?,
        servers: (1..=PAIRS)
            .map(|i| Ok(lab.process(&format!("{}/server", Node::Scvm(i)))?.pid))
            .collect::<anyhow::Result<_>>()?,
        refused: (1..=PAIRS).flat_map(|i| clients(lab, i)).map(|c| refused(&c)).sum(),
    })
}

fn clients(lab: &Lab, scvm: u32) -> Vec<Client> {
    let table = table::<Client>(lab, &Node::Scvm(scvm).to_string(), pin::CLIENTS);
    (1..MAX_CLIENTS).filter_map(|slot| table.get(&slot, 0).ok()).filter(|c| c.host != 0).collect()
}

/// What it waits for may be executed yet: its connection is left alone, for longer than it takes to name it.
fn is_left_alone(lab: &Lab, from: BootNs) {
    let named = |e: &Entry| match &e.event {
        Event::Fault { what } if e.node == "scvm1" && what.contains("has got no reply for 5 s") => Some(()),
        _ => None,
    };
    let (at, ()) = first(lab, from, "the wedged client is named", named);
    assert!(at.since(from) >= 5_000_000_000, "after {} ns", at.since(from));
    until(at.plus(1_000_000_000));
    let journal = lab.journal().expect("journal");
    let reset =
        journal.iter().filter(|e| e.at >= from).find(|e| matches!(e.event, Event::SocketsReset { .. }));
    assert_eq!(reset, None, "{}", story(&journal, from));
}

/// Nobody else is served there: its storage is as likely to be stuck, and it is left. What still waits there is fenced,
/// and overwrites nothing when it is let go.
#[test]
fn the_only_client_of_a_server_is_moved_when_it_is_wedged() {
    let outcome = Outcome::of("one-client-wedged").expect("it is in the table");
    let lab = healthy(outcome.lab.options("only"));
    let writers = writers(&lab, 1);
    all_go_on(&writers, now());
    let from = strike(&lab, outcome).at;
    let (at, ()) = first(&lab, from, "the move", |e| {
        matches!(e.event, Event::MoveRecorded { planned: false, .. }).then_some(())
    });
    assert!(at.since(from) >= 5_000_000_000, "after {} ns", at.since(from));
    all_go_on(&writers, now());
    lab.heal().expect("heal");
    all_go_on(&writers, now());
    writers.into_iter().for_each(assert_intact);
}

/// scvm1's management link, which nobody is served by, goes down and up: that is journaled, and nothing else comes of it.
fn flap_management(lab: &Lab, times: u32) {
    let script = format!(
        "for i in $(seq {times}); do for to in down up; do ip link set mgt0 $to || exit 1; sleep 0.03; done; done"
    );
    let out = lab.exec("scvm1", &["sh", "-c", &script]).expect("exec");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn write_journals(lab: &Lab) {
    lab::wait_for("more than the disk takes", SOON, || {
        flap_management(lab, 10);
        let lost = lab.agent_status("scvm1")?["local"]["journal_lost"].as_u64();
        anyhow::ensure!(lost > Some(0), "{lost:?}");
        Ok(())
    })
    .expect("journal entries are lost");
}

/// Every line is whole, those before and those after.
fn journal_goes_on(lab: &Lab) {
    let healed_at = now();
    flap_management(lab, 1);
    let carrier = |e: &Entry| match &e.event {
        Event::KernelSignal { signal, .. } if e.node == "scvm1" && signal.starts_with("carrier") => Some(()),
        _ => None,
    };
    first(lab, healed_at, "an entry in the journal", carrier);
}
