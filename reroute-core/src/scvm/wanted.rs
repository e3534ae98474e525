//! Clients without an agent that call here and are held back (design §6): told to Meta while they go on calling.
//!
//! The kernel reports a client's call only where the connection's handshake is complete and the call has the bytes that
//! the server waits for: whoever spoofs an address learns neither. A report is as old as that call, and says so.

use super::Scvm;
use super::io::{ClientFacts, Effect, Outcome, Purge, Purpose, Signal, SignalKind};
use super::outbox::{Kind, Outbox};
use crate::ids::*;
use crate::proto::ToMeta;
use crate::timeline::Event;
use reroute_common::admission::Word;
use std::collections::{BTreeMap, BTreeSet};

/// Meta is told again after this, while it lasts.
const REPEAT_NS: u64 = 200 * MS;
/// Messages that wait for Meta's reply at a time.
const OUTSTANDING: usize = 64;
/// TCP sends a call again at doubled intervals: a client is gone when nothing came for twice the last one, and this.
const GRACE_NS: u64 = SEC;
/// TCP's longest interval (RFC 6298's bound as Linux has it), twice.
const LONGEST_NS: u64 = 240 * SEC;
const SLOW_NS: u64 = SEC;
/// Connections whose beginning was not seen are closed not more often than this.
const CLOSE_GAP_NS: u64 = SEC;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Want {
    since: BootNs,
    last: BootNs,
    /// Between the last two calls that were reported.
    gap: u64,
    tell_at: BootNs,
}

impl Want {
    fn is_over(&self, now: BootNs) -> bool {
        now.since(self.last) > (2 * self.gap).min(LONGEST_NS) + GRACE_NS
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wanted {
    clients: BTreeMap<HostId, Want>,
    closed: BTreeMap<HostId, BootNs>,
    /// Why nobody can be served, and how many were said to wait for that.
    said: Option<(&'static str, usize)>,
}

impl Scvm {
    pub(super) fn login_wanted(&mut self, signal: &Signal, now: BootNs, out: &mut Vec<Effect>) {
        let Some(host) = signal.host.filter(|host| self.is_without_agent(*host) && !self.serves(*host, now))
        else {
            return;
        };
        match signal.kind {
            SignalKind::LoginWanted => self.wanted.calls(host, signal.at, now),
            _ => self.wanted.unseen(host, self.admission.word(host), now, out),
        }
    }

    /// Before a lease opens again for those who have waited long: they come at once, with new connections.
    pub(super) fn hasten(&mut self, out: &mut Vec<Effect>) {
        let slow = self.wanted.clients.keys().filter(|host| self.wanted.is_slow(**host));
        out.extend(slow.map(|&host| Effect::PurgeSockets {
            host,
            epoch: Epoch(self.admission.word(host).epoch()),
            purpose: Purpose::Unseen,
        }));
    }

    fn serves(&self, host: HostId, now: BootNs) -> bool {
        self.admission.word(host).is_admitted() && !self.session.lapsed(!self.is_without_agent(host), now)
    }

    /// Why those who wait are not told to Meta.
    pub(super) fn why_held(&self, now: BootNs) -> Option<&'static str> {
        match self.session.live(&self.settings, now) {
            Some(_) => None,
            None => {
                Some("no leader of Meta answers this server; they go on, and nothing is lost, when one does")
            }
        }
    }

    pub(super) fn tell_wanted(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        let mut wanted = std::mem::take(&mut self.wanted);
        let why = self.why_held(now);
        let served: BTreeSet<HostId> =
            wanted.clients.keys().copied().filter(|host| self.serves(*host, now)).collect();
        let known = (self.admission.words(), &self.clients);
        let what = wanted.tick(|host| served.contains(&host), known, why, now, (&mut self.outbox, out));
        self.wanted = wanted;
        if let Some(what) = what {
            out.push(Effect::Journal { at: now, event: Event::Fault { what } });
        }
    }

    pub(super) fn closed_unseen(
        &mut self,
        host: HostId,
        purge: Outcome<Purge>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        let event = match purge {
            Ok(Purge { destroyed: 0, .. }) => return,
            Ok(Purge { destroyed, .. }) => Event::SocketsReset { count: destroyed },
            Err(why) => Event::Fault { what: format!("old connections of {host} cannot be closed: {why}") },
        };
        out.push(Effect::Journal { at: now, event });
    }
}

/// A client that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    pub host: HostId,
    pub since: BootNs,
}

impl Wanted {
    /// The kernel has held back a call.
    pub fn calls(&mut self, host: HostId, at: BootNs, now: BootNs) {
        let want = self.clients.entry(host).or_insert(Want { since: at, last: at, gap: 0, tell_at: now });
        if at > want.last {
            want.gap = at.since(want.last);
            want.last = at;
        }
    }

    /// It was held back on a connection that nobody can judge: without it, the client comes with a new one.
    pub fn unseen(&mut self, host: HostId, word: Word, now: BootNs, out: &mut Vec<Effect>) {
        let last = self.closed.get(&host).copied();
        if last.is_none_or(|at| now.since(at) >= CLOSE_GAP_NS) {
            self.closed.insert(host, now);
            out.push(Effect::PurgeSockets { host, epoch: Epoch(word.epoch()), purpose: Purpose::Unseen });
        }
    }

    /// TCP has come to send its calls again so seldom that a new connection is sooner there.
    pub fn is_slow(&self, host: HostId) -> bool {
        self.clients.get(&host).is_some_and(|want| want.gap >= SLOW_NS)
    }

    /// Those who wait now, longest first.
    pub fn held(&self) -> Vec<Held> {
        let mut held: Vec<Held> =
            self.clients.iter().map(|(&host, want)| Held { host, since: want.since }).collect();
        held.sort_by_key(|h| h.since);
        held
    }

    /// Forgets those who are served, or have gone; tells Meta of the others. `why`: nobody can be served, and Meta not
    /// be told. Returns what is to be recorded.
    pub fn tick(
        &mut self,
        served: impl Fn(HostId) -> bool,
        (words, clients): (&BTreeMap<HostId, Word>, &BTreeMap<HostId, ClientFacts>),
        why: Option<&'static str>,
        now: BootNs,
        (outbox, out): (&mut Outbox, &mut Vec<Effect>),
    ) -> Option<String> {
        let before = self.clients.len();
        self.clients.retain(|host, want| !want.is_over(now) && !served(*host));
        if before != self.clients.len() {
            outbox.forget(|host, kind| kind == Kind::Wanted && !self.clients.contains_key(&host));
        }
        let Some(why) = why else {
            self.tell(words, clients, now, outbox, out);
            let (_, count) = self.said.take()?;
            return Some(format!(
                "a leader of Meta is there again: {count} clients without an agent stood still"
            ));
        };
        outbox.forget(|_, kind| kind == Kind::Wanted);
        let count = self.clients.len();
        if count == 0 || self.said.is_some_and(|(w, c)| w == why && c >= count) {
            return None;
        }
        self.said = Some((why, count));
        self.problem(Some(why), now)
    }

    fn tell(
        &mut self,
        words: &BTreeMap<HostId, Word>,
        clients: &BTreeMap<HostId, ClientFacts>,
        now: BootNs,
        outbox: &mut Outbox,
        out: &mut Vec<Effect>,
    ) {
        let mut room = OUTSTANDING.saturating_sub(outbox.count(Kind::Wanted));
        for (&host, want) in self.clients.iter_mut().filter(|(_, w)| w.tell_at <= now) {
            // One at a time.
            if outbox.has(host, Kind::Wanted) {
                continue;
            }
            if room == 0 {
                break;
            }
            room -= 1;
            want.tell_at = now.plus(REPEAT_NS);
            let word = words.get(&host).copied().unwrap_or(Word::NONE);
            let closed = if word.is_closed_for(word.epoch()) { Epoch(word.epoch()) } else { Epoch(0) };
            let connections = clients.get(&host).map_or(0, |c| c.connections);
            let age_ns = now.since(want.last);
            let msg = ToMeta::LoginWanted { host, closed, connections, age_ns };
            outbox.send(host, Kind::Wanted, msg, out);
        }
    }

    /// In words: how many stand still, since when, and for what they wait.
    pub fn problem(&self, why: Option<&'static str>, now: BootNs) -> Option<String> {
        let first = self.held().first().copied()?;
        let (count, waits) = (self.clients.len(), now.since(first.since) / MS);
        let why = why.unwrap_or("their logins are on their way here");
        Some(format!(
            "{count} clients without an agent stand still here, the first of them ({}) for {waits} ms: {why}",
            first.host
        ))
    }
}
