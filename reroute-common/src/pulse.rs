//! The pulse: one fixed-size UDP datagram, request and reply alike, so that XDP can reflect it in place.

/// UDP port an SCVM reflects pulses on.
pub const PORT: u16 = 7481;
pub const MAGIC: u32 = 0x5031_5252;
pub const VERSION: u8 = 1;

pub mod kind {
    pub const REQUEST: u8 = 1;
    pub const REPLY: u8 = 2;
}

pub mod flags {
    /// The sender is served here at `epoch`: renew its affirm lease.
    pub const AFFIRM: u16 = 1;
    /// The sender lets go of `epoch`: no call of it may get in from now on.
    pub const RELEASE: u16 = 2;
    /// Neither: only ask.
    pub const PROBE: u16 = 4;
}

/// Bits of [`Pulse::server_state`].
pub mod server {
    /// A socket listens on the service address and port.
    pub const LISTENING: u32 = 1;
    /// Calls wait, and no reply has left for anybody for longer than the `silent` limit.
    pub const SILENT: u32 = 2;
    /// Admission is enforced (not shadow, not bypassed).
    pub const ENFORCING: u32 = 4;
    /// The SCVM's agent asked its own server (NULL RPC) and got no answer in time.
    pub const NULL_FAILED: u32 = 8;
    /// Calls for data wait, and none has been answered for anybody for longer than the limit, whatever else is.
    pub const DATA_SILENT: u32 = 16;
    /// [`Pulse::data_reply_age_ns`] is what its name says. An SCVM whose programs are older tells the age of any reply
    /// there, which says nothing of its storage.
    pub const DATA_REPLIES: u32 = 32;
}

/// All fields little endian. A request fills the first part and leaves the rest zero; a reply keeps the request's
/// part (but `kind`, `scvm_stamp`) and fills the rest. `mac` covers every byte before it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulse {
    pub magic: u32,
    pub version: u8,
    pub kind: u8,
    pub flags: u16,
    pub host: u32,
    pub scvm: u32,
    pub host_incarnation: u64,
    pub seq: u64,
    /// The host's BootNs at sending; echoed.
    pub host_time: u64,
    pub epoch: u64,
    /// Request: from the last reply of this SCVM (0: none yet). Reply: this SCVM's boot.
    pub scvm_boot: u64,
    /// Request: the stamp of the last reply. Reply: the SCVM's BootNs now.
    pub scvm_stamp: u64,

    /// Which server process answers NFS: changes whenever another one is seen (0: none was seen yet).
    pub server_incarnation: u64,
    /// Admission word of this host here.
    pub word: u64,
    /// What remains of this host's lease here, ns (0: expired).
    pub lease_ns: u64,
    /// Bits of [`server`].
    pub server_state: u32,
    /// Calls waiting, all clients.
    pub calls_waiting: u32,
    /// Since the last reply to a READ, a WRITE or a COMMIT left for anybody, ns (`u64::MAX`: none since start).
    pub data_reply_age_ns: u64,
    /// Age of the oldest waiting call, as of the timer's last look, ns.
    pub oldest_call_age_ns: u64,
    /// Connections with `unanswered` raised.
    pub stalled_flows: u32,
    /// Calls of this host accepted here and not answered.
    pub in_progress: u32,
    /// Calls of this host whose connection is gone or was lost sight of.
    pub orphans: u32,
    /// Network the request came in by; one of [`crate::network`].
    pub network: u32,
    /// How long the SCVM's agent has not been heard of by the kernel, ns.
    pub agent_age_ns: u64,

    /// SipHash-2-4 of the bytes before, under the key of (host, SCVM); a reply is hashed under the key with its
    /// second half inverted, so that no request passes for a reply.
    pub mac: u64,
}

pub const LEN: usize = 144;
pub const MAC_OFFSET: usize = LEN - 8;
const _: () = assert!(size_of::<Pulse>() == LEN);
crate::pod!(Pulse);

/// The key a direction is authenticated under.
pub const fn direction_key(key: [u64; 2], kind: u8) -> [u64; 2] {
    match kind {
        kind::REPLY => [key[0], !key[1]],
        _ => key,
    }
}
