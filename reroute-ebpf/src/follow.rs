//! A segment's payload, followed through its stream: calls in, replies out.

use crate::at;
use crate::cell::Shared;
use crate::flow::{self, Lines};
use crate::hole::{self, Meeting};
use crate::kernel::repeat;
use crate::packet::Packet;
use crate::rpc;
use crate::stream::{self, Fit, Rest, Side, Step};
use core::ffi::c_void;
use reroute_common::admission::Word;
use reroute_common::event::{Event, kind};
use reroute_common::flow::{Flow, HOLES, Stream};
use reroute_common::table::{Client, Server};

/// Steps through one segment: two per record, so even 64 KiB of the shortest replies fit.
const MAX_STEPS: u32 = 8192;

/// Where a segment belongs.
#[derive(Clone, Copy)]
pub struct Place {
    pub slot: u32,
    pub index: u32,
    pub line: Shared<Flow>,
    pub client: Shared<Client>,
    pub server: Shared<Server>,
    pub now: u64,
}

/// Bytes of a segment and their sequence number.
#[derive(Clone, Copy)]
pub struct Segment {
    pub seq: u32,
    pub offset: u32,
    pub len: u32,
}

struct Walk<P, L> {
    packet: P,
    lines: L,
    place: Place,
    stream: Shared<Stream>,
    rest: Rest,
    lost: u32,
}

/// Calls that came in. `segment.len` is not 0.
#[inline(always)]
pub fn calls<P: Packet, L: Lines + Copy>(packet: P, lines: L, place: &Place, segment: Segment) {
    let line = place.line;
    let client = place.client;
    let rx = at!(line.rx);
    if hole::any(line) {
        let mut fill = Fill { packet, lines, place: *place, segment };
        repeat(HOLES as u32, fill_step::<P, L>, &mut fill);
    }
    let before = at!(rx.retransmitted).get();
    let expected = at!(rx.next_seq).get();
    let fit = stream::enter(rx, segment.seq, segment.len);
    at!(client.rx_retransmitted).count(at!(rx.retransmitted).get() - before);
    let mut skip = 0;
    match fit {
        Fit::Old => return,
        Fit::New { skip: n } => skip = n,
        Fit::Lost | Fit::Unsynced => {
            if fit == Fit::Lost {
                hole::open(line, expected, segment.seq, |number| lines.opaque(number));
                lost_calls(place);
            }
            let peeked = stream::peek(&packet, rx, segment.offset, segment.len, rpc::CALL_HEAD);
            if !peeked || !rpc::looks_like_call(rx) {
                return;
            }
            stream::resync(rx);
            hole::resumed(line, segment.seq);
        }
    }
    let rest = Rest { offset: segment.offset + skip, left: segment.len - skip };
    if !walk_calls(packet, lines, place, rx, rest) {
        lost_calls(place);
    }
}

struct Fill<P, L> {
    packet: P,
    lines: L,
    place: Place,
    segment: Segment,
}

/// Bytes that were missing. When a hole is full and the streams meet, its orphan goes: after the calls are counted.
unsafe extern "C" fn fill_step<P: Packet, L: Lines + Copy>(index: u32, fill: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `calls`.
    let fill = unsafe { &mut *fill.cast::<Fill<P, L>>() };
    let place = fill.place;
    let (line, client) = (place.line, place.client);
    if !hole::is_open(line, index) {
        return 0;
    }
    let hole = at!(line.holes).element(index);
    let followed = at!(hole.stream);
    let segment = fill.segment;
    let len = hole::share(hole, segment.seq, segment.len);
    if len == 0 {
        return 0;
    }
    let skip = match stream::enter(followed, segment.seq, len) {
        Fit::New { skip } => skip,
        Fit::Old => return 0,
        // A hole within the hole.
        Fit::Lost | Fit::Unsynced => {
            hole::close(line, index);
            return 0;
        }
    };
    let rest = Rest { offset: segment.offset + skip, left: len - skip };
    if !walk_calls(fill.packet, fill.lines, &place, followed, rest) {
        hole::close(line, index);
        return 0;
    }
    match hole::meet(line, index) {
        Meeting::NotYet | Meeting::Torn => return 0,
        Meeting::Seamless => {}
        Meeting::SeamlessWithCall => {
            let call = rpc::call(followed);
            flow::accept(&fill.lines, (place.index, line), client, place.server, call, place.now);
        }
    }
    at!(client.orphans).decrease(1);
    0
}

/// Follows one segment through `stream`. False: it holds something else than records.
#[inline(always)]
fn walk_calls<P: Packet, L: Lines + Copy>(
    packet: P,
    lines: L,
    place: &Place,
    stream: Shared<Stream>,
    rest: Rest,
) -> bool {
    let mut walk = Walk { packet, lines, place: *place, stream, rest, lost: 0 };
    repeat(MAX_STEPS, call_step::<P, L>, &mut walk);
    walk.lost == 0
}

#[inline(always)]
fn lost_calls(place: &Place) {
    let line = place.line;
    let client = place.client;
    stream::lose(at!(line.rx));
    at!(client.orphans).increase(1);
    at!(client.streams_lost).count(1);
}

unsafe extern "C" fn call_step<P: Packet, L: Lines + Copy>(_: u32, walk: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the walk of `calls`.
    let walk = unsafe { &mut *walk.cast::<Walk<P, L>>() };
    let place = &walk.place;
    let line = place.line;
    let rx = walk.stream;
    match stream::step(&walk.packet, rx, &mut walk.rest, Side::Calls) {
        Step::Continue => 0,
        Step::End => 1,
        Step::Lost => {
            walk.lost = 1;
            1
        }
        Step::Record => {
            let call = rpc::call(rx);
            flow::accept(&walk.lines, (place.index, line), place.client, place.server, call, place.now);
            0
        }
    }
}

/// Replies that leave. `segment.len` is not 0. `tell` is given the event of a first reply.
#[inline(always)]
pub fn replies<P: Packet>(packet: P, place: &Place, segment: Segment) {
    let line = place.line;
    let client = place.client;
    let tx = at!(line.tx);
    let before = at!(tx.retransmitted).get();
    let fit = stream::enter(tx, segment.seq, segment.len);
    at!(client.tx_retransmitted).count(at!(tx.retransmitted).get() - before);
    let mut skip = 0;
    match fit {
        Fit::Old => return,
        Fit::New { skip: n } => skip = n,
        Fit::Lost | Fit::Unsynced => {
            if fit == Fit::Lost {
                lost_replies(place);
            }
            // Whatever waits may have been answered by bytes we could not read: it must not look unanswered.
            let peeked = stream::peek(&packet, tx, segment.offset, segment.len, rpc::REPLY_HEAD);
            if !peeked || !rpc::looks_like_reply(tx) || !flow::waits_for(line, rpc::xid(tx)) {
                flow::abandon(line, client, 0);
                return;
            }
            flow::abandon(line, client, rpc::xid(tx));
            stream::resync(tx);
        }
    }
    let rest = Rest { offset: segment.offset + skip, left: segment.len - skip };
    let mut walk = Walk { packet, lines: (), place: *place, stream: tx, rest, lost: 0 };
    repeat(MAX_STEPS, reply_step::<P>, &mut walk);
    if walk.lost != 0 {
        lost_replies(place);
        flow::abandon(line, client, 0);
    }
}

#[inline(always)]
fn lost_replies(place: &Place) {
    let line = place.line;
    let client = place.client;
    stream::lose(at!(line.tx));
    at!(client.streams_lost).count(1);
}

unsafe extern "C" fn reply_step<P: Packet>(_: u32, walk: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the walk of `replies`.
    let walk = unsafe { &mut *walk.cast::<Walk<P, ()>>() };
    let place = &walk.place;
    let tx = walk.stream;
    match stream::step(&walk.packet, tx, &mut walk.rest, Side::Replies) {
        Step::Continue => 0,
        Step::End => 1,
        Step::Lost => {
            walk.lost = 1;
            1
        }
        Step::Record => {
            reply(place, rpc::xid(tx));
            0
        }
    }
}

#[inline(always)]
fn reply(place: &Place, xid: u32) {
    let (line, client, server) = (place.line, place.client, place.server);
    at!(server.last_reply_at).set(place.now);
    flow::answer(line, client, xid, place.now);
    let word = Word(at!(client.word).get());
    let reported = at!(client.first_reply_epoch).get();
    if word.is_admitted()
        && reported != word.epoch()
        && at!(client.first_reply_epoch).replace(reported, word.epoch())
    {
        crate::maps::emit(&Event {
            at: place.now,
            kind: kind::FIRST_REPLY,
            client: place.slot,
            flow: place.index,
            waiting: at!(line.waiting).get(),
            age_ns: 0,
            limit: word.epoch(),
        });
    }
}
