//! How many trials there is time for, and what is told of each.

use crate::cases::{Case, System};
use crate::trial::Trial;
use lab::demo::progress::Progress;
use std::time::{Duration, Instant};

/// One system's turn at one case.
pub struct Turn<'a> {
    pub progress: &'a Progress,
    pub system: System,
    pub case: &'a Case,
    /// As many as this at most, ...
    pub trials: usize,
    /// ... and none but the first that would not be over by then.
    pub deadline: Option<Instant>,
    /// What one takes at worst.
    pub longest: Duration,
}

/// What became of a turn.
pub struct Outcome {
    pub trials: Vec<Trial>,
    /// Why there are no more of them.
    pub trouble: Option<anyhow::Error>,
}

impl Turn<'_> {
    /// Trials, as many as there is time for; one that cannot be done is the last.
    pub fn trials(&self, mut trial: impl FnMut(usize) -> anyhow::Result<Trial>) -> Outcome {
        let mut outcome = Outcome { trials: Vec::new(), trouble: None };
        while self.next(outcome.trials.len()) {
            match trial(outcome.trials.len()) {
                Ok(done) => {
                    self.done(outcome.trials.len(), &done);
                    outcome.trials.push(done);
                }
                Err(error) => {
                    outcome.trouble = Some(error);
                    break;
                }
            }
        }
        outcome
    }

    /// Whether another one is to be done, after so many.
    fn next(&self, done: usize) -> bool {
        let time = self.deadline.is_none_or(|end| Instant::now() + self.longest <= end);
        done < self.trials && (done == 0 || time)
    }

    pub fn phase(&self, what: &str) {
        self.progress.phase(&format!("{} {}: {what}", self.system.name(), self.case.name));
    }

    /// A line for each trial.
    fn done(&self, nth: usize, trial: &Trial) {
        let detected = trial.detect_ms.map_or("by nobody".into(), |ms| format!("after {ms:.1} ms"));
        let end = if trial.recovered { "" } else { ", NOT recovered" };
        self.progress.say(&format!(
            "{:<10} {:<18} {:>3}/{:<3} gap {:>9.1} ms, noticed {detected}{end}",
            self.system.name(),
            self.case.name,
            nth + 1,
            self.trials,
            trial.gap_ms
        ));
    }
}

/// When a system's turn at a case is to end, so that those after it have their share: `left` cases with this one.
pub fn share(end: Option<Instant>, left: usize) -> Option<Instant> {
    let now = Instant::now();
    end.map(|end| now + end.saturating_duration_since(now) / left.max(1) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::CASES;

    #[test]
    fn the_first_trial_is_always_done_and_no_other_without_time() {
        let progress = Progress::new();
        let turn = |deadline, trials| Turn {
            progress: &progress,
            system: System::Legacy,
            case: &CASES[0],
            trials,
            deadline,
            longest: Duration::from_secs(60),
        };
        let soon = Instant::now() + Duration::from_secs(30);
        assert!(turn(Some(soon), 3).next(0) && !turn(Some(soon), 3).next(1));
        assert!(turn(Some(soon + Duration::from_secs(60)), 3).next(2));
        assert!(turn(None, 3).next(2) && !turn(None, 3).next(3));
        assert_eq!(share(None, 4), None);
        let quarter = share(Some(Instant::now() + Duration::from_secs(40)), 4).expect("a time");
        let ahead = quarter - Instant::now();
        assert!(ahead > Duration::from_secs(9) && ahead <= Duration::from_secs(10), "{ahead:?}");
    }
}
