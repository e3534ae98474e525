//! An access server: a process with sockets. What it has read it carries out later, in any order; while it hangs, it
//! reads nothing, and what it had read waits in it.

use super::tcp::{ConnId, Write};
use reroute_core::ids::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A call that the process has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    pub server: Incarnation,
    pub conn: ConnId,
    pub index: u64,
}

/// A call as the kernel let it in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Accepted {
    pub index: u64,
    pub write: Write,
    /// The word's epoch when it was let in.
    pub epoch: Epoch,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Work {
    pub host: HostId,
    pub call: Accepted,
    /// What it presents to the storage: its connection's epoch. None: it does not check.
    pub owner: Option<Epoch>,
    /// Connections that the same call came by again since.
    pub again: Vec<ConnId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Socket {
    pub host: HostId,
    /// The client's address that it belongs to, and the network the client speaks by.
    pub source: Network,
    pub path: Path,
    /// The next call in turn.
    pub next: u64,
    /// Came before their turn.
    pub early: BTreeMap<u64, Write>,
    /// In turn, and not read by the process.
    pub unread: VecDeque<Accepted>,
    /// The epoch it was bound to by its first call.
    pub owner: Option<Epoch>,
    /// Replies that did not arrive: this node's TCP sends them again then, and each time after twice the time.
    pub lost: BTreeSet<u64>,
    pub again_at: Option<BootNs>,
    pub rto: u64,
}

/// First retransmission.
pub const RTO_NS: u64 = 200 * MS;

impl Socket {
    pub fn new(host: HostId, source: Network, path: Path) -> Socket {
        Socket {
            host,
            source,
            path,
            next: 0,
            early: BTreeMap::new(),
            unread: VecDeque::new(),
            owner: None,
            lost: BTreeSet::new(),
            again_at: None,
            rto: RTO_NS,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    pub incarnation: Incarnation,
    pub alive: bool,
    /// SIGKILL was sent; it may still carry out what it was in the middle of.
    pub killed: bool,
    pub hung: bool,
    pub sockets: BTreeMap<ConnId, Socket>,
    pub work: BTreeMap<CallId, Work>,
}

impl Server {
    pub fn new(incarnation: Incarnation) -> Server {
        Server {
            incarnation,
            alive: true,
            killed: false,
            hung: false,
            sockets: BTreeMap::new(),
            work: BTreeMap::new(),
        }
    }

    /// Answers a call at once.
    pub fn is_well(&self) -> bool {
        self.alive && !self.hung && !self.killed
    }

    /// Terminates: its sockets and its work go with it.
    pub fn end(&mut self) -> Vec<(ConnId, Socket)> {
        self.alive = false;
        self.killed = false;
        self.hung = false;
        self.work.clear();
        std::mem::take(&mut self.sockets).into_iter().collect()
    }

    /// Takes what a socket has for it. Not if there is no epoch for it in the epoch file: then the connection is to be
    /// closed, and this gives None.
    pub fn read(&mut self, conn: ConnId, epochs: Option<&BTreeMap<HostId, Epoch>>) -> Option<Vec<CallId>> {
        if !self.is_well() {
            return Some(Vec::new());
        }
        let Some(socket) = self.sockets.get_mut(&conn) else { return Some(Vec::new()) };
        if socket.unread.is_empty() {
            return Some(Vec::new());
        }
        if let (Some(epochs), None) = (epochs, socket.owner) {
            socket.owner = Some(*epochs.get(&socket.host)?);
        }
        let server = self.incarnation;
        let (host, owner) = (socket.host, socket.owner);
        let mut calls = Vec::new();
        for call in socket.unread.drain(..) {
            // Its duplicate request cache: what it still works on is not begun a second time.
            let same = |w: &&mut Work| w.host == host && w.owner == owner && w.call.write == call.write;
            if let Some(work) = self.work.values_mut().find(same) {
                work.again.push(conn);
                continue;
            }
            let id = CallId { server, conn, index: call.index };
            self.work.insert(id, Work { host, call, owner, again: Vec::new() });
            calls.push(id);
        }
        Some(calls)
    }
}
