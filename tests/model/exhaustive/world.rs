//! One state of the whole: the machines, and everything around them. A fair schedule moves it on: what was sent comes
//! in order and at once, timers run once per round.

use super::kernel::{Kernel, Server};
use super::nodes::*;
use super::oracle::Oracle;
use super::parts::{Clock, Part};
use super::story::*;
use reroute_common::admission::rank;
use reroute_core::host;
use reroute_core::ids::*;
use reroute_core::meta;
use reroute_core::proto::*;
use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Rounds before the story begins, in which everybody settles.
pub const WARM: u32 = 16;

#[derive(Clone)]
pub struct World {
    pub story: Arc<Story>,
    /// True time, ns.
    pub now: u64,
    pub round: u32,
    /// Troubles that the adversary has left.
    pub budget: u8,
    pub host: Part<HostNode>,
    pub scvms: Vec<Part<ScvmNode>>,
    pub metas: Vec<Part<MetaNode>>,
    pub store: Part<Store>,
    /// This moment's, in order.
    pub queue: VecDeque<Thing>,
    /// Due at the beginning of a later round; in order.
    pub late: Vec<(u32, Thing)>,
    /// Links that carry nothing, and until when.
    pub cuts: BTreeSet<(Node, Node, u32)>,
    pub oracle: Part<Oracle>,
    digest: u64,
}

impl World {
    pub fn new(story: Story) -> World {
        let story = Arc::new(story);
        let rate = |i: usize| story.rates[i];
        let host = HostNode {
            clock: Clock::new(1_000 * SEC, rate(0)),
            agent: None,
            runs: 0,
            disk: host::Record { epoch: Epoch(1), scvm: Some(A), released: None, term: Term(0) },
            route: Some(Path { scvm: A, network: Network::Storage }),
            waits_for: None,
            back_at: story.has_agent.then_some(0),
            thaws_at: None,
        };
        let scvm = |id: ScvmId| {
            let server = Server { incarnation: Incarnation(1), alive: true, hung: false, calls: vec![] };
            let mut kernel = Kernel::new(u64::from(id.0) * 10 + 1, story.has_agent);
            if id == A {
                kernel.raise(Epoch(1), rank::ADMITTED, &server);
            }
            Part::new(ScvmNode {
                clock: Clock::new(u64::from(id.0) * 3_000 * SEC, rate(id.0 as usize)),
                kernel,
                server,
                agent: None,
                runs: 0,
                back_at: Some(0),
                server_back_at: None,
                thaws_at: None,
                stunned: None,
            })
        };
        let meta_rate = rate(story.policies.len() + 1);
        let meta = |i: u64| {
            Part::new(MetaNode {
                clock: Clock::new((50 + 5 * i) * 1_000 * SEC, meta_rate),
                leader: None,
                back_at: (i == 0).then_some(0),
                thaws_at: None,
            })
        };
        let state = LoginState::At { scvm: A, epoch: Epoch(1), proof: FenceProof::FirstLogin };
        let login = Login { host: X, state, term: Term(0), reason: String::new() };
        let record = meta::Record { login, from: None, evidence: vec![] };
        let mut world = World {
            now: 20 * SEC,
            round: 0,
            budget: 0,
            host: Part::new(host),
            scvms: story.scvms().map(scvm).collect(),
            metas: vec![meta(0), meta(1)],
            store: Part::new(Store { term: Term(0), login: Some((1, record)) }),
            queue: VecDeque::new(),
            late: Vec::new(),
            cuts: BTreeSet::new(),
            oracle: Part::new(Oracle::default()),
            digest: 0,
            story,
        };
        while world.round < WARM {
            world.step();
        }
        world.budget = world.story.budget;
        world.oracle.edit().stood = vec![A];
        world.seal();
        world
    }

    // --- parts ---

    pub fn scvm(&self, id: ScvmId) -> &ScvmNode {
        &self.scvms[id.0 as usize - 1]
    }
    pub fn scvm_mut(&mut self, id: ScvmId) -> &mut ScvmNode {
        self.scvms[id.0 as usize - 1].edit()
    }

    pub fn clock(&self, node: Node) -> &Clock {
        match node {
            Node::Host => &self.host.clock,
            Node::Scvm(id) => &self.scvm(id).clock,
            Node::Meta(i) => &self.metas[i].clock,
            Node::Store => &self.metas[0].clock,
        }
    }

    pub fn local(&self, node: Node) -> BootNs {
        self.clock(node).at(self.now)
    }

    fn is_frozen(&self, node: Node) -> bool {
        node != Node::Store && self.clock(node).stands()
    }

    pub fn carries(&self, a: Node, b: Node) -> bool {
        !self.cuts.iter().any(|(x, y, _)| (*x, *y) == (a, b) || (*x, *y) == (b, a))
    }

    /// A link that is cut takes what is sent while it is; what is under way already comes.
    pub fn send(&mut self, from: Node, thing: Thing) {
        if self.carries(from, thing.to()) {
            self.queue.push_back(thing);
        }
    }

    pub fn violation(&self) -> Option<&str> {
        self.oracle.violation.as_deref()
    }

    pub fn is_over(&self) -> bool {
        self.round >= WARM + self.story.rounds || self.violation().is_some()
    }

    /// Rounds since the story began.
    pub fn story_round(&self) -> u32 {
        self.round.saturating_sub(WARM)
    }

    pub fn may_meddle(&self) -> bool {
        self.budget > 0 && self.round >= WARM && self.story.window.contains(&self.story_round())
    }

    // --- time ---

    /// The fair schedule's next stretch: up to the next thing that the adversary could meddle with, or (when he cannot
    /// any more) to the end of the round.
    pub fn step(&mut self) {
        loop {
            match self.queue.pop_front() {
                Some(thing) => self.deliver(thing),
                None => {
                    self.next_round();
                    if !self.may_meddle() {
                        break;
                    }
                }
            }
            if self.is_over() || (self.may_meddle() && self.queue.front().is_some_and(Thing::is_message)) {
                break;
            }
        }
        self.seal();
    }

    fn next_round(&mut self) {
        self.now += ROUND;
        self.round += 1;
        let round = self.round;
        let story = self.story.clone();
        for (_, what) in story.happens.iter().filter(|(at, _)| at + WARM == round) {
            self.happens(*what);
        }
        self.cuts.retain(|(.., until)| *until > round);
        self.thaw();
        let late = std::mem::take(&mut self.late);
        let (due, rest): (Vec<_>, Vec<_>) = late.into_iter().partition(|(at, _)| *at <= round);
        self.late = rest;
        self.queue.extend(due.into_iter().map(|(_, thing)| thing));
        self.come_back();
        self.connect();
        for i in 0..self.metas.len() {
            if self.metas[i].leader.is_some() {
                self.queue.push_back(Thing::Tick(Node::Meta(i)));
            }
        }
        self.queue.extend(story.scvms().map(|id| Thing::Tick(Node::Scvm(id))));
        self.queue.push_back(Thing::Tick(Node::Host));
        self.queue.extend(story.scvms().map(Thing::Execute));
    }

    fn happens(&mut self, what: Happens) {
        match what {
            Happens::Hang(s) => self.scvm_mut(s).server.hung = true,
            Happens::Resume(s) => self.scvm_mut(s).server.hung = false,
            Happens::Cut(a, b) => {
                self.cuts.insert((a, b, u32::MAX));
                self.break_streams();
            }
            Happens::Heal(a, b) => self.cuts.retain(|(x, y, _)| (*x, *y) != (a, b)),
            Happens::SecondLeader => self.start_leader(1),
            Happens::NextHop(s) => self.next_hop(s),
            Happens::Pin(s) => self.pin(s),
            Happens::Evict => self.evict(),
        }
    }

    fn thaw(&mut self) {
        let (now, round) = (self.now, self.round);
        let due = |at: Option<u32>| at.is_some_and(|at| at <= round);
        if due(self.host.thaws_at) {
            let host = self.host.edit();
            host.thaws_at = None;
            host.clock.go_on(now);
        }
        for scvm in self.scvms.iter_mut().filter(|s| due(s.thaws_at)) {
            let scvm = scvm.edit();
            scvm.thaws_at = None;
            scvm.clock.go_on(now);
        }
        for meta in self.metas.iter_mut().filter(|m| due(m.thaws_at)) {
            let meta = meta.edit();
            meta.thaws_at = None;
            meta.clock.go_on(now);
        }
    }

    fn come_back(&mut self) {
        let round = self.round;
        let due = |at: Option<u32>| at.is_some_and(|at| at <= round);
        for i in 0..self.metas.len() {
            if due(self.metas[i].back_at) && !self.is_frozen(Node::Meta(i)) {
                self.start_leader(i);
            }
        }
        for id in self.story.scvms() {
            if self.is_frozen(Node::Scvm(id)) {
                continue;
            }
            if due(self.scvm(id).server_back_at) {
                self.start_server(id);
            }
            if due(self.scvm(id).back_at) {
                self.start_agent(id);
            }
        }
        if due(self.host.back_at) && !self.is_frozen(Node::Host) {
            self.start_host();
        }
    }

    /// Push streams are opened where they can be.
    fn connect(&mut self) {
        self.break_streams();
        let nodes = self.agents();
        for i in 0..self.metas.len() {
            let at = Node::Meta(i);
            if self.is_frozen(at) {
                continue;
            }
            for &(id, incarnation) in &nodes {
                let Some(leader) = &self.metas[i].leader else { continue };
                let there = leader.streams.contains_key(&id);
                if there || self.is_frozen(node(id)) || !self.carries(node(id), at) {
                    continue;
                }
                if let Some(leader) = &mut self.metas[i].edit().leader {
                    leader.streams.insert(id, incarnation);
                }
                if let NodeId::Host(_) = id {
                    self.host_stream(i, true);
                }
                self.feed_meta(i, meta::Input::Connected { node: id });
            }
        }
    }

    /// Every agent that runs.
    fn agents(&self) -> Vec<(NodeId, Incarnation)> {
        let host = self.host.agent.iter().map(|a| (NodeId::Host(X), a.incarnation));
        let scvm = |id: ScvmId| self.scvm(id).agent.as_ref().map(|a| (NodeId::Scvm(id), a.incarnation));
        host.chain(self.story.scvms().filter_map(scvm)).collect()
    }

    /// Streams whose link is cut or whose process is gone end.
    pub fn break_streams(&mut self) {
        let nodes = self.agents();
        for i in 0..self.metas.len() {
            let Some(leader) = &self.metas[i].leader else {
                self.host_stream(i, false);
                continue;
            };
            let streams: Vec<(NodeId, Incarnation)> = leader.streams.iter().map(|(n, i)| (*n, *i)).collect();
            for stream in streams {
                if nodes.contains(&stream) && self.carries(node(stream.0), Node::Meta(i)) {
                    continue;
                }
                if let Some(leader) = &mut self.metas[i].edit().leader {
                    leader.streams.remove(&stream.0);
                }
                if let NodeId::Host(_) = stream.0 {
                    self.host_stream(i, false);
                }
            }
        }
    }

    // --- delivery ---

    pub fn deliver(&mut self, thing: Thing) {
        let to = thing.to();
        if self.is_frozen(to) {
            // Timers do not queue up; messages wait in the frozen node's sockets.
            let until = match to {
                Node::Host => self.host.thaws_at,
                Node::Scvm(id) => self.scvm(id).thaws_at,
                Node::Meta(i) => self.metas[i].thaws_at,
                Node::Store => None,
            };
            if thing.is_message() {
                self.late.push((until.unwrap_or(u32::MAX), thing));
            }
            return;
        }
        match thing {
            Thing::Tick(Node::Host) => self.tick_host(),
            Thing::Tick(Node::Scvm(id)) => self.tick_scvm(id),
            Thing::Tick(Node::Meta(i)) => self.tick_meta(i),
            Thing::Tick(Node::Store) => {}
            Thing::Execute(id) => self.execute(id),
            Thing::Pulse(pulse) => self.pulse(pulse),
            Thing::Post { from, incarnation, seq, meta, msg, .. } => {
                self.post_arrives(from, incarnation, seq.0, meta, msg)
            }
            Thing::Answer { to: NodeId::Host(_), incarnation, seq, meta, reply } => {
                self.host_answer(incarnation, seq.0, meta, reply)
            }
            Thing::Answer { to: NodeId::Scvm(id), incarnation, seq, meta, reply } => {
                self.scvm_answer(id, incarnation, seq.0, meta, reply)
            }
            Thing::Push { to: NodeId::Host(_), incarnation, term, seq, order } => {
                self.host_order(incarnation, FromMeta { term, seq, order })
            }
            Thing::Push { to: NodeId::Scvm(id), incarnation, term, seq, order } => {
                self.scvm_order(id, incarnation, term, seq, order)
            }
            Thing::Confirm { meta, term } => self.confirm(meta, term),
            Thing::Write { meta, term, expected, record } => self.write(meta, term, expected, *record),
            Thing::Stored { meta, term, input } => {
                if self.metas[meta].leader.as_ref().is_some_and(|l| l.master.term() == term) {
                    self.feed_meta(meta, *input);
                }
            }
            Thing::Persist { incarnation, record } => self.persisted(incarnation, record),
            Thing::NullTimeout { scvm, incarnation } => self.null_timeout(scvm, incarnation),
        }
        self.check();
    }

    // --- sameness ---

    pub fn seal(&mut self) {
        self.host.seal();
        self.scvms.iter_mut().for_each(Part::seal);
        self.metas.iter_mut().for_each(Part::seal);
        self.store.seal();
        self.oracle.seal();
        let mut h = DefaultHasher::new();
        self.story.name.hash(&mut h);
        (self.now, self.budget, self.host.digest(), self.store.digest(), self.oracle.digest()).hash(&mut h);
        self.scvms.iter().for_each(|s| s.digest().hash(&mut h));
        self.metas.iter().for_each(|m| m.digest().hash(&mut h));
        (&self.queue, &self.late, &self.cuts).hash(&mut h);
        self.digest = h.finish();
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &World) -> bool {
        self.digest == other.digest
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<String> = self
            .story
            .scvms()
            .map(|id| {
                let (s, now) = (self.scvm(id), self.local(Node::Scvm(id)));
                let word = s.kernel.word();
                let open = if s.kernel.admits(now) { "admits" } else { "shut" };
                format!("{id} e{}r{} {open} {} calls", word.epoch(), word.rank(), s.server.calls.len())
            })
            .collect();
        let record = self.store.login.as_ref().map(|(_, r)| match &r.login.state {
            LoginState::At { scvm, epoch, proof } => format!("at {scvm} {epoch} {proof:?}"),
            LoginState::Moving { to, epoch, .. } => format!("moving to {to} {epoch}"),
            LoginState::Evicted { epoch, .. } => format!("evicted {epoch}"),
        });
        write!(
            f,
            "round {} [{}] {}; next {}",
            self.story_round(),
            words.join(", "),
            record.unwrap_or_default(),
            self.queue.front().map_or("-".into(), Thing::label)
        )
    }
}
