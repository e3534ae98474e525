//! The flow table: lines found by hash in sets, claimed by compare-and-set, and the calls in progress in each line.

use crate::at;
use crate::cell::Shared;
use crate::kernel::repeat;
use crate::parse::NOWHERE;
use crate::rpc::Call;
use core::ffi::c_void;
use reroute_common::class;
use reroute_common::flow::{CALL_SLOTS, CALL_WAYS, Flow, FlowKey, MAX_FLOWS, Piece, call, state, stream};
use reroute_common::table::{Client, Server, orphan};

/// Lines a flow may stand in.
pub const WAYS: u32 = 8;
/// An open line may be given away after this long without a packet, ns.
const IDLE: u64 = 60_000_000_000;

/// Where lines are.
pub trait Lines {
    fn line(&self, index: u32) -> Option<Shared<Flow>>;
    fn client(&self, slot: u32) -> Option<Shared<Client>>;
    fn piece(&self, index: u32) -> Option<Shared<Piece>>;
    /// The same number, forgotten by the verifier: it need not follow each way of having found it.
    fn opaque(&self, number: u32) -> u32 {
        number
    }
    /// Tells the timer that calls wait in this line.
    fn wake(&self, index: u32);
}

/// First line of the set a flow belongs to.
#[inline(always)]
pub fn set_of(key: &FlowKey) -> u32 {
    let quarter = |b: &[u8; 16], i: usize| u32::from_ne_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
    let mut h = 0x9e37_79b9_u32 ^ key.network;
    let ports = (key.remote_port as u32) << 16 | key.local_port as u32;
    let parts = [
        ports,
        quarter(&key.remote, 12),
        quarter(&key.remote, 8),
        quarter(&key.remote, 4),
        quarter(&key.remote, 0),
        quarter(&key.local, 12),
    ];
    let mut i = 0;
    while i < parts.len() {
        h = (h ^ parts[i]).wrapping_mul(0x85eb_ca6b);
        h ^= h >> 15;
        i += 1;
    }
    (h % (MAX_FLOWS / WAYS)) * WAYS
}

#[inline(always)]
fn same_key(line: Shared<Flow>, key: &FlowKey) -> bool {
    let held = at!(line.key);
    // SAFETY: a key is 40 bytes at an offset divisible by 8, all integers: five words.
    let (held, key): (Shared<[u64; 5]>, &[u64; 5]) =
        unsafe { (Shared::new(held.as_ptr().cast()), &*core::ptr::from_ref(key).cast()) };
    let word = |i: usize| {
        // SAFETY: the key is one word longer than `i`, which stops at 4.
        let held: Shared<u64> = unsafe { Shared::new(held.as_ptr().cast::<u64>().add(i)) };
        held.get() == key[i]
    };
    word(0) && word(1) && word(2) && word(3) && word(4)
}

/// Whether this is the line of a flow, open or closed.
#[inline(always)]
pub fn is_of(line: Shared<Flow>, key: &FlowKey) -> bool {
    let state = at!(line.state).get();
    (state == state::OPEN || state == state::CLOSED) && same_key(line, key)
}

/// The index of the line of a flow, open or closed; [`NOWHERE`]: it has none.
#[inline(always)]
pub fn find<L: Lines>(lines: &L, key: &FlowKey) -> u32 {
    let set = set_of(key);
    for way in 0..WAYS {
        let Some(line) = lines.line(set + way) else { continue };
        if is_of(line, key) {
            return set + way;
        }
    }
    NOWHERE
}

/// How readily a line is given away, the oldest of a kind first; 0: not at all.
#[inline(always)]
fn rank(line: Shared<Flow>, slot: u32, now: u64) -> u64 {
    let rx = at!(line.rx);
    let idle = now.saturating_sub(at!(line.last_at).get()) >> 8;
    let stranger = at!(line.client).get() == 0;
    // Whoever has acknowledged nothing may be anybody.
    let half_open = at!(rx.flags).get() & stream::ACKED == 0;
    match at!(line.state).get() {
        state::FREE => u64::MAX,
        state::CLOSED => 4 << 58 | idle,
        state::OPEN if stranger && half_open => 3 << 58 | idle,
        // Nobody known makes room for somebody unknown.
        state::OPEN if stranger || slot == 0 => (stranger as u64) * (2 << 58 | idle),
        state::OPEN if half_open || idle > IDLE >> 8 => 1 << 58 | idle,
        _ => 0,
    }
}

/// Takes a line for a new flow of client `slot`: a free one, else a closed one, a stranger's, one half open, or one idle
/// for long. None: the set is full of live flows.
#[inline(always)]
pub fn claim<L: Lines>(
    lines: &L,
    server: Shared<Server>,
    key: &FlowKey,
    slot: u32,
    now: u64,
) -> Option<(u32, Shared<Flow>)> {
    let set = set_of(key);
    let mut best = u32::MAX;
    let mut best_rank = 0_u64;
    for way in 0..WAYS {
        let Some(line) = lines.line(set + way) else { continue };
        let rank = rank(line, slot, now);
        if rank > best_rank {
            best_rank = rank;
            best = set + way;
        }
    }
    let best = lines.opaque(best);
    let line = lines.line(best)?;
    // Somebody else may have taken it since.
    let held = at!(line.state).get();
    if held == state::CLAIMED || rank(line, slot, now) == 0 {
        return None;
    }
    // Before it is CLAIMED: from then on nobody adds up what it has counted.
    at!(server.sums_begun).increase(1);
    let claimed = at!(line.state).replace(held, state::CLAIMED);
    if claimed
        && held != state::FREE
        && let Some(former) = lines.client(at!(line.client).get())
    {
        abandon(line, former, 0, orphan::ENDED);
        hand_over(line, former);
    }
    at!(server.sums_ended).increase(1);
    if !claimed {
        return None;
    }
    if held == state::OPEN {
        at!(server.evicted_flows).count(1);
    }
    write_key(line, key);
    at!(line.client).set(slot);
    at!(line.last_at).set(now);
    begin_anew(line, now);
    at!(line.state).swap(state::OPEN);
    Some((best, line))
}

/// Adds what the line has counted to its client's counts, between `sums_begun` and `sums_ended`. Only for a line that
/// nobody counts in.
#[inline(always)]
fn hand_over(line: Shared<Flow>, client: Shared<Client>) {
    let (rx, tx) = (at!(line.rx), at!(line.tx));
    at!(client.rx_packets).count(at!(rx.packets).swap(0));
    at!(client.rx_bytes).count(at!(rx.bytes).swap(0));
    at!(client.rx_retransmitted).count(at!(rx.retransmitted).swap(0));
    at!(client.tx_packets).count(at!(tx.packets).swap(0));
    at!(client.tx_bytes).count(at!(tx.bytes).swap(0));
    at!(client.tx_retransmitted).count(at!(tx.retransmitted).swap(0));
    let mut class = 0;
    while class < class::COUNT as u32 {
        at!(client.calls).element(class).count(at!(line.calls_seen).element(class).swap(0));
        at!(client.replies).element(class).count(at!(line.replies_seen).element(class).swap(0));
        class += 1;
    }
}

#[inline(always)]
fn write_key(line: Shared<Flow>, key: &FlowKey) {
    let held = at!(line.key);
    // SAFETY: the line is CLAIMED: nobody else reads or writes its key.
    unsafe { *held.as_ptr() = *key };
}

/// All but the counts, which go on for the same client.
#[inline(always)]
fn begin_anew(line: Shared<Flow>, now: u64) {
    let (rx, tx) = (at!(line.rx), at!(line.tx));
    at!(line.opened_at).set(now);
    at!(line.oldest).set(0);
    at!(line.unacked_since).set(0);
    at!(line.raised).swap(0);
    at!(rx.flags).swap(0);
    at!(tx.flags).swap(0);
    at!(rx.lost).set(0);
    at!(tx.lost).set(0);
    crate::held::disown(line);
}

/// A connection begins anew in its old line.
#[inline(always)]
pub fn reopen(line: Shared<Flow>, client: Shared<Client>, now: u64) {
    abandon(line, client, 0, orphan::ENDED);
    begin_anew(line, now);
    at!(line.state).swap(state::OPEN);
}

/// The line's address has become another client's. What was counted is the former one's; what still runs may be either's.
/// Not inlined: rare, and its stack is given back.
#[inline(never)]
pub fn readdress(line: Shared<Flow>, client: Shared<Client>, slot: u32, server: Shared<Server>) {
    if at!(line.waiting).get() != 0 || missed_any(line) {
        orphan(client, orphan::UNSEEN);
    }
    at!(server.sums_begun).increase(1);
    if let Some(former) = crate::maps::client(at!(line.client).get()) {
        abandon(line, former, 0, orphan::ENDED);
        hand_over(line, former);
    }
    at!(line.client).set(slot);
    at!(server.sums_ended).increase(1);
}

struct Leaving {
    line: Shared<Flow>,
    client: Shared<Client>,
    keep: u32,
    cause: u32,
}

/// A call that may run without our knowing.
#[inline(always)]
pub fn orphan(client: Shared<Client>, cause: usize) {
    at!(client.orphans).increase(1);
    at!(client.orphaned).element(cause as u32).count(1);
}

/// Its calls can be matched no more: they leave `in_progress` and become orphans (but the one with XID `keep`, if
/// that is not 0). Orphans grow first, so that the sum never shows too little.
#[inline(always)]
pub fn abandon(line: Shared<Flow>, client: Shared<Client>, keep: u32, cause: usize) {
    if at!(line.waiting).get() != 0 {
        let mut leaving = Leaving { line, client, keep, cause: cause as u32 };
        repeat(CALL_SLOTS as u32, abandon_call, &mut leaving);
    }
}

unsafe extern "C" fn abandon_call(index: u32, leaving: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `abandon`.
    let leaving = unsafe { &*leaving.cast::<Leaving>() };
    let (line, client) = (leaving.line, leaving.client);
    let slot = at!(line.calls).element(index);
    let held = slot.get();
    if held == 0 || (leaving.keep != 0 && call::xid(held) == leaving.keep) {
        return 0;
    }
    at!(client.orphans).increase(1);
    if slot.replace(held, 0) {
        at!(client.orphaned).element(leaving.cause).count(1);
        at!(client.in_progress).decrease(1);
        at!(line.waiting).decrease(1);
    } else {
        at!(client.orphans).decrease(1);
    }
    0
}

/// Forgets its calls: the server that had them is dead and reaped.
#[inline(always)]
pub fn forget(line: Shared<Flow>, client: Shared<Client>) {
    if at!(line.waiting).get() == 0 {
        return;
    }
    repeat(CALL_SLOTS as u32, forget_call, &mut Leaving { line, client, keep: 0, cause: 0 });
}

unsafe extern "C" fn forget_call(index: u32, leaving: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `forget`.
    let leaving = unsafe { &*leaving.cast::<Leaving>() };
    let (line, client) = (leaving.line, leaving.client);
    let slot = at!(line.calls).element(index);
    let held = slot.get();
    if held != 0 && slot.replace(held, 0) {
        at!(client.in_progress).decrease(1);
        at!(line.waiting).decrease(1);
    }
    0
}

const NO_SLOT: u32 = u32::MAX;

/// Slot of an XID in each of its ways; the first one is nobody else's while XIDs are counted up.
#[inline(always)]
fn slot_of(xid: u32, way: u32) -> u32 {
    let set = (xid & (CALL_SLOTS as u32 / CALL_WAYS - 1)) * CALL_WAYS;
    set + ((xid / CALL_WAYS + way) & (CALL_WAYS - 1))
}

/// The slot of a call that waits.
#[inline(always)]
fn find_call(line: Shared<Flow>, xid: u32) -> u32 {
    for way in 0..CALL_WAYS {
        let index = slot_of(xid, way);
        let held = at!(line.calls).element(index).get();
        if held != 0 && call::xid(held) == xid {
            return index;
        }
    }
    NO_SLOT
}

/// A complete call has come in. The client's `in_progress` counts it already.
#[inline(always)]
pub fn accept<L: Lines>(
    lines: &L,
    (index, line): (u32, Shared<Flow>),
    client: Shared<Client>,
    server: Shared<Server>,
    new: Call,
    now: u64,
) {
    let mut free = NO_SLOT;
    for way in 0..CALL_WAYS {
        let index = slot_of(new.xid, CALL_WAYS - 1 - way);
        let held = at!(line.calls).element(index).get();
        if held == 0 {
            free = index;
        } else if call::xid(held) == new.xid {
            // Sent again while the first one is still waited for.
            at!(client.in_progress).decrease(1);
            return;
        }
    }
    let seen = at!(line.calls_seen).element(new.class);
    seen.set(seen.get() + 1);
    if free == NO_SLOT {
        orphan(client, orphan::UNTRACKED);
        at!(client.in_progress).decrease(1);
        at!(server.untracked_calls).count(1);
        return;
    }
    let packed = call::pack(new.xid, new.class, now);
    if at!(line.waiting).increase(1) == 0 {
        at!(line.oldest).set(packed);
    }
    let slot = at!(line.calls).element(free);
    if slot.replace(0, packed) {
        lines.wake(index);
        // Whoever closes the line looks for its calls after that: this one sees it closed, or is seen.
        if at!(line.state).get() == state::CLOSED {
            withdraw(line, client, free);
        }
    } else {
        orphan(client, orphan::UNTRACKED);
        at!(client.in_progress).decrease(1);
        at!(line.waiting).decrease(1);
    }
}

/// Takes a call that has just been accepted out again: its connection has ended meanwhile. Not inlined: rare, and then
/// the verifier knows nothing of how it went.
#[inline(never)]
fn withdraw(line: Shared<Flow>, client: Shared<Client>, index: u32) {
    let slot = at!(line.calls).element(index);
    let held = slot.get();
    if held != 0 && slot.replace(held, 0) {
        orphan(client, orphan::ENDED);
        at!(client.in_progress).decrease(1);
        at!(line.waiting).decrease(1);
    }
}

/// A reply has left. Gives the call it answers, packed, if that was waited for.
#[inline(always)]
pub fn answer(line: Shared<Flow>, client: Shared<Client>, xid: u32, now: u64) -> Option<u64> {
    let index = find_call(line, xid);
    if index == NO_SLOT {
        return None;
    }
    let slot = at!(line.calls).element(index);
    let held = slot.get();
    if call::xid(held) != xid || !slot.replace(held, 0) {
        return None;
    }
    at!(client.in_progress).decrease(1);
    at!(line.waiting).decrease(1);
    let class = call::class(held);
    let seen = at!(line.replies_seen).element(class);
    seen.set(seen.get() + 1);
    let latency = at!(client.latency).element(class);
    latency.element(bucket(call::age_ns(held, now))).count(1);
    Some(held)
}

/// Latency bucket: the power of two of microseconds.
#[inline(always)]
pub fn bucket(ns: u64) -> u32 {
    let mut us = ns / 1000;
    let mut bucket = 0;
    while us > 1 && bucket < 23 {
        us >>= 1;
        bucket += 1;
    }
    bucket
}

#[inline(always)]
pub fn waits_for(line: Shared<Flow>, xid: u32) -> bool {
    find_call(line, xid) != NO_SLOT
}

/// Calls may have been missed on this connection: one orphan stands for them, once.
#[inline(always)]
pub fn uncertain(line: Shared<Flow>, client: Shared<Client>) {
    let rx = at!(line.rx);
    if at!(rx.flags).or(stream::UNCERTAIN) & stream::UNCERTAIN == 0 {
        orphan(client, orphan::UNSEEN);
    }
}

/// Whether calls of this connection may have escaped us.
#[inline(always)]
pub fn missed_any(line: Shared<Flow>) -> bool {
    let rx = at!(line.rx);
    at!(rx.lost).get() != 0 || at!(rx.flags).get() & stream::UNCERTAIN != 0
}

/// Whether a call, as packed, is still waited for.
#[inline(always)]
pub fn still_waits(line: Shared<Flow>, packed: u64) -> bool {
    let index = find_call(line, call::xid(packed));
    index != NO_SLOT && at!(line.calls).element(index).get() == packed
}

/// Its oldest call: age, seen from `now`, and as packed. Zeros: none waits.
#[inline(always)]
pub fn oldest_call(line: Shared<Flow>, now: u64) -> (u64, u64) {
    let (mut oldest, mut call) = (0, 0);
    for index in 0..CALL_SLOTS as u32 {
        let held = at!(line.calls).element(index).get();
        let age = call::age_ns(held, now);
        if held != 0 && (call == 0 || age > oldest) {
            oldest = age;
            call = held;
        }
    }
    (oldest, call)
}

#[cfg(test)]
mod tests;
