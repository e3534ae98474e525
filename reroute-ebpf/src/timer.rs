//! The timer: sees calls grow old, whatever the load in userspace.

use crate::cell::Shared;
use crate::kernel::{self, repeat};
use crate::maps::{self, TIMER, TimerValue};
use crate::{at, flow};
use aya_ebpf::helpers::generated as helpers;
use core::ffi::c_void;
use reroute_common::event::{Event, kind, way};
use reroute_common::flow::{Flow, call, raised};
use reroute_common::table::{Config, Server};

/// CLOCK_MONOTONIC, for intervals.
const MONOTONIC: u64 = 1;
/// A tick this many periods late says nothing about the server: the whole machine stood still.
const LATE: u64 = 8;

struct Scan {
    now: u64,
    rebased_at: u64,
    unanswered_limit: u64,
    unacked_limit: u64,
    oldest: u64,
    /// The shortest limit that a call is over.
    over: u64,
    word: u64,
    base: u32,
    waiting: u32,
    stalled: u32,
}

/// Arms the timer, or re-arms it with this program's callback.
#[inline(always)]
pub fn start(period: u64) -> bool {
    let Some(value) = TIMER.get_ptr_mut(0) else { return false };
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
    let before = at!(server.tick_at).get();
    if before == 0 {
        at!(value.rebased_at).set(now);
    } else {
        let gap = now.saturating_sub(before);
        if gap > at!(server.worst_tick_gap_ns).get() {
            at!(server.worst_tick_gap_ns).set(gap);
        }
        if gap > LATE * period {
            at!(value.rebased_at).set(now);
        }
    }
    at!(server.tick_at).set(now);
    at!(server.ticks).set(at!(server.ticks).get() + 1);
    judge(config, server, now, at!(value.rebased_at).get());
    let timer = at!(value.timer);
    // SAFETY: the timer whose callback this is.
    unsafe { helpers::bpf_timer_start(timer.as_ptr(), period, 0) };
    0
}

/// Looks at every line with calls waiting; tells what has changed.
#[inline(always)]
pub fn judge(config: Shared<Config>, server: Shared<Server>, now: u64, rebased_at: u64) {
    let mut scan = Scan {
        now,
        rebased_at,
        unanswered_limit: at!(config.unanswered_limit_ns).get(),
        unacked_limit: at!(config.unacked_limit_ns).get(),
        oldest: 0,
        over: u64::MAX,
        word: 0,
        base: 0,
        waiting: 0,
        stalled: 0,
    };
    repeat(maps::WAITING_WORDS, scan_word, &mut scan);
    at!(server.waiting).set(scan.waiting);
    at!(server.stalled_flows).set(scan.stalled);
    at!(server.oldest_call_age_ns).set(scan.oldest);

    // Silence is judged by the limit of whoever waits too long: no reply for anybody for as long as that.
    let last_reply = at!(server.last_reply_at).get();
    let since = if last_reply > rebased_at { last_reply } else { rebased_at };
    let silence = now.saturating_sub(since);
    let silent = (scan.over <= silence) as u32;
    if at!(server.silent).get() != silent {
        at!(server.silent).set(silent);
        at!(server.silent_count).count(silent as u64);
        let kind = if silent != 0 { kind::SILENT } else { kind::SILENT_END };
        let limit = if silent != 0 { scan.over } else { 0 };
        maps::emit(&Event { waiting: scan.waiting, age_ns: silence, limit, ..Event::new(now, kind) });
    }
}

unsafe extern "C" fn scan_word(index: u32, scan: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the scan of `judge`.
    let scan = unsafe { &mut *scan.cast::<Scan>() };
    let Some(word) = maps::waiting(index) else { return 1 };
    scan.word = word.get();
    if scan.word != 0 {
        scan.base = index * 64;
        repeat(64, scan_line, scan);
    }
    0
}

unsafe extern "C" fn scan_line(bit: u32, scan: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the scan of `scan_word`.
    let scan = unsafe { &mut *scan.cast::<Scan>() };
    if scan.word >> (bit & 63) & 1 == 0 {
        return 0;
    }
    let index = scan.base + (bit & 63);
    let Some(line) = maps::flow(index) else { return 0 };
    let waiting = at!(line.waiting).get();
    let raised = at!(line.raised).get();
    let unacked_since = at!(line.unacked_since).get();
    if waiting == 0 && unacked_since == 0 && raised & (raised::UNANSWERED | raised::UNACKED) == 0 {
        return sleep(line, index);
    }
    let answered = waiting == 0 || calls(scan, line, index, waiting) == 0;
    if answered && raised & raised::UNANSWERED != 0 {
        turn(scan, &Turn { line, index, bit: raised::UNANSWERED, up: false, age_ns: 0, limit: 0 });
    }
    let owed = if unacked_since == 0 { 0 } else { age(scan, scan.now.saturating_sub(unacked_since)) };
    let unacked = owed >= scan.unacked_limit;
    if unacked != (raised & raised::UNACKED != 0) {
        let limit = scan.unacked_limit;
        turn(scan, &Turn { line, index, bit: raised::UNACKED, up: unacked, age_ns: owed, limit });
    }
    0
}

/// No age counts from before the machine stood still.
#[inline(always)]
fn age(scan: &Scan, age: u64) -> u64 {
    let most = scan.now.saturating_sub(scan.rebased_at);
    if age > most { most } else { age }
}

/// The line's bit goes first, then we look again: whatever came in between has set it, or sets it now.
#[inline(always)]
fn sleep(line: Shared<Flow>, index: u32) -> i64 {
    if let Some(word) = maps::waiting(index / 64) {
        let bit = 1 << (index & 63);
        word.and(!bit);
        if at!(line.waiting).get() != 0 || at!(line.unacked_since).get() != 0 {
            word.or(bit);
        }
    }
    0
}

/// Calls wait: 1 if one of them does so for too long.
#[inline(always)]
fn calls(scan: &mut Scan, line: Shared<Flow>, index: u32, waiting: u32) -> u32 {
    scan.waiting += waiting;
    let known = at!(line.oldest).get();
    let mut oldest = if known == 0 { 0 } else { age(scan, call::age_ns(known, scan.now)) };
    let slot = at!(line.client).get();
    let own = match maps::client(slot) {
        Some(client) => at!(client.unanswered_limit_ns).get(),
        None => 0,
    };
    let limit = if own == 0 { scan.unanswered_limit } else { own };
    // What was known may have been answered since.
    if known == 0 || oldest >= limit {
        let (found, time) = flow::oldest_call(line, scan.now);
        at!(line.oldest).set(time);
        oldest = age(scan, found);
    }
    if oldest > scan.oldest {
        scan.oldest = oldest;
    }
    if oldest < limit {
        return 0;
    }
    scan.stalled += 1;
    if limit < scan.over {
        scan.over = limit;
    }
    if at!(line.raised).get() & raised::UNANSWERED == 0 {
        if let Some(client) = maps::client(slot) {
            at!(client.stalls).count(1);
        }
        turn(scan, &Turn { line, index, bit: raised::UNANSWERED, up: true, age_ns: oldest, limit });
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
fn turn(scan: &Scan, turn: &Turn) {
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
        ..Event::new(scan.now, kind)
    });
}
