//! A guest from its start to its end, within a deadline.

use super::Step;
use super::console::Console;
use super::kernel::Kernel;
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The guest's memory: the maps take about 100 MiB, the file system as much.
const MEMORY: &str = "2G";

pub struct Seen {
    pub passed: usize,
    /// From qemu's start to the first line of the guest's first process.
    pub up: Duration,
}

/// The emulator, killed when this ends, however it ends.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // Both say no if it has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots `kernel` with `image` for `step`; egress programs are to be attached by `egress`. Errors: no result, a bad one,
/// a panic, or no end within the step's deadline; then the end of the console has been printed.
pub fn run(kernel: &Kernel, image: &Path, step: Step, egress: &str) -> anyhow::Result<Seen> {
    let deadline = step.deadline();
    let start = Instant::now();
    // If we are killed, so is the emulator.
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(image)
        // On a busy machine the emulated timer is too late for the kernel's check of it. What the kernel does not know
        // is in the environment of the guest's first process.
        .args(["-append", &format!("console=ttyS0 quiet panic=-1 no_timer_check step={}", step.name())])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run setpriv")?;
    let mut guest = Guest(child);
    let mut console = Console::default();
    let mut up = None;
    let ended = match guest.0.stdout.take() {
        Some(stdout) => listen(&lines(stdout), start + deadline, |line| {
            console.hear(line);
            println!("{line}");
            if console.up && up.is_none() {
                up = Some(start.elapsed());
            }
        }),
        None => bail!("qemu has no output"),
    };
    let verdict = if ended {
        let status = guest.0.wait()?;
        let mut said = String::new();
        if let Some(mut stderr) = guest.0.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        let attached = (step == Step::Programs).then_some(egress);
        match console.verdict(step.tests().len(), attached) {
            Ok(_) if !status.success() => Err(anyhow::anyhow!("qemu ended with {status}: {}", said.trim())),
            Err(error) if !said.trim().is_empty() => Err(error.context(said.trim().to_string())),
            verdict => verdict,
        }
    } else {
        Err(anyhow::anyhow!("not done within {} s", deadline.as_secs()))
    };
    match (verdict, up) {
        (Ok(passed), Some(up)) => Ok(Seen { passed, up }),
        (verdict, _) => {
            eprintln!("-- the end of the console of {}:", kernel.release);
            console.tail().for_each(|line| eprintln!("{line}"));
            eprintln!("--");
            Err(verdict.err().unwrap_or_else(|| anyhow::anyhow!("the guest never came up")))
        }
    }
}

/// The lines of `from` as they come. The channel ends with it.
fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (line, heard) = channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        // A console may say anything, not only UTF-8.
        while from.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_string();
            if line.send(text).is_err() {
                break;
            }
            bytes.clear();
        }
    });
    heard
}

/// Hands over lines until they end, or `deadline` has come: then false.
fn listen(lines: &Receiver<String>, deadline: Instant, mut hear: impl FnMut(&str)) -> bool {
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => hear(&line),
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_console_that_falls_silent_is_given_up_at_its_deadline() {
        let (line, heard) = channel();
        line.send("one".to_string()).unwrap_or_default();
        let mut seen = Vec::new();
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(!listen(&heard, soon, |line| seen.push(line.to_string())));
        std::mem::drop(line);
        assert!(listen(&heard, soon, |_| {}));
        assert_eq!(seen, ["one"]);
    }
}
