//! What the programs tell userspace through the ring buffer: transitions only, each with the numbers it was decided on.

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_BOOTTIME ns, read by the program.
    pub at: u64,
    /// One of [`kind`].
    pub kind: u32,
    /// Client slot, or 0 where no one client is meant.
    pub client: u32,
    /// Flow slot, or `u32::MAX`.
    pub flow: u32,
    /// Calls waiting when it was decided.
    pub waiting: u32,
    /// Age of the oldest call, ns.
    pub age_ns: u64,
    /// The limit it was held against, ns; for [`kind::FIRST_REPLY`] the epoch.
    pub limit: u64,
    /// Which way the packets go that it is about: one of [`way`].
    pub way: u32,
    pub _pad: u32,
}

impl Event {
    /// An event of no client or flow in particular.
    #[inline(always)]
    pub const fn new(at: u64, kind: u32) -> Self {
        Event { at, kind, client: 0, flow: u32::MAX, waiting: 0, age_ns: 0, limit: 0, way: way::IN, _pad: 0 }
    }
}

const _: () = assert!(size_of::<Event>() == 48);
crate::pod!(Event);

/// Events of a client that waits to be served come at most this often, ns.
pub const WANTED_GAP: u64 = 100_000_000;

pub mod way {
    /// From the client.
    pub const IN: u32 = 0;
    /// From the server.
    pub const OUT: u32 = 1;
}

pub mod kind {
    /// The oldest call of a connection is older than the limit.
    pub const UNANSWERED: u32 = 1;
    /// ... and has been answered since.
    pub const UNANSWERED_END: u32 = 2;
    /// Calls wait, and no reply has left for anybody for longer than the limit.
    pub const SILENT: u32 = 3;
    pub const SILENT_END: u32 = 4;
    /// Nobody listens on the service address and port.
    pub const LISTENER_GONE: u32 = 5;
    pub const LISTENER_BACK: u32 = 6;
    /// The first reply to a client since it was admitted at `limit` (an epoch).
    pub const FIRST_REPLY: u32 = 7;
    /// A client's host released it (RELEASE pulse); `limit` is the epoch.
    pub const RELEASED: u32 = 8;
    /// The client has acknowledged nothing of what was sent to it for longer than the limit.
    pub const UNACKED: u32 = 9;
    pub const UNACKED_END: u32 = 10;
    /// Bytes were sent again; the end is the first new byte after.
    pub const RETRANSMIT: u32 = 11;
    pub const RETRANSMIT_END: u32 = 12;
    /// One side's receive window is closed.
    pub const ZERO_WINDOW: u32 = 13;
    pub const ZERO_WINDOW_END: u32 = 14;
    /// A RST ended a connection.
    pub const RESET: u32 = 15;
    /// A client without an agent calls on an established connection, and is not served here; `limit` is the epoch of
    /// its word. At most one such event per client and [`super::WANTED_GAP`].
    pub const LOGIN_WANTED: u32 = 16;
    /// The same, on a connection whose beginning was not seen here: that it comes from the client cannot be told.
    pub const LOGIN_WANTED_UNSEEN: u32 = 17;
}
