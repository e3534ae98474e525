//! One line per TCP connection to the service port, calls in progress included.

use crate::class;

/// Calls tracked per connection.
pub const CALL_SLOTS: usize = 64;
/// Slots a call may stand in, side by side: its XID's lowest bits choose which (clients count XIDs up), so that a slow
/// call is in the way of no other.
pub const CALL_WAYS: u32 = 8;
/// Bytes of a segment that came out of order, in one [`Piece`].
pub const PIECE_BYTES: usize = 2048;
/// Pieces for all connections: a power of two.
pub const MAX_PIECES: u32 = 4096;
/// Pieces that one connection may hold: 1 MiB.
pub const FLOW_PIECES: u32 = 512;
/// Lines of the flow table: a power of two.
pub const MAX_FLOWS: u32 = 16384;

/// Values of [`Flow::state`].
pub mod state {
    pub const FREE: u32 = 0;
    /// A CPU is writing the key.
    pub const CLAIMED: u32 = 1;
    pub const OPEN: u32 = 2;
    /// FIN or RST seen.
    pub const CLOSED: u32 = 3;
}

/// Bits of [`Stream::flags`].
pub mod stream {
    /// `next_seq` and `remaining` hold; otherwise the stream looks for a record to start from.
    pub const SYNCED: u32 = 1;
    /// `next_seq` holds, synced or not.
    pub const SEEN: u32 = 2;
    /// The header of a call was read, its last byte not yet.
    pub const PENDING: u32 = 4;
    /// FIN was seen.
    pub const FIN: u32 = 8;
    /// Calls may have been missed since the last time the stream held: counted as one orphan, once.
    pub const UNCERTAIN: u32 = 16;
    /// The last ACK number of this side holds: [`super::Flow::client_acked`] of `rx`, [`super::Flow::server_acked`] of `tx`.
    pub const ACKED: u32 = 32;
    /// The connection was reset (in `rx` only): nothing of it counts any more but packets and bytes.
    pub const RESET: u32 = 64;
}

/// Aligned, so that it is compared in words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    pub remote: [u8; 16],
    pub local: [u8; 16],
    pub remote_port: u16,
    pub local_port: u16,
    pub network: u32,
}
const _: () = assert!(size_of::<FlowKey>() == 40);

/// How far the record marks of one direction were followed (RFC 5531 §11).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub flags: u32,
    /// Sequence number expected next.
    pub next_seq: u32,
    /// Bytes left of the current fragment.
    pub remaining: u32,
    /// Bytes of `header` gathered so far (a header split between segments).
    pub gathered: u32,
    /// Counts that are not yet added to the client's. Segments as on the wire; bytes of whole frames.
    pub packets: u64,
    pub bytes: u64,
    pub retransmitted: u64,
    /// Times the stream was lost.
    pub lost: u32,
    /// Bit 31 of the current record mark was clear: another fragment of the same record follows.
    pub more: u32,
    pub header: [u8; 32],
}
const _: () = assert!(size_of::<Stream>() == 80);

/// Bytes that came before their turn, kept until the bytes before them have come.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Since when it is held, boot ns; 0: free.
    pub held_at: u64,
    /// Index of the line that holds it.
    pub flow: u32,
    /// The next piece of the same line, index + 1; 0: none.
    pub next: u32,
    pub seq: u32,
    pub len: u32,
    pub bytes: [u8; PIECE_BYTES],
}
const _: () = assert!(size_of::<Piece>() == 24 + PIECE_BYTES);

/// Bits of [`Flow::raised`].
pub mod raised {
    pub const UNANSWERED: u32 = 1;
    pub const UNACKED: u32 = 2;
    /// What the client sent came again, and nothing new since.
    pub const RETRANSMIT_IN: u32 = 4;
    /// The same of what the server sent.
    pub const RETRANSMIT_OUT: u32 = 8;
    /// The client takes no more.
    pub const ZERO_WINDOW_IN: u32 = 16;
    /// The server takes no more.
    pub const ZERO_WINDOW_OUT: u32 = 32;
}

/// In [`Flow::generation`]: of its connection nothing but the SYN was seen.
pub const UNPROVEN: u32 = 1 << 31;

/// 64 lines of the flow table, as the timer sees them (map WATCHES). But for `lines`, it alone writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// One bit per line with calls waiting, or bytes that are not acknowledged.
    pub lines: u64,
    /// When the timer has to look at them, boot ns. The rest is what it found the last time.
    pub due_at: u64,
    /// The shortest limit that a call is over, ns; 0: none is.
    pub over: u64,
    /// No call came before this, boot ns; 0: none waits.
    pub oldest_at: u64,
    pub waiting: u32,
    pub stalled: u32,
    /// As `over`, of the connections whose oldest call reads or writes data.
    pub over_data: u64,
    pub _to_cache_line: [u64; 2],
}
const _: () = assert!(size_of::<Watch>() == 64);

/// Ingress owns `rx`, egress owns `tx`; everything both sides touch is atomic.
///
/// What every packet and every tick look at comes first, in one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub state: u32,
    /// Slot of the client.
    pub client: u32,
    /// Calls without a reply.
    pub waiting: u32,
    /// Signals that stand: bits of [`raised`].
    pub raised: u32,
    /// A call, as [`call`] packs it, answered since or not: none that waits is older. 0: the timer has to look.
    pub oldest: u64,
    /// The last packet either way, ns, to the tick.
    pub last_at: u64,
    /// Since when the client owes an ACK for what the server sent, or since its last one, ns, to the tick.
    pub unacked_since: u64,
    /// The client's TCP has everything up to here: its last ACK number, if `rx` says [`stream::ACKED`].
    pub client_acked: u32,
    /// The server's TCP has everything up to here: its last ACK number, if `tx` says [`stream::ACKED`].
    pub server_acked: u32,
    /// Pieces held, in the order of sequence numbers: index + 1 of the first and of the last; 0: none.
    pub first_piece: u32,
    pub last_piece: u32,
    pub opened_at: u64,

    pub rx: Stream,
    pub tx: Stream,
    pub key: FlowKey,
    pub pieces: u32,
    /// Where the pieces end, if there are any: the highest sequence number, that of the last one or not.
    pub pieces_end: u32,
    /// Calls complete, by class: not yet added to the client's.
    pub calls_seen: [u64; class::COUNT],
    /// Replies that answered a call, by class: not yet added to the client's.
    pub replies_seen: [u64; class::COUNT],
    /// When bytes of the client's, and of the server's, last came again, ns.
    pub retransmitted_at: [u64; 2],
    /// The sequence number of the client's SYN, if it was seen.
    pub client_syn: u32,
    /// [`crate::table::Config::registered`] when `client` was last looked up.
    pub registered: u32,
    /// [`crate::table::Client::generation`] when the connection was completed; with [`UNPROVEN`], when it began. Ingress
    /// writes it.
    pub generation: u32,
    pub _pad: u32,
    pub _to_cache_line: [u64; 2],
    /// A call in progress, or 0: see [`call`]. The eight that an XID can choose from share a cache line.
    pub calls: [u64; CALL_SLOTS],
}
const _: () = assert!(size_of::<Flow>() == 64 + 160 + 40 + 8 + 64 + 16 + 8 + 8 + 16 + 8 * CALL_SLOTS);
const _: () = assert!(core::mem::offset_of!(Flow, rx) == 64);
const _: () = assert!(core::mem::offset_of!(Flow, calls) == 384 && size_of::<Flow>().is_multiple_of(64));
crate::pod!(FlowKey, Stream, Piece, Flow, Watch);

/// A call in progress, packed so that one atomic holds it: XID, class, and time in 4 µs units (30 bits: 71 minutes).
pub mod call {
    const UNIT_SHIFT: u32 = 12;
    const TIME_MASK: u64 = (1 << 30) - 1;

    pub const fn pack(xid: u32, class: u32, at_ns: u64) -> u64 {
        let time = (at_ns >> UNIT_SHIFT) & TIME_MASK;
        (xid as u64) << 32 | ((class as u64) & 3) << 30 | if time == 0 { 1 } else { time }
    }
    pub const fn xid(packed: u64) -> u32 {
        (packed >> 32) as u32
    }
    /// The time alone.
    pub const fn time(packed: u64) -> u64 {
        packed & TIME_MASK
    }
    pub const fn class(packed: u64) -> u32 {
        ((packed >> 30) & 3) as u32
    }
    /// A stamp may be ahead by this many units: a second.
    const AHEAD: u64 = 1 << 18;

    /// How long ago, ns, seen from `now`; a call stamped a moment after `now` by another CPU has age 0.
    pub const fn age_ns(packed: u64, now_ns: u64) -> u64 {
        let diff = (now_ns >> UNIT_SHIFT).wrapping_sub(packed) & TIME_MASK;
        if diff > TIME_MASK - AHEAD { 0 } else { diff << UNIT_SHIFT }
    }
}

#[cfg(test)]
mod tests {
    use super::call;

    #[test]
    fn calls_survive_packing() {
        let at = 7_200_000_000_000;
        let packed = call::pack(0xdead_beef, 2, at);
        assert_eq!(call::xid(packed), 0xdead_beef);
        assert_eq!(call::class(packed), 2);
        let age = call::age_ns(packed, at + 50_000_000);
        assert!((49_990_000..=50_010_000).contains(&age), "{age}");
        assert_eq!(call::age_ns(packed, at - 5_000_000), 0);
        let hour = 3_600_000_000_000;
        let age = call::age_ns(packed, at + hour);
        assert!(
            (hour - 10_000..=hour + 10_000).contains(&age),
            "{age}: a server that hangs for long still hangs"
        );
    }
}
