//! Deterministic simulation: a seed draws a cluster, its faults and every delay, and the world goes through them in
//! simulated time. The same seed gives the same run.
//!
//! | file | holds |
//! |---|---|
//! | `plan` | what a seed draws: the cluster, the network's manners, the faults |
//! | `run` | the event queue: one run from its begin to the moment when all hosts do I/O again |
//! | `stats` | what runs add up to |

pub mod plan;
pub mod run;
pub mod stats;

pub use plan::{Options, Plan};
pub use run::{Outcome, Sim, run};
pub use stats::Stats;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs `seeds`, on as many threads as there are cores; what each gave comes in `done`, in no order. `done` says
/// whether to go on.
pub fn run_many(
    seeds: std::ops::Range<u64>,
    options: &Options,
    done: impl FnMut(&Outcome) -> bool + Send,
) -> Stats {
    let next = AtomicU64::new(seeds.start);
    let shared = Mutex::new((Stats::default(), done));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(seed, options, None);
                    let mut shared = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    shared.0.add(&outcome);
                    if !(shared.1)(&outcome) {
                        next.store(seeds.end, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
    shared.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).0
}
