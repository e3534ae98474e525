//! `cargo xtask vm`: other kernels than this machine's, in qemu: the agent starts there, the programs load, and those
//! of their tests that say something about a kernel pass; and the kernel's own NFS client, on a host of a lab in there,
//! goes from server to server.

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

/// What a guest is booted for.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// The agent's programs and their tests.
    Programs,
    /// The kernel's NFS client.
    NfsClient,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Programs => "programs",
            Step::NfsClient => "nfs-client",
        }
    }
    fn tests(self) -> &'static [&'static str] {
        match self {
            Step::Programs => tests::PROGRAMS,
            Step::NfsClient => tests::NFS_CLIENT,
        }
    }
    /// From qemu's start to its end. Under emulation everything takes some tens of times longer.
    fn deadline(self) -> Duration {
        match self {
            Step::Programs => Duration::from_secs(600),
            Step::NfsClient => Duration::from_secs(1200),
        }
    }
}

/// Boots the newest kernel of `kernel`, or of every series, for the step `only`, else for the programs, and runs the
/// tests there. Errors: no root, something that cannot be set up, a kernel on which a test fails, or that panics, or hangs.
pub fn run(kernel: Option<Series>, only: Option<Step>) -> anyhow::Result<()> {
    workspace::require_root("the guest's file system")?;
    setup::run()?;
    setup::require(PACKAGES)?;
    let programs = tests::build()?;
    let series = kernel.map_or(vec![Series::V6_1, Series::V6_12], |one| vec![one]);
    let steps = [only.unwrap_or(Step::Programs)];
    let (mut passed, mut failed) = (0, Vec::new());
    for series in series {
        let kernel = kernel::fetch(series)?;
        let image = image::build(&kernel, &programs)?;
        for step in &steps {
            let start = Instant::now();
            let name = format!("{}, {}", kernel.release, step.name());
            println!("== {name}");
            match boot::run(&kernel, &image, *step, series.egress()) {
                Ok(seen) => {
                    passed += 1;
                    println!(
                        "== {name}: ok, {} tests; up in {:.1} s, {:.1} s in all",
                        seen.passed,
                        seen.up.as_secs_f32(),
                        start.elapsed().as_secs_f32()
                    );
                }
                Err(error) => {
                    println!("== {name}: FAILED: {error:#}");
                    failed.push(format!("{} ({})", series.name(), step.name()));
                }
            }
        }
    }
    println!("{passed} guests passed, {} failed", failed.len());
    if failed.is_empty() { Ok(()) } else { bail!("failed on Linux {}", failed.join(" and ")) }
}
