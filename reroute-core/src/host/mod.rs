//! The host's machine: pulses in, verdicts, moves and route changes out.
//!
//! | file | knows |
//! |---|---|
//! | [`io`] | inputs and effects |
//! | [`path`] | one path: silence, and when it means loss |
//! | [`case`] | what is held against a server, and what that is worth |
//! | [`verdict`] | one server: what its kernel says, and when it has failed |
//! | [`choice`] | the order of targets, the budget, the wait before a return |
//! | [`pulses`] | which pulse is due where, with which flags; what a reply changes |
//! | [`decide`] | stay, change the path, or ask for a move |
//! | [`dry`] | what would be done, where nothing may be |
//! | [`targets`] | what is fit to be gone to |
//! | [`sizes`] | whether full frames pass where pulses do |
//! | [`storage`] | a server that answers, and whose storage does not |
//! | [`client_reset`] | sockets that this kernel cannot destroy |
//! | [`evicted`] | an operator ended the login, or keeps this host away |
//! | [`answers`] | what Meta answers to what it was told |
//! | [`phase`], [`moves`] | a move from Meta's order to the arrival |
//! | [`route`] | the route: set, put back, adopted, refused |
//! | [`notes`] | what outlives the process besides the login |
//! | [`wishes`] | what operators want: a pinned place, an SCVM to be left |
//! | [`hypervisor`] | whether the domain of the local SCVM is dead |
//! | [`wire`] | a pulse as bytes |
//! | [`report`] | what Meta and operators are told |
//!
//! Everything that can fail comes back as an [`Input`]; nothing is assumed to have worked.

mod answers;
mod case;
pub(crate) mod choice;
mod client_reset;
mod decide;
mod dry;
mod evicted;
mod hypervisor;
mod io;
mod moves;
mod notes;
mod path;
mod phase;
mod pulses;
mod recorded;
mod report;
mod route;
mod sizes;
mod storage;
mod targets;
mod verdict;
pub mod wire;
mod wishes;

#[cfg(test)]
mod tests;

pub use case::{Source, is_enough};
pub use client_reset::{OldSocket, ResetStanding};
pub use dry::{Mode, ModeRefused};
pub use hypervisor::{Domain, KnownDomain, Life};
pub(crate) use io::Effects;
pub use io::{Effect, Input, Record, Settings};
pub use notes::Notes;
pub use pulses::PulseFlag;
pub use recorded::Start;
pub use report::{Local, ServerStanding};
pub use route::{Found, RouteFailure};
pub use sizes::{SizesTried, Tried};
pub use verdict::{Facts, Piece, Rank};
pub use wishes::{Pin, PinRefused};

use crate::duplicate;
use crate::ids::*;
use crate::proto::*;
use crate::timeline::Event;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The login this host acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Current {
    scvm: ScvmId,
    epoch: Epoch,
}

/// The record on disk: one write at a time, the newest wish wins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Disk {
    wanted: Record,
    written: Record,
    writing: bool,
    retry_at: Option<BootNs>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    settings: Settings,
    started: BootNs,
    /// SCVMs as this host prefers them.
    order: Vec<ScvmId>,
    position: BTreeMap<ScvmId, usize>,
    paths: BTreeMap<Path, path::PathState>,
    servers: BTreeMap<ScvmId, verdict::ServerState>,
    /// When the latest answered pulses left, newest last.
    answers: VecDeque<(BootNs, Path)>,
    last_answer: Option<BootNs>,
    /// When the last tick was due.
    ticked: BootNs,
    /// Pulses that left too late, and ticks that came too late.
    late: u64,
    carriers: BTreeMap<Network, bool>,

    meta_up: bool,
    meta_failed_at: Option<BootNs>,
    sessions: BTreeMap<ScvmId, SessionState>,
    /// Meta's view has been seen, and it has no login for this host.
    unknown_to_meta: bool,
    /// No better place is looked for before.
    improve_after: BootNs,
    /// A planned move is wanted and waits for a moment without calls in progress, since then.
    quiet_awaited: Option<BootNs>,
    /// Meta refused the target, until when it is not asked for again.
    refused: BTreeMap<ScvmId, BootNs>,
    /// Left because its storage was stuck, then.
    stuck: BTreeMap<ScvmId, BootNs>,
    reported_at: Option<BootNs>,

    /// Of the last leader whose order was followed.
    term: Term,
    login: Option<Current>,
    /// The epoch at which an operator ended the login: a new one is asked for from here.
    evicted: Option<evicted::Evicted>,
    /// An operator keeps this host away: no move is asked for before.
    blocked_until: Option<BootNs>,
    /// Up to here everything was let go.
    released: Option<Epoch>,
    /// `released` was found on disk and Meta has not spoken yet.
    released_before_start: bool,
    disk: Disk,
    phase: phase::Phase,
    /// `Arrived` that Meta has not taken yet.
    arrived: Option<(Epoch, Path, BootNs)>,
    last_gap_ns: Option<u64>,

    route: route::RouteState,
    budget: choice::Budget,
    hold_down: choice::HoldDown,
    /// Server process behind the login; another one means that this host's connections are void.
    incarnation: Incarnation,
    reset_due: bool,
    /// Sockets that could not be destroyed, since the last time there were any.
    client_reset: Option<client_reset::ClientReset>,
    /// What was last complained about, by subject, so that it is said once.
    faults: BTreeMap<&'static str, String>,

    notes: Notes,
    notes_written: Notes,
    notes_writing: bool,
    notes_retry_at: BootNs,
    /// Dry: what was last said would be done.
    would: Option<dry::Would>,
    /// The pinned place has not been reached since it was asked for: no wait before the host goes there.
    pin_is_new: bool,
    /// SCVMs that nobody may move to, by Meta's last view.
    draining: BTreeSet<ScvmId>,
    /// What operators want is not asked for again before.
    wish_after: BootNs,
    hypervisor: Option<hypervisor::Hypervisor>,
    sizes: Option<sizes::Sizes>,
    duplicate: Option<duplicate::Watch>,
}

impl Machine {
    /// `record` is what the last instance left on disk (default: nothing).
    pub fn new(settings: Settings, record: Record, now: BootNs) -> Machine {
        let order = choice::preference(settings.host, settings.local, &settings.scvms);
        let networks = |s: ScvmId| {
            let private = (s == settings.local).then_some(Network::Private);
            [Network::Storage, Network::Management].into_iter().chain(private)
        };
        // Those that are pulsed rarely take turns, so that no moment has to carry them all.
        let turns = (settings.rest_ns / settings.pulse_ns.max(1)).max(1);
        let first = |i: usize| now.plus(i.saturating_sub(3) as u64 % turns * settings.pulse_ns);
        let paths = order
            .iter()
            .enumerate()
            .flat_map(|(i, s)| networks(*s).map(move |network| (i, Path { scvm: *s, network })))
            .map(|(i, path)| (path, path::PathState::new(first(i), settings.standby_ns)))
            .collect();
        let login = record.scvm.map(|scvm| Current { scvm, epoch: record.epoch });
        Machine {
            started: now,
            position: order.iter().enumerate().map(|(i, s)| (*s, i)).collect(),
            paths,
            servers: order.iter().map(|s| (*s, verdict::ServerState::default())).collect(),
            answers: VecDeque::new(),
            last_answer: None,
            ticked: BootNs(now.0.saturating_sub(settings.pulse_ns)),
            late: 0,
            carriers: BTreeMap::new(),
            meta_up: false,
            meta_failed_at: None,
            sessions: BTreeMap::new(),
            unknown_to_meta: false,
            improve_after: now,
            quiet_awaited: None,
            refused: BTreeMap::new(),
            stuck: BTreeMap::new(),
            reported_at: None,
            term: record.term,
            login,
            evicted: None,
            blocked_until: None,
            released: record.released,
            released_before_start: record.released.is_some(),
            disk: Disk { wanted: record, written: record, writing: false, retry_at: None },
            phase: phase::Phase::Settled,
            arrived: None,
            last_gap_ns: None,
            route: route::RouteState::new(now),
            budget: choice::Budget::new(now),
            hold_down: choice::HoldDown::new(settings.hold_down_ns, settings.hold_down_max_ns, now),
            incarnation: Incarnation(0),
            reset_due: false,
            client_reset: None,
            faults: BTreeMap::new(),
            notes: Notes::default(),
            notes_written: Notes::default(),
            notes_writing: false,
            notes_retry_at: now,
            would: None,
            pin_is_new: false,
            draining: BTreeSet::new(),
            wish_after: now,
            hypervisor: None,
            sizes: None,
            duplicate: None,
            order,
            settings,
        }
    }

    /// The hypervisor can be asked: the local SCVM is the domain of this name. `boot`: of this node.
    pub fn with_hypervisor(mut self, domain: String, boot: u64) -> Machine {
        self.hypervisor = Some(hypervisor::Hypervisor::new(domain, boot));
        self
    }

    /// Others may claim this host's address: they are asked for.
    pub fn with_duplicate_watch(mut self) -> Machine {
        self.duplicate = Some(duplicate::Watch::default());
        self
    }

    pub fn handle(&mut self, input: Input, now: BootNs) -> Vec<Effect> {
        let mut fx = Effects::new();
        match input {
            Input::Tick { due } => self.tick(due, now, &mut fx),
            Input::Reply { path, sent_at, facts } => self.reply(path, sent_at, facts, now, &mut fx),
            Input::Sent { path, due, at, error } => self.sent(path, due, at, error),
            Input::MetaLink { up } => {
                self.meta_up = up;
                if up {
                    self.meta_failed_at = None;
                    self.report_to_meta(now, &mut fx);
                }
            }
            Input::Order(order) => self.order(order.term, order.order, now, &mut fx),
            Input::MetaAnswer { message, result } => self.meta_answer(message, result, now, &mut fx),
            Input::Interface { network, carrier } => self.interface(network, carrier, now, &mut fx),
            Input::RouteRead(found) => self.route_read(found, now, &mut fx),
            Input::RouteSet { path, result } => self.route_set(path, result, now, &mut fx),
            Input::SocketsReset(result) => self.sockets_reset(result, now, &mut fx),
            Input::SocketsStay(sockets) => self.sockets_stay(sockets, now, &mut fx),
            Input::SocketsFound(found) => self.sockets_found(found, now, &mut fx),
            Input::Persisted { record, result } => self.persisted(record, result, now, &mut fx),
            Input::NotesPersisted { notes, result } => self.notes_persisted(notes, result, now, &mut fx),
            Input::Adopt => self.adopt(now, &mut fx),
            Input::Pin(pin) => self.pin(pin, now, &mut fx),
            Input::SetMode { mode, actor } => self.set_mode(mode, actor, now, &mut fx),
            Input::SizesTried(result) => self.sizes_tried(result, now, &mut fx),
            Input::OwnAddress(answered) => self.own_address(answered, &mut fx),
            Input::Hypervisor { began, result } => self.domains_read(began, result, now, &mut fx),
        }
        fx
    }

    /// The beat of pulses to the active server, ns.
    pub fn pulse_ns(&self) -> u64 {
        self.settings.pulse_ns
    }

    fn tick(&mut self, due: BootNs, now: BootNs, fx: &mut Effects) {
        // What was missed is not made up for.
        self.ticked = due.max(BootNs(now.0.saturating_sub(self.settings.pulse_ns)));
        self.judge_lateness(now.since(due));
        self.pulse(now, due, fx);
        self.judge(now, fx);
        self.end_of_pin(now, fx);
        self.decide(now, fx);
        self.go_on(now, fx);
        self.watch_sockets(now, fx);
        self.tell_release(now, fx);
        self.write_record(now, fx);
        self.write_notes(now, fx);
        self.watch_domain(now, fx);
        self.try_sizes(now, fx);
        if self.has_carrier(Network::Storage) && self.duplicate.as_mut().is_some_and(|d| d.is_due(now)) {
            fx.push(Effect::AskOwnAddress);
        }
        if self.reported_at.is_none_or(|at| now.since(at) >= SEC) {
            self.report_to_meta(now, fx);
        }
    }

    fn interface(&mut self, network: Network, carrier: bool, now: BootNs, fx: &mut Effects) {
        self.carriers.insert(network, carrier);
        if !carrier {
            let lost: Vec<Path> = self.paths.keys().copied().filter(|p| p.network == network).collect();
            for path in lost {
                let former = self.paths.get_mut(&path).and_then(path::PathState::fail);
                self.tell_health(path, former, "no carrier on this host's interface", fx);
            }
            self.decide(now, fx);
        } else {
            fx.push(Effect::ReadRoute);
        }
    }

    fn own_address(&mut self, answered: Result<duplicate::Claims, String>, fx: &mut Effects) {
        let Some(watch) = &mut self.duplicate else { return };
        fx.extend(watch.answered(answered).map(|what| Effect::Journal(Event::Fault { what })));
        match watch.found() {
            Some(found) => self.faults.insert("duplicate", found.clone()),
            None => self.faults.remove("duplicate"),
        };
    }

    fn has_carrier(&self, network: Network) -> bool {
        self.carriers.get(&network).copied().unwrap_or(true)
    }

    /// Journals a fault when it begins or changes.
    fn fault(&mut self, subject: &'static str, what: String, fx: &mut Effects) {
        if self.faults.get(subject) != Some(&what) {
            fx.push(Effect::Journal(Event::Fault { what: what.clone() }));
            self.faults.insert(subject, what);
        }
    }

    fn want_record(&mut self, record: Record, now: BootNs, fx: &mut Effects) {
        self.disk.wanted = record;
        self.disk.retry_at = None;
        self.write_record(now, fx);
    }

    fn write_record(&mut self, now: BootNs, fx: &mut Effects) {
        let waits = self.disk.retry_at.is_some_and(|at| now < at);
        if !self.disk.writing && !waits && self.disk.wanted != self.disk.written {
            self.disk.writing = true;
            fx.push(Effect::Persist(self.disk.wanted));
        }
    }

    fn persisted(&mut self, record: Record, result: Result<(), String>, now: BootNs, fx: &mut Effects) {
        self.disk.writing = false;
        match result {
            Ok(()) => {
                self.disk.written = record;
                self.disk.retry_at = None;
                self.faults.remove("record");
                self.release(now, fx);
                self.tell_release(now, fx);
            }
            Err(why) => {
                // Nothing is known about what stands on disk now, so whatever is wanted is written again.
                self.disk.retry_at = Some(now.plus(100 * MS));
                self.fault("record", format!("the login record was not written: {why}"), fx);
            }
        }
        self.write_record(now, fx);
    }
}
