//! A move, from the question to the arrival.
//!
//! `Settled → Asked → Moving → Arriving → Settled`. Meta's orders rule: `Moving` and `At` are followed from whatever
//! phase, when their epoch is newer than all that was seen; older ones are ignored.

use super::phase::{Arriving, LettingGo, Moving, Phase, Trip};
use super::route::NextStep;
use super::*;

/// A move given up within this has cost no connection anything: TCP has not even sent again.
const HARMLESS_NS: u64 = 200 * MS;

impl Machine {
    /// The newest epoch that Meta is known to have given out for this host.
    pub(super) fn newest_epoch(&self) -> Epoch {
        let moving = match &self.phase {
            Phase::Moving(moving) => moving.epoch,
            _ => Epoch(0),
        };
        let ended = self.evicted.as_ref().map_or(Epoch(0), |e| e.epoch);
        moving.max(ended).max(self.login.map_or(Epoch(0), |l| l.epoch))
    }

    pub(super) fn released_on_disk(&self, epoch: Epoch) -> bool {
        self.disk.written.released.is_some_and(|released| released >= epoch)
    }

    pub(super) fn order(&mut self, term: Term, order: Order, now: BootNs, fx: &mut Effects) {
        if matches!(order, Order::Moving { .. } | Order::At { .. } | Order::Evicted { .. }) {
            // A leader that does not know that it is over may confirm what its successor has moved, to an agent that
            // has forgotten all but its record.
            if term < self.term {
                let what = format!(
                    "an order of {term}, which is over ({} is known), is ignored; if Meta's store was replaced by an older one, move login.json out of [host] state_dir and restart this agent",
                    self.term
                );
                return self.fault("term", what, fx);
            }
            if self.is_dry() {
                let what = "Meta has a login of this host on record, and this host is dry: `reroute-agent route auto` takes it up";
                return self.fault("dry", what.into(), fx);
            }
            self.term = term;
            self.faults.remove("term");
        }
        match order {
            Order::View { view } => {
                self.sessions = view.sessions.iter().map(|s| (s.scvm, s.state)).collect();
                if let Phase::Moving(moving) = &mut self.phase {
                    moving.target_lost = has_no_session(self.sessions.get(&moving.to));
                }
                self.draining = view.draining.iter().map(|d| d.scvm).collect();
                self.unknown_to_meta = !view.logins.iter().any(|l| l.login.host == self.settings.host);
            }
            Order::Moving { from, from_epoch, to, epoch } => {
                self.moving(from, from_epoch, to, epoch, now, fx);
            }
            Order::At { scvm, epoch } => self.at(scvm, epoch, now, fx),
            Order::Evicted { from_epoch, epoch, reason } => self.evict(from_epoch, epoch, reason, now, fx),
            Order::MoveRefused { to, error } => self.move_refused(to, error, now, fx),
            Order::AskDomain { scvm, host, epoch } => self.domain_asked(scvm, host, epoch, now, fx),
            // Not for a host: an SCVM's orders, and the sign of life.
            Order::Hello { .. }
            | Order::Prepare { .. }
            | Order::Revoke { .. }
            | Order::Admit { .. }
            | Order::ResetClient { .. }
            | Order::Blocks { .. }
            | Order::Drive { .. }
            | Order::AskPeer { .. } => {}
        }
    }

    fn moving(
        &mut self,
        from: Option<ScvmId>,
        from_epoch: Epoch,
        to: ScvmId,
        epoch: Epoch,
        now: BootNs,
        fx: &mut Effects,
    ) {
        if let Phase::Moving(moving) = &mut self.phase
            && moving.epoch == epoch
        {
            moving.released_told = false; // Meta asks again: it has not heard
            return self.release(now, fx);
        }
        if !self.believes(to, epoch, from_epoch < epoch, fx) || self.is_past(epoch, fx) {
            return;
        }
        if epoch == self.newest_epoch() {
            return;
        }
        let ask = self.phase.ask().filter(|ask| ask.to.scvm == to).cloned();
        let go = |epoch| LettingGo { epoch, closed: false, idle_told_at: None, idle_taken: false };
        // Since when nobody has served this host: another target, or the way back, is the same story.
        let (mut letting_go, since, departed) = match std::mem::replace(&mut self.phase, Phase::Settled) {
            Phase::Moving(before) => {
                let mut letting_go = before.letting_go;
                if before.to != to {
                    // It may have admitted this host without anybody having heard of it.
                    letting_go.insert(before.to, go(before.epoch));
                    self.released = self.released.max(Some(before.epoch));
                }
                (letting_go, before.since, !before.planned)
            }
            _ => (BTreeMap::new(), now, false),
        };
        // A server need not be shut for itself to open.
        letting_go.remove(&to);
        if let Some(from) = from {
            letting_go.insert(from, go(from_epoch));
        }
        if let Some(login) = self.login {
            letting_go.entry(login.scvm).or_insert(go(login.epoch));
        }
        // Meta, which has just taken it as a target, knows better.
        self.refused.remove(&to);
        self.faults.remove("blocked");
        self.budget.spend(now);
        // Who had no login has left nobody.
        let leaves = self.login.is_some() || from.is_some();
        if leaves && ask.as_ref().is_some_and(|ask| !ask.planned) && !departed {
            self.hold_down.departed(now);
        }
        self.released = self.released.max((from_epoch.0 > 0).then_some(from_epoch));
        self.released = self.released.max(self.login.map(|l| l.epoch));
        self.released_before_start = false;
        self.phase = Phase::Moving(Moving {
            to,
            epoch,
            letting_go,
            from_epoch,
            since,
            released_told: false,
            planned: ask.as_ref().is_some_and(|ask| ask.planned),
            ask,
            target_lost: false,
            asked_at: None,
            news_at: now,
        });
        let login = self.login;
        let record = Record {
            epoch: login.map_or(from_epoch, |l| l.epoch.max(from_epoch)),
            scvm: login.map(|l| l.scvm).or(from),
            released: self.released,
            term: self.term,
        };
        self.want_record(record, now, fx);
        self.release(now, fx);
    }

    /// Lets go, once the record of it is on disk: RELEASE on every network at once, then Meta is told.
    pub(super) fn release(&mut self, now: BootNs, fx: &mut Effects) {
        let Phase::Moving(moving) = &self.phase else { return };
        if moving.released_told || self.released.is_some_and(|released| !self.released_on_disk(released)) {
            return;
        }
        let from_epoch = moving.from_epoch;
        let servers: Vec<ScvmId> =
            moving.letting_go.iter().filter(|(_, l)| !l.closed).map(|(scvm, _)| *scvm).collect();
        for path in self.paths.keys().filter(|p| servers.contains(&p.scvm)) {
            fx.push(self.pulse_to(*path, now));
        }
        fx.push(Effect::Meta(ToMeta::Released { epoch: from_epoch }));
        if from_epoch.0 > 0 {
            fx.push(Effect::Journal(Event::Released { epoch: from_epoch }));
        }
        if let Phase::Moving(moving) = &mut self.phase {
            moving.released_told = true;
        }
    }

    /// A reply from a server that is being let go of.
    pub(super) fn closed_seen(&mut self, scvm: ScvmId, facts: &Facts, now: BootNs, fx: &mut Effects) {
        let Phase::Moving(moving) = &mut self.phase else { return };
        let Some(letting_go) = moving.letting_go.get_mut(&scvm) else { return };
        let epoch = letting_go.epoch;
        letting_go.closed |= facts.is_closed_for(epoch);
        let told =
            letting_go.idle_taken || letting_go.idle_told_at.is_some_and(|at| now.since(at) < 100 * MS);
        if facts.is_idle_for(epoch) && moving.released_told && !told {
            letting_go.idle_told_at = Some(now);
            fx.push(Effect::Meta(ToMeta::FencedByPulse { scvm, epoch }));
        }
    }

    /// Meta knows that this server is shut, or does not wait for it.
    pub(super) fn fence_known(&mut self, scvm: ScvmId, epoch: Epoch, now: BootNs) {
        if let Phase::Moving(moving) = &mut self.phase
            && let Some(going) = moving.letting_go.get_mut(&scvm)
            && going.epoch == epoch
            && !std::mem::replace(&mut going.idle_taken, true)
        {
            moving.news_at = now;
        }
    }

    fn at(&mut self, scvm: ScvmId, epoch: Epoch, now: BootNs, fx: &mut Effects) {
        if !self.believes(scvm, epoch, true, fx) || self.is_past(epoch, fx) {
            return;
        }
        if let Some(login) = self.login.filter(|l| l.epoch == epoch) {
            if login.scvm != scvm {
                let what = format!("Meta names {scvm} at {epoch}, where this host has {}", login.scvm);
                return self.fault("login", what, fx);
            }
            return self.confirmed(login, now, fx);
        }
        // A former instance's release is older than this one; and who was shut out has lost connections.
        let harmless = match &self.phase {
            _ if self.evicted.is_some() => false,
            Phase::Moving(moving) => now.since(moving.since) < HARMLESS_NS,
            _ => !self.released_before_start,
        };
        let (since, reason, wish) = match &self.phase {
            Phase::Moving(moving) => (
                moving.since,
                moving.ask.as_ref().map_or_else(|| "Meta moved the login".into(), |a| a.reason.clone()),
                moving.ask.as_ref().map(|ask| ask.to),
            ),
            _ => (now, "Meta has the login there".to_string(), None),
        };
        self.login = Some(Current { scvm, epoch });
        self.evicted = None;
        self.faults.remove("evicted");
        self.released_before_start = false;
        self.unknown_to_meta = false;
        self.incarnation = Incarnation(0);
        self.reset_due = false;
        self.phase = Phase::Settled;
        let record = Record { epoch, scvm: Some(scvm), released: self.released, term: self.term };
        self.want_record(record, now, fx);

        let here = match (self.route.wanted, &self.route.found) {
            (Some(path), _) if path.scvm == scvm => Some(path),
            (None, Some(Found::Ours(path))) if path.scvm == scvm => Some(*path),
            _ => None,
        };
        match here.filter(|p| self.health(*p) != Health::Failed) {
            // A planned move was given up, for one: the same server, a new epoch, nothing else changes.
            Some(path) if self.route.stands(path) => {
                self.route.want(path, now);
                // Not at once again: whatever held the drain up is still there.
                self.hold_down.departed(now);
                self.improve_after = now.plus(self.hold_down.wait_ns(now).max(10 * SEC));
                self.wish_after = self.improve_after;
                if harmless {
                    self.has_arrived(epoch, path, now, fx);
                } else {
                    // What was sent meanwhile was dropped there: the client's TCP tries again ever more rarely by
                    // now, and a new connection is at once.
                    let same_server = true;
                    self.go(
                        Trip { path, reason, since, login_is_new: true, same_server, keep: None },
                        now,
                        fx,
                    );
                }
            }
            _ => {
                let path = self.path_to(scvm, wish);
                let same_server = here.is_some();
                self.go(Trip { path, reason, since, login_is_new: true, same_server, keep: None }, now, fx);
            }
        }
    }

    /// Meta says what this host has already.
    fn confirmed(&mut self, login: Current, now: BootNs, fx: &mut Effects) {
        if std::mem::take(&mut self.released_before_start)
            && self.released.is_some_and(|released| released >= login.epoch)
        {
            // A former instance had let go, and Meta, which gives out every epoch, says that nothing came of it.
            self.released = None;
            let (epoch, scvm) = (login.epoch, Some(login.scvm));
            self.want_record(Record { epoch, scvm, released: None, term: self.term }, now, fx);
        }
        if matches!(self.phase, Phase::Settled | Phase::Asked(_)) && self.route.found.is_some() {
            match self.route.wanted {
                Some(path) if path.scvm == login.scvm => self.has_arrived(login.epoch, path, now, fx),
                _ => {
                    let path = self.path_to(login.scvm, None);
                    let reason = "the login stands there".to_string();
                    let (login_is_new, same_server) = (true, false);
                    self.go(
                        Trip { path, reason, since: now, login_is_new, same_server, keep: None },
                        now,
                        fx,
                    );
                }
            }
        }
    }

    /// Sets out: route, then sockets, then the news.
    pub(super) fn go(&mut self, trip: Trip, now: BootNs, fx: &mut Effects) {
        let step = if self.route.stands(trip.path) { NextStep::Sockets } else { NextStep::Route };
        self.route.want(trip.path, now);
        self.phase = Phase::Arriving(Arriving { trip, step, retry_at: None });
        self.take_step(now, fx);
    }

    /// Emits what the present step of the arrival needs.
    pub(super) fn take_step(&mut self, now: BootNs, fx: &mut Effects) {
        let adopt = self.route.adopt;
        let blocked = self.route.blocked_by().is_some();
        let Phase::Arriving(arriving) = &mut self.phase else { return };
        // A result that never comes back must not end the story.
        arriving.retry_at = Some(now.plus(SEC));
        fx.push(match arriving.step {
            // Not ours to touch: look whether it still stands.
            NextStep::Route if blocked => Effect::ReadRoute,
            NextStep::Route => Effect::ReplaceRoute { path: arriving.trip.path, adopt },
            NextStep::Sockets => Effect::DestroySockets { keep: arriving.trip.keep },
        });
    }

    pub(super) fn sockets_reset(&mut self, result: Result<u32, String>, now: BootNs, fx: &mut Effects) {
        match result {
            Ok(count) => {
                self.faults.remove("sockets");
                fx.push(Effect::Journal(Event::SocketsReset { count }));
                self.sockets_done(now, fx);
            }
            Err(why) => {
                self.fault("sockets", format!("old sockets were not destroyed: {why}"), fx);
                match &mut self.phase {
                    Phase::Arriving(arriving) => arriving.retry_at = Some(now.plus(100 * MS)),
                    _ => self.reset_due = true,
                }
            }
        }
    }

    /// The last step of an arrival.
    pub(super) fn sockets_done(&mut self, now: BootNs, fx: &mut Effects) {
        let Phase::Arriving(arriving) = &self.phase else { return };
        if arriving.step != NextStep::Sockets {
            return;
        }
        let Trip { path, since, login_is_new: new, .. } = arriving.trip;
        self.last_gap_ns = Some(now.since(since));
        self.phase = Phase::Settled;
        match self.login.filter(|l| l.scvm == path.scvm && new) {
            Some(login) => self.has_arrived(login.epoch, path, now, fx),
            None => self.report_to_meta(now, fx),
        }
    }

    fn has_arrived(&mut self, epoch: Epoch, path: Path, now: BootNs, fx: &mut Effects) {
        // Affirmed at once on every network: the lease must not wait for the next tick.
        for path in self.paths.keys().filter(|p| p.scvm == path.scvm) {
            fx.push(self.pulse_to(*path, now));
        }
        self.phase = Phase::Settled;
        if self.released.is_some_and(|released| released < epoch) {
            // The newer login says as much. On record it says that the arrival was not finished.
            self.released = None;
            self.want_record(
                Record { epoch, scvm: Some(path.scvm), released: None, term: self.term },
                now,
                fx,
            );
        }
        self.arrived = Some((epoch, path, now));
        fx.push(Effect::Meta(ToMeta::Arrived { epoch, path }));
        self.report_to_meta(now, fx);
    }
}

pub(super) fn has_no_session(state: Option<&SessionState>) -> bool {
    matches!(state, Some(SessionState::Lost | SessionState::Absent))
}
