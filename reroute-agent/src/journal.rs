//! The journal: one JSON line per event, so that every move can be explained afterwards.
//!
//! Lines go through a queue to a thread of their own: a full disk or a slow one holds up nobody. What the queue
//! cannot take, and what the disk refuses, is counted.

use crate::clock;
use reroute_core::ids::BootNs;
use reroute_core::timeline::{Entry, Event};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

#[derive(Clone)]
pub struct Journal {
    node: String,
    queue: mpsc::SyncSender<Entry>,
    lost: Arc<AtomicU64>,
}

/// Entries that may wait for the disk.
const QUEUE: usize = 4096;

/// The file, and how long its whole lines are.
struct Lines {
    file: File,
    length: u64,
}

impl Lines {
    fn append(&mut self, entry: &Entry) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let written = self.file.write_all(&line);
        match written {
            Ok(()) => self.length += line.len() as u64,
            // A disk takes what it has room for. Half a line would spoil the next one.
            Err(_) => self.file.set_len(self.length)?,
        }
        written
    }
}

impl Journal {
    /// Appends to `dir/journal.jsonl`. Errors: the directory or the file cannot be made.
    pub fn open(dir: &Path, node: &str) -> std::io::Result<Journal> {
        std::fs::create_dir_all(dir)?;
        let file = OpenOptions::new().create(true).append(true).open(dir.join("journal.jsonl"))?;
        let mut lines = Lines { length: file.metadata()?.len(), file };
        let (queue, entries) = mpsc::sync_channel::<Entry>(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let lost_by_disk = lost.clone();
        std::thread::Builder::new().name("journal".into()).spawn(move || {
            for entry in entries {
                if let Err(error) = lines.append(&entry) {
                    lost_by_disk.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, "journal entry lost");
                }
            }
        })?;
        Ok(Journal { node: node.to_string(), queue, lost })
    }

    pub fn record(&self, event: Event) {
        self.record_at(clock::now(), event);
    }

    /// For events with a stamp of their own (the kernel's).
    pub fn record_at(&self, at: BootNs, event: Event) {
        tracing::info!(at = at.0, event = ?event, "timeline");
        if self.queue.try_send(Entry { at, node: self.node.clone(), event }).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Entries lost to a full queue or a failing disk.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
