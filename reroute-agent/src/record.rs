//! `--record DIR`: what this node's machine is told, kept for `reroute-agent replay` ([`reroute_core::recording`]), a file
//! for each start.
//!
//! The real-time thread makes the lines, a thread of their own writes them. When the disk does not keep up the queue
//! fills, and what does not fit is counted and said in the recording, which then ends there for whoever replays it.

use crate::cli::Refused;
use reroute_core::ids::BootNs;
use reroute_core::recording::{self, Machine};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Lines on their way to the disk.
const QUEUE: usize = 64 * 1024;
/// What has been written is on its way to the file after this.
const FLUSH: Duration = Duration::from_millis(200);

/// A machine, recorded or not.
pub struct Recorded<M: Machine> {
    machine: M,
    sink: Option<Sink>,
}

struct Sink {
    /// None: it ends.
    lines: Option<SyncSender<String>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
    lost: u64,
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
        effects
    }
}

impl Sink {
    fn open(path: &Path, first: String) -> anyhow::Result<Sink> {
        // Never over another recording: it may be the only one of an incident.
        let file = File::create_new(path).map_err(|error| {
            Refused(format!("--record: {}: {error}: name a directory that can be written to", path.display()))
        })?;
        let (lines, queue) = sync_channel(QUEUE);
        let shown = path.to_path_buf();
        let thread = std::thread::Builder::new().name("record".into()).spawn(move || {
            if let Err(error) = write(file, &queue) {
                tracing::error!(path = %shown.display(), %error, "the recording has ended");
            }
        })?;
        let mut sink = Sink { lines: Some(lines), thread: Some(thread), path: path.to_path_buf(), lost: 0 };
        sink.write(first);
        Ok(sink)
    }

    fn write(&mut self, line: String) {
        let Some(lines) = &self.lines else { return };
        if self.lost > 0 && lines.try_send(recording::lost_line(self.lost)).is_ok() {
            self.lost = 0;
        }
        if self.lost > 0 {
            return self.lose("the disk does not keep up");
        }
        match lines.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.lose("the disk does not keep up"),
            Err(TrySendError::Disconnected(_)) => self.lose("the file cannot be written"),
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
        self.lines = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write(file: File, queue: &Receiver<String>) -> std::io::Result<()> {
    let mut file = BufWriter::new(file);
    loop {
        match queue.recv_timeout(FLUSH) {
            Ok(line) => writeln!(file, "{line}")?,
            Err(RecvTimeoutError::Timeout) => file.flush()?,
            Err(RecvTimeoutError::Disconnected) => return file.flush(),
        }
    }
}
