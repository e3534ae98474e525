//! `reroute-bench-sensor`: what the sensor costs and how fast it tells. `cargo xtask bench sensor` builds and runs it.
//!
//! | module | |
//! |---|---|
//! | [`packets`] | ns per packet, over the same frames that nobody judges |
//! | [`timer`] | what a tick costs, by lines in the table |
//! | [`detect`] | from the fault to the event, on live traffic |
//! | [`throughput`] | NFS operations and TCP bytes, with and without the programs |
//! | [`programs`], [`frames`], [`space`] | what these share |
//!
//! Everything lives in namespaces of this process and is gone with it.

mod detect;
mod frames;
mod packets;
mod programs;
mod space;
mod throughput;
mod timer;

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Packets,
    Timer,
    Detect,
    Throughput,
}

/// What the sensor costs and how fast it tells. Needs root.
#[derive(Clone, Debug, Parser)]
#[command(name = "reroute-bench-sensor", version)]
struct Cli {
    /// Few repetitions: to see that it works, not for figures to keep.
    #[arg(long)]
    quick: bool,
    /// Only this part; figures of the others stay in the file as they are.
    #[arg(long)]
    only: Option<Part>,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/sensor.json")]
    json: PathBuf,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("reroute-bench-sensor: {why:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything that was asked for could be measured.
fn run(cli: &Cli) -> anyhow::Result<bool> {
    let mut report = lab::figures::Report::open(&cli.json)?;
    let space = space::Space::enter()?;
    let wanted = |part| cli.only.is_none_or(|only| only == part);
    let mut complete = true;
    if wanted(Part::Packets) {
        packets::run(&space, cli.quick, &mut report)?;
    }
    if wanted(Part::Timer) {
        timer::run(&space, cli.quick, &mut report)?;
    }
    if wanted(Part::Detect) {
        complete &= detect::run(&space, cli.quick, &mut report)?;
    }
    if wanted(Part::Throughput) {
        throughput::run(&space, cli.quick, &mut report)?;
    }
    report.save()?;
    Ok(complete)
}
