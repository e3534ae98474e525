//! The nodes: a machine of `reroute-core` each, and what it stands on.

use super::kernel::{Kernel, Pulse, Server};
use super::parts::Clock;
use super::story::{Node, X};
use reroute_core::host;
use reroute_core::ids::*;
use reroute_core::meta::{self, SessionMaster, Versioned};
use reroute_core::proto::{MetaReply, Order, ToMeta};
use reroute_core::scvm::{Scvm, Tag};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

/// Numbers that only tell one thing from another: no part of what makes two states the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Aside<T>(pub T);

impl<T> Hash for Aside<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// Messages without an answer: number, round of sending, and what the machine gets back with the answer.
pub type Asked<T> = Vec<(Aside<u64>, u32, T)>;

#[derive(Clone, Debug, Hash)]
pub struct HostAgent {
    pub machine: host::Machine,
    pub incarnation: Incarnation,
    pub seq: Aside<u64>,
    pub asked: Asked<ToMeta>,
    /// Leaders whose push stream is open.
    pub streams: BTreeSet<usize>,
}

#[derive(Clone, Debug, Hash)]
pub struct HostNode {
    pub clock: Clock,
    pub agent: Option<HostAgent>,
    pub runs: u64,
    pub disk: host::Record,
    pub route: Option<Path>,
    /// The client's call waits for its answer there.
    pub waits_for: Option<ScvmId>,
    pub back_at: Option<u32>,
    pub thaws_at: Option<u32>,
}

#[derive(Clone, Debug, Hash)]
pub struct ScvmAgent {
    pub machine: Scvm,
    pub incarnation: Incarnation,
    pub seq: Aside<u64>,
    pub asked: Asked<Tag>,
}

#[derive(Clone, Debug, Hash)]
pub struct ScvmNode {
    pub clock: Clock,
    pub kernel: Kernel,
    pub server: Server,
    pub agent: Option<ScvmAgent>,
    pub runs: u64,
    pub back_at: Option<u32>,
    pub server_back_at: Option<u32>,
    pub thaws_at: Option<u32>,
    /// When, by its clock, every lease has run out that counts from before that clock last stopped.
    pub stunned: Option<BootNs>,
}

#[derive(Clone, Debug, Hash)]
pub struct Leader {
    pub master: SessionMaster,
    pub seqs: BTreeMap<NodeId, u64>,
    pub requests: Aside<u64>,
    /// Requests that were not answered at once: number, who asked, as which run, under which number.
    pub awaiting: Vec<(Aside<u64>, NodeId, Incarnation, Aside<u64>)>,
    pub streams: BTreeMap<NodeId, Incarnation>,
    /// Asked of the store while it could not be reached.
    pub to_store: Vec<Thing>,
}

#[derive(Clone, Debug, Hash)]
pub struct MetaNode {
    pub clock: Clock,
    pub leader: Option<Leader>,
    pub back_at: Option<u32>,
    pub thaws_at: Option<u32>,
}

#[derive(Clone, Debug, Default, Hash)]
pub struct Store {
    pub term: Term,
    pub login: Option<(u64, meta::Record)>,
}

impl Store {
    pub fn logins(&self) -> BTreeMap<HostId, Versioned> {
        let login = self.login.clone().map(|(version, record)| Versioned { version, record });
        login.into_iter().map(|l| (X, l)).collect()
    }
}

/// What is to come.
#[derive(Clone, Debug, Hash)]
pub enum Thing {
    Tick(Node),
    /// A server carries out what it has, and answers.
    Execute(ScvmId),
    Pulse(Pulse),
    Post {
        from: NodeId,
        incarnation: Incarnation,
        seq: Aside<u64>,
        meta: usize,
        msg: ToMeta,
        /// A copy, of one that was answered like this.
        mark: u64,
    },
    Answer {
        to: NodeId,
        incarnation: Incarnation,
        seq: Aside<u64>,
        meta: usize,
        reply: MetaReply,
    },
    Push {
        to: NodeId,
        incarnation: Incarnation,
        term: Term,
        seq: u64,
        order: Order,
    },
    Confirm {
        meta: usize,
        term: Term,
    },
    Write {
        meta: usize,
        term: Term,
        expected: Option<u64>,
        record: Box<meta::Record>,
    },
    /// The store's answer.
    Stored {
        meta: usize,
        term: Term,
        input: Box<meta::Input>,
    },
    Persist {
        incarnation: Incarnation,
        record: host::Record,
    },
    NullTimeout {
        scvm: ScvmId,
        incarnation: Incarnation,
    },
}

impl Thing {
    /// Whom it comes to.
    pub fn to(&self) -> Node {
        match self {
            Thing::Tick(node) => *node,
            Thing::Execute(s) | Thing::NullTimeout { scvm: s, .. } => Node::Scvm(*s),
            Thing::Pulse(p) => Node::Scvm(p.scvm),
            Thing::Post { meta, .. } | Thing::Stored { meta, .. } => Node::Meta(*meta),
            Thing::Answer { to, .. } | Thing::Push { to, .. } => node(*to),
            Thing::Confirm { .. } | Thing::Write { .. } => Node::Store,
            Thing::Persist { .. } => Node::Host,
        }
    }

    /// What the adversary can hold up; what is not on its way to or from a disk he can lose and double, too.
    pub fn is_message(&self) -> bool {
        !matches!(self, Thing::Tick(_) | Thing::Execute(_) | Thing::NullTimeout { .. })
    }

    pub fn is_disk(&self) -> bool {
        matches!(
            self,
            Thing::Confirm { .. } | Thing::Write { .. } | Thing::Stored { .. } | Thing::Persist { .. }
        )
    }

    /// In a few words, for whoever reads a trace.
    pub fn label(&self) -> String {
        let brief = |text: String| text.chars().take(90).collect::<String>();
        match self {
            Thing::Tick(n) => format!("tick {n:?}"),
            Thing::Execute(s) => format!("execute {s}"),
            Thing::Pulse(p) => format!("{:?} {} to {}", p.flag, p.epoch, p.scvm),
            Thing::Post { from, msg, .. } => format!("{from}: {}", brief(format!("{msg:?}"))),
            Thing::Answer { to, reply, .. } => format!("answer to {to}: {}", brief(format!("{reply:?}"))),
            Thing::Push { to, order, .. } => format!("order to {to}: {}", brief(format!("{order:?}"))),
            Thing::Confirm { term, .. } => format!("confirm {term}?"),
            Thing::Write { record, .. } => format!("write {}", brief(format!("{:?}", record.login.state))),
            Thing::Stored { input, .. } => format!("store says {}", brief(format!("{input:?}"))),
            Thing::Persist { record, .. } => format!("host writes {record:?}"),
            Thing::NullTimeout { scvm, .. } => format!("NULL unanswered at {scvm}"),
        }
    }
}

pub fn node(id: NodeId) -> Node {
    match id {
        NodeId::Host(_) => Node::Host,
        NodeId::Scvm(s) => Node::Scvm(s),
    }
}
