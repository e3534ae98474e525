//! Who is served here: the words as the kernel has them, the epoch file, and Meta's orders Prepare and Admit.

use super::RETRY_NS;
use super::io::{Answer, Effect, Outcome, Purge, Purpose};
use super::outbox::{Kind, Outbox};
use crate::ids::*;
use crate::proto::ToMeta;
use crate::timeline::Event;
use reroute_common::admission::Word;
use std::collections::BTreeMap;

/// After this many failures in a row Meta is told instead.
const TRIES: u32 = 5;

/// An admission under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    epoch: Epoch,
    /// Meta waits for an answer (an order; else the list of a new session).
    ordered: bool,
    /// The kernel has been asked.
    asked: bool,
    retry_at: Option<BootNs>,
    tries: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Preparing {
    epoch: Epoch,
    /// No old socket is left.
    purged: bool,
    /// The server has just answered somebody.
    answers: bool,
    retry_at: Option<BootNs>,
    tries: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Admission {
    words: BTreeMap<HostId, Word>,
    /// The highest epoch a fence was asked for: nothing up to it is admitted any more, whatever comes late.
    fenced: BTreeMap<HostId, Epoch>,
    /// Closed at this epoch, and then no socket was left: those that are there now have carried nothing of it.
    clean: BTreeMap<HostId, Epoch>,
    pending: BTreeMap<HostId, Pending>,
    preparing: BTreeMap<HostId, Preparing>,
    /// The epoch file as it stands; `None`: not known.
    published: Option<BTreeMap<HostId, Epoch>>,
    publishing: Option<BTreeMap<HostId, Epoch>>,
    publish_again: Option<BootNs>,
    publish_failures: u32,
}

impl Admission {
    /// Words only grow, so whoever tells a higher one is right.
    pub fn learn(&mut self, host: HostId, word: Word) {
        let known = self.words.entry(host).or_insert(Word::NONE);
        *known = word.max(*known);
    }
    pub fn word(&self, host: HostId) -> Word {
        self.words.get(&host).copied().unwrap_or(Word::NONE)
    }
    pub fn words(&self) -> &BTreeMap<HostId, Word> {
        &self.words
    }
    /// Admitted at this very epoch, and no fence was asked for.
    pub fn serves(&self, host: HostId, epoch: Epoch) -> bool {
        let admitted = Word::new(epoch.0, reroute_common::admission::rank::ADMITTED);
        self.word(host) == admitted && self.closed(host, epoch).is_none()
    }
    /// No socket of the host is left, after a fence of `epoch`.
    pub fn cleaned(&mut self, host: HostId, epoch: Epoch) {
        if self.word(host).is_closed_for(epoch.0) && !self.word(host).is_admitted() {
            self.clean.insert(host, Epoch(self.word(host).epoch()));
        }
    }
    /// Whether no call of an earlier login here can be left in any socket that the host has now, half of it or whole.
    pub fn is_clean(&self, host: HostId) -> bool {
        let word = self.word(host);
        word == Word::NONE || (!word.is_admitted() && self.clean.get(&host) == Some(&Epoch(word.epoch())))
    }

    /// A fence of `epoch` has been asked for.
    pub fn close(&mut self, host: HostId, epoch: Epoch) {
        let fenced = self.fenced.entry(host).or_default();
        *fenced = epoch.max(*fenced);
    }

    fn closed(&self, host: HostId, epoch: Epoch) -> Option<String> {
        let word = self.word(host);
        let fenced = self.fenced.get(&host).copied().unwrap_or_default();
        if fenced >= epoch && fenced.0 > 0 {
            Some(format!("fenced here at {fenced}: ask for a later epoch than {epoch}"))
        } else if word.is_closed_for(epoch.0) {
            Some(format!("closed here at {}: ask for a later epoch than {epoch}", Epoch(word.epoch())))
        } else {
            None
        }
    }

    // --- Admit ---

    pub fn admit(
        &mut self,
        host: HostId,
        epoch: Epoch,
        ordered: bool,
        now: BootNs,
        outbox: &mut Outbox,
        out: &mut Vec<Effect>,
    ) {
        if let Some(error) = self.closed(host, epoch) {
            return refuse(host, epoch, error, now, outbox, out);
        }
        match self.pending.get_mut(&host) {
            Some(pending) if pending.epoch == epoch => pending.ordered |= ordered,
            Some(pending) if pending.epoch > epoch => {
                let error = format!("{} is being admitted already", pending.epoch);
                refuse(host, epoch, error, now, outbox, out);
            }
            _ => {
                let pending = Pending { epoch, ordered, asked: false, retry_at: None, tries: 0 };
                self.pending.insert(host, pending);
            }
        }
    }

    /// The session they belong to is over: Meta may go on without this server before they reach the kernel.
    pub fn forget_pending(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        for (host, Pending { epoch, .. }) in std::mem::take(&mut self.pending) {
            let what = format!("{host} not admitted at {epoch}: the session with Meta ended meanwhile");
            out.push(Effect::Journal { at: now, event: Event::Fault { what } });
        }
    }

    /// A revoke overtook it.
    pub fn cancel(
        &mut self,
        host: HostId,
        epoch: Epoch,
        now: BootNs,
        outbox: &mut Outbox,
        out: &mut Vec<Effect>,
    ) {
        if let Some(pending) = self.pending.get(&host)
            && pending.epoch <= epoch
        {
            let (at, ordered) = (pending.epoch, pending.ordered);
            self.pending.remove(&host);
            if ordered {
                refuse(host, at, format!("revoked at {epoch} meanwhile"), now, outbox, out);
            }
        }
    }

    pub fn answered(
        &mut self,
        host: HostId,
        epoch: Epoch,
        answer: Outcome<Answer>,
        now: BootNs,
        outbox: &mut Outbox,
        out: &mut Vec<Effect>,
    ) {
        let before = self.word(host);
        if let Ok(answer) = &answer {
            self.learn(host, answer.word);
            if answer.word.is_admitted() && answer.word > before {
                let epoch = Epoch(answer.word.epoch());
                out.push(Effect::Journal { at: now, event: Event::Admitted { host, epoch } });
            }
        }
        let Some(pending) = self.pending.get_mut(&host).filter(|p| p.epoch == epoch && p.asked) else {
            return;
        };
        match answer {
            Ok(answer) if answer.word.is_admitted() && answer.word.epoch() == epoch.0 => {
                let ordered = pending.ordered;
                self.pending.remove(&host);
                if ordered {
                    let msg = ToMeta::Admitted { host, epoch, error: None };
                    outbox.send(host, Kind::Admitted, msg, out);
                }
            }
            Ok(answer) => {
                let stands = Epoch(answer.word.epoch());
                self.pending.remove(&host);
                let error = format!("the kernel's word stands closed or beyond, at {stands}");
                refuse(host, epoch, error, now, outbox, out);
            }
            Err(why) => {
                pending.asked = false;
                pending.tries += 1;
                if pending.tries >= TRIES {
                    self.pending.remove(&host);
                    refuse(host, epoch, format!("the kernel did not take it: {why}"), now, outbox, out);
                } else {
                    pending.retry_at = Some(now.plus(RETRY_NS));
                }
            }
        }
    }

    // --- the epoch file ---

    /// Who is admitted, and who is about to be.
    fn wanted(&self) -> BTreeMap<HostId, Epoch> {
        let open = |(host, word): (&HostId, &Word)| {
            let epoch = Epoch(word.epoch());
            let closing = self.fenced.get(host).is_some_and(|f| *f >= epoch);
            (word.is_admitted() && !closing).then_some((*host, epoch))
        };
        let mut wanted: BTreeMap<_, _> = self.words.iter().filter_map(open).collect();
        wanted.extend(self.pending.iter().map(|(host, p)| (*host, p.epoch)));
        wanted
    }

    pub fn published(
        &mut self,
        result: Outcome<()>,
        now: BootNs,
        outbox: &mut Outbox,
        out: &mut Vec<Effect>,
    ) {
        let tried = self.publishing.take();
        match result {
            Ok(()) => {
                self.published = tried;
                self.publish_failures = 0;
            }
            Err(why) => {
                // What stands in the file now is not known.
                self.published = None;
                self.publish_again = Some(now.plus(RETRY_NS));
                self.publish_failures += 1;
                let what = format!("epoch file not written: {why}");
                out.push(Effect::Journal { at: now, event: Event::Fault { what } });
                if self.publish_failures >= TRIES {
                    for (host, pending) in std::mem::take(&mut self.pending) {
                        let error = format!("the epoch file cannot be written: {why}");
                        refuse(host, pending.epoch, error, now, outbox, out);
                    }
                }
            }
        }
    }

    pub fn tick(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        let wanted = self.wanted();
        let rest = self.publish_again.is_some_and(|at| at > now);
        if self.publishing.is_none() && !rest && self.published.as_ref() != Some(&wanted) {
            self.publish_again = None;
            self.publishing = Some(wanted.clone());
            out.push(Effect::PublishEpochs { epochs: wanted });
        }
        for (&host, pending) in &mut self.pending {
            let epoch = pending.epoch;
            let published = self.publishing.is_none()
                && self.published.as_ref().is_some_and(|p| p.get(&host) == Some(&epoch));
            if published && !pending.asked && pending.retry_at.is_none_or(|at| at <= now) {
                pending.asked = true;
                pending.retry_at = None;
                out.push(Effect::Admit { host, epoch });
            }
        }
        for (&host, preparing) in &mut self.preparing {
            if preparing.retry_at.is_some_and(|at| at <= now) {
                preparing.retry_at = None;
                let epoch = preparing.epoch;
                out.push(Effect::PurgeSockets { host, epoch, purpose: Purpose::Prepare });
            }
        }
    }

    // --- Prepare ---

    /// `unwell`: why nobody should move here; `answers`: the server has just answered somebody, else it is being
    /// asked, see [`Admission::probed`]; `keep`: the host's connections are those it is to go on with.
    #[allow(clippy::too_many_arguments)]
    pub fn prepare(
        &mut self,
        host: HostId,
        epoch: Epoch,
        unwell: Option<String>,
        answers: bool,
        keep: bool,
        outbox: &mut Outbox,
        out: &mut Vec<Effect>,
    ) {
        let word = self.word(host);
        if word == Word::new(epoch.0, reroute_common::admission::rank::ADMITTED) {
            // A late copy: the sockets there are now are those of the login itself.
            return prepared(host, epoch, None, outbox, out);
        }
        if let Some(error) = unwell.or_else(|| self.closed(host, epoch)) {
            self.preparing.remove(&host);
            return prepared(host, epoch, Some(error), outbox, out);
        }
        if self.preparing.get(&host).is_some_and(|p| p.epoch >= epoch) {
            return;
        }
        self.preparing.insert(host, Preparing { epoch, purged: keep, answers, retry_at: None, tries: 0 });
        if keep {
            return self.finish(outbox, out);
        }
        out.push(Effect::PurgeSockets { host, epoch, purpose: Purpose::Prepare });
    }

    pub fn purged(
        &mut self,
        host: HostId,
        epoch: Epoch,
        purge: Outcome<Purge>,
        now: BootNs,
        outbox: &mut Outbox,
        out: &mut Vec<Effect>,
    ) {
        let Some(preparing) =
            self.preparing.get_mut(&host).filter(|p| p.epoch == epoch && p.retry_at.is_none() && !p.purged)
        else {
            return;
        };
        let problem = match purge {
            Ok(Purge { left: 0, .. }) => {
                preparing.purged = true;
                return self.finish(outbox, out);
            }
            Ok(Purge { left, .. }) => format!("{left} old connections of {host} cannot be closed"),
            Err(why) => format!("old connections of {host} cannot be closed: {why}"),
        };
        preparing.tries += 1;
        if preparing.tries >= TRIES {
            self.preparing.remove(&host);
            prepared(host, epoch, Some(problem), outbox, out);
        } else {
            preparing.retry_at = Some(now.plus(RETRY_NS));
        }
    }

    /// The local server was asked. A server that hangs unused shows no stall: it is found here, before anybody moves.
    pub fn probed(&mut self, answered: bool, outbox: &mut Outbox, out: &mut Vec<Effect>) {
        for (&host, preparing) in &mut self.preparing {
            if !answered && !preparing.answers {
                let error = "the server did not answer a NULL call".to_string();
                prepared(host, preparing.epoch, Some(error), outbox, out);
            }
            preparing.answers |= answered;
        }
        if !answered {
            self.preparing.retain(|_, p| p.answers);
        }
        self.finish(outbox, out);
    }

    fn finish(&mut self, outbox: &mut Outbox, out: &mut Vec<Effect>) {
        self.preparing.retain(|&host, p| {
            let done = p.purged && p.answers;
            if done {
                prepared(host, p.epoch, None, outbox, out);
            }
            !done
        });
    }

    pub fn wake_at(&self) -> Option<BootNs> {
        let pending = self.pending.values().filter_map(|p| p.retry_at);
        let preparing = self.preparing.values().filter_map(|p| p.retry_at);
        pending.chain(preparing).chain(self.publish_again).min()
    }
}

fn prepared(host: HostId, epoch: Epoch, error: Option<String>, outbox: &mut Outbox, out: &mut Vec<Effect>) {
    outbox.send(host, Kind::Prepared, ToMeta::Prepared { host, epoch, error }, out);
}

pub(super) fn refuse(
    host: HostId,
    epoch: Epoch,
    error: String,
    now: BootNs,
    outbox: &mut Outbox,
    out: &mut Vec<Effect>,
) {
    let what = format!("{host} not admitted at {epoch}: {error}");
    out.push(Effect::Journal { at: now, event: Event::Fault { what } });
    outbox.send(host, Kind::Admitted, ToMeta::Admitted { host, epoch, error: Some(error) }, out);
}
