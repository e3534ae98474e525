//! All that may go wrong, as a `stateright` model: the fair schedule, and a bounded number of troubles placed anywhere.

use super::nodes::Thing;
use super::story::*;
use super::world::World;
use stateright::{Model, Property};
use std::hash::{DefaultHasher, Hash, Hasher};

pub const SAFE: &str = "one server, and no late call";
pub const TWO_MOVES: &str = "two moves";
pub const RETURN: &str = "a return";
pub const LEADER_LOST: &str = "a leader lost in mid-move, and the next one ends the move";
pub const WENT_ON: &str = "held back when the lease was over, and served again at the same epoch";
pub const CAME_BACK: &str = "evicted, and logged in again";

pub struct Search {
    pub stories: Vec<Story>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// What is due comes.
    On,
    Trouble(Trouble),
}

impl Model for Search {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        self.stories.iter().cloned().map(World::new).collect()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Move>) {
        if world.is_over() {
            return;
        }
        actions.push(Move::On);
        if world.may_meddle() {
            let possible = world.story.troubles.iter().filter(|t| world.can(**t));
            actions.extend(possible.map(|t| Move::Trouble(*t)));
        }
    }

    fn next_state(&self, world: &World, action: Move) -> Option<World> {
        let mut next = world.clone();
        if let Move::Trouble(trouble) = action {
            next.budget -= 1;
            next.suffer(trouble);
        }
        // More trouble at the same moment comes before anything else does.
        if action == Move::On || !next.may_meddle() {
            next.step();
        } else {
            next.seal();
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Search>> {
        vec![
            Property::always(SAFE, |_, w: &World| w.violation().is_none()),
            Property::sometimes(TWO_MOVES, |_, w: &World| w.oracle.stood.len() >= 3),
            Property::sometimes(RETURN, |_, w: &World| {
                w.oracle.stood.len() >= 3 && w.oracle.stood.first() == w.oracle.stood.get(2)
            }),
            Property::sometimes(LEADER_LOST, |_, w: &World| w.oracle.survived),
            Property::sometimes(CAME_BACK, |_, w: &World| w.oracle.came_back),
            Property::sometimes(WENT_ON, |_, w: &World| w.oracle.went_on),
        ]
    }
}

impl World {
    fn can(&self, trouble: Trouble) -> bool {
        let head = self.queue.front();
        match trouble {
            Trouble::Drop | Trouble::Twice(_) => head.is_some_and(|t| t.is_message() && !t.is_disk()),
            Trouble::Delay(_) => head.is_some_and(Thing::is_message),
            Trouble::CrashHost(_) => self.host.agent.is_some(),
            Trouble::Reboot(id, _) => !self.scvm(id).clock.stands(),
            Trouble::CrashAgent(id, _) => self.scvm(id).agent.is_some(),
            Trouble::CrashMeta(_) => self.newest_leader().is_some(),
            Trouble::SecondLeader => self.metas[1].leader.is_none() && self.newest_leader() == Some(0),
            Trouble::Freeze(Node::Meta(i), _) => {
                self.metas[i].leader.is_some() && !self.metas[i].clock.stands()
            }
            Trouble::Freeze(node, _) => !self.clock(node).stands(),
            Trouble::Cut(a, b, _) => self.carries(a, b),
            Trouble::LoseSight(id) => self.scvm(id).server.calls.iter().any(|c| c.seen),
            Trouble::NextHop(id) => self.host.route.is_none_or(|path| path.scvm != id),
        }
    }

    pub fn newest_leader(&self) -> Option<usize> {
        let term = |i: &usize| self.metas[*i].leader.as_ref().map(|l| l.master.term());
        (0..self.metas.len()).filter(|i| term(i).is_some()).max_by_key(term)
    }

    fn suffer(&mut self, trouble: Trouble) {
        let (now, round) = (self.now, self.round);
        match trouble {
            Trouble::Drop => {
                self.queue.pop_front();
            }
            Trouble::Delay(rounds) => {
                if let Some(thing) = self.queue.pop_front() {
                    self.late.push((round + rounds, thing));
                }
            }
            Trouble::Twice(rounds) => {
                let Some(thing) = self.queue.pop_front() else { return };
                let copy = thing.clone();
                self.deliver(thing);
                let copy = self.marked(copy);
                self.late.push((round + rounds, copy));
            }
            Trouble::CrashHost(down) => self.crash_host(down),
            Trouble::CrashAgent(id, down) => self.crash_agent(id, down),
            Trouble::Reboot(id, down) => self.reboot(id, down),
            Trouble::CrashMeta(down) => {
                if let Some(i) = self.newest_leader() {
                    self.crash_meta(i, down);
                }
            }
            Trouble::SecondLeader => {
                let moving = self.moving();
                if let Some(leader) = &self.metas[0].leader {
                    let term = leader.master.term();
                    self.oracle.edit().leader_lost(term, moving);
                }
                self.start_leader(1);
            }
            Trouble::Freeze(Node::Host, rounds) => {
                let host = self.host.edit();
                host.clock.stop(now);
                host.thaws_at = Some(round + rounds);
            }
            Trouble::Freeze(Node::Scvm(id), rounds) => {
                let last = self.local(Node::Scvm(id)).plus(self.story.lease_ns());
                let s = self.scvm_mut(id);
                s.stunned = Some(last);
                s.clock.stop(now);
                s.thaws_at = Some(round + rounds);
            }
            Trouble::Freeze(Node::Meta(i), rounds) => {
                let meta = self.metas[i].edit();
                meta.clock.stop(now);
                meta.thaws_at = Some(round + rounds);
            }
            Trouble::Freeze(Node::Store, _) => {}
            Trouble::Cut(a, b, rounds) => {
                self.cuts.insert((a, b, round + rounds));
                self.break_streams();
            }
            Trouble::LoseSight(id) => {
                let s = self.scvm_mut(id);
                s.kernel.lose_sight(&mut s.server);
            }
            Trouble::NextHop(id) => self.next_hop(id),
        }
    }

    /// A copy of a message to Meta is answered as the first one was, whatever is true by then: worlds in which that
    /// answer differs are not the same.
    fn marked(&self, copy: Thing) -> Thing {
        let Thing::Post { from, incarnation, seq, meta, msg, .. } = copy else { return copy };
        let mut hasher = DefaultHasher::new();
        let answer = self.queue.iter().find_map(|t| match t {
            Thing::Answer { to, seq: s, meta: m, reply, .. } if (*to, *s, *m) == (from, seq, meta) => {
                Some(reply)
            }
            _ => None,
        });
        match answer {
            Some(reply) => reply.hash(&mut hasher),
            None => self.digest().hash(&mut hasher),
        }
        Thing::Post { from, incarnation, seq, meta, msg, mark: hasher.finish() | 1 }
    }
}
