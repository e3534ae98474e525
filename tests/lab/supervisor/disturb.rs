//! Faults of links and of whole nodes.

use super::Supervisor;
use crate::faults::{Disturbance, FROZEN};
use crate::sys::{self, Switch};
use crate::topology::{Node, SWITCH};
use crate::wire::{Direction, Disturbed, Port, Rule};
use anyhow::{Context, bail};
use reroute_agent::clock;
use reroute_core::ids::BootNs;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// An interface that is down for less is not seen down by everybody.
const FLAP: Duration = Duration::from_millis(100);

/// Disturbed links by fault and node.
pub type Standing = Mutex<BTreeMap<(String, String), Vec<Disturbed>>>;

impl Supervisor {
    /// Our end of a node's link `sto`, `mgt` or `nfs`.
    fn port(&self, node: Node, link: &str) -> anyhow::Result<Port<'_>> {
        if link == "nfs" {
            let Node::Scvm(pair) = node else { bail!("{node} has no private link of its own") };
            let ns = self.namespace(&Node::Host(pair).to_string())?;
            return Ok(Port { ns, interface: "nfs0".into(), others: Vec::new() });
        }
        let others = Node::all().into_iter().filter(|n| *n != node).map(|n| (n.port(link), n.mac(link)));
        Ok(Port { ns: self.namespace(SWITCH)?, interface: node.port(link), others: others.collect() })
    }

    /// Returns the time right before the links are disturbed: all at one moment, as what still passed by one would tell of
    /// what passes no more by another.
    pub(super) fn disturb(&self, fault: &str, node: &str, what: &[Disturbance]) -> anyhow::Result<BootNs> {
        let target = Node::parse(node).with_context(|| format!("no node {node:?}"))?;
        let mut all = Vec::new();
        for disturbance in what {
            for link in disturbance.links {
                let each = disturbance.directions.iter().map(|d| (link, *d, disturbance.rule));
                all.extend(each);
            }
        }
        let switch = Switch::off()?;
        // The kernel takes its time for each.
        let links = std::thread::scope(|scope| {
            let switch = &switch;
            let one = |(link, direction, rule): (&&str, Direction, Rule)| {
                self.port(target, link)?.disturb(direction, rule, switch)
            };
            let threads: Vec<_> =
                all.into_iter().map(|disturbed| scope.spawn(move || one(disturbed))).collect();
            let done =
                threads.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
            done.collect::<anyhow::Result<Vec<Disturbed>>>()
        })?;
        let at = clock::now();
        switch.turn_on()?;
        self.standing().insert((fault.into(), node.into()), links);
        Ok(at)
    }

    pub(super) fn pass(&self, fault: &str, node: &str) {
        self.standing().remove(&(fault.into(), node.into()));
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, String), Vec<Disturbed>>> {
        self.disturbed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn flap(&self, node: &str, link: &str) -> anyhow::Result<BootNs> {
        let (ns, interface) = (self.namespace(node)?, format!("{link}0"));
        let at = ns.run(|| sys::set_link(&interface, false, clock::now))??;
        std::thread::sleep(FLAP);
        ns.run(|| sys::set_link(&interface, true, || ()))??;
        Ok(at)
    }

    pub(super) fn restart(&self, process: &str) -> anyhow::Result<BootNs> {
        let at = self.processes.signal(process, Signal::KILL)?;
        self.processes.wait(process, Duration::from_secs(5))?;
        self.run(self.processes.spec(process)?)?;
        Ok(at)
    }

    pub(super) fn freeze(
        self: &Arc<Self>,
        fault: &str,
        node: &str,
        time: Duration,
    ) -> anyhow::Result<BootNs> {
        let at = self.disturb(fault, node, FROZEN)?;
        self.signal_all(node, Signal::STOP);
        let (supervisor, fault, node) = (self.clone(), fault.to_string(), node.to_string());
        std::thread::Builder::new().name("thaw".into()).spawn(move || {
            std::thread::sleep(time);
            supervisor.thaw_since(&fault, &node, at);
        })?;
        Ok(at)
    }

    /// What waited comes in first; then the server goes on, and last those who watch over it: nobody promises another
    /// order, and this is the worst.
    pub(super) fn thaw(&self, fault: &str, node: &str) {
        self.pass(fault, node);
        self.signal_all(node, Signal::CONT);
    }

    /// Unless it was healed, and perhaps frozen again, meanwhile.
    fn thaw_since(&self, fault: &str, node: &str, at: BootNs) {
        let faults = self.faults();
        if faults.iter().any(|f| f.name == fault && f.target == node && f.at == at) {
            self.thaw(fault, node);
        }
    }

    pub(super) fn signal_all(&self, node: &str, signal: Signal) {
        let runs = self.processes.list().into_iter().filter(|p| p.runs()).map(|p| p.name);
        let mut names: Vec<String> = runs.filter(|name| name.starts_with(&format!("{node}/"))).collect();
        names.sort_by_key(|name| !name.ends_with("/server"));
        for name in names {
            // It may end at this very moment.
            let _ = self.processes.signal(&name, signal);
        }
    }
}
