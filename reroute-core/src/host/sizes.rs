//! Do full frames pass where pulses do? By ICMP echo, full-size and small, to the SCVMs that matter now ([`crate::sweep`]).
//!
//! A second opinion: silence says nothing (echoes may be filtered). Only that a small echo is answered and a full one is
//! not, where both once were, and twice in a row, is held against the path: pulses and small frames pass, NFS does not.

use super::*;
use crate::sweep::Outcome;

const EVERY_NS: u64 = 500 * MS;
/// A sweep that never ends must not be the last.
const LOST_NS: u64 = 5 * SEC;
/// Sweeps in a row.
const TIMES: u32 = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Seen {
    /// Full frames passed once.
    passed: bool,
    small_only: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Sizes {
    asked_at: Option<BootNs>,
    waits: bool,
    seen: BTreeMap<Path, Seen>,
}

impl Machine {
    /// Full frames are tried on the paths that matter.
    pub fn with_size_checks(mut self) -> Machine {
        self.sizes = Some(Sizes::default());
        self
    }

    pub(super) fn try_sizes(&mut self, now: BootNs, fx: &mut Effects) {
        let paths: Vec<Path> = self
            .paths
            .iter()
            .filter(|(p, state)| {
                p.network != Network::Private && state.interval_ns <= self.settings.standby_ns
            })
            .map(|(path, _)| *path)
            .filter(|p| self.has_carrier(p.network))
            .collect();
        let Some(sizes) = &mut self.sizes else { return };
        let every = if sizes.waits { LOST_NS } else { EVERY_NS };
        if !paths.is_empty() && sizes.asked_at.is_none_or(|at| now.since(at) >= every) {
            (sizes.asked_at, sizes.waits) = (Some(now), true);
            fx.push(Effect::TrySizes(paths));
        }
    }

    pub(super) fn sizes_tried(
        &mut self,
        result: Result<Vec<(Path, Outcome)>, String>,
        now: BootNs,
        fx: &mut Effects,
    ) {
        let Some(sizes) = &mut self.sizes else { return };
        sizes.waits = false;
        let outcomes = match result {
            Ok(outcomes) => outcomes,
            Err(why) => return self.fault("sizes", format!("full frames cannot be tried: {why}"), fx),
        };
        let mut changes = Vec::new();
        for (path, outcome) in outcomes {
            let seen = sizes.seen.entry(path).or_default();
            match outcome {
                Outcome::Answers { .. } => {
                    *seen = Seen { passed: true, small_only: 0 };
                    changes.push((path, false));
                }
                Outcome::SmallOnly { .. } => {
                    seen.small_only = (seen.small_only + 1).min(TIMES);
                    if seen.small_only == TIMES && seen.passed {
                        changes.push((path, true));
                    }
                }
                // Filtered, or lost like anything else: pulses say which.
                Outcome::Refused(_) | Outcome::Silent => seen.small_only = 0,
            }
        }
        let never: Vec<String> = sizes
            .seen
            .iter()
            .filter(|(_, seen)| seen.small_only == TIMES && !seen.passed)
            .map(|(path, _)| path.to_string())
            .collect();
        match never.is_empty() {
            true => drop(self.faults.remove("sizes")),
            false => {
                let what = format!(
                    "full frames have never passed by {}: is the MTU the same all the way?",
                    never.join(", ")
                );
                self.fault("sizes", what, fx);
            }
        }
        let mut news = false;
        for (path, narrow) in changes {
            let Some(state) = self.paths.get_mut(&path).filter(|state| state.narrow != narrow) else {
                continue;
            };
            state.narrow = narrow;
            news = true;
            if narrow {
                let former = state.fail();
                self.tell_health(path, former, "full frames do not pass, small ones do: MTU", fx);
            }
        }
        if news {
            self.decide(now, fx);
            self.report_to_meta(now, fx);
        }
    }
}
