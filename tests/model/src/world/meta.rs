//! Meta: nodes that can lead (`reroute_core::meta`), and the store they share.

use super::agent::Stream;
use super::clock::Clock;
use super::flight::{Node, Pending, StreamId};
use super::settings::Safeguard;
use super::{Failure, Said, World};
use reroute_core::ids::*;
use reroute_core::meta::{Effect, Input, Record, RequestId, SessionMaster, Versioned};
use reroute_core::proto::{FenceProof, FromMeta, MetaReply, Order, ToMeta};
use reroute_core::timeline::Event;
use std::collections::BTreeMap;

/// Views go out on each change, but not more often than this.
const VIEW_EVERY_NS: u64 = 100 * MS;
const HELLO_EVERY_NS: u64 = SEC;

/// What outlives every leader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Store {
    pub term: Term,
    pub logins: BTreeMap<HostId, Versioned>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    pub master: SessionMaster,
    /// Number of the last line, per node.
    seqs: BTreeMap<NodeId, u64>,
    requests: u64,
    viewed: (u64, BootNs),
    pub next_tick: BootNs,
    /// Streams it has opened.
    streams: u64,
    /// Forged messages carry numbers of their own.
    forged: u64,
    /// Who waits for an answer; some come only when the store has confirmed the lease.
    asked: BTreeMap<RequestId, (NodeId, Incarnation, u64, Network)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Meta {
    pub clock: Clock,
    pub leader: Option<Leader>,
}

impl World {
    /// A leader begins: a new term, drawn from the store.
    pub(super) fn start_meta(&mut self, id: u8) {
        let now = self.local(Node::Meta(id));
        if self.meta(id).leader.is_some() {
            return;
        }
        self.store.term = Term(self.store.term.0 + 1);
        let settings = self.settings.of_meta(self.store.term);
        let master = SessionMaster::new(settings, self.store.logins.clone(), now);
        self.meta_mut(id).leader = Some(Leader {
            viewed: (master.generation(), now),
            master,
            seqs: BTreeMap::new(),
            requests: 0,
            next_tick: now,
            streams: 0,
            forged: 0,
            asked: BTreeMap::new(),
        });
        self.out.touch(Node::Meta(id));
    }

    /// The leader's process ends. What it had asked the store for may be written all the same.
    pub(super) fn crash_meta(&mut self, id: u8) {
        self.meta_mut(id).leader = None;
        self.drop_streams(Node::Meta(id));
    }

    pub(super) fn wake_meta(&mut self, id: u8) {
        let now = self.local(Node::Meta(id));
        let tick = self.settings.timing.meta_tick;
        let Some(leader) = &mut self.meta_mut(id).leader else { return };
        if now < leader.next_tick {
            return;
        }
        leader.next_tick = now.plus(tick);
        self.feed_meta(id, Input::Tick);
        let quiet = |(s, stream): (&StreamId, &Stream)| {
            (s.meta == id && now.since(stream.sent_at) >= HELLO_EVERY_NS).then_some(s.node)
        };
        let mut nodes: Vec<NodeId> = self.streams.iter().filter_map(quiet).collect();
        nodes.dedup();
        for node in nodes {
            self.push(id, node, Order::Hello { cluster: "world".into() }, now);
        }
    }

    fn feed_meta(&mut self, id: u8, input: Input) {
        let now = self.local(Node::Meta(id));
        let Some(leader) = &mut self.meta_mut(id).leader else { return };
        for effect in leader.master.handle(input, now) {
            self.meta_effect(id, effect, now);
        }
        self.push_view_if_changed(id, now);
        self.out.touch(Node::Meta(id));
    }

    fn meta_effect(&mut self, id: u8, effect: Effect, now: BootNs) {
        let Some(leader) = &mut self.meta_mut(id).leader else { return };
        match effect {
            Effect::Reply { request, mut reply } => {
                let Some((to, incarnation, seq, network)) = leader.asked.remove(&request) else { return };
                if let MetaReply::Session { orders_to, .. } = &mut reply {
                    *orders_to = leader.seqs.get(&to).copied().unwrap_or(0);
                }
                self.add(Pending::Answer { to, incarnation, seq, meta: id, network, reply });
            }
            Effect::Push { node, order } => {
                if !self.settings.has(Safeguard::ProofStep)
                    && let (NodeId::Scvm(scvm), Order::Revoke { host, epoch, .. }) = (node, &order)
                {
                    self.forge_proof(id, scvm, *host, *epoch);
                }
                self.push(id, node, order, now);
            }
            Effect::Store { host, expected, record } => {
                let term = leader.master.term();
                let record = Box::new(record);
                self.add(Pending::Store { meta: id, term, host, expected, record });
            }
            Effect::ConfirmLease => {
                let term = leader.master.term();
                let over = self.settings.has(Safeguard::LeaderLease) && self.store.term > term;
                let later = self.store.term;
                self.feed_meta(id, if over { Input::LeaseOver { later } } else { Input::LeaseConfirmed });
            }
            Effect::StepDown { .. } => self.crash_meta(id),
            // No operator asks, and no fence command is configured.
            Effect::RunFenceCommand(_)
            | Effect::StoreDraining { .. }
            | Effect::Answer { .. }
            | Effect::StoreBlocks { .. }
            | Effect::Told { .. } => {}
            Effect::Journal(event) => self.out.say(Said { node: Node::Meta(id), at: now, event }),
        }
    }

    /// The proof step is left out: Meta takes it that the server has answered.
    fn forge_proof(&mut self, id: u8, scvm: ScvmId, host: HostId, epoch: Epoch) {
        let now = self.local(Node::Meta(id));
        let Some(leader) = &mut self.meta_mut(id).leader else { return };
        leader.forged += 1;
        leader.requests += 1;
        let msg = ToMeta::Fenced { host, epoch, proof: FenceProof::Drained };
        let input = Input::Message {
            request: RequestId(leader.requests),
            from: NodeId::Scvm(scvm),
            incarnation: Incarnation(u64::MAX),
            seq: leader.forged,
            msg,
        };
        for effect in leader.master.handle(input, now) {
            self.meta_effect(id, effect, now);
        }
    }

    pub(super) fn post_arrives(
        &mut self,
        id: u8,
        (from, incarnation, seq, network): (NodeId, Incarnation, u64, Network),
        msg: ToMeta,
    ) {
        let Some(leader) = &mut self.meta_mut(id).leader else { return };
        leader.requests += 1;
        let request = RequestId(leader.requests);
        leader.asked.insert(request, (from, incarnation, seq, network));
        self.feed_meta(id, Input::Message { request, from, incarnation, seq, msg });
    }

    /// A node opens a push stream: first a sign of life and the view, then what it must know.
    pub(super) fn connect(&mut self, stream: StreamId) {
        let (node, id) = (stream.node, stream.meta);
        let now = self.local(Node::Meta(id));
        let heard_at = self.local(node.into());
        let Some(leader) = &mut self.meta_mut(id).leader else { return };
        leader.streams += 1;
        let opened = leader.master.term().0 << 32 | leader.streams;
        let (term, view) = (leader.master.term(), leader.master.view(now));
        let lines = std::collections::VecDeque::new();
        self.streams.insert(stream, Stream { opened, lines, sent_at: now, heard_at });
        for order in [Order::Hello { cluster: "world".into() }, Order::View { view }] {
            self.put_line(stream, FromMeta { term, seq: 0, order }, now);
        }
        self.feed_meta(id, Input::Connected { node });
    }

    fn push_view_if_changed(&mut self, id: u8, now: BootNs) {
        let Some(leader) = &mut self.meta_mut(id).leader else { return };
        let (generation, at) = leader.viewed;
        if leader.master.generation() == generation || now.since(at) < VIEW_EVERY_NS {
            return;
        }
        leader.viewed = (leader.master.generation(), now);
        let view = leader.master.view(now);
        let mut nodes: Vec<NodeId> = self.streams.keys().filter(|s| s.meta == id).map(|s| s.node).collect();
        nodes.dedup();
        for node in nodes {
            self.push(id, node, Order::View { view: view.clone() }, now);
        }
    }

    fn push(&mut self, id: u8, node: NodeId, order: Order, now: BootNs) {
        let streams: Vec<StreamId> =
            self.streams.keys().copied().filter(|s| s.node == node && s.meta == id).collect();
        if streams.is_empty() {
            return;
        }
        let Some(leader) = &mut self.meta_mut(id).leader else { return };
        let seq = leader.seqs.entry(node).or_default();
        *seq += 1;
        let line = FromMeta { term: leader.master.term(), seq: *seq, order };
        for stream in streams {
            self.put_line(stream, line.clone(), now);
        }
    }

    /// The store comes to an end with what it was asked for.
    pub(super) fn stored(
        &mut self,
        (meta, term): (u8, Term),
        host: HostId,
        expected: Option<u64>,
        record: Record,
        failure: Option<Failure>,
    ) {
        let held = self.store.logins.get(&host).cloned();
        let matches = held.as_ref().map(|v| v.version) == expected;
        let writes = matches && matches!(failure, None | Some(Failure::Unknown));
        if writes {
            let settings = self.settings.clone();
            self.oracle.recorded(&settings, held.as_ref().map(|v| &v.record), &record);
            let version = expected.unwrap_or(0) + 1;
            self.store.logins.insert(host, Versioned { version, record });
        }
        let asked = self.meta(meta).leader.as_ref().is_some_and(|l| l.master.term() == term);
        if !asked {
            return; // whoever asked is gone
        }
        let failed = |found| Input::StoreFailed { host, why: "the store said no".into(), found };
        let input = match failure {
            None if writes => Input::StoreDone { host, version: expected.unwrap_or(0) + 1 },
            None | Some(Failure::Refused) => failed(Some(self.store.logins.get(&host).cloned())),
            Some(Failure::Unknown | Failure::Lost) => failed(None),
        };
        self.feed_meta(meta, input);
    }

    /// The login as it is stored: where, and at which epoch. None: none yet, or it moves.
    pub fn stands(&self, host: HostId) -> Option<(ScvmId, Epoch)> {
        use reroute_core::proto::LoginState;
        match self.store.logins.get(&host)?.record.login.state {
            LoginState::At { scvm, epoch, .. } => Some((scvm, epoch)),
            LoginState::Moving { .. } | LoginState::Evicted { .. } => None,
        }
    }
}

/// What of a journal counts as a move that has come to its end.
pub fn is_stored(event: &Event) -> Option<(HostId, ScvmId, Epoch)> {
    match event {
        Event::LoginStored { host, scvm, epoch } => Some((*host, *scvm, *epoch)),
        _ => None,
    }
}
