//! `/run/reroute-lab/<id>/`: how the command line finds a lab. All that a lab leaves outside its namespaces.
//!
//! | | |
//! |---|---|
//! | `lock` | locked by the supervisor while it lives |
//! | `pid` | the supervisor's |
//! | `control.sock` | see [`crate::control`] |
//! | `fs` | empty; inside, the lab's file system is mounted here |

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::{Path, PathBuf};

pub const BASE: &str = "/run/reroute-lab";

#[derive(Clone, Debug)]
pub struct Directory {
    pub id: String,
    pub path: PathBuf,
}

impl Directory {
    /// Errors: an id that is no plain file name.
    pub fn of(id: &str) -> anyhow::Result<Directory> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if id.is_empty() || id.len() > 32 || !id.chars().all(plain) {
            bail!("lab id {id:?}: use up to 32 letters, digits, - and _");
        }
        Ok(Directory { id: id.into(), path: Path::new(BASE).join(id) })
    }
    pub fn socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }
    pub fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }
    pub fn pid_file(&self) -> PathBuf {
        self.path.join("pid")
    }
    fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// Whether a supervisor holds it.
    pub fn is_held(&self) -> bool {
        File::open(self.lock_file())
            .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    /// Makes the directory and holds it for as long as the returned file is open (by any process).
    pub fn hold(&self) -> anyhow::Result<File> {
        std::fs::create_dir_all(self.fs()).with_context(|| format!("cannot make {}", self.path.display()))?;
        let lock = File::create(self.lock_file())?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "lab {:?} is already up: end it with `reroute-lab down --id {}`, or choose another --id",
                self.id,
                self.id
            );
        }
        let _ = std::fs::remove_file(self.socket());
        Ok(lock)
    }

    pub fn remove(&self) -> std::io::Result<()> {
        std::fs::remove_dir_all(&self.path)?;
        // The last lab to go takes the common directory along; with others there, this fails as it should.
        let _ = std::fs::remove_dir(BASE);
        Ok(())
    }
}

pub fn all() -> Vec<Directory> {
    let entries = std::fs::read_dir(BASE).into_iter().flatten().flatten();
    entries.filter_map(|e| Directory::of(e.file_name().to_str()?).ok()).collect()
}

/// Removes what labs left that did not end by themselves. Returns their ids.
pub fn clean_stale() -> Vec<String> {
    let stale = all().into_iter().filter(|d| !d.is_held());
    stale.filter(|d| d.remove().is_ok()).map(|d| d.id).collect()
}
