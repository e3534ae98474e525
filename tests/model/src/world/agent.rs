//! What every agent has: its run, its messages to Meta, its push streams.

use super::flight::{Pending, StreamId};
use super::{Node, World};
use reroute_core::ids::*;
use reroute_core::proto::{FromMeta, MetaReply, Order, ToMeta};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Meta says Hello at least once a second: three missed ones end the stream.
const SILENCE_NS: u64 = 3 * SEC;
/// Lines a push stream may lag behind.
const STREAM_QUEUE: usize = 256;
/// Orders remembered to know their copies.
const REMEMBERED: usize = 1024;

/// Which orders were handed on already, over all streams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Seen {
    term: Term,
    seqs: BTreeSet<u64>,
    floor: u64,
}

impl Seen {
    /// None: of a term that is over. False: a copy.
    fn judge(&mut self, line: &FromMeta) -> Option<bool> {
        if line.term < self.term {
            return None;
        }
        if line.term > self.term {
            *self = Seen { term: line.term, ..Seen::default() };
        }
        if matches!(line.order, Order::Hello { .. } | Order::View { .. }) {
            return Some(true);
        }
        if line.seq < self.floor || !self.seqs.insert(line.seq) {
            return Some(false);
        }
        if self.seqs.len() > REMEMBERED
            && let Some(oldest) = self.seqs.pop_first()
        {
            self.floor = oldest + 1;
        }
        Some(true)
    }
}

/// One run of an agent, as far as Meta is concerned. `T`: what a message is given back with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link<T> {
    pub incarnation: Incarnation,
    seq: u64,
    /// Without an answer: since when, and what.
    asked: BTreeMap<u64, (BootNs, T)>,
    seen: Seen,
    /// Streams that have said something.
    up: BTreeSet<StreamId>,
}

impl<T: Clone> Link<T> {
    pub fn new(incarnation: Incarnation) -> Link<T> {
        Link { incarnation, seq: 0, asked: BTreeMap::new(), seen: Seen::default(), up: BTreeSet::new() }
    }

    /// Numbers a message.
    pub fn ask(&mut self, what: T, now: BootNs) -> u64 {
        self.seq += 1;
        self.asked.insert(self.seq, (now, what));
        self.seq
    }

    /// The first answer; later ones find nothing.
    pub fn answered(&mut self, seq: u64) -> Option<T> {
        self.asked.remove(&seq).map(|(_, what)| what)
    }

    /// What was asked too long ago.
    pub fn given_up(&mut self, timeout: u64, now: BootNs) -> Vec<T> {
        let over: Vec<u64> =
            self.asked.iter().filter(|(_, (at, _))| now.since(*at) >= timeout).map(|(s, _)| *s).collect();
        over.into_iter().filter_map(|seq| self.answered(seq)).collect()
    }

    pub fn wake_at(&self, timeout: u64) -> Option<BootNs> {
        self.asked.values().map(|(at, _)| at.plus(timeout)).min()
    }

    /// A line has come. Gives whether the stream is up by it, and the order, if it is news.
    pub fn line(&mut self, stream: StreamId, line: &FromMeta) -> (bool, Option<FromMeta>) {
        match self.seen.judge(line) {
            None => (false, None),
            Some(is_new) => (self.up.insert(stream), is_new.then(|| line.clone())),
        }
    }

    /// A stream has ended. True: it was the last one.
    pub fn down(&mut self, stream: StreamId) -> bool {
        self.up.remove(&stream) && self.up.is_empty()
    }
}

/// A push stream that both ends hold for open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// Tells it from an earlier one of the same name.
    pub opened: u64,
    pub lines: VecDeque<FromMeta>,
    /// Last line sent, by Meta's clock.
    pub sent_at: BootNs,
    /// Last line heard, by the node's clock.
    pub heard_at: BootNs,
}

impl World {
    /// Sends a message to Meta: to each of its nodes, by each network.
    pub(super) fn post(&mut self, from: NodeId, incarnation: Incarnation, seq: u64, msg: &ToMeta) {
        let settings = self.settings.clone();
        for meta in 0..settings.metas {
            for &network in &settings.meta_networks {
                let msg = msg.clone();
                self.add(Pending::Post { from, incarnation, seq, meta, network, msg });
            }
        }
    }

    /// An agent begins to look for Meta.
    pub(super) fn seek_meta(&mut self, node: NodeId, incarnation: Incarnation) {
        let settings = self.settings.clone();
        for meta in 0..settings.metas {
            for &network in &settings.meta_networks {
                let stream = StreamId { node, meta, network };
                self.add(Pending::Connect { stream, incarnation });
            }
        }
    }

    /// The streams of a node, or of one of Meta's, end: its process is gone.
    pub(super) fn drop_streams(&mut self, of: Node) {
        let gone = |id: &StreamId| Node::from(id.node) == of || Node::Meta(id.meta) == of;
        let ids: Vec<StreamId> = self.streams.keys().copied().filter(gone).collect();
        for id in ids {
            self.end_stream(id);
        }
    }

    /// One stream ends; its node, if it is there, looks for a new one.
    pub(super) fn end_stream(&mut self, id: StreamId) {
        if self.streams.remove(&id).is_none() {
            return;
        }
        if let Some(incarnation) = self.incarnation(id.node) {
            self.add(Pending::Connect { stream: id, incarnation });
            self.stream_down(id);
        }
    }

    fn incarnation(&self, node: NodeId) -> Option<Incarnation> {
        match node {
            NodeId::Host(id) => self.host(id).agent.as_ref().map(|a| a.link.incarnation),
            NodeId::Scvm(id) => self.scvm(id).agent.as_ref().map(|a| a.link.incarnation),
        }
    }

    /// Ends the streams of a node that have been silent for too long.
    pub(super) fn end_silent_streams(&mut self, node: NodeId, now: BootNs) {
        let silent = |(id, s): (&StreamId, &Stream)| {
            (id.node == node && now.since(s.heard_at) >= SILENCE_NS).then_some(*id)
        };
        let ids: Vec<StreamId> = self.streams.iter().filter_map(silent).collect();
        for id in ids {
            self.end_stream(id);
        }
    }

    /// Puts a line on a stream. Meta drops one that does not drain.
    pub(super) fn put_line(&mut self, id: StreamId, line: FromMeta, now: BootNs) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.lines.len() >= STREAM_QUEUE {
            return self.end_stream(id);
        }
        stream.sent_at = now;
        stream.lines.push_back(line);
        let opened = stream.opened;
        self.add(Pending::Line { stream: id, opened });
    }

    pub(super) fn line_arrives(&mut self, id: StreamId, opened: u64) {
        let now = self.local(id.node.into());
        let Some(stream) = self.streams.get_mut(&id).filter(|s| s.opened == opened) else { return };
        let Some(line) = stream.lines.pop_front() else { return };
        stream.heard_at = now;
        match id.node {
            NodeId::Host(host) => self.host_line(host, id, line),
            NodeId::Scvm(scvm) => self.scvm_line(scvm, id, line),
        }
    }

    fn stream_down(&mut self, id: StreamId) {
        match id.node {
            NodeId::Host(host) => self.host_stream_down(host, id),
            NodeId::Scvm(scvm) => {
                if let Some(agent) = &mut self.scvm_mut(scvm).agent {
                    agent.link.down(id);
                }
            }
        }
    }

    pub(super) fn answer_arrives(
        &mut self,
        to: NodeId,
        incarnation: Incarnation,
        seq: u64,
        reply: MetaReply,
    ) {
        match to {
            NodeId::Host(host) => self.host_answer(host, incarnation, seq, reply),
            NodeId::Scvm(scvm) => self.scvm_answer(scvm, incarnation, seq, reply),
        }
    }
}
