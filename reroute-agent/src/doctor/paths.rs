//! The way to every SCVM, by storage and by management: a sweep of full echoes, and who answers by ARP.

use super::facts::{Known, PathFound};
use crate::config::{Cluster, Host};
use crate::netlink::nic::{Address, Nic};
use crate::sweep::{Options, arp, sweep};
use reroute_core::ids::{MS, Network};
use reroute_core::sweep::{LinkFacts, Mac, Outcome, Settings, diagnose};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Answers to ARP are waited for this long, also for a second one.
const LISTEN_NS: u64 = 200 * MS;

/// Blocks, for some 100 ms in each network.
pub(super) fn look(
    cluster: &Cluster,
    host: &Host,
    nics: &BTreeMap<String, Nic>,
    own: &[Address],
) -> Vec<PathFound> {
    let networks =
        [(Network::Storage, &host.interfaces.storage), (Network::Management, &host.interfaces.management)];
    let look = |(network, name): (Network, &String)| {
        let addresses: Vec<Ipv4Addr> = cluster
            .scvms
            .iter()
            .map(|s| if network == Network::Storage { s.storage } else { s.management })
            .collect();
        let found = nics.get(name).map(|nic| {
            let outcomes = echo(name, nic, &addresses);
            let macs = arp::who_has(name, &addresses, LISTEN_NS).map_err(|e| e.to_string());
            (nic.index, outcomes, macs)
        });
        let one = |i: usize, address: Ipv4Addr| -> Known<_> {
            let (index, outcomes, macs) = found.as_ref().ok_or(format!("there is no interface {name}"))?;
            let outcome = outcomes.as_ref().map_err(|why| format!("ICMP on {name}: {why}"))?;
            let outcome = outcome.get(i).copied().unwrap_or(Outcome::Silent);
            let macs: BTreeMap<Ipv4Addr, BTreeSet<Mac>> =
                macs.clone().map_err(|why| format!("ARP on {name}: {why}"))?;
            let on_link = own.iter().any(|a| a.index == *index && a.reaches(address));
            Ok(diagnose(
                outcome,
                &LinkFacts { on_link, macs: macs.get(&address).cloned().unwrap_or_default() },
            ))
        };
        let all = cluster.scvms.iter().zip(&addresses).enumerate();
        let all = all.map(|(i, (scvm, address))| PathFound {
            network,
            scvm: scvm.name.clone(),
            address: *address,
            diagnosis: one(i, *address),
        });
        all.collect::<Vec<_>>()
    };
    networks.into_iter().flat_map(look).collect()
}

fn echo(name: &str, nic: &Nic, addresses: &[Ipv4Addr]) -> Result<Vec<Outcome>, String> {
    let options = Options {
        interface: Some(name.to_string()),
        mtu: u16::try_from(nic.mtu).unwrap_or(u16::MAX),
        settings: Settings::default(),
    };
    sweep(addresses, &options).map(|report| report.outcomes).map_err(|error| error.to_string())
}
