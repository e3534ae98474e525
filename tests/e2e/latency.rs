//! What `flows` says of latency: against what tshark computes from a capture of the same traffic.

use crate::support::*;
use lab::control::Spec;
use lab::options::ServerKind;
use lab::{Lab, Options, wait_for};
use reroute_agent::scvm::latency::Quantiles;
use reroute_agent::scvm::report::{ClientLine, Flows};
use std::collections::BTreeMap;
use std::time::Duration;

/// Replies that a class must have for its quantiles to be compared.
const ENOUGH: u64 = 1000;
/// Bounds of the capture: kB, and seconds.
const MOST_KB: &str = "filesize:400000";
const MOST_SECONDS: &str = "duration:90";

pub fn flows(lab: &Lab, node: &str) -> anyhow::Result<Flows> {
    let out = lab.agent(node, &["flows", "--output", "json"])?;
    anyhow::ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(serde_json::from_slice(&out.stdout)?)
}

pub fn client(flows: &Flows, host: &str) -> ClientLine {
    flows.clients.iter().find(|c| c.host == host).unwrap_or_else(|| panic!("{host} in {flows:?}")).clone()
}

/// Bucket of a latency in µs, and of a bound that `flows` shows.
fn bucket_of(us: u64) -> i64 {
    us.max(1).ilog2().into()
}
fn bucket_of_bound(us: u64) -> i64 {
    bucket_of(us) - 1
}

/// Service response times by class as tshark finds them, µs, sorted.
fn tshark(lab: &Lab, file: &str) -> BTreeMap<&'static str, Vec<u64>> {
    let fields = ["-T", "fields", "-e", "rpc.program", "-e", "rpc.procedure", "-e", "rpc.time"];
    // The capture has each direction in its order, and the two of them, from two CPUs, not always.
    let order = ["-o", "tcp.reassemble_out_of_order:TRUE"];
    let decode = ["-n", "-d", "tcp.port==2049,rpc", "-Y", "rpc.time && tcp.srcport == 2049"];
    let argv = [["tshark", "-r", file].as_slice(), &order, &decode, &fields].concat();
    let out = lab.exec("scvm1", &argv).expect("tshark");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mut times: BTreeMap<&'static str, Vec<u64>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        // A frame with several replies has several of each.
        let columns: Vec<Vec<&str>> = line.split('\t').map(|c| c.split(',').collect()).collect();
        let [programs, procedures, seconds] = columns.as_slice() else { panic!("{line:?}") };
        assert!(programs.len() == seconds.len() && procedures.len() == seconds.len(), "{line:?}");
        for ((program, procedure), seconds) in programs.iter().zip(procedures).zip(seconds) {
            let class = match (*program, *procedure) {
                (_, "0") => "null",
                ("100003", "6") => "read",
                ("100003", "7" | "21") => "write",
                _ => "metadata",
            };
            let seconds: f64 = seconds.parse().unwrap_or_else(|_| panic!("{line:?}"));
            times.entry(class).or_default().push((seconds * 1e6) as u64);
        }
    }
    times.values_mut().for_each(|t| t.sort_unstable());
    times
}

/// By nearest rank, as `flows` takes it.
fn quantile(sorted: &[u64], per_mille: usize) -> u64 {
    sorted[(sorted.len() * per_mille).div_ceil(1000).max(1) - 1]
}

#[test]
fn latency_is_within_a_bucket_of_what_tshark_computes() {
    let lab = healthy(Options::named("latency"));
    let file = lab.root_inside().join("scvm1/nfs.pcapng");
    let file = file.to_string_lossy();
    let capture =
        ["dumpcap", "-q", "-i", "sto0", "-f", "tcp port 2049", "-B", "64", "-w", &file, "-a", MOST_KB];
    lab.run(Spec::new("scvm1/capture", &[capture.as_slice(), &["-a", MOST_SECONDS]].concat()))
        .expect("dumpcap");
    wait_for("the capture", SOON, || {
        let log = lab.node_log("scvm1/capture")?;
        anyhow::ensure!(log.contains("File: "), "{log}");
        Ok(())
    })
    .expect("capturing");

    // From its first call to its last, all in the capture.
    let flags = ["--outstanding", "2", "--reads", "1", "--metadata", "--interval-us", "1500"];
    let writer = lab.writer(1, 1, &flags).expect("writer");
    wait_for("enough calls of each class", Duration::from_secs(60), || {
        let latency = client(&flows(&lab, "scvm1")?, "host1").latency;
        let least = latency.read.replies.min(latency.write.replies).min(latency.metadata.replies);
        anyhow::ensure!(least >= 2 * ENOUGH, "{latency:?}");
        Ok(())
    })
    .expect("calls");
    assert_intact(writer);
    let text = lab.agent("scvm1", &["flows"]).expect("flows").stdout;
    println!("{}", String::from_utf8_lossy(&text));
    let kernel = client(&flows(&lab, "scvm1").expect("flows"), "host1");
    lab.signal("scvm1/capture", libc::SIGINT).expect("the end of the capture");
    lab.wait_process("scvm1/capture", SOON).expect("it ends");
    let log = lab.node_log("scvm1/capture").expect("log");
    assert!(!log.contains("maximum"), "the capture has reached a bound:\n{log}");
    let whole = log.lines().any(|l| l.starts_with("Packets received/dropped") && l.contains("/0 (pcap:0/"));

    let found = tshark(&lab, &file);
    let classes = [
        ("read", kernel.latency.read),
        ("write", kernel.latency.write),
        ("metadata", kernel.latency.metadata),
        ("null", kernel.latency.null),
    ];
    for (class, shown) in classes {
        let none = Vec::new();
        let times = found.get(class).unwrap_or(&none);
        compare(class, &shown, times, whole);
    }
    assert_eq!(kernel.calls.read, kernel.latency.read.replies, "every call was answered and timed");
    assert_eq!(kernel.calls.write, kernel.latency.write.replies);
    assert_eq!(kernel.calls.metadata, kernel.latency.metadata.replies);
}

fn compare(class: &str, shown: &Quantiles, times: &[u64], whole: bool) {
    let found = times.len() as u64;
    println!("{class}: flows {} replies, tshark {found}", shown.replies);
    if whole {
        // Of one record in a thousand tshark shows neither call nor reply; it shows none that was not there.
        assert!(
            (shown.replies * 99 / 100..=shown.replies).contains(&found),
            "{class}: {} {found}",
            shown.replies
        );
    }
    if shown.replies < ENOUGH {
        assert_eq!(class, "null", "{shown:?}");
        return;
    }
    for (name, per_mille, bound, judged) in [
        ("p50", 500, shown.p50_us, true),
        ("p99", 990, shown.p99_us, true),
        ("p99.9", 999, shown.p999_us, false),
    ] {
        let (bound, exact) = (bound.expect("replies"), quantile(times, per_mille));
        let apart = (bucket_of_bound(bound) - bucket_of(exact)).abs();
        println!("{class} {name}: flows <{bound} us, tshark {exact} us, {apart} buckets apart");
        assert!(!judged || apart <= 1, "{class} {name}: flows <{bound} us, tshark {exact} us");
    }
}

/// A call that is stuck is seen growing old, on its connection and for its client, and is gone when it is answered.
#[test]
fn the_oldest_waiting_call_is_shown() {
    let lab = healthy(Options::named("oldest").server(ServerKind::Controllable));
    let writer = lab.writer(1, 1, &["--outstanding", "2"]).expect("writer");
    lab.server("scvm1", "stuck write on").expect("stuck");
    wait_for("a call older than 100 ms", SOON, || {
        let flows = flows(&lab, "scvm1")?;
        let client = client(&flows, "host1");
        let oldest = client.oldest_call_ns.unwrap_or(0);
        anyhow::ensure!(oldest > 100_000_000, "{client:?}");
        let on_it: Vec<_> = flows.connections.iter().filter(|c| c.host == "host1" && c.waiting > 0).collect();
        assert!(on_it.iter().any(|c| c.oldest_call_ns == client.oldest_call_ns && c.stalled), "{on_it:?}");
        assert!(flows.clients.iter().filter(|c| c.host != "host1").all(|c| c.oldest_call_ns.is_none()));
        Ok(())
    })
    .expect("it is shown");
    let text = lab.agent("scvm1", &["flows"]).expect("flows").stdout;
    println!("{}", String::from_utf8_lossy(&text));
    assert!(String::from_utf8_lossy(&text).contains("STALLED"));
    lab.server("scvm1", "stuck write off").expect("unstuck");
    writer.wait_writes(now(), 50, SOON).expect("writes go on");
    assert_intact(writer);
    wait_for("no call waiting", SOON, || {
        let client = client(&flows(&lab, "scvm1")?, "host1");
        anyhow::ensure!(client.oldest_call_ns.is_none() && client.in_progress == 0, "{client:?}");
        Ok(())
    })
    .expect("answered");
}
