//! `cargo xtask`: set up, build, run the lab and the demo, test (on other kernels too), fuzz, measure.

mod bench;
mod fuzz;
mod model;
mod setup;
mod sim;
mod stages;
mod vm;
mod workspace;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, build, run the lab and the demo, test, fuzz, measure")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and testing need and this machine lacks (Debian, root; elsewhere: say what to do).
    Setup,
    /// Build everything in release mode.
    Build,
    /// Run the lab's command line: `cargo xtask lab up`, `... exec host1 -- ip route`, `... down`.
    Lab {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Set up, build, then kill, hang and cut off a server and show each failover on one timeline.
    Demo {
        /// Where the figures go.
        #[arg(long, default_value = "target/demo.json")]
        json: PathBuf,
    },
    /// Break the lab at random under writers on all hosts: `cargo xtask chaos --minutes 10 [--seed N] [--server controllable]`.
    #[command(disable_help_flag = true)]
    Chaos {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Format, lints, unit tests, program tests, lab tests; ends with `N passed, N failed`.
    Test {
        /// Draw 20,000 cases in each property test instead of 256, and 100,000 instead of 5,000 of calls and replies; restart
        /// the agent 100 times instead of 30.
        #[arg(long)]
        long: bool,
    },
    /// Run the protocol's machines through random faults in simulated time: `--seeds N`, or one `--seed S --trace`.
    Sim {
        /// How many seeds (2,000; with --seed, one).
        #[arg(long)]
        seeds: Option<u64>,
        /// The first one.
        #[arg(long)]
        seed: Option<u64>,
        /// Tell everything that happens in that seed's run.
        #[arg(long)]
        trace: bool,
        /// Every seed has a server that is cut off while its host or its agent stumbles.
        #[arg(long)]
        pressed: bool,
        /// Switch a safeguard off: proof-step, epoch-check, stamp-echo, send-stamp-counting, persisted-release, leader-lease.
        #[arg(long)]
        without: Vec<String>,
    },
    /// Fuzz the packet parser, the record follower and the pulse codec with libFuzzer.
    Fuzz {
        /// One of them; else each in turn.
        target: Option<String>,
        /// How long, each.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// With AddressSanitizer.
        #[arg(long)]
        address: bool,
    },
    /// Search all states of the protocol within bounds: every story, with so many troubles anywhere.
    Model {
        /// Troubles in each story, at least; each one more takes some hundred times as long.
        #[arg(long, default_value_t = 0)]
        depth: u8,
        /// Only the searches whose name contains this.
        only: Option<String>,
    },
    /// Load the programs and run their tests on other kernels, in qemu, and move a kernel's own NFS client; kernels of
    /// Debian are downloaded.
    Vm {
        /// Only this one; else both.
        #[arg(long)]
        kernel: Option<vm::Series>,
        /// What to boot it for; else for the programs.
        #[arg(long)]
        only: Option<vm::Step>,
    },
    /// Measure: `cargo xtask bench sensor`, `cargo xtask bench failover`.
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Build => workspace::build(false),
        Verb::Lab { args } => lab(&args),
        Verb::Demo { json } => demo(json),
        Verb::Chaos { args } => chaos(args),
        Verb::Test { long } => stages::run(long),
        Verb::Sim { seeds, seed, trace, pressed, without } => {
            sim::run(seeds, seed, (trace, pressed), &without)
        }
        Verb::Fuzz { target, seconds, address } => fuzz::run(target, seconds, address),
        Verb::Model { depth, only } => model::run(depth, only.as_deref()),
        Verb::Vm { kernel, only } => vm::run(kernel, only),
        Verb::Bench { what } => bench::run(what),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn lab(args: &[String]) -> anyhow::Result<()> {
    workspace::build(true)?;
    workspace::exec_lab(args)
}

fn demo(json: PathBuf) -> anyhow::Result<()> {
    workspace::require_root("the demo")?;
    setup::run()?;
    workspace::build(false)?;
    workspace::exec_lab(&["demo".into(), "--json".into(), json.to_string_lossy().into_owned()])
}

/// Arguments as `reroute-lab chaos --help` lists them.
fn chaos(args: Vec<String>) -> anyhow::Result<()> {
    workspace::require_root("the lab")?;
    setup::run()?;
    workspace::build(true)?;
    workspace::exec_lab(&[vec!["chaos".into()], args].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chaos_hands_its_arguments_on() {
        let given = ["xtask", "chaos", "--minutes", "1", "--seed", "7", "--help"];
        match Cli::try_parse_from(given).map(|cli| cli.verb) {
            Ok(Verb::Chaos { args }) => assert_eq!(args, given[2..]),
            _ => panic!("not parsed as chaos"),
        }
    }
}
