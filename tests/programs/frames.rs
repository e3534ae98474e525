//! Frames and records, built byte by byte.

use super::bench::{PORT, SERVICE, STORAGE_ADDRESS};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

#[derive(Clone)]
pub struct Tcp {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub source_port: u16,
    pub destination_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub payload: Vec<u8>,
    /// VLAN tags, outermost first.
    pub tags: Vec<u16>,
    pub ip_options: usize,
    /// Flags and offset of the IPv4 header.
    pub fragment: u16,
}

impl Tcp {
    pub fn frame(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.source_port.to_be_bytes());
        tcp.extend(self.destination_port.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(&self.payload);
        ipv4(self.source, self.destination, 6, &tcp, &self.tags, self.ip_options, self.fragment)
    }
}

pub fn ipv4(
    source: [u8; 4],
    destination: [u8; 4],
    protocol: u8,
    payload: &[u8],
    tags: &[u16],
    options: usize,
    fragment: u16,
) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for (i, tag) in tags.iter().enumerate() {
        let ethertype: u16 = if i + 1 < tags.len() { 0x88a8 } else { 0x8100 };
        frame.extend(ethertype.to_be_bytes());
        frame.extend(tag.to_be_bytes());
    }
    frame.extend([8, 0]);
    let header_len = 20 + options;
    frame.push(0x40 | (header_len / 4) as u8);
    frame.push(0);
    frame.extend(((header_len + payload.len()) as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, protocol, 0, 0]);
    frame.extend(source);
    frame.extend(destination);
    frame.extend(std::iter::repeat_n(1, options));
    frame.extend(payload);
    frame
}

pub fn udp(source: [u8; 4], destination: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(40_000_u16.to_be_bytes());
    udp.extend(port.to_be_bytes());
    udp.extend(((8 + payload.len()) as u16).to_be_bytes());
    udp.extend([0xab, 0xcd]);
    udp.extend(payload);
    ipv4(source, destination, 17, &udp, &[], 0, 0)
}

pub const NFS: u32 = 100_003;
pub const GETATTR: u32 = 1;
pub const READ: u32 = 6;
pub const WRITE: u32 = 7;

/// A whole call record of one fragment.
pub fn call(xid: u32, procedure: u32, body: usize) -> Vec<u8> {
    record(&call_body(xid, procedure, body))
}

pub fn call_body(xid: u32, procedure: u32, body: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [xid, 0, 2, NFS, 3, procedure, 0, 0, 0, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(std::iter::repeat_n(0x5a, body));
    bytes
}

pub fn reply(xid: u32, body: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [xid, 1, 0, 0, 0, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(std::iter::repeat_n(0xa5, body));
    record(&bytes)
}

pub fn record(body: &[u8]) -> Vec<u8> {
    fragment(body, true)
}

pub fn fragment(body: &[u8], last: bool) -> Vec<u8> {
    let mark = body.len() as u32 | (last as u32) << 31;
    [&mark.to_be_bytes()[..], body].concat()
}

/// One TCP connection, both ends.
#[derive(Clone)]
pub struct Connection {
    pub client: [u8; 4],
    pub port: u16,
    pub client_seq: u32,
    pub server_seq: u32,
    /// What the server acknowledges.
    pub acked: u32,
}

impl Connection {
    pub fn new(port: u16) -> Connection {
        // Close to the end of the sequence space: it wraps early.
        Connection {
            client: STORAGE_ADDRESS,
            port,
            client_seq: 0xffff_ff80,
            server_seq: 0xffff_fff0,
            acked: 0xffff_ff81,
        }
    }

    pub fn up(&self, seq: u32, flags: u8, payload: &[u8]) -> Tcp {
        Tcp {
            source: self.client,
            destination: SERVICE,
            source_port: self.port,
            destination_port: PORT,
            seq,
            ack: self.server_seq,
            flags,
            payload: payload.to_vec(),
            tags: vec![],
            ip_options: 0,
            fragment: 0,
        }
    }
    pub fn down(&self, seq: u32, flags: u8, payload: &[u8]) -> Tcp {
        Tcp {
            source: SERVICE,
            destination: self.client,
            source_port: PORT,
            destination_port: self.port,
            ack: self.acked,
            ..self.up(seq, flags, payload)
        }
    }

    /// The next bytes from the client.
    pub fn send(&mut self, payload: &[u8]) -> Vec<u8> {
        let frame = self.up(self.client_seq, ACK, payload).frame();
        self.client_seq = self.client_seq.wrapping_add(payload.len() as u32);
        frame
    }
    /// The next bytes from the server.
    pub fn answer(&mut self, payload: &[u8]) -> Vec<u8> {
        let frame = self.down(self.server_seq, ACK, payload).frame();
        self.server_seq = self.server_seq.wrapping_add(payload.len() as u32);
        frame
    }

    /// The server acknowledges all that was sent.
    pub fn acknowledge(&mut self) -> Vec<u8> {
        self.acked = self.client_seq;
        self.down(self.server_seq, ACK, &[]).frame()
    }

    /// SYN, SYN+ACK, ACK, through the programs.
    pub fn open(port: u16, bench: &super::bench::Bench) -> Connection {
        let mut c = Connection::new(port);
        bench.rx(&c.up(c.client_seq, SYN, &[]).frame());
        bench.tx(&c.down(c.server_seq, SYN | ACK, &[]).frame());
        c.client_seq = c.client_seq.wrapping_add(1);
        c.server_seq = c.server_seq.wrapping_add(1);
        bench.rx(&c.up(c.client_seq, ACK, &[]).frame());
        c
    }
}
