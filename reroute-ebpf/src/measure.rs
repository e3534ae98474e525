//! For the benchmark alone, never attached: the frame at hand is moved on, so that a repeated run sees what a
//! connection's next packet would be. See `reroute_common::measure`.

use crate::kernel::XdpPacket;
use crate::packet::Packet;
use crate::{kernel, maps, timer};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use reroute_common::measure::{HEADERS, PAD, PULSE_AT, Plan, moves};
use reroute_common::pulse::LEN;
use reroute_common::siphash;

#[map]
static MEASURE: Array<Plan> = Array::with_max_entries(1, 0);

const SOURCE_PORT: usize = 14 + 20;
const SEQUENCE: usize = SOURCE_PORT + 4;
const ACKNOWLEDGMENT: usize = SOURCE_PORT + 8;
const PAYLOAD: usize = SOURCE_PORT + 20;
/// Behind the record mark.
const XID: usize = PAYLOAD + 4;

/// Words of a pulse: its sequence number, its stamp.
const PULSE_SEQ: usize = PULSE_AT + 3;
const PULSE_STAMP: usize = PULSE_AT + 7;
const PULSE_MAC: usize = PULSE_AT + LEN / 8 - 1;

#[inline(always)]
fn plan<'a>() -> Option<&'a mut Plan> {
    let plan = MEASURE.get_ptr_mut(0)?;
    // SAFETY: one run at a time, by the benchmark's one thread, which writes the plan between runs.
    Some(unsafe { &mut *plan })
}

/// Adds to a big-endian number of the frame that begins at `start`.
///
/// # Safety
/// Four bytes lie at `start + offset`, inside the frame. One access each, not one per byte as for unaligned types: a load
/// of bytes that were just stored one by one costs more than what is measured. The targets take it at any address.
#[inline(always)]
unsafe fn add(start: usize, offset: usize, n: u32) {
    let field = (start + offset) as *mut u32;
    // SAFETY: by the caller.
    unsafe { field.write_volatile(u32::from_be(field.read_volatile()).wrapping_add(n).to_be()) };
}

/// Makes the next segment of the one between `start` and `end`. False: no plan, or no such frame.
#[inline(always)]
pub fn segment(start: usize, end: usize) -> bool {
    let Some(plan) = plan() else { return false };
    if plan.moves == moves::NOTHING {
        return true;
    }
    if start + XID + 4 <= end {
        // SAFETY: the frame goes on behind the XID.
        unsafe {
            add(start, SEQUENCE, plan.sequence);
            if plan.moves == moves::RECORD {
                add(start, XID, 1);
            }
        }
        return true;
    }
    if start + PAYLOAD > end {
        return false;
    }
    // SAFETY: the frame goes on behind the TCP header.
    unsafe {
        add(start, SEQUENCE, plan.sequence);
        add(start, ACKNOWLEDGMENT, plan.acknowledgment);
        let port = (start + SOURCE_PORT) as *mut u16;
        port.write_volatile(u16::from_be(port.read_volatile()).wrapping_add(plan.port as u16).to_be());
    }
    true
}

/// The same for what comes in: pulses too.
#[inline(always)]
pub fn packet(packet: XdpPacket, start: usize, end: usize) -> bool {
    let Some(plan) = plan() else { return false };
    if plan.moves != moves::PULSE {
        return segment(start, end);
    }
    plan.frame[PULSE_SEQ] += 1;
    plan.frame[PULSE_STAMP] += 1;
    let words = plan.frame.as_ptr();
    // SAFETY: the pulse's words before its MAC, and the frame's bytes behind the padding, lie inside the plan.
    let (covered, frame) = unsafe {
        (
            &*words.add(PULSE_AT).cast::<[u64; LEN / 8 - 1]>(),
            &*words.cast::<u8>().add(PAD).cast::<[u8; HEADERS + LEN]>(),
        )
    };
    plan.frame[PULSE_MAC] = siphash::hash(plan.key, covered);
    packet.store(0, frame)
}

/// What the timer does in a tick but for its own bookkeeping.
#[inline(always)]
pub fn scan() {
    if let (Some(config), Some(server), Some(plan)) = (maps::config(), maps::server(), plan()) {
        // From a map, as in the callback: a constant would be followed by the verifier through all that comes after.
        timer::judge(config, server, kernel::now(), (plan.since, plan.since));
    }
}
