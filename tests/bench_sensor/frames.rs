//! Frames and records, built byte by byte.

use reroute_common::pulse::{self, LEN, Pulse, direction_key, flags, kind};
use reroute_common::siphash;

pub const SERVICE: [u8; 4] = [192, 168, 33, 2];
pub const PORT: u16 = 2049;
pub const CLIENT: [u8; 4] = [10, 10, 85, 11];
/// The server's own address on the storage network.
pub const LOCAL: [u8; 4] = [10, 10, 85, 1];

pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// Payload of a full segment.
pub const SEGMENT: u32 = 1448;

fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend(((20 + payload.len()) as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(source);
    frame.extend(destination);
    frame.extend(payload);
    frame
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

fn tcp_header(ports: Vec<u8>, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut tcp = ports;
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(payload);
    tcp
}

pub fn udp(source: [u8; 4], destination: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let mut udp = ports(40_000, port);
    udp.extend(((8 + payload.len()) as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    ipv4(source, destination, 17, &udp)
}

/// A full segment of a TCP connection that is none of the service's.
pub fn foreign_tcp(source: [u8; 4], destination: [u8; 4], port: (u16, u16)) -> Vec<u8> {
    let body = vec![0x5a; SEGMENT as usize];
    ipv4(source, destination, 6, &tcp_header(ports(port.0, port.1), 1, 1, ACK, &body))
}

/// The same over IPv6.
pub fn foreign_ipv6() -> Vec<u8> {
    let tcp = tcp_header(ports(45_000, 22), 1, 1, ACK, &vec![0x5a; SEGMENT as usize]);
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend((tcp.len() as u16).to_be_bytes());
    frame.extend([6, 64]);
    frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11]);
    frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend(tcp);
    frame
}

pub fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1]);
    frame.extend(CLIENT);
    frame.extend([0; 6]);
    frame.extend(LOCAL);
    frame.resize(60, 0);
    frame
}

pub const READ: u32 = 6;
pub const WRITE: u32 = 7;
/// Bytes of a call before its arguments, and of a reply before its results, behind the record mark.
pub const CALL_HEAD: u32 = 40;
pub const REPLY_HEAD: u32 = 24;

/// The start of a call that goes on for `body` bytes.
pub fn call_head(xid: u32, procedure: u32, body: u32) -> Vec<u8> {
    let mark = 0x8000_0000 | (CALL_HEAD + body);
    let words = [mark, xid, 0, 2, 100_003, 3, procedure, 0, 0, 0, 0];
    words.map(u32::to_be_bytes).concat()
}

/// The start of a reply that goes on for `body` bytes.
pub fn reply_head(xid: u32, body: u32) -> Vec<u8> {
    [0x8000_0000 | (REPLY_HEAD + body), xid, 1, 0, 0, 0, 0].map(u32::to_be_bytes).concat()
}

/// One TCP connection, both ends: what was sent so far.
#[derive(Clone)]
pub struct Connection {
    pub port: u16,
    pub client_seq: u32,
    pub server_seq: u32,
}

impl Connection {
    pub fn new(port: u16) -> Connection {
        Connection { port, client_seq: 1_000_000, server_seq: 2_000_000 }
    }

    /// A segment from the client that begins at `seq`.
    pub fn up(&self, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let tcp = tcp_header(ports(self.port, PORT), seq, self.server_seq, flags, payload);
        ipv4(CLIENT, SERVICE, 6, &tcp)
    }
    /// A segment from the server that begins at `seq`.
    pub fn down(&self, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let tcp = tcp_header(ports(PORT, self.port), seq, self.client_seq, flags, payload);
        ipv4(SERVICE, CLIENT, 6, &tcp)
    }

    /// The next bytes from the client.
    pub fn send(&mut self, payload: &[u8]) -> Vec<u8> {
        let frame = self.up(self.client_seq, ACK, payload);
        self.client_seq = self.client_seq.wrapping_add(payload.len() as u32);
        frame
    }
    /// The next bytes from the server.
    pub fn answer(&mut self, payload: &[u8]) -> Vec<u8> {
        let frame = self.down(self.server_seq, ACK, payload);
        self.server_seq = self.server_seq.wrapping_add(payload.len() as u32);
        frame
    }
}

/// A host's affirmation, not sealed yet.
pub fn pulse(host: u32, scvm: u32, boot: u64, epoch: u64) -> Pulse {
    Pulse {
        magic: pulse::MAGIC,
        version: pulse::VERSION,
        kind: kind::REQUEST,
        flags: flags::AFFIRM,
        host,
        scvm,
        host_incarnation: 5,
        seq: 0,
        host_time: 0,
        epoch,
        scvm_boot: boot,
        scvm_stamp: 0,
        server_incarnation: 0,
        word: 0,
        lease_ns: 0,
        server_state: 0,
        calls_waiting: 0,
        data_reply_age_ns: 0,
        oldest_call_age_ns: 0,
        stalled_flows: 0,
        in_progress: 0,
        orphans: 0,
        network: 0,
        agent_age_ns: 0,
        mac: 0,
    }
}

/// A pulse's words, its MAC included.
pub fn sealed(pulse: &Pulse, key: [u64; 2]) -> [u64; LEN / 8] {
    let mut words = words(pulse);
    let mut covered = [0; LEN / 8 - 1];
    covered.copy_from_slice(&words[..LEN / 8 - 1]);
    words[LEN / 8 - 1] = siphash::hash(direction_key(key, pulse.kind), &covered);
    words
}

#[allow(unsafe_code)]
fn words(pulse: &Pulse) -> [u64; LEN / 8] {
    // SAFETY: a pulse is LEN bytes of integers.
    unsafe { std::mem::transmute_copy(pulse) }
}

pub fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}
