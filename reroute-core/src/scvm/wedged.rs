//! A client that gets no replies while others do: said, and left alone.
//!
//! Busy is not dead, but one connection can be: a thread of the server that holds it waits for ever, or its bytes were
//! lost. Of the server this says nothing, so nobody moves, and nothing is killed. Nor is the connection reset: its client
//! would send again what is still in progress here, go on, and be overwritten when that is executed after all (adr/0023).

use super::Scvm;
use super::io::{ClientFacts, Effect};
use crate::ids::*;
use crate::timeline::Event;
use std::collections::{BTreeMap, BTreeSet};

/// A client's calls wait for so long, and it gets no reply: longer than a server that is only slow takes.
const WEDGED_NS: u64 = 5 * SEC;
/// Others count as served if a reply has left within this.
const SERVED_NS: u64 = SEC;

/// A client with calls in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Waits {
    /// No reply, and no moment without a call, since then.
    since: BootNs,
    replies: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wedged {
    waits: BTreeMap<HostId, Waits>,
    said: BTreeSet<HostId>,
}

impl Wedged {
    fn learn(&mut self, client: &ClientFacts, now: BootNs) {
        if client.in_progress == 0 || !client.word.is_admitted() {
            self.waits.remove(&client.host);
            return;
        }
        let waits = self.waits.entry(client.host).or_insert(Waits { since: now, replies: client.replies });
        if waits.replies != client.replies {
            *waits = Waits { since: now, replies: client.replies };
        }
    }

    /// Clients that are wedged, and were said to be.
    pub fn said(&self) -> &BTreeSet<HostId> {
        &self.said
    }
}

impl Scvm {
    pub(super) fn look_for_wedged(&mut self, now: BootNs) {
        self.wedged.waits.retain(|host, _| self.clients.contains_key(host));
        for client in self.clients.values() {
            self.wedged.learn(client, now);
        }
        let waits = &self.wedged.waits;
        let wedged = |host: &HostId| waits.get(host).is_some_and(|w| now.since(w.since) >= WEDGED_NS);
        self.wedged.said.retain(wedged);
    }

    pub(super) fn tell_wedged(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        if now.since(self.server.facts().last_reply_at) > SERVED_NS {
            return; // nobody is served: that is another matter
        }
        for (host, waits) in &self.wedged.waits {
            if now.since(waits.since) >= WEDGED_NS && self.wedged.said.insert(*host) {
                let what = format!(
                    "{host} has got no reply for {} s while others have: the server is not left, and the connection not reset",
                    WEDGED_NS / SEC
                );
                out.push(Effect::Journal { at: now, event: Event::Fault { what } });
            }
        }
    }
}
