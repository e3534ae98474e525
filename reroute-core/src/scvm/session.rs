//! The session with Meta: opened, kept alive, renewed only by replies of its own run and term.

use super::io::{Effect, Outcome, Tag};
use super::{RETRY_NS, Settings};
use crate::block::BlockOrder;
use crate::ids::*;
use crate::proto::{MetaReply, Refusal, ServerHealth, ToMeta};
use crate::timeline::Event;
use std::collections::{BTreeMap, BTreeSet};

/// How long to leave Meta alone after it refused for a reason that time alone does not mend.
const REFUSED_RETRY_NS: u64 = SEC;
/// The transport gives up before this; a reply that never comes must not stop us for ever.
const OPEN_TIMEOUT_NS: u64 = SEC;
/// Health that changed is told at once, but not more often than this.
const NEWS_GAP_NS: u64 = 10 * MS;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// SessionOpen goes out at `open_at`.
    Closed {
        open_at: BootNs,
    },
    Opening {
        session: u64,
        sent_at: BootNs,
    },
    /// Meta has answered; the lease is renewed (from `lease_from`) when these fences stand. A fence that failed
    /// carries when to ask for it again.
    Settling {
        session: u64,
        term: Term,
        lease_from: BootNs,
        fences: BTreeMap<(HostId, Epoch), Option<BootNs>>,
        /// Affirmed when the session opened, perhaps by a stamp from before our clock stood still; since then.
        doubtful: BTreeMap<(HostId, Epoch), BootNs>,
        orders_to: u64,
    },
    Open {
        session: u64,
        term: Term,
        orders_to: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    state: State,
    /// Number of the last SessionOpen: replies to earlier runs renew nothing.
    run: u64,
    newest_term: Term,
    /// Leases as the kernel has them.
    deadline: BootNs,
    deadline_no_agent: BootNs,
    next_keepalive: BootNs,
    last_sent: BootNs,
    told: Option<ServerHealth>,
    problem: Option<String>,
}

/// The part of health that is news.
fn gist(h: &ServerHealth) -> ServerHealth {
    ServerHealth { clients: 0, connections: 0, calls_waiting: 0, ..h.clone() }
}

impl Session {
    pub fn new(now: BootNs) -> Session {
        Session {
            state: State::Closed { open_at: now },
            run: 0,
            newest_term: Term(0),
            deadline: BootNs(0),
            deadline_no_agent: BootNs(0),
            next_keepalive: now,
            last_sent: BootNs(0),
            told: None,
            problem: None,
        }
    }

    pub fn state(&self) -> &State {
        &self.state
    }
    pub fn term(&self) -> Option<Term> {
        match self.state {
            State::Settling { term, .. } | State::Open { term, .. } => Some(term),
            _ => None,
        }
    }
    pub fn newest_term(&self) -> Term {
        self.newest_term
    }
    pub fn deadline(&self) -> BootNs {
        self.deadline
    }
    /// Why there is no session, in words.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Leases as read from the kernel: a restarted agent learns what its predecessor was granted.
    pub fn learn(&mut self, deadline: BootNs, deadline_no_agent: BootNs) {
        self.deadline = self.deadline.max(deadline);
        self.deadline_no_agent = self.deadline_no_agent.max(deadline_no_agent);
    }
    /// Whether the session lease of such a client has run out.
    pub fn lapsed(&self, has_agent: bool, now: BootNs) -> bool {
        now >= if has_agent { self.deadline } else { self.deadline_no_agent }
    }

    /// The session that holds now: its term, and the number of the last order before it. An open one whose lease has
    /// run out is none, even if nobody has had time to close it: Meta may have passed this server over.
    pub fn live(&self, settings: &Settings, now: BootNs) -> Option<(Term, u64)> {
        match self.state {
            State::Settling { term, orders_to, lease_from, .. }
                if now < lease_from.plus(settings.session_ns) =>
            {
                Some((term, orders_to))
            }
            State::Open { term, orders_to, .. } if now < self.deadline => Some((term, orders_to)),
            _ => None,
        }
    }

    /// Something of `term` was heard from Meta. False: it is of a term that is over.
    pub fn hear(&mut self, term: Term, now: BootNs) -> bool {
        if term < self.newest_term {
            return false;
        }
        self.newest_term = term;
        if self.term().is_some_and(|ours| ours < term) {
            self.close(now);
        }
        true
    }

    fn close(&mut self, open_at: BootNs) {
        self.state = State::Closed { open_at };
    }

    pub fn tick(&mut self, settings: &Settings, health: &ServerHealth, now: BootNs, out: &mut Vec<Effect>) {
        match &self.state {
            State::Opening { sent_at, .. } if now.since(*sent_at) >= OPEN_TIMEOUT_NS => self.close(now),
            State::Open { .. } if now >= self.deadline => {
                let what = "session with Meta lapsed: no keepalive was answered in time".to_string();
                self.problem = Some(what.clone());
                out.push(Effect::Journal { at: now, event: Event::Fault { what } });
                self.close(now);
            }
            State::Settling { lease_from, .. } if now >= lease_from.plus(settings.session_ns) => {
                self.close(now)
            }
            _ => {}
        }
        if let State::Settling { fences, .. } = &mut self.state {
            for (&(host, epoch), again) in fences.iter_mut().filter(|(_, a)| a.is_some_and(|at| at <= now)) {
                *again = None;
                out.push(Effect::Fence { host, epoch });
            }
        }
        match self.state {
            State::Closed { open_at } if open_at <= now => {
                self.run += 1;
                self.told = Some(gist(health));
                self.state = State::Opening { session: self.run, sent_at: now };
                out.push(Effect::Send {
                    tag: Tag::Open { session: self.run, sent_at: now },
                    msg: ToMeta::SessionOpen { boot: settings.boot, health: health.clone() },
                });
            }
            State::Settling { session, term, .. } | State::Open { session, term, .. } => {
                let news =
                    self.told.as_ref() != Some(&gist(health)) && now.since(self.last_sent) >= NEWS_GAP_NS;
                if now >= self.next_keepalive || news {
                    self.next_keepalive = now.plus(settings.keepalive_ns);
                    self.last_sent = now;
                    self.told = Some(gist(health));
                    out.push(Effect::Send {
                        tag: Tag::KeepAlive { session, term, sent_at: now },
                        msg: ToMeta::KeepAlive { term, health: health.clone() },
                    });
                }
            }
            _ => {}
        }
    }

    /// The reply to SessionOpen or KeepAlive. Gives the logins to serve and who is blocked, if it says so.
    pub fn reply(
        &mut self,
        settings: &Settings,
        tag: Tag,
        reply: Outcome<MetaReply>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Option<(Vec<(HostId, Epoch)>, BlockOrder)> {
        match tag {
            Tag::Open { session, sent_at } => {
                if self.state != (State::Opening { session, sent_at }) {
                    return None;
                }
                self.opened(settings, session, sent_at, reply, now, out)
            }
            Tag::KeepAlive { session, term, sent_at } => {
                let current = match self.state {
                    State::Settling { session, term, .. } | State::Open { session, term, .. } => {
                        (session, term)
                    }
                    _ => return None,
                };
                if current == (session, term) {
                    self.kept(settings, term, sent_at, reply, now, out);
                }
                None
            }
            Tag::Answer { .. } => None,
        }
    }

    fn opened(
        &mut self,
        settings: &Settings,
        session: u64,
        sent_at: BootNs,
        reply: Outcome<MetaReply>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Option<(Vec<(HostId, Epoch)>, BlockOrder)> {
        let problem = match reply {
            Ok(MetaReply::Session { term, logins, orders_to, blocks }) if term >= self.newest_term => {
                self.newest_term = term;
                let (fences, doubtful) = (BTreeMap::new(), BTreeMap::new());
                let lease_from = sent_at;
                self.state = State::Settling { session, term, lease_from, fences, doubtful, orders_to };
                self.next_keepalive = sent_at.plus(settings.keepalive_ns);
                self.last_sent = sent_at;
                self.problem = None;
                return Some((logins, blocks));
            }
            Ok(MetaReply::Session { term, .. }) => {
                self.close(now.plus(settings.keepalive_ns));
                format!("Meta answered in {term}, which is over: {} is known", self.newest_term)
            }
            Ok(MetaReply::Ok { .. }) => {
                self.close(now.plus(REFUSED_RETRY_NS));
                "Meta answered SessionOpen without a session: install the same release on every node".into()
            }
            Ok(MetaReply::Refused { error }) => {
                let passing = matches!(error, Refusal::NotLeader { .. });
                self.close(now.plus(if passing { settings.keepalive_ns } else { REFUSED_RETRY_NS }));
                format!("Meta refused the session: {error}")
            }
            Err(why) => {
                self.close(now.plus(settings.keepalive_ns));
                format!("Meta cannot be reached: {why}")
            }
        };
        if self.problem.as_ref() != Some(&problem) {
            out.push(Effect::Journal { at: now, event: Event::Fault { what: problem.clone() } });
            self.problem = Some(problem);
        }
        None
    }

    fn kept(
        &mut self,
        settings: &Settings,
        term: Term,
        sent_at: BootNs,
        reply: Outcome<MetaReply>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        match reply {
            Ok(MetaReply::Ok { term: theirs }) if theirs == term => match &mut self.state {
                State::Settling { lease_from, .. } => *lease_from = sent_at.max(*lease_from),
                _ => self.renew(settings, sent_at, now, out),
            },
            Ok(MetaReply::Ok { term: theirs } | MetaReply::Session { term: theirs, .. }) => {
                self.hear(theirs, now);
            }
            Ok(MetaReply::Refused { error: Refusal::NoSession }) => self.close(now),
            Ok(MetaReply::Refused { error }) => {
                let what = format!("Meta refused a keepalive: {error}");
                if self.problem.as_ref() != Some(&what) {
                    out.push(Effect::Journal { at: now, event: Event::Fault { what: what.clone() } });
                    self.problem = Some(what);
                }
            }
            // The session goes on until its lease runs out; the next keepalive is on its way already.
            Err(_) => {}
        }
    }

    /// The lease counts from when the keepalive was sent: Meta counts from when it came, which is later.
    fn renew(&mut self, settings: &Settings, sent_at: BootNs, now: BootNs, out: &mut Vec<Effect>) {
        let deadline = sent_at.plus(settings.session_ns);
        let deadline_no_agent = sent_at.plus(settings.session_no_agent_ns);
        if deadline > now && deadline > self.deadline {
            self.learn(deadline, deadline_no_agent);
            self.problem = None;
            out.push(Effect::Renew { deadline, deadline_no_agent });
        }
    }

    /// These must be fenced before the session that has just opened renews its lease.
    pub fn settle(
        &mut self,
        settings: &Settings,
        unnamed: BTreeSet<(HostId, Epoch)>,
        affirmed: BTreeSet<(HostId, Epoch)>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        if let State::Settling { fences, doubtful, .. } = &mut self.state {
            out.extend(unnamed.iter().map(|&(host, epoch)| Effect::Fence { host, epoch }));
            *fences = unnamed.into_iter().map(|key| (key, None)).collect();
            *doubtful = affirmed.into_iter().map(|key| (key, now)).collect();
        }
        self.settled(settings, now, out);
    }

    /// Whoever is affirmed by a stamp from after the session's opening is where Meta does not know it to be, and stays;
    /// once no older stamp can hold any more, the others are fenced. Gives those.
    pub fn judge_doubtful(
        &mut self,
        settings: &Settings,
        affirmed: impl Fn(HostId) -> BootNs,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Vec<(HostId, Epoch)> {
        let State::Settling { fences, doubtful, .. } = &mut self.state else { return Vec::new() };
        if doubtful.is_empty() {
            return Vec::new();
        }
        let last = |since: &BootNs| since.plus(settings.affirm_ns);
        doubtful.retain(|&(host, _), since| affirmed(host) <= last(since));
        let over = |since: &BootNs| now >= last(since);
        let fence: Vec<_> = doubtful.iter().filter(|(_, since)| over(since)).map(|(key, _)| *key).collect();
        doubtful.retain(|_, since| !over(since));
        out.extend(fence.iter().map(|&(host, epoch)| Effect::Fence { host, epoch }));
        fences.extend(fence.iter().map(|key| (*key, None)));
        self.settled(settings, now, out);
        fence
    }

    /// A host's word stands closed for `epoch`.
    pub fn fenced(
        &mut self,
        settings: &Settings,
        host: HostId,
        epoch: Epoch,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        if let State::Settling { fences, doubtful, .. } = &mut self.state {
            fences.retain(|&(h, e), _| h != host || e > epoch);
            doubtful.retain(|&(h, e), _| h != host || e > epoch);
            self.settled(settings, now, out);
        }
    }

    pub fn fence_failed(&mut self, host: HostId, epoch: Epoch, now: BootNs) {
        if let State::Settling { fences, .. } = &mut self.state
            && let Some(again) = fences.get_mut(&(host, epoch))
        {
            *again = Some(now.plus(RETRY_NS));
        }
    }

    fn settled(&mut self, settings: &Settings, now: BootNs, out: &mut Vec<Effect>) {
        if let State::Settling { session, term, lease_from, fences, doubtful, orders_to } = &self.state
            && fences.is_empty()
            && doubtful.is_empty()
        {
            let lease_from = *lease_from;
            self.state = State::Open { session: *session, term: *term, orders_to: *orders_to };
            self.renew(settings, lease_from, now, out);
        }
    }

    pub fn wake_at(&self) -> BootNs {
        match self.state {
            State::Closed { open_at } => open_at,
            State::Opening { sent_at, .. } => sent_at.plus(OPEN_TIMEOUT_NS),
            State::Settling { .. } => self.next_keepalive,
            State::Open { .. } => self.next_keepalive.min(self.deadline),
        }
    }
}
