//! One run: the event queue.

use super::plan::{Manners, Options, Plan, between, chance};
use crate::world::{
    Applied, Blocked, Failure, Fault, Id, Kind, Nature, Node, Pending, Said, Step, Violation, World,
};
use fastrand::Rng;
use reroute_core::ids::*;
use reroute_core::proto::FenceProof;
use reroute_core::timeline::Event;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::Write;

/// How often it is looked whether all is well again.
const LOOK_NS: u64 = 100 * MS;
/// A server that waits for ever for what it lost sight of is restarted by somebody.
const RESTART_NS: u64 = 12 * SEC;
/// Long after everything was mended.
const STUCK_NS: u64 = 40 * SEC;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Do(Id),
    Wake(Node),
    Client(HostId),
    Timer(ScvmId),
    Resend(ScvmId),
    Fault(usize),
    Mend,
    Look,
}

#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub seed: u64,
    pub steps: u64,
    pub time: u64,
    pub first_logins: u64,
    pub moves: u64,
    pub returns: u64,
    pub writes: u64,
    pub faults: u64,
    pub proofs: BTreeMap<FenceProof, u64>,
    pub gaps: Vec<u64>,
    pub overtaken: u64,
    pub violations: Vec<Violation>,
}

/// Runs one seed to its end. `trace`: where to tell what happens.
pub fn run(seed: u64, options: &Options, trace: Option<&mut dyn Write>) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    let plan = Plan::draw(&mut rng, options);
    Sim::new(seed, rng, plan, trace).run()
}

pub struct Sim<'a> {
    pub world: World,
    rng: Rng,
    manners: Manners,
    faults: Vec<(u64, Fault)>,
    mended_at: u64,
    stay: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Due)>>,
    order: u64,
    /// When each timer is in the queue for; what is there besides is out of date.
    timers: BTreeMap<Due, u64>,
    /// Waits for a machine that stands still.
    still: Vec<Id>,
    mended: bool,
    restarted: bool,
    well_since: Option<u64>,
    done_at_mend: Vec<u64>,
    /// Of each host: its last write's end and server; the SCVM of its login.
    last: BTreeMap<HostId, (u64, ScvmId)>,
    logins: BTreeMap<HostId, ScvmId>,
    outcome: Outcome,
    trace: Option<&'a mut dyn Write>,
}

impl<'a> Sim<'a> {
    pub fn new(seed: u64, rng: Rng, plan: Plan, trace: Option<&'a mut dyn Write>) -> Sim<'a> {
        let Plan { settings, clocks, manners, faults, mended_at, stay } = plan;
        let of = |node| clocks.iter().find(|(n, _)| *n == node).map(|(_, c)| c.clone());
        let exact = crate::world::clock::Clock::new(SEC, crate::world::clock::TRUE_RATE);
        let world = World::new(settings, |node| of(node).unwrap_or(exact.clone()));
        Sim {
            world,
            rng,
            manners,
            faults,
            mended_at,
            stay,
            queue: BinaryHeap::new(),
            order: 0,
            timers: BTreeMap::new(),
            still: Vec::new(),
            mended: false,
            restarted: false,
            well_since: None,
            done_at_mend: Vec::new(),
            last: BTreeMap::new(),
            logins: BTreeMap::new(),
            outcome: Outcome { seed, ..Outcome::default() },
            trace,
        }
    }

    fn tell(&mut self, what: impl FnOnce(&World) -> String) {
        if let Some(trace) = &mut self.trace {
            let line = what(&self.world);
            let _ = writeln!(trace, "{:>12.6} {line}", self.world.now as f64 / SEC as f64);
        }
    }

    fn push(&mut self, at: u64, due: Due) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, due)));
    }

    fn timer(&mut self, due: Due, at: Option<u64>) {
        match at.map(|at| at.max(self.world.now)) {
            None => {
                self.timers.remove(&due);
            }
            Some(at) if self.timers.get(&due) != Some(&at) => {
                self.timers.insert(due, at);
                self.push(at, due);
            }
            Some(_) => {}
        }
    }

    pub fn run(mut self) -> Outcome {
        self.tell(|w| format!("{:?}", w.settings));
        for step in self.world.begin() {
            self.step(step);
        }
        for host in self.world.settings.clone().host_ids() {
            self.timer(Due::Client(host), self.world.client_due(host));
        }
        for i in 0..self.faults.len() {
            self.push(self.faults[i].0, Due::Fault(i));
        }
        self.push(self.mended_at, Due::Mend);
        while let Some(Reverse((at, _, due))) = self.queue.pop() {
            if matches!(due, Due::Wake(_) | Due::Client(_) | Due::Timer(_) | Due::Resend(_)) {
                if self.timers.get(&due) != Some(&at) {
                    continue;
                }
                self.timers.remove(&due);
            }
            self.world.now = self.world.now.max(at);
            if self.happens(due) || !self.world.violations().is_empty() {
                break;
            }
        }
        self.finish()
    }

    /// True: the run is over.
    fn happens(&mut self, due: Due) -> bool {
        match due {
            Due::Do(id) => self.arrives(id),
            Due::Wake(node) => self.step(Step::Wake(node)),
            Due::Client(host) => self.step(Step::Client(host)),
            Due::Timer(scvm) => self.step(Step::Timer(scvm)),
            Due::Resend(scvm) => self.step(Step::Resend(scvm)),
            Due::Fault(i) => {
                let fault = self.faults[i].1;
                if self.mended {
                } else if self.waits_for_moment(fault, i) {
                    self.push(self.world.now + 100_000, Due::Fault(i));
                } else {
                    self.fault(fault);
                }
            }
            Due::Mend => self.mend(),
            Due::Look => return self.look(),
        }
        false
    }

    /// An agent is best stopped when an answer is on its way to it: such a moment is waited for, but not for long.
    fn waits_for_moment(&self, fault: Fault, i: usize) -> bool {
        let Fault::PauseAgent(id) = fault else { return false };
        let coming = |p: &Pending| matches!(p, Pending::Answer { to: NodeId::Scvm(to), .. } if *to == id);
        self.world.now < self.faults[i].0 + 150 * MS && !self.world.flight.iter().any(|(_, p)| coming(p))
    }

    fn fault(&mut self, fault: Fault) {
        self.outcome.faults += 1;
        self.tell(|_| format!("** {fault:?}"));
        // What a process had asked the disk for may be there or not when it dies.
        let dies = match fault {
            Fault::CrashHost(id) => Some(Node::Host(id)),
            Fault::CrashAgent(id) => Some(Node::Scvm(id)),
            Fault::CrashMeta(id) => Some(Node::Meta(id)),
            _ => None,
        };
        if let Some(node) = dies {
            let disk = |p: &Pending| p.nature() == Nature::Disk && p.way().1 == node;
            let ids: Vec<Id> = self.world.flight.iter().filter(|(_, p)| disk(p)).map(|(id, _)| id).collect();
            for id in ids {
                let step = if self.rng.bool() { Step::Do(id) } else { Step::Lose(id) };
                self.step(step);
            }
        }
        self.step(Step::Fault(fault));
        for id in std::mem::take(&mut self.still) {
            let at = self.world.now + self.rng.u64(1..2 * MS);
            self.push(at, Due::Do(id));
        }
        for scvm in self.world.settings.clone().scvm_ids() {
            self.again(Node::Scvm(scvm));
        }
    }

    /// Everything works again.
    fn mend(&mut self) {
        self.mended = true;
        self.tell(|_| "** everything is mended".into());
        let settings = self.world.settings.clone();
        self.manners = Manners::good();
        self.fault(Fault::HealAll);
        for scvm in settings.scvm_ids() {
            for fault in [
                Fault::Thaw(scvm),
                Fault::PowerOn(scvm),
                Fault::ResumeServer(scvm),
                Fault::StartServer(scvm),
                Fault::StartAgent(scvm),
                Fault::GoOn(scvm),
            ] {
                self.fault(fault);
            }
        }
        for host in settings.host_ids() {
            for network in self.world.host(host).no_carrier.clone() {
                self.fault(Fault::Carrier(host, network, true));
            }
            self.fault(Fault::StartHost(host));
        }
        let leads = (0..settings.metas).any(|m| self.world.meta(m).leader.is_some());
        if !leads {
            self.fault(Fault::StartMeta(0));
        }
        self.done_at_mend = settings.host_ids().map(|h| self.world.host(h).client.done()).collect();
        self.push(self.world.now + LOOK_NS, Due::Look);
    }

    /// Do all hosts write again, where Meta says, and admitted there?
    fn why_not_well(&self) -> Option<String> {
        for (i, host) in self.world.settings.host_ids().enumerate() {
            let Some((scvm, epoch)) = self.world.stands(host) else {
                return Some(format!("{host} is moving: {:?}", self.world.store.logins.get(&host)));
            };
            let leads = self.world.leads_to(host);
            if leads.scvm != scvm {
                return Some(format!("{host} goes to {leads}, its login stands at {scvm} ({epoch})"));
            }
            let now = self.world.local(Node::Scvm(scvm));
            if !self.world.scvm(scvm).kernel.admits(host, now) {
                return Some(format!("{host} is not admitted by {scvm} at {epoch}"));
            }
            let done = self.world.host(host).client.done();
            if done < self.done_at_mend[i] + 3 {
                return Some(format!("{host} does not write: {:?}", self.world.host(host).client));
            }
        }
        None
    }

    fn look(&mut self) -> bool {
        let now = self.world.now;
        match self.why_not_well() {
            None => {
                let since = *self.well_since.get_or_insert(now);
                if now - since >= self.stay {
                    return true;
                }
            }
            Some(why) => {
                self.well_since = None;
                if now > self.mended_at + STUCK_NS {
                    self.world.oracle.say(Kind::Stuck, why);
                    return true;
                }
                if now > self.mended_at + RESTART_NS && !self.restarted {
                    self.restarted = true;
                    for scvm in self.world.settings.clone().scvm_ids() {
                        self.fault(Fault::KillServer(scvm));
                        self.fault(Fault::StartServer(scvm));
                    }
                }
            }
        }
        self.push(now + LOOK_NS, Due::Look);
        false
    }

    /// Something under way comes to its end, one way or another.
    fn arrives(&mut self, id: Id) {
        let Some(pending) = self.world.flight.get(id) else { return };
        let nature = pending.nature();
        match self.world.blocked(id) {
            Some(Blocked::Still) => {
                // A machine that stands still has room for some packets.
                if nature == Nature::Datagram && self.rng.u32(0..4) != 0 {
                    self.step(Step::Lose(id));
                } else {
                    self.still.push(id);
                }
                return;
            }
            Some(Blocked::Away) => {
                let at = self.world.now + self.rng.u64(50 * MS..400 * MS);
                return self.push(at, Due::Do(id));
            }
            None => {}
        }
        if self.trace.is_some() {
            let quiet = matches!(pending, Pending::Pulse(p) if p.flag != reroute_core::host::PulseFlag::Release)
                || matches!(pending, Pending::PulseReply { .. });
            let text = format!("{pending:?}");
            if !quiet && !text.contains("KeepAlive") && !text.contains("View {") {
                self.tell(|_| format!("   {text}"));
            }
        }
        if nature == Nature::Disk && chance(&mut self.rng, self.manners.disk_fails) {
            let failure = [Failure::Refused, Failure::Unknown, Failure::Lost][self.rng.usize(0..3)];
            return self.step(Step::Fail(id, failure));
        }
        if nature == Nature::Datagram && chance(&mut self.rng, self.manners.double) {
            self.step(Step::Double(id));
            let at = self.world.now + between(&mut self.rng, 10_000, 50 * MS);
            return self.push(at, Due::Do(id));
        }
        self.step(Step::Do(id));
    }

    fn step(&mut self, step: Step) {
        self.outcome.steps += 1;
        let Applied { new, touched, clients, said, acked } = self.world.apply(step);
        for id in new {
            self.schedule(id);
        }
        for node in touched {
            self.again(node);
        }
        for host in clients {
            self.timer(Due::Client(host), self.world.client_due(host));
        }
        if let Step::Wake(node) = step {
            self.again(node);
        }
        for said in said {
            self.heard(said);
        }
        for (host, scvm) in acked {
            self.outcome.writes += 1;
            let now = self.world.now;
            if let Some((at, before)) = self.last.insert(host, (now, scvm))
                && before != scvm
            {
                self.outcome.gaps.push(now - at);
            }
        }
    }

    fn again(&mut self, node: Node) {
        self.timer(Due::Wake(node), self.world.due(node));
        if let Node::Scvm(id) = node {
            self.timer(Due::Timer(id), self.world.timer_due(id));
            self.timer(Due::Resend(id), self.world.resend_due(id));
        }
    }

    /// Draws when something new comes to its end.
    fn schedule(&mut self, id: Id) {
        let Some(pending) = self.world.flight.get(id) else { return };
        let rng = &mut self.rng;
        let now = self.world.now;
        let m = &self.manners;
        let late = |rng: &mut Rng| rng.u64(MS..m.late_most.max(2 * MS));
        let after = match pending {
            Pending::Post { .. } | Pending::Answer { .. } | Pending::Line { .. } => {
                let base = rng.u64(100_000..500_000);
                if chance(rng, m.loss) {
                    base + 200 * MS // TCP sends it again
                } else if chance(rng, m.late) {
                    base + late(rng)
                } else {
                    base
                }
            }
            Pending::Connect { .. } => rng.u64(MS..100 * MS),
            Pending::Persist { .. } => between(rng, 200_000, 20 * MS),
            Pending::Publish { .. } => between(rng, 50_000, 5 * MS),
            Pending::Store { .. } => between(rng, 200_000, 15 * MS),
            Pending::Probe { scvm, sent_at, .. } => {
                let node = self.world.scvm(*scvm);
                if node.server.hung {
                    let over = sent_at.plus(self.world.settings.timing.null_rpc);
                    node.clock.when(over).saturating_sub(now)
                } else {
                    rng.u64(50_000..500_000)
                }
            }
            Pending::Execute { .. } if chance(rng, m.slow_calls) => between(rng, MS, 200 * MS),
            Pending::Execute { .. } => rng.u64(50_000..600_000),
            Pending::Reap { .. } => between(rng, 100_000, 200 * MS),
            Pending::Pulse(_) | Pending::PulseReply { .. } | Pending::Call { .. } | Pending::Reply { .. } => {
                if chance(rng, m.loss) {
                    return self.step(Step::Lose(id));
                }
                let base = rng.u64(15_000..120_000);
                if chance(rng, m.late) { base + late(rng) } else { base }
            }
        };
        self.push(now + after, Due::Do(id));
    }

    fn heard(&mut self, said: Said) {
        match &said.event {
            Event::LoginStored { host, scvm, .. } => match self.logins.insert(*host, *scvm) {
                None => self.outcome.first_logins += 1,
                Some(before) if before != *scvm => {
                    self.outcome.moves += 1;
                    self.outcome.returns += u64::from(*scvm == self.world.settings.local(*host));
                }
                Some(_) => {}
            },
            Event::FenceProven { proof, .. } => *self.outcome.proofs.entry(*proof).or_default() += 1,
            _ => {}
        }
        self.tell(|_| format!("{:>6} {:?}", said.node.to_string(), said.event));
    }

    fn finish(mut self) -> Outcome {
        self.outcome.time = self.world.now;
        self.outcome.overtaken = self.world.oracle.overtaken;
        self.outcome.violations = self.world.violations().to_vec();
        for violation in self.outcome.violations.clone() {
            self.tell(|_| format!("!! {:?}: {}", violation.kind, violation.what));
        }
        self.outcome
    }
}
