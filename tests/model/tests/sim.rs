//! Seeds through the simulated world. `REROUTE_SIM_SEEDS` says how many (2,000).

use reroute_model::sim::{Options, run, run_many};
use reroute_model::world::{Kind, Safeguard};
use std::collections::BTreeSet;

fn seeds() -> u64 {
    std::env::var("REROUTE_SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2000)
}

#[test]
fn no_seed_breaks_the_protocol() {
    let stats = run_many(1..1 + seeds(), &Options::default(), |outcome| {
        for violation in &outcome.violations {
            println!("seed {}: {:?}: {}", outcome.seed, violation.kind, violation.what);
            println!("  see it with: cargo xtask sim --seed {} --trace", outcome.seed);
        }
        true
    });
    println!("{stats}");
    assert!(stats.failed.is_empty(), "{} seeds break it: {:?}", stats.failed.len(), stats.failed);
    // The runs are worth something: they move, come back, and use every proof there is a way to.
    assert!(stats.moves * 4 > stats.seeds, "{} moves", stats.moves);
    assert!(stats.returns * 40 > stats.seeds, "{} returns", stats.returns);
    assert!(stats.proofs.len() >= 5, "{:?}", stats.proofs);
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in [1, 7, 40] {
        let tell = || {
            let mut trace = Vec::new();
            let outcome = run(seed, &Options::default(), Some(&mut trace));
            (trace, outcome.steps)
        };
        let (first, steps) = tell();
        assert!(first.len() > 1000 && steps > 1000, "a run of {steps} steps tells {} bytes", first.len());
        assert!(tell() == (first, steps), "seed {seed} went two ways");
        assert_eq!(run(seed, &Options::default(), None).steps, steps, "telling changes nothing");
    }
}

/// The seeds that the safeguards are tested by break nothing while all of them are there.
#[test]
fn no_pressed_seed_breaks_the_protocol() {
    let options = Options { pressed: true, ..Options::default() };
    let stats = run_many(1..1 + seeds() / 2, &options, |outcome| {
        for violation in &outcome.violations {
            println!("seed {}: {:?}: {}", outcome.seed, violation.kind, violation.what);
            println!("  see it with: cargo xtask sim --pressed --seed {} --trace", outcome.seed);
        }
        true
    });
    println!("{stats}");
    assert!(stats.failed.is_empty(), "{} seeds break it: {:?}", stats.failed.len(), stats.failed);
}

/// Without the safeguard, some seed shows what it is for.
fn is_needed(safeguard: Safeguard) {
    let mut found = BTreeSet::new();
    let mut first = None;
    // It ends with the first one that is found.
    let stats = run_many(1..1 + 3 * seeds(), &Options::without(safeguard), |outcome| {
        for violation in &outcome.violations {
            // What a missing safeguard costs is data, not progress.
            if violation.kind != Kind::Stuck {
                found.insert(violation.kind);
                first.get_or_insert((outcome.seed, violation.what.clone()));
            }
        }
        found.is_empty()
    });
    println!("without {}: {found:?} after {} seeds: {first:?}", safeguard.name(), stats.seeds);
    assert!(!found.is_empty(), "nothing happened without {} in {} seeds", safeguard.name(), stats.seeds);
}

#[test]
fn the_proof_step_is_needed() {
    is_needed(Safeguard::ProofStep);
}
#[test]
fn the_epoch_check_is_needed() {
    is_needed(Safeguard::EpochCheck);
}
#[test]
fn the_stamp_echo_is_needed() {
    is_needed(Safeguard::StampEcho);
}
#[test]
fn counting_from_the_send_stamp_is_needed() {
    is_needed(Safeguard::SendStampCounting);
}
#[test]
fn the_persisted_release_is_needed() {
    is_needed(Safeguard::PersistedRelease);
}
