//! The writer against the lab's access server: each must see what the other does wrong, and nothing else.
//! Needs root (network namespaces) and `ip`, `ss`, `nsenter`.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod bench;

use bench::{Bench, Writer, wait};
use rustix::process::Signal;
use serde_json::Value;

fn number(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"))
}

fn clean(writer: Writer) -> Value {
    let (report, status) = writer.stop();
    assert_eq!((number(&report, "lost_writes"), number(&report, "stale_writes")), (0, 0), "{report}");
    assert_eq!(number(&report, "outstanding"), 0, "{report}");
    assert!(report["metadata"].is_null() || report["metadata"]["damage"] == 0, "{report}");
    assert!(status.success());
    report
}

#[test]
fn a_clean_run_loses_nothing() {
    let bench = Bench::new();
    bench.epoch("a", Some(1));
    let server = bench.nfsd("a", &[]);
    // Small files: every block comes round many times.
    let writer =
        bench.writer(&["--outstanding", "4", "--metadata", "--max-bytes", "262144", "--hot-slots", "32"]);
    writer.progress(2000);
    assert_eq!(writer.ask("nonsense")["error"], r#""nonsense" is none of: snapshot, gap FROM TO, stop"#);
    let report = clean(writer);
    assert!(number(&report["metadata"], "commits") > 10, "{report}");
    assert_eq!(number(&report, "reconnects"), 0);
    let applied = bench.applied();
    assert_eq!((number(&applied, "late_epoch"), number(&applied, "late_sequence")), (0, 0), "{applied}");
    assert_eq!(number(&server.ask("stats"), "refused_stale"), 0);
}

/// Server a is stopped with calls in its queue; the client goes on at server b, at a higher epoch; a wakes up.
fn late_calls(flags: &[&str]) -> (Bench, bench::Nfsd, bench::Nfsd, Writer) {
    let bench = Bench::new();
    bench.epoch("a", Some(1));
    bench.epoch("b", None);
    let (a, b) = (bench.nfsd("a", flags), bench.nfsd("b", flags));
    let writer = bench.writer(&["--outstanding", "4"]);
    writer.progress(300);
    let before = reroute_agent::clock::now().0;
    // A stop alone may catch every call applied and only its reply missing.
    a.ask("stuck write on");
    wait("the writer to be stuck", || {
        let report = writer.ask("snapshot");
        (number(&report, "at") - number(&report, "last_completed_at") > 50_000_000).then_some(())
    });
    a.process.signal(Signal::STOP);
    bench.epoch("a", None);
    bench.epoch("b", Some(2));
    bench.route("b");
    bench.destroy_sockets();
    // More than a lap of the hot ring: what a still holds is older than what is there.
    writer.progress(1200);
    println!("longest gap over the move: {:.1} ms", writer.gap(before));
    assert!(b.replies("write") >= 1200);
    a.process.signal(Signal::CONT);
    a.ask("stuck write off");
    (bench, a, b, writer)
}

#[test]
fn late_calls_are_refused_by_the_storage() {
    let (bench, a, _b, writer) = late_calls(&[]);
    wait("a's late writes to be refused", || (number(&a.ask("stats"), "refused_stale") == 4).then_some(()));
    writer.progress(300);
    let report = clean(writer);
    assert!(number(&report, "reconnects") >= 1);
    let applied = bench.applied();
    assert_eq!((number(&applied, "late_epoch"), number(&applied, "late_sequence")), (0, 0), "{applied}");
    assert_eq!(applied["epochs"]["1"], 2);
}

#[test]
fn late_calls_do_damage_without_the_check() {
    let (bench, a, _b, writer) = late_calls(&["--no-storage-check"]);
    wait("late writes to be applied", || (number(&bench.applied(), "late_sequence") > 0).then_some(()));
    writer.progress(300);
    let (report, status) = writer.stop();
    assert!(number(&report, "stale_writes") > 0, "{report}");
    assert_eq!(report["findings"][0]["kind"], "stale");
    assert_eq!(status.code(), Some(1));
    assert_eq!(number(&a.ask("stats"), "refused_stale"), 0);
    assert!(number(&bench.applied(), "late_epoch") > 0);
}

/// Wherever a server is stopped, be it in the middle of an operation, the other one goes on at once.
#[test]
fn moves_to_and_fro_between_stopped_servers_lose_nothing() {
    let bench = Bench::new();
    bench.epoch("a", Some(1));
    bench.epoch("b", None);
    let servers = [("a", bench.nfsd("a", &[])), ("b", bench.nfsd("b", &[]))];
    let writer = bench.writer(&["--outstanding", "4", "--metadata"]);
    writer.progress(200);
    for epoch in 2..14 {
        let ((old, stopped), (new, _)) = (&servers[epoch as usize % 2], &servers[(epoch as usize + 1) % 2]);
        let before = reroute_agent::clock::now().0;
        stopped.process.signal(Signal::STOP);
        bench.epoch(old, None);
        bench.epoch(new, Some(epoch));
        bench.route(new);
        bench.destroy_sockets();
        writer.progress(200);
        let gap = writer.gap(before);
        println!("to {new} at epoch {epoch}: {gap:.1} ms");
        assert!(gap < 3000.0);
        stopped.process.signal(Signal::CONT);
        writer.progress(50);
    }
    clean(writer);
    let applied = bench.applied();
    assert_eq!((number(&applied, "late_epoch"), number(&applied, "late_sequence")), (0, 0), "{applied}");
}

#[test]
fn slow_and_stuck_classes_hold_up_only_themselves() {
    let bench = Bench::new();
    bench.epoch("a", Some(1));
    let server = bench.nfsd("a", &[]);
    let writer = bench.writer(&["--metadata", "--outstanding", "2"]);
    writer.progress(50);
    assert_eq!(server.ask("slow metadata 400")["ok"], true);
    let metadata = server.replies("metadata");
    writer.progress(300);
    // In 400 ms there is room for hundreds of writes, and for a call that was under way.
    assert!(server.replies("metadata") <= metadata + 3);
    server.ask("clear");

    let before = reroute_agent::clock::now().0;
    server.ask("stuck write on");
    wait("the writer to be stuck", || (writer.gap(before) > 100.0).then_some(()));
    let replies = server.replies("write");
    assert!(bench.null() < std::time::Duration::from_secs(2), "NULL is answered while writes hang");
    assert_eq!(server.replies("write"), replies);
    server.ask("stuck write off");
    writer.progress(100);
    let report = clean(writer);
    assert_eq!(number(&report, "reconnects"), 0, "a stuck call is waited for, not sent again");
    assert!(server.ask("slow sideways 3")["error"].as_str().unwrap().contains("is no class"));
}

#[test]
fn a_killed_server_forgets_what_was_not_committed_and_the_writer_notices() {
    let bench = Bench::new();
    bench.epoch("a", Some(1));
    // UNSTABLE data dies with the server: only a client that looks at the verifier writes it again.
    let mut server = bench.nfsd("a", &["--volatile"]);
    let writer = bench.writer(&["--metadata", "--outstanding", "2"]);
    let mut kills = 0;
    loop {
        writer.progress(40);
        if number(&writer.ask("snapshot")["metadata"], "verifier_resends") > 0 {
            break;
        }
        kills += 1;
        assert!(kills < 40, "a new verifier was never met");
        server.process.signal(Signal::KILL);
        drop(server);
        server = bench.nfsd("a", &["--volatile"]);
    }
    let report = clean(writer);
    assert!(number(&report, "reconnects") >= 1, "{report}");
    drop(server);
}

/// libnfs by itself would take the new connection's first bytes for the rest of the reply.
#[test]
fn half_a_reply_ends_with_its_connection() {
    let bench = Bench::new();
    bench.epoch("a", Some(1));
    let _server = bench.nfsd("a", &[]);
    let writer = bench.writer(&["--outstanding", "2", "--reads", "1"]);
    writer.progress(50);
    for _ in 0..3 {
        let before = reroute_agent::clock::now().0;
        bench.halve_replies(true);
        // Two retransmissions: of what was too long at first, its first segments have come.
        wait("half a reply", || (writer.gap(before) > 900.0).then_some(()));
        bench.destroy_sockets();
        bench.halve_replies(false);
        writer.progress(200);
    }
    let report = clean(writer);
    assert!((3..50).contains(&number(&report, "reconnects")), "{report}");
}

#[test]
fn a_client_without_an_epoch_is_turned_away() {
    let bench = Bench::new();
    bench.epoch("a", None);
    let server = bench.nfsd("a", &[]);
    let mut writer = bench.writer(&["--mount-seconds", "1"]);
    let (status, report) = writer.end();
    assert_eq!((status.code(), report), (Some(2), None));
    assert!(number(&server.ask("stats"), "refused_unknown") > 0);
    assert!(!bench.store().join("writer-1").exists());
}

#[test]
fn a_server_that_does_not_answer_the_mount_is_given_up() {
    let bench = Bench::new();
    bench.epoch("a", Some(1));
    let server = bench.nfsd("a", &[]);
    server.process.signal(Signal::STOP);
    let (status, report) = bench.writer(&["--mount-seconds", "1"]).end();
    assert_eq!((status.code(), report), (Some(2), None));
}

/// Another client (libnfs-utils) reads the same: LOOKUP, READ and READDIRPLUS over several replies.
#[test]
fn what_was_written_can_be_read_by_nfs() {
    let bench = Bench::new();
    bench.epoch("a", Some(1));
    let server = bench.nfsd("a", &[]);
    let writer = bench.writer(&["--outstanding", "4", "--metadata"]);
    writer.progress(500);
    clean(writer);
    let backing = std::fs::read(bench.store().join("writer-1/append")).unwrap();
    assert!(backing.len() > 128 << 10, "more than one READ");
    assert!(bench.client("nfs-cat", "/export/writer-1/append").stdout == backing);
    let many = bench.store().join("many");
    std::fs::create_dir(&many).unwrap();
    for n in 0..2000 {
        std::fs::write(many.join(format!("a file with a rather long name, number {n}")), "").unwrap();
    }
    let listing = bench.client("nfs-ls", "/export/many");
    let text = String::from_utf8_lossy(&listing.stdout);
    assert_eq!(text.lines().filter(|l| l.contains("rather long name")).count(), 2000);
    assert!(number(&server.ask("stats")["calls"], "read") > 1);
}

/// What libnfs makes of each way in which a connection can end. The bounds are wide; the figures are printed.
#[test]
fn the_writer_comes_back_however_its_connection_ended() {
    let bench = Bench::new();
    bench.epoch("a", Some(1));
    bench.epoch("b", Some(1));
    let mut a = bench.nfsd("a", &[]);
    let writer = bench.writer(&["--outstanding", "2", "--metadata"]);
    writer.progress(300);
    let outage = std::time::Duration::from_millis(300);
    let measure = |what: &str, limit_ms: f64, fault: &mut dyn FnMut()| {
        let before = writer.ask("snapshot");
        fault();
        writer.progress(200);
        let after = writer.ask("snapshot");
        let gap = writer.gap(number(&before, "at"));
        let more = |name: &str| number(&after, name) - number(&before, name);
        let (reconnects, attempts, lost) = (more("reconnects"), more("connect_attempts"), more("calls_lost"));
        println!(
            "{what}: gap {gap:.1} ms, {reconnects} reconnects, {attempts} failed attempts, {lost} calls lost"
        );
        assert!(gap < limit_ms, "{what}: {gap} ms");
        assert!(reconnects >= 1, "{what}");
    };
    measure("client's socket destroyed", 2000.0, &mut || bench.destroy_sockets());
    measure("server's socket destroyed (RST)", 2000.0, &mut || bench.destroy_server_sockets("a"));
    measure("server killed, port refuses for 300 ms", 3000.0, &mut || {
        a.process.signal(Signal::KILL);
        std::thread::sleep(outage);
        a = bench.nfsd("a", &[]);
    });
    measure("no route for 300 ms, socket destroyed", 3000.0, &mut || {
        bench.no_route();
        bench.destroy_sockets();
        std::thread::sleep(outage);
        bench.route("a");
    });
    measure("SYNs into a hole for 300 ms, then the socket destroyed", 3000.0, &mut || {
        bench.hole("a", true);
        bench.destroy_sockets();
        std::thread::sleep(outage);
        bench.hole("a", false);
        bench.destroy_sockets();
    });
    clean(writer);
}
