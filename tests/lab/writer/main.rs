//! `reroute-writer`: an NFSv3 client on libnfs that proves whether writes were lost or applied late, and measures how
//! long nothing was completed. `reroute-writer --help` gives flags, commands and exit codes.
//!
//! ```text
//! reroute-writer --url 'nfs://192.168.33.2/export?version=3&nfsport=2049&mountport=2049' \
//!     --backing /srv/store --outstanding 4 --metadata --control /run/writer.sock --max-seconds 60
//! printf 'snapshot\n' | socat - UNIX-CONNECT:/run/writer.sock
//! ```
//!
//! Its files are in `writer-ID` under the export: `append` (every block once per lap), `hot` (a small ring, overwritten
//! all the time), with `--metadata` also `unstable` and `names/`. It dies with the thread that started it.
//!
//! - `run`: the loop, on the main thread, with libnfs; `control`: threads that bring commands to it.
//! - `ring`, `metadata`: what must be there, and the check against the backing files.
//! - `record`, `report`: what is told. `libnfs`: the only unsafe code.

mod block;
mod cli;
mod control;
mod libnfs;
mod metadata;
mod record;
mod report;
mod ring;
mod run;
mod session;

use anyhow::Context;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("reroute-writer: {why:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: cli::Cli) -> anyhow::Result<ExitCode> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let inbox = control::start(cli.control.as_deref(), cli.stdin)?;
    let (result, control, expect_damage) = (cli.result.clone(), cli.control.clone(), cli.expect_damage);
    let (report, stop) = run::Writer::start(cli)?.run(&inbox)?;
    let text = serde_json::to_string(&report)?;
    println!("{text}");
    if let Some(path) = result {
        std::fs::write(&path, format!("{text}\n")).with_context(|| format!("--result {}", path.display()))?;
    }
    if let Some(stop) = stop
        && stop.answer.send(text).is_ok()
    {
        inbox.finish();
    }
    if let Some(path) = control {
        let _ = std::fs::remove_file(path);
    }
    Ok(if report.damaged() && !expect_damage { ExitCode::from(1) } else { ExitCode::SUCCESS })
}
