//! Segments that came before their turn: kept, as the server's TCP keeps them, until the bytes before them have come.
//!
//! So calls are followed in the order in which the server is given them, whatever the network does with segments. What
//! does not fit in here (1 MiB per connection, 8 MiB in all) loses the stream, and an orphan stands for what it hid.

use crate::at;
use crate::cell::Shared;
use crate::flow::Lines;
use crate::follow::{self, Place, Segment};
use crate::kernel::repeat;
use crate::packet::{Bytes, Packet};
use crate::stream::{self, Rest};
use core::ffi::c_void;
use reroute_common::flow::{FLOW_PIECES, Flow, MAX_PIECES, PIECE_BYTES, Piece, stream as bits};
use reroute_common::table::Server;

/// A piece this old is anybody's, ns: its connection has ended, or lost it.
const EXPIRED: u64 = 60_000_000_000;
/// A piece this old is not read any more, ns: well before somebody else may take it, and after as many
/// retransmissions as a connection survives in practice (0.2, 0.6, 1.4, 3, 6.2, 12.6 s).
const STALE: u64 = 25_000_000_000;
/// Pieces looked at for a free one.
const TRIES: u32 = 64;

/// Whether the server's TCP has acknowledged bytes that never came by here: nothing will fill that hole.
#[inline(always)]
pub fn passed_us(line: Shared<Flow>) -> bool {
    let (rx, tx) = (at!(line.rx), at!(line.tx));
    let ahead = at!(line.server_acked).get().wrapping_sub(at!(rx.next_seq).get()) as i32;
    // A FIN is acknowledged like a byte.
    let fin = (at!(rx.flags).get() & bits::FIN != 0) as i32;
    at!(tx.flags).get() & bits::ACKED != 0 && ahead > fin
}

/// Leaves whatever the line's former connection held to expire.
#[inline(always)]
pub fn disown(line: Shared<Flow>) {
    at!(line.first_piece).set(0);
    at!(line.last_piece).set(0);
    at!(line.pieces).set(0);
}

/// Whether a piece still belongs to this connection's list.
#[inline(always)]
fn is_ours(piece: Shared<Piece>, place: &Place) -> bool {
    let age = place.now.saturating_sub(at!(piece.held_at).get());
    at!(piece.flow).get() == place.index && age <= STALE
}

/// Keeps a segment. False: there is no room for all of it, or the list is torn.
#[inline(always)]
pub fn hold<P: Packet, L: Lines + Copy>(packet: P, lines: L, place: &Place, segment: Segment) -> bool {
    let (line, server) = (place.line, place.server);
    let mut spot = Spot { lines, place: *place, segment, at: 0, before: 0, overlaps: 0, whole: 0, torn: 0 };
    spot.before = at!(line.last_piece).get();
    spot.at = at!(line.first_piece).get();
    if spot.at == 0 {
        at!(line.pieces).set(0);
        at!(line.pieces_end).set(segment.seq);
    }
    if !is_behind(&spot) {
        spot.before = 0;
        repeat(FLOW_PIECES + 1, spot_step::<L>, &mut spot);
    }
    if spot.overlaps != 0 {
        stream::again(at!(line.rx));
    }
    if spot.whole != 0 || spot.torn != 0 {
        return spot.torn == 0;
    }
    let mut holding = Holding { packet, lines, place: *place, rest: segment, before: spot.before, failed: 0 };
    repeat(FLOW_PIECES, hold_step::<P, L>, &mut holding);
    let held = holding.failed == 0 && holding.rest.len == 0;
    let end = segment.seq.wrapping_add(segment.len);
    if held && end.wrapping_sub(at!(line.pieces_end).get()) as i32 > 0 {
        at!(line.pieces_end).set(end);
    }
    at!(server.held_segments).count(held as u64);
    held
}

/// Where in the list, which is in the order of sequence numbers, a segment belongs.
struct Spot<L> {
    lines: L,
    place: Place,
    segment: Segment,
    at: u32,
    /// The piece to stand behind, index + 1; 0: none.
    before: u32,
    overlaps: u32,
    /// One piece has all its bytes.
    whole: u32,
    torn: u32,
}

/// Whether a segment that ends at `end` has bytes that are held already.
#[inline(always)]
pub fn overlaps<L: Lines>(lines: L, place: &Place, end: u32) -> bool {
    let line = place.line;
    let first = at!(line.first_piece).get();
    if first == 0 {
        return false;
    }
    let Some(piece) = lines.piece(first - 1) else { return false };
    is_ours(piece, place) && end.wrapping_sub(at!(piece.seq).get()) as i32 > 0
}

/// Whether all of the segment lies behind whatever is held, and so behind the piece `before`: the usual case.
#[inline(always)]
fn is_behind<L: Lines>(spot: &Spot<L>) -> bool {
    if spot.before == 0 {
        return false;
    }
    let Some(last) = spot.lines.piece(spot.before - 1) else { return false };
    let line = spot.place.line;
    is_ours(last, &spot.place) && spot.segment.seq.wrapping_sub(at!(line.pieces_end).get()) as i32 >= 0
}

unsafe extern "C" fn spot_step<L: Lines>(_: u32, spot: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `hold`.
    let spot = unsafe { &mut *spot.cast::<Spot<L>>() };
    if spot.at == 0 {
        return 1;
    }
    let Some(piece) = spot.lines.piece(spot.at - 1) else { return 1 };
    if !is_ours(piece, &spot.place) {
        spot.torn = 1;
        return 1;
    }
    let len = spot.segment.len as i32;
    let from = at!(piece.seq).get().wrapping_sub(spot.segment.seq) as i32;
    let to = from.wrapping_add(at!(piece.len).get() as i32);
    if from >= len {
        return 1;
    }
    if to > 0 {
        spot.overlaps = 1;
        if from <= 0 && to >= len {
            spot.whole = 1;
            return 1;
        }
    }
    if from <= 0 {
        spot.before = spot.at;
    }
    spot.at = at!(piece.next).get();
    0
}

struct Holding<P, L> {
    packet: P,
    lines: L,
    place: Place,
    rest: Segment,
    before: u32,
    failed: u32,
}

unsafe extern "C" fn hold_step<P: Packet, L: Lines + Copy>(_: u32, holding: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `hold`.
    let holding = unsafe { &mut *holding.cast::<Holding<P, L>>() };
    let rest = holding.rest;
    if rest.len == 0 {
        return 1;
    }
    let (lines, now) = (holding.lines, holding.place.now);
    let (line, server) = (holding.place.line, holding.place.server);
    let len = if rest.len < PIECE_BYTES as u32 { rest.len } else { PIECE_BYTES as u32 };
    let count = at!(line.pieces).get();
    holding.failed = 1;
    if count >= FLOW_PIECES {
        return 1;
    }
    let Some((index, piece)) = take(lines, server, now) else { return 1 };
    if !holding.packet.load_piece(rest.offset, at!(piece.bytes), len) {
        at!(piece.held_at).set(0);
        return 1;
    }
    at!(piece.flow).set(holding.place.index);
    at!(piece.seq).set(rest.seq);
    at!(piece.len).set(len);
    let link = if holding.before == 0 {
        at!(line.first_piece)
    } else {
        let Some(before) = lines.piece(holding.before - 1) else { return 1 };
        at!(before.next)
    };
    let next = link.get();
    at!(piece.next).set(next);
    link.set(index + 1);
    if next == 0 {
        at!(line.last_piece).set(index + 1);
    }
    at!(line.pieces).set(count + 1);
    holding.before = index + 1;
    holding.failed = 0;
    holding.rest =
        Segment { seq: rest.seq.wrapping_add(len), offset: rest.offset + len, len: rest.len - len };
    0
}

struct Search<L> {
    lines: L,
    from: u32,
    now: u64,
    found: u32,
}

#[inline(always)]
fn take<L: Lines + Copy>(lines: L, server: Shared<Server>, now: u64) -> Option<(u32, Shared<Piece>)> {
    let from = at!(server.next_piece).increase(1) as u32;
    let mut search = Search { lines, from, now, found: u32::MAX };
    repeat(TRIES, search_step::<L>, &mut search);
    let found = search.found;
    if found == u32::MAX {
        return None;
    }
    Some((found, lines.piece(found)?))
}

unsafe extern "C" fn search_step<L: Lines>(index: u32, search: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `take`.
    let search = unsafe { &mut *search.cast::<Search<L>>() };
    // Odd, so that consecutive searches visit all pieces.
    let index = search.from.wrapping_add(index.wrapping_mul(61)) & (MAX_PIECES - 1);
    let Some(piece) = search.lines.piece(index) else { return 1 };
    let held_at = at!(piece.held_at).get();
    let free = held_at == 0 || search.now.saturating_sub(held_at) > EXPIRED;
    if free && at!(piece.held_at).replace(held_at, search.now) {
        search.found = index;
        return 1;
    }
    0
}

/// The bytes of a piece.
#[derive(Clone, Copy)]
struct Kept {
    piece: Shared<Piece>,
}

impl Bytes for Kept {
    #[inline(always)]
    fn load_header(&self, offset: u32, header: Shared<[u8; 32]>, at: u32, len: u32) -> bool {
        let piece = self.piece;
        if at > 31 || offset + len > PIECE_BYTES as u32 {
            return false;
        }
        let Some(len) = crate::kernel::within(len, 28) else { return false };
        let from = at!(piece.bytes);
        // SAFETY: `len` bytes from `offset` lie in the piece, and 28 behind any byte of a header in its map value.
        unsafe {
            let from = from.as_ptr().cast::<u8>().add(offset as usize);
            crate::kernel::copy(from, header.as_ptr().cast::<u8>().add(at as usize), len)
        }
    }
}

struct Draining<L> {
    lines: L,
    place: Place,
    torn: u32,
}

/// Follows what the stream has reached, and lets go of it. False: the stream is lost.
#[inline(always)]
pub fn drain<L: Lines + Copy>(lines: L, place: &Place) -> bool {
    let line = place.line;
    if at!(line.first_piece).get() == 0 {
        return true;
    }
    let mut draining = Draining { lines, place: *place, torn: 0 };
    repeat(FLOW_PIECES + 1, drain_step::<L>, &mut draining);
    draining.torn == 0
}

unsafe extern "C" fn drain_step<L: Lines + Copy>(_: u32, draining: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `drain`.
    let draining = unsafe { &mut *draining.cast::<Draining<L>>() };
    let (lines, line) = (draining.lines, draining.place.line);
    let first = at!(line.first_piece).get();
    if first == 0 {
        return 1;
    }
    let rx = at!(line.rx);
    let Some(piece) = lines.piece(first - 1) else { return 1 };
    if !is_ours(piece, &draining.place) {
        draining.torn = 1;
        return 1;
    }
    let (seq, len) = (at!(piece.seq).get(), at!(piece.len).get());
    let ahead = seq.wrapping_sub(at!(rx.next_seq).get()) as i32;
    if ahead > 0 {
        return 1;
    }
    let next = at!(piece.next).get();
    at!(line.first_piece).set(next);
    if next == 0 {
        at!(line.last_piece).set(0);
    }
    at!(line.pieces).set(at!(line.pieces).get().saturating_sub(1));
    let known = ahead.unsigned_abs();
    if known < len {
        at!(rx.next_seq).set(seq.wrapping_add(len));
        let rest = Rest { offset: known, left: len - known };
        if !follow::walk_calls(Kept { piece }, lines, &draining.place, rest) {
            draining.torn = 1;
        }
    }
    at!(piece.held_at).set(0);
    draining.torn as i64
}

struct Releasing<L> {
    lines: L,
    place: Place,
    at: u32,
}

/// Lets go of everything the line holds.
#[inline(always)]
pub fn release<L: Lines + Copy>(lines: L, place: &Place) {
    let line = place.line;
    let first = at!(line.first_piece).get();
    if first != 0 {
        let mut releasing = Releasing { lines, place: *place, at: first };
        repeat(FLOW_PIECES, release_step::<L>, &mut releasing);
    }
    disown(line);
}

unsafe extern "C" fn release_step<L: Lines>(_: u32, releasing: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `release`.
    let releasing = unsafe { &mut *releasing.cast::<Releasing<L>>() };
    if releasing.at == 0 {
        return 1;
    }
    let Some(piece) = releasing.lines.piece(releasing.at - 1) else { return 1 };
    let held_at = at!(piece.held_at).get();
    if !is_ours(piece, &releasing.place) {
        return 1;
    }
    releasing.at = at!(piece.next).get();
    at!(piece.held_at).replace(held_at, 0);
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream;
    use reroute_common::class;
    use reroute_common::flow::{CALL_SLOTS, call as packed};
    use reroute_common::table::Client;
    use std::collections::BTreeSet;

    fn leak<T>() -> Shared<T> {
        // SAFETY: integers: zeros are a value; leaked, it lives for ever.
        unsafe { Shared::new(Box::leak(Box::<T>::new_zeroed().assume_init())) }
    }

    /// `pieces` of them, no more; no timer.
    #[derive(Clone, Copy)]
    struct Room<const N: usize = 64> {
        pieces: u32,
        all: Shared<[Piece; N]>,
    }
    impl<const N: usize> Room<N> {
        fn new(pieces: u32) -> Self {
            Room { pieces, all: leak() }
        }
        fn used(&self) -> usize {
            (0..self.pieces).filter_map(|i| self.piece(i)).filter(|p| at!(p.held_at).get() != 0).count()
        }
    }
    impl<const N: usize> Lines for Room<N> {
        fn line(&self, _: u32) -> Option<Shared<Flow>> {
            None
        }
        fn client(&self, _: u32) -> Option<Shared<Client>> {
            None
        }
        fn piece(&self, index: u32) -> Option<Shared<Piece>> {
            let all = self.all;
            // Far indices come by `search_step`; what the room lacks is in use.
            let index = index % N as u32;
            let piece = all.element(index);
            if index >= self.pieces {
                at!(piece.held_at).set(u64::MAX);
            }
            Some(piece)
        }
        fn wake(&self, _: u32) {}
    }

    /// A connection that will carry calls with these bodies.
    struct Carried<const N: usize = 64> {
        room: Room<N>,
        place: Place,
        bytes: Vec<u8>,
        first: u32,
    }

    impl<const N: usize> Carried<N> {
        fn new(room: Room<N>, bodies: &[usize], first: u32) -> Self {
            let place = Place {
                slot: 1,
                index: 0,
                line: leak(),
                client: leak(),
                server: leak::<Server>(),
                now: 1 << 30,
            };
            let line = place.line;
            stream::begin(at!(line.rx), first.wrapping_sub(1));
            let mut bytes = vec![];
            for (xid, body) in bodies.iter().enumerate() {
                bytes.extend((0x8000_0000_u32 | (40 + *body as u32)).to_be_bytes());
                for word in [xid as u32, 0, 2, 100_003, 3, 7, 0, 0, 0, 0] {
                    bytes.extend(word.to_be_bytes());
                }
                bytes.resize(bytes.len() + body, 0x77);
            }
            Carried { room, place, bytes, first }
        }
        fn deliver(&self, from: usize, to: usize) {
            let segment = Segment {
                seq: self.first.wrapping_add(from as u32),
                offset: from as u32,
                len: (to - from) as u32,
            };
            follow::calls(&self.bytes[..], self.room, &self.place, segment);
        }
        fn xids(&self) -> BTreeSet<u32> {
            let line = self.place.line;
            let held = (0..CALL_SLOTS as u32).map(|i| at!(line.calls).element(i).get());
            held.filter(|c| *c != 0).map(packed::xid).collect()
        }
        fn orphans(&self) -> u32 {
            let client = self.place.client;
            at!(client.orphans).get()
        }
        fn retransmitted(&self) -> u64 {
            let line = self.place.line;
            at!(line.rx.retransmitted).get()
        }
        fn server_acks(&self, to: usize) {
            let line = self.place.line;
            at!(line.server_acked).set(self.first.wrapping_add(to as u32));
            at!(line.tx.flags).set(bits::ACKED);
        }
    }

    fn all(n: usize) -> BTreeSet<u32> {
        (0..n as u32).collect()
    }

    #[test]
    fn a_call_counts_when_the_server_is_given_it() {
        let c = Carried::new(Room::<64>::new(8), &[0, 3000, 10], u32::MAX - 100);
        c.deliver(0, 44);
        c.deliver(1500, 3088);
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (0, all(1), 1));
        c.deliver(44, 1500);
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (0, all(2), 0));
        c.deliver(3088, c.bytes.len());
        assert_eq!((c.orphans(), c.xids()), (0, all(3)));
        assert_eq!(c.retransmitted(), 0, "nothing was sent twice");
    }

    #[test]
    fn what_is_held_already_is_held_once() {
        let c = Carried::new(Room::<64>::new(8), &[1000, 100, 100], 7);
        c.deliver(1000, 1188);
        c.deliver(1000, 1188);
        assert_eq!((c.room.used(), c.retransmitted()), (1, 1));
        c.deliver(0, 1332);
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (0, all(3), 0));
    }

    #[test]
    fn a_long_segment_is_held_in_pieces() {
        let c = Carried::new(Room::<64>::new(32), &[100, 9000, 9000, 5], 7);
        c.deliver(144, c.bytes.len());
        assert_eq!(c.room.used(), (c.bytes.len() - 144).div_ceil(PIECE_BYTES));
        c.deliver(0, 144);
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (0, all(4), 0));
    }

    #[test]
    fn without_room_the_stream_is_lost_and_says_so() {
        let c = Carried::new(Room::<64>::new(1), &[100, 5000, 100, 100], 7);
        c.deliver(150, 5332);
        assert_eq!((c.orphans(), c.room.used()), (1, 0), "an orphan stands for what was hidden");
        c.deliver(5332, c.bytes.len());
        assert_eq!((c.orphans(), c.xids()), (1, BTreeSet::from([3])), "found again at a record");
    }

    #[test]
    fn what_the_server_has_and_we_have_not_loses_the_stream() {
        let c = Carried::new(Room::<64>::new(8), &[100, 100, 100], 7);
        c.deliver(0, 144);
        c.server_acks(288);
        c.deliver(288, c.bytes.len());
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (1, BTreeSet::from([0, 2]), 0));
    }

    #[test]
    fn what_expired_is_not_read() {
        let mut c = Carried::new(Room::<64>::new(8), &[100, 100, 100], 7);
        c.deliver(144, 288);
        c.place.now += STALE + 1;
        c.deliver(0, 144);
        assert_eq!((c.orphans(), c.xids()), (1, all(1)));
        // And what somebody left long ago is room again.
        let mut d = Carried::new(c.room, &[100, 100, 100], 7);
        for from in 1..8 {
            d.deliver(144 + from, 145 + from);
        }
        assert_eq!((d.orphans(), d.room.used()), (0, 8));
        d.place.line = leak();
        let line = d.place.line;
        stream::begin(at!(line.rx), 6);
        d.place.now += EXPIRED + 1;
        d.deliver(144, 288);
        assert_eq!(d.orphans(), 0);
    }

    /// Many segments of a call each, in an order that costs much: nothing stays behind when the first one comes.
    #[test]
    fn long_lists_are_followed_to_their_end() {
        let late = |n: usize, burst: usize| (burst..n).chain(1..burst).chain([0]).collect::<Vec<_>>();
        let odd_first = |n: usize| (1..n).step_by(2).chain((0..n).step_by(2)).collect::<Vec<_>>();
        let odd_at_last =
            |n: usize| (1..n).step_by(2).chain((2..n).step_by(2)).chain([0]).collect::<Vec<_>>();
        let backwards = |n: usize| (0..n).rev().collect::<Vec<_>>();
        let room = Room::<{ MAX_PIECES as usize }>::new(MAX_PIECES);
        for (order, body) in [
            (late(320, 16), 1404),
            (late(400, 12), 1404),
            (late(12, 4), 63 << 10),
            (odd_first(300), 1404),
            (odd_at_last(400), 1404),
            (backwards(500), 1404),
        ] {
            let c = Carried::new(room, &vec![body; order.len()], 7);
            let len = c.bytes.len() / order.len();
            for i in &order {
                c.deliver(i * len, (i + 1) * len);
            }
            let line = c.place.line;
            let seen = at!(line.calls_seen).element(class::WRITE).get() as usize;
            // More than 64 wait at once: those are orphans, but they were seen.
            assert_eq!((seen, c.room.used()), (order.len(), 0), "{order:?}");
            let client = c.place.client;
            assert_eq!(at!(client.streams_lost).get(), 0);
        }
    }

    /// The bytes before a segment come on another CPU while it is being held.
    #[test]
    fn a_segment_held_too_late_is_followed_at_once() {
        let c = Carried::new(Room::<64>::new(8), &[100, 100, 100], 7);
        c.deliver(0, 144);
        let early = Segment { seq: 7 + 144, offset: 144, len: 144 };
        assert!(hold(&c.bytes[..], c.room, &c.place, early));
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (0, all(1), 1), "as the race leaves it");
        assert!(drain(c.room, &c.place), "what `calls` does next");
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (0, all(2), 0));
    }

    #[test]
    fn what_the_server_has_answered_is_not_waited_for() {
        let c = Carried::new(Room::<64>::new(8), &[100, 100, 100], 7);
        c.deliver(144, 432);
        c.server_acks(432);
        c.deliver(0, 432); // the client has missed the ACK, and sends all again
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (1, all(0), 0));
    }

    #[test]
    fn nor_where_the_stream_was_lost_before() {
        let c = Carried::new(Room::<64>::new(0), &[100, 100, 100], 7);
        c.deliver(150, 288);
        c.server_acks(432);
        c.deliver(288, 432); // of this connection not seen before, but answered
        assert_eq!((c.orphans(), c.xids()), (1, BTreeSet::new()));
    }

    /// More than is looked at of one segment: what follows must not be misread as what did not fit.
    #[test]
    fn a_segment_of_too_many_fragments_loses_the_stream() {
        let mut c = Carried::new(Room::<64>::new(8), &[0, 0, 0], 7);
        let mut fragments = c.bytes[..44].to_vec();
        fragments[0] = 0;
        fragments.extend([0; 4 * 9000]);
        fragments.extend(0x8000_0000_u32.to_be_bytes());
        let end = fragments.len();
        c.bytes.splice(..44, fragments);
        c.deliver(0, end + 44);
        assert_eq!((c.orphans(), c.xids()), (1, BTreeSet::new()));
        c.deliver(end + 44, end + 88);
        assert_eq!((c.orphans(), c.xids()), (1, BTreeSet::from([2])), "found again");
    }

    #[test]
    fn a_count_out_of_step_comes_right() {
        let c = Carried::new(Room::<64>::new(8), &[100; 9], 7);
        let line = c.place.line;
        at!(line.pieces).set(u32::MAX);
        for at in [0, 432, 864] {
            c.deliver(at, at + 144);
            c.deliver(at + 288, at + 432);
            c.deliver(at + 144, at + 288);
        }
        assert_eq!((c.orphans(), c.xids(), at!(line.pieces).get()), (0, all(9), 0));
    }

    /// Any cut, any order, bytes sent again, with and without room for all of it: with no orphan, no call is missing,
    /// and with room enough there is none.
    #[test]
    fn without_orphans_nothing_is_missing() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut torn = 0;
        for round in 0..5000 {
            let bodies: Vec<usize> = (0..1 + random(12)).map(|_| random(400)).collect();
            let room = Room::<64>::new(if round % 2 == 0 { 64 } else { 1 + random(3) as u32 });
            let c = Carried::new(room, &bodies, random(usize::MAX >> 32) as u32);
            let mut cuts = vec![0, c.bytes.len()];
            cuts.extend((0..random(20)).map(|_| random(c.bytes.len())));
            cuts.sort();
            cuts.dedup();
            let mut parts: Vec<(usize, usize)> = cuts.windows(2).map(|w| (w[0], w[1])).collect();
            for _ in 0..random(2 * parts.len()) {
                let (a, b) = (random(parts.len()), random(parts.len()));
                parts.swap(a, b);
            }
            for _ in 0..random(3) {
                let again = parts[random(parts.len())];
                parts.insert(random(parts.len() + 1), again);
            }
            for (from, to) in &parts {
                c.deliver(*from, *to);
            }
            let orphans = c.orphans();
            torn += (orphans != 0) as u32;
            assert!(room.pieces < 64 || orphans == 0, "{bodies:?} as {parts:?}");
            if orphans == 0 {
                assert_eq!(c.xids(), all(bodies.len()), "{bodies:?} as {parts:?}");
                assert_eq!(room.used(), 0);
            }
        }
        println!("{torn} of 2500 had no room");
        assert!((100..2500).contains(&torn), "both are tried: {torn}");
    }
}
