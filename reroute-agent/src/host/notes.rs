//! The machine's notes on disk: the pinned place, the domain of the local SCVM.

use super::persist::{self, StateError};
use reroute_core::host::Notes;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

const FILE: &str = "notes.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// Of the node: its clock starts anew with the next one.
    boot: u64,
    notes: Notes,
}

/// The notes of the last instance; none is a fresh start. A pin with an end is over after a reboot of the node: nobody
/// knows how long that took. Errors: a file that is there and cannot be understood, or is of another cluster.
pub fn load(dir: &Path, cluster: &str, boot: u64) -> Result<Notes, StateError> {
    let path = dir.join(FILE);
    let corrupt = |why| StateError::CorruptNotes { path: path.clone(), why };
    let Some(fields) = persist::read(&path, cluster, corrupt)? else { return Ok(Notes::default()) };
    let stored: Stored = serde_json::from_value(fields).map_err(|error| corrupt(error.to_string()))?;
    let mut notes = stored.notes;
    if stored.boot != boot && notes.pin.as_ref().is_some_and(|pin| pin.until.is_some()) {
        notes.pin = None;
    }
    Ok(notes)
}

/// Replaces the notes, durably. Blocks.
pub fn store(dir: &Path, cluster: &str, notes: &Notes, boot: u64) -> io::Result<()> {
    persist::replace(&dir.join(FILE), cluster, &Stored { boot, notes: notes.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::testing::Dir;
    use reroute_core::host::{KnownDomain, Mode, Pin};
    use reroute_core::ids::{BootNs, ScvmId};

    #[test]
    fn notes_come_back_and_an_end_by_another_boots_clock_is_over() {
        let dir = Dir::new("notes");
        assert_eq!(load(dir.path(), "c", 1).unwrap(), Notes::default());
        let pin = |until| Some(Pin { scvm: ScvmId(2), network: None, until, actor: "a".into() });
        let domain = Some(KnownDomain { id: 7, uuid: "u".into(), node_boot: 1, boot: Some(3) });
        let ends = Notes { pin: pin(Some(BootNs(9))), domain: domain.clone(), mode: Some(Mode::Auto) };
        store(dir.path(), "c", &ends, 1).unwrap();
        assert_eq!(load(dir.path(), "c", 1).unwrap(), ends);
        assert_eq!(
            load(dir.path(), "c", 2).unwrap(),
            Notes { pin: None, domain: domain.clone(), mode: Some(Mode::Auto) }
        );
        let stays = Notes { pin: pin(None), domain, mode: None };
        store(dir.path(), "c", &stays, 1).unwrap();
        assert_eq!(load(dir.path(), "c", 2).unwrap(), stays);
        let error = load(dir.path(), "other", 2).unwrap_err();
        assert!(matches!(error, StateError::OtherCluster { .. }), "{error}");
    }

    #[test]
    fn garbage_is_an_error_that_says_what_to_do() {
        let dir = Dir::new("notes-garbage");
        for text in ["", "{}", "{\"boot\":1,\"notes\":{},\"more\":1}"] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert!(load(dir.path(), "c", 1).unwrap_err().to_string().contains("move it away"), "{text}");
        }
    }
}
