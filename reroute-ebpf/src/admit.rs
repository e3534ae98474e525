//! Admission: the word, the two leases, and the order in which they are read (design §6).

use crate::at;
use crate::cell::Shared;
use reroute_common::admission::Word;
use reroute_common::table::{Client, Server, drop};

/// Until when the client is served, boot ns, if its word says admitted.
#[inline(always)]
pub fn lease_end(client: Shared<Client>, server: Shared<Server>) -> u64 {
    let session = if at!(client.has_agent).get() != 0 {
        at!(server.session_deadline).get()
    } else {
        at!(server.session_deadline_no_agent).get()
    };
    let affirm = at!(client.affirm_deadline).get();
    if session > affirm { session } else { affirm }
}

/// Why a packet of this client must not get in. The caller has raised `in_progress` before, and lowers it after:
/// whoever closes the word and then reads the counts sees this packet, or this packet sees the closed word.
#[inline(always)]
pub fn refusal(client: Shared<Client>, server: Shared<Server>, slot: u32, now: u64) -> Option<usize> {
    if slot == 0 {
        return Some(drop::UNREGISTERED);
    }
    if now < at!(client.blocked_until).get() {
        return Some(drop::BLOCKED);
    }
    if !Word(at!(client.word).get()).is_admitted() {
        return Some(drop::NOT_ADMITTED);
    }
    if now >= lease_end(client, server) {
        return Some(drop::LEASE_EXPIRED);
    }
    None
}

/// Raises the word to `to`. False: it already stands beyond.
#[inline(always)]
pub fn raise(client: Shared<Client>, to: Word) -> bool {
    at!(client.word).raise(to.0) == to.0
}
