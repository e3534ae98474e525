//! Traffic built by code: timed frames both ways, in the order in which a capture at the SCVM's NIC holds them.

use super::nfs;
use crate::bench::PORT;
use crate::frames::{ACK, FIN, RST, SYN, ipv4};
use std::net::IpAddr;

const TCP: u8 = 6;
/// IPv4 header flag: more fragments follow.
const MORE_FRAGMENTS: u16 = 0x2000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// To the service: seen by ingress.
    In,
    /// From the service: seen by egress.
    Out,
}

#[derive(Clone)]
pub struct Frame {
    /// µs since the capture began.
    pub at: u64,
    pub way: Way,
    /// What the program is given.
    pub bytes: Vec<u8>,
    /// What goes over the wire instead, where `bytes` is a super-packet that the NIC cuts.
    pub cut: Option<Cut>,
}

#[derive(Clone)]
pub struct Cut {
    /// Payload bytes of each segment but the last.
    pub size: usize,
    pub segments: Vec<Vec<u8>>,
}

/// How two ends reach each other.
#[derive(Clone, Debug)]
pub struct Path {
    pub client: IpAddr,
    pub service: IpAddr,
    /// VLAN tags, outermost first.
    pub tags: Vec<u16>,
    /// Bytes of IPv4 options, a multiple of 4.
    pub options: usize,
    /// IPv6 extension headers, outermost first ...
    pub extensions: Vec<Extension>,
    /// ... and those that would stand behind a fragment header.
    pub inner: Vec<Extension>,
}

impl Path {
    pub fn new(client: impl Into<IpAddr>, service: impl Into<IpAddr>) -> Path {
        let (client, service) = (client.into(), service.into());
        Path { client, service, tags: vec![], options: 0, extensions: vec![], inner: vec![] }
    }

    fn ip(&self, way: Way, payload: &[u8]) -> Vec<u8> {
        match self.ends(way) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ipv4(source.octets(), destination.octets(), 6, payload, &self.tags, self.options, 0)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let all = [&self.extensions[..], &self.inner].concat();
                let (next, payload) = behind(&all, TCP, payload.to_vec());
                ipv6(source.octets(), destination.octets(), next, &payload, &self.tags)
            }
            _ => panic!("one version of IP at both ends"),
        }
    }

    fn ends(&self, way: Way) -> (IpAddr, IpAddr) {
        match way {
            Way::In => (self.client, self.service),
            Way::Out => (self.service, self.client),
        }
    }

    /// An IP payload in fragments of `size` (a multiple of 8) bytes.
    pub fn fragments(&self, way: Way, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
        let (first, payload) = behind(&self.inner, TCP, payload.to_vec());
        let count = payload.len().div_ceil(size);
        let part = |(i, part): (usize, &[u8])| {
            let (more, units) = (i + 1 < count, (i * size / 8) as u16);
            match self.ends(way) {
                (IpAddr::V4(s), IpAddr::V4(d)) => {
                    let bits = units | if more { MORE_FRAGMENTS } else { 0 };
                    ipv4(s.octets(), d.octets(), 6, part, &self.tags, self.options, bits)
                }
                (IpAddr::V6(s), IpAddr::V6(d)) => {
                    let [hi, lo] = (units << 3 | more as u16).to_be_bytes();
                    let fragment = [&[first, 0, hi, lo, 0, 0, 0, 9][..], part].concat();
                    let (next, payload) = behind(&self.extensions, Extension::FRAGMENT, fragment);
                    ipv6(s.octets(), d.octets(), next, &payload, &self.tags)
                }
                _ => panic!("one version of IP at both ends"),
            }
        };
        payload.chunks(size).enumerate().map(part).collect()
    }
}

/// An IPv6 extension header (RFC 8200 §4, RFC 4302).
#[derive(Clone, Copy, Debug)]
pub struct Extension {
    pub kind: u8,
    /// All of it: a multiple of 8, 16 or more of those with ICV, 2048 at most.
    pub len: usize,
}

impl Extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION: u8 = 60;

    fn bytes(self, next: u8) -> Vec<u8> {
        let mut bytes = vec![next, (self.len / 8 - 1) as u8];
        match self.kind {
            // Of an experimental type (RFC 3692), no segments left.
            Self::ROUTING => bytes.extend([253, 0]),
            // All in one fragment (RFC 6946).
            Self::FRAGMENT => bytes = vec![next, 0, 0, 0, 0, 0, 0, 9],
            Self::AUTHENTICATION => bytes = vec![next, (self.len / 4 - 2) as u8, 0, 0, 0, 0, 1, 0],
            // Options of an experimental type, to be skipped by those who do not know them (RFC 4727).
            _ => {
                while bytes.len() < self.len {
                    let rest = self.len - bytes.len() - 2;
                    // No room for less than an option's head may be left.
                    let len = if rest <= 255 { rest } else { rest.min(255) - 1 };
                    bytes.extend([0x1e, len as u8]);
                    bytes.extend(std::iter::repeat_n(0xee, len));
                }
            }
        }
        bytes.resize(self.len, 0xee);
        bytes
    }
}

/// What stands behind extension headers, with these before it. Gives the type of the first, too.
fn behind(extensions: &[Extension], next: u8, payload: Vec<u8>) -> (u8, Vec<u8>) {
    let before = |(next, rest): (u8, Vec<u8>), e: &Extension| (e.kind, [e.bytes(next), rest].concat());
    extensions.iter().rev().fold((next, payload), before)
}

pub fn ipv6(source: [u8; 16], destination: [u8; 16], next: u8, payload: &[u8], tags: &[u16]) -> Vec<u8> {
    // As ipv4 lays it, up to the IP header.
    let ethernet = ipv4([0; 4], [0; 4], 0, &[], tags, 0, 0);
    let mut frame = ethernet[..12 + 4 * tags.len()].to_vec();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next, 64]);
    frame.extend(source);
    frame.extend(destination);
    frame.extend(payload);
    frame
}

/// Both ends of a TCP connection.
#[derive(Clone, Debug)]
pub struct Conn {
    pub path: Path,
    pub port: u16,
    /// Next sequence number of each end.
    pub client_seq: u32,
    pub server_seq: u32,
    /// Up to where each end has the other's bytes.
    pub server_has: u32,
    pub client_has: u32,
    pub xid: u32,
    /// Calls sent and not answered: XID and procedure.
    pub waiting: Vec<(u32, u32)>,
}

impl Conn {
    pub fn new(path: &Path, port: u16, client_isn: u32, server_isn: u32) -> Conn {
        Conn {
            path: path.clone(),
            port,
            client_seq: client_isn,
            server_seq: server_isn,
            server_has: 0,
            client_has: 0,
            xid: (port as u32) << 16,
            waiting: vec![],
        }
    }

    pub fn tcp(&self, way: Way, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let (source, destination, ack) = match way {
            Way::In => (self.port, PORT, self.client_has),
            Way::Out => (PORT, self.port, self.server_has),
        };
        let mut tcp = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        tcp.extend(seq.to_be_bytes());
        tcp.extend(if flags & ACK == 0 { [0; 4] } else { ack.to_be_bytes() });
        tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(payload);
        tcp
    }
    /// A frame of this connection, wherever it stands.
    pub fn frame(&self, way: Way, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        self.path.ip(way, &self.tcp(way, seq, flags, payload))
    }

    /// The next call of a procedure, waiting from now on.
    pub fn call(&mut self, procedure: u32, data: usize) -> Vec<u8> {
        self.xid += 1;
        self.waiting.push((self.xid, procedure));
        nfs::call(self.xid, procedure, data)
    }
    /// A reply to the call that waits at this place.
    pub fn reply(&mut self, place: usize, data: usize) -> Vec<u8> {
        let (xid, procedure) = self.waiting.remove(place);
        nfs::reply(xid, procedure, data)
    }
}

#[derive(Default, Clone)]
pub struct Traffic {
    pub frames: Vec<Frame>,
}

impl Traffic {
    pub fn push(&mut self, way: Way, bytes: Vec<u8>) {
        let at = self.frames.len() as u64 * 37;
        self.frames.push(Frame { at, way, bytes, cut: None });
    }

    /// SYN, SYN+ACK, ACK.
    pub fn open(&mut self, path: &Path, port: u16, isn: u32) -> Conn {
        let mut c = Conn::new(path, port, isn, isn.wrapping_mul(0x9e37_79b9));
        self.push(Way::In, c.frame(Way::In, c.client_seq, SYN, &[]));
        c.client_seq = c.client_seq.wrapping_add(1);
        c.server_has = c.client_seq;
        self.push(Way::Out, c.frame(Way::Out, c.server_seq, SYN | ACK, &[]));
        c.server_seq = c.server_seq.wrapping_add(1);
        c.client_has = c.server_seq;
        self.push(Way::In, c.frame(Way::In, c.client_seq, ACK, &[]));
        c
    }

    /// The next bytes of one end, in one segment that arrives.
    pub fn send(&mut self, c: &mut Conn, way: Way, payload: &[u8]) {
        let bytes = Self::next(c, way, ACK, payload);
        self.push(way, bytes);
        c.server_has = c.client_seq;
        c.client_has = c.server_seq;
    }

    /// The next bytes of one end, on no wire yet; what the other end has stays as it is.
    pub fn next(c: &mut Conn, way: Way, flags: u8, payload: &[u8]) -> Vec<u8> {
        let seq = match way {
            Way::In => &mut c.client_seq,
            Way::Out => &mut c.server_seq,
        };
        let at = *seq;
        *seq = at.wrapping_add(payload.len() as u32).wrapping_add((flags & FIN != 0) as u32);
        c.frame(way, at, flags, payload)
    }

    /// The same, as a super-packet of segments of `size` bytes.
    pub fn send_super(&mut self, c: &mut Conn, payload: &[u8], size: usize) {
        let first = c.server_seq;
        let segments = payload.chunks(size).enumerate();
        let segments = segments
            .map(|(i, part)| c.frame(Way::Out, first.wrapping_add((i * size) as u32), ACK, part))
            .collect();
        self.send(c, Way::Out, payload);
        if let Some(frame) = self.frames.last_mut() {
            frame.cut = Some(Cut { size, segments });
        }
    }

    /// An end says that it has everything.
    pub fn acknowledge(&mut self, c: &mut Conn, way: Way) {
        self.send(c, way, &[]);
    }

    /// FIN and ACK both ways, the client first.
    pub fn close(&mut self, c: &mut Conn) {
        for way in [Way::In, Way::Out] {
            let fin = Self::next(c, way, FIN | ACK, &[]);
            self.push(way, fin);
            c.server_has = c.client_seq;
            c.client_has = c.server_seq;
        }
        self.acknowledge(c, Way::In);
    }

    pub fn reset(&mut self, c: &Conn, way: Way) {
        let seq = if way == Way::In { c.client_seq } else { c.server_seq };
        self.push(way, c.frame(way, seq, RST | ACK, &[]));
    }

    /// Calls of all classes on all connections, cut anyhow, answered in any order; every call is answered in the end.
    pub fn work(&mut self, connections: &mut [Conn], rng: &mut Rng, calls: usize, mss: usize) {
        for _ in 0..calls {
            let c = &mut connections[rng.below(connections.len())];
            let mut records = vec![];
            for _ in 0..1 + rng.below(3) {
                let procedure = nfs::PROCEDURES[rng.below(nfs::PROCEDURES.len())];
                let data = if rng.below(8) == 0 { 4 * rng.below(2500) } else { 4 * rng.below(40) };
                records.extend(c.call(procedure, data));
            }
            self.cut(c, Way::In, &records, rng, mss);
            while c.waiting.len() > 8 || (!c.waiting.is_empty() && rng.below(3) > 0) {
                self.answer(c, rng, mss);
            }
        }
        for c in connections {
            while !c.waiting.is_empty() {
                self.answer(c, rng, mss);
            }
            self.acknowledge(c, Way::In);
        }
    }

    fn answer(&mut self, c: &mut Conn, rng: &mut Rng, mss: usize) {
        let place = rng.below(c.waiting.len());
        let data = if rng.below(8) == 0 { 4 * rng.below(2500) } else { 4 * rng.below(40) };
        let record = c.reply(place, data);
        self.cut(c, Way::Out, &record, rng, mss);
    }

    /// Sends records in segments of at most `mss` bytes, now full ones, now shorter. The first bytes of a fragment stay
    /// together: tshark does not see a record whose mark or header is cut.
    pub fn cut(&mut self, c: &mut Conn, way: Way, bytes: &[u8], rng: &mut Rng, mss: usize) {
        let starts = fragment_starts(bytes);
        let mut from = 0;
        while from < bytes.len() {
            let most = mss.min(bytes.len() - from);
            let len = if rng.below(2) == 0 { most } else { 1 + rng.below(most) };
            let mut to = from + len;
            if let Some(start) = starts.iter().rev().find(|s| **s < to)
                && to - start < HEADER
            {
                let whole = (start + HEADER).min(bytes.len());
                to = if whole - from <= mss || *start <= from { whole } else { *start };
            }
            self.send(c, way, &bytes[from..to]);
            from = to;
            if rng.below(4) == 0 {
                let back = if way == Way::In { Way::Out } else { Way::In };
                self.acknowledge(c, back);
            }
        }
    }

    /// The same, cut at any byte.
    pub fn cut_anywhere(&mut self, c: &mut Conn, way: Way, bytes: &[u8], rng: &mut Rng, mss: usize) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(1 + rng.below(mss.min(rest.len())));
            self.send(c, way, now);
            rest = later;
        }
    }
}

/// A record mark and what tells a call or a reply.
const HEADER: usize = 44;

/// Where the fragments of some records begin.
fn fragment_starts(bytes: &[u8]) -> Vec<usize> {
    let (mut starts, mut at) = (vec![], 0);
    while let Some(mark) = bytes.get(at..at + 4) {
        starts.push(at);
        at += 4 + (u32::from_be_bytes([mark[0], mark[1], mark[2], mark[3]]) & 0x7fff_ffff) as usize;
    }
    starts
}

/// Numbers drawn from a seed (splitmix64): the same ones in each run.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// 0 to `n` - 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}
