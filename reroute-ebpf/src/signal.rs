//! Signals of the packet path: what a segment says about its connection at once. Transitions only.

use crate::at;
use crate::cell::Shared;
use crate::maps;
use crate::parse::{Frame, tcp};
use reroute_common::event::{Event, kind, way};
use reroute_common::flow::{Flow, raised, state, stream};
use reroute_common::table::Client;

/// Without a retransmission for this long, it is over, ns.
const CALM: u64 = 100_000_000;

/// A connection, as events name it.
#[derive(Clone, Copy)]
pub struct About {
    pub slot: u32,
    pub index: u32,
    pub line: Shared<Flow>,
    /// [`way::IN`] or [`way::OUT`].
    pub way: u32,
}

/// Raises or ends the signal `bit`, if it does not stand so already.
#[inline(always)]
fn turn(about: &About, bit: u32, up: bool, (begin, end): (u32, u32)) {
    let line = about.line;
    let before = if up { at!(line.raised).or(bit) } else { at!(line.raised).and(!bit) };
    if (before & bit != 0) != up {
        emit(about, if up { begin } else { end });
    }
}

/// Not inlined: rare, and its stack is given back.
#[inline(never)]
fn emit(about: &About, kind: u32) {
    let line = about.line;
    maps::emit(&Event {
        client: about.slot,
        flow: about.index,
        waiting: at!(line.waiting).get(),
        way: about.way,
        ..Event::new(crate::kernel::now(), kind)
    });
}

/// The receive window that a segment of an open connection announces: zero, or not any more.
#[inline(always)]
pub fn window(about: &About, frame: &Frame) {
    let bit = if about.way == way::IN { raised::ZERO_WINDOW_IN } else { raised::ZERO_WINDOW_OUT };
    let line = about.line;
    let zero = frame.window == 0;
    if zero != (at!(line.raised).get() & bit != 0) && frame.flags & (tcp::SYN | tcp::RST) == 0 {
        turn(about, bit, zero, (kind::ZERO_WINDOW, kind::ZERO_WINDOW_END));
    }
}

/// Bytes came again, or new ones came. The signal ends with the first new ones after a while without.
#[inline(always)]
pub fn retransmission(about: &About, again: bool, new: bool) {
    let bit = if about.way == way::IN { raised::RETRANSMIT_IN } else { raised::RETRANSMIT_OUT };
    let line = about.line;
    let up = at!(line.raised).get() & bit != 0;
    let may_end = new && up;
    if !again && !may_end {
        return;
    }
    let now = crate::kernel::now();
    let last = at!(line.retransmitted_at).element(about.way);
    if again {
        last.set(now);
    } else if now.saturating_sub(last.get()) < CALM {
        return;
    }
    if again != up {
        turn(about, bit, again, (kind::RETRANSMIT, kind::RETRANSMIT_END));
    }
}

/// A RST. It counts, and is told, if the connection was not ending anyhow.
#[inline(always)]
pub fn reset(about: &About, client: Shared<Client>) {
    let line = about.line;
    let (rx, tx) = (at!(line.rx), at!(line.tx));
    let before = at!(rx.flags).or(stream::RESET);
    at!(line.state).replace(state::OPEN, state::CLOSED);
    if (before | at!(tx.flags).get()) & (stream::RESET | stream::FIN) == 0 {
        at!(client.reset).count(1);
        emit(about, kind::RESET);
    }
}
