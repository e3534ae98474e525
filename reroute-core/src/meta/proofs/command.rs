//! The fence command: a program of the site that powers off, cuts off or otherwise fences an SCVM for good.
//!
//! It takes the whole server down, for everybody: it is run only for unplanned moves, only when the SCVM's session is
//! lost (or the move has waited for as long as configured), and never while a host says that it is served well there.
//! One run at a time per SCVM serves all moves that wait at its start.

use super::{Case, Heard, Proof, Want};
use crate::ids::*;
use crate::meta::{Effect, SessionMaster};
use crate::proto::{FenceProof, Refusal, SessionState};
use crate::timeline::Event;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Times in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settings {
    /// A failed run is repeated after this.
    pub retry_ns: u64,
    /// Also run for a move that has waited for this long, though the session holds. None: never.
    pub also_after_ns: Option<u64>,
}

/// One run, for whoever carries it out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Run {
    pub run: u64,
    /// 1 for the first one since the SCVM's last success.
    pub attempt: u32,
    pub scvm: ScvmInfo,
    /// The logins that wait for it: host, and the epoch it was served at.
    pub logins: Vec<(HostId, Epoch)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// Exit code 0: fenced for good.
    Fenced,
    /// Anything but 0 and 2: tried again.
    Failed { why: String },
    /// Exit code 2: it will not be done. Not tried again for these logins.
    Refused { why: String },
}

/// What is known of one SCVM's runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::meta) struct State {
    running: Option<Run>,
    last: u64,
    attempt: u32,
    again_at: BootNs,
    refused: BTreeSet<(HostId, Epoch)>,
}

pub(super) struct FenceCommand;

impl Proof for FenceCommand {
    fn name(&self) -> &'static str {
        "the fence command"
    }
    fn applies(&self, case: &Case) -> bool {
        let Some(settings) = case.command else { return false };
        let lost = matches!(case.session, SessionState::Lost | SessionState::Absent) && case.session_expired;
        let waited = settings.also_after_ns.is_some_and(|after| case.waits_ns >= after);
        case.policy.is_some() && !case.planned && !case.serves_others && (lost || waited)
    }
    fn asks(&self, _: &Case) -> Vec<Want> {
        vec![Want::Command]
    }
    fn judge(&self, _: &Case, heard: Heard) -> Result<Option<FenceProof>, Refusal> {
        Ok(matches!(heard, Heard::Command).then_some(FenceProof::FenceCommand))
    }
    fn gives(&self) -> &'static [(FenceProof, &'static str)] {
        &[(FenceProof::FenceCommand, "that the fence command does what its exit code says")]
    }
}

impl SessionMaster {
    /// Starts a run for all that wait, unless one is under way, has just failed, or was refused.
    pub(super) fn run_command(
        &mut self,
        scvm: ScvmId,
        waiting: Vec<(HostId, Epoch)>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        let Some(info) = self.settings.scvms.iter().find(|s| s.id == scvm).cloned() else { return };
        // A former leader shoots nobody.
        let leads = self.leads(now);
        let state = self.commands.entry(scvm).or_default();
        if !leads || state.running.is_some() || now < state.again_at {
            return;
        }
        let logins: Vec<_> = waiting.into_iter().filter(|login| !state.refused.contains(login)).collect();
        if logins.is_empty() {
            return;
        }
        state.last += 1;
        state.attempt += 1;
        let run = Run { run: state.last, attempt: state.attempt, scvm: info, logins };
        state.running = Some(run.clone());
        let (attempt, logins) = (run.attempt, run.logins.clone());
        out.push(Effect::Journal(Event::FenceCommandStarted { scvm, run: run.run, attempt, logins }));
        out.push(Effect::RunFenceCommand(run));
    }

    /// A run has come to an end. What it proves holds for the logins that waited when it began.
    pub(in crate::meta) fn command_ended(
        &mut self,
        scvm: ScvmId,
        run: u64,
        (outcome, took_ns, output): (Outcome, u64, String),
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        let retry = self.command.map_or(SEC, |s| s.retry_ns);
        let Some(state) = self.commands.get_mut(&scvm) else { return };
        let Some(ended) = state.running.take_if(|r| r.run == run) else { return };
        let (name, why) = match &outcome {
            Outcome::Fenced => ("fenced", String::new()),
            Outcome::Failed { why } => ("failed", why.clone()),
            Outcome::Refused { why } => ("refused", why.clone()),
        };
        match outcome {
            Outcome::Fenced => state.attempt = 0,
            Outcome::Failed { .. } => state.again_at = now.plus(retry),
            Outcome::Refused { .. } => state.refused.extend(ended.logins.iter().copied()),
        }
        let outcome = name.to_string();
        out.push(Effect::Journal(Event::FenceCommandEnded { scvm, run, outcome, why, took_ns, output }));
        if name == "fenced" {
            for (host, epoch) in ended.logins {
                // A login that has gone on meanwhile needs it no more.
                let _ = self.heard(host, scvm, epoch, Heard::Command, now, out);
            }
        }
    }

    /// For people: what the fence command does about this login.
    pub(super) fn command_says(&self, scvm: ScvmId, login: (HostId, Epoch)) -> Option<&'static str> {
        let state = self.commands.get(&scvm)?;
        if state.refused.contains(&login) {
            return Some("the fence command refused");
        }
        state.running.as_ref().map(|_| "the fence command runs")
    }
}
