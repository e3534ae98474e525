//! What outlives the process besides the login's record: convenient to have, harmless to lose.

use super::*;

/// What else outlives the process; losing it does no harm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notes {
    /// Where an operator wants this host to be.
    pub pin: Option<Pin>,
    /// The domain of the local SCVM as last seen alive.
    pub domain: Option<KnownDomain>,
    /// As an operator has chosen it.
    #[serde(default)]
    pub mode: Option<Mode>,
}

impl Machine {
    /// What the last instance has noted.
    pub fn with_notes(mut self, notes: Notes) -> Machine {
        self.notes_written = notes.clone();
        self.notes = notes;
        self
    }

    pub(super) fn write_notes(&mut self, now: BootNs, fx: &mut Effects) {
        if !self.notes_writing && now >= self.notes_retry_at && self.notes != self.notes_written {
            self.notes_writing = true;
            fx.push(Effect::PersistNotes(self.notes.clone()));
        }
    }

    pub(super) fn notes_persisted(
        &mut self,
        notes: Notes,
        result: Result<(), String>,
        now: BootNs,
        fx: &mut Effects,
    ) {
        self.notes_writing = false;
        match result {
            Ok(()) => {
                self.notes_written = notes;
                self.faults.remove("notes");
            }
            Err(why) => {
                self.notes_retry_at = now.plus(SEC);
                self.fault("notes", format!("the pinned place and the domain were not noted: {why}"), fx);
            }
        }
        self.write_notes(now, fx);
    }
}
