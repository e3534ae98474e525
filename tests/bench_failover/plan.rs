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
    /// ... and none but the first that would not be over by then, were it like the longest so far.
    pub deadline: Option<Instant>,
}

/// No trial takes just as long as the one before it.
const MARGIN: f64 = 1.25;

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
        let mut longest = Duration::ZERO;
        while self.next(outcome.trials.len(), longest, Instant::now()) {
            let begun = Instant::now();
            match trial(outcome.trials.len()) {
                Ok(done) => {
                    longest = longest.max(begun.elapsed());
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

    /// Whether another one is to be done, after so many of which one took `longest`.
    fn next(&self, done: usize, longest: Duration, now: Instant) -> bool {
        let time = self.deadline.is_none_or(|end| now + longest.mul_f64(MARGIN) <= end);
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

/// In which they are run if nobody says another one: what keepalived leaves of its time goes to the old loop, which needs
/// more than its own.
pub const ORDER: [System; 3] = [System::Reroute, System::Keepalived, System::Legacy];

/// When the first of those that are `left` is to end with all its cases: of what is left ours takes half, the old loop,
/// which waits, more than keepalived. What one does not use is there for those after it.
pub fn share_of(now: Instant, end: Option<Instant>, left: &[System]) -> Option<Instant> {
    let weight = |s: &System| match s {
        System::Reroute => 0.5,
        System::Legacy => 0.3,
        System::Keepalived => 0.2,
    };
    let all: f64 = left.iter().map(weight).sum();
    let first = left.first().map_or(0.0, weight);
    end.map(|end| now + end.saturating_duration_since(now).mul_f64(first / all.max(0.1)))
}

/// When a system's turn at a case is to end, so that those after it have their share: `left` cases with this one.
pub fn share(now: Instant, end: Option<Instant>, left: usize) -> Option<Instant> {
    end.map(|end| now + end.saturating_duration_since(now) / left.max(1) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::CASES;

    const START: Duration = Duration::from_secs(4);

    fn turn(progress: &Progress, deadline: Option<Instant>, trials: usize) -> Turn<'_> {
        Turn { progress, system: System::Legacy, case: &CASES[0], trials, deadline }
    }

    #[test]
    fn the_first_trial_is_always_done_and_no_other_without_time() {
        let progress = Progress::new();
        let (now, took) = (Instant::now(), Duration::from_secs(60));
        let next = |after: u64, done, longest| {
            turn(&progress, Some(now + Duration::from_secs(after)), 3).next(done, longest, now)
        };
        assert!(next(30, 0, took) && !next(30, 1, took));
        // One like it, and a margin.
        assert!(!next(70, 1, took) && next(80, 1, took));
        assert!(next(30, 1, Duration::from_secs(15)) && !next(30, 3, Duration::from_secs(15)));
        let endless = turn(&progress, None, 3);
        assert!(endless.next(2, took, now) && !endless.next(3, took, now));
    }

    #[test]
    fn a_trial_is_held_against_the_longest_of_its_own_turn() {
        let progress = Progress::new();
        let quick = turn(&progress, Some(Instant::now() + Duration::from_secs(20)), 3);
        assert_eq!(quick.trials(|_| Ok(Trial::default())).trials.len(), 3);
        let slow = turn(&progress, Some(Instant::now() + Duration::from_millis(150)), 3);
        let trial = |_| {
            std::thread::sleep(Duration::from_millis(100));
            Ok(Trial::default())
        };
        assert_eq!(slow.trials(trial).trials.len(), 1);
    }

    #[test]
    fn time_is_shared_out() {
        let now = Instant::now();
        let end = Some(now + Duration::from_secs(1000));
        let ahead = |left: &[System]| share_of(now, end, left).expect("a time") - now;
        let about = |d: Duration, seconds: f64| (d.as_secs_f64() - seconds).abs() < 0.01;
        assert!(about(ahead(&ORDER), 500.0));
        assert!(about(ahead(&ORDER[1..]), 400.0));
        assert!(about(ahead(&ORDER[2..]), 1000.0));
        assert_eq!(share_of(now, None, &ORDER), None);
        assert_eq!(share(now, end, 4), Some(now + Duration::from_secs(250)));
        assert_eq!(share(now, None, 4), None);
    }

    /// Trials done of each system and case, and when all of them are: what a trial takes is given, and no time passes.
    fn walk(
        minutes: u64,
        trials: impl Fn(System) -> usize,
        takes: impl Fn(System, &str, usize) -> u64,
    ) -> (Vec<(System, &'static str, usize)>, Duration) {
        let progress = Progress::new();
        let begun = Instant::now();
        let mut now = begun;
        let end = Some(begun + Duration::from_secs(60 * minutes));
        let mut done = Vec::new();
        for (nth, &system) in ORDER.iter().enumerate() {
            let end = share_of(now, end, &ORDER[nth..]);
            for (before, case) in CASES.iter().enumerate() {
                let deadline = share(now, end, CASES.len() - before);
                let turn = Turn { progress: &progress, system, case, trials: trials(system), deadline };
                now += START;
                if system == System::Reroute {
                    now += Duration::from_secs(17); // its latency is learnt
                }
                let (mut count, mut longest) = (0, Duration::ZERO);
                while turn.next(count, longest, now) {
                    let took = Duration::from_secs(takes(system, case.name, count));
                    (now, longest, count) = (now + took, longest.max(took), count + 1);
                }
                done.push((system, case.name, count));
            }
        }
        (done, now - begun)
    }

    #[test]
    fn what_a_turn_does_not_use_goes_to_those_after_it() {
        // All of ours and of keepalived are over at once.
        let takes = |system, case: &str, _| match (system, case) {
            (System::Legacy, "return") => 250,
            (System::Legacy, _) => 90,
            _ => 1,
        };
        let (done, _) = walk(90, |_| 3, takes);
        let short: Vec<_> = done.iter().filter(|(.., count)| *count != 3).collect();
        assert!(short.is_empty(), "{short:?}");
    }

    #[test]
    fn forty_minutes_hold_three_trials_of_peers_but_where_each_takes_minutes() {
        let takes = |system, case: &str, nth: usize| match (system, case) {
            (System::Reroute, "return") => 8,
            (System::Reroute, _) => 3 + u64::from(nth.is_multiple_of(5)),
            (System::Keepalived, _) => 8,
            // By the cut-off; 180 s and more.
            (System::Legacy, "server-hung" | "storage-hung") => 62,
            (System::Legacy, "return") => 200,
            (System::Legacy, _) => 14 - nth as u64 % 3,
        };
        let trials = |system| if system == System::Reroute { 30 } else { 3 };
        let (done, took) = walk(40, trials, takes);
        let waits = |case: &str| matches!(case, "server-hung" | "storage-hung" | "return");
        for (system, case, count) in done {
            let least = match system {
                System::Reroute if case == "return" => 8,
                System::Reroute => 18,
                System::Legacy if waits(case) => 1,
                System::Legacy | System::Keepalived => 3,
            };
            assert!(count >= least, "{} {case}: {count}", system.name());
        }
        assert!(took <= Duration::from_secs(40 * 60), "{took:?}");
    }
}
