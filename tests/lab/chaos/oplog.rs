//! The writer's log of operations, read back: when writes were completed, and what became of one write.
//!
//! 40-byte records, little endian: issued, completed (CLOCK_BOOTTIME ns), sequence, offset (u64 each), kind u8, tries
//! u8, 6 bytes 0 (`tests/lab/writer/record.rs` writes them).

use anyhow::bail;
use serde::Serialize;

const SIZE: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum File {
    Append,
    Hot,
    Unstable,
}

/// A completed write. Times in CLOCK_BOOTTIME ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Write {
    pub file: File,
    pub seq: u64,
    pub offset: u64,
    pub issued: u64,
    pub completed: u64,
    /// How often it was sent; 255: that many or more.
    pub tries: u8,
}

/// One host's writes.
#[derive(Clone, Debug, Default)]
pub struct Writes {
    pub all: Vec<Write>,
    /// Completion times of the sync writes, ascending.
    times: Vec<u64>,
}

impl Writes {
    /// Errors: not a whole number of records.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Writes> {
        if !bytes.len().is_multiple_of(SIZE) {
            bail!("the writer's log of operations ends in the middle of a record ({} bytes)", bytes.len());
        }
        let mut writes = Writes::default();
        for record in bytes.chunks_exact(SIZE) {
            let word = |nth: usize| {
                record[nth * 8..nth * 8 + 8].iter().rev().fold(0_u64, |sum, b| (sum << 8) | u64::from(*b))
            };
            let file = match record[32] {
                1 => File::Append,
                2 => File::Hot,
                3 => File::Unstable,
                _ => continue,
            };
            writes.add(Write {
                file,
                issued: word(0),
                completed: word(1),
                seq: word(2),
                offset: word(3),
                tries: record[33],
            });
        }
        writes.times.sort_unstable();
        Ok(writes)
    }

    fn add(&mut self, write: Write) {
        if write.file != File::Unstable {
            self.times.push(write.completed);
        }
        self.all.push(write);
    }

    /// Completed sync writes.
    pub fn completed(&self) -> u64 {
        self.times.len() as u64
    }

    /// The longest time between two completed sync writes that touches [`from`, `to`], ns, whole even where it begins
    /// before the window or ends after it, and its begin.
    pub fn gap(&self, from: u64, to: u64) -> (u64, u64) {
        self.gaps(from, to).max().unwrap_or((0, from))
    }

    /// All of them, with their begins.
    pub fn gaps(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
        let begin = self.times.partition_point(|t| *t < from).saturating_sub(1);
        let end = self.times.partition_point(|t| *t <= to);
        let touching = self.times.get(begin..(end + 1).min(self.times.len())).unwrap_or(&[]);
        touching.windows(2).map(|w| (w[1] - w[0], w[0]))
    }

    pub fn find(&self, seq: u64) -> Option<&Write> {
        self.all.iter().find(|w| w.seq == seq)
    }
}

#[cfg(test)]
pub(super) fn at(times: &[u64]) -> Writes {
    let mut bytes = Vec::new();
    for (nth, time) in times.iter().enumerate() {
        for word in [time - 1, *time, nth as u64 + 1, 4096 * nth as u64] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&[2, 1, 0, 0, 0, 0, 0, 0]);
    }
    Writes::parse(&bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_gaps_that_cross_the_window_count_whole() {
        let writes = at(&[10, 20, 90, 100]);
        assert_eq!(writes.completed(), 4);
        assert_eq!(writes.find(2).map(|w| (w.issued, w.completed, w.offset)), Some((19, 20, 4096)));
        assert_eq!(writes.gap(30, 40), (70, 20));
        assert_eq!(writes.gap(15, 95), (70, 20));
        assert_eq!(writes.gap(91, 400), (10, 90));
        assert_eq!(writes.gap(0, 15), (10, 10));
        assert_eq!(at(&[]).gap(5, 9), (0, 5));
        assert!(Writes::parse(&[0; 41]).is_err());
    }
}
