//! What operators want of this host: to be at a pinned place, to leave an SCVM that is being drained.
//!
//! Both are planned moves: in a quiet moment, with calls in progress answered first, and never away from a server that
//! works to one that is not seen to. What has failed is left as ever; a pin only says what is best.

use super::*;

/// A refused or fruitless planned move is asked for again after this.
const AGAIN_NS: u64 = 3 * SEC;

/// Where an operator wants this host to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    pub scvm: ScvmId,
    /// None: whichever is best.
    pub network: Option<Network>,
    /// By this node's clock; None: until it is taken back.
    pub until: Option<BootNs>,
    pub actor: String,
}

impl Pin {
    fn holds(&self, path: Path) -> bool {
        path.scvm == self.scvm && self.network.is_none_or(|network| network == path.network)
    }

    fn place(&self) -> String {
        match self.network {
            Some(network) => format!("{} by {network}", self.scvm),
            None => self.scvm.to_string(),
        }
    }
}

/// Why a place cannot be pinned. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinRefused {
    #[error("no {0} in this cluster: see `reroute-agent status`")]
    Unknown(ScvmId),
    #[error("the private network is where I/O goes without a route: name storage or management")]
    Private,
    #[error("this host has no login yet: nothing can be moved before Meta has given it one")]
    NoLogin,
    #[error("this host is at {0} already: nothing to move")]
    AlreadyThere(Path),
    #[error("{0} is being drained: choose another target, or end that with `reroute-agent drain --undo`")]
    Draining(ScvmId),
    #[error("no fresh proof of life from {place}: {why}")]
    NotAlive { place: String, why: String },
    #[error(
        "a route that is not ours stands ({0}): remove it, or take it over with `reroute-agent route adopt`"
    )]
    Foreign(String),
    #[error("nothing is pinned on this host: it goes where it is best by itself")]
    NotPinned,
}

impl Machine {
    pub fn pinned(&self) -> Option<&Pin> {
        self.notes.pin.as_ref()
    }

    /// Whether this place can be pinned now.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn check_pin(&self, scvm: ScvmId, network: Option<Network>, now: BootNs) -> Result<(), PinRefused> {
        if !self.position.contains_key(&scvm) {
            return Err(PinRefused::Unknown(scvm));
        }
        if network == Some(Network::Private) {
            return Err(PinRefused::Private);
        }
        if let Some(what) = self.route.blocked_by() {
            return Err(PinRefused::Foreign(what.to_string()));
        }
        let login = self.login.ok_or(PinRefused::NoLogin)?;
        let wish = Pin { scvm, network, until: None, actor: String::new() };
        let here = self.path_now();
        if login.scvm == scvm && wish.holds(here) {
            return Err(PinRefused::AlreadyThere(here));
        }
        if self.draining.contains(&scvm) && login.scvm != scvm {
            return Err(PinRefused::Draining(scvm));
        }
        // That its storage was stuck once is the operator's to judge; that it is now is not.
        let silent = self.servers.get(&scvm).and_then(|s| s.facts).is_some_and(|f| f.data_silent);
        let lives = |p: &Path| {
            if scvm == login.scvm { self.is_usable(*p, now) } else { self.is_eligible(*p, now) && !silent }
        };
        if self.paths_of(scvm).map(|(p, _)| *p).any(|p| wish.holds(p) && lives(&p)) {
            return Ok(());
        }
        let why = if super::moves::has_no_session(self.sessions.get(&scvm)) {
            "Meta has no session with it".to_string()
        } else if self.has_failed(scvm) {
            "it has failed, by this host's own evidence".to_string()
        } else {
            if silent && self.paths_of(scvm).any(|(p, _)| wish.holds(*p) && self.is_eligible(*p, now)) {
                let why = "no call for data is answered there: its storage is stuck".to_string();
                return Err(PinRefused::NotAlive { place: wish.place(), why });
            }
            let answers = self.paths_of(scvm).any(|(p, _)| wish.holds(*p) && self.is_usable(*p, now));
            match answers {
                true => "its pulses come back, but its server is not well, or does not enforce".to_string(),
                false => "its pulses do not come back that way".to_string(),
            }
        };
        Err(PinRefused::NotAlive { place: wish.place(), why })
    }

    pub(super) fn pin(&mut self, pin: Option<Pin>, now: BootNs, fx: &mut Effects) {
        let actor = pin.as_ref().map(|p| p.actor.clone());
        if let Some(pin) = &pin {
            self.stuck.remove(&pin.scvm);
        }
        let to = pin.as_ref().map(Pin::place);
        self.pin_is_new = pin.is_some();
        self.notes.pin = pin;
        self.wish_after = now;
        let actor = actor.unwrap_or_else(|| "an operator".into());
        fx.push(Effect::Journal(Event::Pinned { to, actor }));
        self.notes_retry_at = now;
        self.write_notes(now, fx);
        self.decide(now, fx);
    }

    pub(super) fn end_of_pin(&mut self, now: BootNs, fx: &mut Effects) {
        if self.notes.pin.as_ref().and_then(|p| p.until).is_some_and(|until| now >= until) {
            self.notes.pin = None;
            fx.push(Effect::Journal(Event::Pinned { to: None, actor: "its time has passed".into() }));
        }
    }

    pub(super) fn is_pinned_to(&self, scvm: ScvmId) -> bool {
        self.pinned().is_some_and(|pin| pin.scvm == scvm)
    }

    /// Whether a better place may be sought there: from the pinned one, only within what was pinned.
    pub(super) fn pin_allows(&self, to: Path, here: Path) -> bool {
        self.pinned().is_none_or(|pin| !pin.holds(here) || pin.holds(to))
    }

    /// True: what operators want decides, and nothing better is sought now.
    pub(super) fn follow_wishes(
        &mut self,
        login: Current,
        here: Path,
        quiet_awaited: Option<BootNs>,
        now: BootNs,
        fx: &mut Effects,
    ) -> bool {
        if self.draining.contains(&login.scvm) {
            self.leave_drained(login, quiet_awaited, now, fx);
            return true;
        }
        self.faults.remove("drained");
        let Some(pin) = self.notes.pin.clone() else { return false };
        if pin.holds(here) {
            self.pin_is_new = false;
            return false;
        }
        let wait_ns = if self.pin_is_new { 0 } else { self.hold_down.wait_ns(now) };
        let fit = |p: &Path| {
            pin.holds(*p) && self.stable_ns(*p, now) >= wait_ns && self.is_fit(*p, login.scvm, now)
        };
        let local = self.settings.local;
        let fitting = self.paths_of(pin.scvm).map(|(p, _)| *p).filter(fit);
        let Some(to) = fitting.min_by_key(|p| super::choice::rank(*p, local)) else { return false };
        if now < self.wish_after || self.budget.left(now) == 0 {
            return true;
        }
        let reason = format!("pinned to {} by {}", pin.place(), pin.actor);
        if to.scvm == login.scvm {
            self.wish_after = now.plus(AGAIN_NS);
            self.change_path(to, reason, Vec::new(), false, now, fx);
        } else if self.ask_planned(to, login, reason, quiet_awaited, now, fx) {
            self.wish_after = now.plus(AGAIN_NS);
        }
        true
    }

    fn leave_drained(
        &mut self,
        login: Current,
        quiet_awaited: Option<BootNs>,
        now: BootNs,
        fx: &mut Effects,
    ) {
        if now < self.wish_after {
            return;
        }
        let from = login.scvm;
        let Some(to) = self.best(now, |p| p.scvm != from) else {
            let what = format!("{from} is being drained, but no other server can take this host: staying");
            return self.fault("drained", what, fx);
        };
        if self.budget.left(now) == 0 {
            let what =
                format!("{from} is being drained, but the budget of moves is used up (one more every 5 s)");
            return self.fault("drained", what, fx);
        }
        self.faults.remove("drained");
        if self.ask_planned(to, login, format!("{from} is being drained"), quiet_awaited, now, fx) {
            self.wish_after = now.plus(AGAIN_NS);
        }
    }
}
