//! How to learn that an SCVM is shut from others than itself: the hypervisor, the fence command.

use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// Limits of what a program may be given, ms.
const TIMES: std::ops::RangeInclusive<u64> = 50..=600_000;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Hypervisor {
    /// Xen with `xl` (xl toolstack, XCP-ng, XenServer).
    Xl {
        /// Name of the local SCVM's domain, as `xl list` shows it.
        domain: String,
        #[serde(default = "Hypervisor::default_command")]
        command: PathBuf,
        #[serde(default = "Hypervisor::default_time_limit_ms")]
        time_limit_ms: u64,
    },
}

impl Hypervisor {
    fn default_command() -> PathBuf {
        "/usr/sbin/xl".into()
    }
    fn default_time_limit_ms() -> u64 {
        2000
    }

    pub fn domain(&self) -> &str {
        match self {
            Hypervisor::Xl { domain, .. } => domain,
        }
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let Hypervisor::Xl { domain, command, time_limit_ms } = self;
        if domain.is_empty() || domain.starts_with("Domain-0") {
            return Err((
                "domain",
                format!("{domain:?} is no SCVM's: name the domain as `xl list` shows it"),
            ));
        }
        if !command.is_absolute() {
            return Err(("command", format!("{} must be an absolute path", command.display())));
        }
        check_time("time_limit_ms", *time_limit_ms)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FenceCommand {
    /// Program (absolute path) and its arguments, with `{scvm}`, `{name}`, `{storage}`, `{management}`, `{attempt}`.
    pub command: Vec<String>,
    #[serde(default = "FenceCommand::default_time_limit_ms")]
    pub time_limit_ms: u64,
    /// A failed run is repeated after this.
    #[serde(default = "FenceCommand::default_retry_ms")]
    pub retry_ms: u64,
    /// Also for a move that has waited for this long though the SCVM's session holds. None: never.
    pub also_after_ms: Option<u64>,
}

impl FenceCommand {
    /// What stands in braces in an argument.
    pub const PLACES: [&'static str; 5] = ["{scvm}", "{name}", "{storage}", "{management}", "{attempt}"];

    fn default_time_limit_ms() -> u64 {
        30_000
    }
    fn default_retry_ms() -> u64 {
        5000
    }

    pub fn time_limit(&self) -> Duration {
        Duration::from_millis(self.time_limit_ms)
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        match self.command.first() {
            None => return Err(("command", "must name a program".into())),
            Some(program) if !program.starts_with('/') => {
                return Err(("command", format!("{program:?} must be an absolute path")));
            }
            Some(_) => {}
        }
        for argument in self.command.iter().skip(1) {
            let rest = Self::PLACES.iter().fold(argument.clone(), |text, place| text.replace(place, ""));
            if rest.contains(['{', '}']) {
                let places = Self::PLACES.join(", ");
                return Err(("command", format!("{argument:?}: only {places} may stand in braces")));
            }
        }
        check_time("time_limit_ms", self.time_limit_ms)?;
        check_time("retry_ms", self.retry_ms)?;
        self.also_after_ms.map_or(Ok(()), |ms| check_time("also_after_ms", ms))
    }
}

fn check_time(key: &'static str, ms: u64) -> Result<(), (&'static str, String)> {
    match TIMES.contains(&ms) {
        true => Ok(()),
        false => Err((key, format!("{ms} ms is not between {} and {} ms", TIMES.start(), TIMES.end()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(parts: &[&str]) -> FenceCommand {
        FenceCommand {
            command: parts.iter().map(|p| p.to_string()).collect(),
            time_limit_ms: 1000,
            retry_ms: 1000,
            also_after_ms: None,
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_key() {
        assert_eq!(command(&["/bin/fence", "--node={name}", "{scvm}"]).check(), Ok(()));
        for (bad, word) in [
            (vec![], "program"),
            (vec!["fence"], "absolute"),
            (vec!["/bin/fence", "{hsot}"], "{hsot}"),
            (vec!["/bin/fence", "{name"], "braces"),
        ] {
            let (key, why) = command(&bad).check().unwrap_err();
            assert_eq!(key, "command");
            assert!(why.contains(word), "{why}");
        }
        let endless = FenceCommand { time_limit_ms: 0, ..command(&["/bin/true"]) };
        assert_eq!(endless.check().unwrap_err().0, "time_limit_ms");
    }

    #[test]
    fn a_hypervisor_is_read_with_its_defaults() {
        let read = |text: &str| toml::from_str::<Hypervisor>(text);
        let xl = read("kind = \"xl\"\ndomain = \"scvm1\"").unwrap();
        let command = PathBuf::from("/usr/sbin/xl");
        assert_eq!(xl, Hypervisor::Xl { domain: "scvm1".into(), command, time_limit_ms: 2000 });
        assert_eq!(xl.check(), Ok(()));
        assert!(read("kind = \"virsh\"\ndomain = \"x\"").is_err());
        assert!(read("kind = \"xl\"\ndomain = \"x\"\nlimit = 3").is_err());
        assert_eq!(read("kind = \"xl\"\ndomain = \"\"").unwrap().check().unwrap_err().0, "domain");
        let relative = read("kind = \"xl\"\ndomain = \"x\"\ncommand = \"xl\"").unwrap();
        assert_eq!(relative.check().unwrap_err().0, "command");
    }
}
