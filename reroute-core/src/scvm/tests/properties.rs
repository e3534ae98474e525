//! Random orders, faults and delays; what must never happen is checked on every effect.

use super::super::*;
use super::world::*;
use crate::proto::{FenceProof, MetaReply, Order, Refusal, ToMeta};
use proptest::prelude::*;
use reroute_common::admission::{Word, rank};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    /// Carry out the effect of this position among those that wait.
    Perform(usize),
    PerformAll,
    /// Answer a message of this position.
    Answer(usize, Reply),
    Prepare(HostId, u64),
    Revoke(HostId, u64, bool),
    Admit(HostId, u64),
    /// A copy with a number of so many orders ago.
    LateAdmit(HostId, u64, u64),
    Break(Part),
    Mend,
    Calls(HostId, u32, u32),
    Release(HostId),
    Replies,
    Exit,
    Restart,
    Null(bool, bool),
    Stall(bool),
    Bypass(bool),
    Affirm(HostId, u64),
}

#[derive(Clone, Debug)]
enum Reply {
    Ok,
    OtherTerm,
    NoSession,
    Lost,
    Session(Vec<(HostId, Epoch)>),
}

fn host() -> impl Strategy<Value = HostId> {
    prop_oneof![Just(X), Just(Y)]
}
fn part() -> impl Strategy<Value = Part> {
    use Part::*;
    proptest::sample::select(vec![Fence, Admit, Read, Purge, Epochs, Mode, Kill, Register, Pulse])
}
fn reply() -> impl Strategy<Value = Reply> {
    let logins = proptest::collection::vec((host(), (1..6u64).prop_map(Epoch)), 0..2);
    prop_oneof![
        6 => Just(Reply::Ok),
        1 => Just(Reply::OtherTerm),
        1 => Just(Reply::NoSession),
        1 => Just(Reply::Lost),
        4 => logins.prop_map(Reply::Session),
    ]
}
fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..150u64).prop_map(Step::Pass),
        4 => (0..8usize).prop_map(Step::Perform),
        8 => Just(Step::PerformAll),
        8 => (0..6usize, reply()).prop_map(|(i, r)| Step::Answer(i, r)),
        1 => (host(), 1..6u64).prop_map(|(h, e)| Step::Prepare(h, e)),
        4 => (host(), 1..6u64, any::<bool>()).prop_map(|(h, e, p)| Step::Revoke(h, e, p)),
        4 => (host(), 1..6u64).prop_map(|(h, e)| Step::Admit(h, e)),
        2 => (host(), 1..6u64, 0..6u64).prop_map(|(h, e, ago)| Step::LateAdmit(h, e, ago)),
        1 => part().prop_map(Step::Break),
        2 => Just(Step::Mend),
        3 => (host(), 0..3u32, 0..2u32).prop_map(|(h, c, o)| Step::Calls(h, c, o)),
        1 => host().prop_map(Step::Release),
        2 => Just(Step::Replies),
        1 => Just(Step::Exit),
        1 => Just(Step::Restart),
        2 => any::<(bool, bool)>().prop_map(|(a, s)| Step::Null(a, s)),
        2 => any::<bool>().prop_map(Step::Stall),
        1 => any::<bool>().prop_map(Step::Bypass),
        1 => (host(), 0..200u64).prop_map(|(h, ms)| Step::Affirm(h, ms)),
    ]
}

/// The node, with effects that wait to be carried out, and what the rules need to remember.
struct Trial {
    node: Node,
    policy: FencePolicy,
    waiting: Vec<Effect>,
    alive: BTreeMap<Incarnation, u32>,
    processes: u64,
    fences_asked: BTreeMap<HostId, Epoch>,
    /// The last word the machine was told of.
    closed: BTreeMap<HostId, Word>,
    /// Words of answers that showed no call in progress.
    idle: Vec<(HostId, Word)>,
    urgent: BTreeSet<HostId>,
    killed: BTreeSet<Incarnation>,
    exits: u32,
    bypass: bool,
    /// Stamps and sessions of the replies that may renew.
    granted: BTreeSet<BootNs>,
    last_open: u64,
    affirmed: BTreeMap<HostId, BootNs>,
    /// What Meta has asked to be opened since the last session began, and its last order before that.
    allowed: BTreeSet<(HostId, Epoch)>,
    orders_to: u64,
}

impl Trial {
    fn new(policy: FencePolicy) -> Trial {
        let mut trial = Trial {
            node: Node::new(settings(policy)),
            policy,
            waiting: Vec::new(),
            alive: BTreeMap::from([(SERVER, PID)]),
            processes: 0,
            fences_asked: BTreeMap::new(),
            closed: BTreeMap::new(),
            idle: Vec::new(),
            urgent: BTreeSet::new(),
            killed: BTreeSet::new(),
            exits: 0,
            bypass: false,
            granted: BTreeSet::new(),
            last_open: 0,
            affirmed: BTreeMap::new(),
            allowed: BTreeSet::new(),
            orders_to: 0,
        };
        trial.feed(Input::ServerSeen { pid: PID, incarnation: SERVER });
        trial
    }

    fn feed(&mut self, input: Input) {
        if let Input::FenceAnswer { host, answer: Ok(answer), .. }
        | Input::Counts { host, answer: Ok(answer), .. } = &input
        {
            self.closed.insert(*host, answer.word);
            if answer.idle() {
                self.idle.push((*host, answer.word));
            }
        }
        let now = self.node.now;
        assert!(self.node.machine.handle(Input::Server(self.node.facts), now).is_empty());
        for effect in self.node.machine.handle(input, now) {
            self.check(&effect);
            match effect {
                Effect::Send { tag, msg } => {
                    if let Tag::Open { session, .. } = tag {
                        self.last_open = session;
                    }
                    self.node.mail.push_back((tag, msg));
                }
                Effect::Journal { .. } => {}
                other => self.waiting.push(other),
            }
        }
        assert!(self.node.machine.wake_at(now) >= now && self.node.machine.wake_at(now) <= now.plus(10 * MS));
    }

    fn check(&mut self, effect: &Effect) {
        let now = self.node.now;
        match effect {
            Effect::Fence { host, epoch } => {
                let asked = self.fences_asked.entry(*host).or_default();
                *asked = (*epoch).max(*asked);
            }
            Effect::Admit { host, epoch } => {
                let fenced = self.fences_asked.get(host).copied().unwrap_or_default();
                assert!(*epoch > fenced, "{host} admitted at {epoch} after a fence of {fenced}");
                assert_eq!(self.node.epochs.get(host), Some(epoch), "admitted before it was published");
                assert!(
                    self.allowed.contains(&(*host, *epoch)),
                    "{host} admitted at {epoch}: not asked for now"
                );
                let open = self.node.machine.session.live(&self.node.machine.settings, now);
                assert!(open.is_some(), "{host} admitted at {epoch} without a session");
            }
            Effect::Renew { deadline, .. } => {
                let stamp = BootNs(deadline.0 - 500 * MS);
                assert!(self.granted.contains(&stamp), "renewed by a reply of another session or term");
                assert!(*deadline > now, "renewed into the past");
            }
            Effect::KillServer { incarnation } => {
                assert_eq!(self.policy, FencePolicy::Kill);
                assert!(!self.bypass);
                let cause = self.urgent.iter().any(|host| {
                    let word = self.closed.get(host).copied().unwrap_or(Word::NONE);
                    self.fences_asked.get(host).is_some_and(|asked| word.epoch() <= asked.0)
                });
                assert!(cause, "killed for a planned move, or for an old epoch");
                assert!(now.since(self.node.facts.last_reply_at) > 50 * MS, "killed while replies leave");
                assert!(self.alive.contains_key(incarnation));
                self.killed.insert(*incarnation);
            }
            Effect::ServerStarted { incarnation } => {
                assert_eq!(self.alive.keys().collect::<Vec<_>>(), [incarnation], "another one may still run");
            }
            Effect::SetAgentState { null_failed: true } => {
                assert!(now.since(self.node.facts.last_reply_at) > 50 * MS, "busy was called dead");
            }
            Effect::Send { msg: ToMeta::Fenced { host, epoch, proof }, .. } => {
                assert!(!self.bypass, "nothing is fenced in bypass");
                let word = self.closed.get(host).copied().expect("a fence answer");
                assert!(word.is_closed_for(epoch.0), "{host} said fenced at {epoch}: {:#x}", word.0);
                match proof {
                    FenceProof::Storage => assert_eq!(self.policy, FencePolicy::Storage),
                    FenceProof::Killed => assert!(!self.killed.is_empty()),
                    FenceProof::Drained => {
                        let drained = |(h, word): &(HostId, Word)| h == host && word.is_closed_for(epoch.0);
                        assert!(self.idle.iter().any(drained), "drained, but never seen idle");
                    }
                    FenceProof::ProcessDead => assert!(self.exits > 0),
                    other => panic!("{other:?} is not ours to say"),
                }
            }
            Effect::Send { msg: ToMeta::Admitted { host, epoch, error: None }, .. } => {
                let word = self.node.word(*host);
                assert!(word >= Word::new(epoch.0, rank::ADMITTED));
            }
            _ => {}
        }
    }

    fn perform(&mut self, effect: Effect) {
        if effect == Effect::ProbeNull {
            // The server answers it, see Step::Null.
            return self.waiting.push(effect);
        }
        let kill = match effect {
            Effect::KillServer { incarnation } => Some(incarnation),
            _ => None,
        };
        let broken = self.node.broken.contains(&Part::Kill);
        if let Some(result) = self.node.perform(effect) {
            self.feed(result);
        }
        if let Some(incarnation) = kill
            && !broken
        {
            self.exit(incarnation);
        }
    }

    fn exit(&mut self, incarnation: Incarnation) {
        if let Some(pid) = self.alive.remove(&incarnation) {
            self.node.facts.listening = !self.alive.is_empty();
            self.exits += 1;
            self.feed(Input::ServerExited { pid, incarnation });
        }
    }

    fn answer(&mut self, index: usize, reply: Reply) {
        if self.node.mail.is_empty() {
            return;
        }
        let (tag, _) = self.node.mail.remove(index % self.node.mail.len()).unwrap();
        let reply = match reply {
            Reply::Ok => Ok(MetaReply::Ok { term: TERM }),
            Reply::OtherTerm => Ok(MetaReply::Ok { term: Term(6) }),
            Reply::NoSession => Ok(MetaReply::Refused { error: Refusal::NoSession }),
            Reply::Lost => Err("lost".to_string()),
            Reply::Session(logins) => Ok(MetaReply::Session {
                term: TERM,
                logins,
                orders_to: self.node.seq,
                blocks: Default::default(),
            }),
        };
        // What Meta has granted: a session, or a keepalive of the last one opened, in its term.
        match (&tag, &reply) {
            (Tag::Open { session, sent_at }, Ok(MetaReply::Session { logins, .. }))
                if *session == self.last_open =>
            {
                self.allowed = logins.iter().copied().collect();
                self.granted.insert(*sent_at);
                self.orders_to = self.node.seq;
            }
            (Tag::KeepAlive { session, term, sent_at }, Ok(MetaReply::Ok { term: theirs }))
                if *session == self.last_open && term == theirs =>
            {
                self.granted.insert(*sent_at);
            }
            _ => {}
        }
        self.feed(Input::Reply { tag, reply });
    }

    fn clients(&mut self) {
        let affirmed = [X, Y].map(|h| (h, self.affirmed.get(&h).copied().unwrap_or_default()));
        self.node.clients(&affirmed);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Pass(ms) => {
                let end = self.node.now.plus(ms * MS);
                while self.node.now < end {
                    let wake = self.node.machine.wake_at(self.node.now).max(self.node.now.plus(MS));
                    self.node.now = wake.min(end);
                    self.feed(Input::Tick);
                }
                self.clients();
            }
            Step::Perform(index) => {
                if !self.waiting.is_empty() {
                    let effect = self.waiting.remove(index % self.waiting.len());
                    self.perform(effect);
                }
            }
            Step::PerformAll => {
                // New ones that follow are carried out too; a bound, as a failure asks for a retry.
                for _ in 0..200 {
                    let Some(next) = self.waiting.iter().position(|e| *e != Effect::ProbeNull) else { break };
                    let effect = self.waiting.remove(next);
                    self.perform(effect);
                }
            }
            Step::Answer(index, reply) => self.answer(index, reply),
            Step::Prepare(host, epoch) => self.order(Order::Prepare { host, epoch: Epoch(epoch) }),
            Step::Revoke(host, epoch, planned) => {
                if !planned {
                    self.urgent.insert(host);
                }
                self.order(Order::Revoke { host, epoch: Epoch(epoch), planned });
            }
            Step::Admit(host, epoch) => self.order(Order::Admit { host, epoch: Epoch(epoch) }),
            Step::LateAdmit(host, epoch, ago) => {
                let order = Order::Admit { host, epoch: Epoch(epoch) };
                self.order_of(self.node.seq.saturating_sub(ago), order)
            }
            Step::Break(part) => drop(self.node.broken.insert(part)),
            Step::Mend => self.node.broken.clear(),
            Step::Calls(host, in_progress, orphans) => self.node.calls(host, in_progress, orphans),
            Step::Release(host) => {
                let word = self.node.word(host);
                if word.is_admitted() {
                    self.node.kernel.raise(host, Word::new(word.epoch(), rank::RELEASED));
                }
            }
            Step::Replies => self.node.facts.last_reply_at = self.node.now,
            Step::Exit => {
                if let Some(&incarnation) = self.alive.keys().next() {
                    self.exit(incarnation);
                }
            }
            Step::Restart => {
                if self.alive.len() < 2 {
                    self.processes += 1;
                    let incarnation = Incarnation(SERVER.0 + self.processes);
                    let pid = PID + self.processes as u32;
                    self.alive.insert(incarnation, pid);
                    self.node.facts.listening = true;
                    self.feed(Input::ServerSeen { pid, incarnation });
                }
            }
            Step::Null(answered, starved) => {
                if let Some(at) = self.waiting.iter().position(|e| *e == Effect::ProbeNull) {
                    self.waiting.remove(at);
                    self.feed(Input::NullRpc { answered, took_ns: MS, starved });
                }
            }
            Step::Stall(on) => self.node.facts.silent = on,
            Step::Bypass(on) => {
                self.bypass = on;
                self.feed(Input::Bypass { on, actor: "root".into() });
            }
            Step::Affirm(host, ms) => drop(self.affirmed.insert(host, self.node.now.plus(ms * MS))),
        }
    }

    fn order(&mut self, order: Order) {
        self.node.seq += 1;
        self.order_of(self.node.seq, order);
    }

    fn order_of(&mut self, seq: u64, order: Order) {
        if let Order::Admit { host, epoch } = order
            && seq > self.orders_to
        {
            self.allowed.insert((host, epoch));
        }
        self.feed(Input::Order { term: TERM, seq, order });
    }

    /// Nothing fails any more, every call gets its reply, Meta answers: all that was asked for must come about.
    fn calm(&mut self) {
        self.step(Step::Mend);
        self.step(Step::Bypass(false));
        self.node.kernel.calls.clear();
        self.step(Step::Revoke(X, 9, true));
        let mut proven = false;
        let mut admitted = false;
        for _ in 0..60 {
            // Meta repeats what it has no answer to.
            self.step(Step::Admit(Y, 9));
            self.step(Step::PerformAll);
            self.step(Step::Null(true, false));
            self.node.facts.silent = false;
            for (_, msg) in &self.node.mail {
                proven |= matches!(msg, ToMeta::Fenced { host: X, epoch: Epoch(9), .. });
                admitted |= matches!(msg, ToMeta::Admitted { host: Y, epoch: Epoch(9), error: None });
            }
            while let Some((tag, _)) = self.node.mail.front() {
                let opens = matches!(tag, Tag::Open { .. });
                self.answer(0, if opens { Reply::Session(vec![(Y, Epoch(9))]) } else { Reply::Ok });
            }
            self.step(Step::Pass(50));
        }
        assert!(proven, "the fence is proven: {:#?}", self.node.machine.view(self.node.now));
        assert!(admitted, "the other host is admitted");
        let view = self.node.machine.view(self.node.now);
        assert_eq!(view.session, "open");
        assert!(view.lease_ns > 0);
        assert_eq!(self.node.epochs, BTreeMap::from([(Y, Epoch(9))]), "the epoch file tells who is served");
        assert_eq!(self.node.kernel.null_failed, Some(false));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_rule_is_broken_whatever_comes(
        policy in proptest::sample::select(vec![FencePolicy::Storage, FencePolicy::Kill, FencePolicy::Wait]),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut trial = Trial::new(policy);
        for step in steps {
            trial.step(step);
        }
        trial.calm();
    }
}
