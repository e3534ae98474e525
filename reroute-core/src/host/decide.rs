//! Stay, change the path to the same server, or ask Meta for a move.

use super::choice::rank;
use super::phase::{Ask, LettingGo, Moving, Phase, Trip};
use super::*;

/// A question without a visible consequence is asked again after this.
const ANSWER_NS: u64 = SEC;
/// ... and after this, when its target is no longer fit.
const TARGET_GONE_NS: u64 = 100 * MS;
/// A move whose fence is not known to be proven may wait for the lease of a dead server's host to run out (8 s without
/// its agent, and drift): no target would be quicker before.
const FENCE_NS: u64 = 10 * SEC;
/// A call that waits for longer has nobody to wait for its end: its connection is dead, or its server hangs.
const STUCK_NS: u64 = SEC;
/// A planned move waits for a moment without calls in progress, but not for longer than this.
const QUIET_NS: u64 = SEC;

impl Machine {
    pub(super) fn decide(&mut self, now: BootNs, fx: &mut Effects) {
        // Whoever still wants it says so again.
        let quiet_awaited = self.quiet_awaited.take();
        if self.route.found.is_none() || (self.route.blocked_by().is_some() && !self.is_dry()) {
            return;
        }
        match &self.phase {
            Phase::Moving(moving) => {
                let moving = moving.clone();
                self.redirect(moving, now, fx);
                return;
            }
            Phase::Asked(ask) => {
                let patience = if self.is_eligible(ask.to, now) { ANSWER_NS } else { TARGET_GONE_NS };
                if now.since(ask.at) < patience {
                    return;
                }
                if patience == ANSWER_NS {
                    self.meta_failed_at = Some(now);
                }
                self.phase = Phase::Settled;
            }
            Phase::Arriving(arriving) => {
                let path = arriving.trip.path;
                let other = self.path_to(path.scvm, Some(path));
                if other != path && !self.has_failed(path.scvm) {
                    let trip = Trip { path: other, keep: None, ..arriving.trip.clone() };
                    self.go(trip, now, fx);
                    return;
                }
                if !self.has_failed(path.scvm) {
                    return;
                }
            }
            Phase::Settled => {}
        }
        match self.login {
            None if self.is_dry() => self.decide_dry(now, fx),
            None => self.first_login(now, fx),
            // Let go by a former instance: Meta must say first what became of it.
            Some(login) if !self.may_affirm(login.epoch) => {}
            Some(login) => self.judge_place(login, quiet_awaited, now, fx),
        }
    }

    fn judge_place(&mut self, login: Current, quiet_awaited: Option<BootNs>, now: BootNs, fx: &mut Effects) {
        let here = self.path_now();
        if self.has_failed(login.scvm) {
            let pieces = self.servers.get(&login.scvm).map(|s| s.case.pieces()).unwrap_or_default();
            if let Some(to) = self.best(now, |p| p.scvm != login.scvm)
                && self.meta_is_usable(now)
            {
                let names: Vec<String> = pieces.iter().map(|p| format!("{:?}", p.kind)).collect();
                let reason = match self.servers.contains_key(&login.scvm) {
                    true => format!("{} failed: {}", login.scvm, names.join(", ")),
                    false => format!("{} is in this host's configuration no more", login.scvm),
                };
                self.ask(to, false, reason, pieces, now, fx);
            }
        } else if here.scvm != login.scvm {
            // The route has not followed the login yet: that comes first.
        } else if self.health(here) == Health::Failed || !self.has_carrier(here.network) {
            self.leave_path(login, here, now, fx);
        } else if self.leave_stuck_storage(login, now, fx) {
        } else if !self.follow_wishes(login, here, quiet_awaited, now, fx)
            || self.draining.contains(&login.scvm) && matches!(self.phase, Phase::Settled)
        {
            self.improve(login, here, quiet_awaited, now, fx);
        }
    }

    /// The path is lost, the server is not.
    fn leave_path(&mut self, login: Current, here: Path, now: BootNs, fx: &mut Effects) {
        let reason = match self.paths.get(&here).is_some_and(|p| p.narrow) {
            true => format!("{here} carries small frames only: MTU"),
            false => format!("{here} is lost"),
        };
        let pieces = vec![Piece { kind: EvidenceKind::PathLost, path: Some(here), at: now }];
        let same = [Network::Storage, Network::Management]
            .map(|network| Path { scvm: login.scvm, network })
            .into_iter()
            .find(|p| *p != here && self.is_usable(*p, now) && !self.passes_small_only(*p));
        // A pinned server is not left while another network leads there.
        let stays_there = same.is_some() && self.is_pinned_to(login.scvm);
        let may_be = |p: Path| p.scvm == login.scvm || !stays_there;
        let full = |p: Path| !self.passes_small_only(p);
        let storage = self.best(now, |p| p.network == Network::Storage && p != here && may_be(p) && full(p));
        let may_move = self.meta_is_usable(now) && self.budget.left(now) > 0;
        match (storage, same) {
            (Some(to), _) if to.scvm == login.scvm => self.change_path(to, reason, pieces, true, now, fx),
            (Some(to), _) if may_move => self.ask(to, false, reason, pieces, now, fx),
            // No storage target at all: it is this host's storage network. Or Meta cannot be asked.
            (_, Some(to)) => self.change_path(to, reason, pieces, true, now, fx),
            // Its other path is in doubt, and will be well or lost in a moment: no reason to leave the server yet.
            (None, None) if self.is_in_doubt(login.scvm, here, now) => {}
            (None, None) => {
                let other = self.best(now, |p| p.scvm != login.scvm);
                match other {
                    Some(to) if may_move => self.ask(to, false, reason, pieces, now, fx),
                    _ => self.stays(here, other, now, fx),
                }
            }
            (storage, None) => self.stays(here, storage, now, fx),
        }
    }

    /// Another path to the server was well until a moment ago, and is not lost.
    fn is_in_doubt(&self, scvm: ScvmId, lost: Path, now: BootNs) -> bool {
        let recently = |at: BootNs| now.since(at) <= 3 * self.settings.path_lost_ns;
        !self.has_failed(scvm)
            && self.paths_of(scvm).any(|(path, state)| {
                *path != lost
                    && path.network != Network::Private
                    && self.has_carrier(path.network)
                    && matches!(state.health, Health::Healthy | Health::Suspect | Health::Recovering)
                    && state.last_reply.is_some_and(recently)
            })
    }

    /// The path is lost and there is no way out of it now: says why.
    fn stays(&mut self, here: Path, target: Option<Path>, now: BootNs, fx: &mut Effects) {
        let mut causes = Vec::new();
        if target.is_none() {
            // Others may be about to be found well, or to be lost too.
            let heard = self.paths.get(&here).and_then(|s| s.last_reply).unwrap_or(self.started);
            if now.since(heard) < SEC {
                return;
            }
            causes.push("no other path leads to a server that can take this host");
        }
        if self.is_kept_away(now) {
            causes.push("an operator keeps this host away (`reroute-agent block ls`)");
        } else if !self.meta_is_usable(now) {
            causes.push("Meta is out of reach");
        }
        if self.budget.left(now) == 0 {
            causes.push("the budget of moves is used up (one more every 5 s)");
        }
        self.fault("stays", format!("{here} is lost, but {}", causes.join(", and ")), fx);
    }

    /// All is well here. Is there a better place, and has it been well for long enough?
    fn improve(
        &mut self,
        login: Current,
        here: Path,
        quiet_awaited: Option<BootNs>,
        now: BootNs,
        fx: &mut Effects,
    ) {
        self.faults.remove("stays");
        self.faults.remove("move");
        self.faults.remove("blocked");
        let wait_ns = self.hold_down.wait_ns(now);
        // A place is not left again before the wait either, however well another one was before.
        if now < self.improve_after || now.since(self.route.since) < wait_ns {
            return;
        }
        let local = self.settings.local;
        let fit = |p: &Path| self.is_fit(*p, login.scvm, now);
        let better =
            |p: &Path| rank(*p, local) < rank(here, local) && self.stable_ns(*p, now) >= wait_ns && fit(p);
        let candidates: Vec<Path> =
            self.paths.keys().copied().filter(|p| self.pin_allows(*p, here)).filter(better).collect();
        let best = |only: Option<ScvmId>| {
            let among = candidates.iter().copied().filter(|p| only.is_none_or(|s| s == p.scvm));
            among.min_by_key(|p| self.preference_key(*p, Some(login.scvm)))
        };
        // Nobody can leave this server now, by plan: another network of it needs nobody's leave.
        let bound = self.draining.contains(&login.scvm)
            || !self.meta_is_usable(now)
            || self.undrainable(login.scvm, now).is_some();
        let Some(to) = best(bound.then_some(login.scvm)).or_else(|| best(None)) else { return };
        // A still better one that will have been well for long enough in a moment: one change instead of two. And another
        // network of the same server needs no move: it is waited for as long again.
        let patient = self.stable_ns(to, now) < 2 * wait_ns;
        let soon = |p: &Path| {
            let (this, that) = (rank(*p, local), rank(to, local));
            let in_a_moment = this < that && self.stable_ns(*p, now) >= wait_ns / 10 * 9;
            let same_server = this <= that && p.scvm == login.scvm && to.scvm != login.scvm && patient;
            (in_a_moment || same_server)
                && (!bound || p.scvm == login.scvm)
                && self.pin_allows(*p, here)
                && fit(p)
        };
        if self.paths.keys().any(soon) || self.budget.left(now) == 0 {
            return;
        }
        let reason = format!("{to} is better than {here} and was well for {} ms", wait_ns / MS);
        if to.scvm == login.scvm {
            self.change_path(to, reason, Vec::new(), false, now, fx);
        } else if self.ask_planned(to, login, reason, quiet_awaited, now, fx) {
            self.improve_after = now.plus(wait_ns.max(SEC));
        }
    }

    /// Asks for a planned move to another server in a quiet moment, or after a second without one. True: it was asked.
    pub(super) fn ask_planned(
        &mut self,
        to: Path,
        login: Current,
        reason: String,
        quiet_awaited: Option<BootNs>,
        now: BootNs,
        fx: &mut Effects,
    ) -> bool {
        if let Some(why) = self.undrainable(login.scvm, now) {
            self.fault("drain", format!("{to} is wanted, but {why}"), fx);
        } else if self.meta_is_usable(now) {
            self.faults.remove("drain");
            let waits_since = quiet_awaited.unwrap_or(now);
            if self.is_busy(login.scvm) && now.since(waits_since) < QUIET_NS {
                self.quiet_awaited = Some(waits_since);
                return false;
            }
            self.ask(to, true, reason, Vec::new(), now, fx);
            return true;
        }
        false
    }

    pub(super) fn is_busy(&self, scvm: ScvmId) -> bool {
        self.servers.get(&scvm).is_some_and(|s| s.busy_since.is_some())
    }

    /// Calls at a server that nothing but their end can cover, and no end of them in sight: a planned move from there
    /// would close admission, wait in vain, and be given up. None: it can be drained.
    fn undrainable(&self, scvm: ScvmId, now: BootNs) -> Option<String> {
        let server = self.servers.get(&scvm)?;
        let facts = server.facts.filter(|_| !self.settings.checked_by_storage.contains(&scvm))?;
        if facts.orphans > 0 {
            return Some(format!(
                "{scvm} had {} calls of this host whose end nobody saw: staying until its server is restarted",
                facts.orphans
            ));
        }
        // The age is that of anybody's oldest call. One of ours that old has kept this host busy for as long.
        let busy = server.busy_since.is_some_and(|since| now.since(since) > STUCK_NS);
        (busy && facts.oldest_call_age_ns > STUCK_NS).then(|| {
            // Without numbers: said once, not with each reply.
            format!("{scvm} has a call waiting for more than {} ms: staying until it ends", STUCK_NS / MS)
        })
    }

    /// Before the first login nothing is changed; and every target gets its chance to be heard first.
    fn first_login(&mut self, now: BootNs, fx: &mut Effects) {
        if !(self.unknown_to_meta || self.evicted.is_some())
            || !self.meta_is_usable(now)
            || now.since(self.started) < 6 * self.settings.standby_ns
        {
            return;
        }
        let standing = match &self.route.found {
            Some(Found::Ours(path)) | Some(Found::Foreign { path: Some(path), .. }) => Some(*path),
            _ => None,
        };
        // Where the I/O goes already is where it is disturbed least.
        let to = standing.filter(|p| self.is_eligible(*p, now)).or_else(|| self.best(now, |_| true));
        if let Some(to) = to {
            let reason = if self.evicted.is_some() {
                "login anew: an operator ended the last one"
            } else {
                "first login"
            };
            self.ask(to, false, reason.into(), Vec::new(), now, fx);
        }
    }

    /// A move under way whose target does not take this host: asks for another one, or for the same once more.
    fn redirect(&mut self, moving: Moving, now: BootNs, fx: &mut Effects) {
        if moving.asked_at.is_some_and(|at| now.since(at) < ANSWER_NS) || !self.meta_is_usable(now) {
            return;
        }
        let target = moving.to;
        let failed = self.has_failed(target);
        let refused = self.refused.get(&target).is_some_and(|until| now < *until);
        // Who has died drains nothing, and cannot be gone back to.
        let died = moving.planned.then(|| self.died_meanwhile(&moving)).flatten();
        let patience = if moving.is_open() { ANSWER_NS } else { FENCE_NS };
        let reason = if failed {
            format!("{target} failed while moving there")
        } else if moving.target_lost {
            format!("Meta has no session with {target} while moving there")
        } else if refused {
            format!("{target} could not take this host")
        } else if let Some(scvm) = died {
            format!("{scvm} failed before this host had left it")
        } else if !moving.planned && !self.drains(&moving) && now.since(moving.news_at) >= patience {
            format!("nothing came of the move to {target} in {} ms", patience / MS)
        } else {
            return;
        };
        // A target that refuses is asked for only after the fence: nothing more is gained by force.
        let planned = moving.planned && !failed && !moving.target_lost && died.is_none();
        // The target is as good as it was, if it is only the old server that failed.
        let stays = died.is_some() && !failed && !moving.target_lost && !refused;
        if let Some(to) = self.best(now, |p| p.scvm != target).filter(|_| !stays) {
            let pieces = self.servers.get(&target).map(|s| s.case.pieces()).unwrap_or_default();
            self.ask(to, planned, reason, pieces, now, fx);
        } else if !failed && !moving.target_lost {
            // None other is fit. At a new epoch this one may be able to admit.
            let wish = moving.ask.as_ref().map(|ask| ask.to);
            self.ask(self.path_to(target, wish), planned, reason, Vec::new(), now, fx);
        }
    }

    /// A server that this host lets go of, that Meta does not know to be shut, and that has failed since.
    fn died_meanwhile(&self, moving: &Moving) -> Option<ScvmId> {
        let left = moving.letting_go.iter().filter(|(scvm, going)| **scvm != moving.to && !going.idle_taken);
        left.map(|(scvm, _)| *scvm).find(|scvm| self.has_failed(*scvm))
    }

    /// A server that this host lets go of is there and still works on its calls, or this host has not let go itself:
    /// that is what the move waits for, and it would wait with any target.
    fn drains(&self, moving: &Moving) -> bool {
        let works = |(scvm, going): (&ScvmId, &LettingGo)| {
            let facts = self.servers.get(scvm).filter(|s| !s.case.stands()).and_then(|s| s.facts);
            *scvm != moving.to
                && !going.idle_taken
                && facts.is_some_and(|f| f.in_progress > 0 || f.orphans > 0)
        };
        !moving.released_told || moving.letting_go.iter().any(works)
    }

    pub(super) fn ask(
        &mut self,
        to: Path,
        planned: bool,
        reason: String,
        pieces: Vec<Piece>,
        now: BootNs,
        fx: &mut Effects,
    ) {
        let from_epoch = match (&self.phase, self.login) {
            (Phase::Moving(moving), _) => moving.epoch,
            (_, login) => login.map_or_else(|| self.evicted_at(), |l| l.epoch),
        };
        let evidence: Vec<Evidence> = pieces.iter().map(|p| p.of(self.settings.host)).collect();
        let from = self.login.map(|l| l.scvm);
        let again = matches!(&self.phase, Phase::Moving(m) if m.ask.as_ref().is_some_and(|a| a.to == to));
        if !again {
            fx.push(Effect::Journal(Event::Verdict {
                from,
                to,
                reason: reason.clone(),
                evidence: evidence.clone(),
            }));
        }
        fx.push(Effect::Meta(ToMeta::Move {
            from_epoch,
            to: to.scvm,
            planned,
            reason: reason.clone(),
            evidence,
        }));
        let ask = Ask { to, from_epoch, planned, reason, pieces, at: now };
        match &mut self.phase {
            Phase::Moving(moving) => {
                moving.ask = Some(ask);
                moving.asked_at = Some(now);
                moving.news_at = now;
            }
            phase => *phase = Phase::Asked(ask),
        }
    }

    /// The same server by another network: no epoch changes, nobody is asked.
    pub(super) fn change_path(
        &mut self,
        to: Path,
        reason: String,
        pieces: Vec<Piece>,
        lost: bool,
        now: BootNs,
        fx: &mut Effects,
    ) {
        if lost {
            self.hold_down.departed(now);
        }
        self.budget.spend(now);
        let evidence = pieces.iter().map(|p| p.of(self.settings.host)).collect();
        let from = Some(to.scvm);
        fx.push(Effect::Journal(Event::Verdict { from, to, reason: reason.clone(), evidence }));
        let (login_is_new, same_server) = (false, true);
        self.go(Trip { path: to, reason, since: now, login_is_new, same_server, keep: None }, now, fx);
    }
}
