//! An SCVM's datapath: pulses and segments through the kernel to the server, replies back; the server's process.

use super::World;
use super::flight::{Node, Pending, Pulse};
use super::server::{Accepted, CallId, Server, Socket};
use super::tcp::{Body, ConnId, Segment};
use reroute_core::ids::*;
use reroute_core::scvm::*;

impl World {
    // --- the datapath ---

    pub(super) fn pulse_arrives(&mut self, pulse: Pulse) {
        let id = pulse.path.scvm;
        let now = self.local(Node::Scvm(id));
        let Some(facts) = self.scvm_mut(id).kernel.reflect(&pulse, now) else { return };
        let Pulse { host, incarnation, path, sent_at, .. } = pulse;
        self.check_admission(id);
        self.add(Pending::PulseReply { host, incarnation, path, sent_at, facts });
        self.tell_signals(id);
    }

    /// The kernel's events wake the agent.
    pub(super) fn tell_signals(&mut self, id: ScvmId) {
        let hears = self.scvm(id).agent.as_ref().is_some_and(|a| !a.paused);
        if hears && !self.scvm(id).kernel.signals.is_empty() {
            self.feed_scvm(id, Input::Tick);
        }
    }

    /// The kernel's timer.
    pub(super) fn timer(&mut self, id: ScvmId) {
        let now = self.local(Node::Scvm(id));
        self.scvm_mut(id).kernel.timer(now);
        self.tell_signals(id);
        self.out.touch(Node::Scvm(id));
    }

    /// A segment from a host's client.
    pub(super) fn call_arrives(&mut self, host: HostId, path: Path, segment: Segment) {
        let id = path.scvm;
        let now = self.local(Node::Scvm(id));
        let is_local = self.settings.local(host) == id;
        // Who speaks is known by network and source. Others are nobody's, and dropped.
        let known = segment.source == path.network && (path.network != Network::Private || is_local);
        let node = self.scvm_mut(id);
        if !known || !node.kernel.passes(host, now) {
            return;
        }
        let Segment { conn, source, body } = segment;
        let reply = |body| Pending::Reply { host, path, segment: Segment { conn, source, body } };
        match body {
            Body::Syn if !node.kernel.listening => {
                if !node.kernel.shields(host, now) {
                    self.add(reply(Body::Rst));
                }
            }
            Body::Syn => {
                node.kernel.opened(conn, host, now);
                node.server.sockets.entry(conn).or_insert(Socket::new(host, source, path));
                self.add(reply(Body::SynAck));
            }
            Body::Call { index, write } => {
                let epoch = Epoch(node.kernel.word(host).epoch());
                let Some(socket) = node.server.sockets.get_mut(&conn) else {
                    // Nobody's: the kernel answers with a RST.
                    self.add(reply(Body::Rst));
                    return;
                };
                if index >= socket.next {
                    socket.early.insert(index, write);
                }
                let mut came = false;
                socket.rto = super::server::RTO_NS;
                while let Some(write) = socket.early.remove(&socket.next) {
                    socket.unread.push_back(Accepted { index: socket.next, write, epoch });
                    socket.next += 1;
                    node.kernel.accept(conn, write.number, now);
                    came = true;
                }
                let (next, hung) = (socket.next, !node.server.is_well());
                if hung || !came {
                    // The kernel acknowledges, whatever its process does. A process that answers at once saves that.
                    self.add(reply(Body::Ack { next }));
                }
                if came {
                    let doubtful = self.is_doubtful(id, host, epoch);
                    self.oracle.accepted(host, id, epoch, doubtful);
                    self.read_socket(id, conn);
                    self.out.touch(Node::Scvm(id));
                }
            }
            Body::SynAck | Body::Ack { .. } | Body::Reply { .. } | Body::Rst => {}
        }
    }

    /// A segment did not get through. Of replies the server's TCP keeps a copy; clients see to theirs themselves.
    pub(super) fn segment_lost(&mut self, pending: Pending) {
        let Pending::Reply { path, segment: Segment { conn, body: Body::Reply { number, .. }, .. }, .. } =
            pending
        else {
            return;
        };
        let now = self.local(Node::Scvm(path.scvm));
        let node = self.scvm_mut(path.scvm);
        if let Some(socket) = node.server.sockets.get_mut(&conn) {
            socket.lost.insert(number);
            let at = now.plus(socket.rto);
            socket.again_at.get_or_insert(at);
        }
        self.out.touch(Node::Scvm(path.scvm));
    }

    /// Replies that did not arrive go out again.
    pub(super) fn resend(&mut self, id: ScvmId) {
        let now = self.local(Node::Scvm(id));
        let node = self.scvm_mut(id);
        let mut again = Vec::new();
        for (conn, socket) in &mut node.server.sockets {
            if socket.again_at.is_none_or(|at| now < at) {
                continue;
            }
            socket.again_at = None;
            socket.rto = (2 * socket.rto).min(60 * SEC);
            for number in std::mem::take(&mut socket.lost) {
                let body = Body::Reply { number, next: socket.next };
                let segment = Segment { conn: *conn, source: socket.source, body };
                again.push(Pending::Reply { host: socket.host, path: socket.path, segment });
            }
        }
        for reply in again {
            self.add(reply);
        }
        self.out.touch(Node::Scvm(id));
    }

    pub(super) fn is_doubtful(&self, id: ScvmId, host: HostId, epoch: Epoch) -> bool {
        let node = self.scvm(id);
        node.kernel.mode != Mode::Enforce || node.doubtful.get(&host).is_some_and(|e| *e >= epoch)
    }

    /// The process takes what its socket has for it.
    fn read_socket(&mut self, id: ScvmId, conn: ConnId) {
        let checks = self.settings.policy(id) == FencePolicy::Storage;
        let node = self.scvm_mut(id);
        let epochs = checks.then_some(&node.epoch_file);
        match node.server.read(conn, epochs) {
            Some(calls) => {
                for call in calls {
                    self.add(Pending::Execute { scvm: id, call });
                }
            }
            None => self.close(id, conn),
        }
    }

    pub(super) fn execute(&mut self, id: ScvmId, call: CallId) {
        let now = self.local(Node::Scvm(id));
        let settings = self.settings.clone();
        let node = self.scvm_mut(id);
        let Some(work) = node.server.work.remove(&call) else { return };
        let (write, epoch) = (work.call.write, work.call.epoch);
        if !self.oracle.execute(&settings, work.host, id, (write, epoch, work.owner)) {
            // Refused by the storage: the server closes, without an answer.
            return self.close(id, call.conn);
        }
        for conn in [call.conn].into_iter().chain(work.again) {
            let node = self.scvm_mut(id);
            let Some(socket) = node.server.sockets.get(&conn) else { continue };
            if node.server.killed {
                continue; // it writes, but answers nobody any more
            }
            let body = Body::Reply { number: write.number, next: socket.next };
            let segment = Segment { conn, source: socket.source, body };
            let reply = Pending::Reply { host: work.host, path: socket.path, segment };
            node.kernel.answered(conn, write.number, now);
            self.oracle.replied(work.host, id, epoch);
            self.add(reply);
        }
        self.tell_signals(id);
        self.out.touch(Node::Scvm(id));
    }

    // --- the server process ---

    pub(super) fn resume_server(&mut self, id: ScvmId) {
        let node = self.scvm_mut(id);
        node.server.hung = false;
        let conns: Vec<ConnId> = node.server.sockets.keys().copied().collect();
        for conn in conns {
            self.read_socket(id, conn);
        }
    }

    /// The process has terminated, every thread of it.
    pub(super) fn server_ends(&mut self, id: ScvmId, incarnation: Incarnation) {
        let now = self.local(Node::Scvm(id));
        let node = self.scvm_mut(id);
        if node.server.incarnation != incarnation || !node.server.alive {
            return;
        }
        let sockets = node.server.end();
        node.kernel.listener(false, now);
        for (conn, socket) in sockets {
            let node = self.scvm_mut(id);
            node.kernel.ended(conn);
            if !node.kernel.holds_back(socket.host, now) {
                let segment = Segment { conn, source: socket.source, body: Body::Rst };
                self.add(Pending::Reply { host: socket.host, path: socket.path, segment });
            }
        }
        self.flight.retain(|p| {
            !matches!(p, Pending::Execute { scvm, call } if *scvm == id && call.server == incarnation)
                && !matches!(p, Pending::Reap { scvm, server } if *scvm == id && *server == incarnation)
        });
        let exited = Input::ServerExited { pid: incarnation.0 as u32, incarnation };
        match &mut self.scvm_mut(id).agent {
            Some(agent) if agent.paused => agent.unheard.push(exited),
            Some(agent) if agent.held.contains(&incarnation) => self.feed_scvm(id, exited),
            _ => {}
        }
        self.tell_signals(id);
    }

    pub(super) fn start_server(&mut self, id: ScvmId) {
        let now = self.local(Node::Scvm(id));
        let node = self.scvm_mut(id);
        if node.server.alive || !node.on {
            return;
        }
        node.runs += 1;
        node.server = Server::new(Incarnation(node.runs));
        node.kernel.listener(true, now);
        self.tell_signals(id);
    }
}
