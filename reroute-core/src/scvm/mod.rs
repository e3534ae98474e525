//! The SCVM's machine: follows a session with Meta, admits and fences hosts, tells a dead server from a busy one.
//!
//! | part | decides |
//! |---|---|
//! | [`mode`] | whether the kernel enforces |
//! | [`signal`] | what the kernel tells at once |
//! | [`session`] | when the lease in the kernel may be renewed |
//! | [`server`] | whether the access server lives and answers |
//! | [`admission`] | orders Prepare and Admit, the epoch file |
//! | [`revoke`] | order Revoke: fence, drain, kill, proof |
//! | [`wanted`] | clients without an agent that call here: told to Meta |
//! | [`client_reset`] | connections of a client that cannot end them itself |
//! | [`wedged`] | clients that get no replies while others do: they are named |
//! | [`blocks`] | whom an operator keeps away |
//! | [`outbox`] | answers to Meta, sent until taken in |
//! | [`limits`] | how old a call may grow, per client: a machine of its own beside this one |
//!
//! The kernel's words only grow, whoever asks: what comes late or twice changes nothing there, and this machine
//! takes the words it reads for the truth.

pub mod admission;
pub mod blocks;
mod client_reset;
pub mod hung;
pub mod io;
pub mod limits;
mod mode;
mod orders;
pub mod outbox;
mod recorded;
pub mod revoke;
pub mod server;
pub mod session;
mod signal;
mod view;
pub mod wanted;
mod wedged;

#[cfg(test)]
mod tests;

pub use client_reset::ClientResetStanding;
pub use io::*;
pub use view::{HeldStanding, HostStanding, RevokeStanding, View, rank_name};

use crate::duplicate;
use crate::ids::*;
use crate::proto::ServerHealth;
use crate::timeline::Event;
use admission::Admission;
use blocks::Blocks;
use client_reset::ClientResets;
use outbox::Outbox;
use reroute_common::admission::Word;
use revoke::{Revoke, Stage, World};
use serde::{Deserialize, Serialize};
use server::Server;
use session::Session;
use std::collections::BTreeMap;
use wanted::Wanted;
use wedged::Wedged;

/// What failed locally is tried again after this.
pub const RETRY_NS: u64 = 20 * MS;
/// The machine wants to see the time at least this often.
const BEAT_NS: u64 = 10 * MS;
/// The same fault is recorded once in this time.
const FAULT_GAP_NS: u64 = 10 * SEC;

/// Times in ns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settings {
    pub id: ScvmId,
    /// This boot of the SCVM's kernel.
    pub boot: Incarnation,
    pub policy: FencePolicy,
    /// Enforce or shadow, as configured.
    pub mode: Mode,
    /// An operator's suspension stands from before.
    pub bypass: bool,
    pub keepalive_ns: u64,
    pub session_ns: u64,
    pub session_no_agent_ns: u64,
    /// How long a host's affirmation holds, from the stamp it echoes.
    pub affirm_ns: u64,
    pub silent_ns: u64,
    pub drain_ns: u64,
    pub planned_drain_ns: u64,
    /// How long a NULL call to the local server is waited for.
    pub null_rpc_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scvm {
    settings: Settings,
    session: Session,
    server: Server,
    admission: Admission,
    blocks: Blocks,
    revokes: BTreeMap<HostId, Revoke>,
    outbox: Outbox,
    wanted: Wanted,
    wedged: Wedged,
    client_resets: ClientResets,
    clients: BTreeMap<HostId, ClientFacts>,
    bypass: bool,
    /// The mode the kernel is known to be in.
    standing: Option<Mode>,
    mode_asked: Option<(Mode, Option<BootNs>)>,
    persist_again: Option<BootNs>,
    faults: BTreeMap<String, BootNs>,
    duplicate: Option<duplicate::Watch>,
}

impl Scvm {
    pub fn new(settings: Settings, now: BootNs) -> Scvm {
        Scvm {
            session: Session::new(now),
            server: Server::new(settings.silent_ns, now),
            admission: Admission::default(),
            blocks: Blocks::default(),
            revokes: BTreeMap::new(),
            outbox: Outbox::default(),
            wanted: Wanted::default(),
            wedged: Wedged::default(),
            client_resets: ClientResets::default(),
            clients: BTreeMap::new(),
            bypass: settings.bypass,
            standing: None,
            mode_asked: None,
            persist_again: None,
            faults: BTreeMap::new(),
            duplicate: None,
            settings,
        }
    }

    /// Others may claim this SCVM's storage address: they are asked for.
    pub fn with_duplicate_watch(mut self) -> Scvm {
        self.duplicate = Some(duplicate::Watch::default());
        self
    }

    /// Takes in what happened; gives what to do now. The caller reports each effect's result as the next input.
    pub fn handle(&mut self, input: Input, now: BootNs) -> Vec<Effect> {
        let mut out = Vec::new();
        let facts_only = matches!(input, Input::Server(_) | Input::Clients(_));
        self.take(input, now, &mut out);
        if !facts_only {
            self.progress(now, &mut out);
        }
        self.faults.retain(|_, at| now.since(*at) < FAULT_GAP_NS);
        out.retain(|effect| match effect {
            Effect::Journal { event: Event::Fault { what }, .. } => {
                self.faults.insert(what.clone(), now).is_none()
            }
            _ => true,
        });
        out
    }

    /// When to send the next [`Input::Tick`], at the latest.
    pub fn wake_at(&self, now: BootNs) -> BootNs {
        let revokes = self.revokes.values().filter_map(Revoke::wake_at).min();
        let mode = self.mode_asked.and_then(|(_, again)| again);
        let parts = [
            self.server.wake_at(),
            self.admission.wake_at(),
            self.outbox.wake_at(),
            self.blocks.wake_at(),
            revokes,
            mode,
        ];
        let soonest = parts.into_iter().flatten().chain([self.session.wake_at()]).min();
        now.plus(BEAT_NS).min(soonest.unwrap_or(now).max(now))
    }

    pub fn health(&self) -> ServerHealth {
        let facts = self.server.facts();
        ServerHealth {
            server_incarnation: self.server.incarnation(),
            listening: facts.listening,
            process_alive: self.server.is_alive(),
            stalled: self.server.stalled(),
            null_failed: self.server.null_failed(),
            no_carrier: self.server.no_carrier.iter().copied().collect(),
            bypass: self.bypass,
            clients: self.clients.values().filter(|c| c.connections > 0).count() as u32,
            connections: self.clients.values().map(|c| c.connections).sum(),
            calls_waiting: facts.waiting,
            held_clients: self.wanted.held().len() as u32,
            blocks: if self.lenient().is_none() { self.blocks.enforced() } else { 0 },
            duplicate: self.duplicate.as_ref().and_then(|d| d.found().cloned()),
        }
    }

    /// The term of the session that is open, or opens.
    pub fn term(&self) -> Option<Term> {
        self.session.term()
    }

    /// Whether an order that was just heard came in the session that is open now, and not in a buffer from before it.
    pub fn is_of_this_session(&self, term: Term, seq: u64, now: BootNs) -> bool {
        self.session.live(&self.settings, now).is_some_and(|live| (term, seq) > live)
    }

    /// Why nobody should move here.
    fn unwell(&self) -> Option<String> {
        if self.bypass {
            Some("an operator has suspended enforcement (bypass)".into())
        } else if !self.server.is_alive() {
            let why = self.server.problem.as_deref().unwrap_or("it has exited");
            Some(format!("no server process: {why}"))
        } else if !self.server.facts().listening {
            Some("nobody listens on the service port".into())
        } else if self.server.null_failed() {
            Some("the server does not answer".into())
        } else {
            None
        }
    }

    fn take(&mut self, input: Input, now: BootNs, out: &mut Vec<Effect>) {
        match input {
            Input::Tick => {}
            Input::Quiet => self.server.quiet(now),
            Input::Server(facts) => {
                self.session.learn(facts.session_deadline, facts.session_deadline_no_agent);
                self.server.learn(facts, now);
            }
            Input::Clients(clients) => {
                for client in &clients {
                    self.admission.learn(client.host, client.word);
                    self.blocks.learn(client.host, client.blocked_until);
                }
                self.clients = clients.into_iter().map(|c| (c.host, c)).collect();
                self.look_for_wedged(now);
            }
            Input::Signal(signal) => self.signal(signal, now, out),
            Input::ServerSeen { pid, incarnation } => self.server.seen(pid, incarnation, now, out),
            Input::ServerExited { pid, incarnation } => {
                self.server.exited(pid, incarnation, now, out);
                self.each_revoke(|r, w, o, out| r.server_exited(incarnation, w, now, o, out), out);
            }
            Input::ServerProblem(problem) => {
                if let Some(what) = problem.clone() {
                    out.push(Effect::Journal { at: now, event: Event::Fault { what } });
                }
                self.server.problem = problem;
            }
            Input::Carrier { network, up } => {
                if self.server.carrier(network, up) {
                    let signal = format!("carrier_{} {network}", if up { "back" } else { "lost" });
                    let event =
                        Event::KernelSignal { signal, host: None, age_ns: 0, limit_ns: 0, waiting: 0 };
                    out.push(Effect::Journal { at: now, event });
                }
            }
            Input::OwnAddress(answered) => {
                let news = self.duplicate.as_mut().and_then(|d| d.answered(answered));
                out.extend(news.map(|what| Effect::Journal { at: now, event: Event::Fault { what } }));
            }
            Input::Bypass { on, actor } => self.switch_bypass(on, actor, now, out),
            Input::Order { term, seq, order } => self.order(term, seq, order, now, out),
            Input::Reply { tag: Tag::Answer { id }, reply } => self.outbox.reply(id, reply, now, out),
            Input::Reply { tag, reply } => {
                if let Some((logins, blocks)) = self.session.reply(&self.settings, tag, reply, now, out) {
                    self.blocks.begin(blocks, now);
                    self.serve(logins, now, out);
                }
            }
            Input::Renewed(result) => fault("session lease not renewed in the kernel", result, now, out),
            Input::EpochsPublished(result) => self.admission.published(result, now, &mut self.outbox, out),
            Input::AdmitAnswer { host, epoch, answer } => {
                self.admission.answered(host, epoch, answer, now, &mut self.outbox, out)
            }
            Input::FenceAnswer { host, epoch, answer } => self.fence_answer(host, epoch, answer, now, out),
            Input::Counts { host, epoch, answer } => {
                if let Ok(answer) = &answer {
                    self.admission.learn(host, answer.word);
                }
                self.revoke(host, |r, w, o, out| r.counts(epoch, &answer, w, now, o, out), out);
                self.close_fenced(host);
            }
            Input::Purged { host, purpose: Purpose::Unseen, purge, .. } => {
                self.closed_unseen(host, purge, now, out)
            }
            Input::Purged { host, epoch, purpose: Purpose::Fence, purge } => {
                if matches!(purge, Ok(Purge { left: 0, .. })) {
                    self.admission.cleaned(host, epoch);
                }
                self.revoke(host, |r, _, _, out| r.purged(epoch, &purge, now, out), out)
            }
            Input::Purged { host, epoch, purpose: Purpose::Prepare, purge } => {
                self.admission.purged(host, epoch, purge, now, &mut self.outbox, out)
            }
            Input::ClientReset { host, epoch, result } => self.client_reset(host, epoch, result, now, out),
            Input::NullRpc { answered, took_ns, starved } => {
                if self.server.null_rpc(answered, took_ns, starved, now, out) {
                    self.admission.probed(answered, &mut self.outbox, out);
                }
                self.revokes.values_mut().for_each(|r| r.look_again(now));
            }
            Input::BlockSet { host, until, result } => self.blocks.set(host, until, result, now, out),
            Input::AgentStateSet(result) => self.server.agent_state_set(result, now, out),
            Input::ModeSet { mode, result } => self.mode_set(mode, result, now, out),
            Input::BypassPersisted(result) => {
                if result.is_err() {
                    self.persist_again = Some(now.plus(SEC));
                }
                fault("bypass not kept over a restart", result, now, out);
            }
            Input::KillSent { incarnation, result } => {
                if let Err(why) = result {
                    self.each_revoke(|r, _, o, out| r.kill_failed(incarnation, &why, now, o, out), out);
                }
            }
            Input::ServerRegistered { incarnation, result } => {
                self.server.registered(incarnation, result, now, out)
            }
        }
    }

    /// What is due.
    fn progress(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        let asking = self.mode_asked.is_some_and(|(_, again)| again.is_none_or(|at| at > now));
        if self.standing != Some(self.wanted_mode()) && !asking {
            let mode = self.wanted_mode();
            self.mode_asked = Some((mode, None));
            out.push(Effect::SetMode { mode });
        }
        if self.persist_again.is_some_and(|at| at <= now) {
            self.persist_again = None;
            out.push(Effect::PersistBypass { on: self.bypass });
        }
        self.each_revoke(|r, world, outbox, out| r.tick(world, now, outbox, out), out);
        if self.session.live(&self.settings, now).is_none() {
            self.admission.forget_pending(now, out);
        }
        self.admission.tick(now, out);
        self.blocks.tick(now, out);
        let world = World { settings: &self.settings, server: &self.server, lenient: self.lenient() };
        let wanted_from = self.revokes.values().filter_map(|r| r.probe_from(&world)).max();
        self.server.tick(wanted_from, now, out);
        self.tell_wanted(now, out);
        self.tell_wedged(now, out);
        let carrier = !self.server.no_carrier.contains(&Network::Storage);
        if carrier && self.duplicate.as_mut().is_some_and(|d| d.is_due(now)) {
            out.push(Effect::AskOwnAddress);
        }
        self.outbox.tick(now, out);
        let affirmed = |host| self.clients.get(&host).map_or(BootNs(0), |c| c.affirm_deadline);
        for (host, epoch) in self.session.judge_doubtful(&self.settings, affirmed, now, out) {
            self.admission.close(host, epoch);
        }
        let health = self.health();
        self.session.tick(&self.settings, &health, now, out);
    }

    fn each_revoke(
        &mut self,
        mut f: impl FnMut(&mut Revoke, &World, &mut Outbox, &mut Vec<Effect>),
        out: &mut Vec<Effect>,
    ) {
        let world = World { settings: &self.settings, server: &self.server, lenient: self.lenient() };
        for revoke in self.revokes.values_mut() {
            f(revoke, &world, &mut self.outbox, out);
        }
    }

    fn revoke(
        &mut self,
        host: HostId,
        mut f: impl FnMut(&mut Revoke, &World, &mut Outbox, &mut Vec<Effect>),
        out: &mut Vec<Effect>,
    ) {
        self.each_revoke(
            |r, world, outbox, out| {
                if r.host == host {
                    f(r, world, outbox, out)
                }
            },
            out,
        );
    }
}

fn fault(what: &str, result: Outcome<()>, now: BootNs, out: &mut Vec<Effect>) {
    if let Err(why) = result {
        out.push(Effect::Journal { at: now, event: Event::Fault { what: format!("{what}: {why}") } });
    }
}
