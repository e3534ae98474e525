//! Carrying out what the machine wants done.

use super::driver::Driver;
use super::facts::{answer, outcome};
use super::probes::Probe;
use crate::clock;
use crate::netlink::sockets;
use crate::sweep::own;
use reroute_common::{pulse, table};
use reroute_core::ids::{HostId, Network};
use reroute_core::scvm::*;
use std::collections::BTreeSet;
use std::net::SocketAddrV4;

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
            Effect::ResetClient { host, epoch, network, ports, own, round } => {
                let result = self.reset_client((host, network), &ports, own, round);
                Input::ClientReset { host, epoch, result }
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
            Effect::AskOwnAddress => {
                let ((interface, address), results) = (self.storage.clone(), self.results.clone());
                tokio::task::spawn_blocking(move || {
                    let _ = results.send(Input::OwnAddress(own::claims(&interface, address)));
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
                local: Some((self.service.0.into(), Some(self.service.1))),
                remote: Some((remote.into(), None)),
            };
            purge.destroyed += sockets::destroy(&filter).map_err(|e| e.to_string())?;
            purge.left += sockets::count(&filter).map_err(|e| e.to_string())?;
        }
        Ok(purge)
    }

    /// Has the client's connections from these ports end. A socket of our own is left alone, or (`own`) destroyed, which
    /// tells the client so; the others have no other end here.
    fn reset_client(&self, at: (HostId, Network), ports: &[u16], own: bool, round: u32) -> Outcome<Tickled> {
        let (host, network) = at;
        let address = *self
            .addresses
            .get(&at)
            .ok_or_else(|| format!("{host} has no address on {network} by this configuration"))?;
        let (service, port) = self.service;
        let filter = sockets::Filter {
            local: Some((service.into(), Some(port))),
            remote: Some((address.into(), None)),
        };
        let text = |error: std::io::Error| error.to_string();
        let here = sockets::list(&filter).map_err(text)?;
        let here: BTreeSet<u16> =
            here.iter().filter(|tcp| tcp.is_alive()).map(|tcp| tcp.remote.port()).collect();
        let mut done = Tickled { tickled: 0, destroyed: 0 };
        if own {
            done.destroyed =
                sockets::destroy_where(&filter, |tcp| ports.contains(&tcp.remote.port())).map_err(text)?;
        }
        let tickler = self.tickler.as_ref().map_err(Clone::clone)?;
        for &at in ports.iter().filter(|port| !here.contains(port)) {
            let (from, to) = (SocketAddrV4::new(service, port), SocketAddrV4::new(address, at));
            tickler.send(from, to, round).map_err(text)?;
            done.tickled += 1;
        }
        Ok(done)
    }
}
