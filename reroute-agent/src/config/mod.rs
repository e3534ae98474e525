//! The configuration file (TOML). One file serves every role: `[cluster]` is the same on all nodes, the section of
//! the role is the node's own. Unknown keys are errors; nothing is guessed from a missing value.

mod check;
mod fence;

pub use fence::{FenceCommand, Hypervisor};

use reroute_core::ids::{FencePolicy, HostId, HostInfo, MS, Network, ScvmId, ScvmInfo};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// What is wrong with a configuration (`{:#}` says it all, its source included). Every one ends the process with exit code 2 before anything was touched.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("config {path}: cannot be read")]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// Syntax, unknown keys, values of the wrong kind (an address that is not one): toml names line and key.
    #[error("config {path}")]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    #[error("config {path}: {key}: {why}")]
    Value { path: PathBuf, key: String, why: String },
    #[error("config {path}: section [{section}] is missing: this role needs it")]
    NoSection { path: PathBuf, section: &'static str },
    #[error("interface {name} ({key}) does not exist on this node: see `ip link`, then correct {key}")]
    NoInterface { key: String, name: String },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: Cluster,
    #[serde(default)]
    timing: Timing,
    scvm: Option<Scvm>,
    host: Option<Host>,
    meta: Option<Meta>,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub cluster: Cluster,
    pub timing: Timing,
    pub path: PathBuf,
    pub key: ClusterKey,
    scvm: Option<Scvm>,
    host: Option<Host>,
    meta: Option<Meta>,
}

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
    fn addresses(&self) -> Vec<(Network, Ipv4Addr)> {
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

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scvm {
    pub id: ScvmId,
    /// A directory on a bpffs, for the pins of this SCVM alone.
    pub bpf_dir: PathBuf,
    pub state_dir: PathBuf,
    /// Operators' Unix socket.
    pub socket: PathBuf,
    /// Where `/metrics` is served.
    pub metrics: Option<SocketAddr>,
    #[serde(default)]
    pub mode: AdmissionMode,
    #[serde(default)]
    pub xdp: XdpMode,
    pub interfaces: Interfaces,
    /// Where the epoch of each admitted host is published for an access server that checks ownership itself.
    pub epoch_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdmissionMode {
    /// Drop what is not admitted.
    #[default]
    Enforce,
    /// Count what would be dropped. Gives no fence.
    Shadow,
}

/// How the ingress program is attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver where that is known not to interrupt the link, else TC ingress; generic XDP last.
    #[default]
    Auto,
    /// In the driver even if that interrupts the link for a moment; as above where the driver cannot.
    Native,
    /// Generic only: for NICs that lose what a native program sends back (one end of a veth pair, for one).
    Generic,
    /// No XDP at all: TC ingress, for NICs that attaching XDP would reset.
    Tc,
    /// TC both ways by filters on clsact, as before Linux 6.6.
    Clsact,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interfaces {
    pub private: String,
    pub storage: String,
    pub management: String,
}

impl Interfaces {
    pub fn each(&self) -> [(Network, &str); 3] {
        [
            (Network::Private, &self.private),
            (Network::Storage, &self.storage),
            (Network::Management, &self.management),
        ]
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    pub id: HostId,
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    pub metrics: Option<SocketAddr>,
    pub interfaces: Interfaces,
    /// How to ask whether the domain of the local SCVM is dead. None: nobody is asked.
    pub hypervisor: Option<Hypervisor>,
    /// Our mark on routes (rtm_protocol).
    #[serde(default = "Host::default_protocol")]
    pub route_protocol: u8,
}

impl Host {
    fn default_protocol() -> u8 {
        199
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    pub listen: Vec<SocketAddr>,
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    pub metrics: Option<SocketAddr>,
    /// A program of the site that fences an SCVM for good. None: nothing is run.
    pub fence_command: Option<FenceCommand>,
}

/// Times, in milliseconds. The defaults are those of the design; the lab and tests use them too.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// Pulse to the active server.
    pub pulse_ms: u64,
    /// Pulse to standbys.
    pub standby_pulse_ms: u64,
    /// A path is lost after this long without a reply, while others answer.
    pub path_lost_ms: u64,
    pub keepalive_ms: u64,
    /// Session lease for hosts that pulse.
    pub session_ms: u64,
    /// ... and for clients without an agent.
    pub session_no_agent_ms: u64,
    /// A Meta leader acts as one for this long after it asked the store for the last confirmation that came true.
    pub leader_ms: u64,
    pub affirm_ms: u64,
    /// A client without an agent may change its server so many times in a row, ...
    pub client_moves: u32,
    /// ... and then once in this time.
    pub client_move_every_ms: u64,
    /// A call older than this raises `unanswered`, of a client whose own latency is not known yet.
    pub unanswered_ms: u64,
    /// The limit that follows from a client's latency is never below this ...
    pub unanswered_floor_ms: u64,
    /// ... nor above this.
    pub unanswered_ceiling_ms: u64,
    /// What was sent to a client and is not acknowledged for this long raises `unacked`.
    pub unacked_ms: u64,
    /// A server that has replied to anybody within this long is busy, not hung.
    pub silent_ms: u64,
    /// The local server's NULL RPC must answer within this.
    pub null_rpc_ms: u64,
    /// Calls in progress get this long to finish before the policy is applied (unplanned moves).
    pub drain_ms: u64,
    /// ... and this long on planned moves, before these are given up.
    pub planned_drain_ms: u64,
    /// The local server must have been well for this long before the host returns.
    pub hold_down_ms: u64,
    pub hold_down_max_ms: u64,
    pub shield_ms: u64,
    pub timer_us: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            pulse_ms: 10,
            standby_pulse_ms: 50,
            path_lost_ms: 60,
            keepalive_ms: 100,
            session_ms: 500,
            session_no_agent_ms: 8000,
            leader_ms: 300,
            affirm_ms: 100,
            client_moves: 3,
            client_move_every_ms: 30_000,
            unanswered_ms: 50,
            unacked_ms: 500,
            unanswered_floor_ms: 10,
            unanswered_ceiling_ms: 2000,
            silent_ms: 50,
            null_rpc_ms: 50,
            drain_ms: 20,
            planned_drain_ms: 2000,
            hold_down_ms: 3000,
            hold_down_max_ms: 180_000,
            shield_ms: 2000,
            timer_us: 1000,
        }
    }
}

/// Milliseconds of the configuration as nanoseconds of the machines.
pub const fn ns(ms: u64) -> u64 {
    ms * MS
}

/// The cluster's shared secret.
#[derive(Clone)]
pub struct ClusterKey(pub Vec<u8>);

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

impl Config {
    /// Reads and checks a file. Touches nothing.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let read = |p: &Path| {
            std::fs::read_to_string(p)
                .map_err(|source| ConfigError::Unreadable { path: p.to_path_buf(), source })
        };
        let text = read(path)?;
        let file: File = toml::from_str(&text)
            .map_err(|e| ConfigError::Syntax { path: path.to_path_buf(), source: Box::new(e) })?;
        let key_text = read(&file.cluster.key_file)?;
        let key = hex::decode(key_text.trim()).ok().filter(|k| k.len() >= 32).ok_or_else(|| {
            ConfigError::Value {
                path: path.to_path_buf(),
                key: "cluster.key_file".into(),
                why: format!(
                    "{} must hold at least 32 bytes as hex (`openssl rand -hex 32`)",
                    file.cluster.key_file.display()
                ),
            }
        })?;
        let config = Config {
            cluster: file.cluster,
            timing: file.timing,
            path: path.to_path_buf(),
            key: ClusterKey(key),
            scvm: file.scvm,
            host: file.host,
            meta: file.meta,
        };
        config.check()?;
        Ok(config)
    }

    pub fn scvm(&self) -> Result<&Scvm, ConfigError> {
        let scvm = self.scvm.as_ref().ok_or_else(|| self.no_section("scvm"))?;
        match self.cluster.scvm(scvm.id) {
            Some(_) => Ok(scvm),
            None => Err(self.bad("scvm.id", format!("{} is not among [[cluster.scvms]]", scvm.id))),
        }
    }
    pub fn host(&self) -> Result<&Host, ConfigError> {
        let host = self.host.as_ref().ok_or_else(|| self.no_section("host"))?;
        match self.cluster.host(host.id) {
            Some(entry) if !entry.agent => Err(self.bad(
                "host.id",
                format!(
                    "{} ({}) is configured with agent = false: start no agent here, or correct its entry in \
                     [[cluster.hosts]] on every node",
                    host.id, entry.name
                ),
            )),
            Some(_) => Ok(host),
            None => Err(self.bad("host.id", format!("{} is not among [[cluster.hosts]]", host.id))),
        }
    }
    pub fn meta(&self) -> Result<&Meta, ConfigError> {
        self.meta.as_ref().ok_or_else(|| self.no_section("meta"))
    }

    fn no_section(&self, section: &'static str) -> ConfigError {
        ConfigError::NoSection { path: self.path.clone(), section }
    }
    fn bad(&self, key: impl Into<String>, why: impl Into<String>) -> ConfigError {
        ConfigError::Value { path: self.path.clone(), key: key.into(), why: why.into() }
    }
}

impl Interfaces {
    /// Every interface must be there now: a typo must not look like a dead network later.
    pub fn check(&self, section: &str) -> Result<(), ConfigError> {
        for (network, name) in self.each() {
            if interface_index(name).is_none() {
                return Err(ConfigError::NoInterface {
                    key: format!("{section}.interfaces.{network}"),
                    name: name.to_string(),
                });
            }
        }
        Ok(())
    }
}

/// Index of an interface in this network namespace, whatever `/sys` shows (a mount may belong to another one).
pub fn interface_index(name: &str) -> Option<u32> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::name_to_index(socket, name).ok()
}

/// Addresses as the maps hold them.
pub fn map_address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => reroute_common::mapped_ipv4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
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
        };
        let private = |host: HostEntry| {
            host.addresses_at(ScvmId(1)).iter().any(|(network, _)| *network == Network::Private)
        };
        assert!(private(host(1, 1)));
        assert!(!private(host(2, 2)), "two hosts would share one address");
    }
}
