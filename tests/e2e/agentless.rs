//! host3 has no agent, as an ESXi host: the test changes its next hop, as one who drives it over ssh would.

use crate::observe::{metrics, sample};
use crate::support::*;
use lab::{Lab, Options, ServerKind, Writer, wait_for};
use reroute_core::ids::{BootNs, Epoch, HostId, ScvmId};
use reroute_core::proto::FenceProof;
use reroute_core::timeline::Event;
use std::time::Duration;

const DRIVEN: u32 = 3;
const X: HostId = HostId(DRIVEN);

fn driven(name: &str, change: impl FnOnce(Options) -> Options) -> Lab {
    healthy(change(Options::named(name).server(ServerKind::Controllable).agentless(DRIVEN)))
}

/// A writer on host3, served by scvm1.
fn at_one(lab: &Lab) -> Writer<'_> {
    lab.drive(DRIVEN, 1).expect("route");
    let writer = lab.writer(DRIVEN, 3, &["--outstanding", "4"]).expect("writer");
    writer.wait_writes(now(), 200, SOON).expect("writes");
    let found = login(&lab.view().expect("view"), DRIVEN).expect("logged in where it calls");
    assert_eq!((found.0, found.2), (ScvmId(1), FenceProof::FirstLogin));
    writer
}

fn served_at(lab: &Lab, scvm: u32, within: Duration) -> (ScvmId, u64, FenceProof) {
    let view = lab
        .wait_view("host3 served where it calls", within, |view| match login(view, DRIVEN) {
            Some((at, ..)) if at == ScvmId(scvm) => None,
            other => Some(format!("{other:?}")),
        })
        .expect("the login follows");
    login(&view, DRIVEN).expect("at")
}

/// Whether an SCVM's kernel says that it admits host3 now.
fn admitted_at(lab: &Lab, scvm: u32) -> bool {
    let out = lab.agent(&format!("scvm{scvm}"), &["flows", "--output", "json"]).expect("flows");
    let flows: serde_json::Value = serde_json::from_slice(&out.stdout).expect("json");
    let clients = flows["clients"].as_array().expect("clients");
    clients.iter().any(|c| c["host"] == "host3" && c["admitted"] == true)
}

/// In the one clock of the lab: each admission of host3 came after every earlier one elsewhere was fenced.
fn never_two_at_once(lab: &Lab) {
    let journal = lab.journal().expect("journal");
    let mut open: Option<(String, Epoch)> = None;
    let mut admissions = 0;
    for entry in &journal {
        match entry.event {
            Event::Admitted { host: X, epoch } => {
                assert!(open.is_none(), "{open:?} still admits:\n{}", story(&journal, BootNs(0)));
                (open, admissions) = (Some((entry.node.clone(), epoch)), admissions + 1);
            }
            Event::Fenced { host: X, epoch, .. } => {
                assert_eq!(open.take(), Some((entry.node.clone(), epoch)));
            }
            _ => {}
        }
    }
    assert!(admissions > 1, "{}", story(&journal, BootNs(0)));
}

#[test]
fn the_login_follows_a_next_hop_that_others_change() {
    let lab = driven("esxi", |o| o);
    let writer = at_one(&lab);
    let home = lab.writer(1, 1, &[]).expect("writer");
    let mut epoch = 1;
    for to in [2, 1, 2] {
        let driven_at = now();
        lab.drive(DRIVEN, to).expect("route");
        let (_, at, proof) = served_at(&lab, to, SOON);
        epoch += 1;
        assert_eq!((at, proof), (epoch, FenceProof::Drained), "the old server is well: nothing is killed");
        writer.wait_writes(now(), 200, SOON).expect("writes");
        println!("next hop changed to scvm{to}: gap {:.1} ms", gap_ms(&writer, driven_at));
        assert!(admitted_at(&lab, to) && !admitted_at(&lab, 3 - to));
    }
    never_two_at_once(&lab);
    let status =
        String::from_utf8_lossy(&lab.agent("meta", &["status"]).expect("status").stdout).into_owned();
    assert!(status.contains("no agent") && !status.contains("no agent heard"), "{status}");
    assert_intact(writer);
    assert_intact(home);
}

#[test]
fn who_drives_it_to_and_fro_is_slowed_and_named() {
    let lab = driven("flap", |o| o.timing("client_move_every_ms", 8000));
    let writer = at_one(&lab);
    let began = now();
    let mut to = 2;
    // As long as nobody slows it, each change is followed by a move.
    let said = wait_for("the report", Duration::from_secs(60), || {
        lab.drive(DRIVEN, to)?;
        let slowed = wait_for("a move", Duration::from_secs(2), || {
            let view = lab.view()?;
            let wants = view.hosts.iter().find(|h| h.host == X).and_then(|h| h.wants.clone());
            match login(&view, DRIVEN) {
                Some((at, ..)) if at == ScvmId(to) => Ok(false),
                // While the last move is under way it is slowed already, without having asked for the next one.
                Some(_) if wants.as_ref().is_some_and(|w| w.scvm == ScvmId(to) && w.slowed_ns.is_some()) => {
                    Ok(true)
                }
                other => anyhow::bail!("{other:?} {wants:?}"),
            }
        });
        to = 3 - to;
        match slowed {
            Ok(true) => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    });
    said.map_err(|e| lab.explain(e)).expect("slowed");
    let (_, what) = first(&lab, began, "the report", |e| match &e.event {
        Event::Fault { what } if what.contains("alternates") => Some(what.clone()),
        _ => None,
    });
    println!("{what}");
    assert!(what.contains("host 3 (host3)") && what.contains("scvm 1 and scvm 2"), "{what}");
    let moved = || {
        let journal = lab.journal().expect("journal");
        let of_x = |e: &Event| matches!(e, Event::MoveRecorded { host: X, from: Some(_), .. });
        journal.iter().filter(|e| e.at >= began && of_x(&e.event)).count()
    };
    assert_eq!(moved(), 3, "{}", story(&lab.journal().expect("journal"), began));
    let status =
        String::from_utf8_lossy(&lab.agent("meta", &["status"]).expect("status").stdout).into_owned();
    assert!(status.contains("host3: alternates between servers"), "{status}");
    // It stays where it was last driven to, and is served there in time.
    served_at(&lab, 3 - to, Duration::from_secs(30));
    writer.wait_writes(now(), 200, Duration::from_secs(30)).expect("writes");
    assert_eq!(moved(), 4);
    never_two_at_once(&lab);
    assert_intact(writer);
}

#[test]
fn without_meta_it_is_served_for_its_lease_and_then_waits() {
    const LEASE_MS: u64 = 3000;
    let lab = driven("nometa", |o| o.timing("session_no_agent_ms", LEASE_MS));
    let writer = at_one(&lab);
    let other = lab.writer(1, 1, &[]).expect("writer");
    let before = login(&lab.view().expect("view"), DRIVEN).expect("login");
    let injected = lab.fault("meta-killed", None).expect("fault");
    let held = wait_for("host3 to stand still", SOON, || {
        let status = lab.agent_status("scvm1")?;
        match status["local"]["held"].as_array() {
            Some(held) if !held.is_empty() => Ok(status),
            _ => anyhow::bail!("{:#}", status["local"]),
        }
    })
    .expect("held");
    let alarms = held["local"]["alarms"].to_string();
    assert!(alarms.contains("1 clients without an agent stand still"), "{alarms}");
    assert!(alarms.contains("no leader of Meta"), "{alarms}");
    wait_for("the metric", SOON, || {
        let text = metrics(&lab, "scvm1")?;
        match sample(&text, "reroute_held_clients", &[]) {
            Some(1.0) => Ok(()),
            _ => anyhow::bail!("{text}"),
        }
    })
    .expect("metric");
    first(&lab, injected.at, "the record", |e| match &e.event {
        Event::Fault { what } if what.contains("stand still") && e.node == "scvm1" => Some(()),
        _ => None,
    });
    // Its last write came with the lease that was left; host1, which affirms its server itself, feels nothing.
    let gap = writer.gap(injected.at, None).expect("gap");
    let served_for = gap.from.saturating_sub(injected.at.0) / 1_000_000;
    println!("served for {served_for} ms after Meta had gone");
    assert!((LEASE_MS - 500..LEASE_MS + 200).contains(&served_for), "{gap:?}");
    other.wait_writes(now(), 50, SOON).expect("host1 goes on");
    assert!(!admitted_at(&lab, 1));

    let healed_at = now();
    lab.heal().expect("heal");
    writer.wait_writes(healed_at, 200, SOON).expect("served again");
    let first_write = writer.gap(injected.at, Some(now())).expect("gap").to;
    println!(
        "served again {} ms after Meta was started",
        first_write.saturating_sub(healed_at.0) / 1_000_000
    );
    assert_eq!(login(&lab.view().expect("view"), DRIVEN), Some(before), "no move, no new epoch");
    assert!(moves(&lab.journal().expect("journal"), injected.at).is_empty());
    assert_intact(writer);
    assert_intact(other);
}
