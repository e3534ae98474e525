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

/// Appends a whole line, or nothing.
fn append(mut file: &File, entry: &Entry) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    // Looked at each time: others cut this file (logrotate's copytruncate).
    let length = file.metadata()?.len();
    let written = file.write_all(&line);
    if written.is_err() {
        // A disk takes what it has room for. Half a line would spoil the next one.
        file.set_len(length)?;
    }
    written
}

impl Journal {
    /// Appends to `dir/journal.jsonl`. Errors: the directory or the file cannot be made.
    pub fn open(dir: &Path, node: &str) -> std::io::Result<Journal> {
        std::fs::create_dir_all(dir)?;
        let file = OpenOptions::new().create(true).append(true).open(dir.join("journal.jsonl"))?;
        let (queue, entries) = mpsc::sync_channel::<Entry>(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let lost_by_disk = lost.clone();
        std::thread::Builder::new().name("journal".into()).spawn(move || {
            for entry in entries {
                if let Err(error) = append(&file, &entry) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::meta::testing::small_disk;
    #[test]
    fn a_file_that_others_have_cut_is_not_made_long_again() {
        small_disk(16, |disk| {
            let path = disk.join("journal.jsonl");
            let file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            let event = Event::SocketsReset { count: 1 };
            let entry = Entry { at: BootNs(1), node: "n".into(), event };
            while append(&file, &entry).is_ok() {}
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.ends_with("}\n"), "whole lines");
            // As `: > journal.jsonl`, and something else takes the room.
            std::fs::write(&path, "").unwrap();
            std::fs::write(disk.join("other"), [1; 17 * 1024]).unwrap_err();
            append(&file, &entry).unwrap_err();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "no hole");
        });
    }
}
