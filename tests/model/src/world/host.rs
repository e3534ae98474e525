//! A host: its agent (`reroute_core::host`), its route, its disk, its NFS client.

use super::agent::Link;
use super::client::Client;
use super::clock::Clock;
use super::flight::{Node, Pending, Pulse, StreamId};
use super::settings::Safeguard;
use super::tcp::{ConnId, Segment};
use super::{Said, World};
use reroute_core::host::{Effect, Found, Input, Machine, Record, RouteFailure};
use reroute_core::ids::*;
use reroute_core::proto::{FromMeta, MetaReply, ToMeta};
use std::collections::{BTreeSet, VecDeque};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    pub machine: Machine,
    pub link: Link<ToMeta>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    pub id: HostId,
    pub clock: Clock,
    pub agent: Option<Agent>,
    /// How often the agent was started.
    pub runs: u64,
    /// The login record on disk.
    pub disk: Record,
    /// The route to the service address in the kernel. None: by the private network.
    pub route: Option<Path>,
    /// The connection that was there when the route was last replaced, and the source that those opened since have;
    /// until sockets are destroyed.
    before: Option<(Option<ConnId>, Network)>,
    /// Networks whose interface has no carrier.
    pub no_carrier: BTreeSet<Network>,
    pub client: Client,
}

impl Host {
    pub fn new(id: HostId, clock: Clock) -> Host {
        let client = Client::new(id, clock.at(0));
        Host {
            id,
            clock,
            agent: None,
            runs: 0,
            disk: Record::default(),
            route: None,
            before: None,
            no_carrier: BTreeSet::new(),
            client,
        }
    }

    fn found(&self) -> Found {
        self.route.map_or(Found::None, Found::Ours)
    }
}

impl World {
    /// Where this host's packets to the service address go.
    pub fn leads_to(&self, host: HostId) -> Path {
        let private = Path { scvm: self.settings.local(host), network: Network::Private };
        self.host(host).route.unwrap_or(private)
    }

    pub(super) fn start_host(&mut self, id: HostId) {
        let now = self.local(Node::Host(id));
        let settings = self.settings.of_host(id);
        let host = self.host_mut(id);
        if host.agent.is_some() {
            return;
        }
        host.runs += 1;
        let incarnation = Incarnation(host.runs);
        let machine = Machine::new(settings, host.disk, now);
        let found = host.found();
        host.agent = Some(Agent { machine, link: Link::new(incarnation) });
        self.seek_meta(NodeId::Host(id), incarnation);
        self.feed_host(id, Input::RouteRead(Ok(found)));
        for network in self.host(id).no_carrier.clone() {
            self.feed_host(id, Input::Interface { network, carrier: false });
        }
    }

    pub(super) fn crash_host(&mut self, id: HostId) {
        self.host_mut(id).agent = None;
        self.drop_streams(Node::Host(id));
        self.forget_agent(NodeId::Host(id));
    }

    pub(super) fn wake_host(&mut self, id: HostId) {
        let now = self.local(Node::Host(id));
        let timeout = self.settings.timing.send_timeout;
        let Some(agent) = &mut self.host_mut(id).agent else { return };
        let given_up = agent.link.given_up(timeout, now);
        for message in given_up {
            let result = Err("no answer in time".to_string());
            self.feed_host(id, Input::MetaAnswer { message, result });
        }
        self.end_silent_streams(NodeId::Host(id), now);
        let Some(agent) = &mut self.host_mut(id).agent else { return };
        let due = agent.machine.next_tick();
        if now >= due {
            self.feed_host(id, Input::Tick { due });
        }
    }

    /// Hands an input to the machine and carries out what follows, until nothing does.
    pub(super) fn feed_host(&mut self, id: HostId, input: Input) {
        let now = self.local(Node::Host(id));
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(agent) = &mut self.host_mut(id).agent else { return };
            for effect in agent.machine.handle(input, now) {
                self.host_effect(id, effect, now, &mut inputs);
            }
        }
        self.out.touch(Node::Host(id));
    }

    fn host_effect(&mut self, id: HostId, effect: Effect, now: BootNs, inputs: &mut VecDeque<Input>) {
        let Some(agent) = &mut self.host_mut(id).agent else { return };
        let incarnation = agent.link.incarnation;
        match effect {
            Effect::SendPulse { path, flag, epoch, scvm_boot, scvm_stamp, due } => {
                let dead = self.host(id).no_carrier.contains(&path.network);
                let error = dead.then(|| "no carrier".to_string());
                if error.is_none() {
                    let sent_at = now;
                    self.add(Pending::Pulse(Pulse {
                        host: id,
                        incarnation,
                        path,
                        flag,
                        epoch,
                        scvm_boot,
                        scvm_stamp,
                        sent_at,
                    }));
                }
                inputs.push_back(Input::Sent { path, due, at: now, error });
            }
            Effect::Meta(message) => {
                let seq = agent.link.ask(message.clone(), now);
                self.post(NodeId::Host(id), incarnation, seq, &message);
            }
            Effect::ReadRoute => inputs.push_back(Input::RouteRead(Ok(self.host(id).found()))),
            Effect::ReplaceRoute { path, .. } => {
                let host = self.host_mut(id);
                let result = if host.no_carrier.contains(&path.network) {
                    Err(RouteFailure::Failed("Network is down".into()))
                } else {
                    host.route = Some(path);
                    host.before = Some((host.client.conn.as_ref().map(|c| c.id), path.network));
                    self.oracle.routed(id, path);
                    Ok(())
                };
                inputs.push_front(Input::RouteSet { path, result });
            }
            Effect::DestroySockets { keep } => {
                let host = self.host_mut(id);
                // Those opened since the route was replaced lead to the new server.
                let before = host.before.take();
                let old = host.client.conn.as_ref().is_some_and(|c| {
                    let had = before.is_none_or(|(conn, source)| conn == Some(c.id) || c.source != source);
                    Some(c.source) != keep && had
                });
                if old {
                    host.client.reset(now);
                    self.out.client(id);
                }
                inputs.push_front(Input::SocketsReset(Ok(u32::from(old))));
            }
            Effect::Persist(record) => {
                self.add(Pending::Persist { host: id, incarnation, record });
            }
            // Nobody pins a host here, and there is neither a hypervisor to ask nor ARP.
            Effect::AskOwnAddress | Effect::TrySizes(_) | Effect::FindSockets => {}
            Effect::PersistNotes(notes) => inputs.push_back(Input::NotesPersisted { notes, result: Ok(()) }),
            Effect::AskHypervisor => {
                let result = Err("no hypervisor is configured".to_string());
                inputs.push_back(Input::Hypervisor { began: now, result });
            }
            Effect::Journal(event) => self.out.say(Said { node: Node::Host(id), at: now, event }),
        }
    }

    pub(super) fn persisted(&mut self, id: HostId, incarnation: Incarnation, record: Record, done: bool) {
        if self.host(id).agent.as_ref().is_none_or(|a| a.link.incarnation != incarnation) {
            return;
        }
        let result = if done {
            let released = record.released.filter(|_| self.settings.has(Safeguard::PersistedRelease));
            self.host_mut(id).disk = Record { released, ..record };
            Ok(())
        } else {
            Err("no space left on device".to_string())
        };
        self.feed_host(id, Input::Persisted { record, result });
    }

    pub(super) fn host_line(&mut self, id: HostId, stream: StreamId, line: FromMeta) {
        let Some(agent) = &mut self.host_mut(id).agent else { return };
        let (up, order) = agent.link.line(stream, &line);
        if up {
            self.feed_host(id, Input::MetaLink { up: true });
        }
        if let Some(order) = order {
            self.feed_host(id, Input::Order(order));
        }
    }

    pub(super) fn host_stream_down(&mut self, id: HostId, stream: StreamId) {
        let Some(agent) = &mut self.host_mut(id).agent else { return };
        if agent.link.down(stream) {
            self.feed_host(id, Input::MetaLink { up: false });
        }
    }

    pub(super) fn host_answer(&mut self, id: HostId, incarnation: Incarnation, seq: u64, reply: MetaReply) {
        let Some(agent) = &mut self.host_mut(id).agent else { return };
        if agent.link.incarnation != incarnation {
            return;
        }
        if let Some(message) = agent.link.answered(seq) {
            self.feed_host(id, Input::MetaAnswer { message, result: Ok(reply) });
        }
    }

    /// The host's own interface loses carrier, or has it again. The kernel takes the route away with it.
    pub(super) fn carrier(&mut self, id: HostId, network: Network, up: bool) {
        let host = self.host_mut(id);
        if up {
            host.no_carrier.remove(&network);
        } else {
            host.no_carrier.insert(network);
            if host.route.is_some_and(|p| p.network == network) {
                host.route = None;
            }
        }
        let found = host.found();
        self.feed_host(id, Input::Interface { network, carrier: up });
        self.feed_host(id, Input::RouteRead(Ok(found)));
    }

    // --- the NFS client ---

    pub(super) fn wake_client(&mut self, id: HostId) {
        let now = self.local(Node::Host(id));
        let source = self.leads_to(id).network;
        let settings = self.settings.clone();
        let host = self.host_mut(id);
        let segments = host.client.tick(&settings.load, source, now);
        self.client_sends(id, segments);
        self.out.client(id);
    }

    fn client_sends(&mut self, id: HostId, segments: Vec<Segment>) {
        let path = self.leads_to(id);
        if self.host(id).no_carrier.contains(&path.network) {
            return;
        }
        for segment in segments {
            self.add(Pending::Call { host: id, path, segment });
        }
    }

    /// A segment reaches the host from a server.
    pub(super) fn client_hears(&mut self, id: HostId, path: Path, segment: &Segment) {
        let now = self.local(Node::Host(id));
        let settings = self.settings.clone();
        let (write, segments) = self.host_mut(id).client.hear(segment, &settings.load, now);
        if let Some(write) = write {
            self.oracle.acknowledged(id, write);
            self.out.acked(id, path.scvm);
        }
        self.client_sends(id, segments);
        self.out.client(id);
    }
}
