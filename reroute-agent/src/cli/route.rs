//! `route`: the host's route to the service address.

use super::RouteVerb;

pub fn run(_verb: RouteVerb) -> anyhow::Result<()> {
    anyhow::bail!("route: not part of this build")
}
