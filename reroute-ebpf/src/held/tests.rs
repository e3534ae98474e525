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
        let place =
            Place { slot: 1, index: 0, line: leak(), client: leak(), server: leak::<Server>(), now: 1 << 30 };
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
    let odd_at_last = |n: usize| (1..n).step_by(2).chain((2..n).step_by(2)).chain([0]).collect::<Vec<_>>();
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
