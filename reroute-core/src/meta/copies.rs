//! A message may come by several networks. Its copies get the answer of the first, and change nothing.

use crate::ids::Incarnation;
use crate::proto::{MetaReply, Refusal};
use std::collections::{BTreeMap, VecDeque};

/// Answers kept per incarnation; what is older cannot be told from a copy, and is refused.
const KEPT: usize = 64;
/// Incarnations of one node that are remembered.
const INCARNATIONS: usize = 4;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Copies {
    recent: VecDeque<(Incarnation, Window)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Window {
    replies: BTreeMap<u64, MetaReply>,
    /// Everything below has been taken in, or never will be.
    floor: u64,
}

impl Copies {
    /// The answer, if this message was taken in before (or is too old to tell).
    pub(super) fn find(&self, incarnation: Incarnation, seq: u64) -> Option<MetaReply> {
        let (_, window) = self.recent.iter().find(|(i, _)| *i == incarnation)?;
        if let Some(reply) = window.replies.get(&seq) {
            return Some(reply.clone());
        }
        (seq < window.floor).then_some(MetaReply::Refused { error: Refusal::TooOld { seq } })
    }

    pub(super) fn keep(&mut self, incarnation: Incarnation, seq: u64, reply: MetaReply) {
        let at = match self.recent.iter().position(|(i, _)| *i == incarnation) {
            Some(at) => at,
            None => {
                if self.recent.len() == INCARNATIONS {
                    self.recent.pop_front();
                }
                self.recent.push_back((incarnation, Window::default()));
                self.recent.len() - 1
            }
        };
        let window = &mut self.recent[at].1;
        window.replies.insert(seq, reply);
        if window.replies.len() > KEPT
            && let Some((oldest, _)) = window.replies.pop_first()
        {
            window.floor = oldest + 1;
        }
    }
}
