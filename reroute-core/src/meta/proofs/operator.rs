//! An operator's word: for what nothing else can prove.

use super::{Case, Heard, Proof};
use crate::proto::{FenceProof, Refusal};

pub(super) struct OperatorsWord;

impl Proof for OperatorsWord {
    fn name(&self) -> &'static str {
        "an operator's word (`move vouch`)"
    }
    fn applies(&self, case: &Case) -> bool {
        !case.goes_back
    }
    fn judge(&self, case: &Case, heard: Heard) -> Result<Option<FenceProof>, Refusal> {
        if !matches!(heard, Heard::Operator) {
            return Ok(None);
        }
        if case.goes_back {
            let why = "the move is planned: it goes back by itself when it cannot come to an end".to_string();
            return Err(Refusal::NothingToVouch { host: case.host, scvm: case.scvm, why });
        }
        Ok(Some(FenceProof::Operator))
    }
    fn gives(&self) -> &'static [(FenceProof, &'static str)] {
        &[(
            FenceProof::Operator,
            "anything: that the server accepts nothing more and executes none of the calls it had accepted is the operator's word alone",
        )]
    }
}
