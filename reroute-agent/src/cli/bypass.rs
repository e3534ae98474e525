//! `bypass`: suspends or restores enforcement on this SCVM.

use super::{Common, Switch};

pub fn run(_switch: Switch, _common: Common) -> anyhow::Result<()> {
    anyhow::bail!("bypass: not part of this build")
}
