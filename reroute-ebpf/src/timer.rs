//! The timer: sees calls grow old, whatever the load in userspace.

use crate::cell::Shared;
use crate::kernel::{self, repeat};
use crate::maps::{self, TIMER, TimerValue};
use crate::{at, flow};
use aya_ebpf::helpers::generated as helpers;
use core::ffi::c_void;
use reroute_common::event::{Event, kind};
use reroute_common::table::{Config, Server};

/// CLOCK_MONOTONIC, for intervals.
const MONOTONIC: u64 = 1;
/// A tick this many periods late says nothing about the server: the whole machine stood still.
const LATE: u64 = 8;

struct Scan {
    now: u64,
    rebased_at: u64,
    unanswered_limit: u64,
    /// The shorter of the limits: a line whose oldest call is younger is not looked into.
    check_limit: u64,
    oldest: u64,
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

#[inline(always)]
fn judge(config: Shared<Config>, server: Shared<Server>, now: u64, rebased_at: u64) {
    let unanswered_limit = at!(config.unanswered_limit_ns).get();
    let silent_limit = at!(config.silent_limit_ns).get();
    let mut scan = Scan {
        now,
        rebased_at,
        unanswered_limit,
        check_limit: if silent_limit < unanswered_limit { silent_limit } else { unanswered_limit },
        oldest: 0,
        word: 0,
        base: 0,
        waiting: 0,
        stalled: 0,
    };
    repeat(maps::WAITING_WORDS, scan_word, &mut scan);
    at!(server.waiting).set(scan.waiting);
    at!(server.stalled_flows).set(scan.stalled);
    at!(server.oldest_call_age_ns).set(scan.oldest);

    let last_reply = at!(server.last_reply_at).get();
    let since = if last_reply > rebased_at { last_reply } else { rebased_at };
    let since_reply = now.saturating_sub(since);
    let silence = if scan.oldest < since_reply { scan.oldest } else { since_reply };
    let silent = (scan.waiting > 0 && silence >= silent_limit) as u32;
    if at!(server.silent).get() != silent {
        at!(server.silent).set(silent);
        at!(server.silent_count).count(silent as u64);
        maps::emit(&Event {
            at: now,
            kind: if silent != 0 { kind::SILENT } else { kind::SILENT_END },
            client: 0,
            flow: u32::MAX,
            waiting: scan.waiting,
            age_ns: silence,
            limit: silent_limit,
        });
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
    let mut age = 0;
    if waiting == 0 {
        // The bit goes first, then we look again: a call that came in between has set it, or sets it now.
        if let Some(word) = maps::waiting(index / 64) {
            word.and(!(1 << (bit & 63)));
            if at!(line.waiting).get() != 0 {
                word.or(1 << (bit & 63));
            }
        }
    } else {
        scan.waiting += waiting;
        let check_at = at!(line.check_at).get();
        if scan.now < check_at {
            age = scan.check_limit.saturating_sub(check_at - scan.now);
        } else {
            age = flow::oldest_age(line, scan.now);
            let most = scan.now.saturating_sub(scan.rebased_at);
            if age > most {
                age = most;
            }
            let next = if age < scan.check_limit { scan.now + (scan.check_limit - age) } else { 0 };
            at!(line.check_at).set(next);
        }
        if age > scan.oldest {
            scan.oldest = age;
        }
    }
    let stalled = (waiting != 0 && age >= scan.unanswered_limit) as u32;
    scan.stalled += stalled;
    if at!(line.unanswered).get() != stalled {
        at!(line.unanswered).set(stalled);
        let slot = at!(line.client).get();
        if stalled != 0
            && let Some(client) = maps::client(slot)
        {
            at!(client.stalls).count(1);
        }
        maps::emit(&Event {
            at: scan.now,
            kind: if stalled != 0 { kind::UNANSWERED } else { kind::UNANSWERED_END },
            client: slot,
            flow: index,
            waiting,
            age_ns: age,
            limit: scan.unanswered_limit,
        });
    }
    0
}
