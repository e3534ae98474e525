//! Map layouts other than flows: configuration in, clients and server state out.

use crate::{class, network};

/// Client slots; slot 0 gathers everybody unregistered.
pub const MAX_CLIENTS: u32 = 1024;
/// Latency buckets: bucket `i` counts replies that took `[2^i, 2^(i+1))` µs; the first includes 0, the last all above.
pub const LATENCY_BUCKETS: usize = 24;

/// Names under which maps, programs and links are pinned, in one bpffs directory per SCVM.
pub mod pin {
    pub const CONFIG: &str = "CONFIG";
    pub const CLIENTS: &str = "CLIENTS";
    pub const ADDRESSES: &str = "ADDRESSES";
    pub const FLOWS: &str = "FLOWS";
    pub const WATCHES: &str = "WATCHES";
    pub const PIECES: &str = "PIECES";
    pub const SERVER: &str = "SERVER";
    pub const EVENTS: &str = "EVENTS";
    pub const TIMER: &str = "TIMER";
}

pub mod mode {
    /// Count what would be dropped, drop nothing.
    pub const SHADOW: u32 = 0;
    pub const ENFORCE: u32 = 1;
    /// Enforcement suspended by an operator.
    pub const BYPASS: u32 = 2;
}

/// NICs that programs are attached to, at most.
pub const MAX_INTERFACES: usize = 8;

/// Which network a NIC belongs to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number; 0: none.
    pub index: u32,
    pub network: u32,
}

/// Written by userspace only (map CONFIG, one entry).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// One of [`mode`].
    pub mode: u32,
    pub scvm: u32,
    pub scvm_boot: u64,
    pub service_address: [u8; 16],
    pub service_port: u32,
    pub pulse_port: u32,
    /// Limit for clients without one of their own.
    pub unanswered_limit_ns: u64,
    pub unacked_limit_ns: u64,
    /// Lines with calls waiting are looked at at least this often, ns: no longer than any limit that is in force.
    pub look_again_ns: u64,
    /// How long an affirmation holds (design §6: 100 ms).
    pub affirm_ns: u64,
    /// How long FIN, RST and SYN are held back after the listener has gone.
    pub shield_ns: u64,
    pub timer_period_ns: u64,
    /// Bumped by the agent at least every 100 ms, boot ns: how old is userspace.
    pub agent_seen_at: u64,
    /// Bits of [`crate::pulse::server`] that userspace decides (`NULL_FAILED`).
    pub agent_state: u32,
    /// Grows with each registration of addresses: lines that were claimed before it look up whose they are.
    pub registered: u32,
    /// The NICs that carry NFS.
    pub interfaces: [Interface; MAX_INTERFACES],
}
const _: () = assert!(size_of::<Config>() == 104 + 8 * MAX_INTERFACES);

/// Key of map ADDRESSES: a client is found by the network a packet came in by, and its source.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressKey {
    pub network: u32,
    pub address: [u8; 16],
}
const _: () = assert!(size_of::<AddressKey>() == 20);

/// Why packets were dropped (or, in shadow mode, would have been).
pub mod drop {
    /// Held, released or fenced client.
    pub const NOT_ADMITTED: usize = 0;
    /// Admitted, but both leases have run out.
    pub const LEASE_EXPIRED: usize = 1;
    /// Source that no client has on this network.
    pub const UNREGISTERED: usize = 2;
    /// Fragment or unparsable TCP to the service address; a datagram to the service.
    pub const UNPARSABLE: usize = 3;
    /// Shield: FIN or RST of a dead server, SYN to a port without listener.
    pub const SHIELD: usize = 4;
    /// Connection from before the host changed its path.
    pub const OLD_PATH: usize = 5;
    /// An operator keeps the client away.
    pub const BLOCKED: usize = 6;
    pub const COUNT: usize = 7;
}

/// Why calls became orphans.
pub mod orphan {
    /// The stream of calls was lost.
    pub const CALLS_LOST: usize = 0;
    /// Bytes of the connection never came by.
    pub const UNSEEN: usize = 1;
    /// The stream of replies was lost.
    pub const REPLIES_LOST: usize = 2;
    /// The connection ended before the reply.
    pub const ENDED: usize = 3;
    /// More calls in progress than a connection's line holds.
    pub const UNTRACKED: usize = 4;
    pub const COUNT: usize = 5;
}

/// Why a pulse was not answered.
pub mod pulse_reject {
    pub const SIZE: usize = 0;
    pub const VERSION: usize = 1;
    pub const UNKNOWN_HOST: usize = 2;
    pub const MAC: usize = 3;
    pub const WRONG_SCVM: usize = 4;
    pub const COUNT: usize = 5;
}

/// One client (map CLIENTS, by slot). The first part is written by userspace when it registers the client; the
/// words by programs only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// HostId, 0 = free slot.
    pub host: u32,
    /// 1: this client's host sends pulses.
    pub has_agent: u32,
    pub pulse_key: [u64; 2],
    /// A call of this client older than this raises `unanswered`, ns; 0: [`Config::unanswered_limit_ns`]. Written by
    /// userspace whenever the client's latency changes.
    pub unanswered_limit_ns: u64,

    /// [`crate::admission::Word`].
    pub word: u64,
    /// Until when an operator keeps this client away, boot ns; 0: nobody does. Written by userspace, beside the word that
    /// is read with it.
    pub blocked_until: u64,
    /// Until when the client's own host affirms it, boot ns of this SCVM.
    pub affirm_deadline: u64,
    /// When the last valid pulse of this host came in.
    pub pulse_at: u64,
    /// Stamp of the last RELEASE: older affirmations do not count.
    pub released_at: u64,
    /// Calls accepted and not answered; a packet being judged counts as one.
    pub in_progress: u32,
    pub orphans: u32,
    /// Epoch whose first reply has been reported.
    pub first_reply_epoch: u64,
    /// When it was last reported that this client calls and is not served here, boot ns; clients without an agent only.
    pub wanted_at: u64,
    /// The network by which the newest completed connection came, + 1; 0: none is known.
    pub path: u32,
    /// Changes of `path`: connections from before the last one are shut.
    pub generation: u32,
    /// When that connection began, boot ns.
    pub newest_at: u64,

    /// From here on: what is not counted in a line of [`crate::flow::Flow`]. The client's totals are the sum of both.
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub rx_retransmitted: u64,
    pub tx_retransmitted: u64,
    pub opened: u64,
    pub closed: u64,
    pub reset: u64,
    pub calls: [u64; class::COUNT],
    pub replies: [u64; class::COUNT],
    /// `unanswered` raised.
    pub stalls: u64,
    pub streams_lost: u64,
    /// Calls that became orphans, by [`orphan`] cause.
    pub orphaned: [u64; orphan::COUNT],
    pub drops: [u64; drop::COUNT],
    /// Shadow mode: what would have been dropped.
    pub would_drop: u64,
    pub pulses: u64,
    pub latency: [[u64; LATENCY_BUCKETS]; class::COUNT],
}
const _: () = assert!(
    size_of::<Client>() == 112 + 8 * (9 + 8 + 2 + 5 + drop::COUNT + 2) + 8 * LATENCY_BUCKETS * class::COUNT
);

/// The server as a whole (map SERVER, one entry). Written by programs only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Session deadline for hosts that pulse, boot ns.
    pub session_deadline: u64,
    /// ... and for clients without an agent.
    pub session_deadline_no_agent: u64,
    pub incarnation: u64,
    pub last_reply_at: u64,
    /// The last one to a READ, a WRITE or a COMMIT.
    pub data_reply_at: u64,
    /// When the timer last ran, boot ns.
    pub tick_at: u64,
    pub ticks: u64,
    /// Longest time between two ticks, ns.
    pub worst_tick_gap_ns: u64,
    /// This and `stalled_flows`: as the timer found them when it last looked, at most `look_again_ns` ago.
    pub waiting: u32,
    /// 1 while `silent` is raised.
    pub silent: u32,
    pub stalled_flows: u32,
    pub listening: u32,
    pub listener_gone_at: u64,
    /// 1: calls for data wait over their limit, and none has been answered for as long.
    pub data_silent: u32,
    pub _pad: u32,
    /// As of the timer's last look. Exact if over 50 ms, or over its limit; else no call is older. 0: none waits.
    pub oldest_call_age_ns: u64,
    pub silent_count: u64,
    pub pulse_rejects: [u64; pulse_reject::COUNT],
    /// Calls that could not be tracked (slot taken, table full).
    pub untracked_calls: u64,
    pub untracked_flows: u64,
    pub evicted_flows: u64,
    /// Lines whose counts began, and ended, to move to their client's: while these differ, sums are not exact.
    pub sums_begun: u64,
    pub sums_ended: u64,
    /// Events that found the ring buffer full.
    pub lost_events: u64,
    /// Segments held because they came before their turn.
    pub held_segments: u64,
    /// Where the search for a free piece goes on.
    pub next_piece: u64,
}
const _: () = assert!(size_of::<Server>() == 112 + 8 * 13);
crate::pod!(Config, AddressKey, Client, Server);

const _: () = assert!(network::COUNT == 3);
