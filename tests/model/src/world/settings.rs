//! What a world is made of, and which of its safeguards are switched off.

use reroute_core::ids::*;
use reroute_core::{host, meta, scvm};
use std::collections::BTreeSet;

/// A safeguard of the protocol that the world can do without, to show what it is for. None of these is a switch in
/// the product: the world itself forges, forgets or ignores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Safeguard {
    /// Off: each revoke is answered at once with a proof that nobody gave.
    ProofStep,
    /// Off: neither the kernel nor the storage compares epochs. The kernel's word is whatever was last asked for, an
    /// affirmation of any epoch counts, and the storage takes every write.
    EpochCheck,
    /// Off: the affirm lease runs from when the pulse arrives, not from the stamp it echoes.
    StampEcho,
    /// Off: the session lease runs from when Meta's answer arrives, not from when the keepalive was sent.
    SendStampCounting,
    /// Off: what is written to the host's disk does not say what was released.
    PersistedRelease,
    /// Off: a leader goes on although its own lease in the store has run out.
    LeaderLease,
}

impl Safeguard {
    pub const ALL: [Safeguard; 6] = [
        Safeguard::ProofStep,
        Safeguard::EpochCheck,
        Safeguard::StampEcho,
        Safeguard::SendStampCounting,
        Safeguard::PersistedRelease,
        Safeguard::LeaderLease,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Safeguard::ProofStep => "proof-step",
            Safeguard::EpochCheck => "epoch-check",
            Safeguard::StampEcho => "stamp-echo",
            Safeguard::SendStampCounting => "send-stamp-counting",
            Safeguard::PersistedRelease => "persisted-release",
            Safeguard::LeaderLease => "leader-lease",
        }
    }
}

/// Times in ns; the defaults are those of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    pub pulse: u64,
    pub doubt: u64,
    pub standby: u64,
    pub rest: u64,
    pub path_lost: u64,
    pub keepalive: u64,
    pub session: u64,
    pub session_no_agent: u64,
    pub affirm: u64,
    pub unanswered: u64,
    pub silent: u64,
    pub null_rpc: u64,
    pub drain: u64,
    pub planned_drain: u64,
    pub hold_down: u64,
    pub hold_down_max: u64,
    pub shield: u64,
    pub resend: u64,
    pub meta_tick: u64,
    /// An agent gives a message to Meta up after this.
    pub send_timeout: u64,
    /// Least time between two runs of an SCVM's agent.
    pub scvm_beat: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            pulse: 10 * MS,
            doubt: 2 * MS,
            standby: 50 * MS,
            rest: SEC,
            path_lost: 25 * MS,
            keepalive: 100 * MS,
            session: 500 * MS,
            session_no_agent: 8 * SEC,
            affirm: 100 * MS,
            unanswered: 50 * MS,
            silent: 20 * MS,
            null_rpc: 15 * MS,
            drain: 10 * MS,
            planned_drain: 2 * SEC,
            hold_down: 3 * SEC,
            hold_down_max: 180 * SEC,
            shield: 2 * SEC,
            resend: 200 * MS,
            meta_tick: 20 * MS,
            send_timeout: 500 * MS,
            scvm_beat: MS,
        }
    }
}

/// How the client of each host writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Load {
    /// Calls at once.
    pub window: usize,
    /// Blocks it writes in turn; at least `window`.
    pub blocks: usize,
    /// From a reply to the next call, ns of the host's clock.
    pub think: u64,
    /// Writes in all.
    pub writes: u64,
}

impl Default for Load {
    fn default() -> Load {
        Load { window: 2, blocks: 4, think: 5 * MS, writes: u64::MAX }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Hosts 1 to this; host `h` is local to SCVM `(h - 1) % scvms + 1`.
    pub hosts: u32,
    /// One SCVM each, from 1 on, with its fence policy.
    pub scvms: Vec<FencePolicy>,
    /// Nodes that can lead; with more than one, a new leader may begin while the old one still runs.
    pub metas: u8,
    pub timing: Timing,
    pub load: Load,
    pub off: BTreeSet<Safeguard>,
    /// Networks that agents talk to Meta by: a message is sent on each.
    pub meta_networks: Vec<Network>,
    /// What is in flight is numbered by what it is, not by when it was sent: equal worlds are equal then.
    pub canonical: bool,
}

impl Settings {
    pub fn new(hosts: u32, scvms: Vec<FencePolicy>) -> Settings {
        Settings {
            hosts,
            scvms,
            metas: 1,
            timing: Timing::default(),
            load: Load::default(),
            off: BTreeSet::new(),
            meta_networks: vec![Network::Storage, Network::Management],
            canonical: false,
        }
    }

    pub fn without(mut self, safeguard: Safeguard) -> Settings {
        self.off.insert(safeguard);
        self
    }

    pub fn has(&self, safeguard: Safeguard) -> bool {
        !self.off.contains(&safeguard)
    }

    pub fn host_ids(&self) -> impl Iterator<Item = HostId> + use<> {
        (1..=self.hosts).map(HostId)
    }

    pub fn scvm_ids(&self) -> impl Iterator<Item = ScvmId> + use<> {
        (1..=self.scvms.len() as u32).map(ScvmId)
    }

    pub fn local(&self, host: HostId) -> ScvmId {
        ScvmId((host.0 - 1) % self.scvms.len() as u32 + 1)
    }

    pub fn policy(&self, scvm: ScvmId) -> FencePolicy {
        self.scvms[scvm.0 as usize - 1]
    }

    pub(super) fn of_host(&self, host: HostId) -> host::Settings {
        let t = &self.timing;
        host::Settings {
            host,
            local: self.local(host),
            scvms: self.scvm_ids().collect(),
            checked_by_storage: self.scvm_ids().filter(|s| self.policy(*s) == FencePolicy::Storage).collect(),
            pulse_ns: t.pulse,
            doubt_ns: t.doubt,
            standby_ns: t.standby,
            rest_ns: t.rest,
            path_lost_ns: t.path_lost,
            first_mode: host::Mode::Auto,
            hold_down_ns: t.hold_down,
            hold_down_max_ns: t.hold_down_max,
        }
    }

    pub(super) fn of_scvm(&self, id: ScvmId, boot: Incarnation, bypass: bool) -> scvm::Settings {
        let t = &self.timing;
        scvm::Settings {
            id,
            boot,
            policy: self.policy(id),
            mode: scvm::Mode::Enforce,
            bypass,
            keepalive_ns: t.keepalive,
            session_ns: t.session,
            session_no_agent_ns: t.session_no_agent,
            affirm_ns: t.affirm,
            silent_ns: t.silent,
            drain_ns: t.drain,
            planned_drain_ns: t.planned_drain,
            null_rpc_ns: t.null_rpc,
        }
    }

    pub(super) fn of_meta(&self, term: Term) -> meta::Settings {
        let t = &self.timing;
        let address = |net: u8, last: u32| std::net::IpAddr::from([10, net, (last >> 8) as u8, last as u8]);
        let scvm = |id: ScvmId| ScvmInfo {
            id,
            name: format!("scvm{}", id.0),
            storage: address(1, id.0),
            management: address(2, id.0),
            policy: self.policy(id),
        };
        let host = |id: HostId| HostInfo {
            id,
            name: format!("host{}", id.0),
            private: [192, 168, 33, 1].into(),
            storage: address(3, id.0),
            management: address(4, id.0),
            local_scvm: self.local(id),
            has_agent: true,
        };
        meta::Settings {
            cluster: "world".into(),
            term,
            scvms: self.scvm_ids().map(scvm).collect(),
            hosts: self.host_ids().map(host).collect(),
            keepalive_ns: t.keepalive,
            session_ns: t.session,
            longest_session_ns: t.session,
            leader_ns: 300 * MS,
            affirm_ns: t.affirm,
            agentless: meta::Agentless::default(),
            planned_drain_ns: t.planned_drain,
            resend_ns: t.resend,
        }
    }
}
