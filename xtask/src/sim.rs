//! `cargo xtask sim`: seeds through the simulated world.

use crate::workspace;
use anyhow::{Context, bail};

/// Errors: it cannot be built, or a seed breaks the protocol (printed, with the command that shows how).
pub fn run(
    seeds: Option<u64>,
    seed: Option<u64>,
    (trace, pressed): (bool, bool),
    without: &[String],
) -> anyhow::Result<()> {
    // A seed by itself is one run.
    let seeds = seeds.unwrap_or(if seed.is_some() { 1 } else { 2000 });
    let mut command = workspace::cargo(&[
        "run",
        "--release",
        "--quiet",
        "-p",
        "reroute-model",
        "--bin",
        "reroute-sim",
        "--",
    ]);
    command.args(["--seeds", &seeds.to_string()]);
    if let Some(seed) = seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if trace {
        command.arg("--trace");
    }
    if pressed {
        command.arg("--pressed");
    }
    for safeguard in without {
        command.args(["--without", safeguard]);
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the simulation found something: see above");
    }
    Ok(())
}
