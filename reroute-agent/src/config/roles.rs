//! `[scvm]`, `[host]`, `[meta]`: the node's own.

use super::ConfigError;
use super::fence::{FenceCommand, Hypervisor};
use reroute_core::ids::{HostId, Network, ScvmId};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

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
    /// The mode until an operator has chosen one: a host that was just installed decides, and touches nothing.
    #[serde(default = "Host::default_mode")]
    pub mode: reroute_core::host::Mode,
    /// How to ask whether the domain of the local SCVM is dead. None: nobody is asked.
    pub hypervisor: Option<Hypervisor>,
    /// After a move the old sockets are destroyed here, where the kernel can; else the new server has the client's TCP end
    /// them. `false`: never here.
    #[serde(default = "Host::default_destroy")]
    pub destroy_sockets: bool,
    /// Our mark on routes (rtm_protocol).
    #[serde(default = "Host::default_protocol")]
    pub route_protocol: u8,
}

impl Host {
    fn default_mode() -> reroute_core::host::Mode {
        reroute_core::host::Mode::Dry
    }
    fn default_destroy() -> bool {
        true
    }
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
