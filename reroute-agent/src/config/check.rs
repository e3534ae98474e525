//! What a configuration must hold beyond its syntax.

use super::{Config, ConfigError};
use reroute_core::ids::HostId;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let c = &self.cluster;
        if c.id.is_empty() {
            return Err(self.bad("cluster.id", "must not be empty"));
        }
        if c.service_port == 0 {
            return Err(self.bad("cluster.service_port", "port 0 cannot be served: NFS uses 2049"));
        }
        if c.meta.is_empty() {
            return Err(self.bad("cluster.meta", "name at least one address of Meta"));
        }
        let listens = self.meta.iter().flat_map(|m| m.listen.iter().chain(m.metrics.iter()));
        let metrics = self.scvm.iter().flat_map(|s| s.metrics.iter());
        let host_metrics = self.host.iter().flat_map(|h| h.metrics.iter());
        for address in c.meta.iter().chain(listens).chain(metrics).chain(host_metrics) {
            if address.port() == 0 {
                return Err(self.bad("port", format!("{address}: port 0 names no service")));
            }
        }
        if c.scvms.is_empty() {
            return Err(self.bad("cluster.scvms", "name at least one SCVM"));
        }
        for s in &c.scvms {
            if s.id.0 == 0 || c.scvms.iter().filter(|o| o.id == s.id).count() > 1 {
                return Err(self.bad("cluster.scvms.id", format!("{}: ids start at 1 and are unique", s.id)));
            }
        }
        self.check_ids()?;
        for h in &c.hosts {
            if c.scvm(h.local_scvm).is_none() {
                return Err(self.bad(
                    "cluster.hosts.local_scvm",
                    format!("{} is not among [[cluster.scvms]]", h.local_scvm),
                ));
            }
        }
        for (h, esxi) in c.hosts.iter().filter_map(|h| Some((h, h.esxi.as_ref()?))) {
            if h.agent {
                let why = format!(
                    "{} has an agent, which changes its own route: `esxi` is for hosts with agent = false",
                    h.name
                );
                return Err(self.bad("cluster.hosts.esxi", why));
            }
            let named =
                |(key, why)| self.bad(format!("cluster.hosts.esxi.{key}"), format!("{}: {why}", h.name));
            esxi.check().map_err(named)?;
        }
        self.check_addresses()?;
        self.check_esxi_addresses()?;
        if let Some(hypervisor) = self.host.as_ref().and_then(|h| h.hypervisor.as_ref()) {
            hypervisor.check().map_err(|(key, why)| self.bad(format!("host.hypervisor.{key}"), why))?;
        }
        if let Some(command) = self.meta.as_ref().and_then(|m| m.fence_command.as_ref()) {
            command.check().map_err(|(key, why)| self.bad(format!("meta.fence_command.{key}"), why))?;
        }
        let t = &self.timing;
        for (key, value) in [
            ("timing.pulse_ms", t.pulse_ms),
            ("timing.doubt_pulse_ms", t.doubt_pulse_ms),
            ("timing.standby_pulse_ms", t.standby_pulse_ms),
            ("timing.keepalive_ms", t.keepalive_ms),
            ("timing.timer_us", t.timer_us),
            ("timing.silent_ms", t.silent_ms),
            ("timing.unanswered_ms", t.unanswered_ms),
            ("timing.unacked_ms", t.unacked_ms),
            ("timing.unanswered_floor_ms", t.unanswered_floor_ms),
            ("timing.null_rpc_ms", t.null_rpc_ms),
            ("timing.rehearse_ms", t.rehearse_ms),
            ("timing.client_moves", t.client_moves.into()),
            ("timing.client_move_every_ms", t.client_move_every_ms),
        ] {
            if value == 0 {
                return Err(self.bad(key, "must be more than 0"));
            }
        }
        let (floor, default, ceiling) = (t.unanswered_floor_ms, t.unanswered_ms, t.unanswered_ceiling_ms);
        if ceiling < floor {
            return Err(self.bad(
                "timing.unanswered_ceiling_ms",
                format!("{ceiling} ms is below timing.unanswered_floor_ms ({floor} ms)"),
            ));
        }
        if !(floor..=ceiling).contains(&default) {
            return Err(self.bad(
                "timing.unanswered_ms",
                format!("{default} ms is not between floor ({floor} ms) and ceiling ({ceiling} ms)"),
            ));
        }
        // Sessions must outlive a leader that is slow to confirm: else each hiccup of the store ends them all.
        if t.doubt_pulse_ms > t.pulse_ms {
            let why = format!("{} ms is above timing.pulse_ms ({} ms)", t.doubt_pulse_ms, t.pulse_ms);
            return Err(self.bad("timing.doubt_pulse_ms", why));
        }
        // A pulse that is missed, and five more that are.
        let least = t.pulse_ms.saturating_add(t.doubt_pulse_ms.saturating_mul(5));
        if t.path_lost_ms < least {
            let why = format!(
                "{} ms must hold a beat of {} ms and five of {} ms",
                t.path_lost_ms, t.pulse_ms, t.doubt_pulse_ms
            );
            return Err(self.bad("timing.path_lost_ms", why));
        }
        if t.leader_ms < 30 || t.leader_ms > t.session_ms {
            let why =
                format!("{} ms must be from 30 ms to timing.session_ms ({} ms)", t.leader_ms, t.session_ms);
            return Err(self.bad("timing.leader_ms", why));
        }
        for (key, lease, beat) in [
            ("timing.affirm_ms", t.affirm_ms, t.pulse_ms),
            ("timing.session_ms", t.session_ms, t.keepalive_ms),
            ("timing.session_no_agent_ms", t.session_no_agent_ms, t.keepalive_ms),
        ] {
            if lease < 3 * beat {
                return Err(self.bad(key, format!("{lease} ms must hold at least three beats of {beat} ms")));
            }
        }
        Ok(())
    }

    /// Hosts and clients are of one kind: an id is one login.
    fn check_ids(&self) -> Result<(), ConfigError> {
        let c = &self.cluster;
        let hosts = c.hosts.iter().map(|h| ("cluster.hosts.id", h.id, &h.name));
        let clients = c.clients.iter().map(|x| ("cluster.clients.id", x.id, &x.name));
        let mut seen: BTreeMap<HostId, &String> = BTreeMap::new();
        for (key, id, name) in hosts.chain(clients) {
            if id.0 == 0 {
                return Err(self.bad(key, format!("{id} ({name}): ids start at 1: give it another")));
            }
            if let Some(other) = seen.insert(id, name) {
                let why = format!(
                    "{id} is both {other} and {name}: hosts and clients share one id space; ids are unique, so \
                     give one of them another (never one that was in use before: its login stands in the store)"
                );
                return Err(self.bad(key, why));
            }
        }
        match c.clients.iter().find(|x| x.storage.is_none() && x.management.is_none()) {
            Some(x) => {
                let why = format!("{} has no address: give it storage, management, or both", x.name);
                Err(self.bad("cluster.clients", why))
            }
            None => Ok(()),
        }
    }

    /// Of every node, with its name.
    fn addresses(&self) -> impl Iterator<Item = (Ipv4Addr, &String)> {
        let c = &self.cluster;
        let hosts = c.hosts.iter().flat_map(|h| [(h.storage, &h.name), (h.management, &h.name)]);
        let clients = c
            .clients
            .iter()
            .flat_map(|x| x.storage.into_iter().chain(x.management).map(move |address| (address, &x.name)));
        let scvms = c.scvms.iter().flat_map(|s| [(s.storage, &s.name), (s.management, &s.name)]);
        hosts.chain(clients).chain(scvms)
    }

    /// An address stands for one node: two that claim it could be taken for each other.
    fn check_addresses(&self) -> Result<(), ConfigError> {
        let c = &self.cluster;
        let mut seen: Vec<(Ipv4Addr, &String)> = Vec::new();
        for (address, name) in self.addresses() {
            if let Some((_, other)) = seen.iter().find(|(a, _)| *a == address) {
                let why = format!(
                    "{address} is claimed by both {other} and {name}: packets from it could be either's; correct \
                     the one that has another (see `ip address` there)"
                );
                return Err(self.bad("cluster", why));
            }
            if address == c.service_address {
                return Err(self.bad("cluster", format!("{address} of {name} is the service address")));
            }
            if c.hosts.iter().any(|h| h.private == address) {
                let why = format!(
                    "{address} of {name} is a private address of hosts: it names every SCVM's own host, nobody else"
                );
                return Err(self.bad("cluster", why));
            }
            seen.push((address, name));
        }
        Ok(())
    }

    /// Who is logged in to has its next hop changed: that must be the host which the entry names. An address and port
    /// may lead to one host only; an address of the cluster, to its own node.
    fn check_esxi_addresses(&self) -> Result<(), ConfigError> {
        let c = &self.cluster;
        let mut seen: Vec<(Ipv4Addr, u16, &String)> = Vec::new();
        for (h, esxi) in c.hosts.iter().filter_map(|h| Some((h, h.esxi.as_ref()?))) {
            let (address, port) = (esxi.address, esxi.port);
            let bad = |why: String| Err(self.bad("cluster.hosts.esxi.address", why));
            if let Some((.., other)) = seen.iter().find(|(a, p, _)| (*a, *p) == (address, port)) {
                return bad(format!(
                    "{address} port {port} is the login of both {other} and {}: one's next hop would be changed for \
                     the other's; give each its own",
                    h.name
                ));
            }
            if let Some((_, other)) = self.addresses().find(|(a, other)| *a == address && **other != h.name) {
                return bad(format!(
                    "{address}, the login of {}, is an address of {other}: give {} its own management address",
                    h.name, h.name
                ));
            }
            let of_no_host = match address {
                a if a == c.service_address => Some("the service address"),
                a if c.hosts.iter().any(|h| h.private == a) => Some("a private address of hosts"),
                _ => None,
            };
            if let Some(what) = of_no_host {
                return bad(format!(
                    "{address}, the login of {}, is {what}: give it its own management address",
                    h.name
                ));
            }
            seen.push((address, port, &h.name));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
