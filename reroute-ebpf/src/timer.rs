//! The timer: sees calls grow old, whatever the load in userspace.

use crate::cell::Shared;
use crate::kernel::{self, repeat};
use crate::maps::{self, TIMER, TimerValue};
use crate::{at, flow};
use aya_ebpf::helpers::generated as helpers;
use core::ffi::c_void;
use reroute_common::class;
use reroute_common::event::{Event, kind, way};
use reroute_common::flow::{Flow, call, raised};
use reroute_common::table::{Config, Server};

/// CLOCK_MONOTONIC, for intervals.
const MONOTONIC: u64 = 1;
/// A tick this many periods late says nothing about the server: the whole machine stood still.
const LATE: u64 = 8;

/// A timer without a tick for this long does not run, ns.
const STOPPED: u64 = 1_000_000_000;
/// A limit so many times (a power of two) as long as the machine stood still is not touched by it.
const SHARE: u32 = 3;
/// Longer ago than any limit, ns.
const FORGOTTEN: u64 = 4_000_000_000;
/// How far the age of the oldest call may be overstated, as long as its limit is not reached.
const EXACT: u64 = 50_000_000;

/// In a map: of numbers on the stack the verifier would follow every combination.
#[repr(C)]
pub struct Scan {
    now: u64,
    rebased_at: u64,
    stood_still: u64,
    unanswered_limit: u64,
    unacked_limit: u64,
    look_again: u64,
    /// Of all lines.
    all: Found,
    /// Of the 64 lines at hand.
    some: Found,
    /// Those of them that are still to be looked at.
    lines: u64,
    base: u32,
    due_at: u64,
}

/// What waits.
#[repr(C)]
struct Found {
    waiting: u32,
    stalled: u32,
    /// The shortest limit that a call is over; 0: none is.
    over: u64,
    /// ... a connection's oldest one, which is one for data.
    over_data: u64,
    /// When the oldest call came, boot ns; 0: none waits.
    oldest_at: u64,
}

/// Arms the timer, or re-arms it with this program's callback.
#[inline(always)]
pub fn start(server: Shared<Server>, period: u64, now: u64) -> bool {
    let Some(value) = TIMER.get_ptr_mut(0) else { return false };
    if now.saturating_sub(at!(server.tick_at).get()) > STOPPED {
        // It was not late: nobody ran it.
        // SAFETY: the timer's own value, and no callback runs.
        let value: Shared<TimerValue> = unsafe { Shared::new(value) };
        at!(value.rebased_at).set(now);
        at!(value.stood_still).set(u64::MAX >> SHARE);
        at!(value.stood_at).set(now);
        at!(server.tick_at).set(now);
    }
    // SAFETY: the kernel guards the timer; a second init is refused and changes nothing.
    unsafe {
        let timer = &raw mut (*value).timer;
        let map = (&raw const TIMER).cast_mut().cast::<c_void>();
        helpers::bpf_timer_init(timer, map, MONOTONIC);
        if helpers::bpf_timer_set_callback(timer, tick as *mut c_void) != 0 {
            return false;
        }
        helpers::bpf_timer_start(timer, period, 0) == 0
    }
}

unsafe extern "C" fn tick(_map: *mut c_void, _key: *mut c_void, value: *mut c_void) -> i64 {
    let (Some(config), Some(server)) = (maps::config(), maps::server()) else { return 0 };
    let period = at!(config.timer_period_ns).get();
    // SAFETY: the kernel hands over the timer's own value.
    let value: Shared<TimerValue> = unsafe { Shared::new(value.cast()) };
    let now = kernel::now();
    let gap = now.saturating_sub(at!(server.tick_at).get());
    if gap > at!(server.worst_tick_gap_ns).get() {
        at!(server.worst_tick_gap_ns).set(gap);
    }
    if gap > LATE * period {
        let (before, at) = (at!(value.stood_still).get(), at!(value.stood_at).get());
        if outlasts(gap, now, (before, at)) {
            at!(value.stood_still).set(gap);
            at!(value.stood_at).set(now);
        }
        at!(value.rebased_at).set(now);
    }
    at!(server.tick_at).set(now);
    at!(server.ticks).set(at!(server.ticks).get() + 1);
    judge(config, server, now, (at!(value.rebased_at).get(), at!(value.stood_still).get()));
    let timer = at!(value.timer);
    // SAFETY: the timer whose callback this is.
    unsafe { helpers::bpf_timer_start(timer.as_ptr(), period, 0) };
    0
}

/// Whether a standstill counts in place of the one before: that was shorter, or is too long ago, whatever came since.
#[inline(always)]
fn outlasts(gap: u64, now: u64, (before, at): (u64, u64)) -> bool {
    gap > before || now.saturating_sub(at) > FORGOTTEN
}

/// Looks at every line that is due; tells what has changed.
#[inline(always)]
pub fn judge(
    config: Shared<Config>,
    server: Shared<Server>,
    now: u64,
    (rebased_at, stood_still): (u64, u64),
) {
    let Some(scan) = maps::scan() else { return };
    at!(scan.now).set(now);
    at!(scan.rebased_at).set(rebased_at);
    at!(scan.stood_still).set(stood_still);
    at!(scan.unanswered_limit).set(at!(config.unanswered_limit_ns).get());
    at!(scan.unacked_limit).set(at!(config.unacked_limit_ns).get());
    at!(scan.look_again).set(at!(config.look_again_ns).get());
    forget(at!(scan.all));
    repeat(maps::WATCHES_COUNT, scan_watch, &mut ());
    let waiting = at!(scan.all.waiting).get();
    let oldest_at = at!(scan.all.oldest_at).get();
    at!(server.waiting).set(waiting);
    at!(server.stalled_flows).set(at!(scan.all.stalled).get());
    at!(server.oldest_call_age_ns).set(if oldest_at == 0 { 0 } else { now.saturating_sub(oldest_at) });

    let over = at!(scan.all.over_data).get();
    let silence = age(scan, now.saturating_sub(at!(server.data_reply_at).get()), over);
    at!(server.data_silent).set((over != 0 && over <= silence) as u32);

    // Silence is judged by the limit of whoever waits too long: no reply for anybody for as long as that.
    let over = at!(scan.all.over).get();
    let silence = age(scan, now.saturating_sub(at!(server.last_reply_at).get()), over);
    let silent = (over != 0 && over <= silence) as u32;
    if at!(server.silent).get() != silent {
        at!(server.silent).set(silent);
        at!(server.silent_count).count(silent as u64);
        let kind = if silent != 0 { kind::SILENT } else { kind::SILENT_END };
        let limit = if silent != 0 { over } else { 0 };
        maps::emit(&Event { waiting, age_ns: silence, limit, ..Event::new(now, kind) });
    }
}

#[inline(always)]
fn forget(found: Shared<Found>) {
    at!(found.waiting).set(0);
    at!(found.stalled).set(0);
    at!(found.over).set(0);
    at!(found.over_data).set(0);
    at!(found.oldest_at).set(0);
}

/// Keeps the lesser; 0 is none.
#[inline(always)]
fn keep_first(kept: Shared<u64>, new: u64) {
    let known = kept.get();
    if new != 0 && (known == 0 || new < known) {
        kept.set(new);
    }
}

/// 64 lines: looked at when one of them is due, else what was found last time still holds.
unsafe extern "C" fn scan_watch(index: u32, _: *mut c_void) -> i64 {
    let (Some(scan), Some(watch)) = (maps::scan(), maps::watch(index)) else { return 1 };
    let lines = at!(watch.lines).get();
    if lines == 0 {
        return 0;
    }
    if at!(scan.now).get() >= at!(watch.due_at).get() {
        at!(scan.lines).set(lines);
        at!(scan.base).set(index * 64);
        at!(scan.due_at).set(0);
        forget(at!(scan.some));
        repeat(64, scan_line, &mut ());
        at!(watch.waiting).set(at!(scan.some.waiting).get());
        at!(watch.stalled).set(at!(scan.some.stalled).get());
        at!(watch.over).set(at!(scan.some.over).get());
        at!(watch.over_data).set(at!(scan.some.over_data).get());
        at!(watch.oldest_at).set(at!(scan.some.oldest_at).get());
        at!(watch.due_at).set(at!(scan.due_at).get());
    }
    at!(scan.all.waiting).set(at!(scan.all.waiting).get() + at!(watch.waiting).get());
    at!(scan.all.stalled).set(at!(scan.all.stalled).get() + at!(watch.stalled).get());
    keep_first(at!(scan.all.over), at!(watch.over).get());
    keep_first(at!(scan.all.over_data), at!(watch.over_data).get());
    keep_first(at!(scan.all.oldest_at), at!(watch.oldest_at).get());
    0
}

/// The number of the lowest bit that is set.
#[inline(always)]
fn lowest(bits: u64) -> u32 {
    // Its lower neighbours, counted: the instruction set has neither.
    let mut x = bits.wrapping_sub(1) & !bits;
    x -= (x >> 1) & 0x5555_5555_5555_5555;
    x = (x & 0x3333_3333_3333_3333) + ((x >> 2) & 0x3333_3333_3333_3333);
    x = (x + (x >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    (x.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

unsafe extern "C" fn scan_line(_: u32, _: *mut c_void) -> i64 {
    let Some(scan) = maps::scan() else { return 1 };
    let lines = at!(scan.lines).get();
    if lines == 0 {
        return 1;
    }
    at!(scan.lines).set(lines & (lines - 1));
    let index = at!(scan.base).get() + lowest(lines);
    let Some(line) = maps::flow(index) else { return 0 };
    let waiting = at!(line.waiting).get();
    let raised = at!(line.raised).get();
    let unacked_since = at!(line.unacked_since).get();
    if waiting == 0 && unacked_since == 0 && raised & (raised::UNANSWERED | raised::UNACKED) == 0 {
        return sleep(line, index);
    }
    let now = at!(scan.now).get();
    // Whatever comes in the meantime is not due before that.
    keep_first(at!(scan.due_at), now + at!(scan.look_again).get());
    let answered = waiting == 0 || calls(scan, line, index, waiting) == 0;
    if answered && raised & raised::UNANSWERED != 0 {
        turn(now, &Turn { line, index, bit: raised::UNANSWERED, up: false, age_ns: 0, limit: 0 });
    }
    let limit = at!(scan.unacked_limit).get();
    let owed = if unacked_since == 0 { 0 } else { age(scan, now.saturating_sub(unacked_since), limit) };
    let unacked = owed >= limit;
    if unacked != (raised & raised::UNACKED != 0) {
        turn(now, &Turn { line, index, bit: raised::UNACKED, up: unacked, age_ns: owed, limit });
    }
    if unacked_since != 0 && !unacked {
        keep_first(at!(scan.due_at), now + (limit - owed));
    }
    0
}

/// An age as it counts against a limit: not from before the machine stood still for a good part of that.
#[inline(always)]
fn age(scan: Shared<Scan>, age: u64, limit: u64) -> u64 {
    if at!(scan.stood_still).get() << SHARE < limit {
        return age;
    }
    let most = at!(scan.now).get().saturating_sub(at!(scan.rebased_at).get());
    if age > most { most } else { age }
}

/// The line's bit goes first, then we look again: whatever came in between has set it, or sets it now.
#[inline(always)]
fn sleep(line: Shared<Flow>, index: u32) -> i64 {
    if let Some(watch) = maps::watch(index / 64) {
        let lines = at!(watch.lines);
        let bit = 1 << (index & 63);
        lines.and(!bit);
        if at!(line.waiting).get() != 0 || at!(line.unacked_since).get() != 0 {
            lines.or(bit);
        }
    }
    0
}

/// Calls wait: 1 if one of them does so for too long.
#[inline(always)]
fn calls(scan: Shared<Scan>, line: Shared<Flow>, index: u32, waiting: u32) -> u32 {
    let now = at!(scan.now).get();
    at!(scan.some.waiting).set(at!(scan.some.waiting).get() + waiting);
    let slot = at!(line.client).get();
    let own = match maps::client(slot) {
        Some(client) => at!(client.unanswered_limit_ns).get(),
        None => 0,
    };
    let limit = if own == 0 { at!(scan.unanswered_limit).get() } else { own };
    // Answered since, maybe: none is older, but the oldest one may be younger.
    let known = at!(line.oldest).get();
    let mut oldest = age(scan, call::age_ns(known, now), limit);
    let matters = known == 0 || oldest >= limit || oldest >= EXACT;
    if matters && !flow::still_waits(line, known) {
        let (found, call) = flow::oldest_call(line, now);
        at!(line.oldest).set(call);
        oldest = age(scan, found, limit);
    }
    keep_first(at!(scan.some.oldest_at), now - oldest);
    if oldest < limit {
        keep_first(at!(scan.due_at), now + (limit - oldest));
        return 0;
    }
    at!(scan.some.stalled).set(at!(scan.some.stalled).get() + 1);
    keep_first(at!(scan.some.over), limit);
    if class::is_data(call::class(at!(line.oldest).get())) {
        keep_first(at!(scan.some.over_data), limit);
    }
    if at!(line.raised).get() & raised::UNANSWERED == 0 {
        if let Some(client) = maps::client(slot) {
            at!(client.stalls).count(1);
        }
        turn(now, &Turn { line, index, bit: raised::UNANSWERED, up: true, age_ns: oldest, limit });
    }
    1
}

/// A signal that begins or ends.
struct Turn {
    line: Shared<Flow>,
    index: u32,
    bit: u32,
    up: bool,
    age_ns: u64,
    limit: u64,
}

/// Not inlined: rare.
#[inline(never)]
fn turn(now: u64, turn: &Turn) {
    let &Turn { line, index, bit, up, age_ns, limit } = turn;
    if up {
        at!(line.raised).or(bit);
    } else {
        at!(line.raised).and(!bit);
    }
    let kind = match (bit, up) {
        (raised::UNANSWERED, true) => kind::UNANSWERED,
        (raised::UNANSWERED, false) => kind::UNANSWERED_END,
        (_, true) => kind::UNACKED,
        (_, false) => kind::UNACKED_END,
    };
    maps::emit(&Event {
        client: at!(line.client).get(),
        flow: index,
        waiting: at!(line.waiting).get(),
        age_ns,
        limit,
        way: if bit == raised::UNACKED { way::OUT } else { way::IN },
        ..Event::new(now, kind)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A busy machine makes the timer a little late every now and then: that keeps no long standstill in mind.
    #[test]
    fn a_long_standstill_is_forgotten_although_short_ones_follow() {
        const MS: u64 = 1_000_000;
        let (mut longest, start) = ((1000 * MS, 10_000 * MS), 10_000 * MS);
        for tick in 1..=100 {
            let now = start + tick * 300 * MS;
            if outlasts(9 * MS, now, longest) {
                longest = (9 * MS, now);
            }
            assert_eq!(longest.0 < 1000 * MS, now - start > FORGOTTEN, "{now}");
        }
    }
}
