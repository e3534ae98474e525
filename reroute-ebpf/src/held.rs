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
mod tests;
