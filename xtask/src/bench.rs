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
    /// A sweep over 500 addresses, beside fping. Prints a table, writes target/bench/sweep.json.
    Sweep {
        /// Sweeps of each kind.
        #[arg(long, default_value_t = 50)]
        trials: usize,
    },
    /// Failover: how long a client's writes stand still, ours beside the old loop and keepalived. Prints a table, writes
    /// target/bench/failover.json and a picture. `cargo xtask bench failover --help` lists the options.
    #[command(disable_help_flag = true)]
    Failover {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// What a peer of ours needs, besides what the lab does.
const PEERS: &[&str] = &["keepalived"];
/// Where the picture of a whole run goes.
const PICTURE: &str = "docs/img/failover.svg";

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
    workspace::require_root("the benchmark")?;
    setup::run()?;
    let mut arguments: Vec<String> = Vec::new();
    let (program, figures) = match bench {
        Bench::Sensor { quick, only } => {
            arguments.extend(quick.then(|| "--quick".into()));
            arguments.extend(only.into_iter().flat_map(|part| ["--only".into(), part.name().into()]));
            ("reroute-bench-sensor", "bench/sensor.json")
        }
        Bench::Sweep { trials } => {
            setup::require(&["fping"])?;
            arguments.extend(["--trials".into(), trials.to_string()]);
            ("reroute-bench-sweep", "bench/sweep.json")
        }
        Bench::Failover { args } => {
            if needs_peers(&args) {
                setup::require(PEERS)?;
            }
            if is_whole(&args) && !gives(&args, "--chart") {
                arguments.extend(["--chart".into(), workspace::root().join(PICTURE).display().to_string()]);
            }
            arguments.extend(args);
            ("reroute-bench-failover", "bench/failover.json")
        }
    };
    // The caller may want them elsewhere: two runs beside each other do.
    if !gives(&arguments, "--json") {
        arguments.extend(["--json".into(), workspace::target().join(figures).display().to_string()]);
    }
    workspace::build(true)?;
    let program = workspace::target().join("release").join(program);
    let mut command = Command::new(&program);
    command.args(arguments);
    let status = command.status().with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        bail!("the benchmark could not take all its figures ({status})");
    }
    Ok(())
}

/// Whether this option is among them.
fn gives(args: &[String], option: &str) -> bool {
    args.iter().any(|arg| arg.split('=').next() == Some(option))
}

/// Whether these arguments of the failover benchmark ask for figures of every fault and system, however many trials: the
/// picture of the documents shows nothing less.
fn is_whole(args: &[String]) -> bool {
    !["--only", "--systems", "--ladder", "--unlearnt"].iter().any(|option| gives(args, option))
}

/// Whether these arguments of the failover benchmark ask for more than ours.
fn needs_peers(args: &[String]) -> bool {
    let mut words = args.iter().flat_map(|arg| arg.split(['=', ',']));
    let named = gives(args, "--systems");
    let ours_only = ["--ladder", "--help", "-h"].iter().any(|word| args.iter().any(|arg| arg == word));
    !ours_only && (!named || words.any(|word| word == "keepalived"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(args: &[&str]) -> Vec<String> {
        args.iter().map(|a| a.to_string()).collect()
    }

    #[test]
    fn the_documents_show_a_whole_run_however_long() {
        let whole = |args: &[&str]| is_whole(&owned(args));
        assert!(whole(&[]) && whole(&["--trials", "200"]) && whole(&["--minutes=30"]));
        assert!(whole(&["--server", "controllable", "--peer-trials", "1", "--json", "x.json"]));
        assert!(!whole(&["--only", "planned"]) && !whole(&["--trials", "9", "--systems=reroute,legacy"]));
        assert!(!whole(&["--ladder"]) && !whole(&["--minutes", "30", "--unlearnt"]));
    }

    #[test]
    fn figures_go_where_the_caller_wants_them() {
        assert!(gives(&owned(&["--ladder", "--json", "a.json"]), "--json"));
        assert!(gives(&owned(&["--json=a.json"]), "--json"));
        assert!(!gives(&owned(&["--only", "json"]), "--json"));
    }

    #[test]
    fn keepalived_is_installed_where_it_is_measured() {
        let needs = |args: &[&str]| needs_peers(&owned(args));
        assert!(needs(&[]) && needs(&["--only", "planned"]));
        assert!(needs(&["--systems", "legacy,keepalived"]) && needs(&["--systems=keepalived"]));
        assert!(!needs(&["--systems", "reroute,legacy"]) && !needs(&["--ladder", "--seconds", "5"]));
    }
}
