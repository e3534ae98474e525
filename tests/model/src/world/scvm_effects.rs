//! What an SCVM's machine wants done, by its kernel, its server and its disk.

use super::flight::{Node, Pending};
use super::server::Socket;
use super::tcp::ConnId;
use super::{Said, World};
use reroute_common::admission::rank;
use reroute_core::ids::*;
use reroute_core::scvm::*;

impl World {
    pub(super) fn scvm_effect(&mut self, id: ScvmId, effect: Effect, now: BootNs) -> Option<Input> {
        let settings = self.settings.clone();
        let node = self.scvm_mut(id);
        let agent = node.agent.as_mut()?;
        let incarnation = agent.link.incarnation;
        Some(match effect {
            Effect::Send { tag, msg } => {
                let seq = agent.link.ask(tag, now);
                self.post(NodeId::Scvm(id), incarnation, seq, &msg);
                return None;
            }
            Effect::Renew { deadline, deadline_no_agent } => {
                node.kernel.renew(deadline, deadline_no_agent);
                self.check_admission(id);
                Input::Renewed(Ok(()))
            }
            Effect::PublishEpochs { epochs } => {
                if settings.policy(id) != FencePolicy::Storage {
                    return Some(Input::EpochsPublished(Ok(())));
                }
                self.add(Pending::Publish { scvm: id, incarnation, epochs });
                return None;
            }
            Effect::Admit { host, epoch } => {
                let answer = node.kernel.raise(host, epoch, rank::ADMITTED);
                if now < node.leftover {
                    node.passed_over.insert(host, epoch);
                }
                if answer.word.is_admitted() {
                    self.oracle.admitted(host, id, Epoch(answer.word.epoch()));
                }
                self.check_admission(id);
                Input::AdmitAnswer { host, epoch, answer: Ok(answer) }
            }
            Effect::Fence { host, epoch } => {
                let answer = node.kernel.raise(host, epoch, rank::FENCED);
                // Which processes may hold calls is decided with this answer: look once more who serves.
                for input in self.poll_pidfile(id) {
                    let Some(agent) = &mut self.scvm_mut(id).agent else { return None };
                    for effect in agent.machine.handle(input, now) {
                        if let Some(result) = self.scvm_effect(id, effect, now) {
                            self.later.push((id, incarnation, result));
                        }
                    }
                }
                Input::FenceAnswer { host, epoch, answer: Ok(answer) }
            }
            Effect::ReadCounts { host, epoch } => {
                Input::Counts { host, epoch, answer: Ok(node.kernel.read(host)) }
            }
            Effect::PurgeSockets { host, epoch, purpose } => {
                let destroyed = self.purge(id, host);
                Input::Purged { host, epoch, purpose, purge: Ok(Purge { destroyed, left: 0 }) }
            }
            // Every host here destroys its own.
            Effect::ResetClient { host, epoch, .. } => {
                Input::ClientReset { host, epoch, result: Ok(Tickled { tickled: 0, destroyed: 0 }) }
            }
            Effect::ProbeNull => {
                self.add(Pending::Probe { scvm: id, incarnation, sent_at: now });
                return None;
            }
            Effect::AskOwnAddress => Input::OwnAddress(Err("there is no ARP here".into())),
            Effect::SetAgentState { null_failed } => {
                node.kernel.set_null_failed(null_failed);
                Input::AgentStateSet(Ok(()))
            }
            // Nobody blocks a client here.
            Effect::SetBlock { host, until } => Input::BlockSet { host, until, result: Ok(()) },
            Effect::SetMode { mode } => {
                node.kernel.mode = mode;
                Input::ModeSet { mode, result: Ok(()) }
            }
            Effect::PersistBypass { on } => {
                node.bypass = on;
                Input::BypassPersisted(Ok(()))
            }
            Effect::KillServer { incarnation } => {
                let held = agent.held.contains(&incarnation);
                if held && node.server.incarnation == incarnation && node.server.alive {
                    node.server.killed = true;
                    self.add(Pending::Reap { scvm: id, server: incarnation });
                }
                let result = if held { Ok(()) } else { Err("this process is not held".to_string()) };
                Input::KillSent { incarnation, result }
            }
            Effect::ServerStarted { incarnation } => {
                node.kernel.server_started(incarnation);
                Input::ServerRegistered { incarnation, result: Ok(()) }
            }
            Effect::Journal { at, event } => {
                self.out.say(Said { node: Node::Scvm(id), at, event });
                return None;
            }
        })
    }

    /// Destroys a host's sockets here: each goes with a RST.
    pub(super) fn purge(&mut self, id: ScvmId, host: HostId) -> u32 {
        let node = self.scvm_mut(id);
        let of_host = |(conn, s): (&ConnId, &Socket)| (s.host == host).then_some(*conn);
        let conns: Vec<ConnId> = node.server.sockets.iter().filter_map(of_host).collect();
        for conn in &conns {
            self.close(id, *conn);
        }
        conns.len() as u32
    }
}
