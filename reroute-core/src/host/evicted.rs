//! An operator has ended this host's login, or keeps the host away.
//!
//! Ended: the host stops affirming, says so to Meta once the record of it is on disk, and asks for a login anew, from
//! the epoch at which the old one ended. The route stays: nothing answers there, and nothing better is known.
//! Kept away: Meta refuses every move, so none is asked for until it may have changed its mind.

use super::phase::Phase;
use super::*;

/// Meta is asked again after this whether the block still stands.
const ASK_AGAIN_NS: u64 = SEC;
/// Meta is told again of the release.
const TELL_AGAIN_NS: u64 = 200 * MS;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Evicted {
    pub epoch: Epoch,
    pub from_epoch: Epoch,
    /// When Meta was last told of the release, or has taken it in.
    told_at: Option<BootNs>,
    pub taken: bool,
}

impl Machine {
    pub(super) fn evict(
        &mut self,
        from_epoch: Epoch,
        epoch: Epoch,
        reason: String,
        now: BootNs,
        fx: &mut Effects,
    ) {
        if let Some(evicted) = self.evicted.as_mut().filter(|e| e.epoch == epoch) {
            // Meta asks again: it has not heard.
            evicted.taken = false;
            return self.tell_release(now, fx);
        }
        if self.is_past(epoch, fx) || epoch == self.newest_epoch() || from_epoch >= epoch {
            return;
        }
        let moving = match &self.phase {
            Phase::Moving(moving) => Some(moving.epoch),
            _ => None,
        };
        self.released = self
            .released
            .max((from_epoch.0 > 0).then_some(from_epoch))
            .max(self.login.map(|l| l.epoch))
            .max(moving);
        self.released_before_start = false;
        self.login = None;
        self.arrived = None;
        self.phase = Phase::Settled;
        self.evicted = Some(Evicted { epoch, from_epoch, told_at: None, taken: false });
        self.fault("evicted", format!("the login was ended {reason}"), fx);
        let record = Record { epoch, scvm: None, released: self.released, term: self.term };
        self.want_record(record, now, fx);
        self.tell_release(now, fx);
        self.report_to_meta(now, fx);
    }

    /// Tells Meta that nothing is affirmed any more, once a successor of this process would know it, too.
    pub(super) fn tell_release(&mut self, now: BootNs, fx: &mut Effects) {
        let Some(evicted) = &self.evicted else { return };
        let from_epoch = evicted.from_epoch;
        let waits = evicted.told_at.is_some_and(|at| now.since(at) < TELL_AGAIN_NS);
        if evicted.taken || waits || from_epoch.0 > 0 && !self.released_on_disk(from_epoch) {
            return;
        }
        let first = evicted.told_at.is_none();
        if let Some(evicted) = &mut self.evicted {
            evicted.told_at = Some(now);
        }
        if first && from_epoch.0 > 0 {
            fx.push(Effect::Journal(Event::Released { epoch: from_epoch }));
        }
        fx.push(Effect::Meta(ToMeta::Released { epoch: from_epoch }));
    }

    /// An order that comes after what it was overtaken by: ignored, and on record.
    pub(super) fn is_past(&self, epoch: Epoch, fx: &mut Effects) -> bool {
        let newest = self.newest_epoch();
        if epoch < newest {
            let what =
                format!("an order of {epoch} came when {newest} was known: ignored, it is of the past");
            fx.push(Effect::Journal(Event::Fault { what }));
        }
        epoch < newest
    }

    /// The epoch that a login is asked for from, without one.
    pub(super) fn evicted_at(&self) -> Epoch {
        self.evicted.as_ref().map_or(Epoch(0), |e| e.epoch)
    }

    pub(super) fn kept_away(&mut self, error: &Refusal, now: BootNs, fx: &mut Effects) {
        let Refusal::Blocked { id, reason, actor, .. } = error else { return };
        self.blocked_until = Some(now.plus(ASK_AGAIN_NS));
        // Without the time that is left: said once, not with each answer.
        self.fault("blocked", format!("this host may not move: {id} by {actor}: {reason}"), fx);
    }

    pub(super) fn is_kept_away(&self, now: BootNs) -> bool {
        self.blocked_until.is_some_and(|until| now < until)
    }

    /// Whether an order about a login can be meant: its server is known here, its epoch is one.
    pub(super) fn believes(&mut self, scvm: ScvmId, epoch: Epoch, in_order: bool, fx: &mut Effects) -> bool {
        let wrong = if !epoch.is_login() || !in_order {
            format!("Meta names {epoch} for {scvm}, which no login can have: refused, look at Meta's store")
        } else if !self.servers.contains_key(&scvm) {
            format!(
                "Meta names {scvm}, which is not in this host's configuration: install the same [cluster] everywhere"
            )
        } else {
            self.faults.remove("order");
            return true;
        };
        self.fault("order", wrong, fx);
        false
    }
}
