//! The one task that owns the session master: feeds it, and carries its effects out.
//!
//! | comes in by | from | when it is full |
//! |---|---|---|
//! | `calls` (bounded) | HTTP handlers | the caller waits, and gives up by its own timeout |
//! | `written` (unbounded; one per host at most, and one for the lease) | the store's thread | |
//! | `questions` (bounded) | operators | the operator waits |
//!
//! What goes out to push streams goes into one bounded queue per stream; a stream that does not drain is dropped,
//! connects again and is told what stands.

use super::fence;
use super::metrics::{Metrics, reason};
use super::operator::Question;
use super::store::{Queue, StoreError, Write, Written};
use crate::config::{ClusterKey, Config, FenceCommand};
use crate::journal::Journal;
use crate::meta_client::push_direction;
use crate::record::Recorded;
use crate::{clock, fault_point, keys};
use bytes::Bytes;
use reroute_core::block::{Denial, Done};
use reroute_core::ids::*;
use reroute_core::meta::{Effect, Input, OperatorAnswer, RequestId, SessionMaster, Ticket};
use reroute_core::proto::*;
use reroute_core::timeline::Event;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

const TICK: Duration = Duration::from_millis(20);
/// Views go out on each change, but not more often than this.
const VIEW_EVERY: u64 = 100 * MS;
const SNAPSHOT_EVERY: u64 = 250 * MS;
const HELLO_EVERY: u64 = SEC;
/// Lines a push stream may lag behind.
pub const STREAM_QUEUE: usize = 256;
/// Streams one node may hold: each of its addresses to each of ours, and some that are dying.
const STREAMS_PER_NODE: usize = 16;

/// From an HTTP handler.
pub enum Call {
    Message { envelope: Envelope, answer: oneshot::Sender<MetaReply> },
    Connect { node: NodeId, lines: mpsc::Sender<Bytes> },
}

struct Stream {
    lines: mpsc::Sender<Bytes>,
    last: BootNs,
}

pub struct Driver {
    master: Recorded<SessionMaster>,
    key: ClusterKey,
    cluster: String,
    fence_command: Option<FenceCommand>,
    /// Runs of it that have ended.
    fenced: mpsc::UnboundedSender<Input>,
    fences: Option<mpsc::UnboundedReceiver<Input>>,
    /// Operators that wait for an answer.
    asked: BTreeMap<RequestId, oneshot::Sender<Result<OperatorAnswer, Refusal>>>,
    listen: Vec<std::net::SocketAddr>,
    streams: BTreeMap<NodeId, Vec<Stream>>,
    seqs: BTreeMap<NodeId, u64>,
    causes: BTreeMap<HostId, &'static str>,
    store: Queue,
    journal: Journal,
    metrics: Metrics,
    requests: u64,
    /// Who waits for an answer; some come only when the store has confirmed the lease.
    answers: BTreeMap<RequestId, (NodeId, oneshot::Sender<MetaReply>)>,
    /// Operators who wait for what becomes of a block or an eviction.
    denials: BTreeMap<Ticket, oneshot::Sender<Result<Done, Denial>>>,
    /// The later term that ends this Meta.
    over: Option<Term>,
    viewed: (u64, BootNs),
    snapshot_at: BootNs,
}

impl Driver {
    pub fn new(
        config: &Config,
        listen: Vec<std::net::SocketAddr>,
        master: Recorded<SessionMaster>,
        store: Queue,
        journal: Journal,
        metrics: Metrics,
    ) -> Driver {
        let (fenced, fences) = mpsc::unbounded_channel();
        Driver {
            fence_command: config.meta().ok().and_then(|m| m.fence_command.clone()),
            fenced,
            fences: Some(fences),
            asked: BTreeMap::new(),
            viewed: (master.generation(), clock::now()),
            master,
            key: config.key.clone(),
            cluster: config.cluster.id.clone(),
            listen,
            streams: BTreeMap::new(),
            seqs: BTreeMap::new(),
            causes: BTreeMap::new(),
            store,
            journal,
            metrics,
            requests: 0,
            answers: BTreeMap::new(),
            denials: BTreeMap::new(),
            over: None,
            snapshot_at: BootNs(0),
        }
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// [`StoreError::LaterTerm`]: another Meta leads.
    pub async fn run(
        mut self,
        mut calls: mpsc::Receiver<Call>,
        mut written: mpsc::UnboundedReceiver<Written>,
        mut questions: mpsc::Receiver<Question>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), StoreError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::pin!(stop);
        // Taken once: this runs once.
        let Some(mut fences) = self.fences.take() else { return Ok(()) };
        self.snapshot(clock::now());
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                Some(done) = written.recv() => self.written(done),
                Some(call) = calls.recv() => self.call(call),
                Some(ended) = fences.recv() => self.input(ended),
                Some(question) = questions.recv() => self.question(question),
                _ = tick.tick() => self.tick(),
            }
            if let Some(later) = self.over {
                return Err(StoreError::LaterTerm { later });
            }
            self.push_view_if_changed();
        }
    }

    fn question(&mut self, question: Question) {
        match question {
            Question::Status(answer) => drop(answer.send(self.status())),
            Question::Blocks(answer) => drop(answer.send(self.master.blocks(clock::now()))),
            Question::Ask(ask, answer) => {
                self.requests += 1;
                let request = RequestId(self.requests);
                self.asked.insert(request, answer);
                self.input(Input::Operator { request, ask });
            }
            Question::KeepOut(ask, answer) => {
                self.requests += 1;
                let ticket = Ticket(self.requests);
                self.denials.insert(ticket, answer);
                self.input(Input::Ask { ticket, ask, wall: clock::wall() });
            }
        }
    }

    fn written(&mut self, done: Written) {
        let seconds = done.took.as_secs_f64();
        match (done.wrote, done.failed) {
            (true, failed) => {
                self.metrics.store_seconds.observe(seconds);
                self.metrics.store_failures.inc_by(u64::from(failed));
            }
            (false, failed) => {
                self.metrics.lease_seconds.observe(seconds);
                self.metrics.lease_failures.inc_by(u64::from(failed));
            }
        }
        self.input(done.input);
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Message { envelope, answer } => {
                self.requests += 1;
                let Envelope { from, incarnation, seq, msg, .. } = envelope;
                let request = RequestId(self.requests);
                self.answers.insert(request, (from, answer));
                self.input(Input::Message { request, from, incarnation, seq, msg });
            }
            Call::Connect { node, lines } => self.connect(node, lines),
        }
    }

    fn connect(&mut self, node: NodeId, lines: mpsc::Sender<Bytes>) {
        let now = clock::now();
        let stream = Stream { lines, last: now };
        let first =
            [Order::Hello { cluster: self.cluster.clone() }, Order::View { view: self.master.view(now) }];
        for order in first {
            if let Some(line) = self.line(node, order, true) {
                let _ = stream.lines.try_send(line);
            }
        }
        let streams = self.streams.entry(node).or_default();
        if streams.len() >= STREAMS_PER_NODE {
            streams.remove(0);
            self.metrics.streams_dropped.inc();
        }
        streams.push(stream);
        self.count_streams();
        self.input(Input::Connected { node });
    }

    fn tick(&mut self) {
        let now = clock::now();
        self.input(Input::Tick);
        let quiet: Vec<NodeId> = self
            .streams
            .iter()
            .filter(|(_, s)| s.iter().any(|s| now.since(s.last) >= HELLO_EVERY || s.lines.is_closed()))
            .map(|(node, _)| *node)
            .collect();
        for node in quiet {
            self.push(node, Order::Hello { cluster: self.cluster.clone() }, now);
        }
        if now.since(self.snapshot_at) >= SNAPSHOT_EVERY {
            self.snapshot(now);
        }
    }

    fn snapshot(&mut self, now: BootNs) {
        self.snapshot_at = now;
        self.metrics.snapshot(now, Arc::new(self.master.view(now)));
        let leadership = self.master.leadership(now);
        self.metrics.leader.set(i64::from(leadership.leads));
    }

    fn push_view_if_changed(&mut self) {
        let (generation, at) = self.viewed;
        let now = clock::now();
        if self.master.generation() == generation || now.since(at) < VIEW_EVERY {
            return;
        }
        self.viewed = (self.master.generation(), now);
        let view = self.master.view(now);
        let nodes: Vec<NodeId> = self.streams.keys().copied().collect();
        for node in nodes {
            self.push(node, Order::View { view: view.clone() }, now);
        }
    }

    fn input(&mut self, input: Input) {
        let now = clock::now();
        for effect in self.master.handle(input, now) {
            let step = fault_point::of_meta(&effect);
            fault_point::before(step);
            match effect {
                Effect::Reply { request, mut reply } => {
                    let (node, answer) = self.answers.remove(&request).unzip();
                    if let MetaReply::Session { orders_to, .. } = &mut reply {
                        *orders_to = node.and_then(|node| self.seqs.get(&node)).copied().unwrap_or(0);
                    }
                    match &reply {
                        MetaReply::Refused { error } => self.metrics.reject(reason(error)),
                        _ => {
                            self.metrics.messages.inc();
                        }
                    }
                    if let Some(answer) = answer {
                        let _ = answer.send(reply);
                    }
                }
                Effect::Push { node, order } => {
                    if let Order::MoveRefused { error, .. } = &order {
                        self.metrics.moved("asked", reason(error));
                    }
                    self.push(node, order, now);
                    fault_point::after(step);
                }
                Effect::Store { host, expected, record } => {
                    self.write(Write::Login { host, expected, record });
                }
                Effect::ConfirmLease => {
                    let asked = self.store.confirm(self.master.term());
                    self.store_is_there(asked.is_ok());
                }
                Effect::StepDown { later } => self.over = Some(later),
                Effect::StoreDraining { scvm, draining } => self.write(Write::Draining { scvm, draining }),
                Effect::RunFenceCommand(run) => {
                    if let Some(command) = self.fence_command.clone() {
                        fence::start(command, run, self.fenced.clone());
                    }
                }
                Effect::Answer { request, answer } => {
                    if let Some(waits) = self.asked.remove(&request) {
                        let _ = waits.send(answer);
                    }
                }
                Effect::StoreBlocks { expected, list } => self.write(Write::Blocks { expected, list }),
                Effect::Told { ticket, answer } => {
                    if let Some(asked) = self.denials.remove(&ticket) {
                        let _ = asked.send(answer);
                    }
                }
                Effect::Journal(event) => self.journal(now, event),
            }
        }
    }

    fn write(&mut self, write: Write) {
        let written = self.store.write(write);
        self.store_is_there(written.is_ok());
    }

    fn store_is_there(&self, there: bool) {
        if !there {
            // Its thread has died: nothing can be recorded or confirmed, so nothing can move; hosts go on by
            // affirming what they have.
            tracing::error!("the store's thread is gone: no session is renewed until Meta is restarted");
            self.metrics.store_failures.inc();
        }
    }

    fn journal(&mut self, at: BootNs, event: Event) {
        match &event {
            Event::MoveRecorded { host, from, planned, .. } => {
                let cause = match (from, planned) {
                    (None, _) => "first_login",
                    (_, true) => "planned",
                    (_, false) => "unplanned",
                };
                self.causes.insert(*host, cause);
                self.metrics.moved(cause, "recorded");
            }
            Event::LoginStored { host, .. } => {
                self.metrics.moved(self.causes.remove(host).unwrap_or("resumed"), "stored");
            }
            Event::FenceProven { proof, .. } => {
                let name = serde_json::to_value(proof).ok();
                self.metrics.fenced(name.as_ref().and_then(|n| n.as_str()).unwrap_or_default());
            }
            Event::Fault { what } => {
                tracing::warn!(%what, "fault");
                self.metrics.faults.inc();
            }
            _ => {}
        }
        self.journal.record_at(at, event);
    }

    /// A signed line; `first` lines of a stream carry no number.
    fn line(&mut self, node: NodeId, order: Order, first: bool) -> Option<Bytes> {
        let seq = if first {
            0
        } else {
            let seq = self.seqs.entry(node).or_default();
            *seq += 1;
            *seq
        };
        let json = match serde_json::to_string(&FromMeta { term: self.master.term(), seq, order }) {
            Ok(json) => json,
            Err(error) => {
                tracing::error!(%error, "an order cannot be written as JSON");
                return None;
            }
        };
        let mac = keys::message_mac(&self.key, &push_direction(node), json.as_bytes());
        Some(Bytes::from(format!("{mac} {json}\n")))
    }

    fn push(&mut self, node: NodeId, order: Order, now: BootNs) {
        if !self.streams.contains_key(&node) {
            return;
        }
        let Some(line) = self.line(node, order, false) else { return };
        let Some(streams) = self.streams.get_mut(&node) else { return };
        let mut dropped = 0;
        streams.retain_mut(|stream| {
            stream.last = now;
            match stream.lines.try_send(line.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    tracing::warn!(%node, "a push stream does not drain; dropped");
                    dropped += 1;
                    false
                }
            }
        });
        self.metrics.streams_dropped.inc_by(dropped);
        if streams.is_empty() {
            self.streams.remove(&node);
        }
        self.count_streams();
    }

    fn count_streams(&self) {
        self.metrics.streams.set(self.streams.values().map(Vec::len).sum::<usize>() as i64);
    }

    fn status(&self) -> serde_json::Value {
        let streams: BTreeMap<String, usize> =
            self.streams.iter().map(|(n, s)| (n.to_string(), s.len())).collect();
        let now = clock::now();
        let leadership = self.master.leadership(now);
        let alarm = (!leadership.leads).then(|| {
            let why = leadership.problem.clone().unwrap_or_else(|| "the store has not confirmed it".into());
            format!("this Meta does not lead now, sessions are not renewed and nothing moves: {why}")
        });
        serde_json::json!({
            "role": "meta",
            "node": "meta",
            "view": self.master.view(now),
            "local": {
                "listen": self.listen,
                "term": self.master.term(),
                "leads": leadership.leads,
                "lease_ns": leadership.left_ns,
                "alarms": alarm.into_iter().collect::<Vec<_>>(),
                "push_streams": streams,
                "journal_lost": self.journal.lost(),
            },
        })
    }
}
