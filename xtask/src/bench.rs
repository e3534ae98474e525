//! `cargo xtask bench`: what the parts cost, and how fast they are.

use crate::{setup, workspace};
use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use std::process::Command;

#[derive(Subcommand)]
pub enum Bench {
    /// The sensor: ns per packet, timer, detection, throughput. Prints a table, writes target/bench/sensor.json.
    Sensor {
        /// Few repetitions: to see that it works, not for figures to keep.
        #[arg(long)]
        quick: bool,
        /// Only this part; figures of the others stay in the file as they are.
        #[arg(long)]
        only: Option<Part>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Part {
    Packets,
    Timer,
    Detect,
    Throughput,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Packets => "packets",
            Part::Timer => "timer",
            Part::Detect => "detect",
            Part::Throughput => "throughput",
        }
    }
}

/// Errors: no root, something that cannot be set up or built, a figure that could not be taken.
pub fn run(bench: Bench) -> anyhow::Result<()> {
    let Bench::Sensor { quick, only } = bench;
    workspace::require_root("the benchmark")?;
    setup::run()?;
    workspace::build(true)?;
    let program = workspace::target().join("release/reroute-bench-sensor");
    let mut command = Command::new(&program);
    command.arg("--json").arg(workspace::target().join("bench/sensor.json"));
    if quick {
        command.arg("--quick");
    }
    if let Some(part) = only {
        command.args(["--only", part.name()]);
    }
    let status = command.status().with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        bail!("the benchmark could not take all its figures ({status})");
    }
    Ok(())
}
