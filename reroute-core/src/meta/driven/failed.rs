//! Whether the place an ESXi host is at has failed: as a host with an agent would judge it, on what Meta is told by
//! others. One conclusive piece, or two of independent observers.
//!
//! Keepalives that stay away are one piece: the agent may have died, and the server serves on. So other SCVMs are asked
//! whether that one answers them, and hosts say what they find anyway. When the lease of clients without an agent is
//! over, nobody can be served there whatever lives, and that is conclusive.

use super::super::login::push;
use super::super::{Effect, SessionMaster};
use crate::ids::*;
use crate::proto::*;
use std::collections::{BTreeMap, BTreeSet};

/// Other SCVMs are asked this often while keepalives of one are late.
const ASK_EVERY_NS: u64 = 200 * MS;
/// What an observer said holds for so long.
const FRESH_NS: u64 = SEC;
/// Hosts report once a second.
const REPORT_FRESH_NS: u64 = 1500 * MS;

/// What SCVMs say of each other, when they were asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Peers {
    /// When others were last asked for this one.
    asked: BTreeMap<ScvmId, BootNs>,
    /// This one answers that one by no network: since then.
    silent: BTreeMap<(ScvmId, ScvmId), BootNs>,
}

impl SessionMaster {
    /// Asks for those that an ESXi host is at, and whose keepalives are late.
    pub(super) fn ask_peers(
        &self,
        peers: &mut Peers,
        places: &BTreeSet<ScvmId>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        peers.silent.retain(|_, at| now.since(*at) < FRESH_NS);
        for &scvm in places {
            let Some(session) = self.sessions.get(&scvm) else { continue };
            let renewed = session.renewed.unwrap_or(self.started);
            let late = now.since(renewed) > 3 * self.settings.keepalive_ns;
            let asked = peers.asked.get(&scvm).is_some_and(|at| now.since(*at) < ASK_EVERY_NS);
            if !late || asked {
                continue;
            }
            peers.asked.insert(scvm, now);
            for (&other, _) in self.sessions.iter().filter(|(other, s)| **other != scvm && s.is_live()) {
                push(NodeId::Scvm(other), Order::AskPeer { scvm }, out);
            }
        }
    }

    pub(in crate::meta) fn peer_silent(
        &mut self,
        by: ScvmId,
        of: ScvmId,
        now: BootNs,
    ) -> Result<(), Refusal> {
        if !self.sessions.contains_key(&of) {
            return Err(Refusal::UnknownScvm { scvm: of });
        }
        let peers = &mut self.driven.peers;
        let asked = peers.asked.get(&of).is_some_and(|at| now.since(*at) < FRESH_NS);
        if asked && by != of {
            peers.silent.insert((of, by), now);
        }
        Ok(())
    }

    /// Why the place has failed; empty: it has not.
    pub(super) fn failure(&self, place: Path, peers: &Peers, now: BootNs) -> Vec<Evidence> {
        let Some(session) = self.sessions.get(&place.scvm) else { return Vec::new() };
        let server = NodeId::Scvm(place.scvm);
        let piece = |kind, observer, path, at| Evidence { kind, observer, path, at };
        let health = &session.health;
        if session.is_live() {
            let said = session.renewed.unwrap_or(now);
            let told = |kind| vec![piece(kind, server, None, said)];
            if !health.process_alive {
                return told(EvidenceKind::ProcessExit);
            }
            if !health.listening {
                return told(EvidenceKind::ListenerGone);
            }
            if health.stalled && health.null_failed {
                // The kernel, and the agent's own call.
                return [EvidenceKind::Silent, EvidenceKind::NullFailed].into_iter().flat_map(told).collect();
            }
            if health.no_carrier.contains(&place.network) {
                return vec![piece(EvidenceKind::CarrierLost, server, Some(place), said)];
            }
        }
        let mut pieces = Vec::new();
        let gone = match (session.state, session.renewed) {
            (SessionState::Lost, renewed) => renewed,
            // Not heard of in this term: it has had as long as a session takes to be lost.
            (SessionState::Absent, None) if now.since(self.started) > self.lapses_after() => {
                Some(self.started)
            }
            _ => None,
        };
        if let Some(renewed) = gone {
            let lost = piece(EvidenceKind::KeepaliveLost, server, None, renewed);
            let lease = self.settings.agentless.session_ns;
            if self.lease.confirmed().is_some_and(|at| self.session_expired(place.scvm, lease, at)) {
                return vec![lost];
            }
            pieces.push(lost);
        }
        let unheard = |at: &BootNs| session.renewed.is_none_or(|renewed| *at > renewed);
        let silent = peers.silent.iter().filter(|((of, _), at)| *of == place.scvm && unheard(at));
        pieces.extend(
            silent.map(|((_, by), at)| piece(EvidenceKind::AllPathsLost, NodeId::Scvm(*by), None, *at)),
        );
        for (&id, host) in &self.hosts {
            let Some((report, at)) = host.report.as_ref().filter(|(_, at)| now.since(*at) < REPORT_FRESH_NS)
            else {
                continue;
            };
            let finds = |path: Path, state| report.paths.iter().any(|p| p.path == path && p.state == state);
            let others = report.paths.iter().any(|p| {
                p.path.scvm != place.scvm && p.path.network == place.network && p.state == Health::Healthy
            });
            // Who reaches nobody says something of itself.
            if others && finds(place, Health::Failed) {
                pieces.push(piece(EvidenceKind::PathLost, NodeId::Host(id), Some(place), *at));
            }
        }
        if pieces.len() >= 2 { pieces } else { Vec::new() }
    }
}
