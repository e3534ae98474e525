//! `reroute-agent`: one binary, a role or an operator's verb per call.

use clap::{Parser, Subcommand};
use reroute_agent::config::{Config, ConfigError};
use reroute_agent::{cli, host, meta, scvm};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "reroute-agent",
    version,
    about = "Storage failover for hyperconverged NFS: sense, decide, fence, route"
)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Args)]
struct Daemon {
    /// Configuration file (TOML).
    #[arg(long, default_value = "/etc/reroute/agent.toml")]
    config: PathBuf,
    /// Check the configuration, touch nothing, exit.
    #[arg(long)]
    check: bool,
    /// Keep all that this node's machine is told in this directory, a file for each start, for `replay`.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Watch, admit and fence NFS clients on a storage VM.
    Scvm(Daemon),
    /// Send pulses, decide, and move the route on a hypervisor host.
    Host(Daemon),
    /// Keep sessions, logins and epochs.
    Meta(Daemon),
    #[command(flatten)]
    Operator(cli::Verb),
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("REROUTE_LOG").unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        // A line that cannot be written is lost. To complain of that would be to panic: it goes to the same full disk.
        .log_internal_errors(false)
        .init();
    let result = match args.verb {
        Verb::Scvm(daemon) => start(daemon, |c| Ok(c.scvm()?.interfaces.check("scvm")?), scvm::run),
        Verb::Host(daemon) => start(daemon, |c| Ok(c.host()?.interfaces.check("host")?), host::run),
        Verb::Meta(daemon) => start(daemon, |c| Ok(c.meta().map(drop)?), meta::run),
        Verb::Operator(verb) => cli::run(verb),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reroute-agent: {error:#}");
            // 2: what was asked for is wrong, and nothing was touched. 3: it is done, but not everywhere yet. 1: it went
            // wrong on the way.
            if error.is::<cli::Unconfirmed>() {
                return ExitCode::from(3);
            }
            let refused = error.is::<ConfigError>() || error.is::<cli::Refused>();
            ExitCode::from(if refused { 2 } else { 1 })
        }
    }
}

fn start(
    daemon: Daemon,
    check: fn(&Config) -> anyhow::Result<()>,
    run: fn(Config) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut config = Config::load(&daemon.config)?;
    config.record = daemon.record;
    check(&config)?;
    if daemon.check {
        println!("{}: ok", daemon.config.display());
        return Ok(());
    }
    run(config)
}
