//! Nodes, addresses and links.
//!
//! ```text
//!   host i ── nfs0 ───────────── nfs0 ── scvm i        192.168.33.1 / .2, the same on every pair
//!     │ sto0                       │ sto0     meta
//!     └────────── br-sto ──────────┴──────────┘        10.10.85.(10+i), (20+i), 30
//!     └────────── br-mgt ──────────┴──────────┘        192.168.85.(10+i), (20+i), 30
//! ```

use crate::namespace::NetNs;
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

pub const PAIRS: u32 = 3;
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 2);
pub const HOST_PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 1);
pub const NFS_PORT: u16 = 2049;
pub const META_PORT: u16 = 7480;
pub const METRICS_PORT: u16 = 9480;
/// Beside those of [`Node::kind_in_mac`].
const TWIN_IN_MAC: u8 = 9;
/// Joins everything; no agent runs there.
pub const SWITCH: &str = "switch";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Host(u32),
    Scvm(u32),
    Meta,
}

impl Node {
    pub fn all() -> Vec<Node> {
        (1..=PAIRS).flat_map(|i| [Node::Host(i), Node::Scvm(i)]).chain([Node::Meta]).collect()
    }
    pub fn parse(name: &str) -> Option<Node> {
        Node::all().into_iter().find(|n| n.to_string() == name)
    }
    fn last_octet(self) -> u8 {
        match self {
            Node::Host(i) => 10 + i as u8,
            Node::Scvm(i) => 20 + i as u8,
            Node::Meta => 30,
        }
    }
    pub fn storage(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 10, 85, self.last_octet())
    }
    pub fn management(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 85, self.last_octet())
    }
    /// Told apart by the fourth byte of [`Node::mac`].
    pub const fn kind_in_mac(self) -> u8 {
        match self {
            Node::Host(_) => 1,
            Node::Scvm(_) => 2,
            Node::Meta => 3,
        }
    }
    /// Of its interface in `sto` or `mgt`.
    pub fn mac(self, network: &str) -> [u8; 6] {
        let net = if network == "sto" { 1 } else { 2 };
        [0x02, 0x72, net, self.kind_in_mac(), 0, self.last_octet()]
    }
    /// The switch's end of this node's link.
    pub fn port(self, network: &str) -> String {
        format!("{network}-{self}")
    }
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Node::Host(i) => write!(f, "host{i}"),
            Node::Scvm(i) => write!(f, "scvm{i}"),
            Node::Meta => f.write_str("meta"),
        }
    }
}

/// Kernel settings of every node, by what they prevent:
/// an SCVM that answers ARP for the service address on the storage network (every SCVM has it),
/// replies refused because they would leave by another interface, IPv6 chatter.
const SETTINGS: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/arp_announce", "2"),
    ("net/ipv4/conf/default/arp_announce", "2"),
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/default/arp_ignore", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
];

fn settings() -> anyhow::Result<()> {
    for (key, value) in SETTINGS {
        let path = format!("/proc/sys/{key}");
        if std::path::Path::new(&path).exists() {
            std::fs::write(&path, value).with_context(|| format!("cannot set {path}"))?;
        }
    }
    Ok(())
}

/// Makes the namespaces and what joins them. Needs CAP_NET_ADMIN; leaves nothing outside the returned namespaces.
pub fn build() -> anyhow::Result<BTreeMap<String, NetNs>> {
    let mut nodes = BTreeMap::new();
    for name in Node::all().iter().map(Node::to_string).chain([SWITCH.to_string()]) {
        let ns = NetNs::new().context("cannot make a network namespace")?;
        ns.run(settings)??;
        nodes.insert(name, ns);
    }
    let fd = |node: Node| nodes.get(&node.to_string()).map(NetNs::path).unwrap_or_default();

    let mut switch = String::from("link set lo up\n");
    for bridge in ["br-sto", "br-mgt"] {
        let _ = writeln!(switch, "link add {bridge} type bridge mcast_snooping 0\nlink set {bridge} up");
    }
    for node in Node::all() {
        for network in ["sto", "mgt"] {
            let (port, ns, mac) = (node.port(network), fd(node), mac_text(node.mac(network)));
            let _ =
                writeln!(switch, "link add {port} type veth peer name {network}0 address {mac} netns {ns}");
            let _ = writeln!(switch, "link set {port} master br-{network} up");
        }
    }
    batch(&nodes[SWITCH], &switch)?;
    keep_order(&nodes[SWITCH]).context("the switch")?;

    for node in Node::all() {
        let mut text = String::from("link set lo up\n");
        if let Node::Host(i) = node {
            let _ = writeln!(text, "link add nfs0 type veth peer name nfs0 netns {}", fd(Node::Scvm(i)));
        }
        let private = match node {
            Node::Host(_) => Some(HOST_PRIVATE),
            Node::Scvm(_) => Some(SERVICE),
            Node::Meta => None,
        };
        let addresses =
            [("sto0", Some(node.storage())), ("mgt0", Some(node.management())), ("nfs0", private)];
        for (link, address) in addresses {
            if let Some(address) = address {
                let _ = writeln!(text, "address add {address}/24 dev {link}\nlink set {link} up");
            }
        }
        batch(&nodes[&node.to_string()], &text).with_context(|| node.to_string())?;
    }
    Ok(nodes)
}

fn twin_port(node: Node) -> String {
    format!("twin-{node}")
}

/// A station of its own on `network`, and the address of `node` there, which it has not got yet.
pub(crate) fn second_station(switch: &NetNs, node: Node, network: &str) -> anyhow::Result<(NetNs, Ipv4Addr)> {
    let ns = NetNs::new().context("cannot make a network namespace")?;
    ns.run(settings)??;
    let mut mac = node.mac(network);
    mac[3] = TWIN_IN_MAC;
    let (port, mac, path) = (twin_port(node), mac_text(mac), ns.path());
    let lines = format!(
        "link add {port} type veth peer name {network}0 address {mac} netns {path}\n\
         link set {port} master br-{network} up\n"
    );
    batch(switch, &lines)?;
    batch(&ns, &format!("link set lo up\nlink set {network}0 up\n"))?;
    let address = if network == "sto" { node.storage() } else { node.management() };
    Ok((ns, address))
}

pub(crate) fn unplug_second_station(switch: &NetNs, node: Node) -> anyhow::Result<()> {
    batch(switch, &format!("link delete {}\n", twin_port(node)))
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A switch does not change the order of a flow's frames, and a bridge over veth does: each CPU has a queue of its own.
/// Receive packet steering gives each flow one CPU. `/sys` shows a namespace's own devices only when mounted in it.
fn keep_order(switch: &NetNs) -> anyhow::Result<()> {
    use std::process::Command;
    const SCRIPT: &str =
        "mount -t sysfs sysfs /sys && for queue in /sys/class/net/*-*/queues/rx-0/rps_cpus; do
        [ ! -e \"$queue\" ] || echo \"$1\" > \"$queue\" || exit 1; done";
    let cpus = std::thread::available_parallelism()?.get().min(32);
    let mask = format!("{:x}", (1_u64 << cpus) - 1);
    let out = switch
        .run(|| Command::new("unshare").args(["--mount", "sh", "-c", SCRIPT, "sh", &mask]).output())?
        .context("cannot run `unshare` (package util-linux)")?;
    if !out.status.success() {
        bail!("receive packet steering: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// Runs lines of `ip` in one go.
pub(crate) fn batch(ns: &NetNs, lines: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = ns
        .run(|| {
            Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
        })?
        .context("cannot run `ip` (package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    let out = child.wait_with_output()?;
    if !out.status.success() {
        bail!("ip -batch failed: {}\nlines were:\n{lines}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_unique() {
        let all = Node::all();
        assert_eq!(all.len(), 7);
        let mut addresses: Vec<_> = all.iter().flat_map(|n| [n.storage(), n.management()]).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 14);
        for node in all {
            assert_eq!(Node::parse(&node.to_string()), Some(node));
            assert!(node.port("sto").len() < 16, "an interface name has 15 characters at most");
        }
    }
}
