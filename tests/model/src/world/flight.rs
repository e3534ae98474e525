//! What is under way: messages, disk writes, calls being worked on. Each of them is one pending thing with a number; it
//! comes to its end when whoever drives the world says so, in whatever order.

use super::server::CallId;
use super::tcp::Segment;
use reroute_core::host::{Facts, PulseFlag, Record};
use reroute_core::ids::*;
use reroute_core::meta;
use reroute_core::proto::{MetaReply, ToMeta};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Names a pending thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

/// Everybody who has a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    Host(HostId),
    Scvm(ScvmId),
    Meta(u8),
}

impl From<NodeId> for Node {
    fn from(id: NodeId) -> Node {
        match id {
            NodeId::Host(id) => Node::Host(id),
            NodeId::Scvm(id) => Node::Scvm(id),
        }
    }
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Node::Host(id) => write!(f, "host{}", id.0),
            Node::Scvm(id) => write!(f, "scvm{}", id.0),
            Node::Meta(id) => write!(f, "meta{id}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pulse {
    pub host: HostId,
    pub incarnation: Incarnation,
    pub path: Path,
    pub flag: PulseFlag,
    pub epoch: Epoch,
    pub scvm_boot: u64,
    pub scvm_stamp: u64,
    pub sent_at: BootNs,
}

/// A push stream of a node: by one network, from one of Meta's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    pub node: NodeId,
    pub meta: u8,
    pub network: Network,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pending {
    // --- datagrams and segments: may be lost, delayed, overtaken, doubled ---
    Pulse(Pulse),
    PulseReply {
        host: HostId,
        incarnation: Incarnation,
        path: Path,
        sent_at: BootNs,
        facts: Facts,
    },
    /// From a host's client to a server.
    Call {
        host: HostId,
        path: Path,
        segment: Segment,
    },
    /// From a server to a host's client.
    Reply {
        host: HostId,
        path: Path,
        segment: Segment,
    },
    Post {
        from: NodeId,
        incarnation: Incarnation,
        seq: u64,
        meta: u8,
        network: Network,
        msg: ToMeta,
    },
    Answer {
        to: NodeId,
        incarnation: Incarnation,
        seq: u64,
        meta: u8,
        network: Network,
        reply: MetaReply,
    },

    // --- streams: in order, or the stream ends ---
    /// Tries to open a push stream; waits until both ends are there and the link is whole.
    Connect {
        stream: StreamId,
        incarnation: Incarnation,
    },
    /// The next line of a push stream.
    Line {
        stream: StreamId,
        opened: u64,
    },

    // --- local work ---
    /// The host's login record is on its way to disk. [`super::Step::Fail`]: it is not written.
    Persist {
        host: HostId,
        incarnation: Incarnation,
        record: Record,
    },
    /// The epoch file. [`super::Step::Fail`]: it is left as it was.
    Publish {
        scvm: ScvmId,
        incarnation: Incarnation,
        epochs: BTreeMap<HostId, Epoch>,
    },
    /// Compare-and-set in Meta's store. Can fail in three ways.
    Store {
        meta: u8,
        term: Term,
        host: HostId,
        expected: Option<u64>,
        record: Box<meta::Record>,
    },
    /// A NULL call to the local server.
    Probe {
        scvm: ScvmId,
        incarnation: Incarnation,
        sent_at: BootNs,
    },
    /// A call that the server has read is carried out.
    Execute {
        scvm: ScvmId,
        call: CallId,
    },
    /// A killed server process comes to its end.
    Reap {
        scvm: ScvmId,
        server: Incarnation,
    },
}

/// What kind of thing may happen to it besides coming to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// Can be lost and doubled.
    Datagram,
    /// In order.
    Stream,
    /// Can fail.
    Disk,
    /// Takes its time, no more.
    Work,
}

impl Pending {
    pub fn nature(&self) -> Nature {
        match self {
            Pending::Pulse(_)
            | Pending::PulseReply { .. }
            | Pending::Call { .. }
            | Pending::Reply { .. }
            | Pending::Post { .. }
            | Pending::Answer { .. } => Nature::Datagram,
            Pending::Connect { .. } | Pending::Line { .. } => Nature::Stream,
            Pending::Persist { .. } | Pending::Publish { .. } | Pending::Store { .. } => Nature::Disk,
            Pending::Probe { .. } | Pending::Execute { .. } | Pending::Reap { .. } => Nature::Work,
        }
    }

    /// From where to where, and by which network; local work: where it is done.
    pub fn way(&self) -> (Node, Node, Option<Network>) {
        match self {
            Pending::Pulse(p) => (Node::Host(p.host), Node::Scvm(p.path.scvm), Some(p.path.network)),
            Pending::PulseReply { host, path, .. } | Pending::Reply { host, path, .. } => {
                (Node::Scvm(path.scvm), Node::Host(*host), Some(path.network))
            }
            Pending::Call { host, path, .. } => {
                (Node::Host(*host), Node::Scvm(path.scvm), Some(path.network))
            }
            Pending::Post { from, meta, network, .. } => ((*from).into(), Node::Meta(*meta), Some(*network)),
            Pending::Answer { to, meta, network, .. } => (Node::Meta(*meta), (*to).into(), Some(*network)),
            Pending::Connect { stream, .. } => {
                (stream.node.into(), Node::Meta(stream.meta), Some(stream.network))
            }
            Pending::Line { stream, .. } => {
                (Node::Meta(stream.meta), stream.node.into(), Some(stream.network))
            }
            Pending::Persist { host, .. } => (Node::Host(*host), Node::Host(*host), None),
            Pending::Publish { scvm, .. }
            | Pending::Probe { scvm, .. }
            | Pending::Execute { scvm, .. }
            | Pending::Reap { scvm, .. } => (Node::Scvm(*scvm), Node::Scvm(*scvm), None),
            Pending::Store { meta, .. } => (Node::Meta(*meta), Node::Meta(*meta), None),
        }
    }
}

/// All that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flight {
    things: BTreeMap<Id, Pending>,
    /// Number of the last one, where they are numbered as they come.
    last: Option<u64>,
}

impl Flight {
    /// `canonical`: numbered by content.
    pub fn new(canonical: bool) -> Flight {
        Flight { things: BTreeMap::new(), last: (!canonical).then_some(0) }
    }

    pub fn add(&mut self, pending: Pending) -> Id {
        let id = match &mut self.last {
            Some(last) => {
                *last += 1;
                Id(*last)
            }
            None => {
                let mut hasher = DefaultHasher::new();
                pending.hash(&mut hasher);
                let mut id = Id(hasher.finish());
                while self.things.contains_key(&id) {
                    id.0 = id.0.wrapping_add(1);
                }
                id
            }
        };
        self.things.insert(id, pending);
        id
    }

    pub fn get(&self, id: Id) -> Option<&Pending> {
        self.things.get(&id)
    }
    pub fn take(&mut self, id: Id) -> Option<Pending> {
        self.things.remove(&id)
    }
    pub fn iter(&self) -> impl Iterator<Item = (Id, &Pending)> {
        self.things.iter().map(|(id, p)| (*id, p))
    }
    pub fn retain(&mut self, mut keep: impl FnMut(&Pending) -> bool) {
        self.things.retain(|_, p| keep(p));
    }
    pub fn len(&self) -> usize {
        self.things.len()
    }
    pub fn is_empty(&self) -> bool {
        self.things.is_empty()
    }
}
