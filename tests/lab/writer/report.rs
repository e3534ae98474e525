//! What the writer tells: by `snapshot`, and at the end.

use crate::libnfs::Reply;
use crate::metadata;
use crate::ring::{Finding, Kind};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    pub lost_writes: u64,
    pub stale_writes: u64,
    /// READs that gave what must be there.
    pub reads: u64,
    /// READs that gave something older or else.
    pub bad_reads: u64,
    /// Connections established after the first one.
    pub reconnects: u64,
    /// Connections that ended.
    pub disconnects: u64,
    /// Connection attempts that failed.
    pub connect_attempts: u64,
    /// Calls given back by libnfs without an answer, and made again.
    pub calls_lost: u64,
    /// Answers that were an error or less than asked for, by `nfsstat3` (0: short or not stable); made again.
    pub calls_refused: BTreeMap<u32, u64>,
}

impl Counts {
    pub fn found(&mut self, kind: Kind) {
        match kind {
            Kind::Lost => self.lost_writes += 1,
            Kind::Stale => self.stale_writes += 1,
        }
    }

    pub fn refused(&mut self, reply: &Reply) {
        match reply {
            Reply::Lost(_) => self.calls_lost += 1,
            Reply::Status(status) => *self.calls_refused.entry(*status).or_default() += 1,
            _ => *self.calls_refused.entry(0).or_default() += 1,
        }
    }
}

/// Times in CLOCK_BOOTTIME ns.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The result, after the drain and the verification of everything; else a snapshot.
    #[serde(rename = "final")]
    pub last: bool,
    pub at: u64,
    pub started: u64,
    /// Acknowledged sync writes.
    pub completed: u64,
    /// Between two completed sync writes, or since the last one while calls are outstanding.
    pub longest_gap_ns: u64,
    pub longest_gap_at: u64,
    pub last_completed_at: Option<u64>,
    /// Calls without a reply.
    pub outstanding: usize,
    pub connected: bool,
    #[serde(flatten)]
    pub counts: Counts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<metadata::Counts>,
    /// The first 64.
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn damaged(&self) -> bool {
        self.counts.lost_writes > 0
            || self.counts.stale_writes > 0
            || self.counts.bad_reads > 0
            || self.metadata.as_ref().is_some_and(|m| m.damage > 0)
    }
}
