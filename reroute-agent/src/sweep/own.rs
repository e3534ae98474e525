//! Who else answers for an address of this node's own.

use super::arp;
use reroute_core::duplicate::Claims;
use reroute_core::ids::MS;
use std::net::Ipv4Addr;

/// How long answers are waited for.
const LISTEN_NS: u64 = 200 * MS;

/// Blocks. Errors, in words: why nobody could be asked.
pub fn claims(interface: &str, address: Ipv4Addr) -> Result<Claims, String> {
    let found = arp::who_has(interface, &[address], LISTEN_NS)
        .map_err(|error| format!("ARP on {interface}: {error}"))?;
    Ok(Claims { address: address.into(), macs: found.into_values().flatten().collect() })
}
