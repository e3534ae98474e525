//! Who holds what, ending a login, and keeping a client away: as operators do it, on real NFS.

use crate::support::*;
use lab::{Lab, Options, Writer};
use reroute_agent::cli::logins::Holder;
use reroute_core::block::BlockView;
use reroute_core::ids::{BootNs, HostId, ScvmId};
use reroute_core::proto::LoginState;
use reroute_core::timeline::Event;

/// Exit code, what was printed, what was complained about.
fn agent(lab: &Lab, node: &str, args: &[&str]) -> (i32, String, String) {
    let out = lab.agent(node, args).expect("reroute-agent");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap_or(-1), text(&out.stdout), text(&out.stderr))
}

fn logins(lab: &Lab, node: &str) -> Vec<Holder> {
    let (code, out, error) = agent(lab, node, &["logins", "--output", "json"]);
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

fn blocks(lab: &Lab) -> Vec<BlockView> {
    let (code, out, error) = agent(lab, "meta", &["block", "ls", "--output", "json"]);
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&out).expect("blocks")
}

/// No write has been completed for this long.
fn stalled(writer: &Writer, from: BootNs, ms: u64) {
    lab::wait_for("the writes to stall", SOON, || {
        let gap = writer.gap(from, None)?.longest_gap_ns / 1_000_000;
        if gap < ms {
            anyhow::bail!("longest gap {gap} ms");
        }
        Ok(())
    })
    .expect("the client is cut off");
}

fn blocked_packets(lab: &Lab) -> u64 {
    let view = lab.view().expect("view");
    let login = view.logins.iter().find(|l| l.login.host == HostId(1));
    login.and_then(|l| l.holder.as_ref()).map_or(0, |h| h.facts.blocked_packets)
}

#[test]
fn logins_are_shown_with_what_stands_behind_them_and_can_be_ended() {
    let lab = healthy(Options::named("evict"));
    let writer = lab.writer(1, 1, &[]).expect("writer");
    writer.wait_writes(now(), 200, SOON).expect("writes");
    let seen = lab::wait_for("what the servers say", SOON, || {
        let all = logins(&lab, "meta");
        let one = all.iter().find(|h| h.client == "host1").cloned();
        one.filter(|h| h.connections.is_some_and(|n| n > 0)).ok_or_else(|| anyhow::anyhow!("{all:#?}"))
    })
    .expect("host1 holds connections");
    println!("{seen:?}");
    assert_eq!(
        (seen.state.as_str(), seen.scvm.as_deref(), seen.life.as_str()),
        ("at", Some("scvm1"), "alive")
    );
    assert!(seen.term > 0 && seen.epoch > 0 && seen.proof.is_some());
    let second = Some(5_000_000_000);
    for age in [seen.packet_age_ns, seen.pulse_age_ns, seen.report_age_ns, seen.reply_age_ns] {
        assert!(age.is_some() && age < second, "{seen:?}");
    }
    for node in ["scvm2", "host3"] {
        assert!(logins(&lab, node).iter().any(|h| h.client == "host1" && h.epoch == seen.epoch), "{node}");
    }
    let (code, _, error) = agent(&lab, "scvm1", &["logins", "evict", "host1"]);
    assert!(code == 2 && error.contains("only Meta can do this"), "{error}");
    let (code, _, error) = agent(&lab, "meta", &["logins", "evict", "nobody"]);
    assert!(code == 2 && error.contains("no client"), "{error}");

    let from = now();
    let (code, out, error) =
        agent(&lab, "meta", &["logins", "evict", "host1", "--reason", "stuck", "--actor", "jane"]);
    assert_eq!(code, 0, "{out}{error}");
    println!("{out}");
    // It has an agent, and is not blocked: it logs in anew, at a later epoch, and its writes go on.
    lab.wait_view("a new login", SOON, |view| match login(view, 1) {
        Some((_, epoch, _)) if epoch >= seen.epoch + 2 => None,
        other => Some(format!("{other:?}")),
    })
    .expect("logged in anew");
    writer.wait_writes(now(), 100, SOON).expect("writes go on");
    let (_, (actor, reason)) = first(&lab, from, "the eviction", |e| match &e.event {
        Event::Evicted { host: HostId(1), actor, reason, .. } => Some((actor.clone(), reason.clone())),
        _ => None,
    });
    assert!(actor.starts_with("jane (") && reason == "stuck", "{actor}: {reason}");
    first(&lab, from, "its fence", |e| {
        matches!(
            e.event,
            Event::FenceProven { host: HostId(1), scvm: ScvmId(1), .. }
                | Event::Fenced { host: HostId(1), .. }
        )
        .then_some(())
    });
    println!("gap {:.1} ms", gap_ms(&writer, from));
    assert_intact(writer);
}

#[test]
fn a_block_cuts_off_outlives_our_parts_and_ends() {
    let lab = healthy(Options::named("block"));
    let writer = lab.writer(1, 1, &[]).expect("writer");
    writer.wait_writes(now(), 200, SOON).expect("writes");
    let before = login(&lab.view().expect("view"), 1).expect("login");
    lab::wait_for("what the servers say", SOON, || {
        let held = logins(&lab, "meta").into_iter().any(|h| h.client == "host1" && h.connections > Some(0));
        held.then_some(()).ok_or_else(|| anyhow::anyhow!("no connections of host1"))
    })
    .expect("connections");

    // It is being served: asked twice.
    let add = ["block", "add", "host1", "--reason", "maintenance", "--for", "10m", "--wait"];
    let (code, _, error) = agent(&lab, "meta", &add);
    assert!(code == 2 && error.contains("--yes") && error.contains("scvm 1"), "{code} {error}");
    for wrong in [
        &add[..5],
        &["block", "add", "host1", "--reason", "r", "--for", "0s"],
        &["block", "add", "host1", "--for", "1h"],
    ] {
        assert_eq!(agent(&lab, "meta", wrong).0, 2, "{wrong:?}");
    }
    assert!(blocks(&lab).is_empty());

    let blocked = now();
    let (code, out, error) = agent(&lab, "meta", &[&add[..], &["--yes", "--actor", "jane"]].concat());
    assert_eq!(code, 0, "{out}{error}");
    for scvm in ["scvm1", "scvm2", "scvm3"] {
        assert!(out.contains(scvm), "{out}");
    }
    stalled(&writer, blocked, 2000);
    lab::wait_for("drops to be counted", SOON, || match blocked_packets(&lab) {
        0 => anyhow::bail!("none"),
        n => Ok(n),
    })
    .expect("the kernel drops");
    let found = blocks(&lab);
    assert!(found.len() == 1 && found[0].unconfirmed.is_empty(), "{found:?}");
    assert!(found[0].block.actor.starts_with("jane ("), "{found:?}");
    let (_, status, _) = agent(&lab, "scvm3", &["status"]);
    assert!(status.contains("maintenance"), "{status}");

    // Neither the death of the agent nor that of Meta lifts it, or makes it longer.
    lab.fault("agent-killed", Some("scvm1")).expect("fault");
    lab.fault("meta-killed", None).expect("fault");
    let dead = now();
    stalled(&writer, dead, 1500);
    lab.heal().expect("heal");
    let again = lab::wait_for("every kernel to confirm to the new Meta", SOON, || {
        let found = lab.view().map(|v| v.blocks)?;
        match found.as_slice() {
            [one] if one.unconfirmed.is_empty() => Ok(one.clone()),
            _ => anyhow::bail!("{found:?}"),
        }
    })
    .expect("confirmed");
    assert!(again.remaining_ns < found[0].remaining_ns, "{again:?}");
    assert_eq!(again.block, found[0].block);
    let restarted = now();
    stalled(&writer, restarted, 1500);

    // Bypass suspends it, and says so.
    let (code, _, error) = agent(&lab, "scvm1", &["bypass", "on"]);
    assert_eq!(code, 0, "{error}");
    writer.wait_writes(now(), 20, 2 * SOON).expect("bypass lets it in");
    let (_, status, _) = agent(&lab, "scvm1", &["status"]);
    assert!(status.contains("blocked clients get in all the same"), "{status}");
    let (code, _, error) = agent(&lab, "scvm1", &["bypass", "off"]);
    assert_eq!(code, 0, "{error}");

    let id = again.block.id.0.to_string();
    let (code, out, error) = agent(&lab, "meta", &["block", "rm", &id]);
    assert_eq!(code, 0, "{out}{error}");
    writer.wait_writes(now(), 50, 2 * SOON).expect("writes go on");
    for (id, named) in [(id.as_str(), "removed already"), ("99", "there is no block 99")] {
        let (code, _, error) = agent(&lab, "meta", &["block", "rm", id]);
        assert!(code == 2 && error.contains(named), "{code} {error}");
    }

    // One that ends by itself.
    let short = now();
    let (code, out, error) = agent(
        &lab,
        "meta",
        &["block", "add", "1", "--reason", "short", "--for", "3s", "--yes", "--output", "json"],
    );
    assert_eq!(code, 0, "{error}");
    let id = serde_json::from_str::<serde_json::Value>(&out).expect("json")["block"]["id"].to_string();
    stalled(&writer, short, 1000);
    writer.wait_writes(now(), 50, 2 * SOON).expect("writes go on by themselves");
    for _ in 0..2 {
        let (code, _, error) = agent(&lab, "meta", &["block", "rm", &id]);
        assert!(code == 2 && error.contains("ended by itself"), "{code} {error}");
    }
    assert_eq!(login(&lab.view().expect("view"), 1), Some(before), "a block moves nobody");
    assert_intact(writer);
}

#[test]
fn a_block_names_who_has_not_confirmed_and_a_blocked_client_does_not_log_in() {
    let lab = healthy(Options::named("unconf"));
    lab.fault("agent-killed", Some("scvm2")).expect("fault");
    let add = ["block", "add", "host1", "--reason", "gone", "--for", "10m", "--wait", "--yes"];
    let (code, out, error) = agent(&lab, "meta", &add);
    assert_eq!(code, 3, "{out}{error}");
    assert!(error.contains("scvm2") && !error.contains("scvm3"), "{error}");
    assert!(out.contains("scvm1") && out.contains("scvm3"), "{out}");
    assert_eq!(blocks(&lab)[0].unconfirmed, [ScvmId(2)]);
    lab.heal().expect("heal");
    lab::wait_for("scvm2 to hear of it", SOON, || match blocks(&lab)[0].unconfirmed.as_slice() {
        [] => Ok(()),
        open => anyhow::bail!("{open:?}"),
    })
    .expect("with its next session");

    // Ended, and kept away: it does not come back until it may.
    let (code, out, error) = agent(&lab, "meta", &["logins", "evict", "host1", "--reason", "gone"]);
    assert_eq!(code, 0, "{out}{error}");
    lab.wait_view("host1 to say why it has no login", SOON, |view| {
        let said =
            view.hosts.iter().find(|h| h.host == HostId(1)).and_then(|h| h.report.as_ref()?.error.clone());
        match said {
            Some(error) if error.contains("may not move") && error.contains("gone") => None,
            other => Some(format!("{other:?}")),
        }
    })
    .expect("said");
    let ended = |view: &reroute_core::proto::ClusterView| {
        view.logins
            .iter()
            .any(|l| l.login.host == HostId(1) && matches!(l.login.state, LoginState::Evicted { .. }))
    };
    assert!(ended(&lab.view().expect("view")));
    let (code, _, error) = agent(&lab, "meta", &["logins", "evict", "host1"]);
    assert!(code == 2 && error.contains("has ended already"), "{error}");
    let id = blocks(&lab)[0].block.id.0.to_string();
    assert_eq!(agent(&lab, "meta", &["block", "rm", &id]).0, 0);
    lab.wait_healthy(HEALTHY).expect("host1 logs in anew");
}
