//! An SCVM's part in driving ESXi hosts: [`reroute_core::esxi`] and its I/O, beside the real-time thread.
//!
//! | thread | runs |
//! |---|---|
//! | `esxi` | the machine: orders and results in, effects out |
//! | `ssh` | one command on one host, until it ends or its time is up; one at a time per host |
//! | `peer` | one look at another SCVM; one at a time |
//!
//! One unbounded queue; what fills it is bounded: Meta repeats orders once a second, and each effect gives one result.

mod peer;
mod ssh;

use crate::clock;
use crate::config::{Config, Esxi, ns};
use crate::journal::Journal;
use crate::meta_client::MetaClient;
use reroute_core::esxi::{DriveError, Driver, Effect, Input, Settings, Wish};
use reroute_core::ids::*;
use reroute_core::proto::ToMeta;
use reroute_core::timeline::Event;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// The thread's queue. The thread ends with the process: what it has begun on a host ends there by itself.
pub struct Handle {
    queue: Sender<Task>,
}

enum Task {
    Machine(Input),
    AskPeer(ScvmId),
    PeerSeen { scvm: ScvmId, found: std::io::Result<bool> },
}

/// How long the thread sleeps when nothing is due.
const IDLE_NS: u64 = 60 * SEC;

impl Handle {
    pub fn drive(&self, host: HostId, wish: Option<Wish>) {
        let _ = self.queue.send(Task::Machine(Input::Appointed { host, wish }));
    }
    pub fn ask_peer(&self, scvm: ScvmId) {
        let _ = self.queue.send(Task::AskPeer(scvm));
    }
}

/// Starts the thread. Call it within the runtime that `meta` sends by.
pub fn start(config: &Config, own: ScvmId, meta: MetaClient, journal: Journal) -> std::io::Result<Handle> {
    let logins: BTreeMap<HostId, Esxi> =
        config.cluster.hosts.iter().filter_map(|h| Some((h.id, h.esxi.clone()?))).collect();
    let networks = [Network::Storage, Network::Management];
    let hops = config.cluster.scvms.iter().flat_map(|s| {
        networks.map(|network| {
            let address = if network == Network::Storage { s.storage } else { s.management };
            (address, Path { scvm: s.id, network })
        })
    });
    let settings = Settings {
        service: config.cluster.service_address,
        hops: hops.collect(),
        rehearse_ns: ns(config.timing.rehearse_ms),
        forget_ns: Settings::FORGET_NS,
    };
    let (queue, tasks) = channel();
    let worker = Worker {
        machine: Driver::new(settings, logins.keys().copied()),
        logins,
        config: Arc::new(config.clone()),
        own,
        meta,
        runtime: tokio::runtime::Handle::current(),
        journal,
        queue: queue.clone(),
        asking: Arc::default(),
        blind: false,
    };
    thread::Builder::new().name("esxi".into()).spawn(move || worker.run(&tasks))?;
    Ok(Handle { queue })
}

struct Worker {
    machine: Driver,
    logins: BTreeMap<HostId, Esxi>,
    config: Arc<Config>,
    own: ScvmId,
    meta: MetaClient,
    runtime: tokio::runtime::Handle,
    journal: Journal,
    queue: Sender<Task>,
    /// A look at a peer is under way.
    asking: Arc<AtomicBool>,
    /// That such a look fails was said.
    blind: bool,
}

impl Worker {
    fn run(mut self, tasks: &Receiver<Task>) {
        loop {
            let now = clock::now();
            // Nothing due: an order wakes it.
            let wait = self.machine.wake_at().map_or(IDLE_NS, |at| at.since(now));
            match tasks.recv_timeout(Duration::from_nanos(wait)) {
                Ok(Task::Machine(input)) => self.feed(input),
                Ok(Task::AskPeer(scvm)) => self.look_at(scvm),
                Ok(Task::PeerSeen { scvm, found }) => self.seen(scvm, found),
                Err(RecvTimeoutError::Timeout) => self.feed(Input::Tick),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn feed(&mut self, input: Input) {
        for effect in self.machine.handle(input, clock::now()) {
            match effect {
                Effect::Run { host, command } => {
                    let Some(login) = self.logins.get(&host).cloned() else { continue };
                    let queue = self.queue.clone();
                    let run = move || {
                        let (result, took) = ssh::run(&login, command);
                        let took_ns = took.as_nanos() as u64;
                        let _ = queue.send(Task::Machine(Input::Ran { host, result, took_ns }));
                    };
                    if let Err(error) = thread::Builder::new().name("ssh".into()).spawn(run) {
                        let what = format!("no thread for ssh: {error}");
                        let result = Err(DriveError::Local { what });
                        let _ = self.queue.send(Task::Machine(Input::Ran { host, result, took_ns: 0 }));
                    }
                }
                Effect::Report { host, report } => self.tell(ToMeta::Driven { host, report }),
                Effect::Journal(event) => self.journal.record(event),
            }
        }
    }

    /// Sent once: a report that is lost comes again with the next order, or the next rehearsal.
    fn tell(&self, msg: ToMeta) {
        let meta = self.meta.clone();
        self.runtime.spawn(async move {
            if let Err(error) = meta.send(msg).await {
                tracing::debug!(%error, "Meta was not told");
            }
        });
    }

    fn look_at(&self, scvm: ScvmId) {
        if self.asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let (config, own, asking, queue) =
            (self.config.clone(), self.own, self.asking.clone(), self.queue.clone());
        let look = move || {
            let found = peer::is_silent(&config, own, scvm);
            asking.store(false, Ordering::Release);
            let _ = queue.send(Task::PeerSeen { scvm, found });
        };
        if let Err(error) = thread::Builder::new().name("peer".into()).spawn(look) {
            self.asking.store(false, Ordering::Release);
            self.journal.record(Event::Fault { what: format!("no thread to look at {scvm}: {error}") });
        }
    }

    fn seen(&mut self, scvm: ScvmId, found: std::io::Result<bool>) {
        match found {
            Ok(true) => self.tell(ToMeta::PeerSilent { scvm }),
            Ok(false) => {}
            Err(error) => {
                // Once: it is asked several times a second.
                if !std::mem::replace(&mut self.blind, true) {
                    let what =
                        format!("other SCVMs cannot be looked at ({error}): this agent needs CAP_NET_RAW");
                    self.journal.record(Event::Fault { what });
                }
            }
        }
    }
}
