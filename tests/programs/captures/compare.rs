//! The same frames given to the programs and to tshark, and the two counts held against each other.

use super::reference::{Connection, Step};
use super::traffic::{Frame, Way};
use super::tshark::{self, Capture, Message, Row};
use crate::bench::*;
use crate::frames::NFS;
use reroute_agent::config::AdmissionMode;
use reroute_agent::sensor::Registration;
use reroute_common::class;
use reroute_common::table::Client;
use reroute_core::ids::{HostId, Network};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Hosts registered, by their storage addresses: host `n` is [`address`]`(n)` and [`address6`]`(n)`.
pub const HOSTS: u32 = 16;

/// The address under which a sensor knows the service: it has one.
#[derive(Clone, Copy)]
pub struct Service(pub IpAddr);

pub const V4: Service = Service(IpAddr::V4(Ipv4Addr::from_octets(SERVICE)));
pub const V6: Service = Service(IpAddr::V6(SERVICE6));
pub const SERVICE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x33, 0, 0, 0, 0, 0, 2);

/// As the lab numbers its hosts.
pub fn address(host: u32) -> [u8; 4] {
    [10, 10, 85, 10 + host as u8]
}

pub fn address6(host: u32) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x85, 0, 0, 0, 0, 0, 0x10 + host as u16)
}

fn addresses(host: u32) -> [IpAddr; 2] {
    [address(host).into(), address6(host).into()]
}

fn host_of(address: IpAddr) -> u32 {
    (1..=HOSTS).find(|h| addresses(*h).contains(&address)).unwrap_or(0)
}

/// Counts, drops nothing.
fn bench(service: Service) -> Bench {
    Bench::with(|settings| {
        settings.mode = AdmissionMode::Shadow;
        settings.service = SocketAddr::new(service.0, PORT);
        settings.clients = (1..=HOSTS)
            .map(|host| Registration {
                host: HostId(host),
                addresses: addresses(host).map(|a| (Network::Storage, a)).into(),
                pulse_key: KEY,
                has_agent: false,
            })
            .collect();
    })
}

/// Whose records of calls and replies are believed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// tshark's, and those of the reference: they must be the same.
    Both,
    /// The reference's: tshark goes by what TCP analysis suspects, and loses or repeats records.
    Reference,
}

/// What is counted of a client: see the module.
#[derive(Default, Clone, PartialEq, Eq)]
pub struct Totals {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub opened: u64,
    pub closed: u64,
    pub reset: u64,
    pub rx_retransmitted: u64,
    pub tx_retransmitted: u64,
    pub calls: [u64; class::COUNT],
    pub replies: [u64; class::COUNT],
    pub dropped: u64,
}

impl Totals {
    fn of(client: &Client) -> Totals {
        Totals {
            rx_packets: client.rx_packets,
            rx_bytes: client.rx_bytes,
            tx_packets: client.tx_packets,
            tx_bytes: client.tx_bytes,
            opened: client.opened,
            closed: client.closed,
            reset: client.reset,
            rx_retransmitted: client.rx_retransmitted,
            tx_retransmitted: client.tx_retransmitted,
            calls: client.calls,
            replies: client.replies,
            dropped: client.drops.iter().sum(),
        }
    }

    fn named(&self) -> Vec<(String, u64)> {
        let classes = ["null", "read", "write", "metadata"];
        let mut all: Vec<(String, u64)> = [
            ("rx_packets", self.rx_packets),
            ("rx_bytes", self.rx_bytes),
            ("tx_packets", self.tx_packets),
            ("tx_bytes", self.tx_bytes),
            ("opened", self.opened),
            ("closed", self.closed),
            ("reset", self.reset),
            ("rx_retransmitted", self.rx_retransmitted),
            ("tx_retransmitted", self.tx_retransmitted),
            ("dropped", self.dropped),
        ]
        .map(|(name, n)| (name.into(), n))
        .into();
        for (i, name) in classes.iter().enumerate() {
            all.push((format!("calls.{name}"), self.calls[i]));
            all.push((format!("replies.{name}"), self.replies[i]));
        }
        all
    }
}

/// What a capture holds: counts by host (0: addresses of nobody), and frames that came in and count nowhere.
#[derive(Default, Clone, PartialEq, Eq)]
pub struct Counts {
    pub hosts: BTreeMap<u32, Totals>,
    pub foreign: u64,
}

impl Counts {
    pub fn sum(&self, what: impl Fn(&Totals) -> u64) -> u64 {
        self.hosts.values().map(what).sum()
    }
}

const CLASSES: [usize; 4] = [0, 1, 2, 3];

fn class_of(program: u32, version: u32, procedure: u32) -> usize {
    let [null, read, write, metadata] = CLASSES;
    match (program, version, procedure) {
        (_, _, 0) => null,
        (NFS, 3, 6) => read,
        (NFS, 3, 7 | 21) => write,
        _ => metadata,
    }
}

impl Service {
    /// Gives all frames to the programs, each to the side it passes: none is dropped. Gives the counts by host.
    pub fn replay(self, frames: &[Frame]) -> BTreeMap<u32, Totals> {
        let bench = bench(self);
        for (i, frame) in frames.iter().enumerate() {
            match (frame.way, &frame.cut) {
                (Way::In, _) => {
                    assert_eq!(bench.rx(&frame.bytes), XDP_PASS, "frame {i}: {:02x?}", frame.bytes)
                }
                (Way::Out, None) => {
                    assert_eq!(bench.tx(&frame.bytes), TC_NEXT, "frame {i}: {:02x?}", frame.bytes)
                }
                (Way::Out, Some(cut)) => {
                    assert_eq!(
                        bench.tx_super(&frame.bytes, cut.segments.len(), cut.size),
                        TC_NEXT,
                        "frame {i}"
                    )
                }
            }
        }
        let clients = bench.sensor.clients().unwrap();
        clients.iter().map(|c| (c.host, Totals::of(c))).collect()
    }

    /// What tshark and the reference make of a capture of these frames.
    pub fn expected(self, frames: &[Frame], records: Records) -> Counts {
        let capture = Capture::write(frames);
        let rows = tshark::dissect(&capture.file);
        let ways: Vec<Way> = frames
            .iter()
            .flat_map(|f| std::iter::repeat_n(f.way, f.cut.as_ref().map_or(1, |c| c.segments.len())))
            .collect();
        assert_eq!(rows.len(), ways.len(), "tshark reads every frame");
        let mut counts = Counts { hosts: (0..=HOSTS).map(|h| (h, Totals::default())).collect(), foreign: 0 };
        let mut connections: HashMap<u32, Connection> = HashMap::new();
        let mut waiting: HashMap<(u32, u32), usize> = HashMap::new();
        let (mut by_tshark, mut by_reference) = (vec![], vec![]);
        for (i, (row, way)) in rows.iter().zip(ways).enumerate() {
            if !self.is_ours(row, way) {
                counts.foreign += (way == Way::In) as u64;
                continue;
            }
            let (client, packets, bytes) = match way {
                Way::In => (row.source, 1, row.len),
                Way::Out => (row.destination, 1, row.len),
            };
            let totals = counts.hosts.entry(client.map_or(0, host_of)).or_default();
            match way {
                Way::In => {
                    (totals.rx_packets, totals.rx_bytes) =
                        (totals.rx_packets + packets, totals.rx_bytes + bytes)
                }
                Way::Out => {
                    (totals.tx_packets, totals.tx_bytes) =
                        (totals.tx_packets + packets, totals.tx_bytes + bytes)
                }
            }
            let Some(tcp) = row.tcp.as_ref().filter(|_| !row.is_fragment) else { continue };
            let step = connections.entry(tcp.stream).or_default().segment(way, tcp);
            let Step { opened, closed, reset, retransmitted, messages } = step;
            totals.opened += opened as u64;
            totals.closed += closed as u64;
            totals.reset += reset as u64;
            match way {
                Way::In => totals.rx_retransmitted += retransmitted as u64,
                Way::Out => totals.tx_retransmitted += retransmitted as u64,
            }
            by_tshark.extend(row.messages.iter().map(|m| (tcp.stream, m.clone(), i)));
            for message in &messages {
                match *message {
                    Message::Call { xid, program, version, procedure } => {
                        let class = class_of(program, version, procedure);
                        if let std::collections::hash_map::Entry::Vacant(free) =
                            waiting.entry((tcp.stream, xid))
                        {
                            free.insert(class);
                            totals.calls[class] += 1;
                        }
                    }
                    Message::Reply { xid } => {
                        if let Some(class) = waiting.remove(&(tcp.stream, xid)) {
                            totals.replies[class] += 1;
                        }
                    }
                }
            }
            by_reference.extend(messages.into_iter().map(|m| (tcp.stream, m, i)));
        }
        if records == Records::Both {
            let key = |(stream, message, _): &(u32, Message, usize)| (*stream, message.clone());
            let (t, r): (Vec<_>, Vec<_>) =
                (by_tshark.iter().map(key).collect(), by_reference.iter().map(key).collect());
            let count = |all: &[(u32, Message)], m: &(u32, Message)| all.iter().filter(|o| *o == m).count();
            for (stream, message, frame) in by_tshark.iter().chain(&by_reference) {
                let m = (*stream, message.clone());
                assert_eq!(
                    (count(&t, &m), count(&r, &m)),
                    (1, 1),
                    "{m:?} at frame {}: times seen by tshark and by the reference",
                    frame + 1
                );
            }
        }
        counts
    }

    /// Whether the service's port, or whatever part of TCP that cannot be told from it, is meant.
    fn is_ours(self, row: &Row, way: Way) -> bool {
        let end = match way {
            Way::In => row.destination,
            Way::Out => row.source,
        };
        let port = row.tcp.as_ref().map(|tcp| match way {
            Way::In => tcp.destination_port,
            Way::Out => tcp.source_port,
        });
        row.is_tcp && end == Some(self.0) && (row.is_fragment || port.is_none_or(|p| p == PORT))
    }

    /// Both counts are the same to the unit. Gives them.
    pub fn check(self, frames: &[Frame], records: Records) -> Counts {
        let expected = self.expected(frames, records);
        let got = self.replay(frames);
        let mut wrong = vec![];
        for (host, totals) in &expected.hosts {
            let seen = got.get(host).cloned().unwrap_or_default();
            for ((name, e), (_, g)) in totals.named().into_iter().zip(seen.named()) {
                if e != g {
                    wrong.push(format!("host {host} {name}: {e} by the capture, {g} by the programs"));
                }
            }
        }
        assert!(wrong.is_empty(), "{} frames:\n{}", frames.len(), wrong.join("\n"));
        expected
    }
}
