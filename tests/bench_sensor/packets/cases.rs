//! The kinds of packets.

use super::Case;
use crate::frames::*;
use crate::programs::{BOOT, Bench, HOST, Hook, KEY, SCVM, XDP_TX};
use reroute_common::measure::{HEADERS, PAD, Plan, moves};
use reroute_common::pulse;
use reroute_common::table::Client;

/// Calls in a row: fewer than a connection's line holds.
const CALLS: u32 = 48;
/// Connections in a row: so few of 16,384 lines that no set of lines fills up.
const CONNECTIONS: u32 = 1024;
/// Arguments of a small call: a file handle and a few numbers.
const ARGUMENTS: u32 = 64;

const STILL: Plan = Plan {
    moves: moves::NOTHING,
    sequence: 0,
    acknowledgment: 0,
    port: 0,
    since: 0,
    key: [0; 2],
    frame: [0; (PAD + HEADERS + pulse::LEN) / 8],
};

/// Name, whether in enforce mode, and the case.
pub fn all() -> Vec<(&'static str, bool, Box<dyn Case>)> {
    let flow = Flow::opened_at;
    vec![
        ("data", false, Box::new(Data(flow(700)))),
        ("data_enforce", true, Box::new(Data(flow(700)))),
        ("data_in_short_rows", false, Box::new(ShortData(flow(701)))),
        ("call", false, Box::new(Call(flow(702)))),
        ("call_enforce", true, Box::new(Call(flow(702)))),
        ("ack", false, Box::new(Ack(flow(703)))),
        ("ack_enforce", true, Box::new(Ack(flow(703)))),
        (
            "foreign_address",
            false,
            foreign(foreign_tcp(CLIENT, LOCAL, (45_000, 22)), "TCP to another address"),
        ),
        ("foreign_port", false, foreign(foreign_tcp(CLIENT, SERVICE, (45_000, 111)), "TCP to another port")),
        ("foreign_udp", false, foreign(udp(CLIENT, SERVICE, 53, &[0; 64]), "UDP to the service address")),
        ("foreign_ipv6", false, foreign(foreign_ipv6(), "TCP over IPv6")),
        ("foreign_arp", false, foreign(arp(), "ARP")),
        ("pulse", true, Box::new(Pulse)),
        ("reply", false, Box::new(Reply(flow(704)))),
        ("egress_data", false, Box::new(EgressData(flow(705)))),
        (
            "egress_foreign",
            false,
            Box::new(Foreign {
                hook: Hook::Egress,
                frame: foreign_tcp(LOCAL, CLIENT, (22, 45_000)),
                what: "TCP from another address",
            }),
        ),
        ("syn", true, Box::new(Syn { first: FIRST_PORT, ends: true })),
        // Last: it leaves no room.
        ("syn_table_full", true, Box::new(Syn { first: FIRST_PORT, ends: false })),
    ]
}

/// A connection and the XID it has come to. Opened when it is first used.
struct Flow {
    c: Connection,
    xid: u32,
    open: bool,
}

impl Flow {
    fn opened_at(port: u16) -> Flow {
        Flow { c: Connection::new(port), xid: 1, open: false }
    }

    /// The handshake, once per case.
    fn open(&mut self, bench: &mut Bench) -> anyhow::Result<()> {
        if self.open {
            return Ok(());
        }
        self.open = true;
        // A case of its own begins a connection of its own.
        self.c.client_seq = self.c.client_seq.wrapping_add(reroute_agent::clock::now().0 as u32);
        bench.pass(Hook::Ingress, &self.c.up(self.c.client_seq, SYN, &[]))?;
        self.c.client_seq = self.c.client_seq.wrapping_add(1);
        bench.pass(Hook::Egress, &self.c.down(self.c.server_seq, SYN | ACK, &[]))?;
        self.c.server_seq = self.c.server_seq.wrapping_add(1);
        bench.pass(Hook::Ingress, &self.c.up(self.c.client_seq, ACK, &[]))
    }

    fn send(&mut self, bench: &mut Bench, payload: &[u8]) -> anyhow::Result<()> {
        let frame = self.c.send(payload);
        bench.pass(Hook::Ingress, &frame)
    }
    fn answer(&mut self, bench: &mut Bench, payload: &[u8]) -> anyhow::Result<()> {
        let frame = self.c.answer(payload);
        bench.pass(Hook::Egress, &frame)
    }

    /// The client says that it has everything.
    fn acknowledge(&mut self, bench: &mut Bench) -> anyhow::Result<()> {
        let frame = self.c.up(self.c.client_seq, ACK, &[]);
        bench.pass(Hook::Ingress, &frame)
    }

    /// `rows` full segments in the middle of one WRITE, then its last byte and its reply.
    fn begin_data(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<(Plan, Vec<u8>)> {
        self.open(bench)?;
        self.send(bench, &call_head(self.xid, WRITE, rows * SEGMENT + 1))?;
        let before = self.c.client_seq.wrapping_sub(SEGMENT);
        Ok((
            Plan { moves: moves::SEGMENT, sequence: SEGMENT, ..STILL },
            self.c.up(before, ACK, &[0x5a; SEGMENT as usize]),
        ))
    }
    fn end_data(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<()> {
        self.c.client_seq = self.c.client_seq.wrapping_add(rows * SEGMENT);
        self.send(bench, &[0x5a])?;
        self.answer(bench, &reply_head(self.xid, 0))?;
        self.acknowledge(bench)?;
        self.xid += 1;
        Ok(())
    }
}

/// All packets that came in; what a batch needs besides is counted by each case.
fn came_in(client: &Client) -> u64 {
    client.rx_packets
}

struct Data(Flow);
impl Case for Data {
    fn begin(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<(Plan, Vec<u8>)> {
        self.0.begin_data(bench, rows)
    }
    fn end(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<()> {
        self.0.end_data(bench, rows)
    }
    fn seen(&self, client: &Client) -> u64 {
        came_in(client)
    }
    fn wanted(&self, packets: u64, batches: u64) -> u64 {
        // SYN and ACK; before and after each batch its head, its last byte, an ACK.
        packets + 2 + 3 * batches
    }
    fn what(&self) -> &'static str {
        "1448 bytes in the middle of a WRITE of 7 MB"
    }
}

/// Whether short rows tell the same: their way of being measured, on packets that can be measured either way.
struct ShortData(Flow);
impl Case for ShortData {
    fn batch(&self) -> u32 {
        CALLS
    }
    fn begin(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<(Plan, Vec<u8>)> {
        self.0.begin_data(bench, rows)
    }
    fn end(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<()> {
        self.0.end_data(bench, rows)
    }
    fn seen(&self, client: &Client) -> u64 {
        came_in(client)
    }
    fn wanted(&self, packets: u64, batches: u64) -> u64 {
        packets + 2 + 3 * batches
    }
    fn what(&self) -> &'static str {
        "the same in rows of 48, as `call` and `reply` are measured"
    }
}

struct Call(Flow);
impl Case for Call {
    fn batch(&self) -> u32 {
        CALLS
    }
    fn begin(&mut self, bench: &mut Bench, _rows: u32) -> anyhow::Result<(Plan, Vec<u8>)> {
        let flow = &mut self.0;
        flow.open(bench)?;
        let call = small_call(flow.xid.wrapping_sub(1));
        let before = flow.c.client_seq.wrapping_sub(call.len() as u32);
        Ok((
            Plan { moves: moves::RECORD, sequence: call.len() as u32, ..STILL },
            flow.c.up(before, ACK, &call),
        ))
    }
    fn end(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<()> {
        let flow = &mut self.0;
        flow.c.client_seq = flow.c.client_seq.wrapping_add(rows * small_call(0).len() as u32);
        let replies: Vec<u8> = (0..rows).flat_map(|i| reply_head(flow.xid + i, 0)).collect();
        flow.xid += rows;
        flow.answer(bench, &replies)?;
        flow.acknowledge(bench)
    }
    fn seen(&self, client: &Client) -> u64 {
        client.calls.iter().sum()
    }
    fn what(&self) -> &'static str {
        "one whole READ call each, all tracked: rows of 48, answered between rows"
    }
}

fn small_call(xid: u32) -> Vec<u8> {
    let mut call = call_head(xid, READ, ARGUMENTS);
    call.resize(call.len() + ARGUMENTS as usize, 0);
    call
}

struct Reply(Flow);
impl Case for Reply {
    fn hook(&self) -> Hook {
        Hook::Egress
    }
    fn batch(&self) -> u32 {
        CALLS
    }
    fn begin(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<(Plan, Vec<u8>)> {
        let flow = &mut self.0;
        flow.open(bench)?;
        for part in 0..4 {
            let calls: Vec<u8> =
                (0..rows / 4).flat_map(|i| small_call(flow.xid + part * (rows / 4) + i)).collect();
            flow.send(bench, &calls)?;
        }
        let reply = reply_head(flow.xid - 1, 0);
        let before = flow.c.server_seq.wrapping_sub(reply.len() as u32);
        Ok((
            Plan { moves: moves::RECORD, sequence: reply.len() as u32, ..STILL },
            flow.c.down(before, ACK, &reply),
        ))
    }
    fn end(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<()> {
        let flow = &mut self.0;
        flow.c.server_seq = flow.c.server_seq.wrapping_add(rows * reply_head(0, 0).len() as u32);
        flow.xid += rows;
        flow.acknowledge(bench)
    }
    fn seen(&self, client: &Client) -> u64 {
        client.replies.iter().sum()
    }
    fn what(&self) -> &'static str {
        "TC egress: one whole reply each, each to a call that waits: rows of 48"
    }
}

struct EgressData(Flow);
impl Case for EgressData {
    fn hook(&self) -> Hook {
        Hook::Egress
    }
    fn begin(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<(Plan, Vec<u8>)> {
        let flow = &mut self.0;
        flow.open(bench)?;
        flow.send(bench, &small_call(flow.xid))?;
        flow.answer(bench, &reply_head(flow.xid, rows * SEGMENT + 1))?;
        flow.xid += 1;
        let before = flow.c.server_seq.wrapping_sub(SEGMENT);
        Ok((
            Plan { moves: moves::SEGMENT, sequence: SEGMENT, ..STILL },
            flow.c.down(before, ACK, &[0xa5; SEGMENT as usize]),
        ))
    }
    fn end(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<()> {
        self.0.c.server_seq = self.0.c.server_seq.wrapping_add(rows * SEGMENT);
        self.0.answer(bench, &[0xa5])?;
        self.0.acknowledge(bench)
    }
    fn seen(&self, client: &Client) -> u64 {
        client.tx_packets
    }
    fn wanted(&self, packets: u64, batches: u64) -> u64 {
        // SYN and ACK; around each batch its head and its last byte.
        packets + 1 + 2 * batches
    }
    fn what(&self) -> &'static str {
        "TC egress: 1448 bytes in the middle of a READ's reply of 7 MB"
    }
}

struct Ack(Flow);
impl Case for Ack {
    fn begin(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<(Plan, Vec<u8>)> {
        let flow = &mut self.0;
        flow.open(bench)?;
        flow.send(bench, &small_call(flow.xid))?;
        flow.answer(bench, &reply_head(flow.xid, rows))?;
        flow.xid += 1;
        let frame = flow.c.up(flow.c.client_seq, ACK, &[]);
        let mut left = rows as usize;
        while left > 0 {
            let now = left.min(SEGMENT as usize);
            flow.answer(bench, &vec![0xa5; now])?;
            left -= now;
        }
        Ok((Plan { moves: moves::SEGMENT, acknowledgment: 1, ..STILL }, frame))
    }
    fn seen(&self, client: &Client) -> u64 {
        came_in(client)
    }
    fn wanted(&self, packets: u64, batches: u64) -> u64 {
        // SYN and ACK; before each batch a call.
        packets + 2 + batches
    }
    fn what(&self) -> &'static str {
        "pure ACK of a known connection, each of one more byte of a reply"
    }
}

struct Foreign {
    hook: Hook,
    frame: Vec<u8>,
    what: &'static str,
}
fn foreign(frame: Vec<u8>, what: &'static str) -> Box<dyn Case> {
    Box::new(Foreign { hook: Hook::Ingress, frame, what })
}
impl Case for Foreign {
    fn hook(&self) -> Hook {
        self.hook
    }
    fn begin(&mut self, _bench: &mut Bench, _rows: u32) -> anyhow::Result<(Plan, Vec<u8>)> {
        Ok((STILL, self.frame.clone()))
    }
    fn seen(&self, client: &Client) -> u64 {
        client.rx_packets + client.tx_packets
    }
    fn wanted(&self, _packets: u64, _batches: u64) -> u64 {
        0
    }
    fn what(&self) -> &'static str {
        self.what
    }
}

struct Pulse;
impl Case for Pulse {
    fn begin(&mut self, _bench: &mut Bench, _rows: u32) -> anyhow::Result<(Plan, Vec<u8>)> {
        let mut pulse = pulse(HOST.0, SCVM.0, BOOT, 1);
        // Each one echoes a later stamp, so that each moves the lease.
        pulse.scvm_stamp = reroute_agent::clock::now().0;
        let frame = udp(CLIENT, LOCAL, pulse::PORT, &bytes(&sealed(&pulse, KEY)));
        let mut plan = Plan { moves: moves::PULSE, key: KEY, ..STILL };
        let padded: Vec<u8> = std::iter::repeat_n(0, PAD).chain(frame.iter().copied()).collect();
        for (word, bytes) in plan.frame.iter_mut().zip(padded.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok((plan, frame))
    }
    fn verdict(&self) -> u32 {
        XDP_TX
    }
    fn seen(&self, client: &Client) -> u64 {
        client.pulses
    }
    fn what(&self) -> &'static str {
        "valid affirmation, each with a later stamp: checked, listener looked up, answered"
    }
}

const FIRST_PORT: u16 = 1024;

/// New connections, from a port of its own each.
struct Syn {
    first: u16,
    /// They end after each batch; else the table fills up.
    ends: bool,
}
impl Case for Syn {
    fn batch(&self) -> u32 {
        CONNECTIONS
    }
    fn begin(&mut self, _bench: &mut Bench, _rows: u32) -> anyhow::Result<(Plan, Vec<u8>)> {
        // 62 rows of ports: by the time a port comes again, the table has long had others.
        self.first = match self.first.checked_add(CONNECTIONS as u16) {
            Some(next) if next <= u16::MAX - CONNECTIONS as u16 => next,
            _ => FIRST_PORT,
        };
        let c = Connection::new(self.first - 1);
        // No sequence number comes twice, either.
        let seq = reroute_agent::clock::now().0 as u32;
        Ok((Plan { moves: moves::SEGMENT, sequence: 64_001, port: 1, ..STILL }, c.up(seq, SYN, &[])))
    }
    fn end(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<()> {
        if self.ends {
            let c = Connection::new(self.first - 1);
            bench.plan(&Plan { moves: moves::SEGMENT, port: 1, ..STILL })?;
            bench.measure(Hook::Ingress, false, &c.up(1, RST, &[]), rows)?;
        }
        Ok(())
    }
    fn seen(&self, client: &Client) -> u64 {
        if self.ends { client.opened } else { 0 }
    }
    fn wanted(&self, packets: u64, _batches: u64) -> u64 {
        if self.ends { packets } else { 0 }
    }
    fn what(&self) -> &'static str {
        if self.ends {
            "new connection; closed ones make room"
        } else {
            "new connection, none ends: the table is full"
        }
    }
}
