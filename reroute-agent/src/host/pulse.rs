//! Pulses on the wire: one UDP socket per network, bound to the host's address and interface there.

use crate::clock;
use crate::config::{Config, Host, HostEntry};
use crate::keys::pulse_key;
use anyhow::Context;
use reroute_common::pulse::{LEN, PORT};
use reroute_core::host::Facts;
use reroute_core::host::wire::{self, Answer, Expected, Header};
pub use reroute_core::host::wire::{Reject, Request};
use reroute_core::ids::*;
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Pulses per path whose replies are still expected.
const OUTSTANDING: usize = 256;

/// Datagrams taken from a socket in one go: a flood must not hold up the beat.
const BATCH: usize = 1024;

#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub path: Path,
    pub sent_at: BootNs,
    pub received_at: BootNs,
    pub facts: Facts,
}

struct Target {
    address: SocketAddr,
    key: [u64; 2],
    outstanding: VecDeque<(u64, BootNs)>,
}

struct Link {
    interface: String,
    address: Ipv4Addr,
    socket: UdpSocket,
}

pub struct Pulses {
    host: HostId,
    incarnation: Incarnation,
    sequence: u64,
    links: BTreeMap<Network, Link>,
    targets: BTreeMap<Path, Target>,
    by_address: BTreeMap<(Network, SocketAddr), Path>,
}

fn bind(interface: &str, address: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind((address, 0))?;
    // A pulse shows that this interface carries; another route to the same address would prove something else.
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    Ok(socket)
}

impl Pulses {
    /// Binds the sockets, on the current tokio runtime. Errors: an address of the configuration is not on this node.
    pub fn open(
        config: &Config,
        host: &Host,
        node: &HostEntry,
        incarnation: Incarnation,
    ) -> anyhow::Result<Pulses> {
        let mut links = BTreeMap::new();
        for (network, interface) in host.interfaces.each() {
            let address = node.address(network);
            let socket = bind(interface, address).with_context(|| {
                format!(
                    "cannot send pulses from {address} on {interface} ({network}): is that address on this node?"
                )
            })?;
            links.insert(network, Link { interface: interface.to_string(), address, socket });
        }
        let cluster = &config.cluster;
        let mut targets = BTreeMap::new();
        for scvm in &cluster.scvms {
            let private = (scvm.id == node.local_scvm).then_some((Network::Private, cluster.service_address));
            let public = [(Network::Storage, scvm.storage), (Network::Management, scvm.management)];
            for (network, address) in public.into_iter().chain(private) {
                let target = Target {
                    address: SocketAddr::new(IpAddr::V4(address), PORT),
                    key: pulse_key(&config.key, host.id, scvm.id),
                    outstanding: VecDeque::new(),
                };
                targets.insert(Path { scvm: scvm.id, network }, target);
            }
        }
        let by_address = targets.iter().map(|(path, t)| ((path.network, t.address), *path)).collect();
        Ok(Pulses { host: host.id, incarnation, sequence: 0, links, targets, by_address })
    }

    /// Binds anew: an interface that went away and came back is another one to the kernel.
    pub fn rebind(&mut self, network: Network) -> io::Result<()> {
        let Some(link) = self.links.get_mut(&network) else { return Ok(()) };
        link.socket = bind(&link.interface, link.address)?;
        Ok(())
    }

    /// Sends one pulse. Returns when it left.
    pub fn send(&mut self, path: Path, request: Request) -> io::Result<BootNs> {
        let (Some(link), Some(target)) = (self.links.get(&path.network), self.targets.get_mut(&path)) else {
            return Err(io::Error::other(format!("{path} is not in the configuration")));
        };
        self.sequence += 1;
        let now = clock::now();
        let bytes = wire::encode(&Header {
            key: target.key,
            host: self.host,
            scvm: path.scvm,
            incarnation: self.incarnation,
            sequence: self.sequence,
            time: now,
            request,
        });
        // Straight to the kernel: tokio's idea of readiness may be older than now.
        net::sendto(&link.socket, &bytes, SendFlags::DONTWAIT, &target.address)?;
        if target.outstanding.len() == OUTSTANDING {
            target.outstanding.pop_front();
        }
        target.outstanding.push_back((self.sequence, now));
        Ok(now)
    }

    /// Waits until one of the sockets may have something to read.
    pub async fn readable(&self) {
        let mut waits: Vec<_> = self.links.values().map(|l| Box::pin(l.socket.readable())).collect();
        std::future::poll_fn(|context| {
            let ready = waits.iter_mut().any(|wait| wait.as_mut().poll(context).is_ready());
            if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    /// Everything that has come in.
    pub fn receive(&mut self) -> Vec<Result<Reply, (Network, Reject)>> {
        let mut received = Vec::new();
        for (network, link) in &self.links {
            let mut buffer = [0; LEN + 1];
            let mut errors = 0;
            let mut drained = false;
            for _ in 0..BATCH {
                match net::recvfrom(&link.socket, &mut buffer, RecvFlags::DONTWAIT) {
                    Ok((_, length, from)) => {
                        let at = clock::now();
                        if let Some(from) = from.and_then(|from| SocketAddr::try_from(from).ok()) {
                            received.push((*network, length.min(buffer.len()), from, buffer, at));
                        }
                    }
                    Err(Errno::AGAIN) => {
                        drained = true;
                        break;
                    }
                    // What an earlier pulse ran into is reported here once (ICMP, a device gone); the next read goes on.
                    Err(_) if errors < 16 => errors += 1,
                    Err(_) => break,
                }
            }
            if drained {
                // All was read: wait for the next edge. What comes meanwhile is one.
                let blocks = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = link.socket.try_io(Interest::READABLE, blocks);
            }
        }
        received
            .into_iter()
            .map(|(network, length, from, buffer, at)| {
                self.decode(network, &buffer[..length], from, at).map_err(|reject| (network, reject))
            })
            .collect()
    }

    fn decode(
        &mut self,
        network: Network,
        bytes: &[u8],
        from: SocketAddr,
        received_at: BootNs,
    ) -> Result<Reply, Reject> {
        let bytes: &[u8; LEN] = bytes.try_into().map_err(|_| Reject::Size)?;
        let path = *self.by_address.get(&(network, from)).ok_or(Reject::Address)?;
        let target = self.targets.get_mut(&path).ok_or(Reject::Address)?;
        let expected =
            Expected { key: target.key, host: self.host, scvm: path.scvm, incarnation: self.incarnation };
        let Answer { sequence, time, facts } = wire::decode(bytes, &expected)?;
        let position = target.outstanding.iter().position(|sent| *sent == (sequence, time));
        let (_, sent_at) = position.and_then(|i| target.outstanding.remove(i)).ok_or(Reject::Sequence)?;
        Ok(Reply { path, sent_at, received_at, facts })
    }
}

#[cfg(test)]
#[path = "pulse_tests.rs"]
mod tests;
