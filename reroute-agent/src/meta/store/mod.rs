//! Where logins are kept. A store knows compare-and-set only: nothing is ever written over unseen.
//!
//! Stores block (they sync to disk), so each runs on a thread of its own; what becomes of a write comes back to the
//! master as an input. The queue holds at most one write per host, because the master asks for no more; a question
//! who leads goes before all writes that wait.

mod memory;
mod redb;
#[cfg(test)]
mod tests;

pub use memory::Memory;
pub use redb::Redb;

use crate::{clock, fault_point};
use anyhow::Context;
use reroute_core::block::BlockList;
use reroute_core::ids::{HostId, ScvmId, Term};
use reroute_core::meta::{Input, Record, Versioned};
use reroute_core::proto::Draining;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
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
    #[error("another Meta has begun {later}: only one may lead; this one has to stop")]
    LaterTerm { later: Term },
    #[error("somebody else wrote the list of blocks in between")]
    BlocksConflict { found: Box<BlockList> },
}

/// What a store held when this term began.
#[derive(Debug, Clone)]
pub struct Opened {
    /// One more than any term before; durable already.
    pub term: Term,
    pub logins: BTreeMap<HostId, Versioned>,
    /// SCVMs that are being drained.
    pub draining: BTreeMap<ScvmId, Draining>,
    pub blocks: BlockList,
}

pub trait Store: Send {
    /// Claims the store for this cluster and begins a term.
    fn open(&mut self, cluster: &str) -> Result<Opened, StoreError>;
    fn read(&mut self, host: HostId) -> Result<Option<Versioned>, StoreError>;
    /// Whether `term` is still the last one; read from the store itself, never from what this process remembers.
    ///
    /// # Errors
    /// [`StoreError::LaterTerm`] if it is not; any other: nobody can tell.
    fn confirm(&mut self, term: Term) -> Result<(), StoreError>;
    /// Writes `record` only if the store holds `expected` (None: nothing) and no term later than the record's has
    /// begun; durable when it returns the new version.
    fn compare_and_set(
        &mut self,
        host: HostId,
        expected: Option<u64>,
        record: &Record,
    ) -> Result<u64, StoreError>;
    /// Keeps that this SCVM is being drained, or (None) no more; durable when it returns.
    fn set_draining(&mut self, scvm: ScvmId, draining: Option<&Draining>) -> Result<(), StoreError>;

    /// The list of blocks; an empty one of version 0 if there never was any.
    fn read_blocks(&mut self) -> Result<BlockList, StoreError>;
    /// Writes `list` only if the store's has version `expected`; durable when it returns.
    fn compare_and_set_blocks(&mut self, expected: u64, list: &BlockList) -> Result<(), StoreError>;
}

/// A write for the store's thread.
pub enum Write {
    Login { host: HostId, expected: Option<u64>, record: Record },
    Draining { scvm: ScvmId, draining: Option<Draining> },
    Blocks { expected: u64, list: BlockList },
}

/// What became of a write or a question, and how long it took.
pub struct Written {
    pub input: Input,
    pub took: Duration,
    pub failed: bool,
    /// It was a write.
    pub wrote: bool,
}

#[derive(Default)]
struct Work {
    /// Who leads? Answered before any write.
    confirm: Option<Term>,
    writes: VecDeque<Write>,
    closed: bool,
    /// The thread has ended.
    gone: bool,
}

/// The way to the store's thread, which ends when this is dropped.
pub struct Queue(Arc<(Mutex<Work>, Condvar)>);

/// The store's thread has died: nothing can be recorded or confirmed any more.
#[derive(Debug, thiserror::Error)]
#[error("the store's thread is gone")]
pub struct Gone;

impl Queue {
    pub fn write(&self, write: Write) -> Result<(), Gone> {
        self.put(|work| work.writes.push_back(write))
    }

    /// Asks whether `term` is still the last. The answer is one [`Written`].
    pub fn confirm(&self, term: Term) -> Result<(), Gone> {
        self.put(|work| work.confirm = Some(term))
    }

    fn put(&self, put: impl FnOnce(&mut Work)) -> Result<(), Gone> {
        let (work, changed) = &*self.0;
        let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
        if work.gone {
            return Err(Gone);
        }
        put(&mut work);
        changed.notify_one();
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let (work, changed) = &*self.0;
        work.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        changed.notify_one();
    }
}

enum Task {
    Confirm(Term),
    Write(Write),
}

/// Says that the thread is gone, also after a panic.
struct Leaving(Arc<(Mutex<Work>, Condvar)>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).gone = true;
    }
}

impl Leaving {
    /// The next thing to do; None: nothing will come any more.
    fn next(&self) -> Option<Task> {
        let (work, changed) = &*self.0;
        let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(term) = work.confirm.take() {
                return Some(Task::Confirm(term));
            }
            if let Some(write) = work.writes.pop_front() {
                return Some(Task::Write(write));
            }
            if work.closed {
                return None;
            }
            work = changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Runs `store` on a thread until the queue is dropped; `done` gets one call per write and per question. `prepare` comes
/// first on that thread: a leader whose store waits for a CPU is none. Errors: it failed.
pub fn spawn(
    mut store: impl Store + 'static,
    prepare: fn() -> anyhow::Result<()>,
    mut done: impl FnMut(Written) + Send + 'static,
) -> anyhow::Result<Queue> {
    let work: Arc<(Mutex<Work>, Condvar)> = Arc::default();
    let thread = Leaving(work.clone());
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("store".into()).spawn(move || {
        let prepared = prepare();
        let failed = prepared.is_err();
        if ready.send(prepared).is_err() || failed {
            return;
        }
        while let Some(task) = thread.next() {
            let wrote = matches!(task, Task::Write(_));
            let began = Instant::now();
            let (input, failed) = carry_out(&mut store, task);
            done(Written { input, took: began.elapsed(), failed, wrote });
        }
    })?;
    is_ready.recv().context("the store's thread has ended")??;
    Ok(Queue(work))
}

fn carry_out(store: &mut impl Store, task: Task) -> (Input, bool) {
    match task {
        Task::Confirm(term) => match store.confirm(term) {
            Ok(()) => (Input::LeaseConfirmed, false),
            Err(StoreError::LaterTerm { later }) => (Input::LeaseOver { later }, true),
            Err(error) => (Input::LeaseFailed { why: error.to_string() }, true),
        },
        Task::Write(Write::Login { host, expected, record }) => login(store, host, expected, &record),
        Task::Write(Write::Draining { scvm, draining }) => {
            let result = store.set_draining(scvm, draining.as_ref()).map_err(|e| e.to_string());
            let failed = result.is_err();
            (Input::DrainingStored { scvm, result }, failed)
        }
        Task::Write(Write::Blocks { expected, list }) => {
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

fn login(store: &mut impl Store, host: HostId, expected: Option<u64>, record: &Record) -> (Input, bool) {
    let outcome = store.compare_and_set(host, expected, record);
    fault_point::after(Some(fault_point::of_record(record)));
    match outcome {
        Ok(version) => (Input::StoreDone { host, version }, false),
        Err(StoreError::LaterTerm { later }) => (Input::LeaseOver { later }, true),
        Err(error) => {
            let why = error.to_string();
            let found = match error {
                StoreError::Conflict { found, .. } => Some(found.map(|found| *found)),
                _ => store.read(host).ok(),
            };
            (Input::StoreFailed { host, why, found }, true)
        }
    }
}
