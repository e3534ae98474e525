//! Facts in, findings out. Pure.

mod clients;
mod fences;
mod host;
mod machine;
mod meta;
mod scvm;

use super::facts::{Agent, Facts, Interface};
use super::{Finding, Level};

/// Findings as they are made.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.add(check, Level::Ok, found, "");
    }
    fn unknown(&mut self, check: &'static str, found: impl Into<String>, advice: &str) {
        self.add(check, Level::Unknown, found, advice);
    }
    fn warning(&mut self, check: &'static str, found: impl Into<String>, advice: &str) {
        self.add(check, Level::Warning, found, advice);
    }
    fn critical(&mut self, check: &'static str, found: impl Into<String>, advice: &str) {
        self.add(check, Level::Critical, found, advice);
    }
    fn add(&mut self, check: &'static str, level: Level, found: impl Into<String>, advice: &str) {
        self.0.push(Finding { check, level, found: found.into(), advice: advice.into() });
    }
}

pub fn check(facts: &Facts) -> Vec<Finding> {
    let mut out = Findings::default();
    machine::check(facts, &mut out);
    meta::reachability(facts, &mut out);
    if let Some(scvm) = &facts.scvm {
        scvm::check(scvm, &mut out);
    }
    if let Some(host) = &facts.host {
        host::check(host, &mut out);
    }
    fences::policies(&facts.policies, &mut out);
    clients::check(&facts.clients, &mut out);
    if let Some(role) = &facts.meta_role {
        meta::check(role, &mut out);
    }
    out.0
}

/// Whether the agent answers, and what it complains of.
fn agent(agent: &Agent, out: &mut Findings) {
    let socket = agent.socket.display();
    match &agent.answer {
        Err(why) => out.warning("agent", format!("no agent answers on {socket}: {why}"), "start it"),
        Ok(answer) => {
            out.ok("agent", format!("answers on {socket}"));
            for alarm in &answer.alarms {
                out.warning("agent", alarm, "it says so itself: see `status`, and `journal.jsonl`");
            }
        }
    }
}

/// What every interface needs, whatever it is used for.
fn interface(it: &Interface, out: &mut Findings) {
    let (name, network) = (&it.name, it.network);
    let Some(nic) = &it.nic else {
        out.critical(
            "interface",
            format!("{network}: there is no interface {name} on this node"),
            "see `ip link`, then correct `interfaces` in the configuration",
        );
        return;
    };
    let driver = nic.driver.as_deref().unwrap_or("none");
    let about = format!("{network}: {name}, driver {driver}, MTU {}", nic.mtu);
    match (nic.up, nic.carrier) {
        (false, _) => out.critical("interface", format!("{about}: down"), "set it up (`ip link set ... up`)"),
        (true, false) => out.critical(
            "interface",
            format!("{about}: no carrier"),
            "look at the cable, the bond or the vSwitch",
        ),
        (true, true) => out.ok("interface", about),
    }
    if !it.has_address {
        out.critical(
            "address",
            format!("{network}: {name} does not have this node's address {}", it.address),
            "give it that address, or correct [[cluster.hosts]] or [[cluster.scvms]]",
        );
    }
}

#[cfg(test)]
#[path = "checks/tests.rs"]
mod tests;
