//! What a lab is made of.

use reroute_core::ids::FencePolicy;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};

/// The access servers of the lab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ServerKind {
    /// NFS-Ganesha, one per SCVM, over one directory.
    #[default]
    Ganesha,
    /// `reroute-nfsd`: can hold calls back, and its store checks the writer's epoch.
    Controllable,
}

impl ServerKind {
    /// Ganesha writes to a file system that checks no owner: only its death is a fence.
    pub fn default_policy(self) -> FencePolicy {
        match self {
            ServerKind::Ganesha => FencePolicy::Kill,
            ServerKind::Controllable => FencePolicy::Storage,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Labs with different ids run side by side.
    pub id: String,
    pub server: ServerKind,
    /// None: that of the server kind.
    pub policy: Option<FencePolicy>,
    /// `[scvm] mode`; None: the agent's default.
    pub mode: Option<String>,
    /// Keys of `[timing]` that differ from the defaults, ms.
    pub timing: BTreeMap<String, u64>,
    /// Start the agents too.
    pub agents: bool,
    /// Hosts without an agent (ESXi, to the rest of the lab): their routes are the test's to set.
    #[serde(default)]
    pub agentless: BTreeSet<u32>,
    /// Each host has a hypervisor to ask about the SCVM beside it, see [`crate::hypervisor`].
    #[serde(default)]
    pub hypervisor: bool,
    /// Those of them whose next hops the SCVMs change over ssh: each has an sshd and an `esxcfg-route`.
    #[serde(default)]
    pub esxi: BTreeSet<u32>,
    /// Lines of TOML that go into the section of a node's role, by node.
    pub sections: BTreeMap<String, String>,
    /// `REROUTE_LOG` of the agents.
    pub log: String,
    /// The controllable server's store refuses writes of a former owner. Off: to see what that is good for.
    pub storage_check: bool,
    /// Every agent keeps what it is told, in `records` beside its state.
    #[serde(default)]
    pub record: bool,
    /// Faults that end by themselves stand until they are healed.
    #[serde(default)]
    pub faults_stand: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            id: "default".into(),
            server: ServerKind::Ganesha,
            policy: None,
            mode: None,
            timing: BTreeMap::new(),
            agents: true,
            agentless: BTreeSet::new(),
            hypervisor: false,
            esxi: BTreeSet::new(),
            sections: BTreeMap::new(),
            log: "info".into(),
            storage_check: true,
            record: false,
            faults_stand: false,
        }
    }
}

impl Options {
    /// A lab of the caller alone: `name`, the pid and a number make its id.
    pub fn named(name: &str) -> Options {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Options { id: format!("{name}-{}-{number}", std::process::id()), ..Options::default() }
    }
    pub fn server(mut self, server: ServerKind) -> Options {
        self.server = server;
        self
    }
    pub fn policy(mut self, policy: FencePolicy) -> Options {
        self.policy = Some(policy);
        self
    }
    pub fn timing(mut self, key: &str, ms: u64) -> Options {
        self.timing.insert(key.into(), ms);
        self
    }
    /// A line of TOML for the section of `node`'s role. `{root}` stands for the lab's file system.
    pub fn section(mut self, node: &str, line: &str) -> Options {
        let section = self.sections.entry(node.into()).or_default();
        section.push_str(line);
        section.push('\n');
        self
    }
    pub fn record(mut self) -> Options {
        self.record = true;
        self
    }
    pub fn without_agents(mut self) -> Options {
        self.agents = false;
        self
    }
    pub fn agentless(mut self, host: u32) -> Options {
        self.agentless.insert(host);
        self
    }
    pub fn hypervisor(mut self) -> Options {
        self.hypervisor = true;
        self
    }
    pub fn esxi(mut self, host: u32) -> Options {
        self.esxi.insert(host);
        self.agentless(host)
    }
    pub fn fence_policy(&self) -> FencePolicy {
        self.policy.unwrap_or(self.server.default_policy())
    }
}
