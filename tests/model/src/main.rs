//! `reroute-sim`: seeds through the simulated world; `cargo xtask sim` runs it.

use clap::Parser;
use reroute_model::sim::{Options, run, run_many};
use reroute_model::world::Safeguard;
use std::io::Write;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "reroute-sim",
    about = "Run the protocol's machines through random faults in simulated time"
)]
struct Cli {
    /// How many seeds.
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// The first one; alone (without --seeds), the only one.
    #[arg(long)]
    seed: Option<u64>,
    /// Tell everything that happens.
    #[arg(long)]
    trace: bool,
    /// Switch a safeguard off: proof-step, epoch-check, stamp-echo, send-stamp-counting, persisted-release, leader-lease.
    #[arg(long, value_parser = safeguard)]
    without: Vec<Safeguard>,
    /// Every seed has a server that is cut off while its host or its agent stumbles: what safeguards are tested by.
    #[arg(long)]
    pressed: bool,
}

fn safeguard(name: &str) -> Result<Safeguard, String> {
    let known = || Safeguard::ALL.map(Safeguard::name).join(", ");
    Safeguard::ALL
        .into_iter()
        .find(|s| s.name() == name)
        .ok_or_else(|| format!("no safeguard {name:?}: there are {}", known()))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let options = Options { off: cli.without.iter().copied().collect(), pressed: cli.pressed };
    if cli.trace {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let outcome = run(cli.seed.unwrap_or(1), &options, Some(&mut out));
        let _ = out.flush();
        return if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let first = cli.seed.unwrap_or(1);
    let stats = run_many(first..first + cli.seeds, &options, |outcome| {
        for violation in &outcome.violations {
            println!(
                "seed {}: {:?}: {}\n  see it with: cargo xtask sim --seed {} --trace",
                outcome.seed, violation.kind, violation.what, outcome.seed
            );
        }
        true
    });
    println!("{stats}");
    if stats.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
