//! A segment's payload, followed through its stream: calls in, replies out.

use crate::at;
use crate::cell::Shared;
use crate::flow::{self, Lines};
use crate::held;
use crate::kernel::repeat;
use crate::packet::{Bytes, Packet};
use crate::rpc;
use crate::stream::{self, Fit, Rest, Side, Step};
use core::ffi::c_void;
use reroute_common::admission::Word;
use reroute_common::class;
use reroute_common::event::{Event, kind, way};
use reroute_common::flow::{Flow, call, stream as bits};
use reroute_common::table::{Client, Server, orphan};

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

struct Walk<B, L> {
    bytes: B,
    lines: L,
    place: Place,
    rest: Rest,
    lost: u32,
}

impl<B, L> Walk<B, L> {
    /// Whether the segment was followed to its end: what is left of it would be misread as something else.
    #[inline(always)]
    fn is_whole(&self) -> bool {
        self.lost == 0 && self.rest.left == 0
    }
}

/// Calls that came in. `segment.len` is not 0.
#[inline(always)]
pub fn calls<P: Packet, L: Lines + Copy>(packet: P, lines: L, place: &Place, segment: Segment) {
    let line = place.line;
    let client = place.client;
    let rx = at!(line.rx);
    let flags = at!(rx.flags).get();
    if flags & bits::SEEN != 0 && held::passed_us(line) {
        // Nothing will fill that hole; and what is sent again of it has been answered, maybe: also in a lost stream.
        at!(rx.next_seq).set(at!(line.server_acked).get());
        if flags & bits::SYNCED != 0 {
            flow::uncertain(line, client);
            lose(lines, place);
        }
    }
    let fit = stream::enter(rx, segment.seq, segment.len);
    let mut rest = Rest { offset: segment.offset, left: segment.len };
    match fit {
        // An orphan stands for what a lost stream hides.
        Fit::Old | Fit::Unseen => return,
        Fit::New { skip } => {
            rest = Rest { offset: segment.offset + skip, left: segment.len - skip };
            if skip == 0 && held::overlaps(lines, place, segment.seq.wrapping_add(segment.len)) {
                stream::again(rx);
            }
        }
        // The server's TCP keeps it until the bytes before it have come. So do we; they may have come on another CPU
        // just now.
        Fit::Ahead if held::hold(packet, lines, place, segment) => rest.left = 0,
        Fit::Ahead => {
            if !stream::leap(rx, segment.seq, segment.len) {
                lost_calls(lines, place);
            }
        }
        Fit::Unsynced => {}
    }
    if at!(rx.flags).get() & bits::SYNCED == 0 {
        let peeked = rest.left != 0 && stream::peek(&packet, rx, segment.offset, segment.len, rpc::CALL_HEAD);
        if !peeked || !rpc::looks_like_call(rx) {
            return;
        }
        stream::resync(rx);
    }
    if (rest.left != 0 && !walk_calls(packet, lines, place, rest)) || !held::drain(lines, place) {
        lost_calls(lines, place);
    }
}

/// Follows bytes that are next in the stream of calls. False: they hold something else than records.
#[inline(always)]
pub fn walk_calls<B: Bytes, L: Lines + Copy>(bytes: B, lines: L, place: &Place, rest: Rest) -> bool {
    let mut walk = Walk { bytes, lines, place: *place, rest, lost: 0 };
    repeat(MAX_STEPS, call_step::<B, L>, &mut walk);
    walk.is_whole()
}

#[inline(always)]
fn lost_calls<L: Lines + Copy>(lines: L, place: &Place) {
    flow::orphan(place.client, orphan::CALLS_LOST);
    lose(lines, place);
}

#[inline(always)]
fn lose<L: Lines + Copy>(lines: L, place: &Place) {
    let line = place.line;
    let client = place.client;
    stream::lose(at!(line.rx));
    held::release(lines, place);
    at!(client.streams_lost).count(1);
}

unsafe extern "C" fn call_step<B: Bytes, L: Lines + Copy>(_: u32, walk: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the walk of `walk_calls`.
    let walk = unsafe { &mut *walk.cast::<Walk<B, L>>() };
    let place = &walk.place;
    let line = place.line;
    let rx = at!(line.rx);
    match stream::step(&walk.bytes, rx, &mut walk.rest, Side::Calls) {
        Step::Continue => 0,
        Step::End => 1,
        Step::Lost => {
            walk.lost = 1;
            1
        }
        Step::Record => {
            let call = rpc::call(rx);
            // Before it is in any slot: whoever counts sees it.
            let client = place.client;
            at!(client.in_progress).increase(1);
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
    let fit = stream::enter(tx, segment.seq, segment.len);
    let mut skip = 0;
    match fit {
        Fit::Old => return,
        Fit::Unseen => {
            flow::abandon(line, client, 0, orphan::REPLIES_LOST);
            return;
        }
        Fit::New { skip: n } => skip = n,
        Fit::Ahead if stream::leap(tx, segment.seq, segment.len) => {}
        Fit::Ahead | Fit::Unsynced => {
            if fit == Fit::Ahead {
                lost_replies(place);
            }
            // Whatever waits may have been answered by bytes we could not read: it must not look unanswered.
            let peeked = stream::peek(&packet, tx, segment.offset, segment.len, rpc::REPLY_HEAD);
            if !peeked || !rpc::looks_like_reply(tx) || !flow::waits_for(line, rpc::xid(tx)) {
                flow::abandon(line, client, 0, orphan::REPLIES_LOST);
                return;
            }
            flow::abandon(line, client, rpc::xid(tx), orphan::REPLIES_LOST);
            stream::resync(tx);
        }
    }
    let rest = Rest { offset: segment.offset + skip, left: segment.len - skip };
    let mut walk = Walk { bytes: packet, lines: (), place: *place, rest, lost: 0 };
    repeat(MAX_STEPS, reply_step::<P>, &mut walk);
    if !walk.is_whole() {
        lost_replies(place);
        flow::abandon(line, client, 0, orphan::REPLIES_LOST);
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
    let line = place.line;
    let tx = at!(line.tx);
    match stream::step(&walk.bytes, tx, &mut walk.rest, Side::Replies) {
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
    if let Some(call) = flow::answer(line, client, xid, place.now)
        && class::is_data(call::class(call))
    {
        at!(server.data_reply_at).set(place.now);
    }
    let word = Word(at!(client.word).get());
    let reported = at!(client.first_reply_epoch).get();
    if word.is_admitted()
        && reported != word.epoch()
        && at!(client.first_reply_epoch).replace(reported, word.epoch())
    {
        crate::maps::emit(&Event {
            client: place.slot,
            flow: place.index,
            waiting: at!(line.waiting).get(),
            limit: word.epoch(),
            way: way::OUT,
            ..Event::new(place.now, kind::FIRST_REPLY)
        });
    }
}
