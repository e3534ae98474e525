//! keepalived on host1 and on every SCVM: BFD (RFC 5880) 10 ms x3 with each next hop, at real-time priority.
//!
//! Each next hop is a `vrrp_instance` that tracks its BFD session and owns a route to the service address
//! (`virtual_routes`), all at once, the better ones with the smaller metric: when a session goes down, its instance is
//! in FAULT and takes the route away, by netlink and without a script. Nobody else speaks VRRP there: an instance is MASTER
//! again 3 s after its session is up. An operator moves the host by a `track_file`.

use super::{Peer, is_home, keep_running, stop, wait};
use crate::cases::System;
use crate::watch::Routes;
use anyhow::{Context, bail};
use lab::Lab;
use lab::control::Spec;
use lab::topology::{Node, PAIRS, SERVICE};
use reroute_core::ids::BootNs;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

const HOST: &str = "host1";
/// A non-zero number in it: host1 leaves its home.
const AWAY: &str = "host1/away";
/// By default the kernel kills its BFD process after 10 ms of CPU without a pause (RLIMIT_RTTIME): that is not what is
/// measured here.
const GLOBAL: &str = "    vrrp_rt_priority 50
    vrrp_rlimit_rttime 1000000
    vrrp_no_swap
    bfd_rt_priority 51
    bfd_rlimit_rttime 1000000
    bfd_no_swap
";

/// Where traffic can go, the best first.
struct Hop {
    name: String,
    network: &'static str,
    address: Ipv4Addr,
    ours: Ipv4Addr,
}

fn hops() -> Vec<Hop> {
    let networks = ["sto", "mgt"];
    let hop = |network: &'static str, i: u32| {
        let by = |node: Node| if network == "sto" { node.storage() } else { node.management() };
        let name = format!("scvm{i}_{network}");
        Hop { name, network, address: by(Node::Scvm(i)), ours: by(Node::Host(1)) }
    };
    networks.into_iter().flat_map(|network| (1..=PAIRS).map(move |i| hop(network, i))).collect()
}

fn bfd(name: &str, neighbour: Ipv4Addr, source: Ipv4Addr) -> String {
    format!(
        "bfd_instance {name} {{\n    neighbor_ip {neighbour}\n    source_ip {source}\n    min_rx 10\n    min_tx 10\n    \
         idle_tx 1000\n    multiplier 3\n}}\n"
    )
}

fn host_config(away: &Path) -> String {
    let mut text = format!("global_defs {{\n    router_id {HOST}\n{GLOBAL}}}\n");
    let _ = write!(
        text,
        "track_file away {{\n    file \"{}\"\n    weight 0\n    init_file 0 overwrite\n}}\n",
        away.display()
    );
    for (nth, hop) in hops().iter().enumerate() {
        text += &bfd(&hop.name, hop.address, hop.ours);
        let tracked = if nth == 0 { "    track_file {\n        away\n    }\n" } else { "" };
        let _ = write!(
            text,
            "vrrp_instance {name} {{\n    state MASTER\n    interface {network}0\n    virtual_router_id {id}\n    \
             priority 255\n    advert_int 1\n    track_bfd {{\n        {name}\n    }}\n{tracked}    virtual_routes {{\n        {SERVICE}/32 \
             via {via} dev {network}0 metric {metric}\n    }}\n}}\n",
            name = hop.name,
            network = hop.network,
            id = nth + 1,
            via = hop.address,
            metric = 10 * (nth + 1),
        );
    }
    text
}

fn scvm_config(i: u32) -> String {
    let (scvm, host) = (Node::Scvm(i), Node::Host(1));
    format!("global_defs {{\n    router_id {scvm}\n{GLOBAL}}}\n")
        + &bfd("host1_sto", host.storage(), scvm.storage())
        + &bfd("host1_mgt", host.management(), scvm.management())
}

pub struct Keepalived {
    processes: Vec<Spec>,
    routes: Routes,
}

impl Keepalived {
    /// Errors: keepalived is not installed.
    pub fn install(lab: &Lab) -> anyhow::Result<Keepalived> {
        let away = lab.root_inside().join(AWAY);
        let mut configs = vec![(HOST.to_string(), host_config(&away))];
        configs.extend((1..=PAIRS).map(|i| (Node::Scvm(i).to_string(), scvm_config(i))));
        let mut processes = Vec::new();
        for (node, config) in configs {
            let file = format!("{node}/keepalived.conf");
            std::fs::write(lab.root().join(&file), config)?;
            let file = lab.root_inside().join(file).to_string_lossy().into_owned();
            let argv = ["keepalived", "--dont-fork", "--log-console", "--use-file", &file];
            let mut spec = Spec::new(format!("{node}/keepalived"), &argv);
            // Its pid files.
            spec.private_run = true;
            processes.push(spec);
        }
        let routes = Routes::watch(&lab.namespace(HOST)?)?;
        Ok(Keepalived { processes, routes })
    }

    fn away(lab: &Lab, away: bool) -> anyhow::Result<()> {
        let text = if away { "1\n" } else { "0\n" };
        std::fs::write(lab.root().join(AWAY), text).context("the tracked file")
    }
}

impl Peer for Keepalived {
    fn system(&self) -> System {
        System::Keepalived
    }

    fn begin(&self, lab: &Lab) -> anyhow::Result<()> {
        for spec in &self.processes {
            keep_running(lab, spec)
                .context("is keepalived installed? `cargo xtask bench failover` does that")?;
        }
        wait("every BFD session up, and its route", || {
            let out = lab.exec(HOST, &["ip", "route", "show", "exact", &format!("{SERVICE}/32")])?;
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            match text.lines().count() {
                count if count == hops().len() => Ok(()),
                _ => bail!("{text}"),
            }
        })
    }

    fn acted(&self, _lab: &Lab, at: BootNs) -> anyhow::Result<Option<BootNs>> {
        Ok(self.routes.first(at))
    }

    fn planned(&self, lab: &Lab) -> anyhow::Result<()> {
        Keepalived::away(lab, true)
    }

    /// It goes home by itself, unless it is beyond that.
    fn end(&self, lab: &Lab) -> anyhow::Result<()> {
        Keepalived::away(lab, false)?;
        let home = || if is_home(lab)? { Ok(()) } else { bail!("the route leads elsewhere") };
        if wait("the way home", home).is_ok() {
            return Ok(());
        }
        for spec in &self.processes {
            stop(lab, &spec.name)?;
        }
        self.begin(lab)
    }

    fn round(&self) -> Duration {
        Duration::from_millis(30)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_next_hop_has_the_smallest_metric_and_both_ends_know_each_other() {
        let host = host_config(Path::new("/lab/host1/away"));
        let at = |needle: &str| host.find(needle).unwrap_or_else(|| panic!("{needle} in\n{host}"));
        let routes = [
            "via 10.10.85.21 dev sto0 metric 10",
            "via 10.10.85.22 dev sto0 metric 20",
            "via 10.10.85.23 dev sto0 metric 30",
            "via 192.168.85.21 dev mgt0 metric 40",
            "via 192.168.85.23 dev mgt0 metric 60",
        ];
        assert!(routes.map(at).is_sorted());
        assert_eq!(host.matches("multiplier 3").count(), 6);
        assert_eq!(host.matches("    track_file {").count(), 1);
        assert_eq!(host.matches('{').count(), host.matches('}').count());
        let scvm = scvm_config(2);
        assert!(scvm.contains("neighbor_ip 10.10.85.11\n    source_ip 10.10.85.22"));
        assert!(scvm.contains("neighbor_ip 192.168.85.11\n    source_ip 192.168.85.22"));
    }
}
