//! What insight scrapes, from the last snapshot. Labels are bounded: configured hosts, classes, reasons, signals.

use super::facts::open_connections;
use super::operator::{Shared, Snapshot};
use super::report::class_name;
use crate::clock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use reroute_common::table::{Client, LATENCY_BUCKETS, drop, mode, orphan, pulse_reject};
use reroute_common::{admission::Word, class};
use reroute_core::ids::{BootNs, HostId, SEC};
use std::fmt;
use std::sync::Arc;

#[derive(Debug)]
pub struct Metrics {
    shared: Arc<Shared>,
}

const ORPHANS: [(usize, &str); orphan::COUNT] = [
    (orphan::CALLS_LOST, "calls_lost"),
    (orphan::UNSEEN, "unseen"),
    (orphan::REPLIES_LOST, "replies_lost"),
    (orphan::ENDED, "ended"),
    (orphan::UNTRACKED, "untracked"),
];
const DROPS: [(usize, &str); drop::COUNT] = [
    (drop::NOT_ADMITTED, "not_admitted"),
    (drop::LEASE_EXPIRED, "lease_expired"),
    (drop::UNREGISTERED, "unregistered"),
    (drop::UNPARSABLE, "unparsable"),
    (drop::SHIELD, "shield"),
    (drop::OLD_PATH, "old_path"),
    (drop::BLOCKED, "blocked"),
];
const REJECTS: [(usize, &str); pulse_reject::COUNT] = [
    (pulse_reject::SIZE, "size"),
    (pulse_reject::VERSION, "version"),
    (pulse_reject::UNKNOWN_HOST, "unknown_host"),
    (pulse_reject::MAC, "mac"),
    (pulse_reject::WRONG_SCVM, "wrong_scvm"),
];

/// Writes families; all names get the prefix.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let name = format!("reroute_{name}");
        let mut family = self.0.encode_descriptor(&name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in rows {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        rows: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let name = format!("reroute_{name}");
        let mut family = self.0.encode_descriptor(&name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in rows {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let name = format!("reroute_{name}");
        let mut metric = self.0.encode_descriptor(&name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, u64, u64>(&value, None)
    }
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.number(name, help, None, value)
    }
    fn seconds(&mut self, name: &str, help: &str, ns: u64) -> fmt::Result {
        self.number(name, help, Some(Unit::Seconds), seconds(ns))
    }
    fn number(&mut self, name: &str, help: &str, unit: Option<Unit>, value: f64) -> fmt::Result {
        let name = format!("reroute_{name}");
        self.0.encode_descriptor(&name, help, unit.as_ref(), MetricType::Gauge)?.encode_gauge(&value)
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / SEC as f64
}

/// Upper bound of a kernel latency bucket, seconds; the last has none.
fn bucket_bound(i: usize) -> f64 {
    if i + 1 == LATENCY_BUCKETS { f64::INFINITY } else { (1u64 << (i + 1)) as f64 / 1e6 }
}

/// The kernel keeps no sum: each reply counts with the middle of its bucket.
fn latency_sum(buckets: &[u64; LATENCY_BUCKETS]) -> f64 {
    buckets.iter().enumerate().map(|(i, n)| *n as f64 * 1.5 * (1u64 << i) as f64 / 1e6).sum()
}

impl Metrics {
    pub fn new(shared: Arc<Shared>) -> Metrics {
        Metrics { shared }
    }

    fn name(&self, client: &Client) -> String {
        self.shared.host_name(HostId(client.host))
    }

    fn clients(&self, out: &mut Out, snapshot: &Snapshot) -> fmt::Result {
        let named: Vec<(String, &Client)> = snapshot.clients.iter().map(|c| (self.name(c), c)).collect();
        let each = |value: fn(&Client) -> u64| {
            named.iter().map(move |(name, c)| ([("host", name.as_str())], value(c))).collect::<Vec<_>>()
        };
        let now = |value: fn(&Client) -> u64| {
            each(value).into_iter().map(|(l, v)| (l, v as f64)).collect::<Vec<_>>()
        };
        let ways = |rx: fn(&Client) -> u64, tx: fn(&Client) -> u64| {
            named
                .iter()
                .flat_map(move |(name, c)| {
                    [("receive", rx(c)), ("transmit", tx(c))]
                        .map(|(way, n)| ([("host", name.as_str()), ("direction", way)], n))
                })
                .collect::<Vec<_>>()
        };
        let classes = |value: fn(&Client, usize) -> u64| {
            named
                .iter()
                .flat_map(move |(name, c)| {
                    (0..class::COUNT)
                        .map(move |i| ([("host", name.as_str()), ("class", class_name(i))], value(c, i)))
                })
                .collect::<Vec<_>>()
        };
        out.gauges("client_connections", "Open NFS connections", None, now(|c| open_connections(c).into()))?;
        out.counters("client_connections_opened", "NFS connections opened", None, each(|c| c.opened))?;
        out.counters("client_connections_closed", "NFS connections closed by FIN", None, each(|c| c.closed))?;
        out.counters("client_connections_reset", "NFS connections ended by RST", None, each(|c| c.reset))?;
        out.counters(
            "client_packets",
            "TCP segments of NFS",
            None,
            ways(|c| c.rx_packets, |c| c.tx_packets),
        )?;
        out.counters(
            "client_traffic",
            "Bytes of NFS",
            Some(Unit::Bytes),
            ways(|c| c.rx_bytes, |c| c.tx_bytes),
        )?;
        out.counters(
            "client_retransmitted_segments",
            "Segments seen again",
            None,
            ways(|c| c.rx_retransmitted, |c| c.tx_retransmitted),
        )?;
        out.counters("rpc_calls", "NFS calls seen", None, classes(|c, i| c.calls[i]))?;
        out.counters(
            "rpc_replies",
            "NFS replies matched to their calls",
            None,
            classes(|c, i| c.replies[i]),
        )?;
        out.gauges(
            "calls_in_progress",
            "Calls accepted and not answered",
            None,
            now(|c| c.in_progress.into()),
        )?;
        out.gauges(
            "calls_orphaned",
            "Calls whose connection is gone or lost sight of",
            None,
            now(|c| c.orphans.into()),
        )?;
        out.counters(
            "streams_lost",
            "Times the record marks of a connection were lost",
            None,
            each(|c| c.streams_lost),
        )?;
        let orphaned = named.iter().flat_map(|(name, c)| {
            ORPHANS.map(|(i, cause)| ([("host", name.as_str()), ("cause", cause)], c.orphaned[i]))
        });
        out.counters("orphaned_calls", "Calls that became orphans", None, orphaned)?;
        out.counters("pulses", "Pulses answered", None, each(|c| c.pulses))?;
        let drops = named.iter().flat_map(|(name, c)| {
            DROPS.map(|(i, reason)| ([("host", name.as_str()), ("reason", reason)], c.drops[i]))
        });
        out.counters("dropped_packets", "Packets dropped by admission", None, drops)?;
        out.counters(
            "would_drop_packets",
            "Packets that shadow mode let pass",
            None,
            each(|c| c.would_drop),
        )?;
        out.gauges(
            "admitted",
            "1: this host is admitted here",
            None,
            now(|c| Word(c.word).is_admitted().into()),
        )?;
        out.gauges(
            "admission_epoch",
            "Epoch of this host's admission word",
            None,
            now(|c| Word(c.word).epoch()),
        )?;

        let limits = named.iter().map(|(name, c)| {
            let limit = match c.unanswered_limit_ns {
                0 => snapshot.config.unanswered_limit_ns,
                own => own,
            };
            ([("host", name.as_str())], seconds(limit))
        });
        out.gauges(
            "unanswered_limit",
            "A call of this host older than this raises unanswered; it follows the host's latency",
            Some(Unit::Seconds),
            limits,
        )?;

        let mut family = out.0.encode_descriptor(
            "reroute_rpc_latency",
            "Time from a call to its reply, seen in the kernel; the sum is estimated from the buckets",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (name, client) in &named {
            for (i, counts) in client.latency.iter().enumerate() {
                let buckets: Vec<_> = counts.iter().enumerate().map(|(b, n)| (bucket_bound(b), *n)).collect();
                let labels = [("host", name.as_str()), ("class", class_name(i))];
                family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                    latency_sum(counts),
                    counts.iter().sum(),
                    &buckets,
                    None,
                )?;
            }
        }
        Ok(())
    }

    fn server(&self, out: &mut Out, snapshot: &Snapshot) -> fmt::Result {
        let (server, config, machine) = (&snapshot.server, &snapshot.config, &snapshot.machine);
        let now = clock::now();
        let health = &machine.health;
        let flag = |b: bool| f64::from(u8::from(b));
        let unanswered = snapshot.clients.iter().map(|c| c.stalls).sum();
        let stalls =
            [([("signal", "unanswered")], unanswered), ([("signal", "silent")], server.silent_count)];
        out.counters("stalls", "Stall signals raised", None, stalls)?;
        out.gauge(
            "stalled_connections",
            "Connections with a call over its limit",
            server.stalled_flows.into(),
        )?;
        out.gauge("calls_waiting", "Calls waiting, all clients", server.waiting.into())?;
        out.seconds("oldest_call_age", "Age of the oldest call waiting", server.oldest_call_age_ns)?;
        let rejects = REJECTS.map(|(i, reason)| ([("reason", reason)], server.pulse_rejects[i]));
        out.counters("pulses_rejected", "Pulses not answered", None, rejects)?;
        out.counter("untracked_calls", "Calls that could not be followed", server.untracked_calls)?;
        out.counter(
            "untracked_connections",
            "Connections that could not be followed",
            server.untracked_flows,
        )?;
        out.counter("evicted_connections", "Connections dropped from the table", server.evicted_flows)?;
        out.counter("lost_events", "Kernel events that found the ring full", server.lost_events)?;
        out.counter("journal_lost", "Journal entries lost", snapshot.journal_lost)?;

        out.gauge("server_process_alive", "1: the server process is alive", flag(health.process_alive))?;
        out.gauge("server_listening", "1: a socket listens on the service port", flag(health.listening))?;
        out.gauge("server_stalled", "1: calls go unanswered", flag(health.stalled))?;
        out.gauge("server_null_failed", "1: the local NULL RPC failed", flag(health.null_failed))?;
        out.gauge("enforcing", "1: admission is enforced in the kernel", flag(config.mode == mode::ENFORCE))?;
        out.gauge(
            "bypass",
            "1: an operator suspended enforcement: one-writer is not kept",
            flag(health.bypass),
        )?;
        out.gauge(
            "held_clients",
            "Clients without an agent that call here and are not served",
            machine.held.len() as f64,
        )?;
        out.seconds(
            "held_longest",
            "How long the first of them has stood still",
            machine.held.iter().map(|h| h.waits_ns).max().unwrap_or(0),
        )?;
        let carriers = ["private", "storage", "management"].map(|network| {
            let lost = health.no_carrier.iter().any(|n| n.to_string() == network);
            ([("network", network)], flag(!lost))
        });
        out.gauges("carrier", "1: the NIC of this network has carrier", None, carriers)?;
        out.gauge("session_open", "1: the session with Meta is open", flag(machine.session == "open"))?;
        out.seconds(
            "session_lease",
            "What remains of the session lease",
            BootNs(server.session_deadline).since(now),
        )?;
        out.gauge(
            "session_term",
            "Meta's term of the session, 0 without one",
            machine.term.map_or(0, |t| t.0) as f64,
        )?;
        out.counter("kernel_ticks", "Runs of the kernel timer", server.ticks)?;
        out.seconds(
            "kernel_tick_gap_worst",
            "Longest time between two runs of the kernel timer",
            server.worst_tick_gap_ns,
        )?;
        out.seconds(
            "kernel_tick_age",
            "Since the kernel timer last ran",
            snapshot.at.since(BootNs(server.tick_at)),
        )?;
        out.seconds(
            "agent_age",
            "Since the agent last told the kernel that it is alive",
            snapshot.at.since(BootNs(config.agent_seen_at)),
        )?;
        out.seconds("snapshot_age", "Age of what this scrape shows", now.since(snapshot.at))
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let Some(snapshot) = self.shared.snapshot() else { return Ok(()) };
        let mut out = Out(encoder);
        self.clients(&mut out, &snapshot)?;
        self.server(&mut out, &snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::super::operator::tests::{sample, shared};
    use super::*;
    use prometheus_client::registry::Registry;

    #[test]
    fn a_scrape_shows_the_kernels_numbers_in_base_units() {
        let shared = Arc::new(shared());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Metrics::new(shared.clone())));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(!text.contains("reroute_admitted"), "no snapshot, no numbers");

        shared.put(sample());
        text.clear();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"reroute_rpc_calls_total{host="host-1",class="write"} 7"#,
            r#"reroute_client_traffic_bytes_total{host="host-1",direction="receive"} 4096"#,
            r#"reroute_dropped_packets_total{host="unregistered",reason="unregistered"} 3"#,
            r#"reroute_admitted{host="host-1"} 1.0"#,
            r#"reroute_admission_epoch{host="host-1"} 5.0"#,
            // Bucket 3 is [8, 16) µs, bucket 10 [1024, 2048) µs: cumulative, in seconds.
            r#"reroute_rpc_latency_seconds_bucket{le="0.000016",host="host-1",class="write"} 5"#,
            r#"reroute_rpc_latency_seconds_bucket{le="0.002048",host="host-1",class="write"} 7"#,
            r#"reroute_rpc_latency_seconds_bucket{le="+Inf",host="host-1",class="write"} 7"#,
            r#"reroute_rpc_latency_seconds_count{host="host-1",class="write"} 7"#,
            r#"reroute_stalls_total{signal="silent"} 2"#,
            r#"reroute_pulses_rejected_total{reason="mac"} 9"#,
            r#"reroute_unanswered_limit_seconds{host="host-1"} 0.02"#,
            "reroute_bypass 0.0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
        }
    }
}
