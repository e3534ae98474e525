//! The little of TCP and RPC that matters here: connections that survive a route, order within a connection, segments
//! that are sent again, resets.

use reroute_core::ids::Network;

/// A connection, by its four numbers and initial sequence: no two are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// A write of a host's client. Sent again, on another connection too, it is the same write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Write {
    /// Counts the host's writes from 1; the XID too.
    pub number: u64,
    pub block: usize,
}

/// One segment, or one call or reply.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    pub conn: ConnId,
    /// The network whose address the client's socket is bound to.
    pub source: Network,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    Syn,
    SynAck,
    /// The client's `index`th call on this connection.
    Call {
        index: u64,
        write: Write,
    },
    /// Everything below `next` has come.
    Ack {
        next: u64,
    },
    Reply {
        number: u64,
        next: u64,
    },
    Rst,
}
