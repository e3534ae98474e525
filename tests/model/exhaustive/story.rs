//! What happens by itself, who takes part, and what the adversary may do.

use reroute_core::ids::*;
use reroute_core::{host, meta, scvm};

/// Timers run, and what is due comes, once in this time. Every lease is a multiple of it.
pub const ROUND: u64 = 50 * MS;
pub const X: HostId = HostId(1);
pub const A: ScvmId = ScvmId(1);
pub const B: ScvmId = ScvmId(2);

/// A safeguard that the world can do without: it forges, forgets or ignores; the machines are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Safeguard {
    /// Off: every revoke that leaves Meta is answered with a proof at once, by nobody.
    ProofStep,
    /// Off: what an answer to Meta, an affirmation or a release says of epochs is not compared: it counts for the
    /// present one.
    EpochCheck,
    /// Off: an affirmation runs from when it arrives.
    StampEcho,
    /// Off: a session's lease runs from when Meta's answer arrives.
    SendStampCounting,
    /// Off: what the host's record on disk says of releases is lost.
    PersistedRelease,
    /// Off: a leader believes for ever that the store confirms it.
    LeaderLease,
    /// Off: an SCVM takes it that a new session names whom it served before.
    FenceOfUnnamed,
    /// Off: Meta waits for a client without an agent no longer than for a host with one.
    LongerLease,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    Host,
    Scvm(ScvmId),
    Meta(usize),
    Store,
}

/// What happens at the beginning of a round, whatever the adversary does.
#[derive(Clone, Copy, Debug)]
pub enum Happens {
    Hang(ScvmId),
    Resume(ScvmId),
    Cut(Node, Node),
    Heal(Node, Node),
    /// An operator wants the host to be there: a planned move.
    Pin(ScvmId),
    /// An operator ends the login.
    Evict,
    /// Somebody changes the next hop of a client without an agent.
    NextHop(ScvmId),
    /// Another leader begins while the first one may still run.
    SecondLeader,
}

/// What the adversary may do to what is next, or to a node, at any moment. Numbers are rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trouble {
    Drop,
    /// Comes so much later: behind all that comes before then.
    Delay(u32),
    /// Comes now, and again so much later.
    Twice(u32),
    /// The host's agent dies, and starts again so much later.
    CrashHost(u32),
    CrashAgent(ScvmId, u32),
    /// An SCVM is down for so long, with all that was in it, and boots.
    Reboot(ScvmId, u32),
    /// The newest leader dies; another one begins so much later.
    CrashMeta(u32),
    SecondLeader,
    /// Nothing of it runs, and its clock stands, for so long.
    Freeze(Node, u32),
    Cut(Node, Node, u32),
    /// The kernel of a server loses sight of the calls in progress there.
    LoseSight(ScvmId),
    /// The next hop of a client without an agent changes.
    NextHop(ScvmId),
}

#[derive(Clone, Debug)]
pub struct Story {
    pub name: String,
    /// Fence policy of each SCVM, from 1 on.
    pub policies: Vec<FencePolicy>,
    /// Rates of the clocks of host, SCVMs and Meta, parts per thousand.
    pub rates: Vec<u64>,
    pub happens: Vec<(u32, Happens)>,
    pub rounds: u32,
    /// Rounds in which the adversary may act.
    pub window: std::ops::Range<u32>,
    pub troubles: Vec<Trouble>,
    /// How often he may.
    pub budget: u8,
    pub off: Option<Safeguard>,
    /// The client is a host with an agent of ours.
    pub has_agent: bool,
    pub silent_ns: u64,
    pub affirm_ns: u64,
    pub session_ns: u64,
    pub session_no_agent_ns: u64,
}

impl Story {
    pub fn new(name: &str, policies: &[FencePolicy]) -> Story {
        Story {
            name: name.into(),
            policies: policies.to_vec(),
            rates: vec![1000; policies.len() + 2],
            happens: Vec::new(),
            rounds: 30,
            window: 0..u32::MAX,
            troubles: Vec::new(),
            budget: 0,
            off: None,
            has_agent: true,
            silent_ns: ROUND,
            affirm_ns: 3 * ROUND,
            session_ns: 10 * ROUND,
            session_no_agent_ns: 16 * ROUND,
        }
    }

    pub fn has(&self, safeguard: Safeguard) -> bool {
        self.off != Some(safeguard)
    }

    pub fn scvms(&self) -> impl Iterator<Item = ScvmId> + use<> {
        (1..=self.policies.len() as u32).map(ScvmId)
    }

    /// The client's lease at a server, by Meta's leave.
    pub fn lease_ns(&self) -> u64 {
        if self.has_agent { self.session_ns } else { self.session_no_agent_ns }
    }

    fn policy(&self, scvm: ScvmId) -> FencePolicy {
        self.policies[scvm.0 as usize - 1]
    }

    pub fn host_settings(&self) -> host::Settings {
        let by_storage = |s: &ScvmId| self.policy(*s) == FencePolicy::Storage;
        host::Settings {
            host: X,
            local: A,
            scvms: self.scvms().collect(),
            checked_by_storage: self.scvms().filter(by_storage).collect(),
            pulse_ns: ROUND,
            doubt_ns: ROUND,
            standby_ns: ROUND,
            rest_ns: 4 * ROUND,
            path_lost_ns: 3 * ROUND,
            first_mode: host::Mode::Auto,
            hold_down_ns: 2 * ROUND,
            hold_down_max_ns: 4 * ROUND,
        }
    }

    pub fn scvm_settings(&self, id: ScvmId, boot: Incarnation) -> scvm::Settings {
        scvm::Settings {
            id,
            boot,
            policy: self.policy(id),
            mode: scvm::Mode::Enforce,
            bypass: false,
            keepalive_ns: 2 * ROUND,
            session_ns: self.session_ns,
            session_no_agent_ns: self.session_no_agent_ns,
            affirm_ns: self.affirm_ns,
            silent_ns: self.silent_ns,
            drain_ns: ROUND / 2,
            planned_drain_ns: 8 * ROUND,
            null_rpc_ns: ROUND,
        }
    }

    pub fn meta_settings(&self, term: Term) -> meta::Settings {
        // A host with an agent has a lease of its own: that of others prolongs nothing for it.
        let waits = if self.has(Safeguard::LongerLease) { self.lease_ns() } else { self.session_ns };
        let agentless = meta::Agentless { session_ns: waits, burst: 3, move_every_ns: 40 * ROUND };
        let scvm = |id: ScvmId| ScvmInfo {
            id,
            name: String::new(),
            storage: [10, 0, 0, id.0 as u8].into(),
            management: [10, 1, 0, id.0 as u8].into(),
            policy: self.policy(id),
        };
        meta::Settings {
            cluster: String::new(),
            term,
            scvms: self.scvms().map(scvm).collect(),
            hosts: vec![HostInfo {
                id: X,
                name: String::new(),
                private: [192, 168, 33, 1].into(),
                storage: [10, 0, 0, 101].into(),
                management: [10, 1, 0, 101].into(),
                local_scvm: A,
                has_agent: self.has_agent,
            }],
            keepalive_ns: 2 * ROUND,
            session_ns: self.session_ns,
            longest_session_ns: agentless.session_ns.max(self.session_ns),
            leader_ns: 6 * ROUND,
            affirm_ns: self.affirm_ns,
            agentless,
            planned_drain_ns: 8 * ROUND,
            resend_ns: 4 * ROUND,
        }
    }
}
