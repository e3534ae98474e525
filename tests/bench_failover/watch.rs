//! When a host's route to the service address changed, by the kernel's own notifications: for those who keep no journal.

use anyhow::Context;
use lab::namespace::NetNs;
use lab::topology::SERVICE;
use reroute_agent::clock;
use reroute_core::ids::BootNs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// RTMGRP_IPV4_ROUTE of <linux/rtnetlink.h>.
const ROUTES: u32 = 0x40;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTA_DST: u16 = 1;
/// struct nlmsghdr, struct rtmsg.
const HEADER: usize = 16;
const RTMSG: usize = 12;

/// Watches until it is dropped.
pub struct Routes {
    changes: Arc<Mutex<Vec<BootNs>>>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Routes {
    pub fn watch(host: &NetNs) -> anyhow::Result<Routes> {
        let socket = host.run(|| -> anyhow::Result<OwnedFd> {
            let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
            let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
            rustix::net::bind(&socket, &SocketAddrNetlink::new(0, ROUTES))?;
            Ok(socket)
        })?;
        let socket = socket.context("a netlink socket")?;
        let (changes, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (told, end) = (changes.clone(), over.clone());
        let thread = std::thread::Builder::new().name("routes".into()).spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while !end.load(Ordering::Relaxed) {
                if let Some(length) = receive(&socket, &mut buffer)
                    && concerns_service(buffer.get(..length).unwrap_or_default())
                {
                    told.lock().unwrap_or_else(PoisonError::into_inner).push(clock::now());
                }
            }
        })?;
        Ok(Routes { changes, over, thread: Some(thread) })
    }

    /// The first change at or after `at`.
    pub fn first(&self, at: BootNs) -> Option<BootNs> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.iter().copied().find(|change| *change >= at)
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for a datagram, but not for long. None: nothing came, or more than the socket could hold.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    match poll(&mut fds, Some(&patience)) {
        Ok(1..) => rustix::net::recv(socket, buffer, RecvFlags::DONTWAIT).ok().map(|(length, _)| length),
        _ => None,
    }
}

/// Whether a datagram tells of a route to the service address, made or removed.
fn concerns_service(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while let Some(length) = word(rest, 0) {
        let kind = half(rest, 4).unwrap_or_default();
        let message = rest.get(..length as usize).unwrap_or_default();
        if matches!(kind, RTM_NEWROUTE | RTM_DELROUTE) && destination(message) == Some((32, SERVICE.octets()))
        {
            return true;
        }
        rest = rest.get((length as usize).next_multiple_of(4).max(HEADER)..).unwrap_or_default();
    }
    false
}

/// Prefix length and address.
fn destination(message: &[u8]) -> Option<(u8, [u8; 4])> {
    let prefix = *message.get(HEADER + 1)?;
    let mut rest = message.get(HEADER + RTMSG..)?;
    loop {
        let (length, kind) = (half(rest, 0)?, half(rest, 2)?);
        if kind == RTA_DST {
            return Some((prefix, rest.get(4..8)?.try_into().ok()?));
        }
        rest = rest.get(usize::from(length).next_multiple_of(4).max(4)..)?;
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nlmsghdr, rtmsg, RTA_TABLE, RTA_DST: as the kernel tells of a route.
    fn message(kind: u16, prefix: u8, to: [u8; 4]) -> Vec<u8> {
        let mut m = Vec::new();
        m.extend(44_u32.to_ne_bytes());
        m.extend(kind.to_ne_bytes());
        m.extend([0; 10]);
        m.extend([2, prefix, 0, 0, 254, 199, 0, 1, 0, 0, 0, 0]);
        m.extend([8_u16.to_ne_bytes(), 15_u16.to_ne_bytes()].concat());
        m.extend(254_u32.to_ne_bytes());
        m.extend([8_u16.to_ne_bytes(), RTA_DST.to_ne_bytes()].concat());
        m.extend(to);
        m
    }

    #[test]
    fn only_routes_to_the_service_address_count() {
        let ours = message(RTM_NEWROUTE, 32, SERVICE.octets());
        assert!(concerns_service(&ours));
        assert!(concerns_service(&message(RTM_DELROUTE, 32, SERVICE.octets())));
        assert!(!concerns_service(&message(RTM_NEWROUTE, 24, SERVICE.octets())));
        assert!(!concerns_service(&message(RTM_NEWROUTE, 32, [192, 168, 33, 3])));
        // RTM_NEWNEIGH
        assert!(!concerns_service(&message(28, 32, SERVICE.octets())));
        let two = [message(RTM_NEWROUTE, 32, [10, 0, 0, 1]), ours.clone()].concat();
        assert!(concerns_service(&two));
        for cut in 0..ours.len() {
            assert!(!concerns_service(&ours[..cut]));
        }
    }

    #[test]
    fn a_route_that_is_made_is_seen() {
        let host = NetNs::new().expect("namespace");
        let ip = |args: &str| {
            let done = host.run(|| std::process::Command::new("ip").args(args.split_whitespace()).status());
            assert!(done.expect("in the namespace").expect("ip").success(), "{args}");
        };
        ip("link set lo up");
        ip("address add 10.10.85.11/24 dev lo");
        let routes = Routes::watch(&host).expect("watch");
        let before = clock::now();
        ip("route add 10.1.2.3/32 via 10.10.85.11");
        ip("route add 192.168.33.2/32 dev lo");
        let seen = lab::wait_for("the change", std::time::Duration::from_secs(5), || {
            routes.first(before).context("nothing seen")
        });
        assert!(seen.expect("seen") >= before);
        assert!(routes.first(clock::now()).is_none());
    }
}
