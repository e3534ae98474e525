//! Fence proofs as plug-ins: each knows one way to learn that a server is shut for good.
//!
//! | file | asks | hears |
//! |---|---|---|
//! | [`pulse`] | nobody: hosts pulse anyway | the old server's kernel, through the moving host |
//! | [`agent`] | the old server's agent, on every network | what covers the calls in progress |
//! | [`lease`] | nobody: time passes | both leases have run out |
//! | [`hypervisor`] | the hosts beside the SCVM | its domain is dead |
//! | [`command`] | the configured fence command | its exit code |
//! | [`operator`] | nobody: `status` says what is waited for | `move vouch` |
//!
//! A server is shut when it can neither *accept* a call of the old epoch nor *execute* one that it has accepted. A
//! proof covers both, or names in [`Proof::gives`] what it takes on trust. Several may be given for one server: the
//! record keeps the one that takes least.

mod agent;
mod ask;
pub use ask::Waiting;
pub(super) mod command;
mod hypervisor;
mod lease;
mod operator;
mod pulse;

use crate::ids::*;
use crate::proto::*;

/// A login's claim on one server, as it stands on record, and what Meta knows around it.
pub(super) struct Case<'a> {
    pub host: HostId,
    pub fencing: &'a Fencing,
    pub planned: bool,
    /// Planned, and the server that is left has a session: Meta goes back there when the move comes to nothing. Without
    /// one it cannot, and the move has to come to its end as any other.
    pub goes_back: bool,
    pub scvm: ScvmId,
    /// None: it is in the configuration no more. Its logins have to be left all the same.
    pub policy: Option<FencePolicy>,
    /// Hosts whose `local_scvm` it is.
    pub beside: Vec<HostId>,
    pub session: SessionState,
    /// Kernel boot that the SCVM opened its last session of this term with.
    pub boot: Option<Incarnation>,
    /// No session lease of it can be running any more.
    pub session_expired: bool,
    /// The host may still be affirming it, or its last affirmation may still hold.
    pub affirmed: bool,
    /// It was a target only: the host never had a way there.
    pub target_only: bool,
    /// A host that is logged in there says that it is served well.
    pub serves_others: bool,
    /// How long the move has been on record, ns.
    pub waits_ns: u64,
    /// None: no fence command is configured.
    pub command: Option<command::Settings>,
}

/// Something that may be a proof.
#[derive(Clone, Copy, Debug)]
pub(super) enum Heard {
    /// Time has passed.
    Time,
    /// The moving host: the old server's kernel says that it is closed and idle.
    Pulse,
    /// The old server's agent.
    Agent(FenceProof),
    /// A host's hypervisor, see [`ToMeta::DomainDead`].
    Domain {
        by: HostId,
        boot: Option<Incarnation>,
    },
    /// The fence command ended with 0.
    Command,
    Operator,
}

/// What a plug-in needs to be done to hear something.
pub(super) enum Want {
    Order(NodeId, Order),
    /// Run the fence command for this server.
    Command,
}

pub(super) trait Proof: Sync {
    /// For people.
    fn name(&self) -> &'static str;
    /// Whether it can prove anything of this server as things stand.
    fn applies(&self, case: &Case) -> bool;
    /// What to do, again and again until the server is proven to be shut. Only asked if it applies.
    fn asks(&self, _case: &Case) -> Vec<Want> {
        Vec::new()
    }
    /// What `heard` proves. `Ok(None)`: nothing, or it is not this plug-in's to hear. Errors say why it is no proof
    /// although its sender takes it for one.
    fn judge(&self, case: &Case, heard: Heard) -> Result<Option<FenceProof>, Refusal>;
    /// The proofs it gives, each with what it takes on trust (empty: nothing).
    fn gives(&self) -> &'static [(FenceProof, &'static str)];
}

const ALL: [&dyn Proof; 6] = [
    &pulse::KernelAnswer,
    &agent::AgentAnswer,
    &lease::LeaseExpiry,
    &hypervisor::Hypervisor,
    &command::FenceCommand,
    &operator::OperatorsWord,
];

/// What a proof takes on trust; empty: nothing.
pub fn does_not_cover(proof: FenceProof) -> &'static str {
    let given = ALL.iter().flat_map(|plugin| plugin.gives());
    given.copied().find(|(p, _)| *p == proof).map_or("", |(_, trust)| trust)
}

/// The best that any plug-in makes of it. An error only if none makes anything of it.
pub(super) fn judge(case: &Case, heard: Heard) -> Result<Option<FenceProof>, Refusal> {
    let mut best: Option<FenceProof> = None;
    let mut refused = Ok(None);
    for plugin in ALL {
        match plugin.judge(case, heard) {
            Ok(Some(proof)) => best = Some(best.map_or(proof, |b| b.min(proof))),
            Ok(None) => {}
            Err(why) => refused = Err(why),
        }
    }
    if best.is_some() { Ok(best) } else { refused }
}

/// What an SCVM's agent may say under its policy.
pub(super) fn agent_may_say(policy: FencePolicy, proof: FenceProof) -> bool {
    agent::is_allowed(policy, proof)
}

/// What all that apply want done.
pub(super) fn wants(case: &Case) -> Vec<Want> {
    ALL.iter().filter(|p| p.applies(case)).flat_map(|p| p.asks(case)).collect()
}

/// Names of those that apply: what a move that waits may wait for.
pub(super) fn applying(case: &Case) -> Vec<&'static str> {
    ALL.iter().filter(|p| p.applies(case)).map(|p| p.name()).collect()
}
