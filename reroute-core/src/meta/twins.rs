//! Two agents that speak as one node: both would affirm, and each believes what Meta told the other.

use super::{Effect, SessionMaster};
use crate::ids::*;
use crate::timeline::Event;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Restarts come once; twins take turns with every message. So many changes of the incarnation ...
const TURNS: usize = 4;
/// ... within this, one of them back to an incarnation that was heard before.
const WINDOW_NS: u64 = 10 * SEC;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Twins(BTreeMap<NodeId, Speaker>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Speaker {
    incarnation: Incarnation,
    /// When another incarnation spoke than before, and which, newest last.
    turns: VecDeque<(BootNs, Incarnation)>,
    /// Named as twins, until they have not taken turns for a while.
    named: bool,
}

impl Twins {
    /// In words, for `status`.
    pub(super) fn alarms(&self, now: BootNs) -> Vec<String> {
        let twins = self.0.iter().filter(|(_, s)| s.are_twins(now));
        twins.map(|(node, _)| words(*node)).collect()
    }
}

impl Speaker {
    fn are_twins(&self, now: BootNs) -> bool {
        let recent = || self.turns.iter().filter(|(at, _)| now.since(*at) < WINDOW_NS);
        // One that restarts again and again never speaks as before.
        let different: BTreeSet<Incarnation> = recent().map(|(_, incarnation)| *incarnation).collect();
        recent().count() >= TURNS && different.len() == 2
    }
}

fn words(node: NodeId) -> String {
    format!(
        "two agents speak as {node}, by turns: stop one of them, or correct its `id` in the configuration"
    )
}

impl SessionMaster {
    /// Before a message is taken in: whether somebody else spoke as this node just now.
    pub(super) fn watch_twins(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        let speaker = self.twins.0.entry(node).or_default();
        let before = std::mem::replace(&mut speaker.incarnation, incarnation);
        if before == incarnation {
            if speaker.named && !speaker.are_twins(now) {
                speaker.named = false;
                self.generation += 1;
            }
            return;
        }
        // The first one heard is no turn.
        if before == Incarnation::default() {
            return;
        }
        speaker.turns.push_back((now, incarnation));
        if speaker.turns.len() > TURNS {
            speaker.turns.pop_front();
        }
        if speaker.are_twins(now) && !std::mem::replace(&mut speaker.named, true) {
            out.push(Effect::Journal(Event::Fault { what: words(node) }));
            self.generation += 1;
        }
    }
}
