//! The flow table: lines found by hash in sets, claimed by compare-and-set, and the calls in progress in each line.

use crate::at;
use crate::cell::Shared;
use crate::kernel::repeat;
use crate::rpc::Call;
use core::ffi::c_void;
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

/// Key of a flow, aligned so that it can be compared in words.
#[repr(C, align(8))]
pub struct Key(pub FlowKey);

/// The line of a flow, open or closed.
#[inline(always)]
pub fn find<L: Lines>(lines: &L, key: &Key) -> Option<(u32, Shared<Flow>)> {
    let set = set_of(&key.0);
    let mut found = u32::MAX;
    for way in 0..WAYS {
        let Some(line) = lines.line(set + way) else { continue };
        let state = at!(line.state).get();
        if (state == state::OPEN || state == state::CLOSED) && same_key(line, &key.0) {
            found = set + way;
            break;
        }
    }
    let found = lines.opaque(found);
    Some((found, lines.line(found)?))
}

/// Takes a line for a new flow: a free one, else the closed one that is quiet longest, else the open one that is.
/// None: the set is full of live flows.
#[inline(always)]
pub fn claim<L: Lines>(
    lines: &L,
    server: Shared<Server>,
    key: &Key,
    client: u32,
    now: u64,
) -> Option<(u32, Shared<Flow>)> {
    let set = set_of(&key.0);
    let mut best = u32::MAX;
    // Free lines beat closed ones, closed ones beat idle ones; the older the better.
    let mut best_rank = 0_u64;
    for way in 0..WAYS {
        let Some(line) = lines.line(set + way) else { continue };
        let held = at!(line.state).get();
        let last = at!(line.last_at).get();
        let idle = now.saturating_sub(last);
        let rank = match held {
            state::FREE => u64::MAX,
            state::CLOSED => 1 << 62 | (idle >> 8),
            state::OPEN if idle > IDLE => idle >> 8,
            _ => 0,
        };
        if rank > best_rank {
            best_rank = rank;
            best = set + way;
        }
    }
    let best = lines.opaque(best);
    let line = lines.line(best)?;
    // Somebody else may have taken it since.
    let best_state = at!(line.state).get();
    let idle = now.saturating_sub(at!(line.last_at).get());
    if best_state == state::CLAIMED || (best_state == state::OPEN && idle <= IDLE) {
        return None;
    }
    if !at!(line.state).replace(best_state, state::CLAIMED) {
        return None;
    }
    if best_state != state::FREE {
        if let Some(former) = lines.client(at!(line.client).get()) {
            abandon(line, former, 0, orphan::ENDED);
        }
        if best_state == state::OPEN {
            at!(server.evicted_flows).count(1);
        }
    }
    write_key(line, key);
    at!(line.client).set(client);
    at!(line.opened_at).set(now);
    at!(line.last_at).set(now);
    at!(line.check_at).set(0);
    at!(line.calls_seen).set(0);
    at!(line.replies_seen).set(0);
    reset_stream(at!(line.rx));
    reset_stream(at!(line.tx));
    crate::held::disown(line);
    at!(line.state).swap(state::OPEN);
    Some((best, line))
}

#[inline(always)]
fn write_key(line: Shared<Flow>, key: &Key) {
    let held = at!(line.key);
    // SAFETY: the line is CLAIMED: nobody else reads or writes its key.
    unsafe { *held.as_ptr() = key.0 };
}

#[inline(always)]
fn reset_stream(s: Shared<reroute_common::flow::Stream>) {
    at!(s.flags).set(0);
    at!(s.lost).set(0);
    at!(s.packets).set(0);
    at!(s.bytes).set(0);
    at!(s.retransmitted).set(0);
}

/// A connection begins anew in its old line.
#[inline(always)]
pub fn reopen(line: Shared<Flow>, client: Shared<Client>, now: u64) {
    abandon(line, client, 0, orphan::ENDED);
    at!(line.opened_at).set(now);
    at!(line.calls_seen).set(0);
    at!(line.replies_seen).set(0);
    reset_stream(at!(line.rx));
    reset_stream(at!(line.tx));
    crate::held::disown(line);
    at!(line.state).swap(state::OPEN);
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

/// A complete call has come in.
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
            return;
        }
    }
    at!(client.calls).element(new.class).count(1);
    at!(line.calls_seen).set(at!(line.calls_seen).get() + 1);
    if free == NO_SLOT {
        orphan(client, orphan::UNTRACKED);
        at!(server.untracked_calls).count(1);
        return;
    }
    at!(client.in_progress).increase(1);
    at!(line.waiting).increase(1);
    let slot = at!(line.calls).element(free);
    if slot.replace(0, call::pack(new.xid, new.class, now)) {
        at!(line.check_at).set(0);
        lines.wake(index);
    } else {
        orphan(client, orphan::UNTRACKED);
        at!(client.in_progress).decrease(1);
        at!(line.waiting).decrease(1);
    }
}

/// A reply has left. Gives the call it answers, packed, if that was waited for.
#[inline(always)]
pub fn answer(line: Shared<Flow>, client: Shared<Client>, xid: u32, now: u64) -> Option<u64> {
    at!(line.replies_seen).set(at!(line.replies_seen).get() + 1);
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
    at!(line.check_at).set(0);
    let class = call::class(held);
    at!(client.replies).element(class).count(1);
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

struct Oldest {
    line: Shared<Flow>,
    now: u64,
    age: u64,
}

/// Age of its oldest call, seen from `now`; 0: none waits.
#[inline(always)]
pub fn oldest_age(line: Shared<Flow>, now: u64) -> u64 {
    let mut oldest = Oldest { line, now, age: 0 };
    repeat(CALL_SLOTS as u32, age_call, &mut oldest);
    oldest.age
}

unsafe extern "C" fn age_call(index: u32, oldest: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `oldest_age`.
    let oldest = unsafe { &mut *oldest.cast::<Oldest>() };
    let line = oldest.line;
    let held = at!(line.calls).element(index).get();
    if held != 0 {
        let age = call::age_ns(held, oldest.now);
        if age > oldest.age {
            oldest.age = age;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    struct Table {
        lines: Vec<Shared<Flow>>,
        clients: Vec<Shared<Client>>,
        server: Shared<Server>,
        woken: RefCell<Vec<u32>>,
    }

    /// Values live to the end of the test process, as map values do to the end of the map.
    fn leak<T>() -> Shared<T> {
        // SAFETY: integers: zeros are a value; leaked, it lives for ever.
        unsafe { Shared::new(Box::leak(Box::<T>::new_zeroed().assume_init())) }
    }

    impl Lines for Table {
        fn line(&self, index: u32) -> Option<Shared<Flow>> {
            (index < MAX_FLOWS).then(|| self.lines[(index % WAYS) as usize])
        }
        fn client(&self, slot: u32) -> Option<Shared<Client>> {
            self.clients.get(slot as usize).copied()
        }
        fn piece(&self, _: u32) -> Option<Shared<Piece>> {
            None
        }
        fn wake(&self, index: u32) {
            self.woken.borrow_mut().push(index);
        }
    }

    /// One set, whatever the hash says.
    fn table() -> Table {
        Table {
            lines: (0..WAYS).map(|_| leak()).collect(),
            clients: (0..2).map(|_| leak()).collect(),
            server: leak(),
            woken: RefCell::default(),
        }
    }

    fn key(port: u16) -> Key {
        Key(FlowKey { remote: [9; 16], local: [8; 16], remote_port: port, local_port: 2049, network: 1 })
    }

    #[test]
    fn free_lines_go_first_then_closed_then_idle_and_never_a_live_one() {
        let t = table();
        let now = 1_000 * IDLE;
        for port in 0..WAYS as u16 {
            assert!(claim(&t, t.server, &key(port), 1, now + port as u64 * 1_000_000).is_some());
        }
        let later = now + 1_000_000_000;
        assert!(claim(&t, t.server, &key(100), 1, later).is_none(), "all live");
        let (_, line) = find(&t, &key(5)).unwrap();
        at!(line.state).set(state::CLOSED);
        assert!(find(&t, &key(5)).is_some(), "a closed flow is still found");
        assert!(claim(&t, t.server, &key(100), 1, later).is_some());
        assert!(find(&t, &key(5)).is_none());
        let server = t.server;
        assert_eq!(at!(server.evicted_flows).get(), 0, "closed lines are not evicted, they are used again");
        // The one that is idle longest is evicted, and its calls become orphans.
        let (index, line) = find(&t, &key(0)).unwrap();
        let client = t.clients[1];
        accept(&t, (index, line), client, server, Call { xid: 7, class: 1 }, later);
        assert_eq!((at!(client.in_progress).get(), t.woken.borrow().clone()), (1, vec![index]));
        assert!(claim(&t, t.server, &key(101), 1, now + 2 * IDLE).is_some());
        assert!(find(&t, &key(0)).is_none());
        assert_eq!(at!(server.evicted_flows).get(), 1);
        assert_eq!((at!(client.in_progress).get(), at!(client.orphans).get()), (0, 1));
    }

    #[test]
    fn a_call_is_answered_once_by_its_xid() {
        let t = table();
        let (index, line) = claim(&t, t.server, &key(1), 1, 1).unwrap();
        let client = t.clients[1];
        let start = 10_000_000_000;
        for xid in [3, 4, 3] {
            accept(&t, (index, line), client, t.server, Call { xid, class: 2 }, start);
        }
        assert_eq!((at!(client.in_progress).get(), at!(line.waiting).get()), (2, 2));
        assert!(answer(line, client, 67, start).is_none(), "same slot, another XID");
        assert!(waits_for(line, 3) && !waits_for(line, 67));
        assert!(answer(line, client, 3, start + 5_000_000).is_some());
        assert!(answer(line, client, 3, start + 5_000_000).is_none());
        assert_eq!((at!(client.in_progress).get(), at!(client.orphans).get()), (1, 0));
        let latency = at!(client.latency).element(2);
        assert_eq!(latency.element(bucket(5_000_000)).get(), 1);
        let age = oldest_age(line, start + 80_000_000);
        assert!((79_990_000..=80_010_000).contains(&age), "{age}");
        abandon(line, client, 0, orphan::ENDED);
        assert_eq!((at!(client.in_progress).get(), at!(client.orphans).get()), (0, 1));
        assert_eq!(oldest_age(line, start + 80_000_000), 0);
    }

    #[test]
    fn buckets_are_powers_of_two_of_microseconds() {
        for (ns, expected) in
            [(0, 0), (1_999, 0), (2_000, 1), (3_999, 1), (4_000, 2), (1_024_000, 10), (u64::MAX, 23)]
        {
            assert_eq!(bucket(ns), expected, "{ns}");
        }
    }
}
