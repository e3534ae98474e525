//! The world: hosts, SCVMs and Meta by the machines of `reroute-core`, and everything around them as a model.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | what a world is made of, and which safeguards are switched off |
//! | `step` | what can happen next, and what happens then |
//! | `flight` | what is under way |
//! | `clock`, `links` | clocks with a zero and a rate of their own; links that are cut, each way of its own |
//! | `host`, `client` | the host agent, the route, the disk; the NFS client |
//! | `scvm`, `scvm_effects`, `kernel` | the SCVM agent; what it wants done; the kernel's words, leases and counts |
//! | `datapath`, `server` | what becomes of pulses and segments; the access server |
//! | `meta`, `agent` | leaders and their store; messages and push streams |
//! | `tcp` | connections and segments |
//! | `oracle` | the data, and what must never happen |
//!
//! A world is a value: it can be cloned, compared and hashed, and nothing happens in it but by [`World::apply`]. It
//! knows true time; its nodes know their own clocks only.

pub mod agent;
pub mod client;
pub mod clock;
mod datapath;
pub mod flight;
pub mod host;
pub mod kernel;
pub mod links;
pub mod meta;
pub mod oracle;
pub mod scvm;
mod scvm_effects;
pub mod server;
pub mod settings;
pub mod step;
pub mod tcp;
#[cfg(test)]
mod tests;

pub use flight::{Id, Nature, Node, Pending};
pub use links::Link;
pub use oracle::{Kind, Violation};
pub use settings::{Load, Safeguard, Settings, Timing};
pub use step::{Blocked, Failure, Fault, Step};

use agent::Stream;
use clock::Clock;
use flight::{Flight, StreamId};
use links::Links;
use oracle::Oracle;
use reroute_core::ids::*;
use reroute_core::timeline::Event;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A line of a node's journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Said {
    pub node: Node,
    /// By that node's clock.
    pub at: BootNs,
    pub event: Event,
}

/// What a step leaves behind, for whoever keeps the time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Applied {
    /// What is under way since.
    pub new: Vec<Id>,
    /// Whose timers may have moved.
    pub touched: BTreeSet<Node>,
    pub clients: BTreeSet<HostId>,
    pub said: Vec<Said>,
    /// Writes that came to an end, and by which server.
    pub acked: Vec<(HostId, ScvmId)>,
}

impl Applied {
    fn touch(&mut self, node: Node) {
        self.touched.insert(node);
    }
    fn client(&mut self, host: HostId) {
        self.clients.insert(host);
    }
    fn say(&mut self, said: Said) {
        self.said.push(said);
    }
    fn acked(&mut self, host: HostId, scvm: ScvmId) {
        self.acked.push((host, scvm));
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub settings: Arc<Settings>,
    /// True time, ns.
    pub now: u64,
    hosts: Vec<host::Host>,
    scvms: Vec<scvm::Machine>,
    metas: Vec<meta::Meta>,
    pub store: meta::Store,
    pub links: Links,
    pub flight: Flight,
    streams: BTreeMap<StreamId, Stream>,
    pub oracle: Oracle,
    /// Empty between steps.
    later: Vec<(ScvmId, Incarnation, reroute_core::scvm::Input)>,
    out: Applied,
}

impl World {
    /// Everything is there and nothing runs yet: see [`World::begin`]. `clocks` gives each node its own.
    pub fn new(settings: Settings, mut clocks: impl FnMut(Node) -> Clock) -> World {
        let settings = Arc::new(settings);
        let hosts = settings.host_ids().map(|id| host::Host::new(id, clocks(Node::Host(id)))).collect();
        let scvm = |id| {
            let clock = clocks(Node::Scvm(id));
            let mut kernel = kernel::Kernel::new(&settings, 1);
            kernel.listener(true, clock.at(0));
            kernel.signals.clear();
            scvm::Machine::new(id, clock, kernel)
        };
        let scvms = settings.scvm_ids().map(scvm).collect();
        let mut clocks = clocks;
        let metas = (0..settings.metas)
            .map(|id| meta::Meta { clock: clocks(Node::Meta(id)), leader: None })
            .collect();
        World {
            now: 0,
            hosts,
            scvms,
            metas,
            store: meta::Store::default(),
            links: Links::default(),
            flight: Flight::new(settings.canonical),
            streams: BTreeMap::new(),
            oracle: Oracle::new(&settings),
            later: Vec::new(),
            out: Applied::default(),
            settings,
        }
    }

    /// The faults (if that is the word) that start everything: Meta, the SCVMs' agents, the hosts' agents.
    pub fn begin(&self) -> Vec<Step> {
        let meta = [Fault::StartMeta(0)].into_iter();
        let scvms = self.settings.scvm_ids().map(Fault::StartAgent);
        let hosts = self.settings.host_ids().map(Fault::StartHost);
        meta.chain(scvms).chain(hosts).map(Step::Fault).collect()
    }

    pub fn host(&self, id: HostId) -> &host::Host {
        &self.hosts[id.0 as usize - 1]
    }
    fn host_mut(&mut self, id: HostId) -> &mut host::Host {
        &mut self.hosts[id.0 as usize - 1]
    }
    pub fn scvm(&self, id: ScvmId) -> &scvm::Machine {
        &self.scvms[id.0 as usize - 1]
    }
    fn scvm_mut(&mut self, id: ScvmId) -> &mut scvm::Machine {
        &mut self.scvms[id.0 as usize - 1]
    }
    pub fn meta(&self, id: u8) -> &meta::Meta {
        &self.metas[id as usize]
    }
    fn meta_mut(&mut self, id: u8) -> &mut meta::Meta {
        &mut self.metas[id as usize]
    }

    /// What a node's clock shows.
    pub fn local(&self, node: Node) -> BootNs {
        match node {
            Node::Host(id) => self.host(id).clock.at(self.now),
            Node::Scvm(id) => self.scvm(id).clock.at(self.now),
            Node::Meta(id) => self.meta(id).clock.at(self.now),
        }
    }

    fn runs(&self, node: NodeId, incarnation: Incarnation) -> bool {
        match node {
            NodeId::Host(id) => {
                self.host(id).agent.as_ref().is_some_and(|a| a.link.incarnation == incarnation)
            }
            NodeId::Scvm(id) => {
                self.scvm(id).agent.as_ref().is_some_and(|a| a.link.incarnation == incarnation)
            }
        }
    }

    /// Puts something under way. What is sent into a cut link is lost; what is under way when it is cut still arrives.
    fn add(&mut self, pending: Pending) {
        if let (from, to, Some(network)) = pending.way()
            && pending.nature() == Nature::Datagram
            && !self.links.carries(from, to, network)
        {
            return self.segment_lost(pending);
        }
        let id = self.flight.add(pending);
        self.out.new.push(id);
    }

    pub fn violations(&self) -> &[Violation] {
        &self.oracle.violations
    }
}
