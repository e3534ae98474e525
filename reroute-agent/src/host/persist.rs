//! What outlives the process: the login record, and the lock that keeps instances apart.

use reroute_core::host::Record;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("another host agent runs on this node (it holds {path}): stop it first")]
    Locked { path: PathBuf },
    #[error("{path}: {source}: correct [host] state_dir or its permissions")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} cannot be understood ({why}): move it away, and the agent will ask Meta for its login instead"
    )]
    Corrupt { path: PathBuf, why: String },
    #[error(
        "{path} cannot be understood ({why}): move it away; a pinned route is set anew with `reroute-agent route set`"
    )]
    CorruptNotes { path: PathBuf, why: String },
}

const RECORD: &str = "login.json";
const LOCK: &str = "host.lock";

/// One host agent per state directory. Given up by the kernel when the process ends, however it ends.
pub struct Lock {
    _file: File,
}

impl Lock {
    pub fn take(dir: &Path) -> Result<Lock, StateError> {
        let path = dir.join(LOCK);
        let io = |source| StateError::Io { path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked { path }),
            Err(errno) => Err(io(errno.into())),
        }
    }
}

/// The record of the last instance; none is a fresh start. A file that is there but unreadable is an error: what was
/// released must not be forgotten.
pub fn load(dir: &Path) -> Result<Record, StateError> {
    let path = dir.join(RECORD);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| StateError::Corrupt { path, why: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
        Err(source) => Err(StateError::Io { path, source }),
    }
}

/// Replaces the record; when this returns without error, it is on disk, and a power cut changes nothing about that.
/// Blocks.
pub fn store(dir: &Path, record: &Record) -> io::Result<()> {
    let new = dir.join("login.json.new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(RECORD))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reroute_core::ids::{Epoch, ScvmId, Term};

    struct Dir(PathBuf);
    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("reroute-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_was_stored_is_loaded() {
        let dir = Dir::new("store");
        assert_eq!(load(&dir.0).unwrap(), Record::default());
        let record =
            Record { epoch: Epoch(3), scvm: Some(ScvmId(2)), released: Some(Epoch(3)), term: Term(1) };
        store(&dir.0, &record).unwrap();
        assert_eq!(load(&dir.0).unwrap(), record);
        store(&dir.0, &Record { released: None, ..record }).unwrap();
        assert_eq!(load(&dir.0).unwrap().released, None);
    }

    #[test]
    fn a_torn_write_leaves_the_old_record() {
        let dir = Dir::new("torn");
        let record = Record { epoch: Epoch(3), scvm: Some(ScvmId(2)), released: None, term: Term(1) };
        store(&dir.0, &record).unwrap();
        std::fs::write(dir.0.join("login.json.new"), b"{\"epoch\":").unwrap();
        assert_eq!(load(&dir.0).unwrap(), record);
    }

    #[test]
    fn garbage_is_an_error_that_says_what_to_do() {
        let dir = Dir::new("garbage");
        for text in ["", "{}", "null", "{\"epoch\":1,\"scvm\":null,\"released\":null,\"more\":1}"] {
            std::fs::write(dir.0.join(RECORD), text).unwrap();
            let error = load(&dir.0).unwrap_err();
            assert!(matches!(error, StateError::Corrupt { .. }), "{text}: {error}");
            assert!(error.to_string().contains("move it away"));
        }
    }

    #[test]
    fn a_second_instance_is_refused_by_name() {
        let dir = Dir::new("lock");
        let first = Lock::take(&dir.0).unwrap();
        assert!(matches!(Lock::take(&dir.0), Err(StateError::Locked { .. })));
        drop(first);
        assert!(Lock::take(&dir.0).is_ok());
    }
}
