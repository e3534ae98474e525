//! One network interface: state, size, driver, addresses, XDP programs on it.

use super::connection::{Connection, invalid};
use super::{ethtool, xdp_features};
use netlink_packet_core::Parseable;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp};
use netlink_sys::protocols::NETLINK_ROUTE;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    pub index: u32,
    pub name: String,
    /// Set up by an administrator.
    pub up: bool,
    pub carrier: bool,
    /// Bytes.
    pub mtu: u32,
    /// `None`: it has none of its own (loopback).
    pub driver: Option<String>,
    /// Bits of [`xdp_features`]. `None`: the kernel does not say (before 6.3).
    pub features: Option<u64>,
    /// Ids of the XDP programs on it, in whatever mode.
    pub xdp: Vec<u32>,
}

/// Every interface of the calling thread's network namespace, by name.
pub fn read() -> io::Result<BTreeMap<String, Nic>> {
    let mut connection = Connection::open(NETLINK_ROUTE)?;
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut all = connection.dump(request, BTreeMap::new, |all, kind, payload| {
        if kind == RTM_NEWLINK {
            let nic = decode(LinkMessage::parse(payload).map_err(invalid)?);
            all.insert(nic.name.clone(), nic);
        }
        Ok(())
    })?;
    let features = xdp_features::read()?;
    for nic in all.values_mut() {
        // One that goes meanwhile has neither.
        nic.driver = ethtool::driver(&nic.name).unwrap_or(None);
        nic.features = features.as_ref().and_then(|all| all.get(&nic.index).copied());
    }
    Ok(all)
}

fn decode(message: LinkMessage) -> Nic {
    let flags = message.header.flags;
    let mut nic = Nic {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        ..Nic::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => nic.name = name,
            LinkAttribute::Mtu(mtu) => nic.mtu = mtu,
            LinkAttribute::Xdp(parts) => {
                for part in parts {
                    if let LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) = part {
                        nic.xdp.push(id);
                    }
                }
            }
            _ => {}
        }
    }
    nic
}

/// An IPv4 address of this node, on the interface of that index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub index: u32,
    pub address: Ipv4Addr,
    pub prefix: u8,
}

impl Address {
    /// They share a subnet.
    pub fn reaches(&self, other: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
        (u32::from(self.address) ^ u32::from(other)) & mask == 0
    }
}

/// IPv4 addresses of the namespace.
pub fn addresses() -> io::Result<Vec<Address>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    Connection::open(NETLINK_ROUTE)?.dump(request, Vec::new, |all, kind, payload| {
        if kind == RTM_NEWADDR && payload.first() == Some(&(libc::AF_INET as u8)) {
            let message = AddressMessage::parse(payload).map_err(invalid)?;
            let (index, prefix) = (message.header.index, message.header.prefix_len);
            // On a point-to-point link `Address` is the peer's.
            let local = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            let plain = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            all.extend(local.or(plain).map(|address| Address { index, address, prefix }));
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::namespace::{ip, run};

    #[test]
    fn an_interface_as_it_stands() {
        run(|| {
            ip("link add va mtu 4000 type veth peer name vb");
            ip("addr add 10.9.0.1/24 dev va");
            ip("link set va up");
            let all = read().unwrap();
            let va = &all["va"];
            assert_eq!((va.up, va.carrier, va.mtu), (true, false, 4000));
            assert_eq!((va.driver.as_deref(), &va.xdp[..]), (Some("veth"), &[][..]));
            assert!(va.features.is_some());
            ip("link set vb up");
            assert!(read().unwrap()["va"].carrier);
            let own = Address { index: va.index, address: Ipv4Addr::new(10, 9, 0, 1), prefix: 24 };
            assert!(addresses().unwrap().contains(&own));
            assert!(own.reaches([10, 9, 0, 77].into()) && !own.reaches([10, 9, 1, 1].into()));
            assert!(Address { prefix: 0, ..own }.reaches([1, 1, 1, 1].into()));
            assert!(!all.contains_key("nothere0"));
        });
    }
}
