//! What an address that does not answer as it should suffers from, by name.

use super::{Obstacle, Outcome};
use std::collections::BTreeSet;
use std::fmt;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What the link layer says of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFacts {
    /// One of this host's own addresses shares a subnet with it.
    pub on_link: bool,
    /// Who answered for it by ARP (RFC 826), each once.
    pub macs: BTreeSet<Mac>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diagnosis {
    Up {
        rtt_ns: u64,
    },
    /// Two stations answer for it; whether it answers echoes is chance.
    DuplicateAddress {
        macs: BTreeSet<Mac>,
    },
    /// It is in no subnet of this host, and does not answer by way of a router either.
    WrongSubnet,
    /// Small frames pass, full ones do not.
    Mtu {
        next_hop: Option<u16>,
    },
    /// It is there and says nothing, or somebody on the way says that it may not.
    Filtered {
        by: Option<std::net::Ipv4Addr>,
    },
    /// Nobody is there.
    Down,
    /// Nothing left this host: it says nothing of the other side.
    NotSent {
        errno: i32,
    },
}

/// A duplicate address comes first: it spoils all the other findings.
pub fn diagnose(outcome: Outcome, link: &LinkFacts) -> Diagnosis {
    if link.macs.len() > 1 {
        return Diagnosis::DuplicateAddress { macs: link.macs.clone() };
    }
    match outcome {
        Outcome::Answers { rtt_ns } => Diagnosis::Up { rtt_ns },
        Outcome::SmallOnly { told: Some(Obstacle::FragmentationNeeded { mtu, .. }), .. } => {
            Diagnosis::Mtu { next_hop: (mtu > 0).then_some(mtu) }
        }
        Outcome::SmallOnly { .. } => Diagnosis::Mtu { next_hop: None },
        Outcome::Refused(Obstacle::Prohibited { by }) => Diagnosis::Filtered { by: Some(by) },
        Outcome::Refused(Obstacle::NotSent { errno }) => Diagnosis::NotSent { errno },
        Outcome::Refused(Obstacle::FragmentationNeeded { mtu, .. }) => {
            Diagnosis::Mtu { next_hop: (mtu > 0).then_some(mtu) }
        }
        Outcome::Refused(Obstacle::NoRoute) => Diagnosis::WrongSubnet,
        Outcome::Refused(Obstacle::Unreachable { .. }) | Outcome::Silent => {
            match (link.on_link, link.macs.is_empty()) {
                // Its link layer is alive: somebody drops the echoes.
                (_, false) => Diagnosis::Filtered { by: None },
                (true, true) => Diagnosis::Down,
                (false, true) => Diagnosis::WrongSubnet,
            }
        }
    }
}
