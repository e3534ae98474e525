//! The route to the service address: as wanted, as it stands, as others want it.

use super::phase::{Phase, Trip};
use super::*;
use serde::{Deserialize, Serialize};

/// The route as it was read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Found {
    None,
    /// With our mark, to an address we know.
    Ours(Path),
    /// With our mark, but leading to no address of the configuration, or more than one route.
    OursElsewhere(String),
    /// Somebody else's; `path` if it leads to an address we know.
    Foreign {
        what: String,
        path: Option<Path>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RouteFailure {
    /// Another owner's route stands there and was left alone.
    Foreign(String),
    Failed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum NextStep {
    Route,
    Sockets,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RouteState {
    /// `None`: not read yet.
    pub found: Option<Found>,
    /// Where it shall lead; nothing before the first login.
    pub wanted: Option<Path>,
    pub since: BootNs,
    pub reason: String,
    /// An operator allowed to take a foreign one over.
    pub adopt: bool,
}

impl RouteState {
    pub fn new(now: BootNs) -> RouteState {
        RouteState { found: None, wanted: None, since: now, reason: "found at start".into(), adopt: false }
    }
    pub fn stands(&self, path: Path) -> bool {
        self.found == Some(Found::Ours(path))
    }
    pub fn want(&mut self, path: Path, now: BootNs) {
        if self.wanted != Some(path) {
            self.wanted = Some(path);
            self.since = now;
        }
    }
    /// Another owner's route blocks every move.
    pub fn blocked_by(&self) -> Option<&str> {
        match &self.found {
            Some(Found::Foreign { what, .. }) if !self.adopt => Some(what),
            _ => None,
        }
    }
}

impl Machine {
    /// Where this host's I/O goes now.
    pub(super) fn path_now(&self) -> Path {
        match (&self.route.wanted, &self.route.found) {
            (Some(path), _) | (None, Some(Found::Ours(path))) => *path,
            _ => Path { scvm: self.settings.local, network: Network::Private },
        }
    }

    /// By which network to go to a server: the wished one, the best healthy one, else the best not known to be lost.
    pub(super) fn path_to(&self, scvm: ScvmId, wish: Option<Path>) -> Path {
        let networks = [Network::Storage, Network::Management];
        let paths = networks.map(|network| Path { scvm, network });
        let wish = wish.filter(|p| p.scvm == scvm && self.health(*p) != Health::Failed);
        wish.or_else(|| paths.into_iter().find(|p| self.health(*p) == Health::Healthy))
            .or_else(|| paths.into_iter().find(|p| self.health(*p) != Health::Failed))
            .unwrap_or(paths[0])
    }

    pub(super) fn route_read(&mut self, found: Result<Found, String>, now: BootNs, fx: &mut Effects) {
        let found = match found {
            Ok(found) => found,
            Err(why) => return self.fault("route", format!("the route cannot be read: {why}"), fx),
        };
        let first = self.route.found.is_none();
        let changed = self.route.found.as_ref() != Some(&found);
        self.route.found = Some(found.clone());
        if changed {
            self.route.adopt = false; // leave was given for the one that stood there
        }
        match &found {
            Found::Foreign { what, .. } => {
                if changed && self.route.wanted.is_some() {
                    fx.push(Effect::Journal(Event::RouteDisturbed { found: what.clone() }));
                }
                let advice = "remove it, or take it over with `reroute-agent route adopt`";
                self.fault("foreign", format!("a route that is not ours stands ({what}): {advice}"), fx);
            }
            _ => {
                self.faults.remove("foreign");
            }
        }
        // What a former instance has set goes on serving: it is what we want, if it leads where the login is.
        if first
            && let (Found::Ours(path), Some(login)) = (&found, self.login)
            && path.scvm == login.scvm
        {
            self.route.want(*path, now);
            self.route.reason = "adopted: a former instance of this agent had set it".into();
            // It may have ended between the route and the sockets: those from before would wait for ever. Sockets of
            // another source can reach nobody by this path, and would never know either.
            if self.released.is_some_and(|released| released < login.epoch) {
                let reason = self.route.reason.clone();
                let trip = Trip {
                    path: *path,
                    reason,
                    since: now,
                    login_is_new: true,
                    same_server: false,
                    keep: None,
                };
                return self.go(trip, now, fx);
            }
            fx.push(Effect::DestroySockets { keep: Some(path.network) });
        }
        match &self.phase {
            Phase::Arriving(arriving) => {
                let waits = arriving.step == NextStep::Route && self.route.blocked_by().is_none();
                if changed && waits {
                    self.take_step(now, fx);
                }
            }
            _ => self.put_back(changed, now, fx),
        }
    }

    /// The route is gone or leads elsewhere, by another hand or by the kernel's flush: set it again when its interface
    /// can carry it.
    fn put_back(&mut self, changed: bool, now: BootNs, fx: &mut Effects) {
        let Some(login) = self.login.filter(|l| self.servers.contains_key(&l.scvm)) else { return };
        if !matches!(self.phase, Phase::Settled | Phase::Asked(_)) || self.route.blocked_by().is_some() {
            return;
        }
        let wanted = match self.route.wanted {
            Some(path) => path,
            // A login without a route of ours: a former instance's, flushed while nobody watched.
            None if matches!(self.route.found, Some(Found::None)) && self.may_affirm(login.epoch) => {
                self.path_to(login.scvm, None)
            }
            None => return,
        };
        if self.route.stands(wanted) {
            return;
        }
        let found = match &self.route.found {
            Some(Found::None) => "no route",
            Some(Found::Ours(path)) => &format!("a route to {path}"),
            Some(Found::OursElsewhere(what)) | Some(Found::Foreign { what, .. }) => what,
            None => return,
        };
        if changed {
            fx.push(Effect::Journal(Event::RouteDisturbed { found: found.to_string() }));
        }
        if self.has_carrier(wanted.network) {
            let reason = format!("put back: {found} was found");
            // All connections: one that was made elsewhere meanwhile has shut those by this path (`reroute-ebpf/src/path.rs`).
            let (login_is_new, same_server) = (false, true);
            self.go(
                Trip { path: wanted, reason, since: now, login_is_new, same_server, keep: None },
                now,
                fx,
            );
        }
    }

    pub(super) fn route_set(
        &mut self,
        path: Path,
        result: Result<(), RouteFailure>,
        now: BootNs,
        fx: &mut Effects,
    ) {
        if result.is_ok() {
            self.route.found = Some(Found::Ours(path));
            self.route.adopt = false;
            self.faults.remove("route");
            self.faults.remove("foreign");
        }
        let Phase::Arriving(arriving) = &mut self.phase else { return };
        if arriving.trip.path != path || arriving.step != NextStep::Route {
            return;
        }
        match result {
            Ok(()) => {
                arriving.step = NextStep::Sockets;
                let reason = arriving.trip.reason.clone();
                self.route.since = now;
                self.route.reason = reason.clone();
                let epoch = self.login.map_or(Epoch(0), |l| l.epoch);
                // The sockets first: the client's gap ends there.
                self.take_step(now, fx);
                fx.push(Effect::Journal(Event::RouteReplaced { path, epoch, reason }));
            }
            Err(failure) => {
                arriving.retry_at = Some(now.plus(100 * MS));
                match failure {
                    RouteFailure::Foreign(what) => {
                        self.route.found = Some(Found::Foreign { what: what.clone(), path: None });
                        self.route.adopt = false;
                        self.fault("foreign", what, fx);
                    }
                    RouteFailure::Failed(why) => self.fault("route", why, fx),
                }
            }
        }
    }

    /// An operator gave leave to take over what stands there.
    pub(super) fn adopt(&mut self, now: BootNs, fx: &mut Effects) {
        let Some(Found::Foreign { path, .. }) = self.route.found else { return };
        self.route.adopt = true;
        self.faults.remove("foreign");
        match (&self.phase, self.login) {
            (Phase::Arriving(_), _) => self.take_step(now, fx),
            (Phase::Settled | Phase::Asked(_), Some(login)) => {
                // It may lead to the right server already, or away from it: either way ours is set.
                let path = self.route.wanted.unwrap_or_else(|| self.path_to(login.scvm, path));
                let reason = "an operator let a foreign route be taken over".to_string();
                let (login_is_new, same_server) = (false, true);
                self.go(Trip { path, reason, since: now, login_is_new, same_server, keep: None }, now, fx);
            }
            // Without a login nothing is changed yet; the first login takes it over.
            _ => {}
        }
    }

    /// Retries and repeats, whatever waits for its time.
    pub(super) fn go_on(&mut self, now: BootNs, fx: &mut Effects) {
        if self.arrived.is_some_and(|(.., at)| now.since(at) >= 200 * MS)
            && let Some((epoch, path, at)) = &mut self.arrived
        {
            *at = now;
            fx.push(Effect::Meta(ToMeta::Arrived { epoch: *epoch, path: *path }));
        }
        if self.phase.wants_release() && self.meta_failed_at.is_none_or(|at| now.since(at) >= 200 * MS) {
            self.release(now, fx);
        }
        self.put_back(false, now, fx);
        let Phase::Arriving(arriving) = &mut self.phase else { return };
        if arriving.retry_at.is_none_or(|at| now < at) {
            return;
        }
        // The way there may have died meanwhile while another one lives.
        let (path, step) = (arriving.trip.path, arriving.step);
        if step == NextStep::Route {
            let other = self.path_to(path.scvm, Some(path));
            if let Phase::Arriving(arriving) = &mut self.phase {
                arriving.trip.path = other;
            }
            self.route.want(other, now);
        }
        self.take_step(now, fx);
    }
}
