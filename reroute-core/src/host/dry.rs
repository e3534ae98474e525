//! Dry mode: the host watches, decides and says what it would do; it changes nothing, on this node or at Meta.
//!
//! The mode of a host before its first login. Who has one is in Meta's hands: to leave it dry would be to leave a route
//! without anybody behind it.

use super::choice::rank;
use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Decides, says so, and touches nothing.
    Dry,
    Auto,
}

/// What would be done, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Would {
    to: Path,
    reason: String,
}

/// Why the mode cannot be changed. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModeRefused {
    #[error("this host is in that mode already")]
    Already,
    #[error("a login is on its way: ask again")]
    OnTheWay,
    #[error(
        "this host is logged in at {0}: pin it there with `reroute-agent route set`, which keeps it from moving unless that server fails"
    )]
    LoggedIn(ScvmId),
}

impl Machine {
    pub fn mode(&self) -> Mode {
        self.notes.mode.unwrap_or(self.settings.first_mode)
    }

    /// A login once had is what counts, whatever the configuration says.
    pub(super) fn is_dry(&self) -> bool {
        let never = self.disk.wanted.epoch == Epoch(0);
        self.login.is_none() && (self.notes.mode == Some(Mode::Dry) || self.mode() == Mode::Dry && never)
    }

    /// Whether the mode can be changed to this one.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn check_mode(&self, mode: Mode) -> Result<(), ModeRefused> {
        match self.login {
            Some(login) if mode == Mode::Dry => Err(ModeRefused::LoggedIn(login.scvm)),
            None if mode == Mode::Dry && !matches!(self.phase, phase::Phase::Settled) => {
                Err(ModeRefused::OnTheWay)
            }
            _ if self.mode() == mode => Err(ModeRefused::Already),
            _ => Ok(()),
        }
    }

    pub(super) fn set_mode(&mut self, mode: Mode, actor: String, now: BootNs, fx: &mut Effects) {
        self.notes.mode = Some(mode);
        self.would = None;
        self.faults.remove("dry");
        fx.push(Effect::Journal(Event::ModeSet { mode: format!("{mode:?}").to_lowercase(), actor }));
        self.notes_retry_at = now;
        self.write_notes(now, fx);
        self.decide(now, fx);
    }

    /// The server whose answers matter most: that of the login, or (dry) the one that the standing route leads to.
    pub(super) fn served_by(&self) -> Option<ScvmId> {
        let standing = || self.is_dry().then(|| self.standing().scvm);
        self.login.map(|l| l.scvm).or_else(standing)
    }

    /// Where the I/O goes by the route as it stands, whoever has set it.
    fn standing(&self) -> Path {
        match &self.route.found {
            Some(Found::Ours(path)) | Some(Found::Foreign { path: Some(path), .. }) => *path,
            _ => Path { scvm: self.settings.local, network: Network::Private },
        }
    }

    /// Says what `auto` would do now, when that changes.
    pub(super) fn decide_dry(&mut self, now: BootNs, fx: &mut Effects) {
        let here = self.standing();
        let enforces = self.servers.get(&here.scvm).and_then(|s| s.facts).is_some_and(|f| f.enforcing);
        if enforces {
            let what = format!(
                "this host is dry, and {} enforces: its calls are dropped there until it logs in (`reroute-agent route auto`)",
                here.scvm
            );
            self.fault("dry", what, fx);
        }
        let would = self.would_do(here, now);
        if let Some(Would { to, reason }) = would.clone().filter(|would| self.would.as_ref() != Some(would)) {
            fx.push(Effect::Journal(Event::WouldMove { to, reason }));
        }
        self.would = would;
    }

    fn would_do(&mut self, here: Path, now: BootNs) -> Option<Would> {
        let fit = |machine: &Machine, p: Path| {
            let well = machine.servers.get(&p.scvm).and_then(|s| s.facts).is_some_and(|f| f.is_well());
            well && machine.is_usable(p, now)
        };
        let local = self.settings.local;
        let others = self.paths.keys().copied().filter(|p| *p != here && fit(self, *p));
        let best = |paths: &mut dyn Iterator<Item = Path>| {
            paths.min_by_key(|p| self.preference_key(*p, Some(here.scvm)))
        };
        let others: Vec<Path> = others.collect();
        let (to, reason) = if self.has_failed(here.scvm) {
            let pieces = self.servers.get(&here.scvm).map(|s| s.case.pieces()).unwrap_or_default();
            let names: Vec<String> = pieces.iter().map(|p| format!("{:?}", p.kind)).collect();
            let to = best(&mut others.iter().copied().filter(|p| p.scvm != here.scvm))?;
            (to, format!("{} failed: {}", here.scvm, names.join(", ")))
        } else if self.health(here) == Health::Failed || !self.has_carrier(here.network) {
            (best(&mut others.iter().copied())?, format!("{here} is lost"))
        } else if self.servers.get(&here.scvm).is_some_and(|s| s.ill_since.is_some()) {
            // It may be about to fail: that would be the reason.
            return self.would.clone();
        } else {
            let wait_ns = self.hold_down.wait_ns(now);
            let better = |p: &Path| rank(*p, local) < rank(here, local) && self.stable_ns(*p, now) >= wait_ns;
            let to = others
                .iter()
                .copied()
                .filter(better)
                .min_by_key(|p| self.preference_key(*p, Some(here.scvm)))?;
            (to, format!("{to} is better than {here}"))
        };
        Some(Would { to, reason })
    }
}
