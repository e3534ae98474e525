//! Sweeps by ICMP echo: [`reroute_core::sweep`] on one raw socket; who answers by ARP.

pub mod arp;
pub mod own;
pub(crate) mod packet;
pub mod sizes;
mod socket;

use crate::clock;
use packet::{Decoded, Id, MOST};
use reroute_core::ids::BootNs;
use reroute_core::sweep::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket::{BATCH, IcmpSocket};
use std::io;
use std::net::Ipv4Addr;

#[derive(Clone, Debug)]
pub struct Options {
    pub interface: Option<String>,
    /// A full echo is as long as this with its IP header, bytes.
    pub mtu: u16,
    pub settings: Settings,
}

#[derive(Clone, Debug)]
pub struct Report {
    /// One per address, in order.
    pub outcomes: Vec<Outcome>,
    /// Until the last request of the first round had left, ns.
    pub asked_ns: u64,
    /// From the first request to the end, ns.
    pub took_ns: u64,
}

/// Sweeps `addresses` once; blocks until it is over, at most `tries` times the longest patience.
///
/// # Errors
/// EPERM without CAP_NET_RAW; ENODEV; more addresses than a sequence number can name.
pub fn sweep(addresses: &[Ipv4Addr], options: &Options) -> io::Result<Report> {
    if addresses.len() > MOST {
        let what = format!("{} addresses in one sweep: at most {MOST}", addresses.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let socket = IcmpSocket::open(options.interface.as_deref(), &[packet::ECHO_REPLY, packet::UNREACHABLE])?;
    let id = Id { identifier: fastrand::u16(..), token: fastrand::u64(..).to_ne_bytes() };
    let begun = clock::now();
    let (sweep, effects) = Sweep::new(addresses.len() as u16, options.settings);
    let mut run = Run { addresses, mtu: options.mtu, id, socket, sweep };
    run.carry_out(effects)?;
    let asked = clock::now();
    while let Some(wake_at) = run.sweep.wake_at() {
        run.wait(wake_at)?;
        // Whatever has come is told before time is said to have passed.
        while run.read()? {}
        let effects = run.sweep.handle(Input::Tick, clock::now());
        run.carry_out(effects)?;
    }
    Ok(Report {
        outcomes: run.sweep.outcomes(),
        asked_ns: asked.since(begun),
        took_ns: clock::now().since(begun),
    })
}

struct Run<'a> {
    addresses: &'a [Ipv4Addr],
    mtu: u16,
    id: Id,
    socket: IcmpSocket,
    sweep: Sweep,
}

impl Run<'_> {
    fn carry_out(&mut self, effects: Vec<Effect>) -> io::Result<()> {
        for effect in effects {
            match effect {
                Effect::Send(probes) => self.send(&probes)?,
                Effect::Done => {}
            }
        }
        Ok(())
    }

    /// Answers are read between batches: the time they wait for us is not theirs.
    fn send(&mut self, mut probes: &[Probe]) -> io::Result<()> {
        while !probes.is_empty() {
            let batch = probes.get(..BATCH.min(probes.len())).unwrap_or_default();
            let address = |p: &Probe| self.addresses.get(usize::from(p.target.0)).copied();
            let message = |p: &Probe| Some((address(p)?, packet::encode(self.id, *p, self.mtu)));
            let messages: Vec<_> = batch.iter().filter_map(message).collect();
            let (sent, failed) = match self.socket.send(&messages) {
                Ok(sent) => (sent, None),
                Err(error) => (0, Some(error)),
            };
            let now = clock::now();
            if let Some(probes) = batch.get(..sent).filter(|p| !p.is_empty()) {
                self.sweep.handle(Input::Sent(probes.to_vec()), now);
            }
            let mut done = sent;
            if let (Some(error), Some(probe)) = (failed, batch.first()) {
                let what = match error.raw_os_error() {
                    Some(libc::ENETUNREACH) => Obstacle::NoRoute,
                    Some(libc::EHOSTUNREACH) => Obstacle::Unreachable { by: Ipv4Addr::UNSPECIFIED },
                    Some(errno) => Obstacle::NotSent { errno },
                    None => return Err(error),
                };
                self.sweep.handle(Input::Obstacle { probe: *probe, what }, now);
                done = 1;
            }
            probes = probes.get(done..).unwrap_or_default();
            while self.read()? {}
        }
        Ok(())
    }

    /// True: there may be more.
    fn read(&mut self) -> io::Result<bool> {
        let Run { addresses, id, socket, sweep, .. } = self;
        let now = clock::now();
        let target = |p: Probe| addresses.get(usize::from(p.target.0)).copied();
        let mut count = 0;
        for packet in socket.receive()? {
            count += 1;
            match packet::decode(*id, packet) {
                Some(Decoded::Reply { from, probe }) if target(probe) == Some(from) => {
                    sweep.handle(Input::Reply(probe), now);
                }
                Some(Decoded::Obstacle { about, probe, what }) if target(probe) == Some(about) => {
                    sweep.handle(Input::Obstacle { probe, what }, now);
                }
                _ => {}
            }
        }
        Ok(count == BATCH)
    }

    fn wait(&self, until: BootNs) -> io::Result<()> {
        let left = until.since(clock::now());
        let timeout =
            Timespec { tv_sec: (left / 1_000_000_000) as i64, tv_nsec: (left % 1_000_000_000) as i64 };
        let mut fds = [PollFd::from_borrowed_fd(self.socket.fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
