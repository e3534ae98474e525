//! An SCVM's kernel: the words, the leases, the counts, as the programs of `reroute-ebpf` keep them.
//!
//! What is taken over from there: the word is read after the call was counted in; a fence sets the word before the
//! counts are read; words and deadlines only grow; a pulse's answer reads the word, then the counts; what is in progress
//! on a connection that ends becomes orphans; orphans go only when another server process is registered.

use super::flight::Pulse;
use super::settings::{Safeguard, Settings};
use super::tcp::ConnId;
use reroute_common::admission::{Word, rank};
use reroute_core::host::{Facts, PulseFlag};
use reroute_core::ids::*;
use reroute_core::scvm::{Answer, ClientFacts, Mode, ServerFacts, Signal, SignalKind};
use std::collections::BTreeMap;

/// As in the programs: an agent that has not been seen for longer speaks for nobody.
const AGENT_ALIVE_NS: u64 = 300 * MS;
/// A host's pulses are live if the last one is not older than this.
const LIVE_NS: u64 = 200 * MS;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Client {
    pub word: Word0,
    pub affirm_deadline: BootNs,
    released_at: BootNs,
    pulse_at: BootNs,
    pub in_progress: u32,
    pub orphans: u32,
    /// Of which the first reply was reported.
    replied: Epoch,
}

/// A word that begins as nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word0(pub Word);

impl Default for Word0 {
    fn default() -> Word0 {
        Word0(Word::NONE)
    }
}

/// A connection whose calls are matched with their replies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    pub host: HostId,
    pub opened_at: BootNs,
    /// Calls by number, and since when they wait.
    pub waiting: BTreeMap<u64, BootNs>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Of the machine; stamps of another boot are worth nothing.
    pub boot: u64,
    pub mode: Mode,
    /// The server process it was told of.
    pub incarnation: Incarnation,
    pub session_deadline: BootNs,
    pub session_deadline_no_agent: BootNs,
    listener_gone_at: Option<BootNs>,
    pub listening: bool,
    last_reply_at: BootNs,
    silent: bool,
    null_failed: bool,
    agent_seen_at: BootNs,
    pub clients: BTreeMap<HostId, Client>,
    pub lines: BTreeMap<ConnId, Line>,
    /// What the agent has not been told yet.
    pub signals: Vec<Signal>,
    unanswered: u64,
    affirm: u64,
    shield: u64,
    checks_epochs: bool,
    echoes_stamps: bool,
}

impl Kernel {
    pub fn new(settings: &Settings, boot: u64) -> Kernel {
        let t = &settings.timing;
        Kernel {
            boot,
            mode: Mode::Enforce,
            incarnation: Incarnation(0),
            session_deadline: BootNs(0),
            session_deadline_no_agent: BootNs(0),
            listener_gone_at: None,
            listening: false,
            last_reply_at: BootNs(0),
            silent: false,
            null_failed: false,
            agent_seen_at: BootNs(0),
            clients: settings.host_ids().map(|h| (h, Client::default())).collect(),
            lines: BTreeMap::new(),
            signals: Vec::new(),
            unanswered: t.unanswered,
            affirm: t.affirm,
            shield: t.shield,
            checks_epochs: settings.has(Safeguard::EpochCheck),
            echoes_stamps: settings.has(Safeguard::StampEcho),
        }
    }

    pub fn word(&self, host: HostId) -> Word {
        self.clients.get(&host).map_or(Word::NONE, |c| c.word.0)
    }

    fn lease_end(&self, client: &Client) -> BootNs {
        self.session_deadline.max(client.affirm_deadline)
    }

    /// Whether a call of this host would get in now. Modes that let everybody in apart.
    pub fn admits(&self, host: HostId, now: BootNs) -> bool {
        self.clients.get(&host).is_some_and(|c| c.word.0.is_admitted() && now < self.lease_end(c))
    }

    /// Whether a packet of this host gets in.
    pub fn passes(&self, host: HostId, now: BootNs) -> bool {
        self.mode != Mode::Enforce || self.admits(host, now)
    }

    // --- calls and replies ---

    /// A complete call, admitted and in its turn.
    pub fn accept(&mut self, conn: ConnId, number: u64, now: BootNs) {
        let Some(line) = self.lines.get_mut(&conn) else { return };
        // Sent again while the first one is still waited for: counted once.
        if line.waiting.insert(number, now).is_none()
            && let Some(client) = self.clients.get_mut(&line.host)
        {
            client.in_progress += 1;
        }
    }

    pub fn opened(&mut self, conn: ConnId, host: HostId, now: BootNs) {
        self.lines.entry(conn).or_insert(Line { host, opened_at: now, waiting: BTreeMap::new() });
    }

    /// A reply leaves.
    pub fn answered(&mut self, conn: ConnId, number: u64, now: BootNs) {
        self.last_reply_at = now;
        let Some(line) = self.lines.get_mut(&conn) else { return };
        let host = line.host;
        if line.waiting.remove(&number).is_some()
            && let Some(client) = self.clients.get_mut(&host)
        {
            client.in_progress = client.in_progress.saturating_sub(1);
            let epoch = Epoch(client.word.0.epoch());
            if client.word.0.is_admitted() && client.replied < epoch {
                client.replied = epoch;
                self.signal(SignalKind::FirstReply(epoch), Some(host), now);
            }
        }
        self.timer(now);
    }

    /// A connection ends: what waits there can be matched no more.
    pub fn ended(&mut self, conn: ConnId) {
        let Some(line) = self.lines.remove(&conn) else { return };
        if let Some(client) = self.clients.get_mut(&line.host) {
            let calls = line.waiting.len() as u32;
            client.orphans += calls;
            client.in_progress = client.in_progress.saturating_sub(calls);
        }
    }

    /// A FIN or RST to this host is held back: its server has died, or it is shut out and must not be told so.
    pub fn holds_back(&self, host: HostId, now: BootNs) -> bool {
        let shut_out = self.word(host).rank() >= rank::RELEASED;
        self.shields(host, now) || (shut_out && self.is_live(host, now))
    }

    /// Nobody listens, and this host is spared the refusal.
    pub fn shields(&self, host: HostId, now: BootNs) -> bool {
        !self.listening
            && self.is_live(host, now)
            && self.listener_gone_at.is_some_and(|at| now.since(at) <= self.shield)
    }

    fn is_live(&self, host: HostId, now: BootNs) -> bool {
        let pulse_at = self.clients.get(&host).map_or(BootNs(0), |c| c.pulse_at);
        self.mode == Mode::Enforce && pulse_at.0 != 0 && now.since(pulse_at) <= LIVE_NS
    }

    pub fn listener(&mut self, there: bool, now: BootNs) {
        if self.listening != there {
            self.listening = there;
            if !there {
                self.listener_gone_at = Some(now);
            }
            let kind = if there { SignalKind::ListenerBack } else { SignalKind::ListenerGone };
            self.signal(kind, None, now);
        }
    }

    fn waiting(&self) -> (u32, Option<BootNs>) {
        let calls = self.lines.values().flat_map(|l| l.waiting.values());
        let (mut number, mut oldest) = (0, None);
        for at in calls {
            number += 1;
            oldest = Some(oldest.map_or(*at, |o: BootNs| o.min(*at)));
        }
        (number, oldest)
    }

    /// What the timer sees: calls that wait too long while no reply leaves for anybody.
    pub fn timer(&mut self, now: BootNs) {
        let silent = if self.lines.is_empty() {
            false
        } else {
            let (_, oldest) = self.waiting();
            oldest.is_some_and(|at| now.since(at) >= self.unanswered)
                && now.since(self.last_reply_at) >= self.unanswered
        };
        if silent != self.silent {
            self.silent = silent;
            let kind = if silent { SignalKind::Silent } else { SignalKind::SilentEnd };
            self.signal(kind, None, now);
        }
    }

    /// When the timer has something to see next, if nothing changes.
    pub fn timer_due(&self) -> Option<BootNs> {
        if self.silent {
            return None;
        }
        let (_, oldest) = self.waiting();
        oldest.map(|at| at.max(self.last_reply_at).plus(self.unanswered))
    }

    fn signal(&mut self, kind: SignalKind, host: Option<HostId>, at: BootNs) {
        self.signals.push(Signal { kind, at, host, waiting: 0, age_ns: 0, limit_ns: 0 });
    }

    // --- pulses ---

    /// Acts on a pulse, and fills the answer in.
    pub fn reflect(&mut self, pulse: &Pulse, now: BootNs) -> Option<Facts> {
        self.timer(now);
        let lease = self.session_deadline;
        let (affirm_ns, boot) = (self.affirm, self.boot);
        let (checks_epochs, echoes) = (self.checks_epochs, self.echoes_stamps);
        let client = self.clients.get_mut(&pulse.host)?;
        client.pulse_at = now;
        let word = client.word.0;
        let mut released = None;
        match pulse.flag {
            PulseFlag::Release => {
                let same = word.epoch() == pulse.epoch.0 || !checks_epochs;
                if pulse.epoch.0 != 0 && same && word.rank() < rank::RELEASED {
                    client.released_at = client.released_at.max(now);
                    client.word = Word0(Word::new(word.epoch(), rank::RELEASED));
                    released = Some(Epoch(word.epoch()));
                }
            }
            PulseFlag::Affirm => {
                let same = word == Word::new(pulse.epoch.0, rank::ADMITTED)
                    || (!checks_epochs && word.is_admitted());
                let stamp = BootNs(pulse.scvm_stamp);
                if !echoes {
                    if same {
                        client.affirm_deadline = client.affirm_deadline.max(now.plus(affirm_ns));
                    }
                } else if same
                    && pulse.scvm_boot == boot
                    && stamp.0 != 0
                    && stamp <= now
                    && stamp >= client.released_at
                {
                    client.affirm_deadline = client.affirm_deadline.max(stamp.plus(affirm_ns));
                }
            }
            PulseFlag::Probe => {}
        }
        let client = client.clone();
        if let Some(epoch) = released {
            self.signal(SignalKind::Released(epoch), Some(pulse.host), now);
        }
        let (calls_waiting, oldest) = self.waiting();
        let word = client.word.0;
        let agent_age_ns = now.since(self.agent_seen_at);
        Some(Facts {
            scvm_boot: boot,
            scvm_stamp: now.0,
            server: self.incarnation,
            word_epoch: Epoch(word.epoch()),
            word_rank: word.into(),
            lease_ns: lease.max(client.affirm_deadline).since(now),
            listening: self.listening,
            silent: self.silent,
            null_failed: self.null_failed && agent_age_ns <= AGENT_ALIVE_NS,
            enforcing: self.mode == Mode::Enforce,
            in_progress: client.in_progress,
            orphans: client.orphans,
            calls_waiting,
            oldest_call_age_ns: oldest.map_or(0, |at| now.since(at)),
            agent_age_ns,
            data_silent: false,
            data_reply_age_ns: 0,
        })
    }

    // --- the agent's commands ---

    /// Raises the word, and reads the counts after it.
    pub fn raise(&mut self, host: HostId, epoch: Epoch, rank: u8) -> Answer {
        let checks = self.checks_epochs;
        let to = Word::new(epoch.0, rank);
        let mut stale = false;
        if let Some(client) = self.clients.get_mut(&host) {
            stale = to < client.word.0;
            if !stale || !checks {
                client.word = Word0(to);
            }
        }
        Answer { stale, ..self.read(host) }
    }

    pub fn read(&self, host: HostId) -> Answer {
        let client = self.clients.get(&host).cloned().unwrap_or_default();
        let Client { word, in_progress, orphans, .. } = client;
        Answer { word: word.0, in_progress, orphans, stale: false }
    }

    pub fn renew(&mut self, deadline: BootNs, no_agent: BootNs) {
        self.session_deadline = self.session_deadline.max(deadline);
        self.session_deadline_no_agent = self.session_deadline_no_agent.max(no_agent);
    }

    pub fn set_null_failed(&mut self, failed: bool) {
        self.null_failed = failed;
    }

    /// The agent is there.
    pub fn touch(&mut self, now: BootNs) {
        self.agent_seen_at = now;
    }

    /// The old process is reaped, this one serves.
    pub fn server_started(&mut self, incarnation: Incarnation) {
        let known = std::mem::replace(&mut self.incarnation, incarnation);
        if known.0 == 0 || known == incarnation {
            return;
        }
        for client in self.clients.values_mut() {
            client.orphans = 0;
        }
        // Connections opened later are the new server's.
        let until = self.listener_gone_at.unwrap_or(BootNs(u64::MAX));
        for line in self.lines.values_mut().filter(|l| l.opened_at <= until) {
            let calls = std::mem::take(&mut line.waiting).len() as u32;
            if let Some(client) = self.clients.get_mut(&line.host) {
                client.in_progress = client.in_progress.saturating_sub(calls);
            }
        }
    }

    pub fn server_facts(&mut self, now: BootNs) -> ServerFacts {
        self.timer(now);
        let (waiting, _) = self.waiting();
        ServerFacts {
            incarnation: self.incarnation,
            listening: self.listening,
            last_reply_at: self.last_reply_at,
            waiting,
            silent: self.silent,
            stalled_flows: 0,
            session_deadline: self.session_deadline,
            session_deadline_no_agent: self.session_deadline_no_agent,
        }
    }

    pub fn client_facts(&self) -> Vec<ClientFacts> {
        let facts = |(host, c): (&HostId, &Client)| ClientFacts {
            host: *host,
            has_agent: true,
            word: c.word.0,
            affirm_deadline: c.affirm_deadline,
            blocked_until: BootNs(0),
            connections: self.lines.values().filter(|l| l.host == *host).count() as u32,
            in_progress: 0,
            replies: 0,
        };
        self.clients.iter().map(facts).collect()
    }
}
