//! `doctor`: what is wrong with this node, for the roles its configuration has. Changes nothing.
//!
//! [`gather`] finds facts ([`paths`]: the way to every SCVM), [`checks`] judges them (pure), [`render`] shows the findings.

mod checks;
mod facts;
mod gather;
mod paths;
mod probe;
mod render;

use crate::cli::Output;
use crate::config::Config;
use facts::Role;
use serde::Serialize;
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// It could not be found out.
    Unknown,
    Warning,
    /// Failover, or one-writer, does not work like this.
    Critical,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, e.g. `interface` or `key_file`.
    pub check: &'static str,
    pub level: Level,
    pub found: String,
    /// What to do about it; empty when all is well.
    pub advice: String,
}

#[derive(Clone, Debug, Serialize)]
struct Report {
    nodes: Vec<(Role, String)>,
    worst: Level,
    findings: Vec<Finding>,
}

/// Prints the findings. Errors: the configuration is wrong (exit code 2), or something is critical (1).
pub fn run(config: &Path, output: Output) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let facts = gather::gather(&config)?;
    let findings = checks::check(&facts);
    let worst = findings.iter().map(|f| f.level).max().unwrap_or(Level::Ok);
    let report = Report { nodes: facts.nodes, worst, findings };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print!("{}", render::text(&report)),
    }
    let critical = report.findings.iter().filter(|f| f.level == Level::Critical).count();
    anyhow::ensure!(critical == 0, "{critical} critical finding{}", if critical == 1 { "" } else { "s" });
    Ok(())
}
