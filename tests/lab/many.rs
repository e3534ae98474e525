//! A wire with many addresses at its far end, for sweeps.
//!
//! ```text
//!   here ── wire0 ─────────── port1 ┐
//!   10.77.15.254/20                 ├ br0 (switch)
//!   there ── wire0 ────────── port2 ┘
//!   10.77.0.1 ... /20
//! ```

use crate::namespace::NetNs;
use crate::topology::batch;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 15, 254);
pub const WIRE: &str = "wire0";
const PREFIX: u8 = 20;

pub struct Many {
    pub here: NetNs,
    pub there: NetNs,
    switch: NetNs,
}

/// The `i`th address at the far end.
pub fn address(i: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 0, 1)) + u32::from(i))
}

impl Many {
    /// The far end has these of the addresses.
    pub fn new(there: impl IntoIterator<Item = u16>) -> anyhow::Result<Many> {
        let many = Many { here: NetNs::new()?, there: NetNs::new()?, switch: NetNs::new()? };
        batch(&many.switch, "link add br0 type bridge mcast_snooping 0\nlink set br0 up\n")?;
        many.plug(&many.here, 1)?;
        many.plug(&many.there, 2)?;
        batch(&many.here, &format!("address add {HERE}/{PREFIX} dev {WIRE}\n"))?;
        let mut lines = String::new();
        for i in there {
            let _ = writeln!(lines, "address add {}/{PREFIX} dev {WIRE}", address(i));
        }
        batch(&many.there, &lines)?;
        Ok(many)
    }

    fn plug(&self, node: &NetNs, port: u8) -> anyhow::Result<()> {
        let peer = node.path();
        batch(
            &self.switch,
            &format!(
                "link add port{port} type veth peer name {WIRE} netns {peer}\nlink set port{port} master br0 up\n"
            ),
        )?;
        batch(node, &format!("link set lo up\nlink set {WIRE} up\n"))
    }

    /// Another station that believes to be this address.
    pub fn impostor(&self, i: u16) -> anyhow::Result<NetNs> {
        let node = NetNs::new()?;
        self.plug(&node, 3)?;
        batch(&node, &format!("address add {}/{PREFIX} dev {WIRE}\n", address(i)))?;
        Ok(node)
    }

    /// The far end's wire carries no longer packets.
    pub fn narrow(&self, mtu: u16) -> anyhow::Result<()> {
        batch(&self.switch, &format!("link set port2 mtu {mtu}\n"))?;
        batch(&self.there, &format!("link set {WIRE} mtu {mtu}\n"))
    }
}
