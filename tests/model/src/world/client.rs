//! A host's NFS client: one connection, a few writes at once, each sent until it is answered.

use super::settings::Load;
use super::tcp::{Body, ConnId, Segment, Write};
use reroute_core::ids::*;
use std::collections::BTreeMap;

/// First retransmission, and the first of a SYN; each further one after twice the time.
const RTO_NS: u64 = 200 * MS;
const SYN_RTO_NS: u64 = SEC;
const RTO_MOST_NS: u64 = 60 * SEC;
/// After a refused connect, Linux's client sleeps.
const REFUSED_NS: u64 = 3 * SEC;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conn {
    pub id: ConnId,
    pub source: Network,
    open: bool,
    next_index: u64,
    /// Not acknowledged by the server's TCP: number by index.
    unacked: BTreeMap<u64, u64>,
    again_at: Option<BootNs>,
    rto: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    host: HostId,
    pub conn: Option<Conn>,
    conns: u64,
    /// Refused: not before this.
    connect_at: BootNs,
    /// Number of the next write.
    next: u64,
    next_at: BootNs,
    /// Without an answer: block by number.
    pub waiting: BTreeMap<u64, usize>,
}

impl Client {
    pub fn new(host: HostId, now: BootNs) -> Client {
        Client {
            host,
            conn: None,
            conns: 0,
            connect_at: now,
            next: 1,
            next_at: now,
            waiting: BTreeMap::new(),
        }
    }

    /// Writes acknowledged so far.
    pub fn done(&self) -> u64 {
        self.next - 1 - self.waiting.len() as u64
    }

    /// What is due: `source` is the network the route leads by now.
    pub fn tick(&mut self, load: &Load, source: Network, now: BootNs) -> Vec<Segment> {
        let mut out = Vec::new();
        if self.conn.is_none() && now >= self.connect_at {
            self.connect(source, now, &mut out);
        }
        if now >= self.next_at
            && let Some(block) = self.free_block(load)
        {
            let number = self.next;
            self.next += 1;
            self.waiting.insert(number, block);
            self.next_at = now.plus(load.think);
            self.send(number, now, &mut out);
        }
        self.again(now, &mut out);
        out
    }

    /// The block of the next write, if that can be issued.
    fn free_block(&self, load: &Load) -> Option<usize> {
        let block = (self.next % load.blocks as u64) as usize;
        let free = self.next <= load.writes
            && self.waiting.len() < load.window
            && !self.waiting.values().any(|b| *b == block);
        free.then_some(block)
    }

    fn connect(&mut self, source: Network, now: BootNs, out: &mut Vec<Segment>) {
        self.conns += 1;
        // Of no other host's, and of no other time.
        let id = ConnId(u64::from(self.host.0) << 40 | self.conns);
        let again_at = Some(now.plus(SYN_RTO_NS));
        self.conn = Some(Conn {
            id,
            source,
            open: false,
            next_index: 0,
            unacked: BTreeMap::new(),
            again_at,
            rto: SYN_RTO_NS,
        });
        out.push(Segment { conn: id, source, body: Body::Syn });
    }

    fn send(&mut self, number: u64, now: BootNs, out: &mut Vec<Segment>) {
        let Some(conn) = self.conn.as_mut().filter(|c| c.open) else { return };
        let Some(block) = self.waiting.get(&number) else { return };
        let index = conn.next_index;
        conn.next_index += 1;
        if conn.unacked.is_empty() {
            conn.rto = RTO_NS;
            conn.again_at = Some(now.plus(RTO_NS));
        }
        conn.unacked.insert(index, number);
        let write = Write { number, block: *block };
        out.push(Segment { conn: conn.id, source: conn.source, body: Body::Call { index, write } });
    }

    /// Retransmission.
    fn again(&mut self, now: BootNs, out: &mut Vec<Segment>) {
        let Some(conn) = &mut self.conn else { return };
        if conn.again_at.is_none_or(|at| now < at) {
            return;
        }
        conn.rto = (2 * conn.rto).min(RTO_MOST_NS);
        conn.again_at = Some(now.plus(conn.rto));
        let (id, source) = (conn.id, conn.source);
        if !conn.open {
            out.push(Segment { conn: id, source, body: Body::Syn });
        }
        for (index, number) in &conn.unacked {
            let Some(block) = self.waiting.get(number) else { continue };
            let write = Write { number: *number, block: *block };
            out.push(Segment { conn: id, source, body: Body::Call { index: *index, write } });
        }
    }

    /// A segment from a server. Gives the write that it acknowledges, if it does.
    pub fn hear(&mut self, segment: &Segment, load: &Load, now: BootNs) -> (Option<Write>, Vec<Segment>) {
        let mut out = Vec::new();
        let Some(conn) = self.conn.as_mut().filter(|c| c.id == segment.conn) else { return (None, out) };
        let acked = |conn: &mut Conn, next: u64| {
            conn.unacked.retain(|index, _| *index >= next);
            if conn.unacked.is_empty() {
                conn.again_at = None;
            }
        };
        match segment.body {
            Body::SynAck => {
                if !conn.open {
                    conn.open = true;
                    conn.again_at = None;
                    let numbers: Vec<u64> = self.waiting.keys().copied().collect();
                    for number in numbers {
                        self.send(number, now, &mut out);
                    }
                }
            }
            Body::Ack { next } => acked(conn, next),
            Body::Reply { number, next } => {
                acked(conn, next);
                if let Some(block) = self.waiting.remove(&number) {
                    self.next_at = self.next_at.min(now.plus(load.think));
                    return (Some(Write { number, block }), out);
                }
            }
            Body::Rst => {
                let refused = !conn.open;
                self.conn = None;
                if refused {
                    self.connect_at = now.plus(REFUSED_NS);
                }
            }
            Body::Syn | Body::Call { .. } => {}
        }
        (None, out)
    }

    /// Its socket was destroyed on the host itself: it connects anew at once.
    pub fn reset(&mut self, now: BootNs) {
        self.conn = None;
        self.connect_at = now;
    }

    pub fn wake_at(&self, load: &Load) -> Option<BootNs> {
        let issue = self.free_block(load).map(|_| self.next_at);
        let connect = self.conn.is_none().then_some(self.connect_at);
        let again = self.conn.as_ref().and_then(|c| c.again_at);
        [issue, connect, again].into_iter().flatten().min()
    }
}
