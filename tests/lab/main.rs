//! `reroute-lab`: the lab's command line.

use clap::{Args, Parser, Subcommand};
use lab::options::{Options, ServerKind};
use std::path::PathBuf;
use std::process::ExitCode;

mod verbs;

#[derive(Parser)]
#[command(
    name = "reroute-lab",
    version,
    about = "Hosts, SCVMs and Meta in network namespaces, with real NFS servers, to be broken"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct Id {
    /// Which lab.
    #[arg(long, default_value = "default")]
    id: String,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a lab that stays until `down`.
    Up {
        #[command(flatten)]
        id: Id,
        #[arg(long, value_enum, default_value_t)]
        server: ServerKind,
        /// No agents: bare networks and servers.
        #[arg(long)]
        no_agents: bool,
        /// A stand-in for `xl` on every host, which knows whether the SCVM beside it lives.
        #[arg(long)]
        hypervisor: bool,
    },
    /// End a lab; nothing of it stays.
    Down(Id),
    /// What runs, what is broken, and how the cluster stands.
    Status {
        #[command(flatten)]
        id: Id,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Break something.
    Fault {
        #[command(flatten)]
        id: Id,
        /// None: list the faults.
        name: Option<String>,
        /// Node to strike; the first of the fault's kind by default.
        target: Option<String>,
    },
    /// Mend what was broken.
    Heal {
        #[command(flatten)]
        id: Id,
        /// Only this fault.
        name: Option<String>,
        /// Only there.
        target: Option<String>,
    },
    /// Start a process of the lab again that has ended, e.g. scvm1/agent.
    Start {
        #[command(flatten)]
        id: Id,
        process: String,
    },
    /// Ask a process of the lab to end (SIGTERM), e.g. scvm1/agent.
    Stop {
        #[command(flatten)]
        id: Id,
        process: String,
    },
    /// The end of a log, e.g. host1/agent; none: of all.
    Logs {
        #[command(flatten)]
        id: Id,
        process: Option<String>,
    },
    /// Run a command in a node, e.g. `exec host1 -- ip route`.
    Exec {
        #[command(flatten)]
        id: Id,
        node: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Kill, hang and cut off a server; show each failover on one timeline.
    Demo {
        /// Where the figures go.
        #[arg(long, default_value = "target/demo.json")]
        json: PathBuf,
    },
    /// Break things at random under writers on all hosts; no write may be lost or applied late.
    Chaos {
        #[command(flatten)]
        options: lab::chaos::Options,
    },
    /// Be a burden to the machine for a while: what the lab's faults start.
    #[command(hide = true)]
    Load {
        #[arg(value_enum)]
        kind: lab::faults::Load,
        #[arg(long)]
        host: u32,
        #[arg(long)]
        scvm: u32,
    },
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        options: String,
        /// End when standard input does.
        #[arg(long)]
        owned: bool,
    },
    #[command(hide = true)]
    Init {
        #[arg(long)]
        options: String,
        #[arg(long)]
        owned: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("reroute-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Up { id, server, no_agents, hypervisor } => {
            verbs::up(Options { id: id.id, server, agents: !no_agents, hypervisor, ..Options::default() })?
        }
        Verb::Down(id) => verbs::down(&id.id)?,
        Verb::Status { id, json } => verbs::status(&id.id, json)?,
        Verb::Fault { id, name, target } => verbs::fault(&id.id, name.as_deref(), target.as_deref())?,
        Verb::Heal { id, name, target } => verbs::heal(&id.id, name, target)?,
        Verb::Start { id, process } => verbs::start(&id.id, &process)?,
        Verb::Stop { id, process } => verbs::stop(&id.id, &process)?,
        Verb::Logs { id, process } => verbs::logs(&id.id, process.as_deref())?,
        Verb::Exec { id, node, command } => return lab::exec::run(&id.id, &node, &command),
        Verb::Demo { json } => lab::demo::run(&json)?,
        Verb::Chaos { options } => {
            lab::chaos::run(&options)?;
        }
        Verb::Load { kind, host, scvm } => lab::load::run(kind, host, scvm)?,
        Verb::Supervise { options, owned } => {
            let well = lab::supervisor::supervise(&options, owned);
            return Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Verb::Init { options, owned } => {
            lab::supervisor::init(&options, owned)?;
            // Threads may be in the middle of something: pid 1's end is the end of all of it.
            std::process::exit(0);
        }
    }
    Ok(ExitCode::SUCCESS)
}
