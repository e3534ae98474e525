//! The configuration file (TOML). One file serves every role: `[cluster]` is the same on all nodes, the section of
//! the role is the node's own. Unknown keys are errors; nothing is guessed from a missing value.

mod check;
mod cluster;
mod esxi;
mod fence;
mod roles;
mod timing;

pub use cluster::{ClientAt, ClientEntry, Cluster, HostEntry, ScvmEntry, Server};
pub use esxi::Esxi;
pub use fence::{FenceCommand, Hypervisor};
pub use roles::{AdmissionMode, Host, Interfaces, Meta, Scvm, XdpMode, interface_index};
pub use timing::{Timing, ns};

use serde::Deserialize;
use std::net::IpAddr;
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
    /// The directory that the machine's inputs are kept in; not from the file, but from `--record`.
    pub record: Option<PathBuf>,
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
            record: None,
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

/// Addresses as the maps hold them.
pub fn map_address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => reroute_common::mapped_ipv4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}
