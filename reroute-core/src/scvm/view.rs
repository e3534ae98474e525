//! How the machine stands, for people.

use super::session::State;
use super::{Mode, Revoke, Scvm, Stage};
use crate::ids::*;
use crate::proto::{FenceProof, ServerHealth};
use reroute_common::admission::rank;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct View {
    pub scvm: ScvmId,
    /// `shadow`, `enforce` or `bypass`.
    pub mode: String,
    /// What makes one-writer doubtful here, in words.
    pub alarms: Vec<String>,
    /// `closed`, `opening`, `settling` or `open`.
    pub session: String,
    pub term: Option<Term>,
    /// What remains of the session lease, ns.
    pub lease_ns: u64,
    pub health: ServerHealth,
    pub server_pids: Vec<u32>,
    pub hosts: Vec<HostStanding>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStanding {
    pub host: HostId,
    pub epoch: Epoch,
    /// `held`, `admitted`, `released` or `fenced`.
    pub word: String,
    /// What remains of the host's own affirmation, ns.
    pub affirm_ns: u64,
    pub connections: u32,
    /// What remains of an operator's block, ns.
    #[serde(default)]
    pub blocked_ns: u64,
    /// The revoke under way, or the last one.
    pub revoke: Option<RevokeStanding>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevokeStanding {
    pub epoch: Epoch,
    pub stage: String,
    pub proof: Option<FenceProof>,
}

/// Name of a word's rank.
pub fn rank_name(rank: u8) -> &'static str {
    match rank {
        rank::HELD => "held",
        rank::ADMITTED => "admitted",
        rank::RELEASED => "released",
        _ => "fenced",
    }
}

fn standing(revoke: &Revoke) -> RevokeStanding {
    let (stage, proof) = match *revoke.stage() {
        Stage::Looking { .. } => ("looking", None),
        Stage::Fencing { .. } => ("fencing", None),
        Stage::Draining { .. } => ("draining", None),
        Stage::Killing { .. } => ("killing", None),
        Stage::Proven { proof, .. } => ("proven", Some(proof)),
    };
    RevokeStanding { epoch: revoke.epoch, stage: stage.into(), proof }
}

impl Scvm {
    pub fn view(&self, now: BootNs) -> View {
        let health = self.health();
        let mut alarms = Vec::new();
        if health.bypass {
            alarms
                .push("one-writer is suspended: enforcement is bypassed (`reroute-agent bypass off`)".into());
        } else if let Some(why) = self.lenient() {
            alarms.push(format!("nothing is fenced here: {why}"));
        }
        let blocked = self.blocks.count(now);
        if blocked > 0
            && let Some(why) = self.lenient()
        {
            alarms.push(format!("{blocked} blocked clients get in all the same: {why}"));
        }
        alarms.extend(self.session.problem().map(str::to_string));
        alarms.extend(self.server.problem.clone());
        let hosts = self.admission.words().iter().map(|(&host, word)| {
            let client = self.clients.get(&host);
            HostStanding {
                host,
                epoch: Epoch(word.epoch()),
                word: rank_name(word.rank()).into(),
                affirm_ns: client.map_or(0, |c| c.affirm_deadline.since(now)),
                connections: client.map_or(0, |c| c.connections),
                blocked_ns: self.blocks.until(host, now).map_or(0, |until| until.since(now)),
                revoke: self.revokes.get(&host).map(standing),
            }
        });
        View {
            scvm: self.settings.id,
            mode: match self.wanted_mode() {
                Mode::Shadow => "shadow",
                Mode::Enforce => "enforce",
                Mode::Bypass => "bypass",
            }
            .into(),
            alarms,
            session: match self.session.state() {
                State::Closed { .. } => "closed",
                State::Opening { .. } => "opening",
                State::Settling { .. } => "settling",
                State::Open { .. } => "open",
            }
            .into(),
            term: self.session.term(),
            lease_ns: self.session.deadline().since(now),
            health,
            server_pids: self.server.living().values().copied().collect(),
            hosts: hosts.collect(),
        }
    }
}
