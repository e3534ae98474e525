//! What outlives the process: the login record, and the lock that keeps instances apart.

use reroute_core::host::Record;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde_json::{Map, Value};
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
        "{path} belongs to cluster {found:?}, this configuration is of {ours:?}: correct [cluster] id or [host] state_dir; if this host has changed its cluster for good, move the file away"
    )]
    OtherCluster { path: PathBuf, found: String, ours: String },
    #[error(
        "{path} cannot be understood ({why}): move it away; a pinned route is set anew with `reroute-agent route set`"
    )]
    CorruptNotes { path: PathBuf, why: String },
}

const RECORD: &str = "login.json";
const LOCK: &str = "host.lock";
/// Beside a file's own fields: of which cluster it is.
const CLUSTER: &str = "cluster";

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

/// The fields of a file that says of which cluster it is; one of an older release does not say it. None: no such file.
pub(super) fn read(
    path: &Path,
    cluster: &str,
    corrupt: impl Fn(String) -> StateError,
) -> Result<Option<Value>, StateError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::Io { path: path.into(), source }),
    };
    let mut fields: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
    match fields.remove(CLUSTER) {
        None => {}
        Some(Value::String(found)) if found == cluster => {}
        Some(Value::String(found)) => {
            return Err(StateError::OtherCluster { path: path.into(), found, ours: cluster.into() });
        }
        Some(other) => return Err(corrupt(format!("cluster is {other}"))),
    }
    Ok(Some(Value::Object(fields)))
}

/// Replaces the file; when this returns without error, it is on disk, and a power cut changes nothing about that. Blocks.
pub(super) fn replace(path: &Path, cluster: &str, fields: &impl Serialize) -> io::Result<()> {
    let mut fields = serde_json::to_value(fields)?;
    fields[CLUSTER] = cluster.into();
    let new = path.with_extension("json.new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(&fields)?)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// The record of the last instance; none is a fresh start. A file that is there but unreadable is an error: what was
/// released must not be forgotten. So is one of another cluster: its epochs say nothing here.
pub fn load(dir: &Path, cluster: &str) -> Result<Record, StateError> {
    let path = dir.join(RECORD);
    let corrupt = |why| StateError::Corrupt { path: path.clone(), why };
    match read(&path, cluster, corrupt)? {
        None => Ok(Record::default()),
        Some(fields) => serde_json::from_value(fields).map_err(|error| corrupt(error.to_string())),
    }
}

/// [`replace`]s the record.
pub fn store(dir: &Path, cluster: &str, record: &Record) -> io::Result<()> {
    replace(&dir.join(RECORD), cluster, record)
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
        assert_eq!(load(&dir.0, "c").unwrap(), Record::default());
        let record =
            Record { epoch: Epoch(3), scvm: Some(ScvmId(2)), released: Some(Epoch(3)), term: Term(1) };
        store(&dir.0, "c", &record).unwrap();
        assert_eq!(load(&dir.0, "c").unwrap(), record);
        store(&dir.0, "c", &Record { released: None, ..record }).unwrap();
        assert_eq!(load(&dir.0, "c").unwrap().released, None);
    }

    #[test]
    fn a_torn_write_leaves_the_old_record() {
        let dir = Dir::new("torn");
        let record = Record { epoch: Epoch(3), scvm: Some(ScvmId(2)), released: None, term: Term(1) };
        store(&dir.0, "c", &record).unwrap();
        std::fs::write(dir.0.join("login.json.new"), b"{\"epoch\":").unwrap();
        assert_eq!(load(&dir.0, "c").unwrap(), record);
    }

    #[test]
    fn garbage_is_an_error_that_says_what_to_do() {
        let dir = Dir::new("garbage");
        for text in ["", "{}", "null", "{\"epoch\":1,\"scvm\":null,\"released\":null,\"more\":1}"] {
            std::fs::write(dir.0.join(RECORD), text).unwrap();
            let error = load(&dir.0, "c").unwrap_err();
            assert!(matches!(error, StateError::Corrupt { .. }), "{text}: {error}");
            assert!(error.to_string().contains("move it away"));
        }
    }

    #[test]
    fn the_record_of_another_cluster_is_refused_and_an_older_one_is_read() {
        let dir = Dir::new("cluster");
        let record =
            Record { epoch: Epoch(3), scvm: Some(ScvmId(2)), released: Some(Epoch(3)), term: Term(1) };
        store(&dir.0, "c", &record).unwrap();
        let before = std::fs::read(dir.0.join(RECORD)).unwrap();
        let error = load(&dir.0, "other").unwrap_err();
        assert!(matches!(error, StateError::OtherCluster { .. }), "{error}");
        assert!(error.to_string().contains("correct [cluster] id"), "{error}");
        assert_eq!(std::fs::read(dir.0.join(RECORD)).unwrap(), before);
        // As releases before wrote it.
        std::fs::write(dir.0.join(RECORD), r#"{"epoch":3,"scvm":2,"released":3}"#).unwrap();
        assert_eq!(load(&dir.0, "other").unwrap(), Record { term: Term(0), ..record });
        std::fs::write(dir.0.join(RECORD), r#"{"epoch":3,"scvm":2,"released":3,"cluster":7}"#).unwrap();
        assert!(matches!(load(&dir.0, "c"), Err(StateError::Corrupt { .. })));
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
