//! `cargo xtask vm`: other kernels than this machine's, in qemu: the agent starts there, the programs load, and those
//! of their tests that say something about a kernel pass.

mod boot;
mod console;
mod image;
mod kernel;
mod tests;

use crate::{setup, workspace};
use anyhow::bail;
use std::time::{Duration, Instant};

/// Only here needed: the emulator; a shell and tools for the guest; its archive.
const PACKAGES: &[&str] = &["busybox-static", "cpio", "qemu-system-x86", "xz-utils"];

/// From qemu's start to its end. Under emulation everything takes some tens of times longer.
const DEADLINE: Duration = Duration::from_secs(600);

/// A series of kernels that Debian packages.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Series {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    fn name(self) -> &'static str {
        match self {
            Series::V6_1 => "6.1",
            Series::V6_12 => "6.12",
        }
    }
    /// What egress programs are attached by: links came with 6.6.
    fn egress(self) -> &'static str {
        match self {
            Series::V6_1 => "clsact",
            Series::V6_12 => "tcx",
        }
    }
}

/// Boots the newest kernel of `only`, or of every series, and runs the tests there. Errors: no root, something that
/// cannot be set up, a kernel on which a test fails, or that panics, or hangs.
pub fn run(only: Option<Series>) -> anyhow::Result<()> {
    workspace::require_root("the guest's file system")?;
    setup::run()?;
    setup::require(PACKAGES)?;
    let programs = tests::build()?;
    let series = only.map_or(vec![Series::V6_1, Series::V6_12], |one| vec![one]);
    let mut failed = Vec::new();
    for series in &series {
        let start = Instant::now();
        let kernel = kernel::fetch(*series)?;
        println!("== {}", kernel.release);
        let image = image::build(&kernel, &programs)?;
        match boot::run(&kernel, &image, series.egress(), DEADLINE) {
            Ok(seen) => println!(
                "== {}: ok, {} tests; up in {:.1} s, {:.1} s in all",
                kernel.release,
                seen.passed,
                seen.up.as_secs_f32(),
                start.elapsed().as_secs_f32()
            ),
            Err(error) => {
                println!("== {}: FAILED: {error:#}", kernel.release);
                failed.push(series.name());
            }
        }
    }
    println!("{} kernels passed, {} failed", series.len() - failed.len(), failed.len());
    if failed.is_empty() { Ok(()) } else { bail!("failed on Linux {}", failed.join(" and ")) }
}
