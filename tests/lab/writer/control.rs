//! Commands from outside (Unix socket, standard input, signals), handed to the writer's loop.
//!
//! Threads: one that listens, one per connection, one for standard input, one for signals. Each waits for the loop's
//! answer before it reads the next line. The loop is woken by an eventfd.

use anyhow::Context;
use rustix::event::{EventfdFlags, eventfd};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Snapshot,
    /// CLOCK_BOOTTIME ns; `to` 0 means now.
    Gap {
        from: u64,
        to: u64,
    },
    Stop,
}

/// A command and where its one line of answer goes.
pub struct Request {
    pub command: Command,
    pub answer: Sender<String>,
}

#[derive(Clone)]
pub struct Port {
    requests: Sender<Request>,
    wake: Arc<OwnedFd>,
}

/// The receiving end, for the loop.
pub struct Inbox {
    pub requests: Receiver<Request>,
    pub wake: Arc<OwnedFd>,
    written: Receiver<()>,
}

impl Inbox {
    /// After a `stop` was answered: waits until the answer is written out, or a second.
    pub fn finish(&self) {
        let _ = self.written.recv_timeout(Duration::from_secs(1));
    }
}

pub fn parse(line: &str) -> Result<Command, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let time = |w: &str| w.parse::<u64>().map_err(|_| format!("{w:?} is not a time in ns"));
    match words.as_slice() {
        ["snapshot"] => Ok(Command::Snapshot),
        ["gap", from, to] => Ok(Command::Gap { from: time(from)?, to: time(to)? }),
        ["stop"] => Ok(Command::Stop),
        _ => Err(format!("{line:?} is none of: snapshot, gap FROM TO, stop")),
    }
}

/// Starts the threads that were asked for.
pub fn start(socket: Option<&Path>, stdin: bool) -> anyhow::Result<Inbox> {
    let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).context("eventfd")?);
    let (requests, inbox) = channel();
    let (written_tx, written) = channel();
    let port = Port { requests, wake: wake.clone() };
    if let Some(path) = socket {
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).with_context(|| format!("control socket {}", path.display()))?;
        let (port, written) = (port.clone(), written_tx.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (port, written) = (port.clone(), written.clone());
                std::thread::spawn(move || {
                    let Ok(input) = stream.try_clone() else { return };
                    let _ = lines(&port, &written, BufReader::new(input), &stream);
                });
            }
        });
    }
    if stdin {
        let (port, written) = (port.clone(), written_tx.clone());
        std::thread::spawn(move || {
            let _ = lines(&port, &written, std::io::stdin().lock(), std::io::stdout());
            // Whoever commanded is gone.
            let _ = port.ask(Command::Stop);
            let _ = written.send(());
        });
    }
    signals(port, written_tx)?;
    Ok(Inbox { requests: inbox, wake, written })
}

impl Port {
    fn ask(&self, command: Command) -> Option<String> {
        let (answer, answered) = channel();
        self.requests.send(Request { command, answer }).ok()?;
        rustix::io::write(&self.wake, &1u64.to_ne_bytes()).ok()?;
        answered.recv().ok()
    }
}

fn lines(
    port: &Port,
    written: &Sender<()>,
    input: impl BufRead,
    mut output: impl Write,
) -> std::io::Result<()> {
    for line in input.lines() {
        let command = parse(&line?);
        let answer = match &command {
            Ok(command) => port.ask(*command),
            Err(why) => Some(serde_json::json!({ "error": why }).to_string()),
        };
        let Some(answer) = answer else { break };
        writeln!(output, "{answer}")?;
        output.flush()?;
        if command == Ok(Command::Stop) {
            let _ = written.send(());
        }
    }
    Ok(())
}

fn signals(port: Port, written: Sender<()>) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("signal runtime")?;
    let guard = runtime.enter();
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("SIGINT")?;
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        });
        let _ = port.ask(Command::Stop);
        let _ = written.send(());
    });
    Ok(())
}
