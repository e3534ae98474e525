//! Restarts and upgrades of the SCVM's agent under load: nothing on the wire may notice, nothing counted may be missed.
//!
//! The writer is frozen before and after each part: then both ends' TCP say how many segments they sent and took in
//! (`ss`), and what the programs counted must be the same, segment by segment. A segment that a program had dropped,
//! or that had passed while no program ran, would be missing on one side.

use crate::latency::{client, flows};
use crate::observe::{metrics, sample};
use crate::support::*;
use aya::programs::links::{FdLink, PinnedLink};
use lab::{Lab, Options, Writer, wait_for};
use reroute_core::ids::BootNs;
use reroute_core::timeline::{Entry, Event};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// 30, or what `cargo xtask test --long` asks for.
fn restarts() -> u32 {
    std::env::var("REROUTE_RESTARTS").ok().map_or(30, |n| n.parse().expect("REROUTE_RESTARTS is a number"))
}

/// Without restarts, to compare with.
const BASELINE: Duration = Duration::from_secs(8);
/// Clocks are read a moment apart, and a call is issued a moment before it comes in.
const SLACK_NS: u64 = 2_000_000;

/// One direction, or one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segments {
    received: u64,
    sent: u64,
}

/// Segments that TCP sent again, at both ends; and the duplicates that the receivers reported back (DSACK): what had come
/// the first time too. On a crowded machine TCP is impatient, and several per second are sent twice for nothing. That
/// nothing was lost the equal counts of segments show; this is beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Again {
    sent: u64,
    needless: u64,
}

/// Counted with the writer frozen and everything answered.
#[derive(Clone, Debug)]
struct Counts {
    at: BootNs,
    /// By the programs at scvm1, for host1.
    programs: Segments,
    /// By TCP at scvm1, of host1's connections.
    server: Segments,
    /// By TCP at host1.
    client: Segments,
    again: Again,
    calls: u64,
    replies: u64,
    /// Everything that must not grow.
    losses: BTreeMap<String, f64>,
    ticks: u64,
}

fn counters(lab: &Lab) -> anyhow::Result<String> {
    // `flows` has the agent read the kernel's tables now.
    flows(lab, "scvm1")?;
    metrics(lab, "scvm1")
}

fn sum(text: &str, name: &str, labels: &[&str]) -> u64 {
    let all = text.lines().filter(|l| l.starts_with(name) && labels.iter().all(|x| l.contains(x)));
    all.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

fn of_programs(text: &str) -> Segments {
    let way = |way| sum(text, "reroute_client_packets_total", &["\"host1\"", way]);
    Segments { received: way("receive"), sent: way("transmit") }
}

/// TCP's own counts of the connections that `filter` names.
fn tcp(lab: &Lab, node: &str, filter: &[&str]) -> (Segments, Again) {
    let argv =
        [["ss", "--tcp", "--info", "--numeric", "--no-header", "--oneline"].as_slice(), filter].concat();
    let out = lab.exec(node, &argv).expect("ss");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let field = |line: &str, name: &str| {
        let value = line.split_whitespace().find_map(|w| w.strip_prefix(name))?;
        value.rsplit('/').next()?.parse::<u64>().ok()
    };
    let total = |name: &str| text.lines().filter_map(|l| field(l, name)).sum::<u64>();
    let again = Again { sent: total("retrans:"), needless: total("dsack_dups:") };
    (Segments { received: total("segs_in:"), sent: total("segs_out:") }, again)
}

/// Freezes the writer, waits until everything is answered and counted, reads, and lets it go on.
fn counts(lab: &Lab, writer: &Writer) -> Counts {
    lab.signal(writer.name(), libc::SIGSTOP).expect("freeze");
    let read = || {
        let text = counters(lab)?;
        let (server, again) = tcp(lab, "scvm1", &["src", "192.168.33.2:2049", "dst", "10.10.85.11"]);
        let (client, again_too) = tcp(lab, "host1", &["dst", "192.168.33.2:2049"]);
        let again =
            Again { sent: again.sent + again_too.sent, needless: again.needless + again_too.needless };
        anyhow::Ok((text, server, client, again))
    };
    let mut before = None;
    let (text, server, client, again) = wait_for("quiet", SOON, || {
        let now = read()?;
        let standing = (of_programs(&now.0), now.1, now.2);
        let waiting = sample(&now.0, "reroute_calls_in_progress", &["\"host1\""]);
        let quiet = before.replace(standing) == Some(standing) && waiting == Some(0.0);
        anyhow::ensure!(quiet, "{standing:?}, {waiting:?} waiting");
        Ok(now)
    })
    .expect("everything comes to rest");
    let at = now();
    lab.signal(writer.name(), libc::SIGCONT).expect("thaw");
    let kinds = [
        "reroute_dropped_packets_total",
        "reroute_would_drop_packets_total",
        "reroute_client_connections_",
        "reroute_orphaned_calls_total",
        "reroute_streams_lost_total",
        "reroute_lost_events_total",
        "reroute_untracked_",
        "reroute_evicted_connections_total",
        "reroute_pulses_rejected_total",
    ];
    let losses = text.lines().filter(|l| kinds.iter().any(|k| l.starts_with(k)));
    let losses =
        losses.filter_map(|l| l.rsplit_once(' ')).map(|(k, v)| (k.into(), v.parse().expect("number")));
    Counts {
        at,
        programs: of_programs(&text),
        server,
        client,
        again,
        calls: sum(&text, "reroute_rpc_calls_total", &["\"host1\""]),
        replies: sum(&text, "reroute_rpc_replies_total", &["\"host1\""]),
        losses: losses.collect(),
        ticks: sum(&text, "reroute_kernel_ticks_total", &[]),
    }
}

/// What lies between two counts, and that nothing of it was lost. Gives the segments sent again for want
/// of the first.
fn compare(what: &str, from: &Counts, to: &Counts) -> u64 {
    let since =
        |a: Segments, b: Segments| Segments { received: b.received - a.received, sent: b.sent - a.sent };
    let programs = since(from.programs, to.programs);
    let (server, client) = (since(from.server, to.server), since(from.client, to.client));
    let again = to.again.sent - from.again.sent;
    let needless = to.again.needless - from.again.needless;
    let seconds = to.at.since(from.at) as f64 / 1e9;
    println!(
        "{what}: {seconds:.1} s, {} calls, {} replies; segments in: {} sent by host1, {} counted, {} taken in by the \
         server; out: {} sent, {} counted, {} taken in; {again} sent again, {needless} reported \
         as duplicates; {:.0} ticks/s",
        to.calls - from.calls,
        to.replies - from.replies,
        client.sent,
        programs.received,
        server.received,
        server.sent,
        programs.sent,
        client.received,
        (to.ticks - from.ticks) as f64 / seconds
    );
    assert_eq!(
        (client.sent, server.received),
        (programs.received, programs.received),
        "{what}: host1 to scvm1"
    );
    assert_eq!((server.sent, client.received), (programs.sent, programs.sent), "{what}: scvm1 to host1");
    assert_eq!(to.calls - from.calls, to.replies - from.replies, "{what}: all answered, all seen");
    assert!(to.calls - from.calls > 100, "{what}: traffic");
    assert_eq!(from.losses, to.losses, "{what}");
    again.saturating_sub(needless)
}

/// Links at scvm1's interfaces: link id -> program id, out of the kernel.
fn links(lab: &Lab) -> BTreeMap<u32, u32> {
    let dir = lab.root().join("scvm1/bpf");
    let entries = std::fs::read_dir(&dir).expect("pins").map(|e| e.expect("pin").path());
    let links = entries.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("link_")));
    links
        .map(|path| {
            let link = FdLink::from(PinnedLink::from_pin(&path).expect("a pinned link"));
            let info = link.info().expect("link info");
            (info.id(), info.program_id())
        })
        .collect()
}

fn loaded() -> BTreeSet<u32> {
    aya::programs::loaded_programs().filter_map(|p| p.ok().map(|p| p.id())).collect()
}

/// What must be the same after a restart, or have grown.
#[derive(Clone, Debug)]
struct Standing {
    epoch: u64,
    word: String,
    admitted: bool,
    counted: Vec<u64>,
    limit_us: u64,
}

fn standing(lab: &Lab) -> anyhow::Result<Standing> {
    let text = counters(lab)?;
    let one = client(&flows(lab, "scvm1")?, "host1");
    let (packets, calls) = (of_programs(&text), one.calls);
    let pulses = sum(&text, "reroute_pulses_total", &["\"host1\""]);
    let ticks = sum(&text, "reroute_kernel_ticks_total", &[]);
    let replies = one.latency.all.replies;
    Ok(Standing {
        epoch: one.epoch,
        word: one.word,
        admitted: one.admitted,
        counted: vec![
            packets.received,
            packets.sent,
            calls.read,
            calls.write,
            calls.metadata,
            calls.null,
            replies,
            pulses,
            ticks,
        ],
        limit_us: one.unanswered_limit_us,
    })
}

fn restart(lab: &Lab, i: u32) {
    let signal = if i.is_multiple_of(2) { libc::SIGKILL } else { libc::SIGTERM };
    lab.signal("scvm1/agent", signal).expect("signal");
    lab.wait_process("scvm1/agent", SOON).expect("it ends");
    lab.start_process("scvm1/agent").expect("start");
    if i % 10 == 9 {
        // Killed once more, wherever its start has got to.
        lab.signal("scvm1/agent", libc::SIGKILL).expect("signal");
        lab.wait_process("scvm1/agent", SOON).expect("it ends");
        lab.start_process("scvm1/agent").expect("start");
    }
}

#[test]
fn restarts_and_upgrades_are_not_noticed() {
    let lab = healthy(Options::named("restarts"));
    let log = lab.root_inside().join("host1/operations.log");
    let log_flag = log.to_string_lossy();
    let load =
        ["--outstanding", "4", "--reads", "1", "--metadata", "--interval-us", "500", "--log", &log_flag];
    let writer = lab.writer(1, 1, &load).expect("writer");
    writer.wait_writes(now(), 500, SOON).expect("writes");
    let login_before = login(&lab.view().expect("view"), 1).expect("login");

    let start = counts(&lab, &writer);
    let baseline_end = BootNs(start.at.0 + BASELINE.as_nanos() as u64);
    while now() < baseline_end {
        writer.wait_writes(now(), 20, SOON).expect("writes");
    }
    let begin = counts(&lab, &writer);
    let again_before = compare("baseline", &start, &begin);

    let count = restarts();
    let worst_before =
        sample(&metrics(&lab, "scvm1").expect("metrics"), "reroute_kernel_tick_gap_worst", &[]);
    writer.wait_writes(now(), 20, SOON).expect("writes");
    let restarts_from = now();
    let mut before = standing(&lab).expect("standing");
    let (first_links, mut programs) = (links(&lab), links(&lab));
    assert!(before.admitted && first_links.len() == 6, "{before:?}, {first_links:?}");
    for i in 0..count {
        restart(&lab, i);
        let after = wait_for("the agent to answer", SOON, || standing(&lab)).expect("it is back");
        assert_eq!((after.epoch, &after.word), (before.epoch, &before.word), "restart {i}: admission");
        assert!(after.admitted, "restart {i}");
        assert!(before.counted.iter().zip(&after.counted).all(|(b, a)| b <= a), "{before:?} -> {after:?}");
        assert!(before.counted.last() < after.counted.last(), "restart {i}: the timer ticks");
        assert!(
            after.limit_us >= before.limit_us,
            "restart {i}: what was learnt is kept: {before:?} {after:?}"
        );
        // The same links, so that no packet went without; in each of them the new agent's program.
        let now_there = links(&lab);
        assert!(now_there.keys().eq(first_links.keys()), "restart {i}: {first_links:?} -> {now_there:?}");
        let stayed: Vec<_> = now_there.iter().filter(|(link, p)| programs.get(link) == Some(p)).collect();
        assert!(stayed.is_empty(), "restart {i}: programs not replaced: {stayed:?}");
        // Nothing holds the old ones any more, the timer's callback included.
        wait_for("the old programs' end", SOON, || {
            let left: Vec<_> = programs.values().filter(|p| loaded().contains(p)).collect();
            anyhow::ensure!(left.is_empty(), "{left:?} are still loaded");
            Ok(())
        })
        .expect("the old programs are gone");
        (before, programs) = (after, now_there);
    }
    let gap = writer.gap(restarts_from, None).expect("gap").longest_gap_ns as f64 / 1e6;
    let end = counts(&lab, &writer);
    let again = compare(&format!("{count} restarts"), &begin, &end);
    let sent_again = end.again.sent - begin.again.sent;
    let worst = sample(&metrics(&lab, "scvm1").expect("metrics"), "reroute_kernel_tick_gap_worst", &[]);
    println!("worst gap between two ticks, s: {worst_before:?} before, {worst:?} with the restarts");
    println!("longest gap between two completed writes: {gap:.1} ms");
    let ratio = end.at.since(begin.at).div_ceil(begin.at.since(start.at).max(1));
    assert!(
        again <= (again_before + 1) * ratio,
        "{again} segments had to be sent again, {again_before} in the baseline"
    );

    lab.wait_healthy(HEALTHY).expect("healthy");
    assert_eq!(login(&lab.view().expect("view"), 1).expect("login"), login_before, "no move");
    let report = writer.snapshot().expect("snapshot");
    assert_eq!(report.reconnects, 0, "one connection all along");
    assert_intact(writer);
    let operations = operations(&lab);
    let journal = lab.journal().expect("journal");
    let told = nothing_invented(&journal, begin.at, end.at, &operations);
    assert!(told <= sent_again, "{told} retransmissions told, {sent_again} made");
}

/// When each operation of the writer was issued and completed, boot ns (see the writer's `record.rs`).
fn operations(lab: &Lab) -> Vec<(u64, u64)> {
    let bytes = std::fs::read(lab.root().join("host1/operations.log")).expect("the writer's log");
    let word = |r: &[u8], at: usize| u64::from_le_bytes(r[at..at + 8].try_into().expect("8 bytes"));
    bytes.as_chunks::<40>().0.iter().map(|r| (word(r, 0), word(r, 8))).collect()
}

/// No move, no change of admission or health; and whatever call the kernel found too old, the writer waited for as long.
/// Gives the retransmissions that were told.
fn nothing_invented(journal: &[Entry], from: BootNs, to: BootNs, operations: &[(u64, u64)]) -> u64 {
    assert!(moves(journal, from).is_empty(), "{}", story(journal, from));
    let (mut slow, mut asked, mut told) = (0, 0, 0);
    for entry in journal.iter().filter(|e| (from..=to).contains(&e.at)) {
        let at = entry.at.0;
        match &entry.event {
            Event::KernelSignal { signal, age_ns, .. } if signal == "unanswered" => {
                let waited = |(issued, done): &&(u64, u64)| {
                    *issued <= at.saturating_sub(*age_ns) + SLACK_NS && *done + SLACK_NS >= at
                };
                assert!(operations.iter().any(|o| waited(&o)), "nobody waited {age_ns} ns: {entry:?}");
                slow += 1;
            }
            Event::KernelSignal { signal, age_ns, .. } if signal == "silent" => {
                // What was issued and completed in that time was answered in it; what only completed may have waited for a
                // CPU with its answer.
                let quiet_from = at.saturating_sub(*age_ns) + SLACK_NS;
                let answered = operations
                    .iter()
                    .find(|(issued, done)| (quiet_from..*done).contains(issued) && *done < at);
                assert_eq!(answered, None, "{entry:?}");
                slow += 1;
            }
            Event::KernelSignal { signal, .. } if signal.contains("_end") => {}
            Event::KernelSignal { signal, .. } if signal.starts_with("retransmit") => told += 1,
            Event::NullRpc { answered: true, .. } => asked += 1,
            Event::Started { .. } | Event::Fault { .. } | Event::ServerProcess { alive: true, .. } => {}
            other => panic!("{} at {}: {other:?}\n{}", entry.node, at, story(journal, from)),
        }
    }
    println!(
        "{slow} calls were slow, and the writer waited for each of them; the server was asked {asked} times; \
         {told} retransmissions were told"
    );
    told
}
