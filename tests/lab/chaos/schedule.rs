//! What will be broken, where, when and for how long: a pure function of the seed, written down before the run.

use crate::faults::{Fault, Kind};
use crate::topology::{Node, PAIRS};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_xorshift::XorShiftRng;
use serde::{Deserialize, Serialize};

/// Nothing is broken before, so that writes are seen to go well first.
const CALM_MS: u64 = 1_000;
/// At most this many faults stand at once.
const AT_ONCE: usize = 3;
/// A fault stands this long; short ones are as likely as long ones (the logarithm is uniform). The longest is above the
/// 5 s after which a hung server goes on.
const STANDS_MS: (u64, u64) = (300, 9_000);
/// Between the first and the last fault of an episode.
const SPREAD_MS: u64 = 2_500;
/// Between two episodes; likewise uniform in the logarithm.
const PAUSE_MS: (u64, u64) = (400, 6_000);
/// For no longer than this is every SCVM struck at once: nothing can serve then.
pub const BLACKOUT_MS: u64 = 3_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    pub seed: u64,
    /// Every fault is healed by then.
    pub total_ms: u64,
    /// By time.
    pub injections: Vec<Injection>,
}

/// One fault. Times in ms since the begin of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injection {
    pub at_ms: u64,
    pub until_ms: u64,
    pub fault: String,
    pub target: String,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Heal(usize),
    Inject(usize),
}

impl Schedule {
    /// `faults`: those to choose from, none of them twice.
    pub fn draw(seed: u64, total_ms: u64, faults: &[&Fault]) -> Schedule {
        let mut rng = XorShiftRng::seed_from_u64(seed);
        let mut injections: Vec<Injection> = Vec::new();
        let mut begin = CALM_MS;
        // The last episode has time to do harm.
        while begin + 2 * STANDS_MS.0 < total_ms && !faults.is_empty() {
            let mut episode: Vec<Injection> = Vec::new();
            for nth in 0..rng.random_range(1..=AT_ONCE) {
                let offset = if nth == 0 { 0 } else { rng.random_range(0..=SPREAD_MS) };
                let stands = log_uniform(&mut rng, STANDS_MS);
                let Some(fault) = faults.choose(&mut rng) else { break };
                let targets = targets(fault);
                let Some(target) = targets.choose(&mut rng) else { break };
                let at_ms = (begin + offset).min(total_ms - STANDS_MS.0);
                let injection = Injection {
                    at_ms,
                    until_ms: (at_ms + stands).min(total_ms),
                    fault: fault.name.into(),
                    target: target.clone(),
                };
                // The same thing cannot be broken twice.
                if !episode.iter().any(|i| i.fault == injection.fault && i.target == injection.target) {
                    episode.push(injection);
                }
            }
            episode.sort_by(|a, b| (a.at_ms, &a.fault, &a.target).cmp(&(b.at_ms, &b.fault, &b.target)));
            bound_blackout(&mut episode);
            let end = episode.iter().map(|i| i.until_ms).max().unwrap_or(begin);
            injections.append(&mut episode);
            begin = end + log_uniform(&mut rng, PAUSE_MS);
        }
        Schedule { seed, total_ms, injections }
    }

    /// What is to be done at which time, ms. Healing comes first where both are due.
    pub fn steps(&self) -> Vec<(u64, Step)> {
        let mut steps: Vec<(u64, Step)> = Vec::new();
        for (nth, injection) in self.injections.iter().enumerate() {
            steps.push((injection.at_ms, Step::Inject(nth)));
            steps.push((injection.until_ms, Step::Heal(nth)));
        }
        steps.sort_by_key(|(at, step)| match step {
            Step::Heal(nth) => (*at, 0, *nth),
            Step::Inject(nth) => (*at, 1, *nth),
        });
        steps
    }
}

/// Names of the nodes that `fault` can strike.
fn targets(fault: &Fault) -> Vec<String> {
    let nodes = Node::all().into_iter().map(|n| n.to_string());
    nodes.filter(|n| fault.target(Some(n)).is_ok()).collect()
}

fn log_uniform(rng: &mut XorShiftRng, (from, to): (u64, u64)) -> u64 {
    let (low, high) = ((from as f64).ln(), (to as f64).ln());
    (rng.random_range(low..=high).exp() as u64).clamp(from, to)
}

/// Heals the one that struck the last of the SCVMs left in time.
fn bound_blackout(episode: &mut [Injection]) {
    let of_scvm =
        |i: &Injection| Fault::find(&i.fault).is_ok_and(|f| f.kind == Kind::Scvm).then(|| i.target.clone());
    for nth in 0..episode.len() {
        let (begin, Some(last)) = (episode[nth].at_ms, of_scvm(&episode[nth])) else { continue };
        let mut struck: Vec<String> =
            episode.iter().filter(|i| (i.at_ms..i.until_ms).contains(&begin)).filter_map(of_scvm).collect();
        struck.sort();
        struck.dedup();
        if struck.len() == PAIRS as usize {
            for i in episode.iter_mut().filter(|i| i.target == last && i.until_ms > begin + BLACKOUT_MS) {
                i.until_ms = begin + BLACKOUT_MS;
            }
        }
    }
    // What strikes that node later than that stands for a moment only.
    for i in episode.iter_mut() {
        i.until_ms = i.until_ms.max(i.at_ms + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::FAULTS;

    const TEN_MINUTES: u64 = 600_000;

    fn all() -> Vec<&'static Fault> {
        FAULTS.iter().collect()
    }

    #[test]
    fn a_seed_gives_the_same_schedule_again_and_another_gives_another() {
        let (a, b) = (Schedule::draw(7, TEN_MINUTES, &all()), Schedule::draw(7, TEN_MINUTES, &all()));
        assert_eq!(a, b);
        let text = serde_json::to_string(&a).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), a);
        assert_ne!(Schedule::draw(8, TEN_MINUTES, &all()).injections, a.injections);
    }

    #[test]
    fn every_fault_fits_its_target_is_healed_in_time_and_stands_once() {
        for seed in 0..200 {
            let schedule = Schedule::draw(seed, TEN_MINUTES, &all());
            for (nth, i) in schedule.injections.iter().enumerate() {
                assert!(Fault::find(&i.fault).unwrap().target(Some(&i.target)).is_ok(), "{i:?}");
                assert!(i.at_ms < i.until_ms && i.until_ms <= TEN_MINUTES, "{i:?}");
                let other = schedule.injections[..nth]
                    .iter()
                    .find(|o| o.fault == i.fault && o.target == i.target && o.until_ms > i.at_ms);
                assert_eq!(other, None, "seed {seed}: {i:?}");
                let standing =
                    schedule.injections.iter().filter(|o| (o.at_ms..o.until_ms).contains(&i.at_ms));
                assert!(standing.count() <= AT_ONCE, "seed {seed} at {} ms", i.at_ms);
            }
        }
    }

    #[test]
    fn all_faults_and_all_targets_come_one_to_three_at_a_time() {
        let mut seen = std::collections::BTreeSet::new();
        let mut at_once = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let schedule = Schedule::draw(seed, TEN_MINUTES, &all());
            assert!(schedule.injections.len() > 60, "{}", schedule.injections.len());
            for i in &schedule.injections {
                seen.insert((i.fault.clone(), i.target.clone()));
                let standing =
                    schedule.injections.iter().filter(|o| (o.at_ms..o.until_ms).contains(&i.at_ms));
                at_once.insert(standing.count());
            }
        }
        let possible: usize = FAULTS.iter().map(|f| targets(f).len()).sum();
        assert_eq!(seen.len(), possible, "{seen:?}");
        assert_eq!(at_once.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn no_server_at_all_is_allowed_for_a_bounded_time_only() {
        let killed = [Fault::find("server-killed").unwrap()];
        let mut blackouts = 0;
        for seed in 0..300 {
            let schedule = Schedule::draw(seed, TEN_MINUTES, &killed);
            let mut since = None;
            for (at, _) in schedule.steps() {
                let standing = schedule.injections.iter().filter(|i| (i.at_ms..i.until_ms).contains(&at));
                let dark = standing.count() == PAIRS as usize;
                match (dark, since) {
                    (true, None) => since = Some(at),
                    (false, Some(begin)) => {
                        blackouts += 1;
                        assert!(at - begin <= BLACKOUT_MS, "seed {seed}: {} ms", at - begin);
                        since = None;
                    }
                    _ => {}
                }
            }
        }
        assert!(blackouts > 100, "it does happen: {blackouts}");
    }

    #[test]
    fn steps_come_by_time_and_healing_first() {
        let injection = |at_ms, until_ms| Injection {
            at_ms,
            until_ms,
            fault: "server-killed".into(),
            target: "scvm1".into(),
        };
        let schedule =
            Schedule { seed: 1, total_ms: 90, injections: vec![injection(10, 50), injection(50, 60)] };
        let steps: Vec<_> = schedule.steps();
        assert_eq!(
            steps,
            [(10, Step::Inject(0)), (50, Step::Heal(0)), (50, Step::Inject(1)), (60, Step::Heal(1))]
        );
    }

    #[test]
    fn a_short_run_breaks_something_too() {
        assert!(!Schedule::draw(1, 20_000, &all()).injections.is_empty());
        assert_eq!(Schedule::draw(1, 20_000, &[]).injections, []);
    }
}
