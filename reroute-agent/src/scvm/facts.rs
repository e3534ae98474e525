//! The kernel's tables in the machine's words.

use crate::sensor::{self, Sensor};
use reroute_common::{event, table};
use reroute_core::block::HolderFacts;
use reroute_core::ids::*;
use reroute_core::scvm::limits::Latency;
use reroute_core::scvm::*;

pub(super) fn outcome(result: Result<(), sensor::SensorError>) -> Outcome<()> {
    result.map_err(|e| e.to_string())
}

pub(super) fn answer(result: Result<sensor::Answer, sensor::SensorError>) -> Outcome<Answer> {
    let sensor::Answer { word, in_progress, orphans, stale } = result.map_err(|e| e.to_string())?;
    Ok(Answer { word, in_progress, orphans, stale })
}

pub(super) fn server_facts(server: &table::Server) -> ServerFacts {
    ServerFacts {
        incarnation: Incarnation(server.incarnation),
        listening: server.listening != 0,
        last_reply_at: BootNs(server.last_reply_at),
        waiting: server.waiting,
        silent: server.silent != 0,
        stalled_flows: server.stalled_flows,
        session_deadline: BootNs(server.session_deadline),
        session_deadline_no_agent: BootNs(server.session_deadline_no_agent),
    }
}

pub(super) fn client_facts(client: &table::Client) -> ClientFacts {
    ClientFacts {
        host: HostId(client.host),
        has_agent: client.has_agent != 0,
        word: reroute_common::admission::Word(client.word),
        affirm_deadline: BootNs(client.affirm_deadline),
        blocked_until: BootNs(client.blocked_until),
        connections: open_connections(client),
        in_progress: client.in_progress,
        replies: client.latency.iter().flatten().copied().fold(0, u64::wrapping_add),
    }
}

/// What Meta is told of a client that holds something here, or is kept away.
pub(super) fn holder(client: &table::Client, packet_at: Option<BootNs>, now: BootNs) -> Option<HolderFacts> {
    let word = reroute_common::admission::Word(client.word);
    let connections = open_connections(client);
    let blocked = client.drops[table::drop::BLOCKED];
    let idle = word.0 == 0 && connections == 0 && client.in_progress == 0 && client.orphans == 0;
    if client.host == 0 || (idle && blocked == 0) {
        return None;
    }
    Some(HolderFacts {
        host: HostId(client.host),
        epoch: Epoch(word.epoch()),
        word: rank_name(word.rank()).into(),
        connections,
        in_progress: client.in_progress,
        orphans: client.orphans,
        packet_age_ns: packet_at.map(|at| now.since(at)),
        pulse_age_ns: (client.pulse_at != 0).then(|| now.since(BootNs(client.pulse_at))),
        affirm_ns: BootNs(client.affirm_deadline).since(now),
        blocked_packets: blocked,
    })
}

pub(super) fn latency(client: &table::Client) -> Latency {
    Latency { host: HostId(client.host), replies: client.latency, limit_ns: client.unanswered_limit_ns }
}

/// Connections now open, as counted (a reset one is not counted as closed).
pub(super) fn open_connections(client: &table::Client) -> u32 {
    u32::try_from(client.opened.saturating_sub(client.closed + client.reset)).unwrap_or(u32::MAX)
}

/// `None`: an event of a kind this release does not know.
pub(super) fn signal(found: event::Event, sensor: &Sensor) -> Option<Signal> {
    use event::kind;
    let way = if found.way == event::way::IN { Way::In } else { Way::Out };
    let kind = match found.kind {
        kind::UNANSWERED => SignalKind::Unanswered,
        kind::UNANSWERED_END => SignalKind::UnansweredEnd,
        kind::SILENT => SignalKind::Silent,
        kind::SILENT_END => SignalKind::SilentEnd,
        kind::LISTENER_GONE => SignalKind::ListenerGone,
        kind::LISTENER_BACK => SignalKind::ListenerBack,
        kind::FIRST_REPLY => SignalKind::FirstReply(Epoch(found.limit)),
        kind::UNACKED => SignalKind::Unacked,
        kind::UNACKED_END => SignalKind::UnackedEnd,
        kind::RETRANSMIT => SignalKind::Retransmit(way),
        kind::RETRANSMIT_END => SignalKind::RetransmitEnd(way),
        kind::ZERO_WINDOW => SignalKind::ZeroWindow(way),
        kind::ZERO_WINDOW_END => SignalKind::ZeroWindowEnd(way),
        kind::RESET => SignalKind::Reset(way),
        kind::LOGIN_WANTED => SignalKind::LoginWanted,
        kind::LOGIN_WANTED_UNSEEN => SignalKind::LoginWantedUnseen,
        kind::RELEASED => SignalKind::Released(Epoch(found.limit)),
        other => {
            tracing::warn!(kind = other, "the kernel reports something this release does not know");
            return None;
        }
    };
    Some(Signal {
        kind,
        at: BootNs(found.at),
        host: sensor.host_of(found.client),
        waiting: found.waiting,
        age_ns: found.age_ns,
        limit_ns: found.limit,
    })
}
