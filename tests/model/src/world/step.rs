//! What can happen next, and what happens then.

use super::flight::{Id, Nature, Node, Pending};
use super::links::Link;
use super::{Applied, World};
use reroute_core::host::Input as HostInput;
use reroute_core::ids::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Time passes, ns of true time. Nothing happens by itself: whoever is due is woken by a step of its own.
    Pass(u64),
    /// A node's timer comes: what is due by its clock is done.
    Wake(Node),
    /// The NFS client of a host does what is due.
    Client(HostId),
    /// The kernel's timer of an SCVM.
    Timer(ScvmId),
    /// An SCVM's TCP sends replies again that did not arrive.
    Resend(ScvmId),
    /// Something under way comes to its end.
    Do(Id),
    /// ... and comes again.
    Double(Id),
    /// A datagram is lost.
    Lose(Id),
    /// A write to disk or to Meta's store goes wrong.
    Fail(Id, Failure),
    Fault(Fault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// It is not written, and the writer knows.
    Refused,
    /// It is written, and the writer knows nothing.
    Unknown,
    /// It is not written, and the writer knows nothing.
    Lost,
}

/// What breaks, and what mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    CrashHost(HostId),
    StartHost(HostId),
    CrashAgent(ScvmId),
    StartAgent(ScvmId),
    CrashMeta(u8),
    /// A new leader, in a new term.
    StartMeta(u8),
    /// The agent's process gets no CPU; its kernel goes on.
    PauseAgent(ScvmId),
    GoOn(ScvmId),
    KillServer(ScvmId),
    StartServer(ScvmId),
    HangServer(ScvmId),
    ResumeServer(ScvmId),
    Freeze(ScvmId),
    Thaw(ScvmId),
    PowerOff(ScvmId),
    PowerOn(ScvmId),
    Cut(Link),
    Heal(Link),
    HealAll,
    /// The carrier of a host's own interface.
    Carrier(HostId, Network, bool),
}

/// Why something under way cannot come to its end now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// It waits for a machine that stands still, or a process that hangs.
    Still,
    /// It waits for the other end, or the link.
    Away,
}

impl World {
    /// Whether something under way can come to its end now. What it can never is lost by [`Step::Do`].
    pub fn blocked(&self, id: Id) -> Option<Blocked> {
        let pending = self.flight.get(id)?;
        let (from, to, network) = pending.way();
        if self.is_frozen(to) {
            return Some(Blocked::Still);
        }
        if let Node::Scvm(id) = to
            && matches!(
                pending,
                Pending::Line { .. }
                    | Pending::Answer { .. }
                    | Pending::Publish { .. }
                    | Pending::Probe { .. }
            )
            && self.is_paused(id)
        {
            return Some(Blocked::Still);
        }
        match pending {
            Pending::Execute { scvm, .. } => {
                let server = &self.scvm(*scvm).server;
                (server.alive && server.hung && !server.killed).then_some(Blocked::Still)
            }
            Pending::Connect { .. } => {
                let network = network?;
                let whole = self.links.carries(from, to, network) && self.links.carries(to, from, network);
                (!whole || !self.is_up(to) || !self.is_up(from) || self.is_frozen(from))
                    .then_some(Blocked::Away)
            }
            Pending::Line { .. } => {
                let network = network?;
                let whole = self.links.carries(from, to, network) && self.links.carries(to, from, network);
                (!whole || self.is_frozen(from)).then_some(Blocked::Away)
            }
            _ => None,
        }
    }

    fn is_frozen(&self, node: Node) -> bool {
        matches!(node, Node::Scvm(id) if self.scvm(id).frozen)
    }

    pub(super) fn is_paused(&self, id: ScvmId) -> bool {
        self.scvm(id).agent.as_ref().is_some_and(|a| a.paused)
    }

    fn is_up(&self, node: Node) -> bool {
        match node {
            Node::Host(id) => self.host(id).agent.is_some(),
            Node::Scvm(id) => self.scvm(id).agent.is_some(),
            Node::Meta(id) => self.meta(id).leader.is_some(),
        }
    }

    /// When each timer is due next, true time.
    pub fn due(&self, node: Node) -> Option<u64> {
        match node {
            Node::Host(id) => {
                let host = self.host(id);
                let agent = host.agent.as_ref()?;
                Some(host.clock.when(agent.machine.next_tick()))
            }
            Node::Scvm(id) => {
                let node = self.scvm(id);
                let agent = node.agent.as_ref().filter(|a| node.runs_now() && !a.paused)?;
                Some(node.clock.when(agent.wake))
            }
            Node::Meta(id) => {
                let node = self.meta(id);
                Some(node.clock.when(node.leader.as_ref()?.next_tick))
            }
        }
    }

    pub fn client_due(&self, host: HostId) -> Option<u64> {
        let node = self.host(host);
        Some(node.clock.when(node.client.wake_at(&self.settings.load)?))
    }

    pub fn timer_due(&self, scvm: ScvmId) -> Option<u64> {
        let node = self.scvm(scvm);
        Some(node.clock.when(node.kernel.timer_due().filter(|_| node.runs_now())?))
    }

    pub fn resend_due(&self, scvm: ScvmId) -> Option<u64> {
        let node = self.scvm(scvm);
        let at = node.server.sockets.values().filter_map(|s| s.again_at).min()?;
        Some(node.clock.when(at)).filter(|_| node.runs_now())
    }

    /// Every step that means something now, but the passing of time, faults, and what goes wrong with disks: how much of
    /// these is allowed is for whoever explores.
    pub fn enabled(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut nodes: Vec<Node> = self.settings.host_ids().map(Node::Host).collect();
        nodes.extend(self.settings.scvm_ids().map(Node::Scvm));
        nodes.extend((0..self.settings.metas).map(Node::Meta));
        let is_due = |due: Option<u64>| due.is_some_and(|at| at <= self.now);
        steps.extend(nodes.into_iter().filter(|n| is_due(self.due(*n))).map(Step::Wake));
        steps.extend(self.settings.host_ids().filter(|h| is_due(self.client_due(*h))).map(Step::Client));
        steps.extend(self.settings.scvm_ids().filter(|s| is_due(self.timer_due(*s))).map(Step::Timer));
        steps.extend(self.settings.scvm_ids().filter(|s| is_due(self.resend_due(*s))).map(Step::Resend));
        for (id, pending) in self.flight.iter() {
            if self.blocked(id).is_none() {
                steps.push(Step::Do(id));
            }
            if pending.nature() == Nature::Datagram {
                steps.push(Step::Lose(id));
            }
        }
        steps
    }

    /// Something happens. Gives what follows from it for whoever keeps the time.
    pub fn apply(&mut self, step: Step) -> Applied {
        match step {
            Step::Pass(ns) => self.now += ns,
            Step::Wake(Node::Host(id)) => self.wake_host(id),
            Step::Wake(Node::Scvm(id)) => self.wake_agent(id),
            Step::Wake(Node::Meta(id)) => self.wake_meta(id),
            Step::Client(id) => self.wake_client(id),
            Step::Timer(id) => self.timer(id),
            Step::Resend(id) => self.resend(id),
            Step::Do(id) => {
                if self.blocked(id).is_none()
                    && let Some(pending) = self.flight.take(id)
                {
                    self.arrive(pending, None);
                }
            }
            Step::Double(id) => {
                if self.blocked(id).is_none()
                    && let Some(pending) = self.flight.get(id).cloned()
                {
                    self.arrive(pending, None);
                }
            }
            Step::Lose(id) => {
                if let Some(pending) = self.flight.take(id) {
                    self.segment_lost(pending);
                }
            }
            Step::Fail(id, failure) => {
                if let Some(pending) = self.flight.take(id) {
                    self.arrive(pending, Some(failure));
                }
            }
            Step::Fault(fault) => self.fault(fault),
        }
        self.feed_later();
        std::mem::take(&mut self.out)
    }

    fn arrive(&mut self, pending: Pending, failure: Option<Failure>) {
        let (_, to, network) = pending.way();
        let off = matches!(to, Node::Scvm(id) if !self.scvm(id).on);
        if off {
            return self.segment_lost(pending);
        }
        if let (Node::Host(id), Some(network)) = (to, network)
            && self.host(id).no_carrier.contains(&network)
        {
            return self.segment_lost(pending);
        }
        match pending {
            Pending::Pulse(pulse) => self.pulse_arrives(pulse),
            Pending::PulseReply { host, incarnation, path, sent_at, facts } => {
                if self.host(host).agent.as_ref().is_some_and(|a| a.link.incarnation == incarnation) {
                    self.feed_host(host, HostInput::Reply { path, sent_at, facts });
                }
            }
            Pending::Call { host, path, segment } => self.call_arrives(host, path, segment),
            Pending::Reply { host, path, segment } => self.client_hears(host, path, &segment),
            Pending::Post { from, incarnation, seq, meta, network, msg } => {
                self.post_arrives(meta, (from, incarnation, seq, network), msg);
            }
            Pending::Answer { to, incarnation, seq, reply, .. } => {
                self.answer_arrives(to, incarnation, seq, reply);
            }
            Pending::Connect { stream, incarnation } => {
                if self.runs(stream.node, incarnation) {
                    self.connect(stream);
                }
            }
            Pending::Line { stream, opened } => self.line_arrives(stream, opened),
            Pending::Persist { host, incarnation, record } => {
                self.persisted(host, incarnation, record, failure.is_none());
            }
            Pending::Publish { scvm, incarnation, epochs } => {
                self.published(scvm, incarnation, epochs, failure.is_none());
            }
            Pending::Store { meta, term, host, expected, record } => {
                self.stored((meta, term), host, expected, *record, failure);
            }
            Pending::Probe { scvm, incarnation, sent_at } => self.probed(scvm, incarnation, sent_at),
            Pending::Execute { scvm, call } => self.execute(scvm, call),
            Pending::Reap { scvm, server } => self.server_ends(scvm, server),
        }
    }

    /// A run of an agent that is over has nothing under way but messages.
    pub(super) fn forget_agent(&mut self, node: NodeId) {
        self.flight.retain(|p| match p {
            Pending::Connect { stream, .. } => stream.node != node,
            Pending::Persist { host, .. } => NodeId::Host(*host) != node,
            Pending::Publish { scvm, .. } | Pending::Probe { scvm, .. } => NodeId::Scvm(*scvm) != node,
            _ => true,
        });
        self.out.touch(node.into());
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::CrashHost(id) => self.crash_host(id),
            Fault::StartHost(id) => self.start_host(id),
            Fault::CrashAgent(id) => self.crash_agent(id),
            Fault::StartAgent(id) => self.start_agent(id),
            Fault::CrashMeta(id) => self.crash_meta(id),
            Fault::StartMeta(id) => self.start_meta(id),
            Fault::PauseAgent(id) => self.pause_agent(id),
            Fault::GoOn(id) => self.go_on(id),
            Fault::KillServer(id) => {
                let incarnation = self.scvm(id).server.incarnation;
                self.server_ends(id, incarnation);
            }
            Fault::StartServer(id) => self.start_server(id),
            Fault::HangServer(id) => self.scvm_mut(id).server.hung |= self.scvm(id).server.alive,
            Fault::ResumeServer(id) => self.resume_server(id),
            Fault::Freeze(id) => self.freeze(id),
            Fault::Thaw(id) => self.thaw(id),
            Fault::PowerOff(id) => self.power_off(id),
            Fault::PowerOn(id) => self.power_on(id),
            Fault::Cut(link) => self.links.cut(link),
            Fault::Heal(link) => self.links.heal(link),
            Fault::HealAll => self.links.heal_all(),
            Fault::Carrier(host, network, up) => self.carrier(host, network, up),
        }
    }
}
