//! An SCVM: its agent (`reroute_core::scvm`), its kernel, its server; a virtual machine whose time can stand still.

use super::World;
use super::agent::Link;
use super::clock::Clock;
use super::flight::{Node, Pending, StreamId};
use super::kernel::Kernel;
use super::server::Server;
use super::settings::Safeguard;
use super::tcp::{Body, ConnId, Segment};
use reroute_core::ids::*;
use reroute_core::proto::{FromMeta, MetaReply};
use reroute_core::scvm::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const TOUCH_NS: u64 = 10 * MS;
const PIDFILE_NS: u64 = 20 * MS;
const CLIENTS_NS: u64 = 50 * MS;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    pub machine: Scvm,
    pub link: Link<Tag>,
    /// Server processes it holds by pidfd, and those it has reported as ended.
    pub(super) held: BTreeSet<Incarnation>,
    ended: BTreeSet<Incarnation>,
    problem: Option<Option<String>>,
    touched: BootNs,
    polled: BootNs,
    clients_read: BootNs,
    pub wake: BootNs,
    /// The process gets no CPU: its kernel goes on without it.
    pub paused: bool,
    /// What has happened meanwhile.
    pub(super) unheard: Vec<Input>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    pub id: ScvmId,
    pub clock: Clock,
    /// The machine is on.
    pub on: bool,
    /// It stands still, kernel and all.
    pub frozen: bool,
    pub kernel: Kernel,
    pub server: Server,
    pub agent: Option<Agent>,
    /// Agents and servers started so far: each has a number.
    pub runs: u64,
    /// What outlives the agent: the operator's suspension, and the epoch file.
    pub bypass: bool,
    pub epoch_file: BTreeMap<HostId, Epoch>,
    /// Admitted when the machine stood still: nobody vouches for these leases.
    pub doubtful: BTreeMap<HostId, Epoch>,
    /// When it last stood still, it had a session lease until then by its own clock: longer by others'.
    pub leftover: BootNs,
    /// Admitted on such a lease, perhaps after it had been passed over as a target (`NeverServed` takes its clock on
    /// trust). No route led there, so calls that get in are no less wrong for it.
    pub passed_over: BTreeMap<HostId, Epoch>,
}

impl Machine {
    pub fn new(id: ScvmId, clock: Clock, kernel: Kernel) -> Machine {
        Machine {
            id,
            clock,
            on: true,
            frozen: false,
            kernel,
            server: Server::new(Incarnation(1)),
            agent: None,
            runs: 1,
            bypass: false,
            epoch_file: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            leftover: BootNs(0),
            passed_over: BTreeMap::new(),
        }
    }

    /// It takes part in the world now.
    pub fn runs_now(&self) -> bool {
        self.on && !self.frozen
    }
}

impl World {
    pub(super) fn start_agent(&mut self, id: ScvmId) {
        let now = self.local(Node::Scvm(id));
        let settings = self.settings.clone();
        let node = self.scvm_mut(id);
        if node.agent.is_some() || !node.on {
            return;
        }
        node.runs += 1;
        let incarnation = Incarnation(node.runs);
        let machine = Scvm::new(settings.of_scvm(id, incarnation, node.bypass), now);
        node.agent = Some(Agent {
            machine,
            link: Link::new(incarnation),
            held: BTreeSet::new(),
            ended: BTreeSet::new(),
            problem: None,
            touched: BootNs(0),
            polled: BootNs(0),
            clients_read: BootNs(0),
            wake: now,
            paused: false,
            unheard: Vec::new(),
        });
        self.seek_meta(NodeId::Scvm(id), incarnation);
        self.read_clients(id);
        self.adopt_server(id);
        self.chores(id);
        self.feed_scvm(id, Input::Tick);
    }

    /// The server that the kernel was told of by an earlier agent: held again, or known to have ended.
    fn adopt_server(&mut self, id: ScvmId) {
        let node = self.scvm_mut(id);
        let incarnation = node.kernel.incarnation;
        let lives = node.server.alive && node.server.incarnation == incarnation;
        let Some(agent) = &mut node.agent else { return };
        if incarnation.0 == 0 {
            return;
        }
        let pid = incarnation.0 as u32;
        let input = if lives {
            agent.held.insert(incarnation);
            Input::ServerSeen { pid, incarnation }
        } else {
            agent.ended.insert(incarnation);
            Input::ServerExited { pid, incarnation }
        };
        self.feed_scvm(id, input);
    }

    pub(super) fn pause_agent(&mut self, id: ScvmId) {
        if let Some(agent) = &mut self.scvm_mut(id).agent {
            agent.paused = true;
        }
        self.out.touch(Node::Scvm(id));
    }

    /// What has come meanwhile is read before any timer is looked at, as a runtime does it.
    pub(super) fn go_on(&mut self, id: ScvmId) {
        let now = self.local(Node::Scvm(id));
        let Some(agent) = self.scvm_mut(id).agent.as_mut().filter(|a| a.paused) else { return };
        agent.paused = false;
        for input in std::mem::take(&mut agent.unheard) {
            self.feed_scvm(id, input);
        }
        if let Some(agent) = &mut self.scvm_mut(id).agent {
            agent.wake = now.plus(3 * MS);
        }
        self.out.touch(Node::Scvm(id));
    }

    pub(super) fn crash_agent(&mut self, id: ScvmId) {
        self.scvm_mut(id).agent = None;
        self.drop_streams(Node::Scvm(id));
        self.forget_agent(NodeId::Scvm(id));
    }

    pub(super) fn wake_agent(&mut self, id: ScvmId) {
        let now = self.local(Node::Scvm(id));
        if !self.scvm(id).runs_now() || self.is_paused(id) {
            return;
        }
        let (timeout, beat) = (self.settings.timing.send_timeout, self.settings.timing.scvm_beat);
        let Some(agent) = &mut self.scvm_mut(id).agent else { return };
        let given_up = agent.link.given_up(timeout, now);
        for tag in given_up {
            self.feed_scvm(id, Input::Reply { tag, reply: Err("no answer in time".into()) });
        }
        self.end_silent_streams(NodeId::Scvm(id), now);
        self.feed_scvm(id, Input::Tick);
        self.chores(id);
        if let Some(agent) = &mut self.scvm_mut(id).agent {
            agent.wake = agent.machine.wake_at(now).max(now.plus(beat));
        }
    }

    /// What the agent does by the clock, beside the machine.
    fn chores(&mut self, id: ScvmId) {
        let now = self.local(Node::Scvm(id));
        let node = self.scvm_mut(id);
        let Some(agent) = &mut node.agent else { return };
        if now.since(agent.touched) >= TOUCH_NS {
            agent.touched = now;
            node.kernel.touch(now);
        }
        let (clients, pidfile) =
            (now.since(agent.clients_read) >= CLIENTS_NS, now.since(agent.polled) >= PIDFILE_NS);
        if clients {
            self.read_clients(id);
        }
        if pidfile {
            for input in self.poll_pidfile(id) {
                self.feed_scvm(id, input);
            }
        }
    }

    fn read_clients(&mut self, id: ScvmId) {
        let now = self.local(Node::Scvm(id));
        let node = self.scvm_mut(id);
        let facts = node.kernel.client_facts();
        let Some(agent) = &mut node.agent else { return };
        agent.clients_read = now;
        agent.machine.handle(Input::Clients(facts), now);
    }

    pub(super) fn poll_pidfile(&mut self, id: ScvmId) -> Vec<Input> {
        let now = self.local(Node::Scvm(id));
        let node = self.scvm_mut(id);
        let server = &node.server;
        let (incarnation, alive) = (server.incarnation, server.alive);
        let Some(agent) = &mut node.agent else { return Vec::new() };
        agent.polled = now;
        let mut news = Vec::new();
        let problem = if !alive || agent.ended.contains(&incarnation) {
            Some("the server process has terminated".to_string())
        } else {
            if agent.held.insert(incarnation) {
                news.push(Input::ServerSeen { pid: incarnation.0 as u32, incarnation });
            }
            None
        };
        if agent.problem.as_ref() != Some(&problem) {
            agent.problem = Some(problem.clone());
            news.push(Input::ServerProblem(problem));
        }
        news
    }

    /// Hands an input to the machine and carries out what follows, results included.
    pub(super) fn feed_scvm(&mut self, id: ScvmId, input: Input) {
        let now = self.local(Node::Scvm(id));
        let mut queue = VecDeque::from([input]);
        while let Some(input) = queue.pop_front() {
            let node = self.scvm_mut(id);
            let facts = node.kernel.server_facts(now);
            let signals = std::mem::take(&mut node.kernel.signals);
            let Some(agent) = &mut node.agent else { return };
            agent.machine.handle(Input::Server(facts), now);
            queue.extend(signals.into_iter().map(Input::Signal));
            match &input {
                Input::Reply { tag: Tag::Open { .. }, .. } => self.read_clients(id),
                Input::ServerExited { incarnation, .. } => {
                    agent.held.remove(incarnation);
                    agent.ended.insert(*incarnation);
                }
                _ => {}
            }
            let Some(agent) = &mut self.scvm_mut(id).agent else { return };
            for effect in agent.machine.handle(input, now) {
                let result = self.scvm_effect(id, effect, now);
                queue.extend(result);
            }
        }
        let beat = self.settings.timing.scvm_beat;
        if let Some(agent) = &mut self.scvm_mut(id).agent {
            agent.wake = agent.machine.wake_at(now).max(now.plus(beat));
        }
        self.out.touch(Node::Scvm(id));
    }

    /// Results that came up while another effect was carried out.
    pub(super) fn feed_later(&mut self) {
        while let Some((id, incarnation, input)) = self.later.pop() {
            if self.scvm(id).agent.as_ref().is_some_and(|a| a.link.incarnation == incarnation) {
                self.feed_scvm(id, input);
            }
        }
    }

    /// A connection ends from the server's side.
    pub(super) fn close(&mut self, id: ScvmId, conn: ConnId) {
        let now = self.local(Node::Scvm(id));
        let node = self.scvm_mut(id);
        let Some(socket) = node.server.sockets.remove(&conn) else { return };
        node.kernel.ended(conn);
        if !node.kernel.holds_back(socket.host, now) {
            let segment = Segment { conn, source: socket.source, body: Body::Rst };
            self.add(Pending::Reply { host: socket.host, path: socket.path, segment });
        }
    }

    // --- messages ---

    pub(super) fn scvm_line(&mut self, id: ScvmId, stream: StreamId, line: FromMeta) {
        let Some(agent) = &mut self.scvm_mut(id).agent else { return };
        if let (_, Some(order)) = agent.link.line(stream, &line) {
            let FromMeta { term, seq, order } = order;
            self.feed_scvm(id, Input::Order { term, seq, order });
        }
    }

    pub(super) fn scvm_answer(&mut self, id: ScvmId, incarnation: Incarnation, seq: u64, reply: MetaReply) {
        let now = self.local(Node::Scvm(id));
        let counts_from_sending = self.settings.has(Safeguard::SendStampCounting);
        let Some(agent) = &mut self.scvm_mut(id).agent else { return };
        if agent.link.incarnation != incarnation {
            return;
        }
        let Some(mut tag) = agent.link.answered(seq) else { return };
        if !counts_from_sending && let Tag::KeepAlive { sent_at, .. } = &mut tag {
            *sent_at = now;
        }
        self.feed_scvm(id, Input::Reply { tag, reply: Ok(reply) });
    }

    pub(super) fn published(
        &mut self,
        id: ScvmId,
        incarnation: Incarnation,
        epochs: BTreeMap<HostId, Epoch>,
        done: bool,
    ) {
        let node = self.scvm_mut(id);
        if node.agent.as_ref().is_none_or(|a| a.link.incarnation != incarnation) {
            return;
        }
        let result = if done {
            node.epoch_file = epochs;
            Ok(())
        } else {
            Err("no space left on device".to_string())
        };
        self.feed_scvm(id, Input::EpochsPublished(result));
    }

    pub(super) fn probed(&mut self, id: ScvmId, incarnation: Incarnation, sent_at: BootNs) {
        let now = self.local(Node::Scvm(id));
        let node = self.scvm(id);
        if node.agent.as_ref().is_none_or(|a| a.link.incarnation != incarnation) {
            return;
        }
        let answered = node.server.is_well();
        let took_ns = now.since(sent_at);
        self.feed_scvm(id, Input::NullRpc { answered, took_ns, starved: false });
    }

    // --- the machine ---

    pub(super) fn freeze(&mut self, id: ScvmId) {
        let now = self.now;
        let node = self.scvm_mut(id);
        if node.frozen || !node.on {
            return;
        }
        node.frozen = true;
        node.clock.stop(now);
        let admitted: Vec<(HostId, Epoch)> = node
            .kernel
            .clients
            .keys()
            .map(|h| (*h, node.kernel.word(*h)))
            .filter(|(_, word)| word.is_admitted())
            .map(|(h, word)| (h, Epoch(word.epoch())))
            .collect();
        node.doubtful.extend(admitted);
        node.leftover = node.kernel.session_deadline;
    }

    pub(super) fn thaw(&mut self, id: ScvmId) {
        let now = self.now;
        let node = self.scvm_mut(id);
        if !node.frozen {
            return;
        }
        node.frozen = false;
        node.clock.go_on(now);
        self.out.touch(Node::Scvm(id));
    }

    /// The machine loses power: everything in its memory is gone, and nobody is told.
    pub(super) fn power_off(&mut self, id: ScvmId) {
        self.thaw(id);
        self.crash_agent(id);
        let settings = self.settings.clone();
        let node = self.scvm_mut(id);
        let boot = node.kernel.boot + 1;
        node.on = false;
        node.server.end();
        node.kernel = Kernel::new(&settings, boot);
        node.doubtful.clear();
        node.leftover = BootNs(0);
        node.passed_over.clear();
        self.flight.retain(
            |p| !matches!(p, Pending::Execute { scvm, .. } | Pending::Reap { scvm, .. } if *scvm == id),
        );
    }

    pub(super) fn power_on(&mut self, id: ScvmId) {
        let node = self.scvm_mut(id);
        if node.on {
            return;
        }
        node.on = true;
        node.epoch_file.clear();
        self.start_server(id);
        self.start_agent(id);
    }

    /// Its word may be open although the login went on without it: until the lease is over that it stood still with.
    fn is_passed_over(&self, id: ScvmId, host: HostId, epoch: Epoch) -> bool {
        let node = self.scvm(id);
        node.passed_over.get(&host) == Some(&epoch) && node.kernel.session_deadline <= node.leftover
    }

    /// Nobody else may be letting a host in that this kernel lets in.
    pub(super) fn check_admission(&mut self, id: ScvmId) {
        let now = self.local(Node::Scvm(id));
        let node = self.scvm(id);
        let open: Vec<(HostId, Epoch)> = node
            .kernel
            .clients
            .keys()
            .filter(|h| node.kernel.admits(**h, now))
            .map(|h| (*h, Epoch(node.kernel.word(*h).epoch())))
            .collect();
        for (host, epoch) in open {
            if self.is_doubtful(id, host, epoch) || self.is_passed_over(id, host, epoch) {
                continue;
            }
            for other in self.settings.scvm_ids().filter(|s| *s != id) {
                let at = self.local(Node::Scvm(other));
                let node = self.scvm(other);
                let word = Epoch(node.kernel.word(host).epoch());
                if node.on
                    && node.kernel.admits(host, at)
                    && !self.is_doubtful(other, host, word)
                    && !self.is_passed_over(other, host, word)
                    && !node.frozen
                {
                    let what = format!("{id} at {epoch} and {other} at {word} both admit {host}");
                    self.oracle.say(super::oracle::Kind::TwoAdmit, what);
                }
            }
        }
    }
}
