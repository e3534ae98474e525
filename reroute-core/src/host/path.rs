//! One path: do its pulses come back?

use crate::ids::*;
use crate::proto::Health;

/// Replies in a row before a path counts as healthy.
pub(super) const STREAK: u32 = 3;
/// Pulses that must have been sent in time and stayed unanswered before silence means anything. On a network that loses
/// one frame in twenty, each way, so many in a row are lost once in 100,000 times: a doubt, not yet a loss of its own.
const UNANSWERED: u32 = 5;
/// A pulse that has been out for this long is news: a kernel answers in a fraction of a millisecond.
pub(super) const OVERDUE_NS: u64 = 3 * MS;
/// A doubt that has lasted for this long will not be settled by asking quickly.
pub(super) const DOUBT_NS: u64 = 200 * MS;
/// Replies of related paths that a loss needs as its witnesses.
const WITNESSES: usize = 2;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PathState {
    pub health: Health,
    pub interval_ns: u64,
    /// When the next pulse is due.
    pub due: BootNs,
    pub last_reply: Option<BootNs>,
    unanswered: u32,
    /// When the first of the unanswered pulses left.
    waiting_since: Option<BootNs>,
    pub streak: u32,
    /// Without a break since then.
    pub healthy_since: Option<BootNs>,
    pub rtt_ns: Option<u64>,
    /// Small frames pass, full ones do not: pulses say nothing about what NFS needs.
    pub narrow: bool,
    /// Small echoes pass, full ones do not: no place to go to.
    pub small_only: bool,
}

impl PathState {
    pub fn new(due: BootNs, interval_ns: u64) -> PathState {
        PathState {
            health: Health::Unknown,
            interval_ns,
            due,
            last_reply: None,
            unanswered: 0,
            waiting_since: None,
            streak: 0,
            healthy_since: None,
            rtt_ns: None,
            narrow: false,
            small_only: false,
        }
    }

    /// Silence that means loss: at least four beats of this path's own pulse.
    fn limit(&self, lost_ns: u64) -> u64 {
        lost_ns.max(4 * self.interval_ns)
    }

    /// For how long pulses have stayed unanswered: a path that is not asked is not silent.
    fn silence(&self, now: BootNs) -> u64 {
        self.waiting_since.map_or(0, |since| now.since(since))
    }

    /// Silent for longer than `limit`, whatever that is worth.
    pub fn is_silent(&self, lost_ns: u64, now: BootNs) -> bool {
        self.silence(now) >= self.limit(lost_ns)
    }

    pub fn sent_in_time(&mut self, at: BootNs) {
        self.unanswered = self.unanswered.saturating_add(1);
        self.waiting_since.get_or_insert(at);
    }

    /// A pulse of its own is out for too long.
    pub fn is_overdue(&self, now: BootNs) -> bool {
        self.waiting_since.is_some_and(|since| now.since(since) >= OVERDUE_NS)
    }

    /// From when on, and until when, it is to be asked quickly, unless an answer comes.
    pub fn doubt(&self) -> Option<(BootNs, BootNs)> {
        let since = self.waiting_since.filter(|_| self.health != Health::Failed)?;
        Some((since.plus(OVERDUE_NS), since.plus(DOUBT_NS)))
    }

    /// The observer was in doubt: what was missed until now counts for nothing.
    pub fn rebase(&mut self) {
        self.unanswered = 0;
        self.waiting_since = None;
    }

    /// A reply came. Returns the former state if it changed.
    pub fn replied(&mut self, rtt_ns: u64, now: BootNs) -> Option<Health> {
        self.last_reply = Some(now);
        self.rtt_ns = Some(rtt_ns);
        let before = std::mem::take(&mut self.unanswered);
        // After a gap, one answer is not yet a path that carries. One that is only late is no gap.
        let missed = before > 1 && self.is_overdue(now);
        self.streak = if missed { 1 } else { self.streak.saturating_add(1) };
        self.waiting_since = None;
        let next = match self.health {
            _ if self.narrow => Health::Failed,
            Health::Healthy => Health::Healthy,
            Health::Suspect if self.healthy_since.is_some() => Health::Healthy,
            _ if self.streak >= STREAK => Health::Healthy,
            Health::Failed | Health::Recovering | Health::Suspect => Health::Recovering,
            Health::Unknown => Health::Unknown,
        };
        if next == Health::Healthy && self.healthy_since.is_none() {
            self.healthy_since = Some(now);
        }
        self.change(next)
    }

    fn change(&mut self, next: Health) -> Option<Health> {
        (self.health != next).then(|| std::mem::replace(&mut self.health, next))
    }

    /// Own knowledge that the path cannot work (no carrier here). Returns the former state if it changed.
    pub fn fail(&mut self) -> Option<Health> {
        self.streak = 0;
        self.healthy_since = None;
        self.change(Health::Failed)
    }

    /// Time passed. `witnesses` tells how many pulses that left at or after the given time were answered by related
    /// paths: the same server by another network, or other servers by the same one. Returns the former state if it
    /// changed.
    pub fn pass(
        &mut self,
        lost_ns: u64,
        now: BootNs,
        witnesses: impl FnOnce(BootNs) -> usize,
    ) -> Option<Health> {
        if self.health == Health::Failed {
            return None;
        }
        let limit = self.limit(lost_ns);
        let silence = self.silence(now);
        if silence >= limit && self.unanswered >= UNANSWERED {
            // They must have answered in the second half of the silence: whoever fell silent together with this
            // path says nothing about it.
            if witnesses(self.waiting_since.unwrap_or(now).plus(limit / 2)) >= WITNESSES {
                return self.fail();
            }
        }
        if silence >= lost_ns && self.unanswered >= UNANSWERED {
            self.healthy_since = None; // lost or not: this was no time of health without a break
        }
        if silence >= limit / 3 && self.unanswered >= 2 {
            self.streak = 0;
            if self.health == Health::Healthy {
                return self.change(Health::Suspect);
            }
        }
        None
    }
}
