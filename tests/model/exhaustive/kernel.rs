//! An SCVM's kernel and its access server, as far as admission and calls go (`reroute-ebpf`: `admit`, `pulse`,
//! `control`; the flow table is reduced to counts).

use super::story::{Safeguard, Story};
use reroute_common::admission::{Word, rank};
use reroute_core::host::{Facts, PulseFlag};
use reroute_core::ids::*;
use reroute_core::scvm::{Answer, ClientFacts, Mode, ServerFacts};

/// As in the programs: an agent that was not seen for longer speaks for nobody.
const AGENT_ALIVE_NS: u64 = 300 * MS;

/// A call that the kernel let in, and that was not executed yet.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Call {
    /// The word's epoch when it was let in.
    pub epoch: Epoch,
    pub since: BootNs,
    /// The kernel still sees it; else it is an orphan there.
    pub seen: bool,
}

#[derive(Clone, Debug, Hash)]
pub struct Kernel {
    boot: u64,
    /// Of the client.
    has_agent: bool,
    word: u64,
    pub mode: Option<Mode>,
    session_deadline: BootNs,
    session_deadline_no_agent: BootNs,
    affirm_deadline: BootNs,
    released_at: BootNs,
    orphans: u32,
    pub last_reply_at: BootNs,
    pub null_failed: bool,
    pub agent_seen_at: BootNs,
    /// The server process it was told of.
    registered: Incarnation,
}

#[derive(Clone, Debug, Hash)]
pub struct Server {
    pub incarnation: Incarnation,
    pub alive: bool,
    pub hung: bool,
    pub calls: Vec<Call>,
}

impl Server {
    pub fn answers(&self) -> bool {
        self.alive && !self.hung
    }
}

/// A pulse on its way.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Pulse {
    pub scvm: ScvmId,
    pub flag: PulseFlag,
    pub epoch: Epoch,
    pub scvm_boot: u64,
    pub scvm_stamp: u64,
    pub sent_at: BootNs,
    pub incarnation: Incarnation,
}

impl Kernel {
    pub fn new(boot: u64, has_agent: bool) -> Kernel {
        Kernel {
            boot,
            has_agent,
            word: 0,
            mode: None,
            session_deadline: BootNs(0),
            session_deadline_no_agent: BootNs(0),
            affirm_deadline: BootNs(0),
            released_at: BootNs(0),
            orphans: 0,
            last_reply_at: BootNs(0),
            null_failed: false,
            agent_seen_at: BootNs(0),
            registered: Incarnation(0),
        }
    }

    pub fn boot(&self) -> u64 {
        self.boot
    }

    pub fn word(&self) -> Word {
        Word(self.word)
    }

    pub fn lease_end(&self) -> BootNs {
        if self.has_agent {
            self.session_deadline.max(self.affirm_deadline)
        } else {
            self.session_deadline_no_agent
        }
    }

    pub fn renew(&mut self, deadline: BootNs, deadline_no_agent: BootNs) {
        self.session_deadline = self.session_deadline.max(deadline);
        self.session_deadline_no_agent = self.session_deadline_no_agent.max(deadline_no_agent);
    }

    /// Whether a call would be let in.
    pub fn admits(&self, now: BootNs) -> bool {
        self.word().is_admitted() && now < self.lease_end()
    }

    fn in_progress(server: &Server) -> u32 {
        server.calls.iter().filter(|c| c.seen).count() as u32
    }

    fn silent(&self, server: &Server, story: &Story, now: BootNs) -> bool {
        let oldest = server.calls.iter().filter(|c| c.seen).map(|c| c.since).min();
        oldest.is_some_and(|at| now.since(at) >= story.silent_ns)
            && now.since(self.last_reply_at) >= story.silent_ns
    }

    /// Acts on a pulse and fills the answer in.
    pub fn reflect(&mut self, pulse: &Pulse, server: &Server, story: &Story, now: BootNs) -> Facts {
        let word = self.word();
        let checks = story.has(Safeguard::EpochCheck);
        match pulse.flag {
            PulseFlag::Release => {
                let same = word.epoch() == pulse.epoch.0 || !checks;
                if pulse.epoch.0 != 0 && same && word.rank() < rank::RELEASED {
                    self.released_at = self.released_at.max(now);
                    self.word = Word::new(word.epoch(), rank::RELEASED).0;
                }
            }
            PulseFlag::Affirm => {
                let same = if checks {
                    word == Word::new(pulse.epoch.0, rank::ADMITTED)
                } else {
                    word.is_admitted()
                };
                let stamp = BootNs(pulse.scvm_stamp);
                let genuine =
                    pulse.scvm_boot == self.boot && stamp.0 != 0 && stamp <= now && stamp >= self.released_at;
                if same && !story.has(Safeguard::StampEcho) {
                    self.affirm_deadline = self.affirm_deadline.max(now.plus(story.affirm_ns));
                } else if same && genuine {
                    self.affirm_deadline = self.affirm_deadline.max(stamp.plus(story.affirm_ns));
                }
            }
            PulseFlag::Probe => {}
        }
        let word = self.word();
        let agent_age_ns = now.since(self.agent_seen_at);
        let oldest = server.calls.iter().filter(|c| c.seen).map(|c| now.since(c.since)).max();
        Facts {
            scvm_boot: self.boot,
            scvm_stamp: now.0,
            server: self.registered,
            word_epoch: Epoch(word.epoch()),
            word_rank: word.into(),
            lease_ns: self.lease_end().since(now),
            listening: server.alive,
            silent: self.silent(server, story, now),
            null_failed: self.null_failed && agent_age_ns <= AGENT_ALIVE_NS,
            enforcing: self.mode == Some(Mode::Enforce),
            in_progress: Self::in_progress(server),
            orphans: self.orphans,
            calls_waiting: Self::in_progress(server),
            oldest_call_age_ns: oldest.unwrap_or(0),
            agent_age_ns,
            data_silent: false,
            data_reply_age_ns: 0,
        }
    }

    /// Raises the word; the counts are read after it.
    pub fn raise(&mut self, epoch: Epoch, rank: u8, server: &Server) -> Answer {
        let to = Word::new(epoch.0, rank);
        let stale = to.0 < self.word;
        self.word = self.word.max(to.0);
        Answer { stale, ..self.read(server) }
    }

    pub fn read(&self, server: &Server) -> Answer {
        let in_progress = Self::in_progress(server);
        Answer { word: self.word(), in_progress, orphans: self.orphans, stale: false }
    }

    /// The connections end: what waits there can be matched no more.
    pub fn lose_sight(&mut self, server: &mut Server) {
        for call in server.calls.iter_mut().filter(|c| c.seen) {
            call.seen = false;
            self.orphans += 1;
        }
    }

    pub fn server_started(&mut self, incarnation: Incarnation) {
        let known = std::mem::replace(&mut self.registered, incarnation);
        if known.0 != 0 && known != incarnation {
            self.orphans = 0;
        }
    }

    pub fn server_facts(&self, server: &Server, story: &Story, now: BootNs) -> ServerFacts {
        ServerFacts {
            incarnation: self.registered,
            listening: server.alive,
            last_reply_at: self.last_reply_at,
            waiting: Self::in_progress(server),
            silent: self.silent(server, story, now),
            stalled_flows: 0,
            session_deadline: self.session_deadline,
            session_deadline_no_agent: self.session_deadline_no_agent,
        }
    }

    pub fn client_facts(&self, host: HostId) -> ClientFacts {
        ClientFacts {
            host,
            has_agent: self.has_agent,
            word: self.word(),
            affirm_deadline: self.affirm_deadline,
            blocked_until: BootNs(0),
            connections: 1,
            in_progress: 0,
            replies: 0,
        }
    }
}
