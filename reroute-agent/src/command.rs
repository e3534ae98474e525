//! A program of somebody else's, run for its answer: with a time limit, in a process group of its own, whatever it
//! writes. Blocks: call it where that harms nobody.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What is kept of either output. More of it is read and forgotten.
const KEPT: usize = 256 << 10;

/// What came of it.
#[derive(Debug)]
pub struct Ended {
    /// None: it was killed because its time was up.
    pub status: Option<ExitStatus>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Something was forgotten.
    pub cut: bool,
    pub took: Duration,
}

impl Ended {
    /// The last `limit` bytes that it wrote, both outputs, for people.
    pub fn tail(&self, limit: usize) -> String {
        let mut text = String::new();
        for part in [&self.stdout, &self.stderr] {
            let part = &part[part.len().saturating_sub(limit / 2)..];
            let part = String::from_utf8_lossy(part);
            if !text.is_empty() && !part.trim().is_empty() {
                text.push('\n');
            }
            text.push_str(part.trim());
        }
        text
    }
}

/// Runs `program` with nothing in its environment but `PATH`, `LANG` and `environment`, and no input. When its time is
/// up, it and all of its process group are killed, and reaped.
///
/// # Errors
/// It could not be started.
pub fn run(
    program: &Path,
    arguments: &[String],
    environment: &[(&str, String)],
    limit: Duration,
) -> io::Result<Ended> {
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C")
        .envs(environment.iter().map(|(k, v)| (*k, v.as_str())))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let group = Pid::from_child(&child);
    let mut outputs = [Output::new(child.stdout.take()), Output::new(child.stderr.take())];
    let finished = follow(&child, &mut outputs, began + limit);
    if !matches!(finished, Ok(true)) {
        // Not reaped yet, so the group is still its own.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    let finished = finished?;
    for output in &mut outputs {
        output.read(); // what lies in the pipe
    }
    let cut = outputs.iter().any(|o| o.cut);
    let [stdout, stderr] = outputs.map(|o| o.kept);
    Ok(Ended { status: finished.then_some(status), stdout, stderr, cut, took: began.elapsed() })
}

/// Reads until the process ends (`true`) or its time is up. Whoever inherited its outputs is not waited for.
fn follow(child: &Child, outputs: &mut [Output; 2], until: Instant) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let time = rustix::event::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        fds.extend(
            outputs.iter().filter_map(Output::fd).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        match poll(&mut fds, Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if !fds[0].revents().is_empty() {
            return Ok(true);
        }
        outputs.iter_mut().for_each(Output::read);
    }
}

struct Output {
    pipe: Option<Box<dyn Pipe>>,
    kept: Vec<u8>,
    cut: bool,
}

trait Pipe: Read + AsFd {}
impl<T: Read + AsFd> Pipe for T {}

impl Output {
    fn new(pipe: Option<impl Pipe + 'static>) -> Output {
        let pipe = pipe.map(|p| Box::new(p) as Box<dyn Pipe>);
        if let Some(pipe) = &pipe {
            // One that blocks after all would only hold this call up until the process ends.
            let _ = rustix::io::ioctl_fionbio(pipe.as_fd(), true);
        }
        Output { pipe, kept: Vec::new(), cut: false }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(|p| p.as_fd())
    }

    /// What is there now; a flood must not keep the caller from looking at the clock.
    fn read(&mut self) {
        let mut chunk = [0; 64 << 10];
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.read(&mut chunk) {
            Ok(0) => self.pipe = None,
            Ok(n) => {
                self.kept.extend_from_slice(&chunk[..n]);
                if self.kept.len() > KEPT {
                    self.cut = true;
                    self.kept.drain(..self.kept.len() - KEPT);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.pipe = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit_ms: u64) -> Ended {
        let arguments = ["-c".to_string(), script.to_string()];
        run(Path::new("/bin/sh"), &arguments, &[("X", "1".into())], Duration::from_millis(limit_ms)).unwrap()
    }

    #[test]
    fn exit_code_and_outputs_come_back() {
        let ended = sh("echo out; echo err >&2; echo $X $HOME; exit 3", 5000);
        assert_eq!(ended.status.unwrap().code(), Some(3));
        assert_eq!((ended.stdout.as_slice(), ended.stderr.as_slice()), (&b"out\n1\n"[..], &b"err\n"[..]));
        assert_eq!(ended.tail(100), "out\n1\nerr");
        let gone = run(Path::new("/no/such"), &[], &[], Duration::from_secs(1)).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn who_takes_too_long_is_killed_with_its_children() {
        let dir = crate::meta::testing::Dir::new("command");
        let file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let ended = sh(&script, 1500);
        assert!(ended.status.is_none());
        let child: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        // Killed; reaped by whoever adopts it.
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
            stat.rsplit(") ").next()?.chars().next()
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !matches!(state(), None | Some('Z')) {
            assert!(Instant::now() < deadline, "the child of the killed process lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_flood_is_cut_and_ends_in_time() {
        let ended = sh("yes 0123456789abcdef", 700);
        assert!(ended.status.is_none() && ended.cut);
        assert!(ended.stdout.len() <= KEPT, "{}", ended.stdout.len());
        let all = sh("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end", 20_000);
        assert_eq!(all.status.unwrap().code(), Some(0));
        assert!(all.cut && all.stdout.ends_with(b"x\nend\n"), "the end is what is kept");
    }

    #[test]
    fn who_leaves_somebody_behind_is_not_waited_for() {
        let began = Instant::now();
        let ended = sh("sleep 20 & echo done", 60_000);
        assert_eq!(ended.status.unwrap().code(), Some(0));
        assert_eq!(ended.stdout, b"done\n");
        assert!(began.elapsed() < Duration::from_secs(15));
    }
}
