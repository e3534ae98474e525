//! What Meta answers to what it was told, and what that changes.

use super::phase::Phase;
use super::*;

impl Machine {
    pub(super) fn move_refused(&mut self, to: ScvmId, error: Refusal, now: BootNs, fx: &mut Effects) {
        if let (Phase::Moving(moving), Refusal::MoveInProgress { epoch, .. }) = (&self.phase, &error)
            && moving.to == to
            && moving.epoch == *epoch
        {
            return; // asked whether it goes on: it does
        }
        if let Refusal::Blocked { .. } = &error {
            self.kept_away(&error, now, fx);
        } else {
            self.fault("move", format!("the move to {to} was refused: {error}"), fx);
        }
        let unfit = matches!(
            error,
            Refusal::TargetNotReady { .. } | Refusal::UnknownScvm { .. } | Refusal::Draining { .. }
        );
        if unfit {
            self.refused.insert(to, now.plus(SEC));
        }
        if let Refusal::StaleEpoch { .. } | Refusal::MoveToSelf { .. } = error {
            self.report_to_meta(now, fx); // answered by what stands
        }
        match &mut self.phase {
            Phase::Asked(ask) if ask.to.scvm == to => self.phase = Phase::Settled,
            Phase::Moving(moving) if moving.to != to => {
                moving.ask = None;
                if unfit {
                    moving.asked_at = None; // the next one is another
                }
            }
            _ => {}
        }
    }

    pub(super) fn meta_answer(
        &mut self,
        message: ToMeta,
        result: Result<MetaReply, String>,
        now: BootNs,
        fx: &mut Effects,
    ) {
        let refused = match result {
            Ok(MetaReply::Refused { error }) => error,
            Ok(_) => {
                self.meta_failed_at = None;
                match message {
                    ToMeta::Arrived { epoch, .. } if self.arrived.is_some_and(|(e, ..)| e <= epoch) => {
                        self.arrived = None;
                    }
                    ToMeta::Move { .. } => {
                        self.faults.remove("move");
                    }
                    ToMeta::HostReport { .. } => {
                        self.faults.remove("refused");
                    }
                    ToMeta::FencedByPulse { scvm, epoch } => self.fence_known(scvm, epoch, now),
                    ToMeta::Released { epoch } => {
                        if let Some(evicted) = self.evicted.as_mut().filter(|e| e.from_epoch == epoch) {
                            evicted.taken = true;
                        }
                    }
                    _ => {}
                }
                return;
            }
            Err(_) => {
                self.meta_failed_at = Some(now);
                match (&message, &mut self.phase) {
                    (ToMeta::Move { .. }, Phase::Asked(_)) => self.phase = Phase::Settled,
                    (ToMeta::Released { .. }, Phase::Moving(moving)) => moving.released_told = false,
                    (ToMeta::ResetWanted { epoch, .. }, _) => self.reset_unheard(*epoch, now),
                    _ => {}
                }
                return;
            }
        };
        match message {
            ToMeta::Move { to, .. } => self.move_refused(to, refused, now, fx),
            ToMeta::Arrived { .. } => self.arrived = None,
            // A server that was never told to admit, say.
            ToMeta::FencedByPulse { scvm, epoch } if matches!(refused, Refusal::StaleEpoch { .. }) => {
                self.fence_known(scvm, epoch, now);
            }
            // The login has moved on: what stays then is found anew.
            ToMeta::ResetWanted { epoch, .. } if matches!(refused, Refusal::StaleEpoch { .. }) => {
                self.reset_over(epoch);
            }
            // The move has gone on without it.
            ToMeta::DomainDead { .. } if matches!(refused, Refusal::StaleEpoch { .. }) => {}
            other => {
                let what = format!("Meta refused {}: {refused}", name(&other));
                self.fault("refused", what, fx);
            }
        }
    }
}

fn name(message: &ToMeta) -> &'static str {
    match message {
        ToMeta::HostReport { .. } => "the report",
        ToMeta::Released { .. } => "the release",
        ToMeta::FencedByPulse { .. } => "what the pulse says of the fence",
        ToMeta::ResetWanted { .. } => "the wish to be rid of old connections",
        ToMeta::DomainDead { .. } => "what the hypervisor says of the domain",
        _ => "a message",
    }
}
