//! What a server and its clients know of calls and replies: bytes put in order, records parsed, XIDs compared.

use crate::wire::{CALL, PROCEDURES, REPLY};
use reroute_common::class;
use reroute_common::flow::{CALL_SLOTS, CALL_WAYS};
use reroute_common::table::LATENCY_BUCKETS;
use reroute_fuzz::rig::{Counts, Waiting};
use std::collections::BTreeMap;
use std::ops::Range;

fn word(bytes: &[u8], index: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(4 * index..4 * index + 4)?.try_into().ok()?))
}

/// The record that begins at `at`: its payload as far as it is there, and its end if it has one yet.
fn record(stream: &[u8], mut at: usize) -> (Vec<u8>, Option<usize>) {
    let mut payload = vec![];
    loop {
        let Some(mark) = stream.get(at..).and_then(|s| word(s, 0)) else { return (payload, None) };
        let body = at + 4..at + 4 + (mark & 0x7fff_ffff) as usize;
        payload.extend(&stream[body.start..body.end.min(stream.len())]);
        if stream.len() < body.end {
            return (payload, None);
        }
        at = body.end;
        if mark >> 31 != 0 {
            return (payload, Some(at));
        }
    }
}

/// One direction: bytes in order, and the record that is next.
#[derive(Default)]
struct Parser {
    at: usize,
    /// The record at `at` has been told of.
    told: bool,
}

#[derive(Default)]
pub struct Reference {
    calls: Parser,
    replies: Parser,
    /// Calls that have a slot.
    waiting: BTreeMap<u32, Waiting>,
    /// All that were not answered.
    pub unanswered: BTreeMap<u32, Waiting>,
    counts: Counts,
    /// XIDs that came while they were waited for.
    pub repeated: u64,
}

impl Reference {
    /// The server's TCP has handed on `stream`, all of it but `garbage` records. Gives the XIDs of the calls that are complete now.
    pub fn calls(&mut self, stream: &[u8], garbage: &[Range<usize>], now: u64) -> Vec<u32> {
        let mut new = vec![];
        loop {
            if let Some(skip) = garbage.iter().find(|g| g.start == self.calls.at) {
                if stream.len() < skip.end {
                    return new;
                }
                self.calls.at = skip.end;
                continue;
            }
            let (payload, Some(end)) = record(stream, self.calls.at) else { return new };
            self.calls.at = end;
            let words: Vec<u32> = (0..CALL / 4).filter_map(|i| word(&payload, i)).collect();
            let known = |p: &&(u32, u32, u32, u32)| (p.0, p.1, p.2) == (words[3], words[4], words[5]);
            let class = PROCEDURES.iter().find(known).expect("a procedure of the table").3;
            self.accept(words[0], Waiting { class, since: now });
            new.push(words[0]);
        }
    }

    fn accept(&mut self, xid: u32, call: Waiting) {
        self.unanswered.insert(xid, call);
        if self.waiting.contains_key(&xid) {
            self.repeated += 1;
            return;
        }
        self.counts.calls[call.class as usize] += 1;
        let sets = CALL_SLOTS as u32 / CALL_WAYS;
        if self.waiting.keys().filter(|other| *other % sets == xid % sets).count() == CALL_WAYS as usize {
            self.counts.untracked += 1;
            self.counts.orphans += 1;
        } else {
            self.waiting.insert(xid, call);
        }
    }

    /// The server's TCP has sent `stream`.
    pub fn replies(&mut self, stream: &[u8], garbage: &[Range<usize>], now: u64) {
        loop {
            if let Some(skip) = garbage.iter().find(|g| g.start == self.replies.at) {
                if stream.len() < skip.end {
                    return;
                }
                self.replies.at = skip.end;
                continue;
            }
            let (payload, end) = record(stream, self.replies.at);
            if payload.len() >= REPLY && !self.replies.told {
                self.replies.told = true;
                self.answer(word(&payload, 0).unwrap_or_default(), now);
            }
            let Some(end) = end else { return };
            self.replies = Parser { at: end, told: false };
        }
    }

    fn answer(&mut self, xid: u32, now: u64) {
        self.unanswered.remove(&xid);
        let Some(call) = self.waiting.remove(&xid) else { return };
        self.counts.replies[call.class as usize] += 1;
        let us = (now - call.since) / 1000;
        let bucket = us.checked_ilog2().unwrap_or(0).min(LATENCY_BUCKETS as u32 - 1);
        self.counts.latency[call.class as usize][bucket as usize] += 1;
    }

    pub fn counts(&self) -> Counts {
        Counts { waiting: self.waiting.clone(), ..self.counts.clone() }
    }

    /// From here on, what was counted until now is what `counts` says. So is what waits.
    pub fn go_on_from(&mut self, counts: &Counts) {
        self.waiting = counts.waiting.clone();
        self.counts = counts.clone();
    }
}

/// Of all classes.
pub fn sum(by_class: &[u64; class::COUNT]) -> u64 {
    by_class.iter().sum()
}
