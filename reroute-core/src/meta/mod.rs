//! The session master: who holds a session, who is logged in where, how a login moves (design §6).
//!
//! | file | holds |
//! |---|---|
//! | `record` | what is stored per host, and how the next record follows from the last |
//! | `sessions` | sessions of SCVMs: keepalive ages, health, state |
//! | `requests` | what each message does |
//! | `login` | one host's login: its record, what was heard since, the orders that follow |
//! | `moves` | how a login gets from Moving to At: proofs, admission, resends, giving up |
//! | `blocks` | clients that an operator keeps away |
//! | `holders` | who holds what, by the servers' own word; ghosts; ending a login |
//! | `twins` | two agents that speak as one node |
//! | `copies` | messages that came twice |
//! | `view` | the session health view |
//!
//! Sessions live in memory. Logins are records in a store that knows compare-and-set only; a record takes effect
//! when the store has confirmed it, never before. The master never starts a move by itself.

mod blocks;
mod copies;
mod holders;
mod login;
mod moves;
mod record;
mod requests;
mod sessions;
#[cfg(test)]
mod tests;
mod twins;
mod view;

pub use record::{Holder, Record, Versioned};

use crate::block::{Ask, BlockList, Denial, Done};
use crate::ids::*;
use crate::proto::*;
use crate::timeline::Event;
use copies::Copies;
use login::HostLogin;
use sessions::Session;
use std::collections::BTreeMap;

/// What the master is told once. Times in ns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub cluster: String,
    /// Grows with each start; drawn from the store.
    pub term: Term,
    pub scvms: Vec<ScvmInfo>,
    pub hosts: Vec<HostInfo>,
    pub keepalive_ns: u64,
    pub session_ns: u64,
    /// The longest lease anybody may hold: waited for after a start, before expiry proves anything.
    pub longest_session_ns: u64,
    pub affirm_ns: u64,
    pub planned_drain_ns: u64,
    /// Orders go out again after this until they are answered.
    pub resend_ns: u64,
}

/// A time by another node's clock, as long as ours may take it to be: clocks drift apart by 10 % at most.
fn with_drift(ns: u64) -> u64 {
    ns.saturating_add(ns / 10)
}

/// Names one message until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names one question of an operator until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A genuine message of our cluster and version, from a configured node.
    Message { request: RequestId, from: NodeId, incarnation: Incarnation, seq: u64, msg: ToMeta },
    /// A push stream of this node is open (again).
    Connected { node: NodeId },
    /// About every 20 ms.
    Tick,
    /// The store took the host's record; it is durable at `version`.
    StoreDone { host: HostId, version: u64 },
    /// It did not, or nobody can tell. `found` is what the store holds now, if it could be read.
    StoreFailed { host: HostId, why: String, found: Option<Option<Versioned>> },
    /// An operator asks; `wall` is the wall clock now.
    Ask { ticket: Ticket, ask: Ask, wall: WallMs },
    /// What became of the list of blocks. `Err`: why it was not stored, and what the store holds, if it could be read.
    BlocksStored { result: Result<(), (String, Option<BlockList>)>, wall: WallMs },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Exactly one per [`Input::Message`]. Whoever numbers the pushes fills in [`MetaReply::Session`]'s `orders_to`.
    Reply {
        request: RequestId,
        reply: MetaReply,
    },
    /// To every push stream of the node; lost if it has none.
    Push {
        node: NodeId,
        order: Order,
    },
    /// Compare-and-set: only if the store holds `expected` (None: nothing). One at a time per host.
    Store {
        host: HostId,
        expected: Option<u64>,
        record: Record,
    },
    /// Compare-and-set: only if the store's list has version `expected` (0: there is none). One at a time.
    StoreBlocks {
        expected: u64,
        list: BlockList,
    },
    /// Exactly one per [`Input::Ask`], at once or when the store has answered.
    Told {
        ticket: Ticket,
        answer: Result<Done, Denial>,
    },
    Journal(Event),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionMaster {
    settings: Settings,
    started: BootNs,
    sessions: BTreeMap<ScvmId, Session>,
    hosts: BTreeMap<HostId, HostLogin>,
    copies: BTreeMap<NodeId, Copies>,
    blocks: blocks::Blocks,
    twins: twins::Twins,
    generation: u64,
}

impl SessionMaster {
    /// `stored`: every login the store holds. Those of hosts that are configured no more are kept and not touched.
    pub fn new(settings: Settings, mut stored: BTreeMap<HostId, Versioned>, now: BootNs) -> SessionMaster {
        let sessions = settings.scvms.iter().map(|s| (s.id, Session::absent(now))).collect();
        let hosts =
            settings.hosts.iter().map(|h| (h.id, HostLogin::new(stored.remove(&h.id), now))).collect();
        SessionMaster {
            settings,
            started: now,
            sessions,
            hosts,
            copies: BTreeMap::new(),
            blocks: blocks::Blocks::default(),
            twins: twins::Twins::default(),
            generation: 0,
        }
    }

    pub fn handle(&mut self, input: Input, now: BootNs) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Message { request, from, incarnation, seq, msg } => {
                let known = self.copies.entry(from).or_default().find(incarnation, seq);
                let reply = match known {
                    Some(reply) => reply,
                    None => {
                        self.watch_twins(from, incarnation, now, &mut out);
                        let reply = self.message(from, incarnation, msg, now, &mut out);
                        self.copies.entry(from).or_default().keep(incarnation, seq, reply.clone());
                        reply
                    }
                };
                out.push(Effect::Reply { request, reply });
            }
            Input::Connected { node } => self.connected(node, now, &mut out),
            Input::Tick => self.tick(now, &mut out),
            Input::Ask { ticket, ask, wall } => self.ask_block(ticket, ask, wall, now, &mut out),
            Input::BlocksStored { result, wall } => self.blocks_stored(result, wall, now, &mut out),
            Input::StoreDone { host, version } => self.store_done(host, version, now, &mut out),
            Input::StoreFailed { host, why, found } => self.store_failed(host, why, found, now, &mut out),
        }
        out
    }

    /// Changes when the view says something else than before (ages apart).
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn term(&self) -> Term {
        self.settings.term
    }

    fn policy(&self, scvm: ScvmId) -> Option<FencePolicy> {
        self.settings.scvms.iter().find(|s| s.id == scvm).map(|s| s.policy)
    }
}
