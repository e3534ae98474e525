//! Where logins are kept. A store knows compare-and-set only: nothing is ever written over unseen.
//!
//! Stores block (they sync to disk), so each runs on a thread of its own; what becomes of a write comes back to the
//! master as an input. The queue holds at most one write per host, because the master asks for no more.

mod memory;
mod redb;
#[cfg(test)]
mod tests;

pub use memory::Memory;
pub use redb::Redb;

use crate::clock;
use reroute_core::block::BlockList;
use reroute_core::ids::{HostId, Term};
use reroute_core::meta::{Input, Record, Versioned};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store {path}: {why}")]
    Unusable { path: PathBuf, why: String },
    #[error("store {path} is in use: another Meta runs on it; stop that one first")]
    InUse { path: PathBuf },
    #[error(
        "store {path} belongs to cluster {found:?}, this configuration is of {ours:?}: correct [cluster] id or [meta] state_dir"
    )]
    OtherCluster { path: PathBuf, found: String, ours: String },
    #[error(
        "store {path}: the record {key} cannot be read ({why}): restore it from a copy, or use the release that wrote it"
    )]
    Malformed { path: PathBuf, key: String, why: String },
    #[error("somebody else wrote the record of {host} in between")]
    Conflict { host: HostId, found: Option<Box<Versioned>> },
    #[error("somebody else wrote the list of blocks in between")]
    BlocksConflict { found: Box<BlockList> },
}

/// What a store held when this term began.
#[derive(Debug, Clone)]
pub struct Opened {
    /// One more than any term before; durable already.
    pub term: Term,
    pub logins: BTreeMap<HostId, Versioned>,
    pub blocks: BlockList,
}

pub trait Store: Send {
    /// Claims the store for this cluster and begins a term.
    fn open(&mut self, cluster: &str) -> Result<Opened, StoreError>;
    fn read(&mut self, host: HostId) -> Result<Option<Versioned>, StoreError>;
    /// Writes `record` only if the store holds `expected` (None: nothing); durable when it returns the new version.
    fn compare_and_set(
        &mut self,
        host: HostId,
        expected: Option<u64>,
        record: &Record,
    ) -> Result<u64, StoreError>;

    /// The list of blocks; an empty one of version 0 if there never was any.
    fn read_blocks(&mut self) -> Result<BlockList, StoreError>;
    /// Writes `list` only if the store's has version `expected`; durable when it returns.
    fn compare_and_set_blocks(&mut self, expected: u64, list: &BlockList) -> Result<(), StoreError>;
}

/// A write for the store's thread.
pub enum Write {
    Login { host: HostId, expected: Option<u64>, record: Record },
    Blocks { expected: u64, list: BlockList },
}

impl Write {
    /// Carries it out; what becomes of it, and whether it failed.
    fn run(self, store: &mut impl Store) -> (Input, bool) {
        match self {
            Write::Login { host, expected, record } => match store.compare_and_set(host, expected, &record) {
                Ok(version) => (Input::StoreDone { host, version }, false),
                Err(error) => {
                    let why = error.to_string();
                    let found = match error {
                        StoreError::Conflict { found, .. } => Some(found.map(|found| *found)),
                        _ => store.read(host).ok(),
                    };
                    (Input::StoreFailed { host, why, found }, true)
                }
            },
            Write::Blocks { expected, list } => {
                let result = store.compare_and_set_blocks(expected, &list).map_err(|error| {
                    let why = error.to_string();
                    match error {
                        StoreError::BlocksConflict { found } => (why, Some(*found)),
                        _ => (why, store.read_blocks().ok()),
                    }
                });
                let failed = result.is_err();
                (Input::BlocksStored { result, wall: clock::wall() }, failed)
            }
        }
    }
}

/// What became of a write, and how long it took.
pub struct Written {
    pub input: Input,
    pub took: Duration,
    pub failed: bool,
}

/// Runs `store` on a thread until the sender is dropped; `done` gets one call per write.
pub fn spawn(
    mut store: impl Store + 'static,
    mut done: impl FnMut(Written) + Send + 'static,
) -> std::io::Result<mpsc::Sender<Write>> {
    let (queue, writes) = mpsc::channel::<Write>();
    std::thread::Builder::new().name("store".into()).spawn(move || {
        for write in writes {
            let began = Instant::now();
            let (input, failed) = write.run(&mut store);
            done(Written { input, took: began.elapsed(), failed });
        }
    })?;
    Ok(queue)
}
