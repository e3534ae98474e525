//! Meta's leaders, and the store they share: compare-and-set, and a term that only grows.

use super::nodes::*;
use super::story::*;
use super::world::World;
use reroute_core::block::Ask;
use reroute_core::ids::*;
use reroute_core::meta::{Effect, Input, Record, RequestId, SessionMaster, Ticket, Versioned};
use reroute_core::proto::*;

impl World {
    /// A leader begins: a term is drawn from the store, and the record is read with it.
    pub fn start_leader(&mut self, i: usize) {
        if self.metas[i].leader.is_some() || !self.carries(Node::Meta(i), Node::Store) {
            return;
        }
        let store = self.store.edit();
        store.term = Term(store.term.0 + 1);
        let (term, logins) = (store.term, store.logins());
        let now = self.local(Node::Meta(i));
        let master = SessionMaster::new(self.story.meta_settings(term), logins, now);
        let meta = self.metas[i].edit();
        meta.back_at = None;
        meta.leader = Some(Leader {
            master,
            seqs: Default::default(),
            requests: Aside(0),
            awaiting: vec![],
            streams: Default::default(),
            to_store: vec![],
        });
    }

    pub fn crash_meta(&mut self, i: usize, down: u32) {
        let back_at = self.round + down;
        let Some(leader) = &self.metas[i].leader else { return };
        let term = leader.master.term();
        let moving = self.moving();
        self.oracle.edit().leader_lost(term, moving);
        let meta = self.metas[i].edit();
        meta.leader = None;
        meta.back_at = Some(back_at);
        self.break_streams();
    }

    pub fn evict(&mut self) {
        let Some(i) = self.newest_leader() else { return };
        let ask = Ask::Evict { client: X.0.to_string(), reason: "a test".into(), actor: "somebody".into() };
        self.feed_meta(i, Input::Ask { ticket: Ticket(1), ask, wall: WallMs(0) });
    }

    pub fn tick_meta(&mut self, i: usize) {
        let reaches = self.carries(Node::Meta(i), Node::Store);
        if self.metas[i].leader.as_ref().is_some_and(|l| reaches && !l.to_store.is_empty())
            && let Some(leader) = &mut self.metas[i].edit().leader
        {
            self.queue.extend(std::mem::take(&mut leader.to_store));
        }
        self.feed_meta(i, Input::Tick);
    }

    pub fn post_arrives(&mut self, from: NodeId, incarnation: Incarnation, seq: u64, i: usize, msg: ToMeta) {
        let msg = self.with_present_epoch(from, msg);
        let Some(leader) = &mut self.metas[i].edit().leader else { return };
        leader.requests.0 += 1;
        let request = leader.requests;
        leader.awaiting.push((request, from, incarnation, Aside(seq)));
        let request = RequestId(request.0);
        self.feed_meta(i, Input::Message { request, from, incarnation, seq, msg });
    }

    /// Without the epoch check, whatever an answer says counts for what is asked now.
    fn with_present_epoch(&self, from: NodeId, msg: ToMeta) -> ToMeta {
        let Some((_, record)) = self.store.login.as_ref().filter(|_| !self.story.has(Safeguard::EpochCheck))
        else {
            return msg;
        };
        let fenced = |scvm: ScvmId, said: Epoch| match &record.login.state {
            LoginState::Moving { fencing, .. } => {
                fencing.iter().find(|f| f.scvm == scvm).map_or(said, |f| f.epoch)
            }
            LoginState::At { .. } | LoginState::Evicted { .. } => said,
        };
        match (from, msg) {
            (NodeId::Scvm(s), ToMeta::Fenced { host, epoch, proof }) => {
                ToMeta::Fenced { host, epoch: fenced(s, epoch), proof }
            }
            (_, ToMeta::FencedByPulse { scvm, epoch }) => {
                ToMeta::FencedByPulse { scvm, epoch: fenced(scvm, epoch) }
            }
            (_, ToMeta::Admitted { host, error, .. }) => {
                ToMeta::Admitted { host, epoch: record.epoch(), error }
            }
            (_, ToMeta::Released { epoch }) => {
                ToMeta::Released { epoch: record.from.map_or(epoch, |f| f.epoch) }
            }
            (_, msg) => msg,
        }
    }

    pub fn feed_meta(&mut self, i: usize, input: Input) {
        let now = self.local(Node::Meta(i));
        let Some(leader) = &mut self.metas[i].edit().leader else { return };
        for effect in leader.master.handle(input, now) {
            self.meta_does(i, effect);
        }
    }

    fn meta_does(&mut self, i: usize, effect: Effect) {
        let at = Node::Meta(i);
        let Some(leader) = &mut self.metas[i].edit().leader else { return };
        let term = leader.master.term();
        match effect {
            Effect::Reply { request, mut reply } => {
                let Some(place) = leader.awaiting.iter().position(|(r, ..)| r.0 == request.0) else { return };
                let (_, to, incarnation, seq) = leader.awaiting.remove(place);
                if let MetaReply::Session { orders_to, .. } = &mut reply {
                    *orders_to = leader.seqs.get(&to).copied().unwrap_or(0);
                }
                self.send(at, Thing::Answer { to, incarnation, seq, meta: i, reply });
            }
            Effect::Push { node: to, order } => {
                let Some(incarnation) = leader.streams.get(&to).copied() else { return };
                let seq = leader.seqs.entry(to).or_default();
                *seq += 1;
                let seq = *seq;
                if let (Order::Revoke { host, epoch, .. }, NodeId::Scvm(_)) = (&order, to)
                    && !self.story.has(Safeguard::ProofStep)
                {
                    let msg = ToMeta::Fenced { host: *host, epoch: *epoch, proof: FenceProof::Drained };
                    // Forged: with a number that nobody uses.
                    let forged = Aside(1 << 40 | epoch.0);
                    self.queue.push_back(Thing::Post {
                        from: to,
                        incarnation,
                        seq: forged,
                        meta: i,
                        msg,
                        mark: 0,
                    });
                }
                self.send(at, Thing::Push { to, incarnation, term, seq, order });
            }
            Effect::Store { expected, record, .. } => {
                self.ask_store(i, Thing::Write { meta: i, term, expected, record: Box::new(record) });
            }
            // No operator asks, and no fence command is configured.
            Effect::RunFenceCommand(_)
            | Effect::StoreDraining { .. }
            | Effect::Answer { .. }
            | Effect::StoreBlocks { .. }
            | Effect::Told { .. } => {}
            Effect::ConfirmLease if self.story.has(Safeguard::LeaderLease) => {
                self.ask_store(i, Thing::Confirm { meta: i, term });
            }
            Effect::ConfirmLease => self.feed_meta(i, Input::LeaseConfirmed),
            Effect::StepDown { .. } => {
                let moving = self.moving();
                self.oracle.edit().leader_lost(term, moving);
                self.metas[i].edit().leader = None;
                self.break_streams();
            }
            Effect::Journal(event) => self.oracle.edit().journal(&event),
        }
    }

    /// Out of reach, it is asked when it is there again: the answer may be long in coming.
    fn ask_store(&mut self, i: usize, thing: Thing) {
        if self.carries(Node::Meta(i), Node::Store) {
            self.queue.push_back(thing);
        } else if let Some(leader) = &mut self.metas[i].edit().leader {
            leader.to_store.push(thing);
        }
    }

    fn stored(&mut self, meta: usize, term: Term, input: Input) {
        self.queue.push_back(Thing::Stored { meta, term, input: Box::new(input) });
    }

    pub fn confirm(&mut self, meta: usize, term: Term) {
        let later = self.store.term;
        let answer = if later > term { Input::LeaseOver { later } } else { Input::LeaseConfirmed };
        self.stored(meta, term, answer);
    }

    pub fn write(&mut self, meta: usize, term: Term, expected: Option<u64>, record: Record) {
        let later = self.store.term;
        if later > term {
            return self.stored(meta, term, Input::LeaseOver { later });
        }
        let held = self.store.login.clone();
        if held.as_ref().map(|(version, _)| *version) != expected {
            let found = held.map(|(version, record)| Versioned { version, record });
            let why = "conflict".to_string();
            return self.stored(meta, term, Input::StoreFailed { host: X, why, found: Some(found) });
        }
        let version = expected.unwrap_or(0) + 1;
        self.oracle.edit().recorded(term, &record.login.state);
        self.store.edit().login = Some((version, record));
        self.stored(meta, term, Input::StoreDone { host: X, version });
    }
}
