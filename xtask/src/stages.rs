//! `cargo xtask test`: stage by stage, stopping at the first that fails.

use crate::{setup, workspace};
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

/// A stage: its name, and the arguments of cargo.
struct Stage {
    name: &'static str,
    cargo: &'static [&'static str],
}

const STAGES: &[Stage] = &[
    Stage { name: "format", cargo: &["fmt", "--all", "--check"] },
    Stage {
        name: "lints",
        cargo: &["clippy", "--release", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
    },
    Stage {
        // Once, with the features that the tests below are built with; the lab tests need the programs beside them.
        name: "build",
        cargo: &["build", "--release", "--workspace", "--all-targets"],
    },
    Stage {
        name: "unit tests",
        cargo: &["test", "--release", "--workspace", "--lib", "--bins", "--no-fail-fast"],
    },
    Stage {
        name: "matching and fuzz corpus",
        cargo: &[
            "test",
            "--release",
            "--workspace",
            "--test",
            "matching",
            "--test",
            "corpus",
            "--no-fail-fast",
        ],
    },
    Stage {
        // Each search uses two CPUs, and says how many states it has seen.
        name: "model",
        cargo: &[
            "test",
            "--release",
            "--workspace",
            "--test",
            "model",
            "--no-fail-fast",
            "--",
            "--nocapture",
            "--test-threads=1",
        ],
    },
    Stage {
        name: "simulation",
        cargo: &[
            "test",
            "--release",
            "--workspace",
            "--test",
            "sim",
            "--",
            "--nocapture",
            "--test-threads=1",
        ],
    },
    Stage {
        name: "NFS tests",
        cargo: &["test", "--release", "--workspace", "--test", "nfs", "--no-fail-fast"],
    },
    Stage {
        name: "program tests",
        cargo: &["test", "--release", "--workspace", "--test", "programs", "--no-fail-fast"],
    },
    Stage {
        // What happens, and in which order: another lab beside it changes none of that, and most of the time they wait.
        name: "lab tests, two labs at a time",
        cargo: &[
            "test",
            "--release",
            "--workspace",
            "--test",
            "e2e",
            "--no-fail-fast",
            "--",
            "--test-threads=2",
            "--skip=agentless::",
            "--skip=client_reset::",
            "--skip=esxi::",
            "--skip=failover::",
            "--skip=latency::",
            "--skip=outcomes::",
            "--skip=own_failures::",
            "--skip=restarts::",
            "--skip=signals::",
        ],
    },
    Stage {
        // Where a limit of milliseconds, or a rate, is part of the question.
        name: "lab tests, one lab at a time",
        cargo: &[
            "test",
            "--release",
            "--workspace",
            "--test",
            "e2e",
            "--no-fail-fast",
            "--",
            "--test-threads=1",
            "agentless::",
            "client_reset::",
            "esxi::",
            "failover::",
            "latency::",
            "outcomes::",
            "own_failures::",
            "restarts::",
            "signals::",
        ],
    },
];

#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
}

/// Errors: no root, something that cannot be set up, a stage that fails. The last line on standard output is
/// `N passed, N failed` whenever a stage was begun.
pub fn run(long: bool) -> anyhow::Result<()> {
    workspace::require_root("the test suite")?;
    setup::run()?;
    let mut counts = Counts::default();
    let result = STAGES.iter().try_for_each(|stage| {
        let start = Instant::now();
        println!("== {}", stage.name);
        let passed = run_stage(stage, long, &mut counts)?;
        println!(
            "== {}: {} in {:.1} s",
            stage.name,
            if passed { "ok" } else { "FAILED" },
            start.elapsed().as_secs_f32()
        );
        if passed { Ok(()) } else { bail!("stage `{}` failed", stage.name) }
    });
    println!("{} passed, {} failed", counts.passed, counts.failed);
    result
}

fn run_stage(stage: &Stage, long: bool, counts: &mut Counts) -> anyhow::Result<bool> {
    let mut command = workspace::cargo(stage.cargo);
    if long {
        // Property tests draw this many cases instead of 256; the matching of calls and replies five times as many.
        command.env("PROPTEST_CASES", "20000");
        // ... the simulation runs this many seeds instead of 2,000
        command.env("REROUTE_SIM_SEEDS", "20000");
        // ... and the agent is restarted this often instead of 30 times.
        command.env("REROUTE_RESTARTS", "100");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some((passed, failed)) = summary(&line) {
                counts.passed += passed;
                counts.failed += failed;
            }
        }
    }
    Ok(child.wait()?.success())
}

/// Out of `test result: ok. 12 passed; 0 failed; ...`.
fn summary(line: &str) -> Option<(u64, u64)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number =
        |word: &str| counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse::<u64>().ok());
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lab_test_is_in_one_stage() {
        let stage = |name: &str| STAGES.iter().find(|s| s.name == name).unwrap().cargo;
        let words = |name: &str, prefix: &str| -> Vec<String> {
            let words = stage(name).iter().filter_map(|word| word.strip_prefix(prefix));
            words.filter(|word| word.ends_with("::")).map(String::from).collect()
        };
        let left_out = words("lab tests, two labs at a time", "--skip=");
        assert!(!left_out.is_empty());
        assert_eq!(left_out, words("lab tests, one lab at a time", ""));
    }

    #[test]
    fn summaries_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(summary(line), Some((12, 3)));
        assert_eq!(summary("test result is not this"), None);
        assert_eq!(summary("running 4 tests"), None);
    }
}
