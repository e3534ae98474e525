//! What is read from the kernel, for the machine, for operators and for Meta.

use super::driver::Driver;
use super::facts::{client_facts, holder, latency, server_facts};
use super::operator::Snapshot;
use crate::{clock, sensor};
use reroute_common::table;
use reroute_core::ids::*;
use reroute_core::proto::ToMeta;
use reroute_core::scvm::limits::SetLimit;
use reroute_core::scvm::*;
use reroute_core::timeline::Event;

const LIMITS_NS: u64 = 250 * MS;
/// So many clients go into one message.
const HOLDERS_MOST: usize = 128;

impl Driver {
    pub(super) fn note<T>(&mut self, what: &str, result: Result<T, sensor::SensorError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(format!("{what}: {error}"));
                None
            }
        }
    }

    /// Recorded once, until another one comes up.
    pub(super) fn fault(&mut self, what: String) {
        if self.sensor_fault.as_ref() != Some(&what) {
            self.journal.record(Event::Fault { what: what.clone() });
            self.sensor_fault = Some(what);
        }
    }

    pub(super) fn read_server(&mut self) {
        let read = self.sensor.server();
        if let Some(server) = self.note("reading the server's state", read) {
            let mut facts = server_facts(&server);
            match self.listener.is_there() {
                Ok(listening) => facts.listening = listening,
                Err(error) => self.fault(format!("looking for the server's socket: {error}")),
            }
            self.machine.handle(Input::Server(facts), clock::now());
        }
    }

    pub(super) fn read_clients(&mut self) {
        self.clients_read = clock::now();
        let read = self.sensor.logins();
        if let Some(clients) = self.note("reading the clients", read) {
            let facts = clients.iter().filter(|c| c.host != 0).map(client_facts).collect();
            self.machine.handle(Input::Clients(facts), clock::now());
            if self.clients_read.since(self.limited) >= LIMITS_NS {
                self.adapt(&clients);
            }
        }
    }

    /// Holds each client to a limit of its own.
    pub(super) fn adapt(&mut self, clients: &[table::Client]) {
        self.limited = self.clients_read;
        let latencies: Vec<_> = clients.iter().filter(|c| c.host != 0).map(latency).collect();
        for SetLimit { host, limit_ns } in self.limits.handle(&latencies, self.limited) {
            let set = self.sensor.set_unanswered_limit(host, limit_ns);
            if self.note("setting the limit of a client", set).is_some() {
                tracing::debug!(%host, limit_ns, "unanswered limit");
            }
        }
    }

    pub(super) fn show(&mut self) {
        let now = clock::now();
        self.shown = now;
        let (clients, server, config) = (self.sensor.clients(), self.sensor.server(), self.sensor.config());
        let (Some(clients), Some(server), Some(config)) = (
            self.note("reading the clients", clients),
            self.note("reading the server's state", server),
            self.note("reading the configuration map", config),
        ) else {
            return;
        };
        self.shared.put(Snapshot {
            at: now,
            machine: {
                let mut view = self.machine.view(now);
                view.alarms.extend(self.meta.strangers());
                view
            },
            cluster: self.view.clone(),
            cluster_at: self.view_at,
            clients,
            server,
            config,
            journal_lost: self.journal.lost(),
        });
    }

    /// Says who holds what, for `logins`. Nothing depends on it: it is sent once, and lost if it is lost.
    pub(super) fn tell_holders(&mut self) {
        let now = clock::now();
        self.told_holders = now;
        let Some(term) = self.machine.term() else { return };
        let read = self.sensor.logins();
        let Some(clients) = self.note("reading the clients", read) else { return };
        let packets = self.sensor.last_packets();
        let facts = |c: &table::Client| holder(c, packets.get(&HostId(c.host)).copied(), now);
        let facts: Vec<_> = clients.iter().filter_map(facts).collect();
        for clients in facts.chunks(HOLDERS_MOST).map(<[_]>::to_vec) {
            let meta = self.meta.clone();
            tokio::spawn(async move {
                if let Err(error) = meta.send(ToMeta::Holders { term, clients }).await {
                    tracing::debug!(%error, "who holds what was not told");
                }
            });
        }
    }
}
