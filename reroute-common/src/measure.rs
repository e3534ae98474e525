//! What the measuring programs of the benchmark are told: how to move the frame on before each run.
//!
//! BPF_PROG_TEST_RUN repeats a program on one buffer. A segment that is repeated as it is would be a retransmission, so
//! a measuring program first makes the next segment, connection or pulse of it.

use crate::pulse;

/// Headers of a pulse's datagram: Ethernet, IPv4, UDP.
pub const HEADERS: usize = 14 + 20 + 8;
/// Bytes of [`Plan::frame`] before the headers: the pulse behind them begins on a word.
pub const PAD: usize = 6;
/// Words of [`Plan::frame`] before the pulse.
pub const PULSE_AT: usize = (PAD + HEADERS) / 8;
const _: () = assert!((PAD + HEADERS).is_multiple_of(8));

pub mod moves {
    /// The frame stays as it is.
    pub const NOTHING: u32 = 0;
    /// TCP over IPv4, both without options.
    pub const SEGMENT: u32 = 1;
    /// The same, with an RPC record at the start of its payload: the next XID.
    pub const RECORD: u32 = 2;
    /// The whole of [`super::Plan::frame`] is written anew, with the next sequence number, a later stamp and its MAC.
    pub const PULSE: u32 = 3;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One of [`moves`].
    pub moves: u32,
    /// Added to the sequence number, the acknowledgment number and the source port.
    pub sequence: u32,
    pub acknowledgment: u32,
    pub port: u32,
    /// Ages that the timer finds count from here at most, boot ns.
    pub since: u64,
    /// A pulse's key, and its frame behind [`PAD`] bytes.
    pub key: [u64; 2],
    pub frame: [u64; PULSE_AT + pulse::LEN / 8],
}
const _: () = assert!(size_of::<Plan>() == 40 + PAD + HEADERS + pulse::LEN);
crate::pod!(Plan);
