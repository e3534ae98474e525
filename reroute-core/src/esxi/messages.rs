//! What Meta and SCVMs say to each other of ESXi hosts.

use super::DriveError;
use crate::ids::*;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Where a host's next hop is to lead.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wish {
    /// Another wish has another number.
    pub number: u64,
    pub to: Path,
    /// Next hops to these may be replaced, and none to others.
    pub leave: Vec<ScvmId>,
    pub reason: String,
}

/// What came of one look at a host, or one change.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DriveReport {
    /// Of the wish it was for; 0: a rehearsal.
    pub wish: u64,
    /// The next hop as read (none: no route of its own), or why it could not be read or changed.
    pub outcome: Result<Option<Ipv4Addr>, DriveError>,
    pub took_ns: u64,
    /// Attempts that have failed in a row.
    pub failures: u32,
    /// The next attempt, after this, ns.
    pub again_ns: u64,
}

/// How the driving of an ESXi host's next hop stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DrivenView {
    /// Who is appointed; none: no SCVM has a live session.
    pub by: Option<ScvmId>,
    /// Since the last attempt that read the next hop, ns.
    pub rehearsed_ns: Option<u64>,
    /// What it read; none: no route of its own.
    pub next_hop: Option<Ipv4Addr>,
    /// The last attempt failed, so long ago, so many in a row.
    pub error: Option<DriveError>,
    pub error_age_ns: Option<u64>,
    pub failures: u32,
    /// Where it is to lead, and does not yet.
    pub wish: Option<Wish>,
}
