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
use crate::stream::Rest;
use core::ffi::c_void;
use reroute_common::flow::{FLOW_PIECES, Flow, MAX_PIECES, PIECE_BYTES, Piece, stream as bits};
use reroute_common::table::Server;

/// A piece this old is anybody's, ns: its connection has ended, or lost it.
const EXPIRED: u64 = 10_000_000_000;
/// A piece this old is not read any more, ns: well before somebody else may take it.
const STALE: u64 = 5_000_000_000;
/// Pieces looked at for a free one.
const TRIES: u32 = 64;

/// Whether the server's TCP has acknowledged bytes that never came by here: nothing will fill that hole.
#[inline(always)]
pub fn passed_us(line: Shared<Flow>) -> bool {
    let (rx, tx) = (at!(line.rx), at!(line.tx));
    let ahead = at!(line.acked).get().wrapping_sub(at!(rx.next_seq).get()) as i32;
    at!(tx.flags).get() & bits::ACKED != 0 && ahead > 0
}

/// Leaves whatever the line's former connection held to expire.
#[inline(always)]
pub fn disown(line: Shared<Flow>) {
    at!(line.first_piece).set(0);
    at!(line.last_piece).set(0);
    at!(line.pieces).set(0);
}

struct Holding<P, L> {
    packet: P,
    lines: L,
    place: Place,
    rest: Segment,
    failed: u32,
}

/// Keeps a segment. False: there is no room for all of it.
#[inline(always)]
pub fn hold<P: Packet, L: Lines + Copy>(packet: P, lines: L, place: &Place, segment: Segment) -> bool {
    let (line, client, server) = (place.line, place.client, place.server);
    let mut known = Known { lines, seq: segment.seq, len: segment.len, next: 0, overlaps: 0, whole: 0 };
    known.next = at!(line.first_piece).get();
    repeat(FLOW_PIECES, known_step::<L>, &mut known);
    if known.overlaps != 0 {
        let rx = at!(line.rx);
        at!(rx.retransmitted).set(at!(rx.retransmitted).get() + 1);
        at!(client.rx_retransmitted).count(1);
        if known.whole != 0 {
            return true;
        }
    }
    let mut holding = Holding { packet, lines, place: *place, rest: segment, failed: 0 };
    repeat(FLOW_PIECES, hold_step::<P, L>, &mut holding);
    let held = holding.failed == 0 && holding.rest.len == 0;
    at!(server.held_segments).count(held as u64);
    held
}

struct Known<L> {
    lines: L,
    seq: u32,
    len: u32,
    next: u32,
    overlaps: u32,
    /// The segment's own bytes, in the same cut: sent twice.
    whole: u32,
}

unsafe extern "C" fn known_step<L: Lines>(_: u32, known: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `hold`.
    let known = unsafe { &mut *known.cast::<Known<L>>() };
    if known.next == 0 {
        return 1;
    }
    let Some(piece) = known.lines.piece(known.next - 1) else { return 1 };
    known.next = at!(piece.next).get();
    let from = at!(piece.seq).get().wrapping_sub(known.seq) as i32;
    let to = from.wrapping_add(at!(piece.len).get() as i32);
    if from < known.len as i32 && to > 0 {
        known.overlaps = 1;
        if from <= 0 && to >= known.len as i32 {
            known.whole = 1;
            return 1;
        }
    }
    0
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
    at!(piece.next).set(0);
    at!(piece.seq).set(rest.seq);
    at!(piece.len).set(len);
    let last = at!(line.last_piece).get();
    if last == 0 {
        at!(line.first_piece).set(index + 1);
    } else if let Some(last) = lines.piece(last - 1) {
        at!(last.next).set(index + 1);
    }
    at!(line.last_piece).set(index + 1);
    at!(line.pieces).set(count + 1);
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
        if at > 31 || len == 0 || len > 28 || offset + len > PIECE_BYTES as u32 {
            return false;
        }
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
    at: u32,
    before: u32,
    torn: u32,
}

/// Follows what the stream has reached, and lets go of it. False: the stream is lost.
#[inline(always)]
pub fn drain<L: Lines + Copy>(lines: L, place: &Place) -> bool {
    let line = place.line;
    let first = at!(line.first_piece).get();
    if first == 0 {
        return true;
    }
    let mut draining = Draining { lines, place: *place, at: first, before: 0, torn: 0 };
    // Pieces mostly lie in the order of their bytes; those that do not are passed over once for each that fits.
    repeat(8 * FLOW_PIECES, drain_step::<L>, &mut draining);
    draining.torn == 0
}

unsafe extern "C" fn drain_step<L: Lines + Copy>(_: u32, draining: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `drain`.
    let draining = unsafe { &mut *draining.cast::<Draining<L>>() };
    let at = draining.at;
    if at == 0 {
        return 1;
    }
    let (lines, line) = (draining.lines, draining.place.line);
    let rx = at!(line.rx);
    let Some(piece) = lines.piece(at - 1) else { return 1 };
    let age = draining.place.now.saturating_sub(at!(piece.held_at).get());
    if at!(piece.flow).get() != draining.place.index || age > STALE {
        draining.torn = 1;
        return 1;
    }
    let next = at!(piece.next).get();
    let (seq, len) = (at!(piece.seq).get(), at!(piece.len).get());
    let ahead = seq.wrapping_sub(at!(rx.next_seq).get()) as i32;
    if ahead > 0 {
        draining.before = at;
        draining.at = next;
        return 0;
    }
    unlink(lines, line, draining.before, at, next);
    let known = ahead.unsigned_abs();
    if known < len {
        at!(rx.next_seq).set(seq.wrapping_add(len));
        let rest = Rest { offset: known, left: len - known };
        if !follow::walk_calls(Kept { piece }, lines, &draining.place, rest) {
            draining.torn = 1;
        }
    }
    at!(piece.held_at).set(0);
    draining.before = 0;
    draining.at = at!(line.first_piece).get();
    draining.torn as i64
}

#[inline(always)]
fn unlink<L: Lines>(lines: L, line: Shared<Flow>, before: u32, at: u32, next: u32) {
    if before == 0 {
        at!(line.first_piece).set(next);
    } else if let Some(before) = lines.piece(before - 1) {
        at!(before.next).set(next);
    }
    if at!(line.last_piece).get() == at {
        at!(line.last_piece).set(before);
    }
    at!(line.pieces).set(at!(line.pieces).get().wrapping_sub(1));
}

struct Releasing<L> {
    lines: L,
    flow: u32,
    at: u32,
}

/// Lets go of everything the line holds.
#[inline(always)]
pub fn release<L: Lines + Copy>(lines: L, place: &Place) {
    let line = place.line;
    let first = at!(line.first_piece).get();
    if first == 0 {
        return;
    }
    let mut releasing = Releasing { lines, flow: place.index, at: first };
    repeat(FLOW_PIECES, release_step::<L>, &mut releasing);
    disown(line);
}

unsafe extern "C" fn release_step<L: Lines>(_: u32, releasing: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `release`.
    let releasing = unsafe { &mut *releasing.cast::<Releasing<L>>() };
    if releasing.at == 0 {
        return 1;
    }
    let Some(piece) = releasing.lines.piece(releasing.at - 1) else { return 1 };
    releasing.at = at!(piece.next).get();
    if at!(piece.flow).get() != releasing.flow {
        return 1;
    }
    at!(piece.held_at).set(0);
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream;
    use reroute_common::flow::{CALL_SLOTS, call as packed};
    use reroute_common::table::Client;
    use std::collections::BTreeSet;

    fn leak<T>() -> Shared<T> {
        // SAFETY: integers: zeros are a value; leaked, it lives for ever.
        unsafe { Shared::new(Box::leak(Box::<T>::new_zeroed().assume_init())) }
    }

    /// `pieces` of them, no more; no timer.
    #[derive(Clone, Copy)]
    struct Room {
        pieces: u32,
        all: Shared<[Piece; 64]>,
    }
    impl Room {
        fn new(pieces: u32) -> Room {
            Room { pieces, all: leak() }
        }
        fn used(&self) -> usize {
            (0..self.pieces).filter_map(|i| self.piece(i)).filter(|p| at!(p.held_at).get() != 0).count()
        }
    }
    impl Lines for Room {
        fn line(&self, _: u32) -> Option<Shared<Flow>> {
            None
        }
        fn client(&self, _: u32) -> Option<Shared<Client>> {
            None
        }
        fn piece(&self, index: u32) -> Option<Shared<Piece>> {
            let all = self.all;
            // Far indices come by `search_step`; what the room lacks is in use.
            let index = index % 64;
            let piece = all.element(index);
            if index >= self.pieces {
                at!(piece.held_at).set(u64::MAX);
            }
            Some(piece)
        }
        fn wake(&self, _: u32) {}
    }

    /// A connection that will carry calls with these bodies.
    struct Carried {
        room: Room,
        place: Place,
        bytes: Vec<u8>,
        first: u32,
    }

    impl Carried {
        fn new(room: Room, bodies: &[usize], first: u32) -> Carried {
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
            at!(line.acked).set(self.first.wrapping_add(to as u32));
            at!(line.tx.flags).set(bits::ACKED);
        }
    }

    fn all(n: usize) -> BTreeSet<u32> {
        (0..n as u32).collect()
    }

    #[test]
    fn a_call_counts_when_the_server_is_given_it() {
        let c = Carried::new(Room::new(8), &[0, 3000, 10], u32::MAX - 100);
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
        let c = Carried::new(Room::new(8), &[1000, 100, 100], 7);
        c.deliver(1000, 1188);
        c.deliver(1000, 1188);
        assert_eq!((c.room.used(), c.retransmitted()), (1, 1));
        c.deliver(0, 1332);
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (0, all(3), 0));
    }

    #[test]
    fn a_long_segment_is_held_in_pieces() {
        let c = Carried::new(Room::new(32), &[100, 9000, 9000, 5], 7);
        c.deliver(144, c.bytes.len());
        assert_eq!(c.room.used(), (c.bytes.len() - 144).div_ceil(PIECE_BYTES));
        c.deliver(0, 144);
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (0, all(4), 0));
    }

    #[test]
    fn without_room_the_stream_is_lost_and_says_so() {
        let c = Carried::new(Room::new(1), &[100, 5000, 100, 100], 7);
        c.deliver(150, 5332);
        assert_eq!((c.orphans(), c.room.used()), (1, 0), "an orphan stands for what was hidden");
        c.deliver(5332, c.bytes.len());
        assert_eq!((c.orphans(), c.xids()), (1, BTreeSet::from([3])), "found again at a record");
    }

    #[test]
    fn what_the_server_has_and_we_have_not_loses_the_stream() {
        let c = Carried::new(Room::new(8), &[100, 100, 100], 7);
        c.deliver(0, 144);
        c.server_acks(288);
        c.deliver(288, c.bytes.len());
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (1, BTreeSet::from([0, 2]), 0));
    }

    #[test]
    fn what_expired_is_not_read() {
        let mut c = Carried::new(Room::new(8), &[100, 100, 100], 7);
        c.deliver(144, 288);
        c.place.now += STALE + 1;
        c.deliver(0, 144);
        assert_eq!((c.orphans(), c.xids(), c.room.used()), (1, all(1), 0));
        // And what somebody left long ago is room again.
        let mut d = Carried::new(c.room, &[100, 100, 100], 7);
        for from in 1..9 {
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
            let room = Room::new(if round % 2 == 0 { 64 } else { 1 + random(3) as u32 });
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
