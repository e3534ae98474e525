//! The hypervisor: dom0 knows whether the domain of its own SCVM is dead.
//!
//! Its word counts only as an answer: what it saw before it was asked may be from before a restart of the domain that
//! was then admitted. The question goes out when the move is on record, and from then on nobody is admitted there at
//! that epoch.

use super::{Case, Heard, Proof, Want};
use crate::ids::NodeId;
use crate::proto::{FenceProof, Order, Refusal};

pub(super) struct Hypervisor;

impl Proof for Hypervisor {
    fn name(&self) -> &'static str {
        "the hypervisor's word on its domain"
    }
    fn applies(&self, case: &Case) -> bool {
        !case.goes_back && !case.beside.is_empty()
    }
    fn asks(&self, case: &Case) -> Vec<Want> {
        let order = Order::AskDomain { scvm: case.fencing.scvm, host: case.host, epoch: case.fencing.epoch };
        case.beside.iter().map(|host| Want::Order(NodeId::Host(*host), order.clone())).collect()
    }
    fn judge(&self, case: &Case, heard: Heard) -> Result<Option<FenceProof>, Refusal> {
        let Heard::Domain { by, boot } = heard else { return Ok(None) };
        let scvm = case.scvm;
        if !case.beside.contains(&by) {
            return Err(Refusal::NotBeside { node: NodeId::Host(by), scvm });
        }
        // Another domain runs in its place: the dead one must be the one that Meta last let serve anybody.
        if boot.is_some() && boot != case.boot {
            return Err(Refusal::OtherInstance { scvm });
        }
        Ok(Some(FenceProof::DomainDead))
    }
    fn gives(&self) -> &'static [(FenceProof, &'static str)] {
        &[(
            FenceProof::DomainDead,
            "writes the dead domain had handed to disks or other nodes; a domain that was saved or migrated and goes on elsewhere",
        )]
    }
}
