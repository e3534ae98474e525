//! What was done and when: completion times in memory, and an optional log of every operation.
//!
//! The log is a sequence of 40-byte records, little endian: issued u64, completed u64 (CLOCK_BOOTTIME ns), sequence
//! u64, offset u64 (bytes), kind u8 (1 append, 2 hot, 3 unstable write, 4 commit, 5 create, 6 rename, 7 remove,
//! 8 read),
//! tries u8 (255: that many or more), 6 bytes 0.

use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};

pub const SIZE: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Append = 1,
    Hot = 2,
    Unstable = 3,
    Commit = 4,
    Create = 5,
    Rename = 6,
    Remove = 7,
    Read = 8,
}

/// One completed operation. Times in CLOCK_BOOTTIME ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub issued: u64,
    pub completed: u64,
    pub seq: u64,
    pub offset: u64,
    pub kind: Kind,
    pub tries: u8,
}

/// The longest time without a completion that touches a window. Times in CLOCK_BOOTTIME ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gap {
    pub longest_gap_ns: u64,
    /// Completion before the gap (or the window's start, when there was none before).
    pub from: u64,
    /// Completion after the gap (or the window's end, when there was none after).
    pub to: u64,
    /// Completions inside the window.
    pub completed: u64,
}

/// Completion times of the sync writes, and the log.
pub struct Recorder {
    times: Vec<u64>,
    log: Option<BufWriter<File>>,
}

impl Recorder {
    pub fn new(log: Option<File>) -> Recorder {
        Recorder {
            times: Vec::with_capacity(1 << 16),
            log: log.map(|f| BufWriter::with_capacity(1 << 16, f)),
        }
    }

    pub fn add(&mut self, record: Record) -> std::io::Result<()> {
        if matches!(record.kind, Kind::Append | Kind::Hot) {
            self.times.push(record.completed);
        }
        let Some(log) = &mut self.log else { return Ok(()) };
        let mut bytes = [0; SIZE];
        for (at, word) in [record.issued, record.completed, record.seq, record.offset].into_iter().enumerate()
        {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes[32] = record.kind as u8;
        bytes[33] = record.tries;
        log.write_all(&bytes)
    }

    pub fn completed(&self) -> u64 {
        self.times.len() as u64
    }

    pub fn last(&self) -> Option<u64> {
        self.times.last().copied()
    }

    /// The longest gap over the whole run, up to the last completion.
    pub fn longest(&self) -> Gap {
        match (self.times.first(), self.times.last()) {
            (Some(first), Some(last)) => self.gap(*first, *last),
            _ => Gap::default(),
        }
    }

    /// The longest gap that touches [`from`, `to`]. A gap that begins before the window or ends after it counts whole,
    /// as far as it has been seen; one that nothing has ended yet counts up to `to`.
    pub fn gap(&self, from: u64, to: u64) -> Gap {
        let begin = self.times.partition_point(|t| *t < from);
        let end = self.times.partition_point(|t| *t <= to);
        let mut gap = Gap { completed: (end.saturating_sub(begin)) as u64, ..Gap::default() };
        let mut last = begin.checked_sub(1).map_or(from, |before| self.times[before]);
        let inside = self.times.get(begin..end).unwrap_or(&[]).iter().copied();
        for time in inside.chain([self.times.get(end).copied().unwrap_or(to.max(from))]) {
            if time.saturating_sub(last) > gap.longest_gap_ns {
                gap = Gap { longest_gap_ns: time - last, from: last, to: time, ..gap };
            }
            last = time;
        }
        gap
    }

    pub fn flush(&mut self) -> std::io::Result<()> {
        self.log.as_mut().map_or(Ok(()), Write::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(times: &[u64]) -> Recorder {
        let mut recorder = Recorder::new(None);
        for t in times {
            let record = Record { issued: 0, completed: *t, seq: 1, offset: 0, kind: Kind::Hot, tries: 1 };
            recorder.add(record).unwrap();
        }
        recorder
    }

    #[test]
    fn gaps_that_cross_the_window_count_whole() {
        let r = recorder(&[10, 20, 90, 100]);
        assert_eq!(r.gap(30, 40), Gap { longest_gap_ns: 70, from: 20, to: 90, completed: 0 });
        assert_eq!(r.gap(15, 95), Gap { longest_gap_ns: 70, from: 20, to: 90, completed: 2 });
        assert_eq!(r.gap(90, 400), Gap { longest_gap_ns: 300, from: 100, to: 400, completed: 2 });
        assert_eq!(r.longest().longest_gap_ns, 70);
        assert_eq!(recorder(&[]).gap(5, 9), Gap { longest_gap_ns: 4, from: 5, to: 9, completed: 0 });
    }
}
