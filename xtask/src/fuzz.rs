//! `cargo xtask fuzz`: libFuzzer on the targets of `reroute-fuzz`, with the toolchain of the workspace.

use crate::workspace;
use anyhow::{Context, bail};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const VERSION: &str = "0.13.2";

fn installed() -> PathBuf {
    workspace::target().join("cargo-fuzz")
}

/// Targets are the programs in `fuzz/fuzz_targets`.
fn targets() -> anyhow::Result<Vec<String>> {
    let directory = workspace::root().join("fuzz/fuzz_targets");
    let files = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names = Vec::new();
    for file in files {
        names.extend(file?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Fuzzes one target, or each in turn, for `seconds`. `address`: with AddressSanitizer, several times slower.
///
/// What leads further is kept in `target/fuzz/corpus` for the next run. Errors: no such target, cargo-fuzz cannot be
/// installed, something was found (with the file that shows it).
pub fn run(target: Option<String>, seconds: u64, address: bool) -> anyhow::Result<()> {
    let mut targets = targets()?;
    if let Some(target) = target {
        if !targets.contains(&target) {
            bail!("no fuzz target `{target}`; there are {}", targets.join(", "));
        }
        targets = vec![target];
    }
    install()?;
    for target in targets {
        fuzz(&target, seconds, address)?;
    }
    Ok(())
}

fn program() -> PathBuf {
    installed().join("bin/cargo-fuzz")
}

fn install() -> anyhow::Result<()> {
    let version = Command::new(program()).arg("--version").output();
    if version.is_ok_and(|v| String::from_utf8_lossy(&v.stdout).contains(VERSION)) {
        return Ok(());
    }
    println!("fuzz: building cargo-fuzz {VERSION} into {} (about a minute)", installed().display());
    let root = installed().to_string_lossy().into_owned();
    let arguments = ["install", "cargo-fuzz", "--locked", "--version", VERSION, "--root", &root];
    if !workspace::cargo(&arguments).status().context("cannot run cargo")?.success() {
        bail!("cargo-fuzz could not be built (see above)");
    }
    Ok(())
}

fn fuzz(target: &str, seconds: u64, address: bool) -> anyhow::Result<()> {
    let (root, work) = (workspace::root(), workspace::target().join("fuzz"));
    let corpus = work.join("corpus").join(target);
    let findings = work.join("findings").join(target);
    for directory in [&corpus, &findings] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    println!("fuzz: {target} for {seconds} s");
    let mut command = Command::new(program());
    command
        .current_dir(&root)
        .args(["run", "--fuzz-dir", "fuzz", "--sanitizer", if address { "address" } else { "none" }])
        .arg("--target-dir")
        .arg(work.join(if address { "address" } else { "plain" }))
        .arg(target)
        // New inputs go into the first one.
        .args([corpus, root.join("fuzz/corpus").join(target)])
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args(["-print_final_stats=1", "-timeout=10"]);
    if address {
        // The sanitizer's flag is unstable; its library comes with every toolchain.
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    if !command.status().context("cannot run cargo-fuzz")?.success() {
        bail!(
            "{target}: see above; what was found, if anything, is in {}: mend it, and keep it in fuzz/corpus/{target}",
            findings.display()
        );
    }
    Ok(())
}
