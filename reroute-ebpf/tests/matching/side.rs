//! One direction of a connection: what is written, sent, in flight, and there in order.

use crate::wire;
use std::ops::Range;

/// Numbers that decide. At its end they are all 0: the simplest choice.
pub struct Tape(std::vec::IntoIter<u16>);

impl Tape {
    pub fn new(numbers: Vec<u16>) -> Tape {
        Tape(numbers.into_iter())
    }
    pub fn below(&mut self, n: usize) -> usize {
        (usize::from(self.0.next().unwrap_or(0)) * n) >> u16::BITS
    }
}

/// Longest segment that a program is ever shown.
const LONGEST: usize = 65_535;

pub struct Side {
    first: u32,
    pub bytes: Vec<u8>,
    /// Where record marks stand.
    marks: Vec<usize>,
    /// Records that are none.
    pub garbage: Vec<Range<usize>>,
    /// How far it was sent once.
    pub sent: usize,
    pub flight: Vec<Range<usize>>,
    /// Which bytes are there, and up to where all of them.
    got: Vec<bool>,
    pub taken: usize,
}

impl Side {
    pub fn new(first: u32) -> Side {
        Side {
            first,
            bytes: vec![],
            marks: vec![],
            garbage: vec![],
            sent: 0,
            flight: vec![],
            got: vec![],
            taken: 0,
        }
    }

    pub fn seq(&self, offset: usize) -> u32 {
        self.first.wrapping_add(offset as u32)
    }

    pub fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub fn write(&mut self, payload: &[u8], head: usize, cuts: &[u8]) {
        let marks = wire::record(&mut self.bytes, payload, head, cuts);
        self.marks.extend(marks);
        self.got.resize(self.bytes.len(), false);
    }

    /// Something that is neither a call nor a reply, nor the middle of one.
    pub fn write_garbage(&mut self, bytes: &[u8]) {
        let from = self.bytes.len();
        self.marks.push(from);
        self.bytes.extend(bytes);
        self.got.resize(self.bytes.len(), false);
        self.garbage.push(from..self.bytes.len());
    }

    /// A segment from `from`, and not beyond `end`.
    pub fn cut(&self, from: usize, end: usize, tape: &mut Tape) -> Range<usize> {
        let len = match tape.below(7) {
            1 => 1448,
            2 => 8948,
            3 => 1 + tape.below(40),
            4 => 1 + tape.below(4096),
            // Around a header to come.
            5 | 6 => {
                let next = self.marks.partition_point(|mark| *mark <= from);
                let skipped = tape.below(4);
                let mark = self.marks.get(next + skipped).copied().unwrap_or(end);
                (mark + tape.below(36)).saturating_sub(from + 4).max(1)
            }
            _ => LONGEST,
        };
        from..(from + len.min(LONGEST)).min(end)
    }

    /// New bytes go on their way.
    pub fn send(&mut self, tape: &mut Tape) {
        let segment = self.cut(self.sent, self.bytes.len(), tape);
        self.sent = segment.end;
        self.flight.push(segment);
    }

    /// Bytes that were sent before, and maybe more.
    pub fn send_again(&mut self, tape: &mut Tape) {
        let from = match tape.below(4) {
            0 => self.taken.min(self.sent - 1),
            1 => self.taken.saturating_sub(1 + tape.below(64)).min(self.sent - 1),
            2 => self.sent - 1 - tape.below(self.sent.min(3000)),
            _ => tape.below(self.sent),
        };
        let segment = self.cut(from, self.bytes.len(), tape);
        self.sent = self.sent.max(segment.end);
        let at = tape.below(self.flight.len() + 1);
        self.flight.insert(at, segment);
    }

    pub fn take(&mut self, segment: &Range<usize>) {
        self.got[segment.clone()].fill(true);
        while self.got.get(self.taken) == Some(&true) {
            self.taken += 1;
        }
    }
}
