//! `reroute-bench-sweep`: how long a sweep over 500 addresses takes, beside fping. `cargo xtask bench sweep` builds and
//! runs it. Everything lives in namespaces of this process and is gone with it.

use anyhow::{Context, bail, ensure};
use clap::Parser;
use lab::figures::Report;
use lab::figures::stats::spread;
use lab::many::{Many, WIRE, address};
use reroute_agent::sweep::{Options, sweep};
use reroute_core::sweep::{Outcome, Settings};
use serde_json::{Value, json};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

const ADDRESSES: u16 = 500;
/// One in a hundred.
const DEAD: [u16; 5] = [17, 100, 333, 420, 499];
/// A full frame of 1500 bytes, less the headers of IP and ICMP.
const PAYLOAD: &str = "1472";

/// How long sweeps over 500 addresses take, ours and fping's in turns. Needs root and fping.
#[derive(Parser)]
#[command(name = "reroute-bench-sweep", version)]
struct Cli {
    /// Sweeps of each kind.
    #[arg(long, default_value_t = 50)]
    trials: usize,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/sweep.json")]
    json: PathBuf,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("reroute-bench-sweep: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    ensure!(cli.trials > 0, "--trials must be 1 or more");
    let mut report = Report::open(&cli.json)?;
    let all: Vec<Ipv4Addr> = (0..ADDRESSES).map(address).collect();
    println!("{:<34} {:>9} {:>9} {:>9}   found", "500 addresses, ms", "p50", "p99", "max");
    for (name, dead) in [("all_alive", &[][..]), ("one_percent_dead", &DEAD)] {
        let many = Many::new((0..ADDRESSES).filter(|i| !dead.contains(i)))?;
        // Link addresses are known to a host that pulses: found out before, by both.
        ours(&many, &all)?;
        let (mut took, mut after, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..cli.trials {
            let swept = ours(&many, &all)?;
            ensure!(swept.silent == dead.len(), "{} silent, {} dead", swept.silent, dead.len());
            took.push(swept.took_ms);
            after.push(swept.after_ms);
            theirs.push(fping(&many, &all, dead.len())?);
        }
        let found = format!("{} of {} dead", dead.len(), dead.len());
        let rows = [
            ("reroute", &took),
            ("reroute, after the last request", &after),
            ("fping -i 0 -t 5 -r 0", &theirs),
        ];
        let mut part = serde_json::Map::new();
        for (system, values) in rows {
            let s = spread(values);
            println!(
                "{:<34} {:>9.2} {:>9.2} {:>9.2}   {found}",
                format!("{name}: {system}"),
                s.p50,
                s.p99,
                s.max
            );
            part.insert(system.into(), s.json(3));
        }
        report.set(name, Value::Object(part));
    }
    report.part("sweep", json!({ "trials": cli.trials, "addresses": ADDRESSES, "frame": 1500 }));
    report.save()
}

struct Swept {
    took_ms: f64,
    /// Since the first round's last request had left.
    after_ms: f64,
    silent: usize,
}

fn ours(many: &Many, all: &[Ipv4Addr]) -> anyhow::Result<Swept> {
    let options = Options { interface: Some(WIRE.into()), mtu: 1500, settings: Settings::default() };
    let report = many.here.run(|| sweep(all, &options))?.context("sweep")?;
    let silent = report.outcomes.iter().filter(|o| !matches!(o, Outcome::Answers { .. })).count();
    Ok(Swept {
        took_ms: report.took_ns as f64 / 1e6,
        after_ms: report.took_ns.saturating_sub(report.asked_ns) as f64 / 1e6,
        silent,
    })
}

/// Its own process, as a script would run it; ms.
fn fping(many: &Many, all: &[Ipv4Addr], dead: usize) -> anyhow::Result<f64> {
    let list: String = all.iter().map(|a| format!("{a}\n")).collect();
    let began = Instant::now();
    let output = many.here.run(|| -> anyhow::Result<_> {
        let mut child = Command::new("fping")
            .args(["-i", "0", "-t", "5", "-r", "0", "-q", "-u", "-M", "-b", PAYLOAD, "-I", WIRE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run fping")?;
        child.stdin.take().context("no pipe")?.write_all(list.as_bytes())?;
        Ok(child.wait_with_output()?)
    })??;
    let took = began.elapsed().as_secs_f64() * 1e3;
    // 1: some do not answer.
    if !matches!(output.status.code(), Some(0 | 1)) {
        bail!("fping: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let silent = String::from_utf8_lossy(&output.stdout).lines().filter(|l| !l.trim().is_empty()).count();
    ensure!(silent >= dead, "fping names {silent} of {dead} dead");
    Ok(took)
}
