//! What was seen of one client lately.

use super::{APART_NS, ENOUGH, LONG_NS, SLOT_NS, WHOLE};
use crate::ids::BootNs;
use reroute_common::table::LATENCY_BUCKETS;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Slot {
    from: BootNs,
    replies: u64,
    /// Bit `i`: replies of bucket `i` were seen.
    buckets: u32,
}

const _: () = assert!(LATENCY_BUCKETS <= 32);

/// Slots with replies only, by time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Window {
    slots: VecDeque<Slot>,
    replies: u64,
}

impl Window {
    /// Takes in replies by bucket, seen at `now`.
    pub fn add(&mut self, new: &[u64; LATENCY_BUCKETS], now: BootNs) {
        let replies = new.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        if replies == 0 {
            return;
        }
        let buckets = new.iter().enumerate().fold(0, |bits, (i, n)| bits | u32::from(*n > 0) << i);
        self.replies = self.replies.saturating_add(replies);
        match self.slots.back_mut() {
            Some(last) if now.since(last.from) < SLOT_NS => {
                last.replies = last.replies.saturating_add(replies);
                last.buckets |= buckets;
            }
            _ => self.slots.push_back(Slot { from: now, replies, buckets }),
        }
    }

    /// Drops what is too old, and what the window needs neither for its length nor for enough replies.
    pub fn forget(&mut self, now: BootNs) {
        while let Some(first) = self.slots.front().copied() {
            let spare = self.slots.len() > WHOLE && self.replies.saturating_sub(first.replies) >= ENOUGH;
            if now.since(first.from) <= LONG_NS && !spare {
                break;
            }
            self.slots.pop_front();
            self.replies = self.replies.saturating_sub(first.replies);
        }
    }

    pub fn replies(&self) -> u64 {
        self.replies
    }

    /// Spans of [`SLOT_NS`] with replies.
    pub fn spans(&self) -> usize {
        self.slots.len()
    }

    /// The highest bucket that was reached in at least `times` episodes. An episode takes in whatever follows its begin
    /// within [`APART_NS`].
    pub fn highest(&self, times: u32) -> Option<usize> {
        (0..LATENCY_BUCKETS).rev().find(|&bucket| {
            let reached = self.slots.iter().filter(|slot| slot.buckets >> bucket != 0);
            let mut episodes = 0;
            let mut last: Option<BootNs> = None;
            for slot in reached {
                if last.is_none_or(|begin| slot.from.since(begin) > APART_NS) {
                    episodes += 1;
                    last = Some(slot.from);
                }
            }
            episodes >= times
        })
    }
}
