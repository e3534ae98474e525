//! Whether the kernel enforces, and who has suspended it.

use super::*;

impl Scvm {
    /// Why the kernel is not in the mode that is wanted; it is tried again until it is.
    pub fn mode_problem(&self) -> Result<(), String> {
        if self.standing == Some(self.wanted_mode()) {
            return Ok(());
        }
        Err(format!(
            "the kernel has not taken mode {:?} yet; it is tried again: see the journal",
            self.wanted_mode()
        ))
    }

    pub(super) fn wanted_mode(&self) -> Mode {
        if self.bypass { Mode::Bypass } else { self.settings.mode }
    }

    /// Why nothing counts as fenced here.
    pub(super) fn lenient(&self) -> Option<&'static str> {
        match (self.wanted_mode(), self.standing) {
            (Mode::Bypass, _) => Some("an operator has suspended enforcement (bypass)"),
            (Mode::Shadow, _) => Some("mode is shadow"),
            (Mode::Enforce, Some(Mode::Enforce)) => None,
            (Mode::Enforce, _) => Some("the kernel is not known to enforce"),
        }
    }

    pub(super) fn switch_bypass(&mut self, on: bool, actor: String, now: BootNs, out: &mut Vec<Effect>) {
        if self.bypass != on {
            self.bypass = on;
            if on {
                // Who was shut out may call again: no proof holds, no fence stands.
                self.revokes.retain(|_, r| !matches!(r.stage(), Stage::Proven { .. }));
                self.revokes.values_mut().for_each(Revoke::doubt);
                self.outbox.forget_fences();
            }
            // Whatever is on its way to the kernel is not what is wanted any more.
            self.mode_asked = None;
            self.standing = None;
        }
        out.push(Effect::Journal { at: now, event: Event::Bypass { on, actor } });
        out.push(Effect::PersistBypass { on });
        self.persist_again = None;
    }

    pub(super) fn mode_set(&mut self, mode: Mode, result: Outcome<()>, now: BootNs, out: &mut Vec<Effect>) {
        if self.mode_asked != Some((mode, None)) {
            return;
        }
        match result {
            Ok(()) => {
                self.mode_asked = None;
                self.standing = Some(mode);
            }
            Err(why) => {
                self.mode_asked = Some((mode, Some(now.plus(RETRY_NS))));
                let what = format!("mode {mode:?} did not reach the kernel: {why}");
                out.push(Effect::Journal { at: now, event: Event::Fault { what } });
            }
        }
    }
}
