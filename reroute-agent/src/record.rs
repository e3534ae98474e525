//! `--record DIR`: what this node's machine is told, kept for `reroute-agent replay` ([`reroute_core::recording`]), a file
//! for each start.
//!
//! The real-time thread makes the lines, a thread of their own writes them. What the queue cannot take because the disk
//! does not keep up, and what the disk has no room for, is counted and said in the recording, which then ends there for
//! whoever replays it. It ends for good when it is long enough, and leaves room on the disk for others: the records of
//! logins may lie there.

use crate::cli::Refused;
use reroute_core::ids::BootNs;
use reroute_core::recording::{self, Machine};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines on their way to the disk.
const QUEUE: usize = 64 * 1024;
/// What has been written is on its way to the file after this.
const FLUSH: Duration = Duration::from_millis(200);

/// What is written at once, at least; what is left, with each [`FLUSH`].
const CHUNK: usize = 64 * 1024;

/// How much of a disk a recording may take.
#[derive(Clone, Copy)]
struct Limits {
    longest: u64,
    /// So much of the disk stays free.
    spare: u64,
}

const LIMITS: Limits = Limits { longest: 1 << 30, spare: 256 << 20 };

/// A machine, recorded or not.
pub struct Recorded<M: Machine> {
    machine: M,
    sink: Option<Sink>,
}

struct Sink {
    /// None: it ends.
    lines: Option<SyncSender<Item>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
    lost: u64,
}

enum Item {
    Line(String),
    /// So many lines had no room in the queue.
    Lost(u64),
}

impl<M: Machine> From<M> for Recorded<M> {
    fn from(machine: M) -> Recorded<M> {
        Recorded { machine, sink: None }
    }
}

impl<M: Machine> Deref for Recorded<M> {
    type Target = M;
    fn deref(&self) -> &M {
        &self.machine
    }
}

impl<M: Machine> Recorded<M> {
    /// Begins the machine, and its recording if there is to be one. Errors: no file can be made in `dir`.
    pub fn begin(start: M::Start, dir: Option<&Path>, now: BootNs) -> anyhow::Result<Recorded<M>> {
        let file = dir.map(|dir| dir.join(format!("{}-{}-{}.jsonl", M::ROLE, now.0, std::process::id())));
        let sink = match &file {
            Some(path) => {
                Some(Sink::open(path, recording::start_line::<M>(&start, env!("CARGO_PKG_VERSION"), now)?)?)
            }
            None => None,
        };
        Ok(Recorded { machine: M::begin(start, now), sink })
    }

    pub fn handle(&mut self, input: M::Input, now: BootNs) -> Vec<M::Effect> {
        let Some(sink) = &mut self.sink else { return self.machine.take(input, now) };
        let (effects, line) = recording::take(&mut self.machine, input, now);
        match line {
            Ok(line) => sink.write(line),
            Err(error) => sink.lose(&error.to_string()),
        }
        if sink.lines.is_none() {
            self.sink = None;
        }
        effects
    }
}

impl Sink {
    fn open(path: &Path, first: String) -> anyhow::Result<Sink> {
        // Never over another recording: it may be the only one of an incident.
        let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
        let file = made.map_err(|error| {
            Refused(format!("--record: {}: {error}: name a directory that can be written to", path.display()))
        })?;
        let (lines, queue) = sync_channel(QUEUE);
        let writer = Writer::new(file, path, LIMITS);
        let thread = std::thread::Builder::new().name("record".into()).spawn(move || writer.run(&queue))?;
        let mut sink = Sink { lines: Some(lines), thread: Some(thread), path: path.to_path_buf(), lost: 0 };
        sink.write(first);
        Ok(sink)
    }

    fn write(&mut self, line: String) {
        let Some(lines) = &self.lines else { return };
        if self.lost > 0 && lines.try_send(Item::Lost(self.lost)).is_ok() {
            self.lost = 0;
        }
        let sent = match self.lost {
            0 => lines.try_send(Item::Line(line)),
            _ => Err(TrySendError::Full(Item::Line(line))),
        };
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.lose("the disk does not keep up"),
            // It has ended, and said so.
            Err(TrySendError::Disconnected(_)) => self.lines = None,
        }
    }

    fn lose(&mut self, why: &str) {
        if self.lost == 0 {
            tracing::error!(path = %self.path.display(), why, "the recording has a gap");
        }
        self.lost += 1;
    }
}

impl Drop for Sink {
    /// What is on its way is written first.
    fn drop(&mut self) {
        if let Some(lines) = self.lines.take()
            && self.lost > 0
        {
            // Fails when nobody writes any more.
            let _ = lines.send(Item::Lost(self.lost));
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes the lines, each whole or not at all.
struct Writer {
    file: File,
    path: PathBuf,
    limits: Limits,
    /// Of what stands in the file for good.
    length: u64,
    /// Whole lines, and how many.
    waiting: String,
    lines: u64,
    /// Lines lost before those that wait.
    lost: u64,
    flushed: Instant,
    /// A gap has been reported: nothing after the first one can be replayed.
    gap: bool,
}

impl Writer {
    fn new(file: File, path: &Path, limits: Limits) -> Writer {
        let path = path.to_path_buf();
        Writer {
            file,
            path,
            limits,
            length: 0,
            waiting: String::new(),
            lines: 0,
            lost: 0,
            flushed: Instant::now(),
            gap: false,
        }
    }

    fn run(mut self, queue: &Receiver<Item>) {
        loop {
            let goes_on = match queue.recv_timeout(FLUSH) {
                Ok(Item::Line(line)) => self.take(&line),
                Ok(Item::Lost(lines)) => {
                    let goes_on = self.flush();
                    self.lost += lines;
                    goes_on
                }
                Err(RecvTimeoutError::Timeout) => self.flush(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.flush();
                    return self.say_lost();
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    fn take(&mut self, line: &str) -> bool {
        self.waiting.push_str(line);
        self.waiting.push('\n');
        self.lines += 1;
        // Lines may come for ever without a pause in which the queue is found empty.
        (self.waiting.len() < CHUNK && self.flushed.elapsed() < FLUSH) || self.flush()
    }

    /// Writes what waits, or counts it as lost. False: the recording has ended.
    fn flush(&mut self) -> bool {
        self.flushed = Instant::now();
        if self.waiting.is_empty() {
            return true;
        }
        let mut text = self.lost_line();
        let ends = self.length + (text.len() + self.waiting.len()) as u64 > self.limits.longest;
        let why = format!("it may have {} bytes", self.limits.longest);
        match ends {
            true => text += &(recording::ended_line(&why) + "\n"),
            false => text += &self.waiting,
        }
        match self.room().and_then(|()| self.write(&text)) {
            Ok(()) => {
                self.length += text.len() as u64;
                self.lost = 0;
                if ends {
                    tracing::error!(path = %self.path.display(), why, "the recording has ended");
                }
            }
            Err(error) => {
                if !self.gap {
                    tracing::error!(path = %self.path.display(), %error, "the recording has a gap");
                    self.gap = true;
                }
                self.lost += self.lines;
                self.say_lost();
            }
        }
        let done = ends && self.lost == 0;
        self.waiting.clear();
        self.lines = 0;
        !done
    }

    /// Says at the end how many are lost until now, if there is room for that: the next line that is written, or a larger
    /// number, takes its place.
    fn say_lost(&mut self) {
        let _ = self.write(&self.lost_line());
    }

    fn lost_line(&self) -> String {
        match self.lost {
            0 => String::new(),
            lost => recording::lost_line(lost) + "\n",
        }
    }

    fn room(&self) -> io::Result<()> {
        let disk = rustix::fs::fstatvfs(&self.file)?;
        match disk.f_bavail.saturating_mul(disk.f_frsize) < self.limits.spare {
            true => Err(io::Error::other(format!("less than {} bytes are free", self.limits.spare))),
            false => Ok(()),
        }
    }

    /// At the end of what stands. A disk takes what it has room for: half of it goes again.
    fn write(&self, text: &str) -> io::Result<()> {
        self.file.set_len(self.length)?;
        let written = self.file.write_all_at(text.as_bytes(), self.length);
        if written.is_err() {
            self.file.set_len(self.length)?;
        }
        written
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
