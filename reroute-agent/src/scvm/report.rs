//! `/v1/flows`: clients and connections, as JSON for the operator's verb.

use super::latency::Latencies;
use super::operator::Snapshot;
use reroute_common::admission::Word;
use reroute_common::flow::{Flow, call, raised, state};
use reroute_common::table::orphan;
use reroute_common::{class, network};
use reroute_core::ids::{BootNs, HostId};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flows {
    pub node: String,
    pub mode: String,
    pub alarms: Vec<String>,
    pub clients: Vec<ClientLine>,
    pub connections: Vec<ConnectionLine>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientLine {
    /// Name of the host; `unregistered` gathers everybody else.
    pub host: String,
    pub epoch: u64,
    /// `held`, `admitted`, `released` or `fenced`.
    pub word: String,
    /// Admitted, and a lease runs.
    pub admitted: bool,
    pub connections: u32,
    pub calls: Classes,
    pub in_progress: u32,
    pub orphans: u32,
    /// What ever became an orphan here, by cause: for those who ask why a host stays.
    pub orphaned: Orphaned,
    /// The oldest call without a reply on any of its connections.
    pub oldest_call_ns: Option<u64>,
    /// A call older than this raises `unanswered`: it follows the client's latency.
    pub unanswered_limit_us: u64,
    pub latency: Latencies,
    /// `latency.all`, ns.
    pub p50_ns: Option<u64>,
    pub p99_ns: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    pub null: u64,
    pub read: u64,
    pub write: u64,
    pub metadata: u64,
}

/// Calls by the cause that made them orphans ([`orphan`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphaned {
    pub calls_lost: u64,
    pub unseen: u64,
    pub replies_lost: u64,
    pub ended: u64,
    pub untracked: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectionLine {
    pub host: String,
    pub remote: SocketAddr,
    pub local: SocketAddr,
    /// `private`, `storage` or `management`.
    pub network: String,
    pub open: bool,
    pub age_ns: u64,
    pub idle_ns: u64,
    pub waiting: u32,
    /// `unanswered` is raised.
    pub stalled: bool,
    pub oldest_call_ns: Option<u64>,
}

pub fn class_name(index: usize) -> &'static str {
    match index as u32 {
        class::NULL => "null",
        class::READ => "read",
        class::WRITE => "write",
        _ => "metadata",
    }
}

fn network_name(number: u32) -> &'static str {
    match number {
        network::PRIVATE => "private",
        network::STORAGE => "storage",
        _ => "management",
    }
}

fn address(bytes: [u8; 16], port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(), port)
}

fn oldest_call(flow: &Flow, now: BootNs) -> Option<u64> {
    flow.calls.iter().filter(|c| **c != 0).map(|c| call::age_ns(*c, now.0)).max()
}

/// `flows` (each with its client) were read when `snapshot` was taken.
pub fn flows(
    node: &str,
    name: impl Fn(HostId) -> String,
    snapshot: &Snapshot,
    flows: &[(HostId, Flow)],
) -> Flows {
    let now = snapshot.at;
    let clients = snapshot.clients.iter().map(|client| {
        let word = Word(client.word);
        let session = if client.has_agent != 0 {
            snapshot.server.session_deadline
        } else {
            snapshot.server.session_deadline_no_agent
        };
        let calls = |class: u32| client.calls[class as usize];
        let own = flows.iter().filter(|(host, _)| host.0 == client.host);
        let latency = Latencies::of(client);
        let limit_ns = match client.unanswered_limit_ns {
            0 => snapshot.config.unanswered_limit_ns,
            own => own,
        };
        ClientLine {
            host: name(HostId(client.host)),
            epoch: word.epoch(),
            word: reroute_core::scvm::rank_name(word.rank()).into(),
            admitted: word.is_admitted() && session.max(client.affirm_deadline) > now.0,
            connections: super::facts::open_connections(client),
            calls: Classes {
                null: calls(class::NULL),
                read: calls(class::READ),
                write: calls(class::WRITE),
                metadata: calls(class::METADATA),
            },
            in_progress: client.in_progress,
            orphans: client.orphans,
            orphaned: Orphaned {
                calls_lost: client.orphaned[orphan::CALLS_LOST],
                unseen: client.orphaned[orphan::UNSEEN],
                replies_lost: client.orphaned[orphan::REPLIES_LOST],
                ended: client.orphaned[orphan::ENDED],
                untracked: client.orphaned[orphan::UNTRACKED],
            },
            oldest_call_ns: own.filter_map(|(_, flow)| oldest_call(flow, now)).max(),
            unanswered_limit_us: limit_ns / 1000,
            p50_ns: latency.all.p50_us.map(|us| us * 1000),
            p99_ns: latency.all.p99_us.map(|us| us * 1000),
            latency,
        }
    });
    let shown = flows.iter().filter(|(_, flow)| matches!(flow.state, state::OPEN | state::CLOSED));
    let connections = shown.map(|(host, flow)| ConnectionLine {
        host: name(*host),
        remote: address(flow.key.remote, flow.key.remote_port),
        local: address(flow.key.local, flow.key.local_port),
        network: network_name(flow.key.network).into(),
        open: flow.state == state::OPEN,
        age_ns: now.since(BootNs(flow.opened_at)),
        idle_ns: now.since(BootNs(flow.last_at)),
        waiting: flow.waiting,
        stalled: flow.raised & raised::UNANSWERED != 0,
        oldest_call_ns: oldest_call(flow, now),
    });
    Flows {
        node: node.to_string(),
        mode: snapshot.machine.mode.clone(),
        alarms: snapshot.machine.alarms.clone(),
        clients: clients.collect(),
        connections: connections.collect(),
    }
}
