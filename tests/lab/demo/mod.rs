//! The three failures.
pub fn run(_json: &std::path::Path) -> anyhow::Result<()> {
    crate::handle::require_root()?;
    anyhow::bail!("under construction")
}
