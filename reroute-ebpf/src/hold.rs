//! Clients without an agent that are not admitted (design §6). Nobody moves their login for them, so their own packets
//! must show where they are: what carries no call gets in, so that handshakes complete, and stale segments draw a RST.
//! A call is held back on an established connection, where TCP sends it again; that it came is told.
//!
//! Nothing that is held back is accepted by the server, so it is no call in progress.

use crate::at;
use crate::cell::Shared;
use crate::kernel::{self, taker};
use crate::maps;
use crate::parse::{Frame, tcp};
use core::ffi::c_void;
use reroute_common::admission::Word;
use reroute_common::event::{Event, WANTED_GAP, kind};
use reroute_common::flow::{Flow, state, stream as bits};
use reroute_common::table::{Client, drop, mode};

/// What becomes of a segment that was refused. Numbers: they fit into a register.
pub mod fate {
    /// Dropped.
    pub const DROP: u32 = 0;
    /// Passes, and is no part of any stream of calls.
    pub const PASS: u32 = 1;
    /// Passes, as if it had been admitted.
    pub const FOLLOW: u32 = 2;
    /// It has bytes: see [`super::judge`].
    pub const JUDGE: u32 = 3;
}

/// A segment acknowledges no more than has been sent, nor less than this many bytes before it.
const WINDOW: u32 = 1 << 22;

/// Whether segments of this client that are refused for this reason are held back rather than dropped. An operator's
/// block is no wait for a login.
#[inline(always)]
pub fn applies(client: Shared<Client>, slot: u32, mode: u32, reason: usize) -> bool {
    reason != drop::BLOCKED && mode == mode::ENFORCE && slot != 0 && at!(client.has_agent).get() == 0
}

/// One of [`fate`], of a TCP segment of a client that [`applies`]. `known`: it is of a connection that is followed.
#[inline(always)]
pub fn without_bytes(frame: &Frame, known: bool) -> u32 {
    if frame.payload_len > 0 && frame.flags & tcp::RST == 0 {
        return fate::JUDGE;
    }
    // Of a connection that was there before us, nothing is followed: it is to end.
    if known || frame.flags & tcp::SYN != 0 { fate::FOLLOW } else { fate::PASS }
}

/// Whether such bytes are dropped ([`fate::DROP`]) or pass. Not inlined: rare, and its stack is given back.
#[inline(never)]
pub fn judge(context: *mut c_void, frame: &Frame, slot: u32, index: u32, now: u64) -> u32 {
    // TCP Fast Open: the server would have the call before anybody is known to be there.
    if frame.flags & tcp::SYN != 0 {
        return fate::DROP;
    }
    match kernel::taker(context, frame) {
        taker::NOBODY => fate::PASS,
        taker::CONNECTION => {
            let Some(client) = maps::client(slot) else { return fate::DROP };
            match maps::flow(index).filter(|line| is_followed(*line)) {
                Some(line) if is_next(line, frame) => tell(kind::LOGIN_WANTED, client, slot, now),
                // A later segment, or somebody's who does not know the numbers of this connection.
                Some(_) => {}
                None => tell(kind::LOGIN_WANTED_UNSEEN, client, slot, now),
            }
            fate::DROP
        }
        _ => fate::DROP,
    }
}

/// Whether the numbers of this connection are known: its handshake came by here.
#[inline(always)]
fn is_followed(line: Shared<Flow>) -> bool {
    let (rx, tx) = (at!(line.rx), at!(line.tx));
    at!(line.state).get() == state::OPEN
        && at!(rx.flags).get() & bits::RESET == 0
        && at!(tx.flags).get() & bits::ACKED != 0
}

/// Whether it has the very bytes that the server waits for: that takes to have seen its SYN+ACK. TCP sends these first,
/// and again until they are acknowledged.
#[inline(always)]
fn is_next(line: Shared<Flow>, frame: &Frame) -> bool {
    let tx = at!(line.tx);
    let behind = at!(tx.next_seq).get().wrapping_sub(frame.acknowledgment);
    frame.sequence == at!(line.server_acked).get() && behind <= WINDOW && frame.flags & tcp::ACK != 0
}

#[inline(always)]
fn tell(kind: u32, client: Shared<Client>, slot: u32, now: u64) {
    let last = at!(client.wanted_at).get();
    if now.saturating_sub(last) < WANTED_GAP || !at!(client.wanted_at).replace(last, now) {
        return;
    }
    let limit = Word(at!(client.word).get()).epoch();
    maps::emit(&Event { client: slot, limit, ..Event::new(now, kind) });
}
