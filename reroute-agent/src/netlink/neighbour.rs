//! What waits for a next hop's link address.
//!
//! A packet to a next hop whose link address is not known is kept by the kernel until it is: for three seconds. When the
//! link of the old path comes back within these, a write of a connection that was destroyed long ago goes out to a
//! server that knows nothing of that, and overwrites what has been written since by the new path.

use super::connection::{Connection, invalid};
use netlink_packet_core::Parseable;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourHeader, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use std::io;
use std::net::Ipv4Addr;

const RTM_NEWNEIGH: u16 = 28;

/// The neighbour table of the network namespace it was opened in.
pub struct Neighbours {
    connection: Connection,
}

impl Neighbours {
    pub fn open() -> io::Result<Neighbours> {
        Ok(Neighbours { connection: Connection::open(NETLINK_ROUTE)? })
    }

    /// Throws away what waits for any of these addresses: entries that are not resolved, with their queues. Gives how
    /// many. Those that are resolved, or were set by somebody, stay.
    pub fn drop_waiting(&mut self, addresses: &[Ipv4Addr]) -> io::Result<usize> {
        let mut all = NeighbourMessage::default();
        all.header.family = AddressFamily::Inet;
        let waiting = self.connection.dump(
            RouteNetlinkMessage::GetNeighbour(all),
            Vec::new,
            |found: &mut Vec<NeighbourMessage>, kind, payload| {
                if kind == RTM_NEWNEIGH {
                    found.extend(unresolved(payload, addresses)?);
                }
                Ok(())
            },
        )?;
        for entry in &waiting {
            match self.connection.change(RouteNetlinkMessage::DelNeighbour(entry.clone()), 0) {
                // Resolved or given up meanwhile.
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(waiting.len())
    }
}

/// The words that delete the entry in `payload`, if it waits for one of `addresses`.
fn unresolved(payload: &[u8], addresses: &[Ipv4Addr]) -> io::Result<Option<NeighbourMessage>> {
    // Others' entries may hold anything: only what concerns us is taken apart.
    if payload.first() != Some(&(libc::AF_INET as u8)) {
        return Ok(None);
    }
    let entry = NeighbourMessage::parse(payload).map_err(invalid)?;
    let address = entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    let Some(address) = address.filter(|address| addresses.contains(address)) else { return Ok(None) };
    if entry.header.state != NeighbourState::Incomplete {
        return Ok(None);
    }
    let mut delete = NeighbourMessage::default();
    delete.header =
        NeighbourHeader { family: AddressFamily::Inet, ifindex: entry.header.ifindex, ..Default::default() };
    delete.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(address))];
    Ok(Some(delete))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::netlink::namespace::*;
    use std::net::UdpSocket;

    fn shown(address: &str) -> String {
        ip_shows(&format!("neigh show {address}"))
    }

    #[test]
    fn what_waits_for_an_address_is_dropped_and_what_is_known_stays() {
        run(|| {
            ip("link add one type veth peer name two");
            ip("addr add 10.9.0.1/24 dev one");
            ip("link set one up");
            ip("link set two up");
            ip("neigh add 10.9.0.3 lladdr 02:00:00:00:00:03 dev one");
            let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
            for address in ["10.9.0.2", "10.9.0.4"] {
                socket.send_to(b"waits", (address, 9)).unwrap();
                assert!(shown(address).contains("INCOMPLETE"), "{}", shown(address));
            }
            let mut neighbours = Neighbours::open().unwrap();
            let asked = ["10.9.0.2", "10.9.0.3"].map(|a| a.parse().unwrap());
            assert_eq!(neighbours.drop_waiting(&asked).unwrap(), 1);
            assert!(!shown("10.9.0.2").contains("INCOMPLETE"), "{}", shown("10.9.0.2"));
            assert!(shown("10.9.0.3").contains("PERMANENT"), "{}", shown("10.9.0.3"));
            assert!(shown("10.9.0.4").contains("INCOMPLETE"), "nobody asked");
            assert_eq!(neighbours.drop_waiting(&asked).unwrap(), 0);
        });
    }
}
