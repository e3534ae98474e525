//! Following record marks (RFC 5531 §11) through the byte stream of one direction, however it is cut into segments.

use crate::at;
use crate::cell::Shared;
use crate::packet::Bytes;
use crate::rpc;
use reroute_common::flow::{Stream, stream};

/// Further ahead than any window: such a segment is none of this connection's.
const MAX_GAP: i32 = 1 << 26;

/// How a segment fits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// New bytes begin `skip` bytes into it.
    New { skip: u32 },
    /// Nothing new.
    Old,
    /// Bytes are missing before it. Nothing was taken in.
    Ahead,
    /// The stream is lost: it may be found again at the start of this segment.
    Unsynced,
    /// The stream is lost, and new bytes begin inside this segment: whatever they hold is not seen.
    Unseen,
}

/// The stream begins: SYN with this sequence number.
#[inline(always)]
pub fn begin(s: Shared<Stream>, syn: u32) {
    at!(s.flags).set(stream::SYNCED | stream::SEEN | at!(s.flags).get() & stream::ACKED);
    at!(s.next_seq).set(syn.wrapping_add(1));
    at!(s.remaining).set(0);
    at!(s.gathered).set(0);
    at!(s.more).set(0);
}

/// Counts a segment that brings nothing new: a SYN or FIN sent again, or bytes of a connection that is over.
#[inline(always)]
pub fn again(s: Shared<Stream>) {
    at!(s.retransmitted).set(at!(s.retransmitted).get() + 1);
}

/// Whether bytes from `seq` on have been seen before.
#[inline(always)]
pub fn is_behind(s: Shared<Stream>, seq: u32) -> bool {
    at!(s.flags).get() & stream::SEEN != 0 && (seq.wrapping_sub(at!(s.next_seq).get()) as i32) < 0
}

/// Takes in where a segment of `len` (not 0) bytes stands.
#[inline(always)]
pub fn enter(s: Shared<Stream>, seq: u32, len: u32) -> Fit {
    let flags = at!(s.flags).get();
    let end = seq.wrapping_add(len);
    if flags & stream::SEEN == 0 {
        at!(s.flags).or(stream::SEEN);
        at!(s.next_seq).set(end);
        return Fit::Unsynced;
    }
    let ahead = seq.wrapping_sub(at!(s.next_seq).get()) as i32;
    let mut skip = 0;
    if ahead < 0 {
        let overlap = ahead.unsigned_abs();
        again(s);
        if overlap >= len {
            return Fit::Old;
        }
        skip = overlap;
    } else if ahead > MAX_GAP {
        return Fit::Old;
    }
    if flags & stream::SYNCED == 0 {
        at!(s.next_seq).set(end);
        return if skip == 0 { Fit::Unsynced } else { Fit::Unseen };
    }
    if ahead > 0 {
        return Fit::Ahead;
    }
    at!(s.next_seq).set(end);
    Fit::New { skip }
}

/// Goes on with a segment although bytes are missing before it. False: they may hide the start of a record.
#[inline(always)]
pub fn leap(s: Shared<Stream>, seq: u32, len: u32) -> bool {
    let missing = seq.wrapping_sub(at!(s.next_seq).get());
    let remaining = at!(s.remaining).get();
    at!(s.next_seq).set(seq.wrapping_add(len));
    if at!(s.gathered).get() != 0 || missing > remaining {
        return false;
    }
    at!(s.remaining).set(remaining - missing);
    true
}

/// Forgets where records begin, until [`resync`].
#[inline(always)]
pub fn lose(s: Shared<Stream>) {
    at!(s.flags).and(!(stream::SYNCED | stream::PENDING));
    at!(s.lost).set(at!(s.lost).get() + 1);
    at!(s.remaining).set(0);
    at!(s.gathered).set(0);
    at!(s.more).set(0);
}

/// Reads the start of a segment into the header, to see whether a record begins there.
#[inline(always)]
pub fn peek<B: Bytes>(bytes: &B, s: Shared<Stream>, offset: u32, len: u32, head: u32) -> bool {
    len >= 4 + head && bytes.load_header(offset, at!(s.header), 0, 4 + head)
}

/// A record begins at the start of this segment.
#[inline(always)]
pub fn resync(s: Shared<Stream>) {
    at!(s.flags).and(!stream::PENDING);
    at!(s.flags).or(stream::SYNCED);
    at!(s.remaining).set(0);
    at!(s.gathered).set(0);
    at!(s.more).set(0);
}

/// Bytes of a segment still to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    pub offset: u32,
    pub left: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Continue,
    /// The segment is used up.
    End,
    /// Not a record: the stream is lost.
    Lost,
    /// Ingress: a call is complete, its last byte included (a server runs no half call). Egress: a reply begins.
    /// The header holds its first words.
    Record,
}

/// Which way the stream flows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Calls,
    Replies,
}

/// Takes one step through the segment: the rest of a body, or a header.
#[inline(always)]
pub fn step<B: Bytes>(bytes: &B, s: Shared<Stream>, rest: &mut Rest, side: Side) -> Step {
    let head = match side {
        Side::Calls => rpc::CALL_HEAD,
        Side::Replies => rpc::REPLY_HEAD,
    };
    let remaining = at!(s.remaining).get();
    if remaining > 0 {
        let n = if remaining < rest.left { remaining } else { rest.left };
        at!(s.remaining).set(remaining - n);
        rest.offset += n;
        rest.left -= n;
        if remaining > n {
            return Step::End;
        }
    }
    if ended(s) {
        return Step::Record;
    }
    if rest.left == 0 {
        return Step::End;
    }
    let continued = at!(s.more).get() != 0;
    let head = if continued { 0 } else { head };
    // Masked for the verifier: less than a whole header is ever gathered.
    let gathered = at!(s.gathered).get() & 31;
    let missing = (4 + head).wrapping_sub(gathered) & 31;
    let n = if missing < rest.left { missing } else { rest.left };
    if !bytes.load_header(rest.offset, at!(s.header), gathered, n) {
        return Step::Lost;
    }
    let total = gathered + n;
    let mark = rpc::word(s, 0);
    let length = mark & 0x7fff_ffff;
    let body = if length < head { length } else { head };
    if total < 4 || total < 4 + body {
        at!(s.gathered).set(total);
        rest.offset += n;
        rest.left -= n;
        return Step::End;
    }
    let used = 4 + body - gathered;
    rest.offset += used;
    rest.left -= used;
    at!(s.gathered).set(0);
    at!(s.remaining).set(length - body);
    at!(s.more).set((mark >> 31) ^ 1);
    if length > rpc::MAX_FRAGMENT {
        return Step::Lost;
    }
    if continued {
        return if ended(s) { Step::Record } else { Step::Continue };
    }
    if length < head {
        return Step::Lost;
    }
    match side {
        Side::Calls => {
            if !rpc::is_call(s) {
                return Step::Lost;
            }
            at!(s.flags).or(stream::PENDING);
            if ended(s) { Step::Record } else { Step::Continue }
        }
        Side::Replies => {
            if rpc::is_reply(s) {
                Step::Record
            } else {
                Step::Lost
            }
        }
    }
}

/// Whether a pending call's last byte has been seen; if so, it is pending no more.
#[inline(always)]
pub fn ended(s: Shared<Stream>) -> bool {
    let flags = at!(s.flags).get();
    if flags & stream::PENDING == 0 || at!(s.remaining).get() != 0 || at!(s.more).get() != 0 {
        return false;
    }
    at!(s.flags).and(!stream::PENDING);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Shared<Stream> {
        // SAFETY: integers: zeros are a value; leaked, it lives for ever.
        unsafe { Shared::new(Box::leak(Box::<Stream>::new_zeroed().assume_init())) }
    }

    fn call(xid: u32, body: usize) -> Vec<u8> {
        let mut bytes = (0x8000_0000_u32 | (40 + body as u32)).to_be_bytes().to_vec();
        for word in [xid, 0, 2, 100_003, 3, 7, 0, 0, 0, 0] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.resize(44 + body, 0);
        bytes
    }

    /// XIDs of the calls completed by a segment; None: lost.
    fn feed(s: Shared<Stream>, seq: &mut u32, bytes: &[u8]) -> Option<Vec<u32>> {
        let len = bytes.len() as u32;
        let skip = match enter(s, *seq, len) {
            Fit::New { skip } => skip,
            Fit::Ahead if leap(s, *seq, len) => 0,
            _ => return None,
        };
        *seq = seq.wrapping_add(len);
        let mut rest = Rest { offset: skip, left: bytes.len() as u32 - skip };
        let mut xids = vec![];
        loop {
            match step(&bytes, s, &mut rest, Side::Calls) {
                Step::Continue => {}
                Step::End => return Some(xids),
                Step::Lost => return None,
                Step::Record => xids.push(rpc::xid(s)),
            }
        }
    }

    #[test]
    fn any_cut_gives_the_same_calls() {
        let bytes = [call(1, 0), call(2, 33), call(3, 4)].concat();
        for first in 1..bytes.len() {
            for second in first..bytes.len() {
                let s = stream();
                begin(s, u32::MAX - 50);
                let mut seq = u32::MAX - 49;
                let mut xids = vec![];
                for part in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                    if !part.is_empty() {
                        xids.extend(feed(s, &mut seq, part).unwrap());
                    }
                }
                assert_eq!(xids, [1, 2, 3], "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn a_call_counts_with_its_last_byte() {
        let bytes = call(1, 10);
        let s = stream();
        begin(s, 0);
        let mut seq = 1;
        let (most, last) = bytes.split_at(bytes.len() - 1);
        assert_eq!(feed(s, &mut seq, most).unwrap(), []);
        assert_eq!(feed(s, &mut seq, last).unwrap(), [1]);
    }

    #[test]
    fn a_hole_that_ends_a_body_completes_the_call() {
        let bytes = call(1, 100);
        let s = stream();
        begin(s, 0);
        let mut seq = 1;
        assert_eq!(feed(s, &mut seq, &bytes[..60]).unwrap(), []);
        seq += 84; // the rest of the body is lost on the way
        assert_eq!(feed(s, &mut seq, &call(2, 0)).unwrap(), [1, 2]);
    }

    #[test]
    fn segments_fit_by_their_sequence_numbers() {
        let s = stream();
        assert_eq!(enter(s, 1000, 10), Fit::Unsynced);
        resync(s);
        assert_eq!(enter(s, 1000, 10), Fit::Old);
        assert_eq!(enter(s, 1005, 10), Fit::New { skip: 5 });
        assert_eq!(enter(s, 1015 + (1 << 27), 10), Fit::Old, "outside any window");
        assert_eq!(enter(s, 1016, 10), Fit::Ahead);
        assert_eq!(enter(s, 1015, 10), Fit::New { skip: 0 }, "what came early was not taken in");
        assert_eq!(at!(s.retransmitted).get(), 2);
    }

    #[test]
    fn in_a_lost_stream_old_bytes_may_come_with_new_ones() {
        let s = stream();
        assert_eq!(enter(s, 1000, 10), Fit::Unsynced);
        assert_eq!(enter(s, 1000, 10), Fit::Old);
        assert_eq!(enter(s, 1005, 10), Fit::Unseen);
        assert_eq!(enter(s, 1015, 10), Fit::Unsynced, "what was not seen is behind us");
    }

    #[test]
    fn what_is_no_call_is_lost() {
        for (at, value) in [(0, 0xff), (11, 1), (15, 3), (3, 8)] {
            let mut bytes = call(1, 10);
            bytes[at] = value;
            let s = stream();
            begin(s, 0);
            let mut seq = 1;
            let told = feed(s, &mut seq, &bytes);
            assert!(told.is_none(), "byte {at}: {told:?}");
        }
    }
}
