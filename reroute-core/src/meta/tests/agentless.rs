//! Clients without an agent: X here is one. Three SCVMs with kernel words and leases, a network that works or does not.

use super::table::send;
use super::*;
use std::collections::BTreeSet;

const LEASE: u64 = 8000 * MS;
const STEP: u64 = 50 * MS;

#[derive(Clone, Debug, Default)]
struct Server {
    epoch: u64,
    fenced: bool,
    /// Until when its lease for X runs, by true time.
    lease: u64,
    open: bool,
    /// Cannot be reached.
    cut: bool,
    /// What it says is lost, what it is told is not.
    mute: bool,
    /// Its calls in progress do not end.
    waits: bool,
}

struct Small {
    now: u64,
    term: u64,
    seq: u64,
    master: SessionMaster,
    store: BTreeMap<HostId, Versioned>,
    servers: BTreeMap<ScvmId, Server>,
    journal: Vec<(u64, Event)>,
    pushes: Vec<(NodeId, Order)>,
    meta: bool,
}

fn agentless(term: u64) -> Settings {
    let mut settings = settings(term);
    settings.hosts[0].has_agent = false;
    settings.longest_session_ns = LEASE;
    settings
}

impl Small {
    fn new() -> Small {
        let now = 100 * SEC;
        let mut w = Small {
            now,
            term: 1,
            seq: 0,
            master: SessionMaster::new(agentless(1), BTreeMap::new(), BootNs(now)),
            store: BTreeMap::new(),
            servers: [A, B, C].map(|s| (s, Server::default())).into(),
            journal: Vec::new(),
            pushes: Vec::new(),
            meta: true,
        };
        w.run(200 * MS, None);
        w
    }

    /// Meta comes back from its store.
    fn restart(&mut self) {
        self.term += 1;
        self.meta = true;
        self.master = SessionMaster::new(agentless(self.term), self.store.clone(), BootNs(self.now));
        self.servers.values_mut().for_each(|s| s.open = false);
    }

    fn admits(&self, s: &Server) -> bool {
        s.epoch > 0 && !s.fenced && self.now < s.lease
    }
    fn serving(&self) -> Vec<ScvmId> {
        self.servers.iter().filter(|(_, s)| self.admits(s)).map(|(id, _)| *id).collect()
    }
    fn state(&self) -> Option<&LoginState> {
        self.store.get(&X).map(|v| &v.record.login.state)
    }
    fn at(&self) -> Option<(ScvmId, u64, FenceProof)> {
        match self.state()? {
            LoginState::At { scvm, epoch, proof } => Some((*scvm, epoch.0, *proof)),
            LoginState::Moving { .. } | LoginState::Evicted { .. } => None,
        }
    }

    fn input(&mut self, input: Input) {
        let effects = self.master.handle(input, BootNs(self.now));
        self.effects(effects);
    }

    fn effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Reply { .. } => {}
                Effect::ConfirmLease => self.input(Input::LeaseConfirmed),
                Effect::StepDown { .. }
                | Effect::RunFenceCommand(_)
                | Effect::StoreDraining { .. }
                | Effect::StoreBlocks { .. }
                | Effect::Told { .. }
                | Effect::Answer { .. } => panic!("nobody asked for {effect:?}"),
                Effect::Journal(event) => self.journal.push((self.now, event)),
                Effect::Store { host, expected, record } => {
                    assert_eq!(self.store.get(&host).map(|v| v.version), expected);
                    let version = expected.unwrap_or(0) + 1;
                    self.store.insert(host, Versioned { version, record });
                    self.input(Input::StoreDone { host, version });
                }
                Effect::Push { node, order } => {
                    self.pushes.push((node, order.clone()));
                    let NodeId::Scvm(id) = node else { panic!("{node} has no agent: {order:?}") };
                    if !self.servers[&id].cut {
                        self.obey(id, order);
                    }
                }
            }
            let serving = self.serving();
            assert!(serving.len() <= 1, "two servers admit X: {serving:?}; record {:?}", self.state());
        }
    }

    fn say(&mut self, from: ScvmId, msg: ToMeta) -> Option<MetaReply> {
        let server = &self.servers[&from];
        if !self.meta || server.cut || server.mute {
            return None;
        }
        self.seq += 1;
        let (reply, effects) = send(&mut self.master, NodeId::Scvm(from), self.seq, msg, self.now);
        self.effects(effects);
        Some(reply)
    }

    fn obey(&mut self, id: ScvmId, order: Order) {
        let server = self.servers.get_mut(&id).unwrap();
        match order {
            Order::Prepare { host, epoch } => {
                self.say(id, ToMeta::Prepared { host, epoch, error: None });
            }
            Order::Revoke { host, epoch, .. } => {
                if server.epoch <= epoch.0 {
                    (server.epoch, server.fenced) = (epoch.0, true);
                }
                let msg = match server.waits {
                    false => ToMeta::Fenced { host, epoch, proof: FenceProof::Drained },
                    true => {
                        let why = "a call is in progress".to_string();
                        ToMeta::FenceWaits { host, epoch, in_progress: 1, orphans: 0, why }
                    }
                };
                self.say(id, msg);
            }
            Order::Admit { host, epoch } => {
                if server.epoch < epoch.0 {
                    (server.epoch, server.fenced) = (epoch.0, false);
                }
                if (server.epoch, server.fenced) == (epoch.0, false) {
                    self.say(id, ToMeta::Admitted { host, epoch, error: None });
                }
            }
            _ => {}
        }
    }

    fn beat(&mut self, id: ScvmId) {
        let term = self.master.term();
        let msg = match self.servers[&id].open {
            true => ToMeta::KeepAlive { term, health: well() },
            false => ToMeta::SessionOpen { boot: Incarnation(1), health: well() },
        };
        let reply = self.say(id, msg);
        let now = self.now;
        let server = self.servers.get_mut(&id).unwrap();
        match reply {
            Some(MetaReply::Session { logins, .. }) => {
                let named = logins.iter().find(|(host, _)| *host == X);
                // As the SCVM's machine does it: who is not named is shut out before the lease opens.
                server.fenced |= named.is_none_or(|(_, epoch)| epoch.0 != server.epoch);
                if let Some((_, epoch)) = named
                    && epoch.0 > server.epoch
                {
                    (server.epoch, server.fenced) = (epoch.0, false);
                }
                (server.open, server.lease) = (true, now + LEASE);
            }
            Some(MetaReply::Ok { .. }) => server.lease = now + LEASE,
            Some(_) | None => server.open = false,
        }
    }

    /// X calls at a server; it is held back there unless it is served.
    fn call(&mut self, id: ScvmId) -> bool {
        if self.serving() == [id] {
            return true;
        }
        let server = &self.servers[&id];
        if server.open {
            let closed = Epoch(if server.fenced { server.epoch } else { 0 });
            self.say(id, ToMeta::LoginWanted { host: X, closed, connections: 2, age_ns: 0 });
        }
        self.serving() == [id]
    }

    /// Time passes; X calls at `id` every 50 ms. Returns when it was first served, if it was.
    fn run(&mut self, ns: u64, id: Option<ScvmId>) -> Option<u64> {
        let (began, end) = (self.now, self.now + ns);
        let mut served = None;
        while self.now < end {
            self.now += STEP;
            for id in [A, B, C] {
                self.beat(id);
            }
            if self.meta {
                self.input(Input::Tick);
            }
            if let Some(id) = id
                && self.call(id)
            {
                served = served.or(Some(self.now - began));
            }
        }
        served
    }

    fn faults(&self) -> Vec<&String> {
        let whats = self.journal.iter().filter_map(|(_, e)| match e {
            Event::Fault { what } => Some(what),
            _ => None,
        });
        whats.collect()
    }
}

fn at_a() -> Small {
    let mut w = Small::new();
    w.run(200 * MS, Some(A)).expect("served at A");
    assert_eq!(w.at(), Some((A, 1, FenceProof::FirstLogin)));
    w
}

#[test]
fn its_login_follows_its_calls_with_proof_and_nothing_is_sent_to_it() {
    let mut w = at_a();
    let from = w.journal.len();
    assert!(w.run(500 * MS, Some(C)).is_some());
    assert_eq!(w.at(), Some((C, 2, FenceProof::Drained)));
    let order: Vec<u8> = w.journal[from..]
        .iter()
        .filter_map(|(_, e)| match e {
            Event::MoveRecorded { epoch: Epoch(2), from: Some(A), to: C, planned: false, .. } => Some(1),
            Event::RevokeSent { scvm: A, epoch: Epoch(1), .. } => Some(2),
            Event::FenceProven { scvm: A, epoch: Epoch(1), .. } => Some(3),
            Event::LoginStored { scvm: C, epoch: Epoch(2), .. } => Some(4),
            _ => None,
        })
        .collect();
    assert_eq!(order, [1, 2, 3, 4]);
    assert!(w.pushes.iter().all(|(node, _)| matches!(node, NodeId::Scvm(_))));
    // And back, to the server that has its old connections: two epochs later.
    assert!(w.run(500 * MS, Some(A)).is_some());
    assert_eq!(w.at(), Some((A, 3, FenceProof::Drained)));
}

#[test]
fn a_server_that_cannot_be_reached_is_left_when_the_longer_lease_is_over() {
    let mut w = at_a();
    // What an earlier term may have granted is over.
    w.run(10 * SEC, Some(A));
    w.servers.get_mut(&A).unwrap().cut = true;
    // `effects` checks with every step that A's lease, which runs on, is over before C opens.
    let served = w.run(12 * SEC, Some(C)).expect("served at C");
    assert!((LEASE..LEASE + SEC + 100 * MS).contains(&served), "after {} ms", served / MS);
    assert_eq!(w.at(), Some((C, 2, FenceProof::LeaseExpiredStorage)));
}

#[test]
fn a_new_leader_waits_for_the_longer_lease_as_well() {
    let mut w = at_a();
    w.servers.get_mut(&A).unwrap().cut = true;
    w.restart();
    let served = w.run(12 * SEC, Some(C)).expect("served at C");
    assert!(served >= LEASE, "after {} ms", served / MS);
}

/// Unlike a host that waits for the word `At`, it calls at the target from the first moment that this admits it.
#[test]
fn a_target_that_may_have_admitted_it_has_served_it() {
    let mut w = at_a();
    w.servers.get_mut(&A).unwrap().waits = true;
    w.call(B);
    assert!(matches!(w.state(), Some(LoginState::Moving { to: B, .. })));
    // B, which has policy `kill`, admits it; from here on nobody hears of B.
    w.servers.get_mut(&A).unwrap().waits = false;
    w.servers.get_mut(&B).unwrap().mute = true;
    w.run(300 * MS, None);
    assert_eq!(w.serving(), [B], "it serves, and cannot say so");
    w.servers.get_mut(&B).unwrap().cut = true;
    assert_eq!(w.run(30 * SEC, Some(C)), None, "nothing covers what B may be executing");
    assert!(matches!(w.state(), Some(LoginState::Moving { to: C, .. })), "{:?}", w.state());
    let b = w.servers.get_mut(&B).unwrap();
    (b.cut, b.mute) = (false, false);
    assert!(w.run(SEC, Some(C)).is_some(), "B says that it has drained");
}

#[test]
fn who_alternates_is_slowed_and_reported_and_never_starved() {
    let mut w = at_a();
    let mut moves = 0;
    let mut last = w.at();
    let began = w.now;
    let mut times = Vec::new();
    // 105 s of a next hop that flaps every 300 ms.
    for i in 0..350 {
        w.run(300 * MS, Some(if i % 2 == 0 { C } else { A }));
        if w.at().is_some() && w.at() != last {
            last = w.at();
            moves += 1;
            times.push((w.now - began) / MS);
        }
    }
    assert_eq!(moves, 6, "three, and one for each 30 s: {times:?}");
    assert!(times[2] < 1500, "the first three at once: {times:?}");
    assert!(times[3] > 28_000, "{times:?}");
    let said: Vec<_> = w.faults().into_iter().filter(|f| f.contains("alternates")).collect();
    assert!(!said.is_empty() && said.len() <= moves, "said once for each move that waits: {said:#?}");
    for word in ["host 1 (x)", "scvm 1 and scvm 3", "3 moves"] {
        assert!(said[0].contains(word), "{}", said[0]);
    }
    // While it waits, the view says so.
    let other = if w.serving() == [A] { C } else { A };
    w.run(300 * MS, Some(other));
    let view = w.master.view(BootNs(w.now));
    let wants = view.hosts[0].wants.as_ref().expect("its wish");
    assert_eq!((wants.scvm, wants.connections, view.hosts[0].has_agent), (other, 2, false));
    assert!(wants.slowed_ns > Some(0), "{wants:?}");
    // And who stays where it is gets there.
    assert!(w.run(31 * SEC, Some(other)).is_some());
}

/// While its old server waits for its last calls to end it calls at the new one, on and on. That is one move, and not a
/// client that alternates: its budget is there when it needs it.
#[test]
fn calls_at_the_target_while_the_old_server_drains_are_no_further_moves() {
    let mut w = at_a();
    w.servers.get_mut(&A).unwrap().waits = true;
    assert_eq!(w.run(5 * SEC, Some(C)), None);
    assert!(matches!(w.state(), Some(LoginState::Moving { to: C, epoch: Epoch(2), .. })), "{:?}", w.state());
    assert!(!w.faults().iter().any(|f| f.contains("alternates")), "{:?}", w.faults());
    // Its next hop is changed once more: nothing slows that.
    assert_eq!(w.run(SEC, Some(B)), None);
    assert!(matches!(w.state(), Some(LoginState::Moving { to: B, epoch: Epoch(3), .. })), "{:?}", w.state());
    w.servers.get_mut(&A).unwrap().waits = false;
    assert!(w.run(SEC, Some(B)).is_some());
    assert_eq!(w.at(), Some((B, 3, FenceProof::Drained)));
}

#[test]
fn a_drain_says_who_has_no_agent_to_leave_by() {
    let mut w = at_a();
    let ask = OperatorAsk::Drained { scvm: A };
    let effects = w.master.handle(Input::Operator { request: RequestId(1), ask }, BootNs(w.now));
    let still = effects.into_iter().find_map(|e| match e {
        Effect::Answer { answer: Ok(OperatorAnswer::Drain { still, .. }), .. } => Some(still),
        _ => None,
    });
    assert!(matches!(&still.unwrap()[..], [one] if one.host == X && one.why.contains("next hop")));
}

#[test]
fn a_call_from_before_the_login_came_there_moves_nothing() {
    let mut w = at_a();
    w.run(500 * MS, Some(C));
    assert_eq!(w.at().map(|a| a.0), Some(C));
    let msg = ToMeta::LoginWanted { host: X, closed: Epoch(1), connections: 1, age_ns: 2 * SEC };
    assert_eq!(w.say(A, msg), Some(MetaReply::Ok { term: Term(1) }));
    w.run(500 * MS, None);
    assert_eq!(w.at().map(|a| a.0), Some(C));
}

#[test]
fn a_word_closed_at_the_login_itself_opens_at_the_next_epoch() {
    let mut w = at_a();
    w.servers.get_mut(&A).unwrap().fenced = true;
    assert!(w.run(500 * MS, Some(A)).is_some());
    assert_eq!(w.at(), Some((A, 2, FenceProof::SameServer)));
}

#[test]
fn a_move_that_no_server_may_begin_begins_not() {
    let mut w = at_a();
    // C's server does not listen.
    let term = w.master.term();
    let health = ServerHealth { listening: false, ..well() };
    w.say(C, ToMeta::KeepAlive { term, health });
    let msg = ToMeta::LoginWanted { host: X, closed: Epoch(0), connections: 1, age_ns: 0 };
    let reply = w.say(C, msg);
    assert_eq!(reply, Some(MetaReply::Refused { error: Refusal::TargetNotReady { scvm: C } }));
    assert_eq!(w.at().map(|a| a.0), Some(A));
}

/// Its last calls before the block are still told of.
#[test]
fn the_blocked_are_not_followed() {
    let mut w = at_a();
    let (wall, now) = (WallMs(1_800_000_000_000), BootNs(w.now));
    let (client, reason, actor) = ("x".into(), "maintenance".into(), "root".into());
    let ask = Ask::AddBlock { client, for_ms: 3_600_000, reason, actor, sure: true };
    w.master.handle(Input::Ask { ticket: Ticket(1), ask, wall }, now);
    w.master.handle(Input::BlocksStored { result: Ok(()), wall }, now);
    let msg = ToMeta::LoginWanted { host: X, closed: Epoch(0), connections: 1, age_ns: 0 };
    let reply = w.say(C, msg);
    assert!(matches!(reply, Some(MetaReply::Refused { error: Refusal::Blocked { .. } })), "{reply:?}");
    w.run(500 * MS, Some(C));
    assert_eq!(w.at().map(|a| a.0), Some(A));
}

#[test]
fn agents_where_there_are_none_and_none_where_there_are_some_are_refused_by_name() {
    let mut w = at_a();
    w.seq += 1;
    let msg = ToMeta::Released { epoch: Epoch(1) };
    let (reply, effects) = send(&mut w.master, NodeId::Host(X), w.seq, msg, w.now);
    assert_eq!(reply, MetaReply::Refused { error: Refusal::WithoutAgent { host: X } });
    assert!(effects.is_empty());
    let wanted = |host| ToMeta::LoginWanted { host, closed: Epoch(0), connections: 1, age_ns: 0 };
    let nobody = HostId(9);
    let unknown = Refusal::UnknownNode { node: NodeId::Host(nobody) };
    assert_eq!(w.say(A, wanted(nobody)), Some(MetaReply::Refused { error: unknown }));
    let mut master = SessionMaster::new(settings(1), BTreeMap::new(), BootNs(0));
    let (reply, _) = send(&mut master, NodeId::Scvm(A), 1, wanted(X), 0);
    assert_eq!(reply, MetaReply::Refused { error: Refusal::WithAgent { host: X } });
}

/// Meta is away: nobody may be served elsewhere, and after the lease nobody anywhere; all is as it was when it is back.
#[test]
fn while_meta_is_away_it_is_served_for_its_lease_and_then_stands_still() {
    let mut w = at_a();
    w.meta = false;
    let began = w.now;
    let mut served_until = began;
    let mut servers = BTreeSet::new();
    while w.now < began + 20 * SEC {
        w.run(STEP, Some(A));
        servers.extend(w.serving());
        if !w.serving().is_empty() {
            served_until = w.now;
        }
    }
    let lasted = served_until - began;
    assert!((LEASE - 2 * STEP..=LEASE).contains(&lasted), "{} ms", lasted / MS);
    assert_eq!(servers, BTreeSet::from([A]));
    w.restart();
    assert!(w.run(SEC, Some(A)).expect("served again") <= 200 * MS);
    assert_eq!(w.at(), Some((A, 1, FenceProof::FirstLogin)), "no move, no new epoch");
}
