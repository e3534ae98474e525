//! Ethernet to TCP or UDP.

use crate::packet::{HEAD, Packet, be16 as head16, be32 as head32, ne32};
use reroute_common::flow::FlowKey;
use reroute_common::mapped_ipv4;

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Nothing we look at.
    Other,
    Tcp,
    Udp,
    /// TCP, as far as one can tell, but a fragment or cut short: its calls cannot be judged. Or fragments of a datagram.
    /// `transport` is 0 if not even its ports can be read.
    BrokenTcp,
}

/// TCP header flags.
pub mod tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// The index of no line.
pub const NOWHERE: u32 = u32::MAX;

/// By what the next frame of the same flow is known again: frames of a flow come in trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Seen {
    /// [`NOWHERE`]: nothing was seen.
    pub network: u32,
    /// The other end's IPv4 address, and both ports, as they lie in memory.
    pub remote: u32,
    pub ports: u32,
    /// Where the flow was found.
    pub line: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Frame {
    /// The flow it belongs to.
    pub key: FlowKey,
    pub seen: Seen,
    pub kind: Kind,
    pub ipv4: bool,
    pub flags: u8,
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub source_port: u16,
    pub destination_port: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    /// Not scaled: only 0 means the same to all.
    pub window: u16,
    /// Of the whole frame.
    pub len: u32,
    /// Where the IP header begins.
    pub ip: u32,
    /// Where the TCP or UDP header begins.
    pub transport: u32,
    pub payload: u32,
    /// By the IP header: padding of the frame is no payload.
    pub payload_len: u32,
}

impl Frame {
    #[inline(always)]
    pub const fn new() -> Self {
        Frame {
            key: FlowKey { remote: [0; 16], local: [0; 16], remote_port: 0, local_port: 0, network: 0 },
            seen: Seen { network: NOWHERE, remote: 0, ports: 0, line: NOWHERE },
            kind: Kind::Other,
            ipv4: false,
            flags: 0,
            source: [0; 16],
            destination: [0; 16],
            source_port: 0,
            destination_port: 0,
            sequence: 0,
            acknowledgment: 0,
            window: 0,
            len: 0,
            ip: 0,
            transport: 0,
            payload: 0,
            payload_len: 0,
        }
    }
}

impl Frame {
    /// Names the flow that a parsed frame belongs to, seen from the end that is the service's.
    #[inline(always)]
    pub fn set_key(&mut self, end: End, network: u32) {
        self.seen = Seen { network: NOWHERE, remote: 0, ports: 0, line: NOWHERE };
        let is_ours = end == End::Source;
        self.key.remote = if is_ours { self.destination } else { self.source };
        self.key.local = if is_ours { self.source } else { self.destination };
        self.key.remote_port = if is_ours { self.destination_port } else { self.source_port };
        self.key.local_port = if is_ours { self.source_port } else { self.destination_port };
        self.key.network = network;
    }
}

impl Frame {
    /// Bytes on the wire of a frame that stands for so many segments: each repeats the headers.
    #[inline(always)]
    pub fn wire_bytes(&self, segments: u32) -> u32 {
        self.len + (segments - 1) * self.payload
    }
    /// Whether it is TCP from or to (`end`) this port, or may be, for all that can be read.
    #[inline(always)]
    pub fn may_have_port(&self, end: End, wanted: u32) -> bool {
        let port = if end == End::Source { self.source_port } else { self.destination_port };
        match self.kind {
            Kind::Tcp => port as u32 == wanted,
            Kind::BrokenTcp => port as u32 == wanted || self.transport == 0,
            Kind::Udp | Kind::Other => false,
        }
    }
}

impl Default for Frame {
    fn default() -> Self {
        Frame::new()
    }
}

const ETH_LEN: u32 = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_LEN: u32 = 20;
const UDP_LEN: u32 = 8;
/// IPv6 extension headers followed.
const MAX_EXTENSIONS: usize = 8;

/// What the head of a frame tells at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Glance {
    /// Nothing of ours.
    Foreign,
    /// IPv4 and TCP, both without fragments or tags, between the service and somebody: [`fill`] reads it.
    Service,
    /// To be parsed.
    Other,
}

/// Which end of a packet is the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// What to look for in a head.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Where the service's address and port stand.
    pub end: End,
    /// Whether the service has an IPv4 address ...
    pub is_ipv4: bool,
    /// ... and which, as it lies in memory.
    pub service: u32,
    /// Ports in host order.
    pub port: u32,
    pub pulse_port: u32,
}

/// Tells the common frames apart, without a call.
#[inline(always)]
pub fn glance(head: &[u8; HEAD], wanted: Wanted) -> Glance {
    match head16::<12>(head) {
        IPV4 => {}
        0x8100 | 0x88a8 => return Glance::Other,
        // A pulse, or of a service that has such an address.
        IPV6 if head[20] == UDP || !wanted.is_ipv4 => return Glance::Other,
        _ => return Glance::Foreign,
    }
    let protocol = head[23];
    let address = if wanted.end == End::Source { ne32::<26>(head) } else { ne32::<30>(head) };
    let is_ours = wanted.is_ipv4 && address == wanted.service;
    if protocol != TCP && protocol != UDP {
        return Glance::Foreign;
    }
    // Options or a fragment.
    if head[14] != 0x45 || (head16::<20>(head) & 0x3fff) != 0 {
        return if is_ours { Glance::Other } else { Glance::Foreign };
    }
    let port = if wanted.end == End::Source { head16::<34>(head) } else { head16::<36>(head) } as u32;
    if protocol == UDP {
        let is_looked_at = port == wanted.pulse_port || (is_ours && port == wanted.port);
        return if is_looked_at { Glance::Other } else { Glance::Foreign };
    }
    if is_ours && port == wanted.port { Glance::Service } else { Glance::Foreign }
}

/// Fills `frame` from a head that is [`Glance::Service`], but for addresses and ports: those are in its key. False: [`parse`]
/// has to look.
#[inline(always)]
pub fn fill<P: Packet>(packet: &P, head: &[u8; HEAD], (end, network): (End, u32), frame: &mut Frame) -> bool {
    let ip_end = ETH_LEN + head16::<16>(head) as u32;
    let payload = 34 + ((head[46] >> 4) as u32) * 4;
    let len = packet.len_of(ip_end);
    if ip_end > len || payload < 54 || payload > ip_end {
        return false;
    }
    // One by one: a whole frame would be built on the stack first.
    frame.len = len;
    frame.kind = Kind::Tcp;
    frame.flags = head[47];
    frame.sequence = head32::<38>(head);
    frame.acknowledgment = head32::<42>(head);
    frame.window = head16::<48>(head);
    frame.payload = payload;
    frame.payload_len = ip_end - payload;
    let (source, destination) = (ne32::<26>(head), ne32::<30>(head));
    let (remote, local) = if end == End::Source { (destination, source) } else { (source, destination) };
    let ports = ne32::<34>(head);
    let seen = frame.seen;
    if (seen.network, seen.remote, seen.ports) != (network, remote, ports) {
        frame.seen = Seen { network, remote, ports, line: NOWHERE };
        let (from, to) = (head16::<34>(head), head16::<36>(head));
        frame.key.remote = mapped_ipv4(remote.to_ne_bytes());
        frame.key.local = mapped_ipv4(local.to_ne_bytes());
        frame.key.remote_port = if end == End::Source { to } else { from };
        frame.key.local_port = if end == End::Source { from } else { to };
        frame.key.network = network;
    }
    true
}

#[inline(always)]
const fn be16(hi: u8, lo: u8) -> u16 {
    u16::from_be_bytes([hi, lo])
}

/// Fills `frame`; what cannot be parsed stays [`Kind::Other`], or is [`Kind::BrokenTcp`] with its addresses set.
/// Not inlined: its stack is given back before anything else is called.
#[inline(never)]
pub fn parse<P: Packet>(packet: &P, frame: &mut Frame) {
    frame.len = packet.len();
    let Some(eth) = packet.load::<14>(0) else { return };
    let mut ethertype = be16(eth[12], eth[13]);
    let mut offset = ETH_LEN;
    for _ in 0..2 {
        if ethertype == 0x8100 || ethertype == 0x88a8 {
            let Some(tag) = packet.load::<4>(offset) else { return };
            ethertype = be16(tag[2], tag[3]);
            offset += 4;
        }
    }
    frame.ip = offset;
    match ethertype {
        IPV4 => ipv4(packet, frame),
        IPV6 => ipv6(packet, frame),
        _ => {}
    }
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, frame: &mut Frame) {
    let Some(h) = packet.load::<20>(frame.ip) else { return };
    frame.ipv4 = true;
    frame.source = mapped_ipv4([h[12], h[13], h[14], h[15]]);
    frame.destination = mapped_ipv4([h[16], h[17], h[18], h[19]]);
    let header_len = ((h[0] & 0x0f) as u32) * 4;
    let protocol = h[9];
    let fragment = be16(h[6], h[7]) & 0x3fff != 0;
    let total = be16(h[2], h[3]) as u32;
    let room = frame.len - frame.ip;
    // 0: a super-packet the kernel built itself (BIG TCP).
    let ip_len = if total == 0 { room } else { total };
    if h[0] >> 4 != 4 || header_len < 20 || fragment {
        if protocol == TCP || protocol == UDP {
            frame.kind = Kind::BrokenTcp;
        }
        return;
    }
    frame.transport = frame.ip + header_len;
    transport(packet, frame, protocol, frame.ip + ip_len);
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, frame: &mut Frame) {
    let Some(h) = packet.load::<8>(frame.ip) else { return };
    let Some(source) = packet.load::<16>(frame.ip + 8) else { return };
    let Some(destination) = packet.load::<16>(frame.ip + 24) else { return };
    frame.source = source;
    frame.destination = destination;
    let room = frame.len - frame.ip - 40;
    let length = be16(h[4], h[5]) as u32;
    let length = if length == 0 { room } else { length };
    let mut next = h[6];
    let mut offset = frame.ip + 40;
    let mut is_fragment = false;
    for _ in 0..MAX_EXTENSIONS {
        let step = match next {
            0 | 43 | 60 | 51 => {
                let Some(extension) = packet.load::<2>(offset) else { return };
                let units = extension[1] as u32;
                let step = if next == 51 { (units + 2) * 4 } else { (units + 1) * 8 };
                next = extension[0];
                step
            }
            44 => {
                let Some(extension) = packet.load::<8>(offset) else { return };
                next = extension[0];
                let place = be16(extension[2], extension[3]);
                if place & 0xfff8 != 0 {
                    // Behind more headers it may be TCP, too: that the first fragment tells, and it is nothing without.
                    if next == TCP || next == UDP {
                        frame.kind = Kind::BrokenTcp;
                    }
                    return;
                }
                is_fragment |= place & 1 != 0;
                8
            }
            _ => break,
        };
        offset += step;
    }
    // Or more of them than we follow.
    if is_extension(next) || (is_fragment && (next == TCP || next == UDP)) {
        frame.kind = Kind::BrokenTcp;
    }
    if is_extension(next) || is_fragment {
        return;
    }
    frame.transport = offset;
    transport(packet, frame, next, frame.ip + 40 + length);
}

/// Whether an IPv6 header of this number is followed by another (RFC 8200 §4, RFC 4302).
#[inline(always)]
fn is_extension(number: u8) -> bool {
    matches!(number, 0 | 43 | 44 | 51 | 60)
}

#[inline(always)]
fn transport<P: Packet>(packet: &P, frame: &mut Frame, protocol: u8, end: u32) {
    let offset = frame.transport;
    if protocol == TCP {
        frame.kind = Kind::BrokenTcp;
        let Some(ports) = packet.load::<4>(offset) else {
            frame.transport = 0;
            return;
        };
        frame.source_port = be16(ports[0], ports[1]);
        frame.destination_port = be16(ports[2], ports[3]);
        if offset + TCP_LEN > end || end > frame.len {
            return;
        }
        let Some(h) = packet.load::<20>(offset) else { return };
        let header_len = ((h[12] >> 4) as u32) * 4;
        if header_len < TCP_LEN || offset + header_len > end {
            return;
        }
        frame.sequence = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
        frame.acknowledgment = u32::from_be_bytes([h[8], h[9], h[10], h[11]]);
        frame.flags = h[13];
        frame.window = be16(h[14], h[15]);
        frame.payload = offset + header_len;
        frame.payload_len = end - frame.payload;
        frame.kind = Kind::Tcp;
    } else if protocol == UDP {
        if offset + UDP_LEN > end || end > frame.len {
            return;
        }
        let Some(h) = packet.load::<8>(offset) else { return };
        frame.source_port = be16(h[0], h[1]);
        frame.destination_port = be16(h[2], h[3]);
        frame.payload = offset + UDP_LEN;
        let length = be16(h[4], h[5]) as u32;
        // A length that lies about the datagram leaves nothing to read.
        frame.payload_len = if length < UDP_LEN || length > end - offset { 0 } else { length - UDP_LEN };
        frame.kind = Kind::Udp;
    }
}

#[cfg(test)]
mod tests;
