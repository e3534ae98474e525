//! The session health view: sessions, logins, hosts, as Meta pushes them.

use super::{FenceProof, HostReport, ServerHealth};
use crate::block::{BlockView, HolderView};
use crate::esxi::DrivenView;
use crate::ids::*;
use serde::{Deserialize, Serialize};

/// The session health view: what `status` shows, wherever it is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterView {
    pub cluster: String,
    pub term: Term,
    pub sessions: Vec<SessionView>,
    pub logins: Vec<LoginView>,
    pub hosts: Vec<HostView>,
    /// SCVMs that hosts are to leave, and none may move to.
    #[serde(default)]
    pub draining: Vec<DrainView>,
    /// Blocks that run.
    #[serde(default)]
    pub blocks: Vec<BlockView>,
    /// What somebody should look at, by name.
    #[serde(default)]
    pub alarms: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DrainView {
    pub scvm: ScvmId,
    #[serde(flatten)]
    pub draining: Draining,
}

/// Who began to drain an SCVM, and when.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Draining {
    pub actor: String,
    /// Wall clock of Meta's node, ms since 1970: for people, decides nothing.
    pub at_unix_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionView {
    pub scvm: ScvmId,
    pub name: String,
    pub state: SessionState,
    /// How long in this state, ns.
    pub age_ns: u64,
    pub keepalive_age_ns: Option<u64>,
    pub incarnation: Incarnation,
    pub health: ServerHealth,
    /// In words, what is wrong ("" when nothing is).
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Configured, never seen in this term.
    Absent,
    Alive,
    /// Alive, but its server is not well, or keepalives are late.
    Suspect,
    Lost,
}

/// A login as stored: the truth about who may write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Login {
    pub host: HostId,
    pub state: LoginState,
    /// Of the leader that wrote it.
    pub term: Term,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum LoginState {
    At {
        scvm: ScvmId,
        epoch: Epoch,
        proof: FenceProof,
    },
    /// Nobody but those in `fencing` may have been admitted before; `to` is admitted when each has its proof (but
    /// its own, if it is among them).
    Moving {
        fencing: Vec<Fencing>,
        to: ScvmId,
        epoch: Epoch,
        planned: bool,
    },
    /// An operator ended the login: nobody is admitted at this epoch. Those in `fencing` are shut first of all, and must
    /// be known to be before another opens.
    Evicted {
        fencing: Vec<Fencing>,
        epoch: Epoch,
        actor: String,
    },
}

/// A server that must be known to be shut before the next one opens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fencing {
    pub scvm: ScvmId,
    /// The highest epoch it may have admitted the host at.
    pub epoch: Epoch,
    pub proof: Option<FenceProof>,
}

impl Login {
    pub fn epoch(&self) -> Epoch {
        match &self.state {
            LoginState::At { epoch, .. }
            | LoginState::Moving { epoch, .. }
            | LoginState::Evicted { epoch, .. } => *epoch,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LoginView {
    #[serde(flatten)]
    pub login: Login,
    pub age_ns: u64,
    /// What the proof that this login rests on takes on trust; empty: nothing, or it still moves.
    #[serde(default)]
    pub does_not_cover: String,
    /// What its server sees of the client; none: it has not said so lately.
    #[serde(default)]
    pub holder: Option<HolderView>,
    /// Nothing has been heard of the client for so long, and nothing of it is in progress, that it counts as dead.
    #[serde(default)]
    pub ghost: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostView {
    pub host: HostId,
    pub name: String,
    /// Last report, and its age; none yet: the host's agent has not been heard in this term.
    pub report: Option<HostReport>,
    pub report_age_ns: Option<u64>,
    #[serde(default = "has_agent")]
    pub has_agent: bool,
    /// Of a client without an agent: where it calls, and waits to be served.
    #[serde(default)]
    pub wants: Option<WantView>,
    /// Of an ESXi host: who drives it, and how that stands.
    #[serde(default)]
    pub driven: Option<DrivenView>,
}

fn has_agent() -> bool {
    true
}

/// A client without an agent that waits to be served where it calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WantView {
    pub scvm: ScvmId,
    pub connections: u32,
    /// Since it was first heard of, ns.
    pub age_ns: u64,
    /// It alternates between servers: its login does not move before this time is over, ns.
    pub slowed_ns: Option<u64>,
}
