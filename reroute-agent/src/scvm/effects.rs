//! Carrying out what the machine wants done.

use super::driver::{Driver, Probe};
use super::facts::{answer, outcome};
use crate::clock;
use crate::netlink::sockets;
use reroute_common::{pulse, table};
use reroute_core::ids::HostId;
use reroute_core::scvm::*;

impl Driver {
    /// Carries out one effect. Its result is given back, or comes through the queue later.
    pub(super) fn perform(&mut self, effect: Effect) -> Option<Input> {
        Some(match effect {
            Effect::Send { tag, msg } => {
                let (meta, results) = (self.meta.clone(), self.results.clone());
                tokio::spawn(async move {
                    let reply = meta.send(msg).await.map_err(|e| e.to_string());
                    let _ = results.send(Input::Reply { tag, reply });
                });
                return None;
            }
            Effect::Renew { deadline, deadline_no_agent } => {
                Input::Renewed(outcome(self.sensor.renew(deadline, deadline_no_agent)))
            }
            Effect::PublishEpochs { epochs } => match &self.publisher {
                None => Input::EpochsPublished(Ok(())),
                Some(publisher) => match publisher.publish(epochs) {
                    Ok(()) => return None,
                    Err(why) => Input::EpochsPublished(Err(why)),
                },
            },
            Effect::Admit { host, epoch } => {
                Input::AdmitAnswer { host, epoch, answer: answer(self.sensor.admit(host, epoch)) }
            }
            Effect::Fence { host, epoch } => {
                let answer = answer(self.sensor.fence(host, epoch));
                // Which processes may hold calls is decided with this answer: look once more who serves.
                for input in self.process.poll() {
                    self.machine.handle(input, clock::now()).into_iter().for_each(|e| self.later(e));
                }
                Input::FenceAnswer { host, epoch, answer }
            }
            Effect::ReadCounts { host, epoch } => {
                Input::Counts { host, epoch, answer: answer(self.sensor.read(host)) }
            }
            Effect::PurgeSockets { host, epoch, purpose } => {
                Input::Purged { host, epoch, purpose, purge: self.purge(host) }
            }
            Effect::ProbeNull => match self.probes.send(Probe::Ask(self.process.pids())) {
                Ok(()) => return None,
                Err(_) => Input::NullRpc { answered: false, took_ns: 0, starved: false },
            },
            Effect::SetAgentState { null_failed } => {
                let bits = if null_failed { pulse::server::NULL_FAILED } else { 0 };
                Input::AgentStateSet(outcome(self.sensor.set_agent_state(bits)))
            }
            Effect::SetBlock { host, until } => {
                Input::BlockSet { host, until, result: outcome(self.sensor.set_block(host, until)) }
            }
            Effect::SetMode { mode } => {
                let number = match mode {
                    Mode::Shadow => table::mode::SHADOW,
                    Mode::Enforce => table::mode::ENFORCE,
                    Mode::Bypass => table::mode::BYPASS,
                };
                Input::ModeSet { mode, result: outcome(self.sensor.set_mode(number)) }
            }
            Effect::PersistBypass { on } => {
                let (write, results) = (self.bypass_file.writer(on), self.results.clone());
                tokio::task::spawn_blocking(move || {
                    let result = write().map_err(|e| e.to_string());
                    let _ = results.send(Input::BypassPersisted(result));
                });
                return None;
            }
            Effect::KillServer { incarnation } => {
                Input::KillSent { incarnation, result: self.process.kill(incarnation) }
            }
            Effect::ServerStarted { incarnation } => Input::ServerRegistered {
                incarnation,
                result: outcome(self.sensor.server_started(incarnation)),
            },
            Effect::Journal { at, event } => {
                self.journal.record_at(at, event);
                return None;
            }
        })
    }

    /// An effect that came up while another was carried out: its result goes through the queue.
    fn later(&mut self, effect: Effect) {
        if let Some(input) = self.perform(effect) {
            let _ = self.results.send(input);
        }
    }

    fn purge(&self, host: HostId) -> Outcome<Purge> {
        let remotes = self.remotes.get(&host).ok_or_else(|| format!("{host} is not configured here"))?;
        let mut purge = Purge { destroyed: 0, left: 0 };
        for &remote in remotes {
            let filter = sockets::Filter {
                local: Some((self.service.0, Some(self.service.1))),
                remote: Some((remote.into(), None)),
            };
            purge.destroyed += sockets::destroy(&filter).map_err(|e| e.to_string())?;
            purge.left += sockets::count(&filter).map_err(|e| e.to_string())?;
        }
        Ok(purge)
    }
}
