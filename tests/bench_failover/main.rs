//! `reroute-bench-failover`: how long a client's writes stand still, ours beside two peers in the same lab.
//! `cargo xtask bench failover` builds and runs it.
//!
//! | module | |
//! |---|---|
//! | [`cases`], [`plan`], [`trial`] | what is measured, for how long, and how |
//! | [`ours`], [`peers`] | who is measured |
//! | [`old_loop`] | the loop that ours replaces, and what stands around it |
//! | [`ladder`] | faults that must move nothing |
//! | [`rows`], [`chart`] | the figures, as JSON, table and picture |
//! | [`watch`] | a host's route, watched |
//!
//! Each lab lives in namespaces and is gone with this process, however it ends.

mod cases;
mod chart;
mod ladder;
mod old_loop;
mod ours;
mod peers;
mod plan;
mod rows;
mod trial;
mod watch;

use anyhow::Context;
use cases::{Case, System};
use clap::{Parser, Subcommand};
use lab::demo::progress::Progress;
use lab::figures::Report;
use lab::options::ServerKind;
use plan::{ORDER, Turn, share, share_of};
use rows::{Kept, Row, table};
use serde_json::json;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const OURS: usize = 30;
const PEERS: usize = 3;
const MINUTES: f64 = 40.0;

/// The longest time without a completed write, by fault: ours, the old loop, keepalived. Needs root.
#[derive(Clone, Debug, Parser)]
#[command(name = "reroute-bench-failover", version)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    /// Only these faults, separated by commas; figures of the others stay in the file as they are.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these, separated by commas.
    #[arg(long, value_delimiter = ',', value_enum)]
    systems: Vec<System>,
    /// Of ours, for each fault: 30, or as many as there is time for; with this, as many as said.
    #[arg(long)]
    trials: Option<usize>,
    /// Of each peer, for each fault.
    #[arg(long, default_value_t = PEERS)]
    peer_trials: usize,
    /// Trials are left out that would end later if they took as long as those before; but each fault has one. Default: 40,
    /// none with --trials.
    #[arg(long)]
    minutes: Option<f64>,
    /// Which server, where a fault takes either.
    #[arg(long, value_enum, default_value_t)]
    server: ServerKind,
    /// Instead: faults that must move nothing.
    #[arg(long)]
    ladder: bool,
    /// How long each of those stands.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where the figures go; the picture, and what each trial gave, lie beside it.
    #[arg(long, default_value = "target/bench/failover.json")]
    json: PathBuf,
    /// The picture goes there too.
    #[arg(long)]
    chart: Option<PathBuf>,
    /// Do not wait until the client's latency is learnt: to see that it works, not for figures to keep.
    #[arg(long)]
    unlearnt: bool,
}

/// What the peers' labs run of this program.
#[derive(Clone, Debug, Subcommand)]
enum Part {
    /// Meta's session list, and who keeps alive.
    #[command(name = "old-meta", hide = true)]
    Meta,
    /// Keepalives of an access server.
    #[command(name = "old-follower", hide = true)]
    Follower {
        #[arg(long)]
        id: u32,
        #[arg(long)]
        pidfile: PathBuf,
    },
    /// The old loop of a host.
    #[command(name = "old-loop", hide = true)]
    Loop {
        #[arg(long)]
        host: u32,
    },
    /// What an operator ran: delete and add the route.
    #[command(name = "old-route", hide = true)]
    Route { to: Ipv4Addr },
}

fn main() -> ExitCode {
    let mut cli = Cli::parse();
    let done = match cli.part.take() {
        Some(part) => run_part(part).map(|()| true),
        None if cli.ladder => climb(&cli),
        None => measure(&cli),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("reroute-bench-failover: {why:#}");
            ExitCode::from(2)
        }
    }
}

fn run_part(part: Part) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match part {
        Part::Meta => runtime.block_on(old_loop::stand_in::serve()),
        Part::Follower { id, pidfile } => runtime.block_on(old_loop::stand_in::follow(id, pidfile)),
        Part::Loop { host } => runtime.block_on(old_loop::run(host)),
        Part::Route { to } => old_loop::reroute(to),
    }
}

/// Whether everything could be measured.
fn climb(cli: &Cli) -> anyhow::Result<bool> {
    lab::handle::require_root()?;
    let rungs = ladder::wanted(&cli.only)?;
    let mut kept = Kept::open(&cli.json, false)?;
    let complete = ladder::run(&rungs, cli.seconds, cli.server, !cli.unlearnt, &mut kept)?;
    println!("figures in {}", kept.path().display());
    Ok(complete)
}

/// Whether everything that was asked for could be measured.
fn measure(cli: &Cli) -> anyhow::Result<bool> {
    lab::handle::require_root()?;
    let cases = Case::wanted(&cli.only)?;
    let systems = if cli.systems.is_empty() { ORDER.to_vec() } else { cli.systems.clone() };
    let mut kept = Kept::open(&cli.json, cli.only.is_empty() && cli.systems.is_empty())?;
    let mut each = Report::open(&beside(&cli.json, "-trials.json"))?;
    let progress = Progress::new();
    let minutes = cli.minutes.or(cli.trials.is_none().then_some(MINUTES));
    let end = minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    let mut complete = true;
    for (nth, &system) in systems.iter().enumerate() {
        let end = share_of(Instant::now(), end, &systems[nth..]);
        for (done, case) in cases.iter().enumerate() {
            let turn = Turn {
                progress: &progress,
                system,
                case,
                trials: if system == System::Reroute { cli.trials.unwrap_or(OURS) } else { cli.peer_trials },
                deadline: share(Instant::now(), end, cases.len() - done),
            };
            complete &= row(cli, &turn, &mut kept, &mut each)?;
        }
    }
    progress.say(&format!("\n{}\n", table(&kept.figures.rows)));
    each.save()?;
    draw(cli, &kept)?;
    println!("figures in {}", kept.path().display());
    Ok(complete)
}

/// One system, one fault. Whether its trials could be done.
fn row(cli: &Cli, turn: &Turn<'_>, kept: &mut Kept, each: &mut Report) -> anyhow::Result<bool> {
    let outcome = match turn.system {
        System::Reroute => ours::run(turn, cli.server, !cli.unlearnt),
        System::Legacy | System::Keepalived => peers::run(turn, cli.server),
    };
    let name = format!("{} {}", turn.system.name(), turn.case.name);
    let (trials, trouble) = match outcome {
        Ok(outcome) => (outcome.trials, outcome.trouble),
        Err(error) => (Vec::new(), Some(error)),
    };
    if !trials.is_empty() {
        kept.row(Row::of(turn.case.name, turn.system, &trials))?;
        each.set(&name, json!(trials));
        each.part(&name, json!({ "server": turn.case.lab("", cli.server).map(|o| o.server).ok(), "learnt": !cli.unlearnt }));
    }
    if let Some(trouble) = &trouble {
        turn.progress.say(&format!("{name}: FAILED: {trouble:#}"));
    }
    Ok(trouble.is_none())
}

fn beside(json: &Path, end: &str) -> PathBuf {
    let stem = json.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    json.with_file_name(stem + end)
}

fn draw(cli: &Cli, kept: &Kept) -> anyhow::Result<()> {
    let kernel = lab::figures::report::kernel();
    // Its version, not whose build it is.
    let kernel = kernel.split('-').next().unwrap_or_default();
    let note = format!("{}, Linux {kernel}; cargo xtask bench failover", lab::figures::report::date());
    let picture = chart::svg(&kept.figures.rows, &note);
    let own = beside(&cli.json, ".svg");
    for path in [Some(&own), cli.chart.as_ref()].into_iter().flatten() {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(path, &picture).with_context(|| format!("writing {}", path.display()))?;
        println!("picture in {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_what_the_documents_say() {
        let cli = Cli::try_parse_from([
            "bench",
            "--only",
            "server-hung,planned",
            "--systems",
            "reroute,legacy",
            "--trials",
            "200",
        ]);
        let cli = cli.expect("parsed");
        assert_eq!(cli.only, ["server-hung", "planned"]);
        assert_eq!(cli.systems, [System::Reroute, System::Legacy]);
        assert_eq!(cli.trials, Some(200));
        assert!(Cli::try_parse_from(["bench", "--ladder", "--seconds", "600"]).expect("parsed").ladder);
        assert!(Cli::try_parse_from(["bench", "--systems", "nobody"]).is_err());
        assert_eq!(beside(Path::new("a/failover.json"), ".svg"), Path::new("a/failover.svg"));
    }
}
