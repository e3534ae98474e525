//! What each message does. Every one is answered at once; what comes of it comes by push.

use super::login::{Ask, push};
use super::proofs::Heard;
use super::record::Wanted;
use super::wanted::Told;
use super::{Effect, SessionMaster};
use crate::ids::*;
use crate::proto::*;
use crate::timeline::Event;

impl SessionMaster {
    pub(super) fn message(
        &mut self,
        from: NodeId,
        incarnation: Incarnation,
        msg: ToMeta,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> MetaReply {
        let answer = match from {
            NodeId::Scvm(scvm) => self.scvm_says(scvm, incarnation, msg, now, out),
            NodeId::Host(host) => self.host_says(host, msg, now, out),
        };
        answer.unwrap_or_else(|error| MetaReply::Refused { error })
    }

    fn ok(&self) -> Result<MetaReply, Refusal> {
        Ok(MetaReply::Ok { term: self.settings.term })
    }

    fn scvm_says(
        &mut self,
        scvm: ScvmId,
        incarnation: Incarnation,
        msg: ToMeta,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<MetaReply, Refusal> {
        let node = NodeId::Scvm(scvm);
        if !self.sessions.contains_key(&scvm) {
            return Err(Refusal::UnknownNode { node });
        }
        match msg {
            ToMeta::SessionOpen { boot, health } => {
                self.opened(scvm, boot);
                self.renew(scvm, incarnation, health, now);
                Ok(MetaReply::Session {
                    term: self.settings.term,
                    logins: self.logins_of(scvm),
                    orders_to: 0,
                    blocks: self.blocks.order(now),
                })
            }
            ToMeta::KeepAlive { term, health } => {
                self.judge(scvm, now);
                let holds =
                    self.sessions.get(&scvm).is_some_and(|s| s.is_live() && s.incarnation == incarnation);
                // A lapsed session is not revived: what follows from its end may already be in the record.
                if !holds || term != self.settings.term {
                    return Err(Refusal::NoSession);
                }
                self.renew(scvm, incarnation, health, now);
                self.ok()
            }
            ToMeta::Prepared { host, epoch, error } => {
                self.prepared(scvm, host, epoch, error, now, out)?;
                self.ok()
            }
            ToMeta::Fenced { host, epoch, proof } => {
                self.fenced(scvm, host, epoch, proof, now, out)?;
                self.ok()
            }
            ToMeta::FenceWaits { host, epoch, in_progress, orphans, why } => {
                self.fence_waits(scvm, host, epoch, (in_progress, orphans, why), now, out)?;
                self.ok()
            }
            ToMeta::Admitted { host, epoch, error } => {
                self.admitted(scvm, host, epoch, error, now, out)?;
                self.ok()
            }
            ToMeta::LoginWanted { host, closed, connections, age_ns } => {
                self.login_wanted(scvm, host, Told { closed, connections, age_ns }, now, out)?;
                self.ok()
            }
            ToMeta::Holders { term, clients } => {
                self.holders(scvm, incarnation, term, clients, now)?;
                self.ok()
            }
            ToMeta::Driven { host, report } => {
                self.driven_report(scvm, host, report, now)?;
                self.ok()
            }
            ToMeta::PeerSilent { scvm: of } => {
                self.peer_silent(scvm, of, now)?;
                self.ok()
            }
            ToMeta::HostReport { .. }
            | ToMeta::Move { .. }
            | ToMeta::Released { .. }
            | ToMeta::FencedByPulse { .. }
            | ToMeta::DomainDead { .. }
            | ToMeta::ResetWanted { .. }
            | ToMeta::Arrived { .. } => Err(Refusal::WrongSender { node }),
        }
    }

    fn host_says(
        &mut self,
        host: HostId,
        msg: ToMeta,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<MetaReply, Refusal> {
        let node = NodeId::Host(host);
        match self.hosts.get(&host) {
            None => return Err(Refusal::UnknownNode { node }),
            Some(login) if !login.has_agent => return Err(Refusal::WithoutAgent { host }),
            Some(_) => {}
        }
        match msg {
            ToMeta::HostReport { report } => self.host_report(host, report, now, out),
            ToMeta::Move { from_epoch, to, planned, reason, evidence } => {
                self.asked(host, from_epoch, Wanted { to, planned, reason, evidence }, now, out)?;
            }
            ToMeta::Released { epoch } => self.released(host, epoch, now)?,
            ToMeta::FencedByPulse { scvm, epoch } => {
                self.heard(host, scvm, epoch, Heard::Pulse, now, out)?;
            }
            ToMeta::DomainDead { scvm, host: of, epoch, boot } => {
                let beside = |h: &HostInfo| h.id == host && h.local_scvm == scvm;
                if !self.settings.hosts.iter().any(beside) {
                    return Err(Refusal::NotBeside { node, scvm });
                }
                self.heard(of, scvm, epoch, Heard::Domain { by: host, boot }, now, out)?;
            }
            ToMeta::Arrived { epoch, path } => self.arrived(host, epoch, path)?,
            ToMeta::ResetWanted { epoch, network, ports, own } => {
                self.reset_wanted(host, epoch, (network, ports, own), out)?;
            }
            ToMeta::SessionOpen { .. }
            | ToMeta::KeepAlive { .. }
            | ToMeta::Prepared { .. }
            | ToMeta::Fenced { .. }
            | ToMeta::FenceWaits { .. }
            | ToMeta::Holders { .. }
            | ToMeta::Driven { .. }
            | ToMeta::PeerSilent { .. }
            | ToMeta::Admitted { .. }
            | ToMeta::LoginWanted { .. } => return Err(Refusal::WrongSender { node }),
        }
        self.ok()
    }

    /// What this SCVM is to serve: every login that stands there, or whose move there waits for nothing but it.
    fn logins_of(&mut self, scvm: ScvmId) -> Vec<(HostId, Epoch)> {
        let mut logins = Vec::new();
        for (id, host) in &mut self.hosts {
            let Some(record) = host.record() else { continue };
            let epoch = record.epoch();
            let serves = match record.login.state {
                LoginState::At { scvm: at, .. } => at == scvm,
                LoginState::Moving { to, .. } => to == scvm && host.is_open(),
                LoginState::Evicted { .. } => false,
            };
            if serves {
                // As good as an order to admit.
                host.facts.admit_sent = true;
                logins.push((*id, epoch));
            }
        }
        logins
    }

    fn asked(
        &mut self,
        id: HostId,
        from_epoch: Epoch,
        wanted: Wanted,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let to = wanted.to;
        if !self.sessions.contains_key(&to) {
            return Err(Refusal::UnknownScvm { scvm: to });
        }
        self.blocked(id, now)?;
        let target_ready = self.is_target(to, now);
        let drains = self.drains.contains_key(&to);
        let Some(host) = self.hosts.get_mut(&id) else { return Ok(()) };
        if let Some(record) = host.overtaking()
            && let Some(to) = record.moving_to()
        {
            return Err(Refusal::MoveInProgress { to, epoch: record.epoch() });
        }
        let current = host.epoch();
        if from_epoch != current {
            return Err(Refusal::StaleEpoch { got: from_epoch, current });
        }
        match host.record().map(|r| &r.login.state) {
            Some(LoginState::At { scvm, .. }) if *scvm == to => {
                return Err(Refusal::MoveToSelf { scvm: to });
            }
            // An unplanned move overtakes a planned one to the same target: its fence must not wait for the drain.
            // And a target that could not admit at this epoch may be able to at the next.
            Some(LoginState::Moving { to: target, epoch, planned, .. })
                if *target == to && !host.facts.unfit && (wanted.planned || !planned) =>
            {
                return Err(Refusal::MoveInProgress { to, epoch: *epoch });
            }
            _ => {}
        }
        if drains {
            return Err(Refusal::Draining { scvm: to });
        }
        if !target_ready {
            return Err(Refusal::TargetNotReady { scvm: to });
        }
        // Nothing is on record yet: another wish of the host replaces the one before.
        let epoch = current.next();
        let prepared = host.ask.as_ref().is_some_and(|ask| ask.wanted.to == to && ask.prepared);
        if host.ask.as_ref().is_none_or(|ask| ask.wanted.to != to || ask.epoch != epoch) {
            host.resend_at = now.plus(self.settings.resend_ns);
            push(NodeId::Scvm(to), Order::Prepare { host: id, epoch }, out);
        }
        host.ask = Some(Ask { wanted, epoch, since: now, prepared });
        Ok(())
    }

    fn host_report(&mut self, id: HostId, report: HostReport, now: BootNs, out: &mut Vec<Effect>) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let material = |r: &HostReport| HostReport { route_age_ns: 0, paths: Vec::new(), ..r.clone() };
        let states =
            |r: &HostReport| r.paths.iter().map(|p| (p.path, p.state)).collect::<Vec<(Path, Health)>>();
        let changed = host
            .report
            .as_ref()
            .is_none_or(|(old, _)| material(old) != material(&report) || states(old) != states(&report));
        if changed {
            self.generation += 1;
        }
        let (epoch, scvm, released) = (report.epoch, report.scvm, report.released);
        let before = host.report.take().map(|(before, _)| before);
        self.note_failed(id, before.as_ref(), &report, now);
        let Some(host) = self.hosts.get_mut(&id) else { return };
        host.report = Some((report, now));
        if epoch > host.epoch() && !host.ahead_said {
            host.ahead_said = true;
            let what = format!(
                "{id} acts on {epoch}, but the record stands at {}: was the store replaced by an older one?",
                host.epoch()
            );
            out.push(Effect::Journal(Event::Fault { what }));
        }
        if let Some(LoginState::At { scvm: at, epoch: stands, .. }) =
            host.record().map(|r| r.login.state.clone())
        {
            host.settled = epoch == stands && scvm == Some(at);
        }
        if let Some(LoginState::Evicted { epoch: ended, .. }) = host.record().map(|r| &r.login.state) {
            host.settled = epoch == *ended && scvm.is_none();
        }
        if let Some(released) = released {
            // From the future: said as a fault above, and no release of what is on record.
            let _ = self.released(id, released, now);
        }
        if let Some(host) = self.hosts.get_mut(&id)
            && host.must_hear()
        {
            host.tell_host(id, out);
        }
    }

    fn arrived(&mut self, id: HostId, epoch: Epoch, path: Path) -> Result<(), Refusal> {
        let Some(host) = self.hosts.get_mut(&id) else { return Ok(()) };
        let current = host.epoch();
        let stands = match host.record().map(|r| &r.login.state) {
            Some(LoginState::At { scvm, epoch: at, .. }) => *at == epoch && *scvm == path.scvm,
            _ => false,
        };
        if !stands {
            return Err(Refusal::StaleEpoch { got: epoch, current });
        }
        host.settled = true;
        if let Some((report, _)) = &mut host.report {
            report.epoch = epoch;
            report.scvm = Some(path.scvm);
            report.path = Some(path);
            report.route_age_ns = 0;
            self.generation += 1;
        }
        Ok(())
    }

    /// Passed on once, and only to the server where the login stands at that very epoch: who has admitted the host.
    fn reset_wanted(
        &self,
        host: HostId,
        epoch: Epoch,
        (network, mut ports, own): (Network, Vec<u16>, bool),
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let login = self.hosts.get(&host).filter(|h| !h.uncertain);
        let scvm = match login.and_then(|h| h.record()).map(|r| &r.login.state) {
            Some(LoginState::At { scvm, epoch: at, .. }) if *at == epoch => *scvm,
            _ => {
                let current = self.hosts.get(&host).map(|h| h.epoch()).unwrap_or_default();
                return Err(Refusal::StaleEpoch { got: epoch, current });
            }
        };
        ports.truncate(MOST_RESET);
        push(NodeId::Scvm(scvm), Order::ResetClient { host, epoch, network, ports, own }, out);
        Ok(())
    }
}
