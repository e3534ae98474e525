//! What waits for a next hop's link address, and which one is known.
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
use reroute_core::ids::MS;
use std::io;
use std::net::Ipv4Addr;

const RTM_NEWNEIGH: u16 = 28;
/// The kernel takes the first of several answers and lets no other one change an entry for `locktime` after a change.
/// In its file, of these (USER_HZ).
const LOCK_UNIT_NS: u64 = 10 * MS;

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
        let waiting = self.select(|payload| unresolved(payload, addresses))?;
        for entry in &waiting {
            match self.connection.change(RouteNetlinkMessage::DelNeighbour(entry.clone()), 0) {
                // Resolved or given up meanwhile.
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(waiting.len())
    }

    /// Keeps what is known of `addresses` on an interface (its name and index) as it is for `for_ns`, whoever answers for them meanwhile.
    ///
    /// # Errors
    /// The kernel's; or it keeps nothing for so long there (`locktime`).
    pub fn hold(
        &mut self,
        (interface, index): (&str, u32),
        addresses: &[Ipv4Addr],
        for_ns: u64,
    ) -> io::Result<()> {
        let known = self.select(|payload| {
            let entry = of(payload, addresses)?;
            Ok(entry.filter(|entry| entry.header.ifindex == index).and_then(|entry| touched(&entry)))
        })?;
        if known.is_empty() {
            return Ok(());
        }
        let path = format!("/proc/sys/net/ipv4/neigh/{interface}/locktime");
        let text = std::fs::read_to_string(&path)?;
        let lock: u64 = text.trim().parse().map_err(|e| io::Error::other(format!("{path}: {e}")))?;
        if lock.saturating_mul(LOCK_UNIT_NS) < for_ns {
            return Err(io::Error::other(format!(
                "{path} is {}: an answer could lead packets astray; set it to 100, its default",
                text.trim()
            )));
        }
        for entry in known {
            match self.connection.change(RouteNetlinkMessage::NewNeighbour(entry), 0) {
                Ok(()) => {}
                // Gone, or unknown again: answers make no entry.
                Err(error) if [Some(libc::ENOENT), Some(libc::EINVAL)].contains(&error.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn select(
        &mut self,
        mut pick: impl FnMut(&[u8]) -> io::Result<Option<NeighbourMessage>>,
    ) -> io::Result<Vec<NeighbourMessage>> {
        let mut all = NeighbourMessage::default();
        all.header.family = AddressFamily::Inet;
        self.connection.dump(
            RouteNetlinkMessage::GetNeighbour(all),
            Vec::new,
            |found: &mut Vec<NeighbourMessage>, kind, payload| {
                if kind == RTM_NEWNEIGH {
                    found.extend(pick(payload)?);
                }
                Ok(())
            },
        )
    }
}

/// The words that change an entry's state alone, so that the kernel takes it for just changed. Its link address is not
/// said: the kernel keeps the one it has, which may be another one by now. The new state asks the present owner again, as
/// the next packet would.
fn touched(entry: &NeighbourMessage) -> Option<NeighbourMessage> {
    let state = match entry.header.state {
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Probe => NeighbourState::Delay,
        NeighbourState::Delay => NeighbourState::Probe,
        // Not known, or not to be changed by answers.
        _ => return None,
    };
    let mut touched = NeighbourMessage::default();
    touched.header = NeighbourHeader {
        family: AddressFamily::Inet,
        ifindex: entry.header.ifindex,
        state,
        flags: entry.header.flags,
        ..Default::default()
    };
    let kept = |a: &&NeighbourAttribute| matches!(a, NeighbourAttribute::Destination(_));
    touched.attributes = entry.attributes.iter().filter(kept).cloned().collect();
    Some(touched)
}

/// The entry in `payload`, if it is of one of `addresses`.
fn of(payload: &[u8], addresses: &[Ipv4Addr]) -> io::Result<Option<NeighbourMessage>> {
    // Others' entries may hold anything: only what concerns us is taken apart.
    if payload.first() != Some(&(libc::AF_INET as u8)) {
        return Ok(None);
    }
    let entry = NeighbourMessage::parse(payload).map_err(invalid)?;
    Ok(destination(&entry).is_some_and(|address| addresses.contains(&address)).then_some(entry))
}

fn destination(entry: &NeighbourMessage) -> Option<Ipv4Addr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

/// The words that delete the entry in `payload`, if it waits for one of `addresses`.
fn unresolved(payload: &[u8], addresses: &[Ipv4Addr]) -> io::Result<Option<NeighbourMessage>> {
    let entry = of(payload, addresses)?;
    let Some(entry) = entry.filter(|e| e.header.state == NeighbourState::Incomplete) else { return Ok(None) };
    let Some(address) = destination(&entry) else { return Ok(None) };
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
