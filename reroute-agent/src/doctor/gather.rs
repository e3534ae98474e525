//! Finding the facts. Reads, asks and connects; changes nothing.

use super::facts::*;
use super::{paths, probe};
use crate::cli::Refused;
use crate::config::{self, Config, ConfigError};
use crate::host::hypervisor;
use crate::netlink::nic::{self, Nic};
use crate::netlink::route::Table;
use crate::scvm::{check_bpffs, listener, server_process};
use crate::sensor::{self, Attachment};
use crate::service;
use anyhow::Context;
use axum::http::Method;
use reroute_core::ids::{FencePolicy, Network};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Meta answers a connection within this, or is not to be reached.
const CONNECT: Duration = Duration::from_secs(1);

/// The node's interfaces and addresses.
struct Net {
    nics: BTreeMap<String, Nic>,
    addresses: Vec<nic::Address>,
}

impl Net {
    fn has(&self, nic: Option<&Nic>, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|a| a.address == address && nic.is_none_or(|nic| nic.index == a.index))
    }
}

/// Errors: the configuration names no role, or one that is not in its cluster; the kernel's tables cannot be read.
pub(super) fn gather(config: &Config) -> anyhow::Result<Facts> {
    let scvm = section(config.scvm())?;
    let host = section(config.host())?;
    let meta = section(config.meta())?;
    let mut nodes = Vec::new();
    let mut dirs = Vec::new();
    if let Some(scvm) = scvm {
        nodes.push((Role::Scvm, config.cluster.scvm(scvm.id).map_or_else(String::new, |s| s.name.clone())));
        dirs.push(scvm.state_dir.clone());
    }
    if let Some(host) = host {
        nodes.push((Role::Host, config.cluster.host(host.id).map_or_else(String::new, |h| h.name.clone())));
        dirs.push(host.state_dir.clone());
    }
    if let Some(meta) = meta {
        nodes.push((Role::Meta, "meta".into()));
        dirs.push(meta.state_dir.clone());
    }
    if nodes.is_empty() {
        let path = config.path.display();
        return Err(
            Refused(format!("config {path}: none of [scvm], [host], [meta]: no role to look at")).into()
        );
    }
    let net = Net {
        nics: nic::read().context("cannot read the network interfaces")?,
        addresses: nic::addresses().context("cannot read the addresses")?,
    };
    let meta_role = meta.map(|meta| meta_facts(config, meta, &net));
    Ok(Facts {
        nodes,
        machine: probe::machine(),
        key_file: key_file(&config.cluster.key_file)?,
        state_dirs: dirs.into_iter().map(|dir| (dir.clone(), directory(&dir))).collect(),
        meta: config.cluster.meta.iter().map(|address| meta_address(config, *address)).collect(),
        scvm: scvm.map(|scvm| scvm_facts(config, scvm, &net)).transpose()?,
        host: host.map(|host| host_facts(config, host, &net)).transpose()?,
        clients: clients(config, meta_role.as_ref()),
        policies: config.cluster.scvms.iter().map(|s| (s.name.clone(), s.server.policy)).collect(),
        meta_role,
    })
}

/// A section that is not there is a role that this node has not.
fn section<T>(found: Result<&T, ConfigError>) -> Result<Option<&T>, ConfigError> {
    match found {
        Ok(section) => Ok(Some(section)),
        Err(ConfigError::NoSection { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn key_file(path: &Path) -> anyhow::Result<KeyFile> {
    let found = std::fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    Ok(KeyFile { path: path.to_path_buf(), mode: found.mode(), owner: found.uid() })
}

fn directory(path: &Path) -> StateDir {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => StateDir::Missing,
        Ok(found) if !found.is_dir() => StateDir::NoDirectory,
        Ok(_) if rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok() => StateDir::Writable,
        _ => StateDir::NotWritable,
    }
}

fn meta_address(config: &Config, address: SocketAddr) -> MetaAddress {
    let cluster = &config.cluster;
    let scvm = cluster.scvms.iter().find(|s| address.ip() == s.storage || address.ip() == s.management);
    let service = address.ip() == cluster.service_address;
    MetaAddress {
        address,
        reached: TcpStream::connect_timeout(&address, CONNECT).map(drop).map_err(|e| e.to_string()),
        in_scvm: scvm.map(|s| s.name.clone()).or(service.then(|| "every SCVM".into())),
    }
}

fn clients(config: &Config, meta: Option<&MetaRole>) -> Clients {
    let scvms = config.cluster.scvms.iter();
    Clients {
        without_agent: config
            .cluster
            .host_infos()
            .into_iter()
            .filter(|h| !h.has_agent)
            .map(|h| h.name)
            .collect(),
        unfenced: scvms
            .filter(|s| s.server.policy != FencePolicy::Storage)
            .map(|s| (s.name.clone(), s.server.policy))
            .collect(),
        fence_command: meta
            .map(|m| m.fence_command.as_ref().is_some_and(|program| program.state == ProgramState::Runs)),
    }
}

/// As the agent would start it.
fn program(path: &Path) -> Program {
    let state = match std::fs::metadata(path) {
        _ if !path.is_absolute() => ProgramState::Relative,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => ProgramState::NoFile,
        Err(error) => ProgramState::Unseen(error.to_string()),
        Ok(found) if !found.is_file() => ProgramState::NoFile,
        Ok(_) if rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() => ProgramState::Runs,
        Ok(_) => ProgramState::NotExecutable,
    };
    Program { path: path.to_path_buf(), state }
}

fn hypervisor(configured: &config::Hypervisor) -> Hypervisor {
    let config::Hypervisor::Xl { domain, command, .. } = configured;
    let answer = hypervisor::domains(configured);
    Hypervisor {
        program: program(command),
        domain: domain.clone(),
        answer: answer.map(|all| all.iter().filter(|d| d.name == *domain).map(|d| d.life).collect()),
    }
}

fn agent(socket: &Path) -> Agent {
    let asked = service::ask_blocking::<serde_json::Value>(socket, Method::GET, "/v1/status");
    let answer = asked.map(|status| {
        let local = &status["local"];
        let words = |list: &str| {
            let all = local[list].as_array().into_iter().flatten();
            all.filter_map(|w| w.as_str().map(str::to_string)).collect::<Vec<_>>()
        };
        Answer {
            alarms: [words("alarms"), words("faults")].concat(),
            // One of another release says it in another way: then nothing is known of it.
            attachments: serde_json::from_value::<Vec<Attachment>>(local["attachments"].clone())
                .unwrap_or_default(),
        }
    });
    Agent { socket: socket.to_path_buf(), answer: answer.map_err(|e| format!("{:#}", e.root_cause())) }
}

fn interface(net: &Net, network: Network, name: &str, address: Ipv4Addr) -> Interface {
    let nic = net.nics.get(name).cloned();
    Interface {
        network,
        name: name.to_string(),
        address,
        has_address: net.has(nic.as_ref(), address),
        nic,
        planned: Err("no programs here".into()),
        strangers: Ok(Vec::new()),
    }
}

fn scvm_facts(config: &Config, scvm: &config::Scvm, net: &Net) -> anyhow::Result<Scvm> {
    let entry = config.cluster.scvm(scvm.id).context("this SCVM is not in [[cluster.scvms]]")?;
    let (service, port) = (config.cluster.service_address, config.cluster.service_port);
    let interfaces = scvm.interfaces.each().map(|(network, name)| {
        let address = match network {
            Network::Private => service,
            Network::Storage => entry.storage,
            Network::Management => entry.management,
        };
        let mut it = interface(net, network, name, address);
        if network == Network::Private {
            // It may be on any interface: looked at below.
            it.has_address = true;
        }
        it.planned = sensor::survey(&scvm.bpf_dir, name, scvm.xdp)
            .map_err(|e| e.to_string())
            .map(|(_, choice)| choice.first());
        it.strangers = match &it.nic {
            Some(nic) => sensor::strangers(&scvm.bpf_dir, nic).map_err(|e| e.to_string()),
            None => Ok(Vec::new()),
        };
        it
    });
    let name_of = |index: u32| {
        let found = net.nics.values().find(|nic| nic.index == index);
        found.map_or_else(|| format!("#{index}"), |nic| nic.name.clone())
    };
    let on = net.addresses.iter().filter(|a| a.address == service).map(|a| name_of(a.index));
    let shared = [&scvm.interfaces.storage, &scvm.interfaces.management];
    Ok(Scvm {
        agent: agent(&scvm.socket),
        interfaces: interfaces.to_vec(),
        service,
        port,
        service_on: Ok(on.collect()),
        listening: listener::Listener::new(service, port)
            .and_then(|mut l| l.is_there())
            .map_err(|e| e.to_string()),
        policy: entry.server.policy,
        pidfile: entry.server.pidfile.clone(),
        server: server_process::find(&entry.server.pidfile),
        arp: shared.map(|name| (name.clone(), arp(name))).to_vec(),
        bpf_dir: scvm.bpf_dir.clone(),
        bpffs: check_bpffs(&scvm.bpf_dir).map_err(|e| format!("{e:#}")),
        features: probe::features(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
    })
}

/// arp_announce and arp_ignore: the kernel takes the larger of `all` and the interface's own.
fn arp(interface: &str) -> Known<(u32, u32)> {
    let read = |of: &str, key: &str| -> Known<u32> {
        let path = format!("/proc/sys/net/ipv4/conf/{of}/{key}");
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        text.trim().parse().map_err(|e| format!("{path}: {e}"))
    };
    let larger = |key: &str| Ok::<u32, String>(read("all", key)?.max(read(interface, key)?));
    Ok((larger("arp_announce")?, larger("arp_ignore")?))
}

fn host_facts(config: &Config, host: &config::Host, net: &Net) -> anyhow::Result<Host> {
    let entry = config.cluster.host(host.id).context("this host is not in [[cluster.hosts]]")?;
    let service = config.cluster.service_address;
    let interfaces = host.interfaces.each().map(|(n, name)| interface(net, n, name, entry.address(n)));
    let routes = Table::open(service, host.route_protocol).map_err(|e| e.to_string());
    Ok(Host {
        agent: agent(&host.socket),
        interfaces: interfaces.to_vec(),
        service,
        protocol: host.route_protocol,
        routes: routes.and_then(|mut table| table.read().map_err(|e| e.to_string())),
        hops: config.cluster.scvms.iter().flat_map(|s| [s.storage, s.management]).collect(),
        paths: paths::look(&config.cluster, host, &net.nics, &net.addresses),
        hypervisor: host.hypervisor.as_ref().map(hypervisor),
    })
}

fn meta_facts(config: &Config, meta: &config::Meta, net: &Net) -> MetaRole {
    let here = |address: &SocketAddr| match address {
        SocketAddr::V4(v4) => v4.ip().is_unspecified() || net.has(None, *v4.ip()),
        // Only IPv4 addresses are looked at: an IPv6 one is left to the agent to bind.
        SocketAddr::V6(_) => true,
    };
    let mut signs = Vec::new();
    if config.scvm().is_ok() {
        signs.push("its configuration has [scvm]".to_string());
    }
    for scvm in &config.cluster.scvms {
        for address in [scvm.storage, scvm.management] {
            if net.has(None, address) {
                signs.push(format!("it has {address} of {}", scvm.name));
            }
        }
    }
    if net.has(None, config.cluster.service_address) {
        signs.push(format!("it has the service address {}", config.cluster.service_address));
    }
    MetaRole {
        agent: agent(&meta.socket),
        listen: meta.listen.iter().map(|address| (*address, here(address))).collect(),
        signs_of_scvm: signs,
        fence_command: meta
            .fence_command
            .as_ref()
            .and_then(|c| c.command.first())
            .map(|p| program(Path::new(p))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::testing::Dir;
    use reroute_core::host::Life;
    use std::os::unix::fs::PermissionsExt;

    fn file(dir: &Dir, mode: u32, text: &str) -> std::path::PathBuf {
        let path = dir.path().join(format!("program{mode:o}"));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn programs_are_seen_as_the_agent_would_find_them() {
        let dir = Dir::new("programs");
        let (runs, data) = (file(&dir, 0o755, ""), file(&dir, 0o644, ""));
        for (path, state) in [
            (runs.as_path(), ProgramState::Runs),
            (&data, ProgramState::NotExecutable),
            (dir.path(), ProgramState::NoFile),
            (&dir.path().join("none"), ProgramState::NoFile),
            (Path::new("fence"), ProgramState::Relative),
        ] {
            assert_eq!(program(path).state, state, "{}", path.display());
        }
    }

    #[test]
    fn the_hypervisor_is_asked_for_the_local_domain() {
        let dir = Dir::new("doctor-xl");
        let list = "#!/bin/sh\ncat <<END\nName ID Mem VCPUs State Time(s) UUID Reason-Code Security Label\n\
                    Domain-0 0 1 1 r----- 1.0 00000000-0000-0000-0000-000000000000 - -\n\
                    scvm1 7 1 1 -b---- 1.0 5b2a3f4e-0c1d-4e2f-8a9b-1c2d3e4f5a6b - -\nEND\n";
        let command = file(&dir, 0o755, list);
        let ask = |domain: &str, command: &Path| {
            let command = command.to_path_buf();
            hypervisor(&config::Hypervisor::Xl { domain: domain.into(), command, time_limit_ms: 5000 })
        };
        assert_eq!(ask("scvm1", &command).answer, Ok(vec![Life::Alive]));
        assert_eq!(ask("scvm2", &command).answer, Ok(vec![]));
        let missing = ask("scvm1", &dir.path().join("none"));
        assert!(missing.program.state == ProgramState::NoFile && missing.answer.is_err(), "{missing:?}");
    }
}
