//! `[cluster]`: who is in it, and by which addresses. The same on all nodes.

use super::Esxi;
use reroute_core::ids::{FencePolicy, HostId, HostInfo, Network, ScvmId, ScvmInfo};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub id: String,
    /// File with the shared secret, at least 32 bytes as hex.
    pub key_file: PathBuf,
    /// The fixed address every host mounts from.
    pub service_address: Ipv4Addr,
    #[serde(default = "Cluster::default_port")]
    pub service_port: u16,
    /// Every address Meta answers on: agents use all of them.
    pub meta: Vec<SocketAddr>,
    pub hosts: Vec<HostEntry>,
    /// NFS clients that are no hosts of the cluster.
    #[serde(default)]
    pub clients: Vec<ClientEntry>,
    pub scvms: Vec<ScvmEntry>,
}

impl Cluster {
    fn default_port() -> u16 {
        2049
    }
    pub fn scvm(&self, id: ScvmId) -> Option<&ScvmEntry> {
        self.scvms.iter().find(|s| s.id == id)
    }
    pub fn host(&self, id: HostId) -> Option<&HostEntry> {
        self.hosts.iter().find(|h| h.id == id)
    }
    /// An SCVM by its name, or by its id. Errors, in words: there is none.
    pub fn scvm_named(&self, name: &str) -> Result<ScvmId, String> {
        let id = name.parse().ok().map(ScvmId);
        let found = self.scvms.iter().find(|s| s.name == name || Some(s.id) == id);
        let names = || self.scvms.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
        found.map(|s| s.id).ok_or_else(|| format!("no SCVM {name:?} in this cluster: there are {}", names()))
    }
    /// A host by its name, or by its id. Errors, in words: there is none.
    pub fn host_named(&self, name: &str) -> Result<HostId, String> {
        let id = name.parse().ok().map(HostId);
        let found = self.hosts.iter().find(|h| h.name == name || Some(h.id) == id);
        let names = || self.hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>().join(", ");
        found.map(|h| h.id).ok_or_else(|| format!("no host {name:?} in this cluster: there are {}", names()))
    }
    pub fn scvm_infos(&self) -> Vec<ScvmInfo> {
        self.scvms.iter().map(ScvmEntry::info).collect()
    }
    /// Hosts, and clients that are none.
    pub fn host_infos(&self) -> Vec<HostInfo> {
        self.hosts.iter().map(HostEntry::info).chain(self.clients.iter().map(ClientEntry::info)).collect()
    }
    /// Every client, with the addresses that `scvm` knows it by.
    pub fn clients_at(&self, scvm: ScvmId) -> Vec<ClientAt<'_>> {
        let hosts = self.hosts.iter().map(|h| ClientAt {
            id: h.id,
            name: &h.name,
            has_agent: h.agent,
            addresses: h.addresses_at(scvm),
        });
        let clients = self.clients.iter().map(|c| ClientAt {
            id: c.id,
            name: &c.name,
            has_agent: false,
            addresses: c.addresses(),
        });
        hosts.chain(clients).collect()
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    pub id: HostId,
    pub name: String,
    pub private: Ipv4Addr,
    pub storage: Ipv4Addr,
    pub management: Ipv4Addr,
    pub local_scvm: ScvmId,
    /// False: no agent runs there (ESXi); others change its next hop, and its packets tell where it is.
    #[serde(default = "HostEntry::default_agent")]
    pub agent: bool,
    /// An ESXi host whose next hop is changed over ssh. None: by others.
    pub esxi: Option<Esxi>,
}

/// An NFS client without an agent that is no host of the cluster. Its id is of the same kind as a host's.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientEntry {
    pub id: HostId,
    pub name: String,
    /// On one of the two networks at least.
    pub storage: Option<Ipv4Addr>,
    pub management: Option<Ipv4Addr>,
}

impl ClientEntry {
    pub fn info(&self) -> HostInfo {
        let address = |a: Option<Ipv4Addr>| a.unwrap_or(Ipv4Addr::UNSPECIFIED).into();
        HostInfo {
            id: self.id,
            name: self.name.clone(),
            private: Ipv4Addr::UNSPECIFIED.into(),
            storage: address(self.storage),
            management: address(self.management),
            local_scvm: ScvmId(0),
            has_agent: false,
        }
    }
    pub(super) fn addresses(&self) -> Vec<(Network, Ipv4Addr)> {
        let storage = self.storage.map(|at| (Network::Storage, at));
        storage.into_iter().chain(self.management.map(|at| (Network::Management, at))).collect()
    }
}

/// A client as one SCVM knows it.
#[derive(Debug, Clone)]
pub struct ClientAt<'a> {
    pub id: HostId,
    pub name: &'a str,
    pub has_agent: bool,
    pub addresses: Vec<(Network, Ipv4Addr)>,
}

impl HostEntry {
    fn default_agent() -> bool {
        true
    }
}

impl HostEntry {
    pub fn info(&self) -> HostInfo {
        HostInfo {
            id: self.id,
            name: self.name.clone(),
            private: self.private.into(),
            storage: self.storage.into(),
            management: self.management.into(),
            local_scvm: self.local_scvm,
            has_agent: self.agent,
        }
    }
    pub fn address(&self, network: Network) -> Ipv4Addr {
        match network {
            Network::Private => self.private,
            Network::Storage => self.storage,
            Network::Management => self.management,
        }
    }
    /// The addresses `scvm` knows this host by. The private one is the same on every host: it means the SCVM's own.
    pub fn addresses_at(&self, scvm: ScvmId) -> Vec<(Network, Ipv4Addr)> {
        [Network::Private, Network::Storage, Network::Management]
            .into_iter()
            .filter(|network| *network != Network::Private || self.local_scvm == scvm)
            .map(|network| (network, self.address(network)))
            .collect()
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScvmEntry {
    pub id: ScvmId,
    pub name: String,
    pub storage: Ipv4Addr,
    pub management: Ipv4Addr,
    pub server: Server,
}

impl ScvmEntry {
    pub fn info(&self) -> ScvmInfo {
        ScvmInfo {
            id: self.id,
            name: self.name.clone(),
            storage: self.storage.into(),
            management: self.management.into(),
            policy: self.server.policy,
        }
    }
}

/// The access server of an SCVM. The policy has no default: what may be killed is said in writing.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// For people and records.
    pub name: String,
    pub pidfile: PathBuf,
    pub policy: FencePolicy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_private_address_is_that_of_the_own_host_only() {
        let host = |id, local| HostEntry {
            id: HostId(id),
            name: format!("host{id}"),
            private: [192, 168, 33, 1].into(),
            storage: [10, 10, 85, 10 + id as u8].into(),
            management: [192, 168, 85, 10 + id as u8].into(),
            local_scvm: ScvmId(local),
            agent: true,
            esxi: None,
        };
        let private = |host: HostEntry| {
            host.addresses_at(ScvmId(1)).iter().any(|(network, _)| *network == Network::Private)
        };
        assert!(private(host(1, 1)));
        assert!(!private(host(2, 2)), "two hosts would share one address");
    }
}
