//! The real-time thread: inputs in, effects out.

use super::BypassFile;
use super::epoch_file::Publisher;
use super::facts::{client_facts, holder, latency, server_facts, signal};
use super::listener::Listener;
use super::metrics::Metrics;
use super::null_rpc::Prober;
use super::operator::{self, Request, Shared, Snapshot};
use super::run_delay;
use super::server_process::Watcher;
use super::tickle::Tickler;
use crate::config::{ClientAt, Config, Scvm as ScvmConfig, ScvmEntry, ns};
use crate::journal::Journal;
use crate::meta_client::{LinkEvent, MetaClient};
use crate::netlink::links;
use crate::record::Recorded;
use crate::sensor::{self, Sensor};
use crate::{clock, esxi, service};
use anyhow::Context;
use prometheus_client::registry::Registry;
use reroute_common::table;
use reroute_core::ids::*;
use reroute_core::proto::{ClusterView, Order, ToMeta};
use reroute_core::scvm::limits::{Bounds, Limits, SetLimit};
use reroute_core::scvm::*;
use reroute_core::timeline::Event;
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix;
use tokio::sync::mpsc;

const TOUCH_NS: u64 = 10 * MS;
/// How often it is looked at whether somebody waits.
const LOOK: Duration = Duration::from_millis(5);
const PIDFILE_NS: u64 = 20 * MS;
const CLIENTS_NS: u64 = 50 * MS;
const LIMITS_NS: u64 = 250 * MS;
const SNAPSHOT_NS: u64 = 200 * MS;
/// Meta hears who holds what this often; so many clients go into one message.
const HOLDERS_NS: u64 = SEC;
const HOLDERS_MOST: usize = 128;

pub struct Start {
    pub config: Config,
    pub scvm: ScvmConfig,
    pub entry: ScvmEntry,
    pub settings: Settings,
    pub sensor: Sensor,
    pub journal: Journal,
    pub(super) bypass_file: BypassFile,
    pub incarnation: Incarnation,
}

pub(super) struct Driver {
    pub(super) machine: Recorded<Scvm>,
    limits: Limits,
    pub(super) sensor: Sensor,
    pub(super) meta: MetaClient,
    pub(super) process: Watcher,
    listener: Listener,
    pub(super) journal: Journal,
    pub(super) publisher: Option<Publisher>,
    pub(super) probes: mpsc::UnboundedSender<Probe>,
    pub(super) results: mpsc::UnboundedSender<Input>,
    /// Where a host's connections come from, as this node sees them.
    pub(super) remotes: BTreeMap<HostId, Vec<Ipv4Addr>>,
    /// Each address of them by its network.
    pub(super) addresses: BTreeMap<(HostId, Network), Ipv4Addr>,
    /// None: this node cannot send what fits nothing (said when it is wanted).
    pub(super) tickler: Result<Tickler, String>,
    pub(super) service: (Ipv4Addr, u16),
    pub(super) bypass_file: BypassFile,
    /// Interface and own address.
    pub(super) storage: (String, Ipv4Addr),
    esxi: esxi::Handle,
    view: Option<ClusterView>,
    shared: Arc<Shared>,
    touched: BootNs,
    polled: BootNs,
    /// Calls waited at the last look, and the last reply had left then.
    unanswered_since: Option<u64>,
    clients_read: BootNs,
    limited: BootNs,
    shown: BootNs,
    told_holders: BootNs,
    view_at: BootNs,
    /// The last failure to read the kernel's state.
    sensor_fault: Option<String>,
}

pub(super) enum Probe {
    /// Of these processes.
    Ask(Vec<u32>),
    Close,
}

pub async fn run(start: Start) -> anyhow::Result<()> {
    let Start { config, scvm, entry, settings, mut sensor, journal, bypass_file, incarnation } = start;
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    let mut events = sensor.events()?;
    let (results, mut inputs) = mpsc::unbounded_channel();
    let (meta, mut link) = MetaClient::start(&config, NodeId::Scvm(scvm.id), incarnation)?;
    let interfaces: BTreeMap<String, Network> =
        scvm.interfaces.each().into_iter().map(|(network, name)| (name.to_string(), network)).collect();
    let mut carriers = links::watch(&interfaces.keys().cloned().collect::<Vec<_>>())?;
    let clients = config.cluster.clients_at(scvm.id);
    let addresses = |client: &ClientAt| client.addresses.iter().map(|(_, at)| *at).collect();
    let remotes: BTreeMap<HostId, Vec<Ipv4Addr>> = clients.iter().map(|c| (c.id, addresses(c))).collect();
    let by_network = clients
        .iter()
        .flat_map(|c| c.addresses.iter().map(|(network, at)| ((c.id, *network), *at)))
        .collect();
    let publisher = match scvm.epoch_file.clone() {
        Some(path) => Some(
            Publisher::start(path, remotes.clone(), results.clone())
                .context("epoch file: no thread for it")?,
        ),
        None => None,
    };
    let address = SocketAddr::new(config.cluster.service_address.into(), config.cluster.service_port);
    let listener = Listener::new(config.cluster.service_address, config.cluster.service_port)
        .context("cannot ask the kernel for listening sockets")?;
    let probes = prober(Prober::new(address, ns(config.timing.null_rpc_ms)), results.clone());

    let names = clients.iter().map(|c| (c.id, c.name.to_string())).collect();
    let shared = Arc::new(Shared::new(entry.name.clone(), names, sensor.attachments().to_vec()));
    let (requests, mut operators) = mpsc::channel(16);
    let mut registry = Registry::default();
    meta.counters().register(&mut registry);
    registry.register_collector(Box::new(Metrics::new(shared.clone())));
    let router = operator::router(shared.clone(), requests);
    let _service = service::serve(&scvm.socket, scvm.metrics, Arc::new(registry), router)?;

    let esxi = esxi::start(&config, scvm.id, meta.clone(), journal.clone())
        .context("no thread to drive ESXi hosts")?;
    let bounds = Bounds {
        floor_ns: ns(config.timing.unanswered_floor_ms),
        default_ns: ns(config.timing.unanswered_ms),
        ceiling_ns: ns(config.timing.unanswered_ceiling_ms),
    };
    let now = clock::now();
    let adopted =
        if sensor.adopted() { "programs, counters and admission of an earlier run" } else { "nothing" };
    journal.record(Event::Started { role: "scvm".into(), adopted: adopted.into() });
    let mut driver = Driver {
        machine: Recorded::begin(settings, config.record.as_deref(), now)?,
        limits: Limits::new(bounds),
        sensor,
        meta,
        process: Watcher::new(entry.server.pidfile.clone(), results.clone()),
        listener,
        journal,
        publisher,
        probes,
        results,
        remotes,
        addresses: by_network,
        tickler: Tickler::open().map_err(|error| format!("{error}: this agent needs CAP_NET_RAW")),
        service: (config.cluster.service_address, config.cluster.service_port),
        bypass_file,
        storage: (scvm.interfaces.storage.clone(), entry.storage),
        esxi,
        view: None,
        shared,
        touched: BootNs(0),
        polled: BootNs(0),
        clients_read: BootNs(0),
        unanswered_since: None,
        limited: BootNs(0),
        shown: BootNs(0),
        told_holders: BootNs(0),
        view_at: BootNs(0),
        sensor_fault: None,
    };
    driver.begin();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let wait = driver.machine.wake_at(clock::now()).since(clock::now()).max(MS);
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            found = events.next() => match signal(found?, &driver.sensor) {
                Some(signal) => driver.feed(Input::Signal(signal)),
                None => driver.feed(Input::Tick),
            },
            Some(input) = inputs.recv() => driver.feed(input),
            Some(heard) = link.recv() => driver.link(heard),
            Some(change) = carriers.recv() => {
                if let Some(&network) = interfaces.get(&change.interface) {
                    driver.feed(Input::Carrier { network, up: change.carrier });
                }
            }
            Some(request) = operators.recv() => driver.operator(request),
            _ = looks.tick() => driver.look(),
            () = tokio::time::sleep(Duration::from_nanos(wait)) => driver.feed(Input::Tick),
        }
        driver.chores();
    }
    Ok(())
}

/// Runs the prober as a task: it may wait for the server, the machine may not.
fn prober(mut prober: Prober, results: mpsc::UnboundedSender<Input>) -> mpsc::UnboundedSender<Probe> {
    let (ask, mut asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let waits = prober.waits();
            let input = tokio::select! {
                biased;
                probe = asked.recv() => match probe {
                    Some(Probe::Ask(pids)) => {
                        let before = run_delay::read(&pids);
                        let (answered, took_ns) = prober.probe().await;
                        let starved = !answered && run_delay::starved(&before, &run_delay::read(&pids), took_ns);
                        Input::NullRpc { answered, took_ns, starved }
                    }
                    Some(Probe::Close) => {
                        prober.close();
                        continue;
                    }
                    None => break,
                },
                late = prober.late_answer(), if waits => {
                    Input::NullRpc { answered: late.is_some(), took_ns: late.unwrap_or(0), starved: false }
                }
            };
            let _ = results.send(input);
        }
    });
    ask
}

impl Driver {
    fn begin(&mut self) {
        self.read_clients();
        if let Ok(server) = self.sensor.server()
            && let Some(input) = self.process.adopt(Incarnation(server.incarnation))
        {
            self.feed(input);
        }
        self.chores();
        self.feed(Input::Tick);
    }

    /// What is due by the clock, beside the machine.
    fn chores(&mut self) {
        let now = clock::now();
        if now.since(self.touched) >= TOUCH_NS {
            self.touched = now;
            let touched = self.sensor.touch(now);
            self.note("telling the kernel that the agent is alive", touched);
        }
        if now.since(self.clients_read) >= CLIENTS_NS {
            self.read_clients();
        }
        if now.since(self.polled) >= PIDFILE_NS {
            self.poll_pidfile();
        }
        if now.since(self.shown) >= SNAPSHOT_NS {
            self.show();
        }
        if now.since(self.told_holders) >= HOLDERS_NS {
            self.tell_holders();
        }
    }

    /// A few words of shared memory: cheap enough to be looked at all the time.
    fn look(&mut self) {
        let (waiting, last_reply) = self.sensor.waiting();
        let since = waiting.then_some(last_reply);
        if since.is_some() && since == self.unanswered_since {
            self.feed(Input::Quiet);
        }
        self.unanswered_since = since;
    }

    fn poll_pidfile(&mut self) {
        self.polled = clock::now();
        for input in self.process.poll() {
            self.feed(input);
        }
        let health = self.machine.health();
        if !health.stalled && !health.null_failed {
            let _ = self.probes.send(Probe::Close);
        }
    }

    fn note<T>(&mut self, what: &str, result: Result<T, sensor::SensorError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(format!("{what}: {error}"));
                None
            }
        }
    }

    /// Recorded once, until another one comes up.
    fn fault(&mut self, what: String) {
        if self.sensor_fault.as_ref() != Some(&what) {
            self.journal.record(Event::Fault { what: what.clone() });
            self.sensor_fault = Some(what);
        }
    }

    fn read_server(&mut self) {
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

    fn read_clients(&mut self) {
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
    fn adapt(&mut self, clients: &[table::Client]) {
        self.limited = self.clients_read;
        let latencies: Vec<_> = clients.iter().filter(|c| c.host != 0).map(latency).collect();
        for SetLimit { host, limit_ns } in self.limits.handle(&latencies, self.limited) {
            let set = self.sensor.set_unanswered_limit(host, limit_ns);
            if self.note("setting the limit of a client", set).is_some() {
                tracing::debug!(%host, limit_ns, "unanswered limit");
            }
        }
    }

    fn show(&mut self) {
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
    fn tell_holders(&mut self) {
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

    fn link(&mut self, heard: LinkEvent) {
        match heard {
            LinkEvent::Order(line) => {
                if let Order::View { view } = &line.order {
                    self.view = Some(view.clone());
                    self.view_at = clock::now();
                }
                let (term, seq, order) = (line.term, line.seq, line.order);
                self.feed(Input::Order { term, seq, order: order.clone() });
                self.beside(term, seq, order);
            }
            LinkEvent::Stranger { why, .. } => self.journal.record(Event::Fault { what: why }),
            LinkEvent::Up { address } => tracing::info!(%address, "push stream from Meta"),
            LinkEvent::Down { address, why } => {
                self.journal.record(Event::Fault { what: format!("push stream of Meta {address}: {why}") });
            }
        }
    }

    /// Orders that are carried out beside the machine, which has heard them.
    fn beside(&self, term: Term, seq: u64, order: Order) {
        match order {
            // One that lay in a buffer while this node was stunned or cut off is somebody else's by now.
            Order::Drive { host, wish } if self.machine.is_of_this_session(term, seq, clock::now()) => {
                self.esxi.drive(host, wish);
            }
            Order::AskPeer { scvm } => self.esxi.ask_peer(scvm),
            _ => {}
        }
    }

    fn operator(&mut self, request: Request) {
        match request {
            Request::Bypass { on, actor, answer } => {
                self.feed(Input::Bypass { on, actor });
                self.show();
                let _ = answer.send(self.machine.mode_problem());
            }
            Request::Flows { answer } => {
                // Slot 0 is host 0: everybody who is not registered.
                let host = |slot| self.sensor.host_of(slot).unwrap_or_default();
                let flows = self.sensor.flows().map_err(|e| e.to_string());
                let flows =
                    flows.map(|all| all.into_iter().map(|(_, flow)| (host(flow.client), flow)).collect());
                self.show();
                let _ = answer.send(flows);
            }
        }
    }

    /// Hands an input to the machine and carries out what follows, results included, until nothing is left.
    fn feed(&mut self, input: Input) {
        let mut queue = VecDeque::from([input]);
        while let Some(input) = queue.pop_front() {
            self.read_server();
            match &input {
                Input::Reply { tag: Tag::Open { .. }, .. } => self.read_clients(),
                Input::ServerExited { incarnation, .. } => self.process.ended(*incarnation),
                _ => {}
            }
            let effects = self.machine.handle(input, clock::now());
            queue.extend(effects.into_iter().filter_map(|effect| self.perform(effect)));
        }
    }
}
