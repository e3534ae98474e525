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
use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const BASE: &str = "/run/reroute-lab";
/// Others end, look, and tidy up while a lab begins, each in much less time than this.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

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
        let mut there = false;
        for _ in 0..TRIES {
            if let Some(lock) = self.try_hold(&mut there)? {
                let _ = std::fs::remove_file(self.socket());
                return Ok(lock);
            }
            std::thread::sleep(PAUSE);
        }
        if there {
            bail!(
                "lab {:?} is already up: end it with `reroute-lab down --id {}`, or choose another --id",
                self.id,
                self.id
            );
        }
        bail!("{} cannot be made, or is removed again and again: who does that?", self.path.display())
    }

    /// None: it was removed meanwhile, as the last lab that goes takes the common directory along; or (`there`) somebody
    /// else holds it.
    fn try_hold(&self, there: &mut bool) -> anyhow::Result<Option<File>> {
        // What was there when it was to be made, and is not when it is looked at, is said to exist.
        let gone = |error: &Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists);
        let made = std::fs::create_dir_all(self.fs()).and_then(|()| File::create(self.lock_file()));
        let lock = match made {
            Err(error) if gone(&error) => return Ok(None),
            made => made.with_context(|| format!("cannot make {}", self.path.display()))?,
        };
        *there = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err();
        Ok((!*there && self.is_lock(&lock) && self.fs().is_dir()).then_some(lock))
    }

    /// Whether this file is still the one that is locked: not that of a directory which is gone.
    fn is_lock(&self, lock: &File) -> bool {
        let ino = |found: std::io::Result<std::fs::Metadata>| found.ok().map(|m| m.ino());
        let there = ino(std::fs::metadata(self.lock_file()));
        there.is_some() && there == ino(lock.metadata())
    }

    /// Whether nobody held it, and it is gone. Who begins a lab there meanwhile waits, and makes it anew. One without a lock
    /// file is just being made.
    fn remove_left(&self) -> bool {
        File::open(self.lock_file()).is_ok_and(|lock| {
            flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                && self.is_lock(&lock)
                && self.remove().is_ok()
        })
    }

    pub fn remove(&self) -> std::io::Result<()> {
        std::fs::remove_dir_all(&self.path)?;
        // The last lab to go takes the common directory along; with others there, this fails as it should.
        if let Some(base) = self.path.parent() {
            let _ = std::fs::remove_dir(base);
        }
        Ok(())
    }
}

pub fn all() -> Vec<Directory> {
    let entries = std::fs::read_dir(BASE).into_iter().flatten().flatten();
    entries.filter_map(|e| Directory::of(e.file_name().to_str()?).ok()).collect()
}

/// Removes what labs left that did not end by themselves. Returns their ids.
pub fn clean_stale() -> Vec<String> {
    all().into_iter().filter(Directory::remove_left).map(|d| d.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn labs_begin_while_others_end_and_somebody_tidies_up() {
        let base = std::env::temp_dir().join(format!("reroute-lab-base-{}", std::process::id()));
        let labs: Vec<Directory> =
            (0..4).map(|n| Directory { id: format!("lab{n}"), path: base.join(format!("lab{n}")) }).collect();
        let running = AtomicUsize::new(labs.len());
        std::thread::scope(|scope| {
            for lab in &labs {
                let running = &running;
                scope.spawn(move || {
                    let turns = || -> anyhow::Result<()> {
                        for _ in 0..300 {
                            let lock = lab.hold()?;
                            anyhow::ensure!(lab.is_held() && lab.fs().is_dir(), "somebody took it");
                            lab.remove()?;
                            drop(lock);
                        }
                        Ok(())
                    };
                    let done = turns();
                    running.fetch_sub(1, Ordering::Relaxed);
                    done.expect(&lab.id);
                });
            }
            while running.load(Ordering::Relaxed) > 0 {
                for lab in &labs {
                    // What is made and not held yet may go.
                    lab.remove_left();
                }
            }
        });
        assert!(!base.exists(), "the last one takes the common directory along");
    }

    #[test]
    fn what_nobody_holds_is_removed_and_a_lab_that_is_up_is_not_begun_again() {
        let base = std::env::temp_dir().join(format!("reroute-lab-left-{}", std::process::id()));
        let lab = Directory { id: "lab".into(), path: base.join("lab") };
        let lock = lab.hold().unwrap();
        assert!(lab.hold().unwrap_err().to_string().contains("already up"));
        assert!(!lab.remove_left());
        drop(lock);
        assert!(lab.remove_left() && !base.exists());
    }
}
