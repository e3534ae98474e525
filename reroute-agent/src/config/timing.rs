//! `[timing]`.

use reroute_core::ids::MS;
use serde::Deserialize;

/// Times, in milliseconds. The defaults are those of the design; the lab and tests use them too.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// Pulse to the active server.
    pub pulse_ms: u64,
    /// ... and while it, or a path to it, is in doubt.
    pub doubt_pulse_ms: u64,
    /// Pulse to standbys.
    pub standby_pulse_ms: u64,
    /// A path is lost after this long without a reply, while others answer.
    pub path_lost_ms: u64,
    pub keepalive_ms: u64,
    /// Session lease for hosts that pulse.
    pub session_ms: u64,
    /// ... and for clients without an agent.
    pub session_no_agent_ms: u64,
    /// A Meta leader acts as one for this long after it asked the store for the last confirmation that came true.
    pub leader_ms: u64,
    pub affirm_ms: u64,
    /// A client without an agent may change its server so many times in a row, ...
    pub client_moves: u32,
    /// ... and then once in this time.
    pub client_move_every_ms: u64,
    /// A call older than this raises `unanswered`, of a client whose own latency is not known yet.
    pub unanswered_ms: u64,
    /// The limit that follows from a client's latency is never below this ...
    pub unanswered_floor_ms: u64,
    /// ... nor above this.
    pub unanswered_ceiling_ms: u64,
    /// What was sent to a client and is not acknowledged for this long raises `unacked`.
    pub unacked_ms: u64,
    /// A server that has replied to anybody within this long is busy, not hung.
    pub silent_ms: u64,
    /// The local server's NULL RPC must answer within this.
    pub null_rpc_ms: u64,
    /// Calls in progress get this long to finish before the policy is applied (unplanned moves).
    pub drain_ms: u64,
    /// ... and this long on planned moves, before these are given up.
    pub planned_drain_ms: u64,
    /// The local server must have been well for this long before the host returns.
    pub hold_down_ms: u64,
    pub hold_down_max_ms: u64,
    /// Logins to ESXi hosts are rehearsed this often.
    pub rehearse_ms: u64,
    pub shield_ms: u64,
    pub timer_us: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            pulse_ms: 10,
            doubt_pulse_ms: 2,
            standby_pulse_ms: 50,
            path_lost_ms: 25,
            keepalive_ms: 100,
            session_ms: 500,
            session_no_agent_ms: 8000,
            leader_ms: 300,
            affirm_ms: 100,
            client_moves: 3,
            client_move_every_ms: 30_000,
            unanswered_ms: 50,
            unacked_ms: 500,
            unanswered_floor_ms: 10,
            unanswered_ceiling_ms: 2000,
            silent_ms: 20,
            null_rpc_ms: 15,
            drain_ms: 10,
            planned_drain_ms: 2000,
            hold_down_ms: 3000,
            hold_down_max_ms: 180_000,
            rehearse_ms: 60_000,
            shield_ms: 2000,
            timer_us: 1000,
        }
    }
}

/// Milliseconds of the configuration as nanoseconds of the machines.
pub const fn ns(ms: u64) -> u64 {
    ms * MS
}
