//! An SCVM: its agent, and what the agent does to kernel and server.

use super::host::PATIENCE;
use super::kernel::Kernel;
use super::nodes::*;
use super::story::*;
use super::world::World;
use reroute_common::admission::rank;
use reroute_core::ids::*;
use reroute_core::proto::*;
use reroute_core::scvm::{Effect, Input, Purge, Scvm, Tag, Tickled};
use std::collections::VecDeque;

/// A server that was killed is started again after so many rounds.
const RESTART: u32 = 8;

impl World {
    pub fn start_agent(&mut self, id: ScvmId) {
        let now = self.local(Node::Scvm(id));
        let story = self.story.clone();
        let s = self.scvm_mut(id);
        s.back_at = None;
        s.runs += 1;
        let incarnation = Incarnation(s.runs);
        let machine = Scvm::new(story.scvm_settings(id, incarnation), now);
        s.agent = Some(ScvmAgent { machine, incarnation, seq: Aside(0), asked: vec![] });
        let (alive, incarnation) = (s.server.alive, s.server.incarnation);
        if alive {
            self.feed_scvm(id, Input::ServerSeen { pid: incarnation.0 as u32, incarnation });
        }
    }

    pub fn crash_agent(&mut self, id: ScvmId, down: u32) {
        let back_at = self.round + down;
        let s = self.scvm_mut(id);
        s.agent = None;
        s.back_at = Some(back_at);
        self.break_streams();
    }

    /// What the kernel knew and what the server had accepted is gone with it.
    pub fn reboot(&mut self, id: ScvmId, down: u32) {
        self.crash_agent(id, down);
        let at = self.round + down;
        let has_agent = self.story.has_agent;
        let s = self.scvm_mut(id);
        s.kernel = Kernel::new(s.kernel.boot() + 1, has_agent);
        s.server.alive = false;
        s.server.hung = false;
        s.server.calls.clear();
        s.server_back_at = Some(at);
        s.stunned = None;
        self.connections_end(id);
    }

    pub fn start_server(&mut self, id: ScvmId) {
        let s = self.scvm_mut(id);
        s.server_back_at = None;
        s.server.alive = true;
        s.server.hung = false;
        s.server.incarnation.0 += 1;
        let incarnation = s.server.incarnation;
        self.feed_scvm(id, Input::ServerSeen { pid: incarnation.0 as u32, incarnation });
    }

    pub fn tick_scvm(&mut self, id: ScvmId) {
        let round = self.round;
        let Some(agent) = &mut self.scvm_mut(id).agent else { return };
        let asked = std::mem::take(&mut agent.asked);
        let (over, asked) = asked.into_iter().partition(|(_, at, _)| round - at >= PATIENCE);
        agent.asked = asked;
        let over: Asked<Tag> = over;
        for (_, _, tag) in over {
            self.feed_scvm(id, Input::Reply { tag, reply: Err("no answer".into()) });
        }
        self.feed_scvm(id, Input::Tick);
    }

    pub fn feed_scvm(&mut self, id: ScvmId, input: Input) {
        let now = self.local(Node::Scvm(id));
        let story = self.story.clone();
        let mut inbox = VecDeque::from([input]);
        while let Some(input) = inbox.pop_front() {
            let s = self.scvm_mut(id);
            let Some(agent) = &mut s.agent else { return };
            s.kernel.agent_seen_at = now;
            let facts = s.kernel.server_facts(&s.server, &story, now);
            let mut effects = agent.machine.handle(Input::Server(facts), now);
            effects.extend(agent.machine.handle(Input::Clients(vec![s.kernel.client_facts(X)]), now));
            effects.extend(agent.machine.handle(input, now));
            for effect in effects {
                inbox.extend(self.scvm_does(id, effect, now));
            }
        }
    }

    fn scvm_does(&mut self, id: ScvmId, effect: Effect, now: BootNs) -> Option<Input> {
        let round = self.round;
        let counts_from_sending = self.story.has(Safeguard::SendStampCounting);
        let (session_ns, session_no_agent_ns) = (self.story.session_ns, self.story.session_no_agent_ns);
        let s = self.scvm_mut(id);
        Some(match effect {
            Effect::Send { tag, msg } => {
                let agent = s.agent.as_mut()?;
                agent.seq.0 += 1;
                let (seq, incarnation) = (agent.seq, agent.incarnation);
                agent.asked.push((seq, round, tag));
                for meta in 0..self.metas.len() {
                    if self.metas[meta].leader.is_some() {
                        let (from, msg) = (NodeId::Scvm(id), msg.clone());
                        let post = Thing::Post { from, incarnation, seq, meta, msg, mark: 0 };
                        self.send(Node::Scvm(id), post);
                    }
                }
                return None;
            }
            Effect::Renew { deadline, deadline_no_agent } if counts_from_sending => {
                s.kernel.renew(deadline, deadline_no_agent);
                Input::Renewed(Ok(()))
            }
            Effect::Renew { .. } => {
                s.kernel.renew(now.plus(session_ns), now.plus(session_no_agent_ns));
                Input::Renewed(Ok(()))
            }
            Effect::PublishEpochs { .. } => Input::EpochsPublished(Ok(())),
            Effect::Admit { host, epoch } => {
                let answer = Ok(s.kernel.raise(epoch, rank::ADMITTED, &s.server));
                Input::AdmitAnswer { host, epoch, answer }
            }
            Effect::Fence { host, epoch } => {
                let answer = Ok(s.kernel.raise(epoch, rank::FENCED, &s.server));
                Input::FenceAnswer { host, epoch, answer }
            }
            Effect::ReadCounts { host, epoch } => {
                Input::Counts { host, epoch, answer: Ok(s.kernel.read(&s.server)) }
            }
            Effect::PurgeSockets { host, epoch, purpose } => {
                s.kernel.lose_sight(&mut s.server);
                // A host with an agent closes its own.
                if !self.story.has_agent {
                    self.connections_end(id);
                }
                Input::Purged { host, epoch, purpose, purge: Ok(Purge { destroyed: 1, left: 0 }) }
            }
            // Every host here destroys its own.
            Effect::ResetClient { host, epoch, .. } => {
                Input::ClientReset { host, epoch, result: Ok(Tickled { tickled: 0, destroyed: 0 }) }
            }
            Effect::ProbeNull => {
                if s.server.hung {
                    let incarnation = s.agent.as_ref()?.incarnation;
                    self.late.push((round + 1, Thing::NullTimeout { scvm: id, incarnation }));
                    return None;
                }
                Input::NullRpc { answered: s.server.alive, took_ns: 0, starved: false }
            }
            // Nobody blocks a client here.
            Effect::SetBlock { host, until } => Input::BlockSet { host, until, result: Ok(()) },
            Effect::AskOwnAddress => Input::OwnAddress(Err("there is no ARP here".into())),
            Effect::SetAgentState { null_failed } => {
                s.kernel.null_failed = null_failed;
                Input::AgentStateSet(Ok(()))
            }
            Effect::SetMode { mode } => {
                s.kernel.mode = Some(mode);
                Input::ModeSet { mode, result: Ok(()) }
            }
            Effect::PersistBypass { .. } => Input::BypassPersisted(Ok(())),
            Effect::KillServer { incarnation } => {
                if s.server.incarnation == incarnation && s.server.alive {
                    s.server.alive = false;
                    s.server.hung = false;
                    s.server.calls.clear();
                    s.server_back_at = Some(round + RESTART);
                    self.connections_end(id);
                }
                Input::ServerExited { pid: incarnation.0 as u32, incarnation }
            }
            Effect::ServerStarted { incarnation } => {
                s.kernel.server_started(incarnation);
                Input::ServerRegistered { incarnation, result: Ok(()) }
            }
            Effect::Journal { .. } => return None,
        })
    }

    pub fn null_timeout(&mut self, id: ScvmId, incarnation: Incarnation) {
        let s = self.scvm(id);
        if s.agent.as_ref().is_some_and(|a| a.incarnation == incarnation) {
            let (answered, took_ns) = (s.server.answers(), self.story.silent_ns);
            self.feed_scvm(id, Input::NullRpc { answered, took_ns, starved: false });
        }
    }

    pub fn scvm_answer(
        &mut self,
        id: ScvmId,
        incarnation: Incarnation,
        seq: u64,
        meta: usize,
        reply: MetaReply,
    ) {
        let Some(agent) = &self.scvm(id).agent else { return };
        if agent.incarnation != incarnation || self.waits_for_the_leader(meta, &reply) {
            return;
        }
        let Some(at) = agent.asked.iter().position(|(s, ..)| s.0 == seq) else { return };
        let Some(agent) = &mut self.scvm_mut(id).agent else { return };
        let (_, _, tag) = agent.asked.remove(at);
        let reply = self.with_whom_it_serves(id, reply);
        self.feed_scvm(id, Input::Reply { tag, reply: Ok(reply) });
    }

    /// Without the fence of whom a new session does not name, it names whoever is admitted.
    fn with_whom_it_serves(&self, id: ScvmId, mut reply: MetaReply) -> MetaReply {
        let word = self.scvm(id).kernel.word();
        if let MetaReply::Session { logins, .. } = &mut reply
            && !self.story.has(Safeguard::FenceOfUnnamed)
            && word.is_admitted()
        {
            *logins = vec![(X, Epoch(word.epoch()))];
        }
        reply
    }

    pub fn scvm_order(&mut self, id: ScvmId, incarnation: Incarnation, term: Term, seq: u64, order: Order) {
        if self.scvm(id).agent.as_ref().is_some_and(|a| a.incarnation == incarnation) {
            self.feed_scvm(id, Input::Order { term, seq, order });
        }
    }
}
