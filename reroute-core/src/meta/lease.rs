//! The leader's own lease: for how long this master may act on being the leader (design §6, "Leaders").
//!
//! The store alone knows who leads. A confirmation says that at some moment after it was *asked* no later term
//! existed. From that moment on, and for the lease's length, orders go out. Two things rest on more than time, so that
//! a leader whose own clock stood still does no harm either: a session is renewed only with a confirmation that was
//! asked after its message came, and expiry proves something only as of the last confirmation's asking.

use super::{Effect, Post, SessionMaster};
use crate::ids::*;
use crate::proto::{MetaReply, Order, Refusal, ToMeta};
use crate::timeline::Event;

/// A store that could not tell is asked again after this.
const RETRY_NS: u64 = 20 * MS;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    /// One confirmation is under way, asked then. While it is, no other is: a store that hangs gets no queue.
    asking: Option<BootNs>,
    /// When the last one that came true was asked.
    confirmed: Option<BootNs>,
    /// After a failure: not again before this.
    again_at: BootNs,
    /// What keeps the lease from being renewed, in words.
    problem: Option<String>,
    /// That it ran out was said.
    lapse_said: bool,
    /// A later term exists: never again.
    over: Option<Term>,
    /// Messages that wait for a confirmation asked after they came.
    waiting: Vec<Waiting>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiting {
    since: BootNs,
    post: Post,
}

/// The lease as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    pub leads: bool,
    /// What remains, ns.
    pub left_ns: u64,
    /// Why it is not renewed; None: it is.
    pub problem: Option<String>,
}

impl Lease {
    pub(super) fn new(now: BootNs) -> Lease {
        Lease {
            asking: None,
            confirmed: None,
            again_at: now,
            problem: None,
            lapse_said: false,
            over: None,
            waiting: Vec::new(),
        }
    }

    fn left_ns(&self, lease_ns: u64, now: BootNs) -> u64 {
        match (self.over, self.confirmed) {
            (None, Some(confirmed)) => lease_ns.saturating_sub(now.since(confirmed)),
            _ => 0,
        }
    }

    /// Nobody else led at this moment, and what was true of this master then was true of the cluster.
    pub(super) fn confirmed(&self) -> Option<BootNs> {
        self.confirmed.filter(|_| self.over.is_none())
    }
}

impl SessionMaster {
    /// Whether this master may act as the leader now.
    pub fn leads(&self, now: BootNs) -> bool {
        self.lease.left_ns(self.settings.leader_ns, now) > 0
    }

    pub fn leadership(&self, now: BootNs) -> Leadership {
        let left_ns = self.lease.left_ns(self.settings.leader_ns, now);
        let problem = match self.lease.over {
            Some(term) => Some(format!("a later leader ({term}) exists")),
            None => self.lease.problem.clone(),
        };
        Leadership { leads: left_ns > 0, left_ns, problem }
    }

    /// Asks, if it is time: every third of the lease, and at once when a message waits for it.
    pub(super) fn ask_lease(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        let every = self.settings.leader_ns / 3;
        let lease = &mut self.lease;
        let due = lease.confirmed.is_none_or(|at| now.since(at) >= every) || !lease.waiting.is_empty();
        if lease.over.is_none() && lease.asking.is_none() && due && now >= lease.again_at {
            lease.asking = Some(now);
            out.push(Effect::ConfirmLease);
        }
    }

    pub(super) fn lease_confirmed(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        let Some(asked) = self.lease.asking.take() else { return };
        let led = self.leads(now);
        self.lease.confirmed = self.lease.confirmed.max(Some(asked));
        self.lease.problem = None;
        if self.leads(now) {
            if !led {
                // What a host should have heard when it connected meanwhile was withheld.
                for (id, host) in &mut self.hosts {
                    host.orders(*id, Some(NodeId::Host(*id)), out);
                }
            }
            if std::mem::replace(&mut self.lease.lapse_said, false) {
                let what = format!("the store confirms {} again: leading on", self.settings.term);
                out.push(Effect::Journal(Event::Fault { what }));
                self.generation += 1;
            }
            let (ready, waiting) =
                std::mem::take(&mut self.lease.waiting).into_iter().partition(|w| w.since <= asked);
            self.lease.waiting = waiting;
            let ready: Vec<Waiting> = ready;
            for w in ready {
                self.answer(w.post, now, out);
            }
        }
        self.ask_lease(now, out);
    }

    pub(super) fn lease_failed(&mut self, why: String, now: BootNs) {
        self.lease.asking = None;
        self.lease.again_at = now.plus(RETRY_NS);
        self.lease.problem = Some(why);
    }

    /// The store knows a later leader. There is nothing to come back to.
    pub(super) fn lease_over(&mut self, later: Term, now: BootNs, out: &mut Vec<Effect>) {
        if self.lease.over.is_some() {
            return;
        }
        self.lease.over = Some(later);
        let what = format!("{} is over: the store knows {later}; this Meta stops", self.settings.term);
        out.push(Effect::Journal(Event::Fault { what }));
        self.generation += 1;
        self.refuse_waiting(|_| true, now, out);
        out.push(Effect::StepDown { later });
    }

    pub(super) fn tick_lease(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        let patience = self.settings.leader_ns;
        if self.lease.confirmed().is_some() && !self.leads(now) && !self.lease.lapse_said {
            self.lease.lapse_said = true;
            let why = match (&self.lease.problem, self.lease.asking) {
                (Some(why), _) => why.clone(),
                (None, Some(at)) => format!("it has not answered for {} ms", now.since(at) / MS),
                (None, None) => "this Meta did not run".into(),
            };
            let what = format!(
                "the leader's lease ran out ({why}): no session is renewed and nothing moves until the store confirms {}",
                self.settings.term
            );
            out.push(Effect::Journal(Event::Fault { what }));
            self.generation += 1;
        }
        self.refuse_waiting(|w| now.since(w.since) >= patience, now, out);
        self.ask_lease(now, out);
    }

    fn refuse_waiting(&mut self, which: impl Fn(&Waiting) -> bool, now: BootNs, out: &mut Vec<Effect>) {
        let (refused, waiting) = std::mem::take(&mut self.lease.waiting).into_iter().partition(|w| which(w));
        self.lease.waiting = waiting;
        let refused: Vec<Waiting> = refused;
        for w in refused {
            let reply = MetaReply::Refused { error: self.not_leader(now) };
            out.push(Effect::Reply { request: w.post.request, reply });
        }
    }

    pub(super) fn not_leader(&self, now: BootNs) -> Refusal {
        let why = match (self.leadership(now).problem, self.lease.asking) {
            (Some(why), _) => why,
            (None, Some(at)) => format!("the store has not answered for {} ms", now.since(at) / MS),
            (None, None) => "not asked yet".into(),
        };
        Refusal::NotLeader { why }
    }

    /// A message whose answer renews a session waits for a confirmation. None: it is taken care of.
    pub(super) fn hold(&mut self, post: Post, now: BootNs, out: &mut Vec<Effect>) -> Option<Post> {
        let renews = matches!(post.msg, ToMeta::SessionOpen { .. } | ToMeta::KeepAlive { .. });
        let known = matches!(post.from, NodeId::Scvm(scvm) if self.sessions.contains_key(&scvm));
        if !renews || !known {
            return Some(post);
        }
        // A store that hangs already would only make it wait for its refusal.
        let hangs = self.lease.asking.is_some_and(|at| now.since(at) >= self.settings.leader_ns);
        if self.lease.over.is_some() || (hangs && !self.leads(now)) {
            let reply = MetaReply::Refused { error: self.not_leader(now) };
            out.push(Effect::Reply { request: post.request, reply });
        } else {
            self.lease.waiting.push(Waiting { since: now, post });
            self.ask_lease(now, out);
        }
        None
    }

    /// What only a leader may say goes out while the lease runs; orders are repeated, so none is lost for good.
    pub(super) fn withhold(&self, now: BootNs, out: &mut Vec<Effect>) {
        if !self.leads(now) {
            out.retain(|e| !matches!(e, Effect::Push { order, .. } if needs_lease(order)));
        }
    }
}

fn needs_lease(order: &Order) -> bool {
    use Order::*;
    matches!(order, Admit { .. } | At { .. } | Moving { .. } | Evicted { .. } | Drive { .. })
}
