//! A small world around the machine: networks that can be cut, servers that can fail, a Meta that is told what to say.

mod client_reset;
mod domain;
mod dry;
mod evicted;
mod faults;
mod moving;
mod own_address;
mod random;
mod returning;
mod routes;
mod silence;
mod sizes;
mod storage;
mod targets;
mod wishes;

use super::*;
use std::collections::BTreeSet;

pub const A: ScvmId = ScvmId(1);
pub const B: ScvmId = ScvmId(2);
pub const C: ScvmId = ScvmId(3);
const RTT: u64 = 200_000;

pub fn storage(scvm: ScvmId) -> Path {
    Path { scvm, network: Network::Storage }
}
pub fn management(scvm: ScvmId) -> Path {
    Path { scvm, network: Network::Management }
}

pub fn settings() -> Settings {
    Settings {
        host: HostId(1),
        local: A,
        scvms: vec![A, B, C],
        checked_by_storage: Vec::new(),
        pulse_ns: 10 * MS,
        doubt_ns: 2 * MS,
        standby_ns: 50 * MS,
        rest_ns: SEC,
        path_lost_ns: 25 * MS,
        first_mode: Mode::Auto,
        hold_down_ns: 3 * SEC,
        hold_down_max_ns: 180 * SEC,
    }
}

#[derive(Clone)]
pub struct World {
    pub machine: Machine,
    pub now: BootNs,
    pub down: BTreeSet<Path>,
    pub facts: BTreeMap<ScvmId, Facts>,
    /// Ticks and pulses come this late.
    pub late_ns: u64,
    pub route: Found,
    pub route_error: Option<RouteFailure>,
    pub persist_error: Option<String>,
    pub meta_error: Option<String>,
    pub log: Vec<(BootNs, Effect)>,
    /// What must never happen, checked at every effect.
    served_by: Option<(ScvmId, Epoch)>,
    released: Option<Epoch>,
    pub adopted: bool,
    /// What the hypervisor would say.
    pub domains: Result<Vec<Domain>, String>,
    /// Who else would answer for this host's address.
    pub claims: Result<crate::duplicate::Claims, String>,
    /// It does not answer by itself; since when it was asked.
    pub hypervisor_waits: bool,
    pub reading: Option<BootNs>,
    /// SCVMs whose answers take longer than others'.
    pub slow: BTreeMap<ScvmId, u64>,
    /// This kernel destroys no sockets: those from before the last move.
    pub stay: Option<Vec<OldSocket>>,
    /// What comes back from the effects, in order.
    coming: VecDeque<(BootNs, Input)>,
}

fn sessions(states: &[(ScvmId, SessionState)]) -> Vec<SessionView> {
    let session = |(scvm, state): &(ScvmId, SessionState)| SessionView {
        scvm: *scvm,
        name: String::new(),
        state: *state,
        age_ns: 0,
        keepalive_age_ns: None,
        incarnation: Incarnation(1),
        health: ServerHealth::default(),
        reason: String::new(),
    };
    states.iter().map(session).collect()
}

/// Everybody's session is alive.
fn all_alive() -> Vec<SessionView> {
    sessions(&[A, B, C].map(|scvm| (scvm, SessionState::Alive)))
}

fn is_drained(scvm: ScvmId) -> DrainView {
    DrainView { scvm, draining: Draining { actor: "test".into(), at_unix_ms: 1 } }
}

impl World {
    pub fn new(record: Record, route: Found) -> World {
        World::with(settings(), record, route)
    }

    pub fn with(settings: Settings, record: Record, route: Found) -> World {
        let now = BootNs(SEC);
        let facts = Facts {
            scvm_boot: 7,
            server: Incarnation(1),
            listening: true,
            enforcing: true,
            ..Facts::default()
        };
        let mut world = World {
            machine: Machine::new(settings, record, now),
            now,
            down: BTreeSet::new(),
            facts: [A, B, C].map(|s| (s, facts)).into(),
            late_ns: 0,
            route: route.clone(),
            route_error: None,
            persist_error: None,
            meta_error: None,
            log: Vec::new(),
            served_by: record.scvm.map(|s| (s, record.epoch)),
            released: record.released,
            adopted: false,
            domains: Err("no hypervisor".into()),
            claims: Err("no ARP".into()),
            hypervisor_waits: false,
            reading: None,
            slow: BTreeMap::new(),
            stay: None,
            coming: VecDeque::new(),
        };
        world.input(Input::RouteRead(Ok(route)));
        world.input(Input::MetaLink { up: true });
        world
    }

    /// Logged in at A by storage for a while, at epoch 1.
    pub fn settled() -> World {
        let record = Record { epoch: Epoch(1), scvm: Some(A), released: None, term: Term(1) };
        let mut world = World::new(record, Found::Ours(storage(A)));
        world.run(SEC);
        world.log.clear();
        world
    }

    pub fn input(&mut self, input: Input) {
        self.coming.push_back((self.now, input));
        let before = self.now;
        while let Some((at, input)) = self.coming.pop_front() {
            self.now = self.now.max(at);
            let effects = self.machine.handle(input, self.now);
            self.carry_out(effects);
        }
        self.now = before;
    }

    fn comes(&mut self, input: Input) {
        self.coming.push_back((self.now, input));
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.check(&effect);
            self.log.push((self.now, effect.clone()));
            match effect {
                Effect::SendPulse { path, due, flag, epoch, .. } => {
                    let at = self.now.plus(self.late_ns);
                    self.comes(Input::Sent { path, due, at, error: None });
                    self.pulse_reaches(path, flag, epoch);
                }
                Effect::ReplaceRoute { path, adopt } => {
                    let foreign = matches!(self.route, Found::Foreign { .. });
                    let result = match self.route_error.clone() {
                        Some(error) => Err(error),
                        None if foreign && !adopt => Err(RouteFailure::Foreign("foreign".into())),
                        None => Ok(()),
                    };
                    if result.is_ok() {
                        self.route = Found::Ours(path);
                    }
                    self.comes(Input::RouteSet { path, result });
                }
                Effect::DestroySockets { .. } => self.comes(match &self.stay {
                    None => Input::SocketsReset(Ok(1)),
                    Some(sockets) => Input::SocketsStay(sockets.clone()),
                }),
                Effect::FindSockets => {
                    let sockets = self.stay.clone().expect("looked for where some stayed");
                    self.comes(Input::SocketsFound(Ok(sockets)));
                }
                Effect::Persist(record) => {
                    let result = self.persist_error.clone().map_or(Ok(()), Err);
                    self.comes(Input::Persisted { record, result });
                }
                Effect::ReadRoute => {
                    let route = self.route.clone();
                    self.comes(Input::RouteRead(Ok(route)));
                }
                Effect::Meta(message) => {
                    let result = match &self.meta_error {
                        Some(why) => Err(why.clone()),
                        None => Ok(MetaReply::Ok { term: Term(1) }),
                    };
                    self.comes(Input::MetaAnswer { message, result });
                }
                Effect::PersistNotes(notes) => {
                    let result = self.persist_error.clone().map_or(Ok(()), Err);
                    self.comes(Input::NotesPersisted { notes, result });
                }
                Effect::AskOwnAddress => self.comes(Input::OwnAddress(self.claims.clone())),
                Effect::AskHypervisor => {
                    let result = self.domains.clone();
                    match self.hypervisor_waits {
                        true => self.reading = Some(self.now),
                        false => self.comes(Input::Hypervisor { began: self.now, result }),
                    }
                }
                Effect::Journal(_) | Effect::TrySizes(_) => {}
            }
        }
    }

    fn pulse_reaches(&mut self, path: Path, flag: PulseFlag, epoch: Epoch) {
        if self.down.contains(&path) {
            return;
        }
        let sent_at = self.now;
        let now = self.now.plus(RTT + self.slow.get(&path.scvm).copied().unwrap_or(0));
        let Some(facts) = self.facts.get_mut(&path.scvm) else { return };
        facts.scvm_stamp += 1;
        if flag == PulseFlag::Release && facts.word_epoch <= epoch {
            facts.word_epoch = epoch;
            facts.word_rank = Rank::Released;
        }
        let facts = *facts;
        self.coming.push_back((now, Input::Reply { path, sent_at, facts }));
    }

    fn check(&self, effect: &Effect) {
        match effect {
            Effect::ReplaceRoute { path, .. } => {
                let (scvm, _) = self.served_by.expect("a route change without a login");
                assert_eq!(path.scvm, scvm, "a route to a server that Meta has not said to serve us");
                assert!(
                    self.adopted || !matches!(self.route, Found::Foreign { .. }),
                    "a foreign route would be replaced"
                );
            }
            Effect::SendPulse { path, flag: PulseFlag::Affirm, epoch, .. } => {
                assert!(self.released.is_none_or(|r| *epoch > r), "{epoch} was released and is affirmed");
                assert_eq!(self.served_by, Some((path.scvm, *epoch)));
            }
            Effect::SendPulse { flag: PulseFlag::Release, .. } => {
                assert!(self.released.is_some(), "a release that nobody ordered");
            }
            _ => {}
        }
    }

    pub fn order(&mut self, order: Order) {
        self.order_of(1, order);
    }

    /// By the leader of that term, which stands.
    pub fn order_of(&mut self, term: u64, order: Order) {
        match &order {
            Order::At { scvm, epoch } if self.served_by.is_none_or(|(_, e)| *epoch >= e) => {
                if self.released == Some(*epoch) {
                    self.released = None; // Meta confirms what a former instance had let go
                }
                self.served_by = Some((*scvm, *epoch));
            }
            Order::Moving { from_epoch, .. } | Order::Evicted { from_epoch, .. } => {
                self.released = self.released.max(Some(*from_epoch))
            }
            _ => {}
        }
        self.input(Input::Order(FromMeta { term: Term(term), seq: 1, order }));
    }

    pub fn view(&mut self, states: &[(ScvmId, SessionState)]) {
        let view = ClusterView { sessions: sessions(states), ..ClusterView::default() };
        self.order(Order::View { view });
    }

    /// Ticks for `ns`.
    pub fn run(&mut self, ns: u64) {
        let end = self.now.plus(ns);
        loop {
            let due = self.machine.next_tick();
            let at = due.plus(self.late_ns).max(self.now);
            if at > end {
                break;
            }
            self.now = at;
            self.input(Input::Tick { due });
        }
        self.now = end;
    }

    /// Runs until a question to Meta is seen, at most `ns`; returns it and how long that took.
    pub fn run_until_asked(&mut self, ns: u64) -> (ToMeta, u64) {
        let from = self.now;
        while self.now.since(from) < ns {
            self.run(10 * MS);
            if let Some(ask) = self.asks().pop() {
                return (ask, self.now.since(from));
            }
        }
        panic!("no move was asked for within {} ms", ns / MS);
    }

    pub fn asks(&self) -> Vec<ToMeta> {
        self.messages().into_iter().filter(|m| matches!(m, ToMeta::Move { .. })).collect()
    }

    pub fn messages(&self) -> Vec<ToMeta> {
        self.log
            .iter()
            .filter_map(|(_, e)| match e {
                Effect::Meta(message) => Some(message.clone()),
                _ => None,
            })
            .collect()
    }

    pub fn routes(&self) -> Vec<Path> {
        self.log
            .iter()
            .filter_map(|(_, e)| match e {
                Effect::ReplaceRoute { path, .. } => Some(*path),
                _ => None,
            })
            .collect()
    }

    pub fn resets(&self) -> Vec<Option<Network>> {
        self.log
            .iter()
            .filter_map(|(_, e)| match e {
                Effect::DestroySockets { keep } => Some(*keep),
                _ => None,
            })
            .collect()
    }

    pub fn flags(&self, scvm: ScvmId) -> BTreeSet<(PulseFlag, Epoch)> {
        self.log
            .iter()
            .filter_map(|(_, e)| match e {
                Effect::SendPulse { path, flag, epoch, .. } if path.scvm == scvm => Some((*flag, *epoch)),
                _ => None,
            })
            .collect()
    }

    pub fn faults(&self) -> Vec<String> {
        self.log
            .iter()
            .filter_map(|(_, e)| match e {
                Effect::Journal(Event::Fault { what }) => Some(what.clone()),
                _ => None,
            })
            .collect()
    }

    pub fn cut(&mut self, scvm: ScvmId) {
        let private = Path { scvm, network: Network::Private };
        self.down.extend([storage(scvm), management(scvm), private]);
    }

    pub fn facts(&mut self, scvm: ScvmId) -> &mut Facts {
        self.facts.get_mut(&scvm).unwrap()
    }
}
