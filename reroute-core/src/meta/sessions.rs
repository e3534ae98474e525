//! Sessions of SCVMs, as Meta's own clock sees them.

use super::{SessionMaster, with_drift};
use crate::block::HolderFacts;
use crate::ids::*;
use crate::proto::{Health, HostReport, ServerHealth, SessionState};
use std::collections::{BTreeMap, BTreeSet};

/// So many hosts that found an SCVM failed are independent of what one of them may suffer from.
const OBSERVERS: usize = 2;
/// Hosts report each second: what one said last holds for so long.
const REPORT_NS: u64 = 2 * SEC;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Session {
    pub(super) state: SessionState,
    pub(super) since: BootNs,
    pub(super) reason: String,
    pub(super) incarnation: Incarnation,
    /// Kernel boot it last opened a session of this term with.
    pub(super) boot: Option<Incarnation>,
    pub(super) health: ServerHealth,
    /// When the last message that renewed it was accepted; None: none in this term.
    pub(super) renewed: Option<BootNs>,
    /// What it says of each client, and when that came.
    pub(super) holders: BTreeMap<HostId, (BootNs, HolderFacts)>,
    /// Hosts that found it, or every path to it, failed, by their last report; and when that came.
    found_failed: BTreeMap<HostId, BootNs>,
}

impl Session {
    pub(super) fn absent(now: BootNs) -> Session {
        Session {
            state: SessionState::Absent,
            since: now,
            reason: "not heard of since Meta started".into(),
            incarnation: Incarnation::default(),
            boot: None,
            health: ServerHealth::default(),
            renewed: None,
            holders: BTreeMap::new(),
            found_failed: BTreeMap::new(),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, SessionState::Alive | SessionState::Suspect)
    }
}

impl SessionMaster {
    /// A session begins on this kernel boot.
    pub(super) fn opened(&mut self, scvm: ScvmId, boot: Incarnation) {
        if let Some(session) = self.sessions.get_mut(&scvm) {
            session.boot = Some(boot);
        }
    }

    /// A session begins, or is renewed.
    pub(super) fn renew(
        &mut self,
        scvm: ScvmId,
        incarnation: Incarnation,
        health: ServerHealth,
        now: BootNs,
    ) {
        if let Some(session) = self.sessions.get_mut(&scvm) {
            // Numbers that always move are no change of the view.
            let material = |h: &ServerHealth| ServerHealth { connections: 0, calls_waiting: 0, ..h.clone() };
            if session.incarnation != incarnation || material(&session.health) != material(&health) {
                self.generation += 1;
            }
            session.incarnation = incarnation;
            session.health = health;
            session.renewed = Some(now);
        }
        self.judge(scvm, now);
    }

    /// Brings a session's state up to the time.
    pub(super) fn judge(&mut self, scvm: ScvmId, now: BootNs) {
        let (keepalive, lease) = (self.settings.keepalive_ns, self.lapses_after());
        let failed_by = self.failed_by(scvm, now);
        let (failed_by, hosts) = (failed_by.len(), failed_by.join(", "));
        let Some(session) = self.sessions.get_mut(&scvm) else { return };
        let Some(renewed) = session.renewed else { return };
        let age = now.since(renewed);
        let (state, reason) = if age > lease {
            (SessionState::Lost, format!("no keepalive for more than {} ms", lease / MS))
        } else if age > 2 * keepalive && failed_by >= OBSERVERS {
            // Its own silence and that of its paths: two kinds of evidence, from different observers.
            (
                SessionState::Lost,
                format!("no keepalive for more than {} ms, and {hosts} found it failed", 2 * keepalive / MS),
            )
        } else if age > 3 * keepalive {
            (SessionState::Suspect, "keepalives are late".to_string())
        } else {
            let (well, mut reason) = words(&session.health);
            if failed_by > 0 {
                let more = format!("{hosts} found it failed");
                reason = if reason.is_empty() { more } else { format!("{reason}; {more}") };
            }
            (if well && failed_by == 0 { SessionState::Alive } else { SessionState::Suspect }, reason)
        };
        if session.state != state {
            session.since = now;
        }
        if session.state != state || session.reason != reason {
            session.state = state;
            session.reason = reason;
            self.generation += 1;
        }
    }

    /// Notes whom `host` has found failed now, and no more: judging asks for that far more often than hosts report.
    pub(super) fn note_failed(
        &mut self,
        host: HostId,
        before: Option<&HostReport>,
        report: &HostReport,
        now: BootNs,
    ) {
        for scvm in before.map(found_failed).unwrap_or_default() {
            if let Some(session) = self.sessions.get_mut(&scvm) {
                session.found_failed.remove(&host);
            }
        }
        for scvm in found_failed(report) {
            if let Some(session) = self.sessions.get_mut(&scvm) {
                session.found_failed.insert(host, now);
            }
        }
    }

    /// Names of the hosts that have lately found this SCVM, or every path to it, failed.
    fn failed_by(&self, scvm: ScvmId, now: BootNs) -> Vec<&str> {
        let Some(found) = self.sessions.get(&scvm).map(|s| &s.found_failed).filter(|f| !f.is_empty()) else {
            return Vec::new();
        };
        let lately = |host: &HostId| found.get(host).is_some_and(|at| now.since(*at) <= REPORT_NS);
        self.settings.hosts.iter().filter(|info| lately(&info.id)).map(|info| info.name.as_str()).collect()
    }

    /// From here on the SCVM itself, whatever its clock does within drift, holds the session for over.
    pub(super) fn lapses_after(&self) -> u64 {
        with_drift(self.settings.session_ns)
    }

    /// Whether no lease of this length that this SCVM got from Meta, in this term or an earlier one, was still running at
    /// `now`. A leader of an earlier term may have gone on for its own lease, and have renewed a session at its end.
    pub(super) fn session_expired(&self, scvm: ScvmId, lease: u64, now: BootNs) -> bool {
        let longest = self.settings.leader_ns.saturating_add(self.settings.longest_session_ns);
        let earlier_terms = now.since(self.started) > with_drift(longest);
        let this_term = match self.sessions.get(&scvm).and_then(|s| s.renewed) {
            Some(renewed) => now.since(renewed) > with_drift(lease),
            None => true,
        };
        earlier_terms && this_term
    }

    /// Whether a move to this SCVM can be begun: its session is live and its server there.
    pub(super) fn is_target(&mut self, scvm: ScvmId, now: BootNs) -> bool {
        self.judge(scvm, now);
        self.sessions.get(&scvm).is_some_and(|s| s.is_live() && s.health.process_alive && s.health.listening)
    }
}

/// SCVMs of which a host has found every path failed.
fn found_failed(report: &HostReport) -> BTreeSet<ScvmId> {
    let of = |failed: bool| {
        let paths = report.paths.iter().filter(move |p| (p.state == Health::Failed) == failed);
        paths.map(|p| p.path.scvm).collect::<BTreeSet<_>>()
    };
    of(true).difference(&of(false)).copied().collect()
}

/// Whether the server is well, and in words what is wrong.
fn words(health: &ServerHealth) -> (bool, String) {
    let mut wrong = Vec::new();
    if !health.process_alive {
        wrong.push("the server process is dead".to_string());
    } else if !health.listening {
        wrong.push("nobody listens on the service port".to_string());
    }
    if health.null_failed {
        wrong.push("calls wait and the NULL RPC got no answer".to_string());
    } else if health.stalled {
        wrong.push("calls wait too long".to_string());
    }
    for network in &health.no_carrier {
        wrong.push(format!("no carrier on the {network} network"));
    }
    let well = wrong.is_empty();
    if health.bypass {
        wrong.push("bypass: enforcement is suspended".to_string());
    }
    wrong.extend(health.duplicate.clone());
    (well, wrong.join("; "))
}
