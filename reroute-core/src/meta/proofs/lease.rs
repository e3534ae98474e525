//! Time: both leases have run out, by Meta's clock and drift.
//!
//! That closes admission and says nothing of calls in progress. They must be covered besides: by the storage, which
//! refuses a former owner, or because there never were any. A dead domain, a fence command and an operator's word
//! cover them too, but close admission as well: they need no expiry, and are proofs of their own.

use super::{Case, Heard, Proof};
use crate::ids::FencePolicy;
use crate::proto::{FenceProof, Refusal};

pub(super) struct LeaseExpiry;

impl Proof for LeaseExpiry {
    fn name(&self) -> &'static str {
        "the end of both leases"
    }
    fn applies(&self, case: &Case) -> bool {
        case.target_only || case.policy == Some(FencePolicy::Storage)
    }
    fn judge(&self, case: &Case, heard: Heard) -> Result<Option<FenceProof>, Refusal> {
        if !matches!(heard, Heard::Time) || !case.session_expired {
            return Ok(None);
        }
        // A target only has no lease but its session's, and nothing to write.
        if case.target_only {
            return Ok(Some(FenceProof::NeverServed));
        }
        let covered = case.policy == Some(FencePolicy::Storage);
        Ok((covered && !case.affirmed).then_some(FenceProof::LeaseExpiredStorage))
    }
    fn gives(&self) -> &'static [(FenceProof, &'static str)] {
        &[
            (FenceProof::NeverServed, "a clock beyond drift"),
            (
                FenceProof::LeaseExpiredStorage,
                "a storage layer that does not check the owner; a clock beyond drift",
            ),
        ]
    }
}
