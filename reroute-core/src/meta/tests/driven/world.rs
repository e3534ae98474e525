//! Hosts, SCVMs with their agents, and the store, around Meta.

use super::*;

pub(super) struct Server {
    /// Its agent is there and heard.
    pub(super) up: bool,
    pub(super) open: bool,
    pub(super) health: ServerHealth,
    pub(super) driver: Driver,
    pub(super) due: Vec<(u64, Command)>,
    /// What it gets instead of an answer from X.
    pub(super) broken: Option<DriveError>,
}

pub(super) struct World {
    pub(super) now: u64,
    pub(super) seq: u64,
    pub(super) master: SessionMaster,
    pub(super) store: BTreeMap<HostId, Versioned>,
    pub(super) servers: BTreeMap<ScvmId, Server>,
    pub(super) hop: Option<Ipv4Addr>,
    pub(super) changes: Vec<(u64, ScvmId, Ipv4Addr)>,
    pub(super) journal: Vec<(u64, Event)>,
    /// Who finds that SCVM silent when asked.
    pub(super) silent: Vec<(ScvmId, ScvmId)>,
    /// What Y and Z find of paths.
    pub(super) failed_paths: BTreeMap<HostId, Vec<Path>>,
    /// Y and Z tell of management paths, too: those are well.
    pub(super) management: bool,
}

pub(super) fn hop(scvm: ScvmId) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, scvm.0 as u8)
}

pub(super) fn by_storage(scvm: ScvmId) -> Path {
    Path { scvm, network: Network::Storage }
}

pub(super) fn two_more_hosts(term: u64) -> Settings {
    let mut settings = settings(term);
    settings.hosts[0].has_agent = false;
    settings.longest_session_ns = 8000 * MS;
    for id in [Y, Z] {
        let host = HostInfo { id, name: format!("h{}", id.0), has_agent: true, ..settings.hosts[0].clone() };
        settings.hosts.push(host);
    }
    settings
}

pub(super) fn driven() -> DrivenSettings {
    DrivenSettings {
        hosts: [X].into(),
        hold_down_ns: 3 * SEC,
        hold_down_max_ns: 180 * SEC,
        rehearse_ns: 60 * SEC,
    }
}

impl World {
    pub(super) fn new() -> World {
        let now = 100 * SEC;
        let hops = [A, B, C].into_iter().flat_map(|scvm| {
            let management = Ipv4Addr::new(10, 1, 0, scvm.0 as u8);
            [(hop(scvm), by_storage(scvm)), (management, Path { scvm, network: Network::Management })]
        });
        let settings = esxi::Settings {
            service: SERVICE,
            hops: hops.collect(),
            rehearse_ns: 60 * SEC,
            forget_ns: esxi::Settings::FORGET_NS,
        };
        let server = || Server {
            up: true,
            open: false,
            health: well(),
            driver: Driver::new(settings.clone(), [X]),
            due: Vec::new(),
            broken: None,
        };
        World {
            now,
            seq: 0,
            master: SessionMaster::new(two_more_hosts(1), BTreeMap::new(), BootNs(now))
                .with_driven(driven(), BootNs(now)),
            store: BTreeMap::new(),
            servers: [A, B, C].map(|s| (s, server())).into(),
            hop: Some(hop(A)),
            changes: Vec::new(),
            journal: Vec::new(),
            silent: Vec::new(),
            failed_paths: BTreeMap::new(),
            management: false,
        }
    }

    pub(super) fn input(&mut self, input: Input) {
        let effects = self.master.handle(input, BootNs(self.now));
        self.effects(effects);
    }

    pub(super) fn effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::ConfirmLease => self.input(Input::LeaseConfirmed),
                Effect::Journal(event) => self.journal.push((self.now, event)),
                Effect::Store { host, expected, record } => {
                    let version = expected.unwrap_or(0) + 1;
                    self.store.insert(host, Versioned { version, record });
                    self.input(Input::StoreDone { host, version });
                }
                Effect::StoreDraining { scvm, .. } => {
                    self.input(Input::DrainingStored { scvm, result: Ok(()) })
                }
                Effect::Push { node: NodeId::Scvm(id), order } if self.servers[&id].up => {
                    self.obey(id, order)
                }
                _ => {}
            }
        }
    }

    pub(super) fn say(&mut self, from: NodeId, msg: ToMeta) -> MetaReply {
        self.seq += 1;
        let (reply, effects) = send(&mut self.master, from, self.seq, msg, self.now);
        self.effects(effects);
        reply
    }

    pub(super) fn obey(&mut self, id: ScvmId, order: Order) {
        let from = NodeId::Scvm(id);
        match order {
            Order::Prepare { host, epoch } => {
                drop(self.say(from, ToMeta::Prepared { host, epoch, error: None }))
            }
            Order::Revoke { host, epoch, .. } => {
                let proof = if self.servers[&id].health.process_alive {
                    FenceProof::Drained
                } else {
                    FenceProof::ProcessDead
                };
                self.say(from, ToMeta::Fenced { host, epoch, proof });
            }
            Order::Admit { host, epoch } => {
                drop(self.say(from, ToMeta::Admitted { host, epoch, error: None }))
            }
            Order::Drive { host, wish } => self.drives(id, esxi::Input::Appointed { host, wish }),
            Order::AskPeer { scvm } if self.silent.contains(&(id, scvm)) => {
                self.say(from, ToMeta::PeerSilent { scvm });
            }
            _ => {}
        }
    }

    pub(super) fn drives(&mut self, id: ScvmId, input: esxi::Input) {
        let now = self.now;
        let server = self.servers.get_mut(&id).unwrap();
        for effect in server.driver.handle(input, BootNs(now)) {
            match effect {
                esxi::Effect::Run { command, .. } => {
                    self.servers.get_mut(&id).unwrap().due.push((now + SSH, command))
                }
                esxi::Effect::Report { host, report } => {
                    drop(self.say(NodeId::Scvm(id), ToMeta::Driven { host, report }))
                }
                esxi::Effect::Journal(event) => self.journal.push((now, event)),
            }
        }
    }

    pub(super) fn carry_out(&mut self, id: ScvmId, command: Command) {
        let result = match (&self.servers[&id].broken, command) {
            (Some(error), _) => Err(error.clone()),
            (None, Command::Replace { from, .. }) if from != self.hop => {
                Err(DriveError::CommandFailed { code: 1, said: "no such route".into() })
            }
            (None, command) => {
                if let Command::Replace { to, .. } = command {
                    self.hop = Some(to);
                    self.changes.push((self.now, id, to));
                }
                let row =
                    self.hop.map_or(String::new(), |at| format!("192.168.33.2 255.255.255.255 {at} vmk1\n"));
                Ok(format!(
                    "VMkernel Routes:\nNetwork Netmask Gateway Interface\n10.0.0.0 255.255.255.0 Local Subnet vmk1\n{row}"
                ))
            }
        };
        self.drives(id, esxi::Input::Ran { host: X, result, took_ns: SSH });
    }

    pub(super) fn step(&mut self) {
        self.now += STEP;
        let beat = self.now.is_multiple_of(100 * MS);
        for id in [A, B, C] {
            let server = &self.servers[&id];
            if !server.up {
                continue;
            }
            if beat {
                let (term, health) = (self.master.term(), server.health.clone());
                let msg = match server.open {
                    true => ToMeta::KeepAlive { term, health },
                    false => ToMeta::SessionOpen { boot: Incarnation(1), health },
                };
                let open = matches!(
                    self.say(NodeId::Scvm(id), msg),
                    MetaReply::Ok { .. } | MetaReply::Session { .. }
                );
                self.servers.get_mut(&id).unwrap().open = open;
            }
            let now = self.now;
            while let Some((_, command)) = self.servers.get_mut(&id).unwrap().due.pop_if(|(at, _)| *at <= now)
            {
                self.carry_out(id, command);
            }
            self.drives(id, esxi::Input::Tick);
        }
        if self.now.is_multiple_of(SEC) {
            for id in [Y, Z] {
                self.report(id);
            }
        }
        if beat {
            self.call();
        }
        self.input(Input::Tick);
    }

    pub(super) fn report(&mut self, id: HostId) {
        let failed = self.failed_paths.get(&id).cloned().unwrap_or_default();
        let paths = [A, B, C].map(|scvm| {
            let path = by_storage(scvm);
            let state = if failed.contains(&path) { Health::Failed } else { Health::Healthy };
            PathHealth { path, state, rtt_ns: None, last_reply_age_ns: None }
        });
        let more = [A, B, C].into_iter().filter(|_| self.management).map(|scvm| PathHealth {
            path: Path { scvm, network: Network::Management },
            state: Health::Healthy,
            rtt_ns: None,
            last_reply_age_ns: None,
        });
        let report = HostReport { paths: paths.into_iter().chain(more).collect(), ..HostReport::default() };
        self.say(NodeId::Host(id), ToMeta::HostReport { report });
    }

    /// X calls where its next hop leads, and wants to be served there.
    pub(super) fn call(&mut self) {
        let at = [A, B, C].into_iter().find(|scvm| self.hop == Some(hop(*scvm))).unwrap_or(A);
        let server = &self.servers[&at];
        if server.up && server.open && server.health.process_alive && self.at() != Some(at) {
            self.say(
                NodeId::Scvm(at),
                ToMeta::LoginWanted { host: X, closed: Epoch(0), connections: 1, age_ns: 0 },
            );
        }
    }

    pub(super) fn run(&mut self, ns: u64) {
        let end = self.now + ns;
        while self.now < end {
            self.step();
        }
    }

    /// How long it took.
    pub(super) fn until(&mut self, what: &str, within: u64, done: impl Fn(&World) -> bool) -> u64 {
        let began = self.now;
        while !done(self) {
            assert!(self.now - began < within, "{what}: not within {} ms: {:?}", within / MS, self.view());
            self.step();
        }
        self.now - began
    }

    pub(super) fn at(&self) -> Option<ScvmId> {
        match self.store.get(&X)?.record.login.state {
            LoginState::At { scvm, .. } => Some(scvm),
            _ => None,
        }
    }

    pub(super) fn view(&self) -> crate::esxi::DrivenView {
        let view = self.master.view(BootNs(self.now));
        view.hosts.into_iter().find(|h| h.host == X).unwrap().driven.unwrap()
    }

    pub(super) fn alarms(&self) -> String {
        self.master.view(BootNs(self.now)).alarms.join("\n")
    }

    pub(super) fn scvm(&mut self, id: ScvmId) -> &mut Server {
        self.servers.get_mut(&id).unwrap()
    }

    pub(super) fn wanted(&self) -> Vec<(Path, String, usize)> {
        let wishes = self.journal.iter().filter_map(|(_, e)| match e {
            Event::NextHopWanted { to, reason, evidence, .. } => Some((*to, reason.clone(), evidence.len())),
            _ => None,
        });
        wishes.collect()
    }
}
