//! One path: do its pulses come back?

use crate::ids::*;
use crate::proto::Health;

/// Replies in a row before a path counts as healthy.
pub(super) const STREAK: u32 = 3;
/// Pulses that must have been sent in time and stayed unanswered before silence means anything.
const UNANSWERED: u32 = 3;
/// Replies of related paths that a loss needs as its witnesses.
const WITNESSES: usize = 2;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PathState {
    pub health: Health,
    pub interval_ns: u64,
    /// When the next pulse is due.
    pub due: BootNs,
    /// Silence counts from here at the earliest: start, or the last time the observer itself was in doubt.
    window_from: BootNs,
    pub last_reply: Option<BootNs>,
    unanswered: u32,
    pub streak: u32,
    /// Without a break since then.
    pub healthy_since: Option<BootNs>,
    pub rtt_ns: Option<u64>,
}

impl PathState {
    pub fn new(now: BootNs, due: BootNs, interval_ns: u64) -> PathState {
        PathState {
            health: Health::Unknown,
            interval_ns,
            due,
            window_from: now,
            last_reply: None,
            unanswered: 0,
            streak: 0,
            healthy_since: None,
            rtt_ns: None,
        }
    }

    /// Silence that means loss: at least four beats of this path's own pulse.
    fn limit(&self, lost_ns: u64) -> u64 {
        lost_ns.max(4 * self.interval_ns)
    }

    fn silence_from(&self) -> BootNs {
        self.last_reply.map_or(self.window_from, |at| at.max(self.window_from))
    }

    /// Silent for longer than `limit`, whatever that is worth.
    pub fn is_silent(&self, lost_ns: u64, now: BootNs) -> bool {
        now.since(self.silence_from()) >= self.limit(lost_ns)
    }

    pub fn sent_in_time(&mut self) {
        self.unanswered = self.unanswered.saturating_add(1);
    }

    /// The observer was in doubt: what was missed until now counts for nothing.
    pub fn rebase(&mut self, now: BootNs) {
        self.window_from = now;
        self.unanswered = 0;
    }

    /// A reply came. Returns the former state if it changed.
    pub fn replied(&mut self, rtt_ns: u64, now: BootNs) -> Option<Health> {
        self.last_reply = Some(now);
        self.rtt_ns = Some(rtt_ns);
        self.unanswered = 0;
        self.streak = self.streak.saturating_add(1);
        let next = match self.health {
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
        let silence = now.since(self.silence_from());
        if silence >= limit && self.unanswered >= UNANSWERED {
            // They must have answered in the second half of the silence: whoever fell silent together with this
            // path says nothing about it.
            if witnesses(self.silence_from().plus(limit / 2)) >= WITNESSES {
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
