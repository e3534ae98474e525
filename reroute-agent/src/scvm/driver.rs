//! The real-time thread: inputs in, effects out.

use super::BypassFile;
use super::epoch_file::Publisher;
use super::facts::signal;
use super::listener::Listener;
use super::metrics::Metrics;
use super::null_rpc::Prober;
use super::operator::{self, Request, Shared};
use super::probes::{self, Probe};
use super::server_process::Watcher;
use super::tickle::Tickler;
use crate::config::{ClientAt, Config, Scvm as ScvmConfig, ScvmEntry, ns};
use crate::journal::Journal;
use crate::meta_client::{LinkEvent, MetaClient};
use crate::netlink::links;
use crate::record::Recorded;
use crate::sensor::Sensor;
use crate::{clock, esxi, service};
use anyhow::Context;
use prometheus_client::registry::Registry;
use reroute_core::ids::*;
use reroute_core::proto::{ClusterView, Order};
use reroute_core::scvm::limits::{Bounds, Limits};
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
const SNAPSHOT_NS: u64 = 200 * MS;
/// Meta hears who holds what this often.
const HOLDERS_NS: u64 = SEC;

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
    pub(super) limits: Limits,
    pub(super) sensor: Sensor,
    pub(super) meta: MetaClient,
    pub(super) process: Watcher,
    pub(super) listener: Listener,
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
    pub(super) view: Option<ClusterView>,
    pub(super) shared: Arc<Shared>,
    touched: BootNs,
    polled: BootNs,
    /// Calls waited at the last look, and the last reply had left then.
    unanswered_since: Option<u64>,
    pub(super) clients_read: BootNs,
    pub(super) limited: BootNs,
    pub(super) shown: BootNs,
    pub(super) told_holders: BootNs,
    pub(super) view_at: BootNs,
    /// The last failure to read the kernel's state.
    pub(super) sensor_fault: Option<String>,
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
    let probes = probes::start(Prober::new(address, ns(config.timing.null_rpc_ms)), results.clone());

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
