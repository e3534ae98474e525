//! `flows`: the SCVM's clients and connections.

use super::{Common, Output};
use crate::scvm::latency::Quantiles;
use crate::scvm::report::{ClientLine, ConnectionLine, Flows};
use crate::service;
use axum::http::Method;
use reroute_common::table::LATENCY_BUCKETS;
use std::time::Duration;

pub fn run(common: Common, watch: Option<u64>) -> anyhow::Result<()> {
    loop {
        let flows: Flows = service::ask_blocking(&common.socket, Method::GET, "/v1/flows")?;
        match common.output {
            Output::Json => println!("{}", serde_json::to_string(&flows)?),
            Output::Text => {
                if watch.is_some() {
                    // Home, and clear to the end: no flicker.
                    print!("\x1b[H\x1b[J");
                }
                print!("{}", render(&flows));
            }
        }
        match watch {
            Some(seconds) => std::thread::sleep(Duration::from_secs(seconds.max(1))),
            None => return Ok(()),
        }
    }
}

fn render(flows: &Flows) -> String {
    let mut out = format!("{}  mode {}\n", flows.node, flows.mode);
    for alarm in &flows.alarms {
        out += &format!("! {alarm}\n");
    }
    let clients = flows.clients.iter().map(client).collect();
    out += "\n";
    out += &table(
        &[
            "CLIENT", "EPOCH", "WORD", "SERVED", "CONNS", "CALLS", "WAITING", "OLDEST", "LIMIT", "ORPHANS",
            "P50", "P99", "P99.9",
        ],
        clients,
    );
    let classes: Vec<_> = flows.clients.iter().flat_map(classes).collect();
    if !classes.is_empty() {
        out += "\n";
        out += &table(&["CLIENT", "CLASS", "CALLS", "REPLIES", "P50", "P99", "P99.9"], classes);
    }
    out += "\n";
    let mut connections: Vec<&ConnectionLine> = flows.connections.iter().collect();
    // What waits longest is what one looks for.
    connections.sort_by_key(|c| std::cmp::Reverse(c.oldest_call_ns));
    let connections: Vec<_> = connections.into_iter().map(connection).collect();
    if connections.is_empty() {
        return out + "no connections\n";
    }
    out + &table(
        &["CLIENT", "REMOTE", "LOCAL", "NETWORK", "STATE", "AGE", "IDLE", "WAITING", "OLDEST CALL"],
        connections,
    )
}

fn client(c: &ClientLine) -> Vec<String> {
    let served = if c.admitted { "yes" } else { "no" };
    let mut cells = vec![
        c.host.clone(),
        c.epoch.to_string(),
        c.word.clone(),
        served.into(),
        c.connections.to_string(),
        (c.calls.read + c.calls.write + c.calls.metadata + c.calls.null).to_string(),
        c.in_progress.to_string(),
        c.oldest_call_ns.map_or("-".into(), duration),
        duration(c.unanswered_limit_us * 1000),
        c.orphans.to_string(),
    ];
    cells.extend(quantiles(&c.latency.all));
    cells
}

/// A row for each class that was ever called.
fn classes(c: &ClientLine) -> Vec<Vec<String>> {
    let (calls, latency) = (&c.calls, &c.latency);
    let all = [
        ("read", calls.read, &latency.read),
        ("write", calls.write, &latency.write),
        ("metadata", calls.metadata, &latency.metadata),
        ("null", calls.null, &latency.null),
    ];
    let called = all.into_iter().filter(|(_, calls, q)| *calls > 0 || q.replies > 0);
    called
        .map(|(class, calls, q)| {
            let mut cells = vec![c.host.clone(), class.into(), calls.to_string(), q.replies.to_string()];
            cells.extend(quantiles(q));
            cells
        })
        .collect()
}

/// Upper bounds of log2 buckets; the last bucket has only a lower one.
fn quantiles(q: &Quantiles) -> [String; 3] {
    const LAST_US: u64 = 1 << (LATENCY_BUCKETS - 1);
    [q.p50_us, q.p99_us, q.p999_us].map(|bound| match bound {
        None => "-".into(),
        Some(LAST_US) => format!(">={}", duration(LAST_US * 1000)),
        Some(us) => format!("<{}", duration(us * 1000)),
    })
}

fn connection(c: &ConnectionLine) -> Vec<String> {
    let state = match (c.open, c.stalled) {
        (false, _) => "closed",
        (true, true) => "STALLED",
        (true, false) => "open",
    };
    vec![
        c.host.clone(),
        c.remote.to_string(),
        c.local.to_string(),
        c.network.clone(),
        state.into(),
        duration(c.age_ns),
        duration(c.idle_ns),
        c.waiting.to_string(),
        c.oldest_call_ns.map_or("-".into(), duration),
    ]
}

/// Three digits are enough to compare by eye.
fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => format!("{}us", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{:.1}ms", ns as f64 / 1e6),
        1_000_000_000..120_000_000_000 => format!("{:.1}s", ns as f64 / 1e9),
        _ => format!("{}min", ns / 60_000_000_000),
    }
}

fn table(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let width = |i: usize| {
        rows.iter().filter_map(|r| r.get(i)).map(String::len).chain([heads[i].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let mut text = padded.collect::<Vec<_>>().join("  ").trim_end().to_string();
        text.push('\n');
        text
    };
    let body = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(heads.to_vec())).chain(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scvm::latency::Latencies;
    use crate::scvm::report::{Classes, Orphaned};

    fn quantile(p50_us: Option<u64>, p99_us: Option<u64>, p999_us: Option<u64>) -> Quantiles {
        Quantiles { replies: 0, p50_us, p99_us, p999_us }
    }

    #[test]
    fn a_stalled_connection_and_an_alarm_are_seen_at_a_glance() {
        let flows = Flows {
            node: "scvm-1".into(),
            mode: "bypass".into(),
            alarms: vec!["one-writer is suspended".into()],
            clients: vec![ClientLine {
                host: "host-1".into(),
                epoch: 5,
                word: "admitted".into(),
                admitted: true,
                connections: 1,
                calls: Classes { null: 0, read: 2, write: 1234, metadata: 4 },
                in_progress: 3,
                orphans: 0,
                orphaned: Orphaned::default(),
                oldest_call_ns: Some(61_000_000),
                unanswered_limit_us: 10_000,
                latency: Latencies {
                    all: Quantiles { replies: 1236, ..quantile(Some(128), Some(65_536), Some(8_388_608)) },
                    read: Quantiles { replies: 2, ..quantile(Some(128), Some(128), Some(128)) },
                    write: Quantiles { replies: 1234, ..quantile(Some(128), Some(65_536), Some(8_388_608)) },
                    ..Latencies::default()
                },
                p50_ns: Some(128_000),
                p99_ns: Some(65_536_000),
            }],
            connections: vec![ConnectionLine {
                host: "host-1".into(),
                remote: "10.10.85.11:700".parse().unwrap(),
                local: "192.168.33.2:2049".parse().unwrap(),
                network: "storage".into(),
                open: true,
                age_ns: 3_000_000_000,
                idle_ns: 60_000_000,
                waiting: 3,
                stalled: true,
                oldest_call_ns: Some(61_000_000),
            }],
        };
        let text = render(&flows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "! one-writer is suspended");
        let fields = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        assert_eq!(
            fields(lines[4]),
            [
                "host-1", "5", "admitted", "yes", "1", "1240", "3", "61.0ms", "10.0ms", "0", "<128us",
                "<65.5ms", ">=8.4s"
            ]
        );
        assert_eq!(fields(lines[7]), ["host-1", "read", "2", "2", "<128us", "<128us", "<128us"]);
        assert_eq!(fields(lines[8]), ["host-1", "write", "1234", "1234", "<128us", "<65.5ms", ">=8.4s"]);
        assert_eq!(fields(lines[9]), ["host-1", "metadata", "4", "0", "-", "-", "-"], "no row for null");
        assert_eq!(
            fields(lines[12]),
            [
                "host-1",
                "10.10.85.11:700",
                "192.168.33.2:2049",
                "storage",
                "STALLED",
                "3.0s",
                "60.0ms",
                "3",
                "61.0ms"
            ]
        );
        let column = |line: &str| line.find("STALLED").or(line.find("STATE"));
        assert!(lines.iter().all(|line| line.len() <= 120), "one screen:\n{text}");
        assert_eq!(column(lines[11]), column(lines[12]), "columns stand under their heads");
    }
}
