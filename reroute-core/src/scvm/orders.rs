//! What Meta orders, and whom a new session names.

use super::Scvm;
use super::admission::refuse;
use super::io::*;
use super::outbox;
use super::revoke::{Revoke, Stage};
use crate::ids::*;
use crate::proto::{Order, ToMeta};
use crate::timeline::Event;
use reroute_common::admission::{Word, rank};
use std::collections::{BTreeMap, BTreeSet};

impl Scvm {
    pub(super) fn order(&mut self, term: Term, seq: u64, order: Order, now: BootNs, out: &mut Vec<Effect>) {
        if !self.session.hear(term, now) {
            let newest = self.session.newest_term();
            let what = format!("order of a leader whose {term} is over ({newest} is known): {order:?}");
            out.push(Effect::Journal { at: now, event: Event::Fault { what } });
            return;
        }
        // An order to open may have waited in a buffer while this node was stunned or cut off, and Meta may have gone
        // on without it. Meta repeats what still holds under new numbers. A revoke is obeyed however late.
        if matches!(
            order,
            Order::Prepare { .. } | Order::Admit { .. } | Order::ResetClient { .. } | Order::Blocks { .. }
        ) {
            let why = match self.session.live(&self.settings, now) {
                None => "that came while no session with Meta is open",
                Some(live) if (term, seq) <= live => "from before the session that is open now",
                Some(_) => "",
            };
            // A block that was long on its way would last too long; the session's answer tells what stands.
            if matches!(order, Order::Blocks { .. }) && !why.is_empty() {
                return;
            }
            if !why.is_empty() {
                let what = format!("order {why} is ignored: {order:?}");
                out.push(Effect::Journal { at: now, event: Event::Fault { what } });
                return;
            }
        }
        if let Some((host, epoch)) = names_epoch(&order)
            && !epoch.is_login()
        {
            let what = format!(
                "{epoch} of {host} is none that a login can have: refused, look at Meta's store: {order:?}"
            );
            out.push(Effect::Journal { at: now, event: Event::Fault { what } });
            return;
        }
        match order {
            Order::Prepare { host, epoch } => {
                let unwell = self.unwell();
                let answers = self.server.answered_lately(now);
                if unwell.is_none() && !answers {
                    self.server.want_probe();
                }
                // The connection that a client without an agent calls on is the one it is to be served on.
                let keep = self.is_without_agent(host)
                    && self.admission.is_clean(host)
                    && !self.wanted.is_slow(host);
                self.admission.prepare(host, epoch, unwell, answers, keep, &mut self.outbox, out)
            }
            Order::Revoke { host, epoch, planned } => self.start_revoke(host, epoch, planned, now, out),
            Order::Admit { host, epoch } => self.admit(host, epoch, true, now, out),
            Order::ResetClient { host, epoch, network, ports, own } => {
                self.reset_client(host, epoch, (network, ports, own), now, out);
            }
            Order::Blocks { list } => self.blocks.take(list, now),
            // For the parts beside this machine.
            Order::Drive { .. } | Order::AskPeer { .. } => {}
            Order::Hello { .. }
            | Order::View { .. }
            | Order::Moving { .. }
            | Order::At { .. }
            | Order::AskDomain { .. }
            | Order::Evicted { .. }
            | Order::MoveRefused { .. } => {}
        }
    }

    fn start_revoke(
        &mut self,
        host: HostId,
        epoch: Epoch,
        planned: bool,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        self.admission.cancel(host, epoch, now, &mut self.outbox, out);
        match self.revokes.get_mut(&host) {
            Some(revoke) if revoke.epoch == epoch => {
                revoke.again(planned, &mut self.outbox, out);
                return self.close_fenced(host);
            }
            Some(revoke) if revoke.epoch > epoch => {
                // Who is shut out at a later epoch is shut out at this one.
                if let Stage::Proven { proof, .. } = *revoke.stage() {
                    let msg = ToMeta::Fenced { host, epoch, proof };
                    self.outbox.send(host, outbox::Kind::Fence, msg, out);
                }
                return;
            }
            _ => {}
        }
        let mut revoke = Revoke::start(host, epoch, planned, self.settings.policy, out);
        revoke.closes_at_once = self.is_without_agent(host);
        self.revokes.insert(host, revoke);
        self.close_fenced(host);
    }

    /// Whose fence was asked for is not admitted any more, and leaves the epoch file.
    pub(super) fn close_fenced(&mut self, host: HostId) {
        if let Some(revoke) = self.revokes.get(&host).filter(|r| r.fences()) {
            self.admission.close(host, revoke.epoch);
        }
    }

    pub(super) fn is_without_agent(&self, host: HostId) -> bool {
        self.clients.get(&host).is_some_and(|c| !c.has_agent)
    }

    fn admit(&mut self, host: HostId, epoch: Epoch, ordered: bool, now: BootNs, out: &mut Vec<Effect>) {
        if let Some(revoke) = self.revokes.get(&host).filter(|r| r.epoch >= epoch && !r.fences()) {
            let error = format!("being revoked at {}: ask for a later epoch than {epoch}", revoke.epoch);
            return refuse(host, epoch, error, now, &mut self.outbox, out);
        }
        if let Some(revoke) = self.revokes.get_mut(&host).filter(|r| r.epoch < epoch) {
            // A later login here: calls of the earlier one are no danger any more, and nobody is killed for them.
            if matches!(revoke.stage(), Stage::Proven { .. }) {
                revoke.keep_sockets();
            } else {
                self.revokes.remove(&host);
            }
        }
        self.admission.admit(host, epoch, ordered, now, &mut self.outbox, out);
    }

    /// A session has opened: serve whom Meta names. Who is not named was perhaps moved while our lease had run out -
    /// by Meta's clock: ours may have stood still, and knows nothing of it. Such a word is closed before the lease opens
    /// it (again), unless the host itself affirms this server, and has done so since now.
    pub(super) fn serve(&mut self, logins: Vec<(HostId, Epoch)>, now: BootNs, out: &mut Vec<Effect>) {
        let named: BTreeMap<HostId, Epoch> = logins.iter().copied().collect();
        let (mut unnamed, mut doubtful) = (BTreeSet::new(), BTreeSet::new());
        for (&host, &word) in self.admission.words() {
            let epoch = Epoch(word.epoch());
            let client = self.clients.get(&host);
            if word.is_admitted() && named.get(&host) != Some(&epoch) {
                let affirmed = client.is_some_and(|c| c.has_agent && c.affirm_deadline > now);
                if affirmed {
                    doubtful.insert((host, epoch))
                } else {
                    unnamed.insert((host, epoch))
                };
            }
        }
        for &(host, epoch) in &unnamed {
            self.admission.close(host, epoch);
        }
        for (host, epoch) in logins.into_iter().filter(|(_, epoch)| epoch.is_login()) {
            if self.admission.word(host) != Word::new(epoch.0, rank::ADMITTED) {
                self.admit(host, epoch, false, now, out);
            }
        }
        self.hasten(out);
        self.session.settle(&self.settings, unnamed, doubtful, now, out);
    }

    pub(super) fn fence_answer(
        &mut self,
        host: HostId,
        epoch: Epoch,
        answer: Outcome<Answer>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        match &answer {
            Ok(answer) => {
                self.admission.learn(host, answer.word);
                if answer.word.is_closed_for(epoch.0) {
                    self.session.fenced(&self.settings, host, epoch, now, out);
                } else {
                    self.session.fence_failed(host, epoch, now);
                }
            }
            Err(why) => {
                self.session.fence_failed(host, epoch, now);
                let what = format!("{host} not fenced at {epoch}: {why}");
                out.push(Effect::Journal { at: now, event: Event::Fault { what } });
            }
        }
        self.revoke(host, |r, w, o, out| r.fence_answer(epoch, &answer, w, now, o, out), out);
    }
}

/// The login that an order to an SCVM is about.
fn names_epoch(order: &Order) -> Option<(HostId, Epoch)> {
    match *order {
        Order::Prepare { host, epoch }
        | Order::Revoke { host, epoch, .. }
        | Order::Admit { host, epoch }
        | Order::ResetClient { host, epoch, .. } => Some((host, epoch)),
        _ => None,
    }
}
