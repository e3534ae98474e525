//! Random faults under writers on all hosts: no write may be lost or applied late, and every host goes on in the end.
//!
//! | module | |
//! |---|---|
//! | [`schedule`] | what is broken when, drawn from a seed |
//! | [`run`] | breaks, heals, starts again what ended, waits for every host |
//! | [`oplog`] | the writers' logs, read back |
//! | [`account`] | moves, proofs and gaps |
//! | [`report`] | the figures, in JSON and for people |
//! | [`evidence`] | what is kept of a run |

pub mod account;
mod evidence;
mod oplog;
mod report;
mod run;
pub mod schedule;

pub use report::Outcome;

use crate::demo::progress::Progress;
use crate::faults::{FAULTS, Fault};
use crate::handle::{Lab, require_root};
use crate::options::{Options as LabOptions, ServerKind};
use anyhow::{Context, bail};
use schedule::Schedule;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A healthy lab is waited for this long before anything is broken.
const HEALTHY: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How long faults strike, minutes.
    #[arg(long, default_value_t = 10.0)]
    pub minutes: f64,
    /// Repeats the faults of the run with this seed (same --minutes, --faults); else one is drawn, and printed first.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Only these, separated by commas (`reroute-lab fault` lists them, also those that are drawn only when named). How many moves they owe is not checked then.
    #[arg(long, value_delimiter = ',')]
    pub faults: Vec<String>,
    /// Which servers: NFS-Ganesha with fence policy `kill`, or the controllable one with `storage`.
    #[arg(long, value_enum, default_value_t)]
    pub server: ServerKind,
    /// When all is healed, every host must write again within this time, seconds.
    #[arg(long, default_value_t = 30)]
    pub recover_seconds: u64,
    /// Keep journals, logs and timelines also of a run in which all went well.
    #[arg(long)]
    pub keep: bool,
    /// The controllable servers' store takes writes of former owners too: the run must fail then.
    #[arg(long, hide = true)]
    pub no_storage_check: bool,
    /// Where the figures go. What is kept of the run lies beside it, in chaos-SEED/.
    #[arg(long, default_value = "target/bench/chaos.json")]
    pub json: PathBuf,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            minutes: 10.0,
            seed: None,
            faults: Vec::new(),
            server: ServerKind::default(),
            recover_seconds: 30,
            keep: false,
            no_storage_check: false,
            json: "target/bench/chaos.json".into(),
        }
    }
}

impl Options {
    fn total_ms(&self) -> anyhow::Result<u64> {
        if !(0.05..=24.0 * 60.0).contains(&self.minutes) {
            bail!("--minutes {}: give from 0.05 (3 s) to 1440 (a day)", self.minutes);
        }
        Ok((self.minutes * 60_000.0) as u64)
    }

    fn catalogue(&self) -> anyhow::Result<Vec<&'static Fault>> {
        if self.faults.is_empty() {
            return Ok(FAULTS.iter().collect());
        }
        let mut chosen: Vec<&Fault> = Vec::new();
        for name in &self.faults {
            let fault = Fault::find(name.trim())?;
            if !chosen.iter().any(|f| f.name == fault.name) {
                chosen.push(fault);
            }
        }
        Ok(chosen)
    }

    /// 20 in 10 minutes.
    fn moves_owed(&self) -> u64 {
        if self.faults.is_empty() { (self.minutes * 2.0) as u64 } else { 0 }
    }
}

/// Runs it; writes the figures. Errors: no root, bad options, a lab that does not start, and every violation by name.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    require_root()?;
    let (total_ms, catalogue) = (options.total_ms()?, options.catalogue()?);
    let seed = options.seed.map_or_else(random_seed, Ok)?;
    let schedule = Schedule::draw(seed, total_ms, &catalogue);
    let bench = options.json.parent().map(Path::to_path_buf).unwrap_or_default();
    let dir = evidence::prepare(&bench.join(format!("chaos-{seed}")), &schedule)?;
    let progress = Progress::new();
    progress.say(&format!(
        "seed {seed}: {} faults in {} min; again: cargo xtask chaos --seed {seed} {}\nschedule: {}",
        schedule.injections.len(),
        options.minutes,
        again(options),
        dir.join(evidence::SCHEDULE).display()
    ));
    progress.phase(&format!("starting 3 hosts, 3 SCVMs ({:?}), and Meta", options.server));
    let lab = Lab::start(LabOptions {
        storage_check: !options.no_storage_check,
        ..LabOptions::named("chaos").server(options.server)
    })?;
    lab.wait_healthy(HEALTHY)?;
    let ran = run::run(&lab, &schedule, Duration::from_secs(options.recover_seconds), &progress)?;
    let outcome = report::outcome(options, &schedule, &ran);
    if options.keep || !outcome.violations.is_empty() {
        progress.phase("keeping the evidence");
        evidence::keep(&dir, &lab, &ran, &outcome)
            .with_context(|| format!("cannot keep the evidence in {}", dir.display()))?;
    }
    progress.phase("ending the lab");
    lab.stop();
    progress.say(&report::text(&outcome));
    std::fs::write(&options.json, serde_json::to_string_pretty(&outcome)? + "\n")
        .with_context(|| format!("cannot write {}", options.json.display()))?;
    progress.say(&format!("\nfigures in {}", options.json.display()));
    drop(progress);
    if !outcome.violations.is_empty() {
        let named: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        bail!("seed {seed}: {}; what happened is in {}", named.join("; "), dir.display());
    }
    Ok(outcome)
}

fn again(options: &Options) -> String {
    let server = format!("{:?}", options.server).to_lowercase();
    let mut text = format!("--minutes {} --server {server}", options.minutes);
    if !options.faults.is_empty() {
        text += &format!(" --faults {}", options.faults.join(","));
    }
    text
}

/// Small enough to be typed in again.
fn random_seed() -> anyhow::Result<u64> {
    let mut bytes = [0; 4];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes).context("/dev/urandom")?;
    Ok(u64::from(u32::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_options_are_named() {
        let bad = Options { minutes: 0.0, ..Options::default() };
        assert!(bad.total_ms().unwrap_err().to_string().contains("--minutes 0"));
        let bad = Options { faults: vec!["no-such".into()], ..Options::default() };
        assert!(bad.catalogue().unwrap_err().to_string().contains("no-such"));
        let twice =
            Options { faults: vec!["meta-killed".into(), " meta-killed".into()], ..Options::default() };
        assert_eq!(twice.catalogue().unwrap().len(), 1);
    }

    #[test]
    fn twenty_moves_are_owed_in_ten_minutes() {
        let minutes = |minutes| Options { minutes, ..Options::default() }.moves_owed();
        assert_eq!((minutes(10.0), minutes(1.0), minutes(0.4)), (20, 2, 0));
    }
}
