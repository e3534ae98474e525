//! The host's agent, its route, its disk, its NFS client.

use super::kernel::{Call, Pulse};
use super::nodes::*;
use super::story::*;
use super::world::World;
use reroute_core::host::{Effect, Found, Input, Machine, Pin, PulseFlag, Record};
use reroute_core::ids::*;
use reroute_core::proto::*;
use reroute_core::scvm::{self, Signal, SignalKind};
use std::collections::{BTreeSet, VecDeque};

/// An agent waits so many rounds for an answer of Meta's.
pub const PATIENCE: u32 = 10;

impl World {
    pub fn start_host(&mut self) {
        let now = self.local(Node::Host);
        let keeps = self.story.has(Safeguard::PersistedRelease);
        let settings = self.story.host_settings();
        let host = self.host.edit();
        host.back_at = None;
        host.runs += 1;
        let record = if keeps { host.disk } else { Record { released: None, ..host.disk } };
        host.agent = Some(HostAgent {
            machine: Machine::new(settings, record, now),
            incarnation: Incarnation(host.runs),
            seq: Aside(0),
            asked: vec![],
            streams: BTreeSet::new(),
        });
        let found = host.route.map_or(Found::None, Found::Ours);
        self.feed_host(Input::RouteRead(Ok(found)));
    }

    pub fn crash_host(&mut self, down: u32) {
        let back_at = self.round + down;
        let host = self.host.edit();
        host.agent = None;
        host.back_at = Some(back_at);
        self.break_streams();
    }

    pub fn host_stream(&mut self, meta: usize, up: bool) {
        let Some(agent) = &self.host.agent else { return };
        if agent.streams.contains(&meta) == up {
            return;
        }
        let Some(agent) = &mut self.host.edit().agent else { return };
        let news = if up {
            agent.streams.insert(meta);
            true
        } else {
            agent.streams.remove(&meta);
            agent.streams.is_empty()
        };
        if news {
            self.feed_host(Input::MetaLink { up });
        }
    }

    pub fn tick_host(&mut self) {
        let round = self.round;
        if let Some(agent) = &mut self.host.edit().agent {
            let asked = std::mem::take(&mut agent.asked);
            let (over, asked) = asked.into_iter().partition(|(_, at, _)| round - at >= PATIENCE);
            agent.asked = asked;
            let over: Asked<ToMeta> = over;
            for (_, _, message) in over {
                self.feed_host(Input::MetaAnswer { message, result: Err("no answer".into()) });
            }
        }
        let due = self.local(Node::Host);
        self.feed_host(Input::Tick { due });
        self.client();
    }

    pub fn feed_host(&mut self, input: Input) {
        let now = self.local(Node::Host);
        let mut inbox = VecDeque::from([input]);
        while let Some(input) = inbox.pop_front() {
            let Some(agent) = &mut self.host.edit().agent else { return };
            for effect in agent.machine.handle(input, now) {
                self.host_does(effect, now, &mut inbox);
            }
        }
    }

    fn run(&self) -> Incarnation {
        self.host.agent.as_ref().map_or(Incarnation(0), |a| a.incarnation)
    }

    fn host_does(&mut self, effect: Effect, now: BootNs, inbox: &mut VecDeque<Input>) {
        match effect {
            Effect::SendPulse { path, flag, epoch, scvm_boot, scvm_stamp, due } => {
                inbox.push_back(Input::Sent { path, due, at: now, error: None });
                // The management network is down for good, and the private one is not used.
                if path.network != Network::Storage {
                    return;
                }
                let (scvm, incarnation) = (path.scvm, self.run());
                let pulse = Pulse { scvm, flag, epoch, scvm_boot, scvm_stamp, sent_at: now, incarnation };
                if flag != PulseFlag::Probe {
                    self.send(Node::Host, Thing::Pulse(pulse));
                } else if self.carries(Node::Host, Node::Scvm(scvm)) {
                    // Asks, and changes nothing: at once, and nobody meddles with it.
                    inbox.extend(self.reflect(pulse));
                }
            }
            Effect::Meta(message) => {
                let round = self.round;
                let Some(agent) = &mut self.host.edit().agent else { return };
                agent.seq.0 += 1;
                let (seq, incarnation) = (agent.seq, agent.incarnation);
                // On a report's answer nothing depends.
                if !matches!(message, ToMeta::HostReport { .. }) {
                    agent.asked.push((seq, round, message.clone()));
                }
                for meta in 0..self.metas.len() {
                    if self.metas[meta].leader.is_some() {
                        let (from, msg) = (NodeId::Host(X), message.clone());
                        self.send(Node::Host, Thing::Post { from, incarnation, seq, meta, msg, mark: 0 });
                    }
                }
            }
            // A pin does not outlive its agent here, and there is neither a hypervisor nor ARP.
            Effect::AskOwnAddress | Effect::TrySizes(_) | Effect::FindSockets => {}
            Effect::PersistNotes(notes) => inbox.push_back(Input::NotesPersisted { notes, result: Ok(()) }),
            Effect::AskHypervisor => {}
            Effect::ReadRoute => {
                let found = self.host.route.map_or(Found::None, Found::Ours);
                inbox.push_back(Input::RouteRead(Ok(found)));
            }
            Effect::ReplaceRoute { path, .. } => {
                self.host.edit().route = Some(path);
                if !self.oracle.stood.contains(&path.scvm) && self.round >= super::world::WARM {
                    let what = format!("the route goes to {path}, where the login never stood");
                    self.oracle.edit().violation = Some(what);
                }
                inbox.push_back(Input::RouteSet { path, result: Ok(()) });
            }
            Effect::DestroySockets { .. } => {
                self.host.edit().waits_for = None;
                inbox.push_back(Input::SocketsReset(Ok(1)));
            }
            Effect::Persist(record) => {
                let incarnation = self.run();
                self.queue.push_back(Thing::Persist { incarnation, record });
            }
            Effect::Journal(_) => {}
        }
    }

    /// A write to disk has come to its end. Of a process that died meanwhile it may be there all the same; but a
    /// successor begins only when the former process is gone, with its writes (they share a lock).
    pub fn persisted(&mut self, incarnation: Incarnation, record: Record) {
        let run = self.run();
        if self.host.agent.is_some() && run != incarnation {
            return;
        }
        self.host.edit().disk = record;
        if run == incarnation {
            self.feed_host(Input::Persisted { record, result: Ok(()) });
        }
    }

    /// The kernel answers; not if its node stands still.
    fn reflect(&mut self, pulse: Pulse) -> Option<Input> {
        let at = Node::Scvm(pulse.scvm);
        if self.clock(at).stands() {
            return None;
        }
        let (story, now) = (self.story.clone(), self.local(at));
        let facts = if pulse.flag == PulseFlag::Probe {
            let scvm = self.scvm(pulse.scvm);
            scvm.kernel.clone().reflect(&pulse, &scvm.server, &story, now)
        } else {
            let scvm = self.scvm_mut(pulse.scvm);
            scvm.kernel.reflect(&pulse, &scvm.server, &story, now)
        };
        let path = Path { scvm: pulse.scvm, network: Network::Storage };
        Some(Input::Reply { path, sent_at: pulse.sent_at, facts })
    }

    pub fn pulse(&mut self, pulse: Pulse) {
        let reply = self.reflect(pulse);
        // The answer comes back at once or, to a host that is frozen or gone, never.
        if let Some(reply) = reply
            && self.run() == pulse.incarnation
            && !self.clock(Node::Host).stands()
            && self.carries(Node::Host, Node::Scvm(pulse.scvm))
        {
            self.feed_host(reply);
        }
    }

    pub fn host_answer(&mut self, incarnation: Incarnation, seq: u64, meta: usize, reply: MetaReply) {
        let Some(agent) = &self.host.agent else { return };
        if agent.incarnation != incarnation || self.waits_for_the_leader(meta, &reply) {
            return;
        }
        let Some(at) = agent.asked.iter().position(|(s, ..)| s.0 == seq) else { return };
        let Some(agent) = &mut self.host.edit().agent else { return };
        let (_, _, message) = agent.asked.remove(at);
        self.feed_host(Input::MetaAnswer { message, result: Ok(reply) });
    }

    /// Who does not lead is not listened to while another one may answer.
    pub fn waits_for_the_leader(&self, meta: usize, reply: &MetaReply) -> bool {
        let other = self.metas.iter().enumerate().any(|(i, m)| i != meta && m.leader.is_some());
        other && matches!(reply, MetaReply::Refused { error: Refusal::NotLeader { .. } })
    }

    pub fn host_order(&mut self, incarnation: Incarnation, order: FromMeta) {
        if self.host.agent.is_some() && self.run() == incarnation {
            self.feed_host(Input::Order(order));
        }
    }

    /// The NFS client: one call at a time, to wherever the route leads.
    fn client(&mut self) {
        let Some(path) = self.host.route.filter(|_| self.host.waits_for.is_none()) else { return };
        let id = path.scvm;
        let now = self.local(Node::Scvm(id));
        let s = self.scvm(id);
        if !s.server.alive || s.clock.stands() || !self.carries(Node::Host, Node::Scvm(id)) {
            return;
        }
        if !s.kernel.admits(now) {
            return self.held_back(id, now);
        }
        let s = self.scvm_mut(id);
        let epoch = Epoch(s.kernel.word().epoch());
        s.server.calls.push(Call { epoch, since: now, seen: true });
        self.host.edit().waits_for = Some(id);
    }

    /// TCP tries again. Of a client without an agent, the SCVM's agent is told.
    fn held_back(&mut self, id: ScvmId, now: BootNs) {
        if self.story.has_agent {
            return;
        }
        let word = self.scvm(id).kernel.word();
        if word.is_admitted() {
            self.oracle.edit().stands_still = Some((id, Epoch(word.epoch())));
        }
        let (kind, host) = (SignalKind::LoginWanted, Some(X));
        let signal = Signal { kind, at: now, host, waiting: 0, age_ns: 0, limit_ns: 0 };
        self.feed_scvm(id, scvm::Input::Signal(signal));
    }

    pub fn pin(&mut self, scvm: ScvmId) {
        let pin = Pin { scvm, network: None, until: None, actor: "somebody".into() };
        self.feed_host(Input::Pin(Some(pin)));
    }

    /// What the client waits for at the former one, it asks for again at the new one.
    pub fn next_hop(&mut self, scvm: ScvmId) {
        let path = Path { scvm, network: Network::Storage };
        if self.host.route != Some(path) {
            let host = self.host.edit();
            host.route = Some(path);
            host.waits_for = None;
        }
    }

    pub fn connections_end(&mut self, id: ScvmId) {
        if self.host.waits_for == Some(id) {
            self.host.edit().waits_for = None;
        }
    }

    /// A server carries out what it has.
    pub fn execute(&mut self, id: ScvmId) {
        let now = self.local(Node::Scvm(id));
        if !self.scvm(id).server.answers() || self.scvm(id).server.calls.is_empty() {
            return;
        }
        let s = self.scvm_mut(id);
        let calls = std::mem::take(&mut s.server.calls);
        if calls.iter().any(|c| c.seen) {
            s.kernel.last_reply_at = now;
        }
        for call in calls {
            self.oracle.edit().executed(id, call.epoch);
            if call.seen && self.host.waits_for == Some(id) && self.carries(Node::Host, Node::Scvm(id)) {
                self.host.edit().waits_for = None;
                self.oracle.edit().replied(id, call.epoch);
            }
        }
    }
}
