//! Who answers for an address by ARP (RFC 826): nobody, its owner, or two who both believe to be.
#![allow(unsafe_code)]

use crate::clock;
use crate::netlink::neighbour::Neighbours;
use reroute_core::ids::MS;
use reroute_core::sweep::Mac;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, netdevice, recv, socket_with};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::{size_of, zeroed};
use std::net::Ipv4Addr;

const ARP: u16 = libc::ETH_P_ARP as u16;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// Of a packet for Ethernet and IPv4.
const LENGTH: usize = 28;
/// Ethernet, IPv4, and the lengths of their addresses.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// Answers are still on their way to the kernel when nobody listens any more.
const GRACE_NS: u64 = 200 * MS;

/// Asks for each of `addresses` on `interface`, and listens for `listen_ns`: also to those who answer late.
///
/// Where two answer for an address, packets to it go on to the one they went to. The question is asked in nobody's name
/// (RFC 5227: a probe): no other node learns anything from it. This node's kernel would from the answers, in whoever's
/// name it was asked: what it knows is held before.
///
/// # Errors
/// EPERM without CAP_NET_RAW and CAP_NET_ADMIN; the interface is not there or has no Ethernet address; what the kernel
/// knows cannot be held, and then nothing is asked.
pub fn who_has(
    interface: &str,
    addresses: &[Ipv4Addr],
    listen_ns: u64,
) -> io::Result<BTreeMap<Ipv4Addr, BTreeSet<Mac>>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = rustix::net::eth::ARP;
    let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, Some(protocol))?;
    let index = netdevice::name_to_index(&socket, interface)?;
    bind(&socket, index)?;
    let mac = own_mac(&socket)?;
    Neighbours::open()?.hold((interface, index), addresses, listen_ns + GRACE_NS)?;
    for address in addresses {
        broadcast(&socket, index, &packet(REQUEST, mac, Ipv4Addr::UNSPECIFIED, *address))?;
    }
    let until = clock::now().plus(listen_ns);
    let mut found: BTreeMap<Ipv4Addr, BTreeSet<Mac>> = BTreeMap::new();
    loop {
        let left = until.since(clock::now());
        if left == 0 {
            return Ok(found);
        }
        let timeout =
            Timespec { tv_sec: (left / 1_000_000_000) as i64, tv_nsec: (left % 1_000_000_000) as i64 };
        match poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut packet = [0; 64];
        while let Ok((length, _)) = recv(&socket, &mut packet[..], RecvFlags::DONTWAIT) {
            if let Some((address, mac)) = packet.get(..length).and_then(answer)
                && addresses.contains(&address)
            {
                found.entry(address).or_default().insert(mac);
            }
        }
    }
}

/// Of the interface that `socket` is bound to. (`/sys` may show another network namespace's.)
fn own_mac(socket: &OwnedFd) -> io::Result<Mac> {
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: `address` and `length` outlive the call, which writes at most the size that `length` says.
    let done = unsafe {
        libc::getsockname(socket.as_raw_fd(), std::ptr::from_mut(&mut address).cast(), &mut length)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    match (address.sll_halen, address.sll_addr) {
        (6, [a, b, c, d, e, f, ..]) => Ok(Mac([a, b, c, d, e, f])),
        _ => Err(io::Error::other("the interface has no Ethernet address")),
    }
}

fn packet(operation: u16, mac: Mac, source: Ipv4Addr, wanted: Ipv4Addr) -> Vec<u8> {
    let operation = operation.to_be_bytes();
    [&KIND[..], &operation, &mac.0, &source.octets(), &[0; 6], &wanted.octets()].concat()
}

/// The sender of a reply: its addresses.
fn answer(packet: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let packet = packet.get(..LENGTH)?;
    let is_reply = packet.get(..6)? == KIND && packet.get(6..8)? == REPLY.to_be_bytes();
    let mac: [u8; 6] = packet.get(8..14)?.try_into().ok()?;
    let address: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
    is_reply.then_some((address.into(), Mac(mac)))
}

fn link_address(index: u32) -> libc::sockaddr_ll {
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ARP.to_be();
    address.sll_ifindex = index as i32;
    address.sll_halen = 6;
    address.sll_addr = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
    address
}

fn bind(socket: &OwnedFd, index: u32) -> io::Result<()> {
    let address = link_address(index);
    // SAFETY: `address` outlives the call, which reads exactly its size.
    let done = unsafe {
        let (address, length) = (std::ptr::from_ref(&address).cast(), size_of::<libc::sockaddr_ll>() as u32);
        libc::bind(socket.as_raw_fd(), address, length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn broadcast(socket: &OwnedFd, index: u32, packet: &[u8]) -> io::Result<()> {
    let address = link_address(index);
    // SAFETY: packet and address outlive the call, which reads exactly their sizes.
    let sent = unsafe {
        let (address, length) = (std::ptr::from_ref(&address).cast(), size_of::<libc::sockaddr_ll>() as u32);
        libc::sendto(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, address, length)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::netlink::namespace::{ip, ip_shows, run};
    use std::time::Duration;

    #[test]
    fn a_question_leads_no_packet_astray() {
        const OWNER: Mac = Mac([2, 0, 0, 0, 0, 1]);
        const IMPOSTOR: Mac = Mac([2, 0, 0, 0, 0, 2]);
        let asked = Ipv4Addr::new(10, 9, 0, 2);
        // Both answer each question, the impostor first. Gives in whose name it was asked.
        let answer = |socket: &OwnedFd, index: u32| {
            let mut buffer = [0; 64];
            loop {
                poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)], None).unwrap();
                let (length, _) = recv(socket, &mut buffer[..], RecvFlags::empty()).unwrap();
                let question = &buffer[..length];
                if length >= LENGTH && question[6..8] == REQUEST.to_be_bytes() {
                    let source: [u8; 4] = question[14..18].try_into().unwrap();
                    for mac in [IMPOSTOR, OWNER] {
                        broadcast(socket, index, &packet(REPLY, mac, asked, source.into())).unwrap();
                    }
                    return Ipv4Addr::from(source);
                }
            }
        };
        for state in ["reachable", "stale", "delay"] {
            run(|| {
                ip("link add one type veth peer name two");
                ip("addr add 10.9.0.1/24 dev one");
                ip("link set one up");
                ip("link set two up");
                let protocol = rustix::net::eth::ARP;
                let there = socket_with(
                    AddressFamily::PACKET,
                    SocketType::DGRAM,
                    SocketFlags::CLOEXEC,
                    Some(protocol),
                );
                let there = there.unwrap();
                let index = netdevice::name_to_index(&there, "two").unwrap();
                bind(&there, index).unwrap();
                ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:01 dev one nud reachable");
                // Past the kernel's own lock.
                std::thread::sleep(Duration::from_millis(1200));
                if state != "reachable" {
                    ip(&format!("neigh change 10.9.0.2 lladdr 02:00:00:00:00:01 dev one nud {state}"));
                }
                let (source, found) = std::thread::scope(|scope| {
                    let thread = scope.spawn(|| answer(&there, index));
                    let found = who_has("one", &[asked], 200 * MS).unwrap();
                    (thread.join().unwrap(), found)
                });
                assert_eq!(source, Ipv4Addr::UNSPECIFIED);
                assert_eq!(found[&asked], BTreeSet::from([OWNER, IMPOSTOR]));
                let known = ip_shows("neigh show 10.9.0.2");
                assert!(known.contains("02:00:00:00:00:01"), "{state}: {known}");
            });
        }
    }

    #[test]
    fn nothing_is_asked_where_the_answer_could_lead_packets_astray() {
        run(|| {
            ip("link add one type veth peer name two");
            ip("addr add 10.9.0.1/24 dev one");
            ip("link set one up");
            ip("link set two up");
            std::fs::write("/proc/sys/net/ipv4/neigh/one/locktime", "0").unwrap();
            let asked = Ipv4Addr::new(10, 9, 0, 2);
            assert!(
                who_has("one", &[asked], MS).unwrap().is_empty(),
                "nothing is known that could be overwritten"
            );
            ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:01 dev one nud reachable");
            let error = who_has("one", &[asked], MS).unwrap_err().to_string();
            assert!(error.contains("neigh/one/locktime is 0"), "{error}");
        });
    }

    #[test]
    fn only_whole_replies_count() {
        let (mac, ours, theirs) =
            (Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mut packet = packet(REQUEST, mac, ours, theirs);
        assert_eq!(packet.len(), LENGTH);
        assert_eq!(answer(&packet), None, "a request");
        packet[7] = REPLY as u8;
        assert_eq!(answer(&packet), Some((ours, mac)));
        assert_eq!(answer(&packet[..27]), None);
        packet[1] = 6;
        assert_eq!(answer(&packet), None, "not Ethernet");
    }
}
