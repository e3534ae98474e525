//! Proofs that do not come from the old server itself, and what operators ask for: a dead SCVM (no process of it runs,
//! no link of it carries) under policy `kill`, drain, pinned routes.

use crate::support::*;
use lab::{Lab, Options};
use reroute_core::ids::ScvmId;
use reroute_core::proto::{FenceProof, LoginState, SessionState};
use reroute_core::timeline::Event;
use std::process::Output;

/// What the hypervisor beside scvm1 lists of it: its domain's number and state.
fn domains(lab: &Lab, scvm: &[(u32, &str)]) {
    lab::hypervisor::set(lab.root(), 1, scvm).expect("list");
}

/// A healthy lab whose hosts have a hypervisor to ask, and have seen the domain.
fn with_xl(name: &str) -> Lab {
    let lab = healthy(Options::named(name).hypervisor());
    domain_known(&lab);
    lab
}

fn power_off(lab: &Lab) {
    lab.fault("scvm-dead", Some("scvm1")).expect("fault");
}

fn power_on(lab: &Lab) {
    lab.heal().expect("heal");
}

fn moved_from_1(lab: &Lab) -> FenceProof {
    let view = lab
        .wait_view("host1 served by another SCVM", SOON, |view| match login(view, 1) {
            Some((scvm, ..)) if scvm != ScvmId(1) => None,
            other => Some(format!("{other:?}")),
        })
        .expect("the login moves");
    login(&view, 1).expect("at").2
}

/// The move is on record and has waited for seconds with the session lost: whatever could prove it has had its time.
fn waits_in_vain(lab: &Lab) {
    lab.wait_view("a move that waits for its proof", SOON, |view| {
        let lost = view.sessions.iter().any(|s| s.scvm == ScvmId(1) && s.state == SessionState::Lost);
        let login = view.logins.iter().find(|l| l.login.host.0 == 1);
        match login.map(|l| (&l.login.state, l.age_ns)) {
            Some((LoginState::Moving { planned: false, .. }, age)) if lost && age > 3_000_000_000 => None,
            other => Some(format!("lost: {lost}; {other:?}")),
        }
    })
    .expect("it waits");
}

fn verb(lab: &Lab, node: &str, args: &[&str]) -> Output {
    let out = lab.agent(node, args).expect("reroute-agent");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    println!("{args:?}: {:?} {} {}", out.status.code(), text(&out.stdout), text(&out.stderr));
    out
}

fn succeeds(lab: &Lab, node: &str, args: &[&str]) {
    assert!(verb(lab, node, args).status.success(), "{args:?}");
}

fn refused(lab: &Lab, node: &str, args: &[&str], word: &str) {
    let out = verb(lab, node, args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
    assert!(said.contains(word), "{args:?}: {said}");
}

#[test]
fn the_hypervisor_proves_that_a_dead_scvm_is_dead() {
    let lab = with_xl("domain");
    let writer = lab.writer(1, 1, &["--outstanding", "4"]).expect("writer");
    writer.wait_writes(now(), 200, SOON).expect("writes");
    let died_at = now();
    power_off(&lab);
    // Dead to the network only, for all that the hypervisor says: that proves nothing.
    waits_in_vain(&lab);
    domains(&lab, &[]);
    assert_eq!(moved_from_1(&lab), FenceProof::DomainDead);
    writer.wait_writes(now(), 50, SOON).expect("writes go on");
    let (_, trust) = first(&lab, died_at, "proof", |e| match &e.event {
        Event::FenceProven { proof: FenceProof::DomainDead, does_not_cover, .. } => {
            Some(does_not_cover.clone())
        }
        _ => None,
    });
    assert!(trust.contains("migrated"), "{trust}");
    let status = String::from_utf8(lab.agent("meta", &["status"]).expect("status").stdout).expect("text");
    assert!(status.contains("domain dead") && status.contains(&trust), "{status}");

    domains(&lab, &[(8, "r-----")]);
    power_on(&lab);
    lab.wait_healthy(HEALTHY).expect("back home");
    assert_intact(writer);
}

#[test]
fn without_any_proof_it_waits_for_an_operators_word() {
    let lab = healthy(Options::named("vouch"));
    let writer = lab.writer(1, 1, &["--outstanding", "4"]).expect("writer");
    writer.wait_writes(now(), 200, SOON).expect("writes");
    let vouch = ["move", "vouch", "--host", "host1", "--scvm", "scvm1", "--actor", "alice"];
    let yes = |names: &[&'static str]| {
        let each = names.iter().flat_map(|name| ["--yes", *name]);
        vouch.into_iter().chain(each).collect::<Vec<&str>>()
    };
    refused(&lab, "meta", &yes(&["scvm1", "scvm1"]), "no move of this host is under way");
    let died_at = now();
    power_off(&lab);
    waits_in_vain(&lab);
    refused(&lab, "meta", &vouch, "--yes scvm1 --yes scvm1");
    refused(&lab, "meta", &yes(&["scvm1"]), "twice");
    refused(&lab, "meta", &yes(&["scvm1", "scvm2"]), "must be given twice");
    waits_in_vain(&lab);
    succeeds(&lab, "meta", &yes(&["scvm1", "scvm1"]));
    assert_eq!(moved_from_1(&lab), FenceProof::Operator);
    writer.wait_writes(now(), 50, SOON).expect("writes go on");
    let (_, actor) = first(&lab, died_at, "the operator's word", |e| match &e.event {
        Event::Vouched { actor, .. } => Some(actor.clone()),
        _ => None,
    });
    assert_eq!(actor, "alice (root, uid 0)");
    refused(&lab, "meta", &yes(&["scvm1", "scvm1"]), "no move of this host is under way");
    let status = String::from_utf8(lab.agent("meta", &["status"]).expect("status").stdout).expect("text");
    assert!(status.contains("its login rests on trust in"), "{status}");
    power_on(&lab);
    lab.wait_healthy(HEALTHY).expect("back home");
    assert_intact(writer);
}

#[test]
fn the_fence_command_proves_it_when_it_says_so() {
    let command =
        "fence_command = { command = [\"{root}/fence\", \"{name}\"], time_limit_ms = 5000, retry_ms = 300 }";
    let lab = healthy(Options::named("fencecmd").section("meta", command));
    let log = lab.root_inside().join("fence.log");
    // Fails once. (A real one would switch the power off.)
    let script =
        format!("echo \"$1 $REROUTE_LOGINS\" >> {0}\n[ $(wc -l < {0}) -gt 1 ] || exit 1", log.display());
    lab::hypervisor::program(lab.root(), "fence", &script).expect("script");
    let writer = lab.writer(1, 1, &["--outstanding", "4"]).expect("writer");
    writer.wait_writes(now(), 200, SOON).expect("writes");
    let epoch = login(&lab.view().expect("view"), 1).expect("login").1;
    let died_at = now();
    power_off(&lab);
    assert_eq!(moved_from_1(&lab), FenceProof::FenceCommand);
    writer.wait_writes(now(), 50, SOON).expect("writes go on");
    let runs = std::fs::read_to_string(lab.root().join("fence.log")).expect("log");
    assert_eq!(runs, format!("scvm1 1@{epoch}\n").repeat(2));
    let (fenced_at, _) = first(&lab, died_at, "the command's end", |e| match &e.event {
        Event::FenceCommandEnded { outcome, .. } if outcome == "fenced" => Some(()),
        _ => None,
    });
    let (admitted_at, _) = first(&lab, died_at, "admission", |e| {
        matches!(&e.event, Event::Admitted { host, .. } if host.0 == 1 && e.node != "scvm1").then_some(())
    });
    assert!(fenced_at < admitted_at, "{}", story(&lab.journal().expect("journal"), died_at));
    power_on(&lab);
    lab.wait_healthy(HEALTHY).expect("back home");
    assert_intact(writer);
}

#[test]
fn a_drained_scvm_is_empty_until_that_is_undone() {
    let lab = healthy(Options::named("drain"));
    let writer = lab.writer(1, 1, &["--outstanding", "4", "--metadata"]).expect("writer");
    writer.wait_writes(now(), 200, SOON).expect("writes");
    refused(&lab, "meta", &["drain", "scvm9"], "no SCVM");
    refused(&lab, "meta", &["drain", "scvm1", "--undo"], "not being drained");
    let drained_at = now();
    succeeds(&lab, "meta", &["drain", "scvm1", "--wait", "--timeout", "60s", "--actor", "alice"]);
    let view = lab.view().expect("view");
    assert_ne!(login(&view, 1).expect("nothing moves").0, ScvmId(1));
    assert_eq!(view.draining[0].draining.actor, "alice (root, uid 0)");
    println!("drain: gap {:.1} ms", gap_ms(&writer, drained_at));
    let planned = lab.journal().expect("journal").into_iter().any(
        |e| matches!(e.event, Event::MoveRecorded { planned: true, ref reason, .. } if reason.contains("drained")),
    );
    assert!(planned, "{}", story(&lab.journal().expect("journal"), drained_at));
    refused(&lab, "host1", &["route", "set", "scvm1"], "being drained");
    // It is durable: a new Meta knows of it, and nobody returns.
    lab.stop_process("meta/agent", SOON).expect("stop");
    lab.start_process("meta/agent").expect("start");
    lab.wait_view("draining after a restart", SOON, |view| {
        (view.draining.len() != 1 || login(view, 1).is_none()).then(|| format!("{:?}", view.draining))
    })
    .expect("durable");
    writer.wait_writes(now(), 1000, SOON).expect("writes");
    assert_ne!(login(&lab.view().expect("view"), 1).expect("login").0, ScvmId(1));
    succeeds(&lab, "meta", &["drain", "scvm1", "--undo"]);
    lab.wait_healthy(HEALTHY).expect("back home");
    assert_intact(writer);
}

#[test]
fn a_pinned_route_is_kept_over_a_restart_until_it_is_auto_again() {
    let lab = healthy(Options::named("pin"));
    let writer = lab.writer(1, 1, &["--outstanding", "4"]).expect("writer");
    writer.wait_writes(now(), 200, SOON).expect("writes");
    let before = login(&lab.view().expect("view"), 1).expect("login").1;
    let hop = |want: &str| {
        lab::wait_for("the route", SOON, || {
            let hop = lab.next_hop(1)?;
            anyhow::ensure!(hop.as_deref() == Some(want), "{hop:?}");
            Ok(())
        })
        .map_err(|e| lab.explain(e))
        .expect(want)
    };
    refused(&lab, "host1", &["route", "auto"], "nothing is pinned");
    refused(&lab, "host1", &["route", "set", "scvm1"], "already");
    refused(&lab, "host1", &["route", "set", "scvm9"], "no SCVM");
    refused(&lab, "host1", &["route", "set", "scvm2/private"], "private");
    refused(&lab, "host1", &["route", "set", "scvm2/lan"], "no network");
    // The same server by another network: no epoch.
    succeeds(&lab, "host1", &["route", "set", "scvm1/management"]);
    hop("192.168.85.21");
    assert_eq!(login(&lab.view().expect("view"), 1).expect("login").1, before);
    succeeds(&lab, "host1", &["route", "set", "scvm2", "--for", "1h", "--actor", "alice"]);
    hop("10.10.85.22");
    writer.wait_writes(now(), 50, SOON).expect("writes");
    lab.stop_process("host1/agent", SOON).expect("stop");
    lab.start_process("host1/agent").expect("start");
    lab::wait_for("the pin after a restart", SOON, || {
        let status = lab.agent_status("host1")?;
        let pin = &status["local"]["pin"];
        anyhow::ensure!(pin["scvm"] == 2 && pin["actor"] == "alice (root, uid 0)", "{pin}");
        Ok(())
    })
    .expect("kept");
    writer.wait_writes(now(), 1000, SOON).expect("writes");
    hop("10.10.85.22");
    succeeds(&lab, "host1", &["route", "auto"]);
    lab.wait_healthy(HEALTHY).expect("back home");
    assert_intact(writer);
}
