//! The loop of the real-time thread: inputs to the machine, its effects to the kernel, the disk and Meta.
//!
//! | queue | from | when full |
//! |---|---|---|
//! | pulses | the sockets' receive buffers | the kernel drops; a lost pulse is a lost pulse |
//! | link to Meta, route and link changes, results of sends and writes | tasks of this runtime | unbounded: none may be lost |
//! | operators | service's thread | the operator waits |

use super::kernel::Kernel;
use super::metrics::Metrics;
use super::operator::{self, Adopted, PinWish, Pinned, Request, Status};
use super::pulse::{self, Pulses};
use crate::config::{Config, Host, HostEntry};
use crate::journal::Journal;
use crate::meta_client::{LinkEvent, MetaClient};
use crate::netlink::{links, route};
use crate::record::Recorded;
use crate::{clock, service};
use anyhow::Context;
use prometheus_client::registry::Registry;
use reroute_core::host::{self, Found, Input, Machine, Mode, Notes, Pin, PinRefused, Record, Settings};
use reroute_core::ids::*;
use reroute_core::proto::{ClusterView, Order};
use reroute_core::timeline::Event;
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Gauges are brought up to date this often.
const SHOW_NS: u64 = 500 * MS;

pub struct Parts {
    pub settings: Settings,
    pub config: Config,
    pub host: Host,
    pub node: HostEntry,
    pub record: Record,
    pub notes: Notes,
    /// Of this node's kernel.
    pub boot: u64,
    pub journal: Journal,
}

pub(super) struct Driver {
    pub(super) machine: Recorded<Machine>,
    pub(super) kernel: Kernel,
    pub(super) pulses: Pulses,
    pub(super) meta: MetaClient,
    meta_up: BTreeSet<SocketAddr>,
    view: Option<ClusterView>,
    view_at: BootNs,
    pub(super) found: Option<Found>,
    pub(super) parts: Parts,
    pub(super) metrics: Metrics,
    shown_at: BootNs,
    /// Results of what was spawned: messages to Meta, writes to disk.
    pub(super) results: mpsc::UnboundedSender<Input>,
    pub(super) inputs: VecDeque<Input>,
}

/// Runs until `stop`.
pub async fn run(parts: Parts, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let incarnation = clock::new_incarnation();
    let id = parts.host.id;
    let mut kernel =
        Kernel::open(&parts.config, &parts.host, &parts.node).context("cannot read the routes")?;
    let pulses = Pulses::open(&parts.config, &parts.host, &parts.node, incarnation)?;
    // Before the first look, so that nothing between look and watch is missed.
    let mut route_changes = route::watch(parts.config.cluster.service_address)?;
    let names: Vec<String> = parts.host.interfaces.each().iter().map(|(_, name)| name.to_string()).collect();
    let mut link_changes = links::watch(&names)?;
    let (meta, mut meta_events) = MetaClient::start(&parts.config, NodeId::Host(id), incarnation)?;

    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    meta.counters().register(&mut registry);
    let (requests, mut asked) = mpsc::channel(16);
    let _service = service::serve(
        &parts.host.socket,
        parts.host.metrics,
        Arc::new(registry),
        operator::router(requests),
    )?;

    let found = kernel.read_route();
    let start = host::Start {
        settings: parts.settings.clone(),
        record: parts.record,
        notes: parts.notes.clone(),
        hypervisor: parts.host.hypervisor.as_ref().map(|h| (h.domain().to_string(), parts.boot)),
    };
    let machine = Recorded::begin(start, parts.config.record.as_deref(), clock::now())?;
    let adopted = match &found {
        Ok(found) => format!("route: {found:?}; login on disk: {:?}", parts.record),
        Err(why) => format!("route unreadable: {why}; login on disk: {:?}", parts.record),
    };
    parts.journal.record(Event::Started { role: "host".into(), adopted });
    let (results, mut came) = mpsc::unbounded_channel();
    let mut driver = Driver {
        machine,
        kernel,
        pulses,
        meta,
        meta_up: BTreeSet::new(),
        view: None,
        view_at: BootNs(0),
        found: None,
        parts,
        metrics,
        shown_at: BootNs(0),
        results,
        inputs: VecDeque::new(),
    };
    driver.route_was_read(found);

    let mut stop = std::pin::pin!(stop);
    let mut beat = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    let mut due = BootNs(0);
    loop {
        let next = driver.machine.next_tick();
        if next != due {
            due = next;
            beat.as_mut().reset(Instant::now() + Duration::from_nanos(due.since(clock::now())));
        }
        // In this order: no flood of anything holds up the beat (which itself hears the waiting replies first, before
        // it judges silence).
        tokio::select! {
            biased;
            () = &mut stop => break,
            () = &mut beat => driver.tick(due),
            () = driver.pulses.readable() => driver.receive(),
            Some(input) = came.recv() => driver.input(input),
            Some(event) = meta_events.recv() => driver.meta_event(event),
            Some(change) = route_changes.recv() => {
                let _ = change;
                let found = driver.kernel.read_route();
                driver.route_was_read(found);
            }
            Some(change) = link_changes.recv() => driver.link_changed(change),
            Some(request) = asked.recv() => driver.operator(request),
        }
    }
    Ok(())
}

impl Driver {
    /// Hands an input to the machine and carries out what follows, until nothing does.
    fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
        while let Some(input) = self.inputs.pop_front() {
            for effect in self.machine.handle(input, clock::now()) {
                self.carry_out(effect);
            }
        }
    }

    fn receive(&mut self) {
        for received in self.pulses.receive() {
            match received {
                Ok(reply) => {
                    self.metrics.pulse_answered(reply.path);
                    let pulse::Reply { path, sent_at, received_at, facts } = reply;
                    self.inputs.push_back(Input::Reply { path, sent_at, facts });
                    self.run_at(received_at);
                }
                Err((network, reject)) => {
                    self.metrics.pulse_rejected(network, reject);
                    tracing::trace!(%network, reason = reject.name(), "pulse rejected");
                }
            }
        }
    }

    /// The inputs that wait; the first of them happened at `at`.
    fn run_at(&mut self, at: BootNs) {
        let Some(first) = self.inputs.pop_front() else { return };
        for effect in self.machine.handle(first, at) {
            self.carry_out(effect);
        }
        while let Some(input) = self.inputs.pop_front() {
            for effect in self.machine.handle(input, clock::now()) {
                self.carry_out(effect);
            }
        }
    }

    fn tick(&mut self, due: BootNs) {
        self.receive();
        let now = clock::now();
        if now.since(due) > self.machine.pulse_ns() {
            self.metrics.late.inc();
        }
        self.input(Input::Tick { due });
        if now.since(self.shown_at) >= SHOW_NS {
            self.shown_at = now;
            let local = self.machine.local(now);
            let paths: Vec<Path> = local.report.paths.iter().map(|p| p.path).collect();
            self.metrics.show(&local, &paths, self.parts.journal.lost());
        }
    }

    fn meta_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { address } => {
                self.meta_up.insert(address);
                self.input(Input::MetaLink { up: true });
            }
            LinkEvent::Stranger { why, .. } => self.parts.journal.record(Event::Fault { what: why }),
            LinkEvent::Down { address, why } => {
                tracing::warn!(%address, why, "Meta's push stream is down");
                self.meta_up.remove(&address);
                if self.meta_up.is_empty() {
                    self.input(Input::MetaLink { up: false });
                }
            }
            LinkEvent::Order(order) => {
                if let Order::View { view } = &order.order {
                    self.view = Some(view.clone());
                    self.view_at = clock::now();
                }
                self.input(Input::Order(order));
            }
        }
    }

    fn route_was_read(&mut self, found: Result<Found, String>) {
        self.found = found.clone().ok();
        self.input(Input::RouteRead(found));
    }

    fn link_changed(&mut self, change: links::LinkChange) {
        let interfaces = self.parts.host.interfaces.each().map(|(network, name)| (network, name.to_string()));
        for (network, _) in interfaces.iter().filter(|(_, name)| *name == change.interface) {
            if change.carrier
                && let Err(error) = self.pulses.rebind(*network)
            {
                let what = format!("pulses on {} cannot be sent: {error}", change.interface);
                self.parts.journal.record(Event::Fault { what });
            }
            self.input(Input::Interface { network: *network, carrier: change.carrier });
        }
    }

    fn operator(&mut self, request: Request) {
        match request {
            Request::Status(answer) => {
                let mut local = self.machine.local(clock::now());
                local.faults.extend(self.meta.strangers());
                local.faults.extend(journal_loss(self.parts.journal.lost()));
                let status = Status {
                    role: "host".into(),
                    node: self.parts.node.name.clone(),
                    view: self.view.clone(),
                    view_age_ns: self.view.as_ref().map(|_| clock::now().since(self.view_at)),
                    local,
                };
                let _ = answer.send(Box::new(status));
            }
            Request::Adopt(answer) => {
                let _ = answer.send(self.adopt());
            }
            Request::Dry(actor, answer) => {
                let _ = answer.send(self.dry(actor));
            }
            Request::Pin(wish, answer) => {
                let _ = answer.send(self.pin(wish));
            }
        }
    }

    fn dry(&mut self, actor: String) -> Result<(), String> {
        self.machine.check_mode(Mode::Dry).map_err(|refused| refused.to_string())?;
        self.input(Input::SetMode { mode: Mode::Dry, actor });
        Ok(())
    }

    /// Pins a place, or takes the pin back. Errors, in words: why it cannot be, and what to do.
    fn pin(&mut self, wish: Option<PinWish>) -> Result<Pinned, String> {
        let now = clock::now();
        let before = self.machine.pinned().cloned();
        let pin = match wish {
            None if self.machine.check_mode(Mode::Auto).is_ok() => {
                self.input(Input::SetMode { mode: Mode::Auto, actor: "an operator".into() });
                None
            }
            None if before.is_none() => return Err(PinRefused::NotPinned.to_string()),
            None => None,
            Some(wish) => {
                let (scvm, network) = operator::place(&self.parts.config.cluster, &wish.target)?;
                self.machine.check_pin(scvm, network, now).map_err(|refused| refused.to_string())?;
                let until = wish.for_ms.map(|ms| now.plus(ms.saturating_mul(MS)));
                Some(Pin { scvm, network, until, actor: wish.actor })
            }
        };
        self.input(Input::Pin(pin.clone()));
        Ok(Pinned { pin, before })
    }

    fn adopt(&mut self) -> Result<Adopted, String> {
        let read = self.kernel.read_route();
        self.route_was_read(read);
        let found = match &self.found {
            Some(Found::Foreign { what, .. }) => what.clone(),
            Some(Found::None) => {
                return Err("no route to the service address stands: nothing to adopt".into());
            }
            Some(found) => return Err(format!("the route is ours already ({found:?}): nothing to adopt")),
            None => return Err("the route cannot be read: see the status".into()),
        };
        self.input(Input::Adopt);
        let replaced = matches!(self.found, Some(Found::Ours(_)));
        Ok(Adopted { found, replaced })
    }
}

fn journal_loss(entries: u64) -> Option<String> {
    (entries > 0).then(|| format!("{entries} journal entries were lost: look at the disk"))
}
