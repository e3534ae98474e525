//! How the machine stands, for people.

use super::session::State;
use super::{Mode, Revoke, Scvm, Stage};
use crate::ids::*;
use crate::proto::{FenceProof, ServerHealth};
use reroute_common::admission::rank;
use serde::{Deserialize, Serialize};

/// A client that is held back for longer than this is an alarm.
const LONG_HELD_NS: u64 = SEC;

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// Clients without an agent that call here and are held back.
    #[serde(default)]
    pub held: Vec<HeldStanding>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeldStanding {
    pub host: HostId,
    /// Since its first call that was held back, ns.
    pub waits_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostStanding {
    pub host: HostId,
    pub has_agent: bool,
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
    /// Connections that its own kernel could not end, reset from here the last time.
    #[serde(default)]
    pub reset: Option<super::ClientResetStanding>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
        for host in self.wedged.said() {
            alarms.push(format!(
                "{host} gets no replies here while others do: its client may give the connection up by itself; else move it (`logins evict`), which fences what still waits here"
            ));
        }
        // On its way here, a client stands still for some ms: that is no alarm.
        let held = self.wanted.held();
        let long = held.iter().any(|h| now.since(h.since) >= LONG_HELD_NS);
        if long || self.why_held(now).is_some() {
            alarms.extend(self.wanted.problem(self.why_held(now), now));
        }
        let hosts = self.admission.words().iter().map(|(&host, word)| {
            let client = self.clients.get(&host);
            HostStanding {
                host,
                has_agent: client.is_none_or(|c| c.has_agent),
                epoch: Epoch(word.epoch()),
                word: rank_name(word.rank()).into(),
                affirm_ns: client.map_or(0, |c| c.affirm_deadline.since(now)),
                connections: client.map_or(0, |c| c.connections),
                blocked_ns: self.blocks.until(host, now).map_or(0, |until| until.since(now)),
                revoke: self.revokes.get(&host).map(standing),
                reset: self.client_resets.standing(host, now),
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
            held: held
                .into_iter()
                .map(|h| HeldStanding { host: h.host, waits_ns: now.since(h.since) })
                .collect(),
        }
    }
}
