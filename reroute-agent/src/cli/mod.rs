//! The operator's verbs: each asks an agent on this node by its Unix socket. `doctor` works without one, too.

pub mod block;
pub mod bypass;
pub mod drain;
pub mod flows;
pub mod logins;
pub mod moves;
pub mod replay;
pub mod route;
pub mod status;

use crate::doctor;
use std::path::PathBuf;

/// What was asked for cannot be done as asked; nothing was changed. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// It is done and on record, but not everybody is known to follow; they are named. Exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unconfirmed(pub String);

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum Output {
    #[default]
    Text,
    Json,
}

/// Where to ask, how to answer: the same for every verb.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// The agent's Unix socket.
    #[arg(long, default_value = "/run/reroute/agent.sock")]
    pub socket: PathBuf,
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Sessions and their health, hosts and their routes, logins with epochs.
    Status(Common),
    /// On an SCVM: clients, connections, calls waiting, latency.
    Flows {
        #[command(flatten)]
        common: Common,
        /// Repeat every this many seconds.
        #[arg(long)]
        watch: Option<u64>,
    },
    /// Who holds what, since when, and what shows that somebody stands behind it.
    Logins(logins::Args),
    /// Keep a client away from every server for a time.
    #[command(subcommand)]
    Block(block::BlockVerb),
    /// On an SCVM: suspend (`on`) or restore (`off`) enforcement at once, without Meta.
    Bypass {
        #[arg(value_enum)]
        switch: Switch,
        #[command(flatten)]
        common: Common,
    },
    /// What is wrong with this node, for the roles of its configuration; changes nothing. Exit code 1: something
    /// critical.
    Doctor {
        /// Configuration file (TOML).
        #[arg(long, default_value = "/etc/reroute/agent.toml")]
        config: PathBuf,
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Tell a machine everything again that was recorded with `--record`, and show what it made of it. Exit code 1: it
    /// did something else than then.
    Replay(replay::Args),
    /// On a host: the route to the service address.
    #[command(subcommand)]
    Route(RouteVerb),
    /// At Meta: have all hosts leave an SCVM by planned moves, and nobody move there, until it is undone.
    Drain(drain::Args),
    /// At Meta: moves under way.
    #[command(subcommand)]
    Move(moves::MoveVerb),
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(clap::Subcommand)]
pub enum RouteVerb {
    /// Take over a route to the service address that somebody else has set.
    Adopt(Common),
    /// Go to this place by a planned move, and stay there unless it fails.
    Set {
        /// An SCVM's name, or NAME/storage, NAME/management.
        target: String,
        /// For this long (90s, 30m, 12h, 2d); without it, until `route auto`.
        #[arg(long = "for", value_parser = drain::duration)]
        time: Option<std::time::Duration>,
        /// Who asks, for the record; the user is recorded in any case.
        #[arg(long, default_value = "")]
        actor: String,
        #[command(flatten)]
        common: Common,
    },
    /// Pin nothing any more, and end dry mode: the host goes where it is best by itself.
    Auto(Common),
    /// Decide and say so, but change nothing: the mode of a host that was just installed.
    Dry(Common),
}

pub fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Status(common) => status::run(common),
        Verb::Flows { common, watch } => flows::run(common, watch),
        Verb::Logins(args) => logins::run(args),
        Verb::Block(verb) => block::run(verb),
        Verb::Bypass { switch, common } => bypass::run(switch, common),
        Verb::Doctor { config, output } => doctor::run(&config, output),
        Verb::Replay(args) => replay::run(&args),
        Verb::Route(verb) => route::run(verb),
        Verb::Drain(args) => drain::run(args),
        Verb::Move(verb) => moves::run(verb),
    }
}
