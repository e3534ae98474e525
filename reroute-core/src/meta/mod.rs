//! The session master: who holds a session, who is logged in where, how a login moves (design §6).
//!
//! | file | holds |
//! |---|---|
//! | `record` | what is stored per host, and how the next record follows from the last |
//! | `sessions` | sessions of SCVMs: keepalive ages, health, state |
//! | `lease` | the leader's own lease: confirmed by the store, or nothing is renewed and nobody admitted |
//! | `requests` | what each message does |
//! | `login` | one host's login: its record, what was heard since, the orders that follow |
//! | `moves` | how a login gets from Moving to At: proofs, admission, resends, giving up |
//! | `proofs` | the ways to know that a server is shut, as plug-ins |
//! | `operator` | what operators ask of Meta: drain, vouch |
//! | `wanted` | clients without an agent: where they call, and how often they may move |
//! | `driven` | ESXi hosts: which SCVM changes their next hop, and where to |
//! | `blocks` | clients that an operator keeps away |
//! | `holders` | who holds what, by the servers' own word; ghosts; ending a login |
//! | `twins` | two agents that speak as one node |
//! | `copies` | messages that came twice |
//! | `view` | the session health view |
//!
//! Sessions live in memory. Logins are records in a store that knows compare-and-set only; a record takes effect
//! when the store has confirmed it, never before. The master never starts a move by itself: a host asks for its own,
//! and for a client without an agent the server does that it calls at. Of an ESXi host it has the next hop changed, and
//! the login follows as with any other.

mod blocks;
mod copies;
mod driven;
mod holders;
mod lease;
mod login;
mod moves;
mod operator;
mod proofs;
mod record;
mod recorded;
mod requests;
mod sessions;
#[cfg(test)]
mod tests;
mod twins;
mod view;
mod wanted;

pub use driven::DrivenSettings;
pub use lease::Leadership;
pub use operator::{OperatorAnswer, OperatorAsk, StillThere};
pub use proofs::command::{
    Outcome as FenceCommandOutcome, Run as FenceCommandRun, Settings as FenceCommandSettings,
};
pub use proofs::{Waiting, does_not_cover};
pub use record::{Holder, Record, Versioned};
pub use recorded::Start;
pub use wanted::Agentless;

use crate::block::{Ask, BlockList, Denial, Done};
use crate::ids::*;
use crate::proto::*;
use crate::timeline::Event;
use copies::Copies;
use lease::Lease;
use login::HostLogin;
use serde::{Deserialize, Serialize};
use sessions::Session;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

/// What the master is told once. Times in ns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// For so long after a confirmation by the store was asked, this master may take itself for the leader.
    pub leader_ns: u64,
    pub affirm_ns: u64,
    pub agentless: Agentless,
    pub planned_drain_ns: u64,
    /// Orders go out again after this until they are answered.
    pub resend_ns: u64,
}

/// A time by another node's clock, as long as ours may take it to be: clocks drift apart by 10 % at most.
fn with_drift(ns: u64) -> u64 {
    ns.saturating_add(ns / 10)
}

/// Names one message until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// A message on its way to its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Post {
    request: RequestId,
    from: NodeId,
    incarnation: Incarnation,
    seq: u64,
    msg: ToMeta,
}

/// Names one question of an operator until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ticket(pub u64);

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Input {
    /// A genuine message of our cluster and version, from a configured node.
    Message { request: RequestId, from: NodeId, incarnation: Incarnation, seq: u64, msg: ToMeta },
    /// A push stream of this node is open (again).
    Connected { node: NodeId },
    /// About every 20 ms.
    Tick,
    /// An operator at Meta's socket.
    Operator { request: RequestId, ask: OperatorAsk },
    /// A run of [`Effect::RunFenceCommand`] is over. `output`: the end of what it wrote.
    FenceCommandEnded { scvm: ScvmId, run: u64, outcome: FenceCommandOutcome, took_ns: u64, output: String },
    /// What became of [`Effect::StoreDraining`]; durable if `Ok`.
    DrainingStored { scvm: ScvmId, result: Result<(), String> },
    /// The store took the host's record; it is durable at `version`.
    StoreDone { host: HostId, version: u64 },
    /// It did not, or nobody can tell. `found` is what the store holds now, if it could be read.
    StoreFailed { host: HostId, why: String, found: Option<Option<Versioned>> },
    /// To [`Effect::ConfirmLease`]: asked after that, the store knew no later term than ours.
    LeaseConfirmed,
    /// To [`Effect::ConfirmLease`]: nobody can tell.
    LeaseFailed { why: String },
    /// The store knows a later term (told in answer to whatever it was asked).
    LeaseOver { later: Term },
    /// An operator asks; `wall` is the wall clock now.
    Ask { ticket: Ticket, ask: Ask, wall: WallMs },
    /// What became of the list of blocks. `Err`: why it was not stored, and what the store holds, if it could be read.
    BlocksStored { result: Result<(), (String, Option<BlockList>)>, wall: WallMs },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// Exactly one per [`Input::Message`], some only when the store has confirmed the lease. Whoever numbers the pushes fills in [`MetaReply::Session`]'s `orders_to`.
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
    /// Ask the store whether our term is still the last → [`Input::LeaseConfirmed`], [`Input::LeaseFailed`] or
    /// [`Input::LeaseOver`]; one at a time, before any write that waits.
    ConfirmLease,
    /// Another leader exists: stop for good.
    StepDown {
        later: Term,
    },
    /// Start the fence command; its end comes back, whatever it is. One at a time per SCVM.
    RunFenceCommand(FenceCommandRun),
    /// Keep durably whether this SCVM is being drained. One at a time per SCVM.
    StoreDraining {
        scvm: ScvmId,
        draining: Option<Draining>,
    },
    /// Exactly one per [`Input::Operator`]; with a drain, when the store has it.
    Answer {
        request: RequestId,
        answer: Result<OperatorAnswer, Refusal>,
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
    lease: Lease,
    blocks: blocks::Blocks,
    twins: twins::Twins,
    driven: driven::Driven,
    generation: u64,
    /// SCVMs that are being drained, as the store has them; and what is on its way there.
    drains: BTreeMap<ScvmId, Draining>,
    draining: BTreeMap<ScvmId, operator::Storing>,
    command: Option<FenceCommandSettings>,
    commands: BTreeMap<ScvmId, proofs::command::State>,
}

/// What only answers copies, or tells watchers that something changed, is left out: a search over states then finds
/// the same one again, whichever way it came there.
impl Hash for SessionMaster {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let SessionMaster {
            settings,
            started,
            sessions,
            hosts,
            copies: _,
            lease,
            generation: _,
            drains,
            draining,
            command: _,
            commands,
            blocks,
            twins: _,
            driven,
        } = self;
        (settings.term, started, sessions, hosts, lease, drains, draining, commands, blocks, driven)
            .hash(state);
    }
}

impl SessionMaster {
    /// `stored`: every login the store holds. Those of hosts that are configured no more are kept and not touched.
    pub fn new(settings: Settings, mut stored: BTreeMap<HostId, Versioned>, now: BootNs) -> SessionMaster {
        let sessions = settings.scvms.iter().map(|s| (s.id, Session::absent(now))).collect();
        let hosts = settings
            .hosts
            .iter()
            .map(|h| (h.id, HostLogin::new(stored.remove(&h.id), h.has_agent, now)))
            .collect();
        SessionMaster {
            settings,
            started: now,
            sessions,
            hosts,
            copies: BTreeMap::new(),
            lease: Lease::new(now),
            generation: 0,
            drains: BTreeMap::new(),
            draining: BTreeMap::new(),
            command: None,
            commands: BTreeMap::new(),
            blocks: blocks::Blocks::default(),
            twins: twins::Twins::default(),
            driven: driven::Driven::default(),
        }
    }

    /// A fence command is configured.
    pub fn with_fence_command(mut self, settings: FenceCommandSettings) -> SessionMaster {
        self.command = Some(settings);
        self
    }

    /// The next hops of these ESXi hosts are driven by SCVMs.
    pub fn with_driven(mut self, settings: DrivenSettings, now: BootNs) -> SessionMaster {
        self.driven = driven::Driven::new(settings, now);
        self
    }

    /// `drains`: what the store holds. Those of SCVMs that are configured no more are kept and not touched.
    pub fn with_draining(mut self, drains: BTreeMap<ScvmId, Draining>) -> SessionMaster {
        self.drains = drains.into_iter().filter(|(scvm, _)| self.sessions.contains_key(scvm)).collect();
        self
    }

    pub fn handle(&mut self, input: Input, now: BootNs) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Message { request, from, incarnation, seq, msg } => {
                let post = Post { request, from, incarnation, seq, msg };
                let is_copy = self.copies.entry(from).or_default().find(incarnation, seq).is_some();
                let due = if is_copy { Some(post) } else { self.hold(post, now, &mut out) };
                if !is_copy {
                    self.watch_twins(from, incarnation, now, &mut out);
                }
                if let Some(post) = due {
                    self.answer(post, now, &mut out);
                }
            }
            Input::Connected { node } => self.connected(node, now, &mut out),
            Input::Tick => self.tick(now, &mut out),
            Input::Operator { request, ask } => self.operator(request, ask, now, &mut out),
            Input::FenceCommandEnded { scvm, run, outcome, took_ns, output } => {
                self.command_ended(scvm, run, (outcome, took_ns, output), now, &mut out);
            }
            Input::DrainingStored { scvm, result } => self.draining_stored(scvm, result, now, &mut out),
            Input::Ask { ticket, ask, wall } => self.ask_block(ticket, ask, wall, now, &mut out),
            Input::BlocksStored { result, wall } => self.blocks_stored(result, wall, now, &mut out),
            Input::StoreDone { host, version } => self.store_done(host, version, now, &mut out),
            Input::StoreFailed { host, why, found } => self.store_failed(host, why, found, now, &mut out),
            Input::LeaseConfirmed => self.lease_confirmed(now, &mut out),
            Input::LeaseFailed { why } => self.lease_failed(why, now),
            Input::LeaseOver { later } => self.lease_over(later, now, &mut out),
        }
        self.withhold(now, &mut out);
        out
    }

    fn answer(&mut self, post: Post, now: BootNs, out: &mut Vec<Effect>) {
        let Post { request, from, incarnation, seq, msg } = post;
        let known = self.copies.entry(from).or_default().find(incarnation, seq);
        let reply = match known {
            Some(reply) => reply,
            None => {
                let reply = self.message(from, incarnation, msg, now, out);
                self.copies.entry(from).or_default().keep(incarnation, seq, reply.clone());
                reply
            }
        };
        out.push(Effect::Reply { request, reply });
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
