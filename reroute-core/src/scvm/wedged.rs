//! A client that gets no replies while others do: its connection is reset, so that it begins anew at the same server.
//!
//! Busy is not dead, but one connection can be (design §7): a thread of the server that holds it waits for ever, or its
//! bytes were lost. Of the server this says nothing, so nobody moves, and nothing is killed.

use super::Scvm;
use super::io::{ClientFacts, Effect, Outcome, Purge, Purpose};
use crate::ids::*;
use crate::timeline::Event;
use std::collections::BTreeMap;

/// A client's calls wait for so long, and it gets no reply: longer than a server that is only slow takes.
const WEDGED_NS: u64 = 5 * SEC;
/// Others count as served if a reply has left within this.
const SERVED_NS: u64 = SEC;
/// The same client is not reset again before.
const AGAIN_NS: u64 = 60 * SEC;

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
    reset: BTreeMap<HostId, BootNs>,
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

    fn wedged(&self, now: BootNs) -> impl Iterator<Item = HostId> {
        self.waits.iter().filter(move |(_, w)| now.since(w.since) >= WEDGED_NS).map(|(host, _)| *host)
    }

    /// Clients that were reset, and are wedged again.
    pub fn hopeless(&self, now: BootNs) -> Vec<HostId> {
        self.wedged(now).filter(|host| self.reset.contains_key(host)).collect()
    }
}

impl Scvm {
    pub(super) fn look_for_wedged(&mut self, now: BootNs) {
        self.wedged.waits.retain(|host, _| self.clients.contains_key(host));
        for client in self.clients.values() {
            self.wedged.learn(client, now);
        }
    }

    pub(super) fn reset_wedged(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        self.wedged.reset.retain(|_, at| now.since(*at) < AGAIN_NS);
        if now.since(self.server.facts().last_reply_at) > SERVED_NS {
            return; // nobody is served: that is another matter
        }
        let wedged: Vec<HostId> =
            self.wedged.wedged(now).filter(|host| !self.wedged.reset.contains_key(host)).collect();
        for host in wedged {
            self.wedged.reset.insert(host, now);
            self.wedged.waits.remove(&host);
            let what = format!(
                "{host} has got no reply for {} s while others have: its connection is reset, the server is not left",
                WEDGED_NS / SEC
            );
            out.push(Effect::Journal { at: now, event: Event::Fault { what } });
            let epoch = Epoch(self.admission.word(host).epoch());
            out.push(Effect::PurgeSockets { host, epoch, purpose: Purpose::Wedged });
        }
    }

    pub(super) fn wedged_reset(
        &mut self,
        host: HostId,
        purge: Outcome<Purge>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        let event = match purge {
            Ok(Purge { destroyed, .. }) => Event::SocketsReset { count: destroyed },
            Err(why) => {
                self.wedged.reset.remove(&host); // once more, when it has waited for as long again
                Event::Fault { what: format!("the connection of {host} was not reset: {why}") }
            }
        };
        out.push(Effect::Journal { at: now, event });
    }
}
