//! Connections of a client whose kernel cannot end them itself: it is made to end them from here (adr/0026).
//!
//! They lead to the server that it has left, or to one of its own sockets here that was shut. A segment that fits nothing
//! makes the client's TCP say where it stands; that answer comes here by its new route, finds no socket, and draws a RST
//! that is exact. Nobody else's packet is forged, and whoever is not served here is sent nothing.

use super::Scvm;
use super::io::{Effect, Outcome, Tickled};
use crate::ids::*;
use crate::proto::MOST_RESET;
use crate::timeline::Event;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A TCP answers what fits nothing once in 500 ms; the client asks again after a little more than that.
const GAP_NS: u64 = 400 * MS;
/// So often in a row, whoever asks.
const ROUNDS: u32 = 8;
/// After such a rest it is another matter.
const REST_NS: u64 = 10 * SEC;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Round {
    epoch: Epoch,
    at: BootNs,
    number: u32,
    connections: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientResets {
    last: BTreeMap<HostId, Round>,
}

/// The last time that a client's connections were reset.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClientResetStanding {
    pub connections: u32,
    pub round: u32,
    pub age_ns: u64,
}

impl Scvm {
    pub(super) fn reset_client(
        &mut self,
        host: HostId,
        epoch: Epoch,
        (network, mut ports, own): (Network, Vec<u16>, bool),
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        if !self.admission.serves(host, epoch) {
            let word = self.admission.word(host);
            let what = format!(
                "connections of {host} are not reset: it is not admitted here at {epoch}, but stands at {} ({})",
                Epoch(word.epoch()),
                super::rank_name(word.rank())
            );
            return out.push(Effect::Journal { at: now, event: Event::Fault { what } });
        }
        ports.retain(|port| *port != 0);
        ports.sort_unstable();
        ports.dedup();
        ports.truncate(MOST_RESET);
        let last = self.client_resets.last.get(&host).filter(|r| r.epoch == epoch);
        let number = match last {
            // A copy, or one that was asked for twice.
            Some(last) if now.since(last.at) < GAP_NS => return,
            Some(last) if now.since(last.at) >= REST_NS => 1,
            Some(last) if last.number >= ROUNDS => {
                let what = format!("connections of {host} are still there after {ROUNDS} resets: left alone");
                return out.push(Effect::Journal { at: now, event: Event::Fault { what } });
            }
            Some(last) => last.number + 1,
            None => 1,
        };
        if ports.is_empty() {
            return;
        }
        let connections = ports.len() as u32;
        self.client_resets.last.insert(host, Round { epoch, at: now, number, connections });
        out.push(Effect::ResetClient { host, epoch, network, ports, own, round: number });
    }

    pub(super) fn client_reset(
        &mut self,
        host: HostId,
        epoch: Epoch,
        result: Outcome<Tickled>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        let event = match result {
            Ok(Tickled { tickled, destroyed }) => Event::ClientReset { host, epoch, tickled, destroyed },
            // The client asks again while they stay.
            Err(why) => Event::Fault { what: format!("connections of {host} were not reset: {why}") },
        };
        out.push(Effect::Journal { at: now, event });
    }
}

impl ClientResets {
    pub fn standing(&self, host: HostId, now: BootNs) -> Option<ClientResetStanding> {
        let Round { at, number, connections, .. } = *self.last.get(&host)?;
        Some(ClientResetStanding { connections, round: number, age_ns: now.since(at) })
    }
}
