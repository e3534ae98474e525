//! Pulses: when, where, with which flag; and what replies and silence say.

use super::case::Change;
use super::path::PathState;
use super::*;
use serde::{Deserialize, Serialize};

/// Answered pulses that are remembered as witnesses.
const ANSWERS: usize = 64;
/// SCVMs besides the active one that are pulsed often.
const STANDBYS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PulseFlag {
    /// This host is served there, at the epoch.
    Affirm,
    /// This host lets go of the epoch.
    Release,
    Probe,
}

impl Machine {
    /// Something of ours ran later than a pulse period: what was missed meanwhile was missed by us.
    pub(super) fn judge_lateness(&mut self, late_ns: u64) {
        if late_ns > self.settings.pulse_ns {
            self.late += 1;
            self.rebase();
        }
    }

    fn rebase(&mut self) {
        for path in self.paths.values_mut() {
            path.rebase();
        }
    }

    pub(super) fn sent(&mut self, path: Path, due: BootNs, at: BootNs, error: Option<String>) {
        let late = at.since(due) > self.settings.pulse_ns;
        if late {
            self.judge_lateness(at.since(due));
        } else if let Some(path) = self.paths.get_mut(&path) {
            // A hard no from our own stack (no route, no carrier) is as good as silence.
            let _ = error;
            path.sent_in_time(at);
        }
    }

    pub(super) fn reply(&mut self, path: Path, sent_at: BootNs, facts: Facts, now: BootNs, fx: &mut Effects) {
        let rtt = now.since(sent_at);
        if !self.paths.contains_key(&path) || rtt > self.settings.path_lost_ns {
            return; // it waited in a queue: true once, not now
        }
        // Everybody was silent, and now somebody speaks: the silence was ours.
        let together = self.settings.path_lost_ns.max(if self.served_by().is_some() {
            0
        } else {
            4 * self.settings.standby_ns
        });
        if self.last_answer.is_some_and(|at| now.since(at) >= together) {
            self.rebase();
        }
        self.last_answer = Some(now);
        if self.answers.len() == ANSWERS {
            self.answers.pop_front();
        }
        self.answers.push_back((sent_at, path));

        let former = self.paths.get_mut(&path).and_then(|s| s.replied(rtt, now));
        self.tell_health(path, former, "pulses come back", fx);
        let change = self.servers.get_mut(&path.scvm).and_then(|s| s.heard(path, sent_at, facts, now));
        self.storage_heard(path.scvm, &facts, now);
        let news = self.tell_server(path.scvm, change, now, fx);
        self.watch_incarnation(path.scvm, &facts, fx);
        self.closed_seen(path.scvm, &facts, now, fx);
        // A quiet moment is over soon: whoever waited for one takes it now.
        let quiet = self.quiet_awaited.is_some()
            && self.login.is_some_and(|l| l.scvm == path.scvm && !self.is_busy(l.scvm));
        if news || quiet || self.is_stranded() {
            self.decide(now, fx);
        }
    }

    /// The host is to leave where it is, and has not found out where to: each answer may be the one that was missing.
    fn is_stranded(&self) -> bool {
        matches!(self.phase, phase::Phase::Settled)
            && self
                .login
                .is_some_and(|l| self.has_failed(l.scvm) || self.health(self.path_now()) == Health::Failed)
    }

    /// The server behind the login was restarted in place: what this host still holds open there is void.
    fn watch_incarnation(&mut self, scvm: ScvmId, facts: &Facts, fx: &mut Effects) {
        if self.login.is_none_or(|l| l.scvm != scvm) || facts.server.0 == 0 {
            return;
        }
        if self.incarnation.0 != 0 && self.incarnation != facts.server {
            self.reset_due = true;
        }
        self.incarnation = facts.server;
        // Not before somebody listens: a refused connect makes NFS clients sleep.
        if self.reset_due && facts.listening && matches!(self.phase, phase::Phase::Settled) {
            self.reset_due = false;
            fx.push(Effect::DestroySockets { keep: None });
        }
    }

    /// Silence: which paths and servers are lost?
    pub(super) fn judge(&mut self, now: BootNs, fx: &mut Effects) {
        let lost_ns = self.settings.path_lost_ns;
        let mut changes = Vec::new();
        let answers = &self.answers;
        for (path, state) in &mut self.paths {
            let former = state.pass(lost_ns, now, |after| {
                answers.iter().filter(|(sent, p)| *sent >= after && related(*path, *p)).count()
            });
            changes.extend(former.map(|former| (*path, former)));
        }
        for (path, former) in changes {
            self.tell_health(path, Some(former), "pulses do not come back while others do", fx);
        }
        for i in 0..self.order.len() {
            let scvm = self.order[i];
            let lost = self.paths_of(scvm).all(|(p, s)| match p.network {
                // No other server answers there: its silence is enough once the others are known to be lost.
                Network::Private => s.health == Health::Failed || s.is_silent(lost_ns, now),
                _ => s.health == Health::Failed,
            });
            if lost {
                let change = self.servers.get_mut(&scvm).and_then(|s| s.all_paths_lost(now));
                self.tell_server(scvm, change, now, fx);
            }
        }
    }

    /// A path of the active server is in doubt: the standbys are asked as often as it is, so that their answers are
    /// there when they are needed.
    pub(super) fn is_urgent(&self, now: BootNs) -> bool {
        let Some(scvm) = self.served_by() else { return false };
        let in_doubt = |(p, s): (&Path, &PathState)| {
            p.network != Network::Private && matches!(s.health, Health::Suspect | Health::Failed)
        };
        let failed = self.has_failed(scvm) || self.is_doubtful(now);
        // A path that stays lost while the host is served well by another one is no emergency.
        let served = self.route.wanted.is_some_and(|p| {
            p.scvm == scvm && self.paths.get(&p).is_some_and(|s| s.health == Health::Healthy)
        });
        failed || (self.paths_of(scvm).any(in_doubt) && !served)
    }

    /// When [`Input::Tick`] is wanted next.
    pub fn next_tick(&self) -> BootNs {
        let beat = self.ticked.plus(self.settings.pulse_ns);
        let soon = self.ticked.plus(self.settings.doubt_ns);
        self.doubts()
            .filter(|(_, until)| soon <= *until)
            .fold(beat, |next, (from, _)| next.min(from.max(soon)))
    }

    /// What may be wrong with the server behind the login, and its paths: from when on, and until when, it is to be
    /// asked quickly.
    fn doubts(&self) -> impl Iterator<Item = (BootNs, BootNs)> {
        let scvm = self.served_by();
        let server = scvm.and_then(|s| self.servers.get(&s)).and_then(|s| s.doubt_until());
        let paths = scvm.into_iter().flat_map(|s| self.paths_of(s)).filter_map(|(_, path)| path.doubt());
        server.map(|until| (BootNs(0), until)).into_iter().chain(paths)
    }

    /// The server behind the login may have failed, or a path to it, and a few more answers will tell.
    fn is_doubtful(&self, now: BootNs) -> bool {
        self.doubts().any(|(from, until)| from <= now && now <= until)
    }

    /// SCVMs that get pulses at full rate.
    fn is_active(&self, scvm: ScvmId) -> bool {
        self.served_by() == Some(scvm) || self.phase.concerns(scvm)
    }

    fn standbys(&self) -> Vec<ScvmId> {
        // Who cannot be reached gives up its place, so that every place is held by a target.
        let reachable =
            |s: &&ScvmId| self.paths.iter().any(|(p, state)| p.scvm == **s && state.health != Health::Failed);
        let others = || self.order.iter().filter(|s| !self.is_active(**s));
        let first = others().filter(reachable);
        let then = others().filter(|s| !reachable(s));
        let number = if self.served_by().is_some() { STANDBYS } else { STANDBYS + 1 };
        first.chain(then).take(number).copied().collect()
    }

    /// Emits the pulses that are due.
    pub(super) fn pulse(&mut self, now: BootNs, due: BootNs, fx: &mut Effects) {
        let standbys = self.standbys();
        let served_by = self.served_by().filter(|_| self.is_doubtful(now));
        let standby_ns = if self.is_urgent(now) { self.settings.pulse_ns } else { self.settings.standby_ns };
        let paths: Vec<Path> = self.paths.keys().copied().collect();
        for path in paths {
            let interval_ns = if served_by == Some(path.scvm) {
                self.settings.doubt_ns
            } else if self.is_active(path.scvm) {
                self.settings.pulse_ns
            } else if standbys.contains(&path.scvm) {
                standby_ns
            } else {
                self.settings.rest_ns
            };
            let Some(state) = self.paths.get_mut(&path) else { continue };
            // In doubt, each tick asks. Who is asked more often from now on is asked when that has passed since the last.
            let last = BootNs(state.due.0.saturating_sub(state.interval_ns));
            let latest = if served_by == Some(path.scvm) { due } else { last.plus(interval_ns) };
            state.interval_ns = interval_ns;
            state.due = state.due.min(latest);
            if state.due > now {
                continue;
            }
            // On the grid of ticks, so that witnesses are asked at the same moment.
            state.due = due.plus(interval_ns);
            fx.push(self.pulse_to(path, now));
        }
    }

    pub(super) fn pulse_to(&self, path: Path, now: BootNs) -> Effect {
        let (flag, epoch) = match self.phase.letting_go(path.scvm) {
            // Not one before the record is on disk: a successor of this process must know of it.
            Some((epoch, closed)) if !closed && self.released_on_disk(epoch) => (PulseFlag::Release, epoch),
            Some((epoch, _)) => (PulseFlag::Probe, epoch),
            None => match self.login.filter(|l| l.scvm == path.scvm) {
                Some(login) if self.may_affirm(login.epoch) => (PulseFlag::Affirm, login.epoch),
                Some(login) => (PulseFlag::Probe, login.epoch),
                None => (PulseFlag::Probe, Epoch(0)),
            },
        };
        let (scvm_boot, scvm_stamp) = self.servers.get(&path.scvm).map_or((0, 0), |s| s.echo());
        Effect::SendPulse { path, flag, epoch, scvm_boot, scvm_stamp, due: now }
    }

    pub(super) fn paths_of(&self, scvm: ScvmId) -> impl Iterator<Item = (&Path, &PathState)> {
        let path = |network| Path { scvm, network };
        self.paths.range(path(Network::Private)..=path(Network::Management))
    }

    pub(super) fn has_failed(&self, scvm: ScvmId) -> bool {
        // One that was taken out of the configuration is as good as dead: nobody looks at it, and nothing leads there.
        self.servers.get(&scvm).is_none_or(|s| s.case.stands())
    }

    pub(super) fn health(&self, path: Path) -> Health {
        self.paths.get(&path).map_or(Health::Unknown, |s| s.health)
    }

    pub(super) fn may_affirm(&self, epoch: Epoch) -> bool {
        self.released.is_none_or(|released| epoch > released)
    }

    pub(super) fn tell_health(&self, path: Path, former: Option<Health>, reason: &str, fx: &mut Effects) {
        let Some((former, state)) = former.zip(self.paths.get(&path)) else { return };
        let told = |h: Health| matches!(h, Health::Failed | Health::Healthy);
        // Passing doubts are no news; what ends in loss or in health is.
        if told(state.health) && former != Health::Suspect || state.health == Health::Failed {
            fx.push(Effect::Journal(Event::Health {
                path: Some(path),
                scvm: path.scvm,
                from: format!("{former:?}").to_lowercase(),
                to: format!("{:?}", state.health).to_lowercase(),
                reason: reason.into(),
            }));
        }
    }

    /// True: the server has failed, or is well again.
    fn tell_server(&mut self, scvm: ScvmId, change: Option<Change>, now: BootNs, fx: &mut Effects) -> bool {
        let stood = |state: Health| matches!(state, Health::Failed | Health::Recovering);
        let Some((from, to)) = change.filter(|(from, to)| stood(*from) != stood(*to)) else { return false };
        let Some(server) = self.servers.get(&scvm) else { return false };
        let names: Vec<String> = server.case.pieces().iter().map(|p| format!("{:?}", p.kind)).collect();
        fx.push(Effect::Journal(Event::Health {
            path: None,
            scvm,
            from: format!("{from:?}").to_lowercase(),
            to: format!("{to:?}").to_lowercase(),
            reason: names.join(", "),
        }));
        // Others may be about to find out: Meta puts it together.
        self.report_to_meta(now, fx);
        true
    }
}

/// Whether an answer on `witness` says something about silence on `path`.
fn related(path: Path, witness: Path) -> bool {
    path != witness && (path.scvm == witness.scvm || path.network == witness.network)
}
