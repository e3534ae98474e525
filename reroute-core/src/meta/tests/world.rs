//! A small world around the master: a store, a network that loses, repeats and reorders, SCVMs with a kernel word
//! and leases, a host that affirms. It checks what must never happen after every step.

use super::*;
use std::collections::BTreeSet;

/// What an SCVM's kernel holds for the host: grows only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word {
    pub(super) epoch: u64,
    pub(super) fenced: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Scvm {
    pub word: Word,
    pub up: bool,
    pub(super) incarnation: u64,
    pub(super) term: Option<Term>,
    /// Orders up to this number came before the session.
    pub(super) orders_to: u64,
    pub(super) session_deadline: u64,
    pub(super) affirm_deadline: u64,
    /// Admitted by an order that came after the session was asked for.
    pub(super) since_open: BTreeSet<u64>,
    /// What it answers a revoke with: a proof, or that it waits.
    pub waits: bool,
    pub cannot_admit: bool,
    /// Version of the list of blocks that it knows.
    pub blocks: Option<u64>,
    /// Calls of the host may be in progress here: it was affirmed and open, and has not drained since.
    pub(super) called: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Host {
    pub(super) released: u64,
    /// Epoch and server it affirms.
    pub(super) at: Option<(u64, ScvmId)>,
    pub(super) moving: u64,
    pub refused: u32,
    /// An operator ended the login; `moving` is the epoch.
    pub evicted: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Packet {
    ToMeta { from: NodeId, incarnation: u64, seq: u64, msg: ToMeta, sent: u64 },
    Reply { to: NodeId, reply: MetaReply, sent: u64, incarnation: u64 },
    Push { to: NodeId, term: Term, seq: u64, order: Order },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOutcome {
    Done,
    /// Not written, and the store can be read.
    Refused,
    /// Written, but the master is told that nobody knows.
    Unknown,
    /// Not written, and the master is told that nobody knows.
    Lost,
}

pub struct World {
    pub now: u64,
    pub master: SessionMaster,
    pub(super) term: u64,
    pub store: BTreeMap<HostId, Versioned>,
    pending: Option<(HostId, Option<u64>, Record)>,
    /// The store says nothing for now, also not who leads.
    pub store_hangs: bool,
    lease_asked: bool,
    /// As the store holds it, and what is on its way there.
    pub blocks: BlockList,
    pub pending_blocks: Option<BlockList>,
    /// What operators were told.
    pub told: Vec<Result<Done, Denial>>,
    /// The wall clock, ms.
    pub wall: u64,
    pub(super) network: Vec<Packet>,
    /// The last number of a push, per node.
    pub(super) seqs: BTreeMap<NodeId, u64>,
    requests: BTreeMap<u64, (NodeId, u64, u64)>,
    pub(super) next: u64,
    pub scvms: BTreeMap<ScvmId, Scvm>,
    pub host: Host,
    pub journal: Vec<Event>,
    pub admits: u32,
    /// Its orders get lost.
    pub silence: Option<ScvmId>,
    pub commands: Vec<FenceCommandRun>,
    pub answers: Vec<Result<OperatorAnswer, Refusal>>,
    pub drains: BTreeMap<ScvmId, Draining>,
}

impl World {
    pub fn new() -> World {
        let now = 10_000 * MS;
        let up = Scvm { up: true, incarnation: 1, ..Scvm::default() };
        World {
            now,
            master: SessionMaster::new(settings(1), BTreeMap::new(), BootNs(now)),
            term: 1,
            store: BTreeMap::new(),
            pending: None,
            store_hangs: false,
            lease_asked: false,
            blocks: BlockList::default(),
            pending_blocks: None,
            told: Vec::new(),
            wall: 1_800_000_000_000,
            network: Vec::new(),
            seqs: BTreeMap::new(),
            requests: BTreeMap::new(),
            next: 0,
            scvms: [A, B, C].map(|s| (s, up.clone())).into(),
            host: Host::default(),
            journal: Vec::new(),
            admits: 0,
            silence: None,
            commands: Vec::new(),
            answers: Vec::new(),
            drains: BTreeMap::new(),
        }
    }

    pub fn record(&self) -> Option<&Record> {
        self.store.get(&X).map(|v| &v.record)
    }

    pub fn stands_at(&self) -> Option<ScvmId> {
        match self.record()?.login.state {
            LoginState::At { scvm, .. } => Some(scvm),
            LoginState::Moving { .. } | LoginState::Evicted { .. } => None,
        }
    }

    fn admits_now(&self, s: &Scvm) -> bool {
        s.word.epoch > 0 && !s.word.fenced && (self.now < s.session_deadline || self.now < s.affirm_deadline)
    }

    /// What must hold after every step.
    pub(super) fn check(&self) {
        let serving: Vec<_> =
            self.scvms.iter().filter(|(_, s)| self.admits_now(s)).map(|(id, s)| (*id, s.word)).collect();
        assert!(serving.len() <= 1, "two servers admit the host: {serving:?}; record {:?}", self.record());
    }

    /// Calls of the host may now be in progress where it is affirmed and admitted.
    pub(super) fn serve(&mut self) {
        let Some((epoch, id)) = self.host.at else { return };
        let word = Word { epoch, fenced: false };
        let serves = self.scvms.get(&id).is_some_and(|s| s.word == word && self.admits_now(s));
        if let Some(s) = self.scvms.get_mut(&id).filter(|_| serves) {
            s.called = true;
        }
    }

    pub fn pass(&mut self, ns: u64) {
        self.now += ns;
        self.wall += ns / MS;
        self.input(Input::Tick);
    }

    pub fn input(&mut self, input: Input) {
        let effects = self.master.handle(input, BootNs(self.now));
        for effect in effects {
            self.effect(effect);
        }
        self.check();
        self.confirm();
    }

    fn confirm(&mut self) {
        if !self.store_hangs && std::mem::take(&mut self.lease_asked) {
            self.input(Input::LeaseConfirmed);
        }
    }

    pub fn hang(&mut self, hangs: bool) {
        self.store_hangs = hangs;
        self.confirm();
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { request, mut reply } => {
                let (to, sent, incarnation) = self.requests.remove(&request.0).expect("answered once");
                if let MetaReply::Session { logins, orders_to, .. } = &mut reply {
                    *orders_to = self.seqs.get(&to).copied().unwrap_or(0);
                    for (_, epoch) in logins.iter() {
                        let record = self.record().expect("stored before it is told");
                        // The old server goes on until it is shut, and the record asks for that.
                        let old = |f: &Fencing| {
                            NodeId::Scvm(f.scvm) == to && f.epoch == *epoch && f.proof.is_none()
                        };
                        if record.moving_to().is_some() && !record.fencing().iter().any(old) {
                            self.check_admit(to, *epoch);
                        }
                    }
                }
                self.network.push(Packet::Reply { to, reply, sent, incarnation });
            }
            Effect::Push { node, order } => {
                match &order {
                    Order::Admit { epoch, .. } => {
                        self.admits += 1;
                        self.check_admit(node, *epoch);
                    }
                    Order::At { scvm, epoch } => {
                        let state = &self.record().expect("stored before it is told").login.state;
                        assert!(
                            matches!(state, LoginState::At { scvm: s, epoch: e, .. } if s == scvm && e == epoch),
                            "told {order:?}, stored {state:?}"
                        );
                    }
                    Order::Revoke { epoch, .. } => {
                        let NodeId::Scvm(scvm) = node else { panic!("revoke to {node}") };
                        let record = self.record().expect("stored before it is ordered");
                        assert!(record.fencing().iter().any(|f| f.scvm == scvm && f.epoch == *epoch));
                    }
                    _ => {}
                }
                let term = self.master.term();
                let seq = self.seqs.entry(node).or_default();
                *seq += 1;
                self.network.push(Packet::Push { to: node, term, seq: *seq, order });
            }
            Effect::Store { host, expected, record } => {
                assert!(self.pending.is_none(), "one store at a time per host");
                assert_eq!(
                    record.login.term,
                    self.master.term(),
                    "the store takes no record of an earlier term"
                );
                self.pending = Some((host, expected, record));
            }
            Effect::ConfirmLease => {
                assert!(!self.lease_asked, "one at a time");
                self.lease_asked = true;
            }
            Effect::StepDown { later } => panic!("no {later} in this world"),
            Effect::RunFenceCommand(run) => self.commands.push(run),
            Effect::StoreDraining { scvm, draining } => {
                self.drains.retain(|s, _| *s != scvm);
                self.drains.extend(draining.map(|d| (scvm, d)));
                self.input(Input::DrainingStored { scvm, result: Ok(()) });
            }
            Effect::Answer { answer, .. } => self.answers.push(answer),
            Effect::StoreBlocks { expected, list } => {
                assert_eq!(expected, self.blocks.version);
                self.pending_blocks = Some(list);
            }
            Effect::Told { answer, .. } => self.told.push(answer),
            Effect::Journal(event) => {
                // What it may still execute, the storage refuses.
                if let Event::FenceProven { scvm, epoch, proof: FenceProof::LeaseExpiredStorage, .. } = &event
                    && let Some(s) = self.scvms.get_mut(scvm)
                {
                    s.called &= s.word.epoch > epoch.0;
                }
                self.journal.push(event);
            }
        }
    }

    /// An order to admit: the stored record names this target and epoch, and every server it fences is really shut.
    fn check_admit(&self, to: NodeId, epoch: Epoch) {
        let record = self.record().expect("stored before it is ordered");
        let LoginState::Moving { fencing, to: target, epoch: at, .. } = &record.login.state else {
            panic!("admit without a move on record: {record:?}");
        };
        assert_eq!((NodeId::Scvm(*target), *at), (to, epoch), "admit must be what the record says");
        for f in fencing.iter().filter(|f| f.scvm != *target) {
            let s = &self.scvms[&f.scvm];
            let shut = s.word >= Word { epoch: f.epoch.0, fenced: true };
            assert!(shut || !self.admits_now(s), "{} is not shut at {}: {:?}", f.scvm, f.epoch, s);
        }
        for (id, s) in &self.scvms {
            let known = *id == *target || fencing.iter().any(|f| f.scvm == *id);
            assert!(known || !s.called, "calls in progress on {id} are forgotten: {s:?}; record {record:?}");
            assert!(*id == *target || !self.admits_now(s), "{id} still admits: {s:?}; record {record:?}");
        }
    }

    /// An operator asks, and the store takes what follows.
    pub fn operator(&mut self, ask: Ask) -> Result<Done, Denial> {
        let (told, wall) = (self.told.len(), WallMs(self.wall));
        self.next += 1;
        self.input(Input::Ask { ticket: Ticket(self.next), ask, wall });
        self.store(StoreOutcome::Done);
        if let Some(list) = self.pending_blocks.take() {
            self.blocks = list;
            self.input(Input::BlocksStored { result: Ok(()), wall });
        }
        assert_eq!(self.told.len(), told + 1, "told once");
        self.told[told].clone()
    }

    fn wish(&mut self, ask: Ask) {
        self.next += 1;
        self.input(Input::Ask { ticket: Ticket(self.next), ask, wall: WallMs(self.wall) });
    }

    /// An operator asks for the end of the login, whatever comes of it.
    pub fn evict(&mut self) {
        self.wish(Ask::Evict { client: "x".into(), reason: "test".into(), actor: "test".into() });
    }

    /// An operator keeps the host away for a while; the store takes it.
    pub fn block(&mut self, for_ms: u64) {
        let (client, reason, actor) = ("x".into(), "test".into(), "test".into());
        self.wish(Ask::AddBlock { client, for_ms, reason, actor, sure: true });
        if let Some(list) = self.pending_blocks.take() {
            self.blocks = list;
            self.input(Input::BlocksStored { result: Ok(()), wall: WallMs(self.wall) });
        }
    }

    /// The store comes to an end with what it was asked for.
    pub fn store(&mut self, outcome: StoreOutcome) {
        if self.store_hangs {
            return;
        }
        let Some((host, expected, record)) = self.pending.take() else { return };
        let held = self.store.get(&host).cloned();
        let matches = held.as_ref().map(|v| v.version) == expected;
        let writes = matches && matches!(outcome, StoreOutcome::Done | StoreOutcome::Unknown);
        if writes {
            if let Some(held) = &held {
                self.check_successor(&held.record, &record);
            }
            let version = expected.unwrap_or(0) + 1;
            self.store.insert(host, Versioned { version, record });
        }
        let now_held = self.store.get(&host).cloned();
        let failed = |found| Input::StoreFailed { host, why: "test".into(), found };
        self.input(match outcome {
            StoreOutcome::Done if writes => Input::StoreDone { host, version: expected.unwrap_or(0) + 1 },
            StoreOutcome::Done | StoreOutcome::Refused => failed(Some(now_held)),
            StoreOutcome::Unknown | StoreOutcome::Lost => failed(None),
        });
    }

    fn check_successor(&self, old: &Record, new: &Record) {
        assert!(new.epoch() >= old.epoch(), "epochs only grow: {old:?} -> {new:?}");
        if new.epoch() > old.epoch() {
            assert_eq!(new.epoch(), old.epoch().next());
            let ended = matches!(new.login.state, LoginState::Evicted { .. });
            assert!(ended || new.moving_to().is_some(), "a new epoch begins with a move on record");
            return;
        }
        // A proof that is on record may only be bettered.
        let better = |old: &Record, new: &Record| {
            let (f, g) = (old.fencing(), new.fencing());
            assert_eq!(f.len(), g.len());
            let kept =
                |(f, g): (&Fencing, &Fencing)| f.proof.is_none() || (g.proof.is_some() && g.proof <= f.proof);
            assert!(f.iter().zip(g).all(kept));
        };
        match (&old.login.state, &new.login.state) {
            (LoginState::Moving { to, .. }, LoginState::At { scvm, .. }) => assert_eq!(to, scvm),
            (LoginState::Moving { to, .. }, LoginState::Moving { to: same, .. }) => {
                assert_eq!(to, same);
                better(old, new);
            }
            (LoginState::Evicted { .. }, LoginState::Evicted { .. }) => better(old, new),
            (at, same) => assert_eq!(at, same),
        }
    }

    /// Meta dies with what it had in memory, and comes back from the store.
    pub fn restart(&mut self, written: bool) {
        if let Some((host, expected, record)) = self.pending.take()
            && written
            && self.store.get(&host).map(|v| v.version) == expected
        {
            self.store.insert(host, Versioned { version: expected.unwrap_or(0) + 1, record });
        }
        self.requests.clear();
        self.lease_asked = false;
        self.seqs.clear();
        self.term += 1;
        self.pending_blocks = None;
        let now = BootNs(self.now);
        self.master = SessionMaster::new(settings(self.term), self.store.clone(), now)
            .with_draining(self.drains.clone())
            .with_blocks(self.blocks.clone(), WallMs(self.wall), now);
    }

    pub fn in_flight(&self) -> usize {
        self.network.len()
    }

    pub fn lose(&mut self, at: usize) {
        self.network.remove(at);
    }

    /// Delivers one packet, whatever came before it; `again` keeps a copy on the wire.
    pub fn deliver(&mut self, at: usize, again: bool) {
        let packet = if again { self.network[at].clone() } else { self.network.remove(at) };
        match packet {
            Packet::ToMeta { from, incarnation, seq, msg, sent } => {
                self.next += 1;
                let request = self.next;
                self.requests.insert(request, (from, sent, incarnation));
                let incarnation = Incarnation(incarnation);
                self.input(Input::Message { request: RequestId(request), from, incarnation, seq, msg });
            }
            Packet::Reply { to: NodeId::Scvm(id), reply, sent, incarnation } => {
                self.scvm_hears_reply(id, reply, sent, incarnation);
            }
            Packet::Reply { .. } => {}
            Packet::Push { to: NodeId::Scvm(id), .. } if self.silence == Some(id) => {}
            Packet::Push { to: NodeId::Scvm(id), term, seq, order } => self.scvm_obeys(id, term, seq, order),
            Packet::Push { to: NodeId::Host(_), order, .. } => self.host_obeys(order),
        }
        self.check();
    }

    /// A round in which everything works: beats, pulses, every packet delivered in order, the store answering.
    pub fn calm_round(&mut self) {
        for id in [A, B, C] {
            self.beat(id);
        }
        self.pulse();
        self.report();
        for _ in 0..500 {
            self.store(StoreOutcome::Done);
            if self.network.is_empty() && self.pending.is_none() {
                break;
            }
            if !self.network.is_empty() {
                self.deliver(0, false);
            }
        }
        self.pass(50 * MS);
    }

    /// Calm rounds until `done`, with a bound.
    pub fn calm_until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        for _ in 0..200 {
            if done(self) {
                return;
            }
            self.calm_round();
        }
        panic!("not in 200 calm rounds: {what}; record {:?}; scvms {:?}", self.record(), self.scvms);
    }
}
