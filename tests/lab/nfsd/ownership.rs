//! Who may write: the storage below the access servers, which knows the newest epoch of each client and refuses the
//! older ones inside each operation. And the log of what was applied.
//!
//! Shared files under the meta directory: `lease-CLIENT` (8 bytes little endian: the epoch; locked while an operation
//! is checked *and applied*) and `applied.log` (64-byte records, little endian u64: CLOCK_BOOTTIME ns, client, epoch,
//! server, file id, offset, writer, sequence; the last two 0 when no block of the writer's begins the data).

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub const RECORD: usize = 64;

/// On whose behalf a connection calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The host's id, or its IPv4 address where no epoch file names it.
    pub client: u64,
    pub epoch: u64,
}

/// The storage has seen a higher epoch of this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub current: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    #[error("epoch file {path}: {why}")]
    Unreadable { path: PathBuf, why: String },
    #[error("no epoch for client {0}: it is not admitted here")]
    Unknown(IpAddr),
}

#[derive(Deserialize)]
struct EpochFile {
    epochs: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    host: u64,
    addresses: Vec<IpAddr>,
    epoch: u64,
}

/// The owner that the SCVM agent's epoch file names for `client` now.
pub fn lookup(path: &Path, client: IpAddr) -> Result<Owner, EpochError> {
    let unreadable = |why: String| EpochError::Unreadable { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(e.to_string()))?;
    let file: EpochFile = serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))?;
    let entry = file.epochs.into_iter().find(|e| e.addresses.contains(&client));
    entry.map(|e| Owner { client: e.host, epoch: e.epoch }).ok_or(EpochError::Unknown(client))
}

/// The leases of one store. One thread uses it; other processes are kept out by the file's lock.
pub struct Leases {
    meta: PathBuf,
    open: BTreeMap<u64, File>,
}

impl Leases {
    pub fn new(meta: &Path) -> io::Result<Leases> {
        std::fs::create_dir_all(meta)?;
        Ok(Leases { meta: meta.to_owned(), open: BTreeMap::new() })
    }

    /// Runs `operation` if `owner` has the newest epoch of its client, which it may become by this.
    pub fn guarded<T>(
        &mut self,
        owner: Owner,
        operation: impl FnOnce() -> T,
    ) -> io::Result<Result<T, Refused>> {
        let file = match self.open.entry(owner.client) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => {
                let path = self.meta.join(format!("lease-{}", owner.client));
                e.insert(File::options().read(true).write(true).create(true).truncate(false).open(path)?)
            }
        };
        flock(&*file, FlockOperation::LockExclusive)?;
        let result = Self::check(file, owner).map(|checked| checked.map(|()| operation()));
        flock(&*file, FlockOperation::Unlock)?;
        result
    }

    fn check(file: &File, owner: Owner) -> io::Result<Result<(), Refused>> {
        let mut bytes = [0; 8];
        let current = match file.read_at(&mut bytes, 0)? {
            8 => u64::from_le_bytes(bytes),
            0 => 0,
            n => return Err(io::Error::other(format!("lease of client {} has {n} bytes", owner.client))),
        };
        if owner.epoch < current {
            return Ok(Err(Refused { current }));
        }
        if owner.epoch > current {
            file.write_all_at(&owner.epoch.to_le_bytes(), 0)?;
        }
        Ok(Ok(()))
    }
}

/// Appends to `applied.log`. Each record is one `write` in append mode: whole, and in order among processes.
pub struct AppliedLog {
    file: File,
    server: u64,
}

/// A write that reached the store.
#[derive(Clone, Copy, Debug)]
pub struct Applied {
    pub owner: Owner,
    pub file: u64,
    pub offset: u64,
    pub writer: u64,
    pub seq: u64,
}

impl AppliedLog {
    pub fn open(meta: &Path, server: u64) -> io::Result<AppliedLog> {
        std::fs::create_dir_all(meta)?;
        Ok(AppliedLog {
            file: File::options().create(true).append(true).open(meta.join("applied.log"))?,
            server,
        })
    }

    pub fn add(&self, a: Applied) -> io::Result<()> {
        let at = reroute_agent::clock::now().0;
        let words = [at, a.owner.client, a.owner.epoch, self.server, a.file, a.offset, a.writer, a.seq];
        let mut bytes = [0; RECORD];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        (&self.file).write_all(&bytes)
    }
}

/// What `reroute-nfsd applied` tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub writes: u64,
    /// Applied for an epoch of a client after a higher one had written.
    pub late_epoch: u64,
    /// Applied to a block after a newer write of the same writer: what damages data.
    pub late_sequence: u64,
    /// Writes by server.
    pub servers: BTreeMap<u64, u64>,
    /// Highest epoch seen, by client.
    pub epochs: BTreeMap<u64, u64>,
}

pub fn summarize(meta: &Path) -> io::Result<Summary> {
    let mut log = io::BufReader::new(File::open(meta.join("applied.log"))?);
    let mut summary = Summary::default();
    let mut newest: BTreeMap<[u64; 3], u64> = BTreeMap::new();
    let mut bytes = [0; RECORD];
    loop {
        match log.read_exact(&mut bytes) {
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Ok(summary),
            other => other?,
        }
        let mut words = [0u64; 8];
        for (word, place) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = place.try_into().map(u64::from_le_bytes).map_err(io::Error::other)?;
        }
        let [_, client, epoch, server, file, offset, writer, seq] = words;
        summary.writes += 1;
        *summary.servers.entry(server).or_default() += 1;
        let highest = summary.epochs.entry(client).or_default();
        summary.late_epoch += u64::from(epoch < *highest);
        *highest = epoch.max(*highest);
        if seq != 0 {
            let newest = newest.entry([file, offset, writer]).or_default();
            summary.late_sequence += u64::from(seq < *newest);
            *newest = seq.max(*newest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("reroute-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn an_older_epoch_is_refused_in_every_instance() {
        let meta = meta("leases");
        let (mut a, mut b) = (Leases::new(&meta).unwrap(), Leases::new(&meta).unwrap());
        let owner = |epoch| Owner { client: 1, epoch };
        assert_eq!(a.guarded(owner(3), || 7).unwrap(), Ok(7));
        assert_eq!(b.guarded(owner(4), || 8).unwrap(), Ok(8));
        assert_eq!(
            a.guarded(owner(3), || panic!("must not run")).unwrap(),
            Err::<(), _>(Refused { current: 4 })
        );
        assert_eq!(a.guarded(Owner { client: 2, epoch: 1 }, || 9).unwrap(), Ok(9));
        std::fs::remove_dir_all(meta).unwrap();
    }

    #[test]
    fn late_writes_are_counted() {
        let meta = meta("applied");
        let log = AppliedLog::open(&meta, 5).unwrap();
        for (epoch, seq) in [(1, 1), (1, 2), (2, 2), (2, 3), (1, 2), (2, 4)] {
            let owner = Owner { client: 1, epoch };
            log.add(Applied { owner, file: 9, offset: 0, writer: 1, seq }).unwrap();
        }
        let summary = summarize(&meta).unwrap();
        assert_eq!((summary.writes, summary.late_epoch, summary.late_sequence), (6, 1, 1));
        std::fs::remove_dir_all(meta).unwrap();
    }

    #[test]
    fn only_clients_of_the_epoch_file_are_known() {
        let meta = meta("epochs");
        let path = meta.join("epochs.json");
        let text = r#"{"epochs":[{"host":1,"addresses":["192.168.33.1","10.10.85.11"],"epoch":3}]}"#;
        std::fs::write(&path, text).unwrap();
        let client = "10.10.85.11".parse().unwrap();
        assert_eq!(lookup(&path, client).unwrap(), Owner { client: 1, epoch: 3 });
        assert!(matches!(lookup(&path, "10.10.85.12".parse().unwrap()), Err(EpochError::Unknown(_))));
        std::fs::write(&path, "{}").unwrap();
        assert!(matches!(lookup(&path, client), Err(EpochError::Unreadable { .. })));
        std::fs::remove_dir_all(meta).unwrap();
    }
}
