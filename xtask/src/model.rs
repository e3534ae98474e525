//! `cargo xtask model`: the exhaustive search over the protocol's states, as deep as there is time for.

use crate::workspace;
use anyhow::bail;

/// `depth`: how many troubles the adversary has in each story; 0: as in `cargo xtask test`.
///
/// Errors: it does not build, or a counterexample was found (it is printed).
pub fn run(depth: u8, only: Option<&str>) -> anyhow::Result<()> {
    let arguments = [
        "test",
        "--release",
        "-p",
        "reroute-model",
        "--test",
        "model",
        "--",
        "--nocapture",
        "--test-threads=1",
    ];
    let mut command = workspace::cargo(&arguments);
    command.args(only);
    if depth > 0 {
        command.env("REROUTE_MODEL_DEPTH", depth.to_string());
    }
    let status = command.status()?;
    if !status.success() {
        bail!("the model found a counterexample, or did not run ({status})");
    }
    Ok(())
}
