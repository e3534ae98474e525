//! A node around the machine: kernel, server, disk and Meta, each made to fail at will.

use super::super::*;
use crate::block::BlockOrder;
use crate::proto::{FenceProof, MetaReply, Order, ToMeta};
use reroute_common::admission::{Word, rank};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const X: HostId = HostId(1);
pub const Y: HostId = HostId(2);
pub const TERM: Term = Term(7);

/// What a test lets fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Fence,
    Admit,
    Read,
    Purge,
    Epochs,
    Mode,
    Kill,
    Register,
    Pulse,
    Block,
    Tickle,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    pub in_progress: u32,
    pub orphans: u32,
}

/// Words only grow, as the `control` program does it.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    pub words: BTreeMap<HostId, Word>,
    pub calls: BTreeMap<HostId, Calls>,
    pub mode: Option<Mode>,
    pub null_failed: Option<bool>,
    pub blocked: BTreeMap<HostId, BootNs>,
}

impl Kernel {
    pub fn raise(&mut self, host: HostId, word: Word) -> Answer {
        let stands = self.words.entry(host).or_insert(Word::NONE);
        let stale = word < *stands;
        *stands = word.max(*stands);
        self.read(host, stale)
    }
    pub fn read(&self, host: HostId, stale: bool) -> Answer {
        let calls = self.calls.get(&host).copied().unwrap_or_default();
        let word = self.words.get(&host).copied().unwrap_or(Word::NONE);
        Answer { word, in_progress: calls.in_progress, orphans: calls.orphans, stale }
    }
}

pub struct Node {
    pub machine: Scvm,
    pub now: BootNs,
    pub kernel: Kernel,
    pub facts: ServerFacts,
    pub broken: BTreeSet<Part>,
    pub sockets: BTreeMap<HostId, u32>,
    pub epochs: BTreeMap<HostId, Epoch>,
    /// What the server answers to NULL; `None`: the test does.
    pub null: Option<bool>,
    /// The server does not answer: a NULL call fails when its time is over.
    pub hung: bool,
    pub null_due: Option<BootNs>,
    /// Killed processes terminate at once.
    pub reaps: bool,
    /// Every effect, and when.
    pub log: Vec<(BootNs, Effect)>,
    /// Messages nobody has answered.
    pub mail: VecDeque<(Tag, ToMeta)>,
    /// Of the last order.
    pub seq: u64,
}

pub fn settings(policy: FencePolicy) -> Settings {
    Settings {
        id: ScvmId(1),
        boot: Incarnation(99),
        policy,
        mode: Mode::Enforce,
        bypass: false,
        keepalive_ns: 100 * MS,
        session_ns: 500 * MS,
        session_no_agent_ns: 8000 * MS,
        affirm_ns: 100 * MS,
        silent_ns: 50 * MS,
        drain_ns: 20 * MS,
        planned_drain_ns: 2000 * MS,
        null_rpc_ns: 50 * MS,
    }
}

pub const SERVER: Incarnation = Incarnation(11);
pub const PID: u32 = 4242;

impl Node {
    pub fn new(settings: Settings) -> Node {
        let now = BootNs(1000 * SEC);
        let facts = ServerFacts { incarnation: SERVER, listening: true, ..ServerFacts::default() };
        Node {
            machine: Scvm::new(settings, now),
            now,
            kernel: Kernel::default(),
            facts,
            broken: BTreeSet::new(),
            sockets: BTreeMap::new(),
            epochs: BTreeMap::new(),
            null: None,
            hung: false,
            null_due: None,
            reaps: true,
            log: Vec::new(),
            mail: VecDeque::new(),
            seq: 0,
        }
    }

    /// With a server, and a session in `TERM` that names nobody; the mail is empty.
    pub fn up(policy: FencePolicy) -> Node {
        let mut node = Node::new(settings(policy));
        node.feed(Input::ServerSeen { pid: PID, incarnation: SERVER });
        node.feed(Input::Tick);
        node.open(&[]);
        // Long enough for the server not to count as just started.
        node.run(60 * MS);
        node.log.clear();
        node.mail.clear();
        node
    }

    /// Answers the SessionOpen that is in the mail.
    pub fn open(&mut self, logins: &[(HostId, Epoch)]) {
        self.open_with(logins, BlockOrder::default());
    }

    pub fn open_with(&mut self, logins: &[(HostId, Epoch)], blocks: BlockOrder) {
        let at =
            self.mail.iter().position(|(tag, _)| matches!(tag, Tag::Open { .. })).expect("a SessionOpen");
        let (tag, _) = self.mail.remove(at).unwrap();
        let (logins, orders_to) = (logins.to_vec(), self.seq);
        let reply = Ok(MetaReply::Session { term: TERM, logins, orders_to, blocks });
        self.feed(Input::Reply { tag, reply });
    }

    pub fn order(&mut self, order: Order) {
        self.seq += 1;
        self.feed(Input::Order { term: TERM, seq: self.seq, order });
    }

    /// Hands an input in, with fresh facts before it, and carries out all that follows.
    pub fn feed(&mut self, input: Input) {
        let mut queue = VecDeque::from([input]);
        while let Some(input) = queue.pop_front() {
            assert!(self.machine.handle(Input::Server(self.facts), self.now).is_empty());
            for effect in self.machine.handle(input, self.now) {
                self.log.push((self.now, effect.clone()));
                if let Effect::KillServer { incarnation } = effect
                    && self.reaps
                {
                    queue.push_back(Input::ServerExited { pid: PID, incarnation });
                }
                queue.extend(self.perform(effect));
            }
        }
    }

    pub fn perform(&mut self, effect: Effect) -> Option<Input> {
        let ok = |part, broken: &BTreeSet<Part>| {
            if broken.contains(&part) { Err("broken".to_string()) } else { Ok(()) }
        };
        let broken = self.broken.clone();
        Some(match effect {
            Effect::Send { tag, msg } => {
                self.mail.push_back((tag, msg));
                return None;
            }
            Effect::Renew { deadline, deadline_no_agent } => {
                self.facts.session_deadline = deadline.max(self.facts.session_deadline);
                self.facts.session_deadline_no_agent =
                    deadline_no_agent.max(self.facts.session_deadline_no_agent);
                Input::Renewed(Ok(()))
            }
            Effect::PublishEpochs { epochs } => {
                let result = ok(Part::Epochs, &broken);
                if result.is_ok() {
                    self.epochs = epochs;
                }
                Input::EpochsPublished(result)
            }
            Effect::Admit { host, epoch } => {
                let answer = ok(Part::Admit, &broken)
                    .map(|()| self.kernel.raise(host, Word::new(epoch.0, rank::ADMITTED)));
                Input::AdmitAnswer { host, epoch, answer }
            }
            Effect::Fence { host, epoch } => {
                let answer = ok(Part::Fence, &broken)
                    .map(|()| self.kernel.raise(host, Word::new(epoch.0, rank::FENCED)));
                Input::FenceAnswer { host, epoch, answer }
            }
            Effect::ReadCounts { host, epoch } => {
                let answer = ok(Part::Read, &broken).map(|()| self.kernel.read(host, false));
                Input::Counts { host, epoch, answer }
            }
            Effect::PurgeSockets { host, epoch, purpose } => {
                let purge = ok(Part::Purge, &broken).map(|()| {
                    let destroyed = self.sockets.remove(&host).unwrap_or(0);
                    Purge { destroyed, left: 0 }
                });
                Input::Purged { host, epoch, purpose, purge }
            }
            Effect::ResetClient { host, epoch, ports, .. } => {
                let tickled = ports.len() as u32;
                let result = ok(Part::Tickle, &broken).map(|()| Tickled { tickled, destroyed: 0 });
                Input::ClientReset { host, epoch, result }
            }
            Effect::ProbeNull if self.hung => {
                self.null_due = Some(self.now.plus(50 * MS));
                return None;
            }
            Effect::ProbeNull => Input::NullRpc { answered: self.null?, took_ns: MS, starved: false },
            Effect::AskOwnAddress => Input::OwnAddress(Err("no ARP".into())),
            Effect::SetAgentState { null_failed } => {
                let result = ok(Part::Pulse, &broken);
                if result.is_ok() {
                    self.kernel.null_failed = Some(null_failed);
                }
                Input::AgentStateSet(result)
            }
            Effect::SetBlock { host, until } => {
                let result = ok(Part::Block, &broken);
                if result.is_ok() {
                    self.kernel.blocked.insert(host, until);
                }
                Input::BlockSet { host, until, result }
            }
            Effect::SetMode { mode } => {
                let result = ok(Part::Mode, &broken);
                if result.is_ok() {
                    self.kernel.mode = Some(mode);
                }
                Input::ModeSet { mode, result }
            }
            Effect::PersistBypass { .. } => Input::BypassPersisted(Ok(())),
            Effect::KillServer { incarnation } => {
                Input::KillSent { incarnation, result: ok(Part::Kill, &broken) }
            }
            Effect::ServerStarted { incarnation } => {
                let result = ok(Part::Register, &broken);
                if result.is_ok() {
                    self.facts.incarnation = incarnation;
                }
                Input::ServerRegistered { incarnation, result }
            }
            Effect::Journal { .. } => return None,
        })
    }

    /// Lets time pass; keepalives are answered on the way if `answer`.
    pub fn pass(&mut self, ns: u64, answer: bool) {
        let end = self.now.plus(ns);
        while self.now < end {
            let wake = self.machine.wake_at(self.now).max(self.now.plus(MS));
            self.now = wake.min(end).min(self.null_due.unwrap_or(end));
            if self.null_due.is_some_and(|at| at <= self.now) {
                self.null_due = None;
                self.feed(Input::NullRpc { answered: false, took_ns: 50 * MS, starved: false });
            }
            self.feed(Input::Tick);
            if answer {
                self.keep();
            }
        }
    }
    pub fn run(&mut self, ns: u64) {
        self.pass(ns, true);
    }

    /// Answers every keepalive in the mail.
    pub fn keep(&mut self) {
        while let Some(at) = self.mail.iter().position(|(tag, _)| matches!(tag, Tag::KeepAlive { .. })) {
            let (tag, msg) = self.mail.remove(at).unwrap();
            let ToMeta::KeepAlive { term, .. } = msg else { panic!("{msg:?}") };
            self.feed(Input::Reply { tag, reply: Ok(MetaReply::Ok { term }) });
        }
    }

    /// Messages that are answers to orders, in their order.
    pub fn answers(&self) -> Vec<ToMeta> {
        self.mail
            .iter()
            .filter(|(tag, _)| matches!(tag, Tag::Answer { .. }))
            .map(|(_, msg)| msg.clone())
            .collect()
    }
    pub fn fenced(&self) -> Vec<(Epoch, FenceProof)> {
        let proofs = self.answers().into_iter().filter_map(|msg| match msg {
            ToMeta::Fenced { epoch, proof, .. } => Some((epoch, proof)),
            _ => None,
        });
        proofs.collect()
    }
    /// Why the last fence waits.
    pub fn waits(&self) -> Option<String> {
        self.answers().into_iter().rev().find_map(|msg| match msg {
            ToMeta::FenceWaits { why, .. } => Some(why),
            _ => None,
        })
    }
    pub fn did(&self, wanted: impl Fn(&Effect) -> bool) -> usize {
        self.log.iter().filter(|(_, e)| wanted(e)).count()
    }
    pub fn position(&self, wanted: impl Fn(&Effect) -> bool) -> usize {
        self.log.iter().position(|(_, e)| wanted(e)).expect("the effect")
    }
    pub fn killed(&self) -> bool {
        self.did(|e| matches!(e, Effect::KillServer { .. })) > 0
    }
    pub fn calls(&mut self, host: HostId, in_progress: u32, orphans: u32) {
        self.kernel.calls.insert(host, Calls { in_progress, orphans });
    }
    pub fn word(&self, host: HostId) -> Word {
        self.kernel.words.get(&host).copied().unwrap_or(Word::NONE)
    }
    pub fn clients(&mut self, clients: &[(HostId, BootNs)]) {
        let facts = clients.iter().map(|&(host, affirm_deadline)| ClientFacts {
            host,
            has_agent: true,
            word: self.word(host),
            affirm_deadline,
            blocked_until: self.kernel.blocked.get(&host).copied().unwrap_or_default(),
            connections: 1,
            in_progress: 0,
            replies: 0,
        });
        let facts = facts.collect();
        self.machine.handle(Input::Clients(facts), self.now);
    }
}
