//! What a TCP connection to the service counts as, worked out the plain way from tshark's dissection of its segments.

use super::traffic::Way;
use super::tshark::{Message, Tcp};
use crate::frames::{ACK, FIN, RST, SYN};
use std::collections::{BTreeMap, HashSet};

/// One direction of a connection.
#[derive(Default)]
struct Side {
    /// Where the last segment stood, unwrapped; None: nothing seen.
    near: Option<u64>,
    /// Sequence numbers seen, unwrapped: those of SYN and FIN as well as those of bytes.
    seen: HashSet<u64>,
    retransmitted: u64,
    /// Bytes seen, by sequence number, as far as they are not yet in `ordered`.
    early: BTreeMap<u64, u8>,
    /// Sequence number that follows the bytes in `ordered`.
    next: u64,
    /// Bytes in order, from the start of the record that is not yet complete.
    ordered: Vec<u8>,
    /// The reply that begins `ordered` has been counted.
    told: bool,
    /// What comes is no records.
    noise: bool,
}

/// RFC 9293 §3.4: sequence numbers are modulo 2^32; the right multiple is the one nearest to what came last.
fn unwrap(seq: u32, near: u64) -> u64 {
    near.wrapping_add(i64::from(seq.wrapping_sub(near as u32) as i32) as u64)
}

impl Side {
    /// Takes a segment in. Gives the records that are complete (calls) or begun (replies) with it.
    fn segment(&mut self, way: Way, tcp: &Tcp) -> Vec<Message> {
        let near = self.near.unwrap_or((1 << 40) + u64::from(tcp.seq));
        let mut at = unwrap(tcp.seq, near);
        let first = self.near.is_none();
        self.near = Some(at);
        let mut again = false;
        if tcp.flags & SYN != 0 {
            again |= !self.seen.insert(at);
            at += 1;
            if first {
                self.next = at;
            }
        }
        for byte in &tcp.payload {
            again |= !self.seen.insert(at);
            if at >= self.next {
                self.early.entry(at).or_insert(*byte);
            }
            at += 1;
        }
        if tcp.flags & FIN != 0 {
            again |= !self.seen.insert(at);
        }
        self.retransmitted += again as u64;
        while let Some(byte) = self.early.remove(&self.next) {
            self.ordered.push(byte);
            self.next += 1;
        }
        let mut messages = vec![];
        while !self.noise
            && let Some(message) = self.record(way)
        {
            messages.push(message);
        }
        messages
    }

    /// The next record, its bytes taken off.
    fn record(&mut self, way: Way) -> Option<Message> {
        let word = |bytes: &[u8], i: usize| {
            bytes.get(4 * i..4 * i + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
        };
        if way == Way::Out && self.told {
            let end = self.end()?;
            self.ordered.drain(..end);
            self.told = false;
        }
        let b = &self.ordered;
        match way {
            Way::In => {
                let body = self.body()?;
                let w = |i| word(&body, i);
                let message = match (w(1), w(2)) {
                    (Some(0), Some(2)) => {
                        Message::Call { xid: w(0)?, program: w(3)?, version: w(4)?, procedure: w(5)? }
                    }
                    _ => {
                        self.noise = true;
                        return None;
                    }
                };
                let end = self.end()?;
                self.ordered.drain(..end);
                Some(message)
            }
            Way::Out => {
                let (xid, kind) = (word(b, 1)?, word(b, 2)?);
                if kind != 1 {
                    self.noise = true;
                    return None;
                }
                self.told = true;
                Some(Message::Reply { xid })
            }
        }
    }

    /// Where the first record ends (RFC 5531 §11), if all of it is there.
    fn end(&self) -> Option<usize> {
        let mut at = 0;
        loop {
            let mark = self.ordered.get(at..at + 4)?;
            let mark = u32::from_be_bytes([mark[0], mark[1], mark[2], mark[3]]);
            at += 4 + (mark & 0x7fff_ffff) as usize;
            if at > self.ordered.len() {
                return None;
            }
            if mark >> 31 == 1 {
                return Some(at);
            }
        }
    }

    /// The first record without its marks, if all of it is there.
    fn body(&self) -> Option<Vec<u8>> {
        let end = self.end()?;
        let (mut body, mut at) = (vec![], 0);
        while at < end {
            let b = &self.ordered[at..at + 4];
            let len = (u32::from_be_bytes([b[0], b[1], b[2], b[3]]) & 0x7fff_ffff) as usize;
            body.extend(&self.ordered[at + 4..at + 4 + len]);
            at += 4 + len;
        }
        Some(body)
    }
}

/// A connection: what tshark calls a stream, if the client's SYN is in the capture.
#[derive(Default)]
pub struct Connection {
    opened: bool,
    ended: bool,
    reset: bool,
    sides: [Side; 2],
}

/// What a segment adds to its client's counts.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Step {
    pub opened: bool,
    pub closed: bool,
    pub reset: bool,
    pub retransmitted: bool,
    pub messages: Vec<Message>,
}

impl Connection {
    pub fn segment(&mut self, way: Way, tcp: &Tcp) -> Step {
        let mut step = Step::default();
        if way == Way::In && tcp.flags & (SYN | ACK) == SYN && !self.opened {
            self.opened = true;
            step.opened = true;
        }
        if !self.opened || self.reset {
            return step;
        }
        if tcp.flags & RST != 0 {
            self.reset = true;
            step.reset = !self.ended;
            return step;
        }
        let side = &mut self.sides[way as usize];
        let before = side.retransmitted;
        step.messages = side.segment(way, tcp);
        step.retransmitted = side.retransmitted > before;
        if tcp.flags & FIN != 0 {
            step.closed = !self.ended;
            self.ended = true;
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_unwrap_to_the_nearest() {
        let near = (1 << 40) + 0xffff_fff0;
        assert_eq!(unwrap(0xffff_fff8, near), near + 8);
        assert_eq!(unwrap(0x10, near), near + 0x20);
        assert_eq!(unwrap(0xffff_ffe0, near), near - 16);
        assert_eq!(unwrap(0xffff_fff0, near + 0x20), near);
    }
}
