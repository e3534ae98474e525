//! What Meta and operators are told.

use super::phase::Phase;
use super::*;

/// This host as its operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Local {
    pub report: HostReport,
    /// settled, asked, moving, arriving.
    pub phase: String,
    /// The server this host affirms, and at which epoch.
    pub affirms: Option<(ScvmId, Epoch)>,
    pub meta_up: bool,
    /// Moves left before the budget is empty.
    pub budget: u32,
    /// How long a better place must have been well before the host goes there, ns.
    pub hold_down_ns: u64,
    /// How often this agent itself was late.
    pub late: u64,
    pub faults: Vec<String>,
    /// Dry, or auto.
    pub mode: Mode,
    /// Every server, by this host's own evidence.
    #[serde(default)]
    pub servers: Vec<ServerStanding>,
    /// Where an operator wants this host to be.
    #[serde(default)]
    pub pin: Option<Pin>,
    /// The last connections that this kernel could not end itself.
    #[serde(default)]
    pub reset: Option<ResetStanding>,
}

/// A server as this host finds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServerStanding {
    pub scvm: ScvmId,
    pub state: Health,
    /// What a verdict rests on, or is held against it as yet.
    pub evidence: Vec<Evidence>,
}

impl Machine {
    fn standings(&self) -> Vec<ServerStanding> {
        let standing = |(scvm, server): (&ScvmId, &verdict::ServerState)| ServerStanding {
            scvm: *scvm,
            state: server.case.state(),
            evidence: server.case.pieces().iter().map(|p| p.of(self.settings.host)).collect(),
        };
        self.servers.iter().map(standing).collect()
    }

    pub fn report(&self, now: BootNs) -> HostReport {
        let private = Path { scvm: self.settings.local, network: Network::Private };
        HostReport {
            epoch: self.login.map_or_else(|| self.evicted_at(), |l| l.epoch),
            scvm: self.login.map(|l| l.scvm),
            path: match &self.route.found {
                Some(Found::Ours(path)) => Some(*path),
                Some(Found::Foreign { path, .. }) => *path,
                Some(Found::None) => Some(private),
                Some(Found::OursElsewhere(_)) | None => None,
            },
            reason: self.route.reason.clone(),
            route_age_ns: now.since(self.route.since),
            released: self.released.filter(|r| self.login.map_or(self.evicted.is_some(), |l| *r >= l.epoch)),
            last_move_gap_ns: self.last_gap_ns,
            error: (!self.faults.is_empty())
                .then(|| self.faults.values().map(String::as_str).collect::<Vec<_>>().join("; ")),
            paths: self
                .paths
                .iter()
                .map(|(path, state)| PathHealth {
                    path: *path,
                    state: if self.has_failed(path.scvm) { Health::Failed } else { state.health },
                    rtt_ns: state.rtt_ns,
                    last_reply_age_ns: state.last_reply.map(|at| now.since(at)),
                })
                .collect(),
        }
    }

    pub fn local(&self, now: BootNs) -> Local {
        Local {
            report: self.report(now),
            phase: match &self.phase {
                Phase::Settled => "settled",
                Phase::Asked(_) => "asked",
                Phase::Moving(_) => "moving",
                Phase::Arriving(_) => "arriving",
            }
            .into(),
            affirms: self.login.filter(|l| self.may_affirm(l.epoch)).map(|l| (l.scvm, l.epoch)),
            meta_up: self.meta_up,
            budget: self.budget.clone().left(now),
            hold_down_ns: self.hold_down.clone().wait_ns(now),
            late: self.late,
            faults: self.faults.values().cloned().collect(),
            mode: if self.is_dry() { Mode::Dry } else { Mode::Auto },
            servers: self.standings(),
            pin: self.pinned().cloned(),
            reset: self.client_reset.as_ref().map(|r| r.standing(now)),
        }
    }

    pub(super) fn report_to_meta(&mut self, now: BootNs, fx: &mut Effects) {
        self.reported_at = Some(now);
        fx.push(Effect::Meta(ToMeta::HostReport { report: self.report(now) }));
    }
}
