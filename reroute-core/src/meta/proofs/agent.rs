//! The old server's agent: ordered to revoke, it says what covers the calls in progress.

use super::{Case, Heard, Proof, Want};
use crate::ids::{FencePolicy, NodeId};
use crate::proto::{FenceProof, Order, Refusal};

pub(super) struct AgentAnswer;

impl Proof for AgentAnswer {
    fn name(&self) -> &'static str {
        "its agent's answer"
    }
    fn applies(&self, case: &Case) -> bool {
        case.policy.is_some()
    }
    fn asks(&self, case: &Case) -> Vec<Want> {
        let order = Order::Revoke { host: case.host, epoch: case.fencing.epoch, planned: case.planned };
        vec![Want::Order(NodeId::Scvm(case.fencing.scvm), order)]
    }
    fn judge(&self, case: &Case, heard: Heard) -> Result<Option<FenceProof>, Refusal> {
        let Heard::Agent(proof) = heard else { return Ok(None) };
        match case.policy.is_some_and(|policy| is_allowed(policy, proof)) {
            true => Ok(Some(proof)),
            false => Err(Refusal::ProofNotAllowed { node: NodeId::Scvm(case.scvm), proof }),
        }
    }
    fn gives(&self) -> &'static [(FenceProof, &'static str)] {
        const HANDED_ON: &str = "writes the dead server had handed to other processes";
        &[
            (FenceProof::Drained, ""),
            (FenceProof::ProcessDead, HANDED_ON),
            (FenceProof::Killed, HANDED_ON),
            (FenceProof::Storage, "a storage layer that does not check the owner"),
        ]
    }
}

/// What an agent may say under its policy.
pub(super) fn is_allowed(policy: FencePolicy, proof: FenceProof) -> bool {
    match proof {
        FenceProof::Drained | FenceProof::ProcessDead => true,
        FenceProof::Killed => policy == FencePolicy::Kill,
        FenceProof::Storage => policy == FencePolicy::Storage,
        _ => false,
    }
}
