//! The machine's notes on disk: the pinned place, the domain of the local SCVM.

use super::persist::StateError;
use reroute_core::host::Notes;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
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
/// knows how long that took. Errors: a file that is there and cannot be understood.
pub fn load(dir: &Path, boot: u64) -> Result<Notes, StateError> {
    let path = dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Notes::default()),
        Err(source) => return Err(StateError::Io { path, source }),
    };
    let stored: Stored = serde_json::from_slice(&bytes)
        .map_err(|error| StateError::CorruptNotes { path, why: error.to_string() })?;
    let mut notes = stored.notes;
    if stored.boot != boot && notes.pin.as_ref().is_some_and(|pin| pin.until.is_some()) {
        notes.pin = None;
    }
    Ok(notes)
}

/// Replaces the notes, durably. Blocks.
pub fn store(dir: &Path, notes: &Notes, boot: u64) -> io::Result<()> {
    let new = dir.join("notes.json.new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(&Stored { boot, notes: notes.clone() })?)?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::testing::Dir;
    use reroute_core::host::{KnownDomain, Pin};
    use reroute_core::ids::{BootNs, ScvmId};

    #[test]
    fn notes_come_back_and_an_end_by_another_boots_clock_is_over() {
        let dir = Dir::new("notes");
        assert_eq!(load(dir.path(), 1).unwrap(), Notes::default());
        let pin = |until| Some(Pin { scvm: ScvmId(2), network: None, until, actor: "a".into() });
        let domain = Some(KnownDomain { id: 7, uuid: "u".into(), node_boot: 1, boot: Some(3) });
        let ends = Notes { pin: pin(Some(BootNs(9))), domain: domain.clone() };
        store(dir.path(), &ends, 1).unwrap();
        assert_eq!(load(dir.path(), 1).unwrap(), ends);
        assert_eq!(load(dir.path(), 2).unwrap(), Notes { pin: None, domain: domain.clone() });
        let stays = Notes { pin: pin(None), domain };
        store(dir.path(), &stays, 1).unwrap();
        assert_eq!(load(dir.path(), 2).unwrap(), stays);
    }

    #[test]
    fn garbage_is_an_error_that_says_what_to_do() {
        let dir = Dir::new("notes-garbage");
        for text in ["", "{}", "{\"boot\":1,\"notes\":{},\"more\":1}"] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert!(load(dir.path(), 1).unwrap_err().to_string().contains("move it away"), "{text}");
        }
    }
}
