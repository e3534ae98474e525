//! `flows`: the SCVM's clients and connections.

use super::Common;

pub fn run(_common: Common, _watch: Option<u64>) -> anyhow::Result<()> {
    anyhow::bail!("flows: not part of this build")
}
