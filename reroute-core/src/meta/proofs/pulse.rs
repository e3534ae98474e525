//! The old server's kernel, asked by the moving host's own pulses.

use super::{Case, Heard, Proof};
use crate::proto::{FenceProof, Refusal};

pub(super) struct KernelAnswer;

impl Proof for KernelAnswer {
    fn name(&self) -> &'static str {
        "the kernel's answer by pulse"
    }
    fn applies(&self, _: &Case) -> bool {
        true
    }
    fn judge(&self, _: &Case, heard: Heard) -> Result<Option<FenceProof>, Refusal> {
        Ok(matches!(heard, Heard::Pulse).then_some(FenceProof::KernelIdle))
    }
    fn gives(&self) -> &'static [(FenceProof, &'static str)] {
        &[(FenceProof::KernelIdle, "")]
    }
}
