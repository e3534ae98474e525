//! Full and small echoes to SCVMs, network by network, each by the interface that leads there.

use super::{Options, sweep};
use crate::config::{Cluster, Interfaces};
use crate::netlink::nic;
use crate::netlink::sockets::{self, Filter};
use reroute_core::host::{SizesTried, Tried};
use reroute_core::ids::{MS, Network, Path};
use reroute_core::sweep::{Outcome, Settings};
use std::io;
use std::net::Ipv4Addr;

/// An NFS client that has heard nothing for so long since it asked: longer than an answer takes that is on its way.
const WAITS_MS: u32 = 400;

/// Blocks, for some ms. Errors, in words: why nothing could be tried.
pub fn try_all(cluster: &Cluster, interfaces: &Interfaces, paths: &[Path]) -> Result<SizesTried, String> {
    let nics = nic::read().map_err(|error| format!("the interfaces cannot be read: {error}"))?;
    let mut all = Vec::new();
    for (network, name) in interfaces.each() {
        let there = |path: &&Path| path.network == network && network != Network::Private;
        let (paths, addresses): (Vec<Path>, Vec<Ipv4Addr>) =
            paths.iter().filter(there).filter_map(|path| Some((*path, address(cluster, *path)?))).unzip();
        // An interface that is not there, or is down, is the pulses' matter.
        let Some(nic) = nics.get(name).filter(|nic| nic.carrier && !addresses.is_empty()) else { continue };
        let options = Options {
            interface: Some(name.to_string()),
            mtu: u16::try_from(nic.mtu).unwrap_or(u16::MAX),
            settings: Settings { longest_patience_ns: 50 * MS, ..Settings::default() },
        };
        let report = sweep(&addresses, &options).map_err(|error| format!("ICMP on {name}: {error}"))?;
        let tried = paths.into_iter().zip(report.outcomes);
        all.extend(tried.map(|(path, outcome)| Tried { path, mtu: nic.mtu, outcome }));
    }
    // Nothing is looked for where nothing depends on it.
    let doubt = all.iter().any(|tried| matches!(tried.outcome, Outcome::SmallOnly { .. }));
    let waits = match doubt.then(|| client_waits(cluster)) {
        Some(Err(error)) => {
            tracing::warn!(%error, "the sockets of NFS clients cannot be looked at");
            None
        }
        waits => waits.and_then(Result::ok),
    };
    Ok(SizesTried { paths: all, waits })
}

fn client_waits(cluster: &Cluster) -> io::Result<bool> {
    let service = (cluster.service_address.into(), Some(cluster.service_port));
    sockets::any_waits(&Filter { remote: Some(service), ..Filter::default() }, WAITS_MS)
}

fn address(cluster: &Cluster, path: Path) -> Option<Ipv4Addr> {
    let scvm = cluster.scvm(path.scvm)?;
    match path.network {
        Network::Storage => Some(scvm.storage),
        Network::Management => Some(scvm.management),
        Network::Private => None,
    }
}
