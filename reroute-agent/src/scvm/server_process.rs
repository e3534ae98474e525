//! The access server's process: found by its pidfile, held by a pidfd, killed only through that.
//!
//! A readable pidfd means that the whole thread group has terminated: no thread of it runs any more, whether or not
//! its parent has collected the zombie. That is what "reaped" means in this project.
//!
//! An incarnation is the process's start time (clock ticks since boot) and its pid, so that an agent that was
//! restarted knows its predecessor's server again.

use reroute_core::ids::Incarnation;
use reroute_core::scvm::{Input, Outcome};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// Pids fit in this many bits (PID_MAX_LIMIT).
const PID_BITS: u32 = 22;

pub struct Watcher {
    pidfile: PathBuf,
    held: BTreeMap<Incarnation, Held>,
    /// Terminated, but perhaps still named by the pidfile.
    ended: BTreeSet<Incarnation>,
    problem: Option<Option<String>>,
    exits: UnboundedSender<Input>,
}

struct Held {
    fd: Arc<OwnedFd>,
}

fn incarnation_of(pid: u32, start_ticks: u64) -> Incarnation {
    Incarnation(start_ticks << PID_BITS | u64::from(pid))
}

fn pid_of(incarnation: Incarnation) -> u32 {
    (incarnation.0 & ((1 << PID_BITS) - 1)) as u32
}

/// How much younger than its pidfile a process may seem: ticks and file systems round.
const SLACK: Duration = Duration::from_secs(2);

/// Whether a process began after its pidfile was written: then the file is a dead server's, and the pid was given to
/// somebody else, who must not be watched, let alone killed, in its place. A file of unknown age settles nothing.
fn is_somebody_else(pidfile: &std::path::Path, start_ticks: u64) -> bool {
    let written = std::fs::metadata(pidfile).and_then(|m| m.modified()).ok();
    let Some(file_age) = written.and_then(|at| at.elapsed().ok()) else { return false };
    let up = Duration::from_nanos(crate::clock::now().0);
    let began = Duration::from_millis(start_ticks * 1000 / rustix::param::clock_ticks_per_second());
    up.saturating_sub(began) + SLACK < file_age
}

/// Start time of a process, clock ticks since boot; `None`: there is no such process.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, parentheses too: fields are counted after its last one.
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Pid and start of the process that a pidfile names.
fn read(pidfile: &Path) -> Result<(u32, u64), String> {
    let shown = pidfile.display();
    let text =
        std::fs::read_to_string(pidfile).map_err(|e| format!("pidfile {shown} cannot be read: {e}"))?;
    // A file being written is empty for a moment; it is read again soon.
    let pid: u32 = text
        .trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 0 && *pid < 1 << PID_BITS)
        .ok_or_else(|| format!("pidfile {shown} holds no process id"))?;
    let ticks = start_ticks(pid).ok_or_else(|| format!("pidfile {shown}: no process {pid} exists"))?;
    Ok((pid, ticks))
}

/// Pid and name of the running process that a pidfile names. Errors: in words.
pub fn find(pidfile: &Path) -> Result<(u32, String), String> {
    let shown = pidfile.display();
    let (pid, ticks) = read(pidfile)?;
    if is_somebody_else(pidfile, ticks) {
        return Err(format!("pidfile {shown} is older than process {pid}: it names a server that has gone"));
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let name = stat.find('(').zip(stat.rfind(')')).and_then(|(from, to)| stat.get(from + 1..to));
    // Dead, and not collected by its parent yet.
    let state = stat.rfind(')').and_then(|at| stat[at + 1..].split_ascii_whitespace().next());
    match (name, state) {
        (_, Some("Z" | "X") | None) => Err(format!("pidfile {shown}: process {pid} has terminated")),
        (name, _) => Ok((pid, name.unwrap_or_default().to_string())),
    }
}

impl Watcher {
    /// Exits are reported through `exits`, from a task on the current runtime.
    pub fn new(pidfile: PathBuf, exits: UnboundedSender<Input>) -> Watcher {
        Watcher { pidfile, held: BTreeMap::new(), ended: BTreeSet::new(), problem: None, exits }
    }

    /// The server that the kernel was told of by an earlier agent: held again, or known to have ended.
    pub fn adopt(&mut self, incarnation: Incarnation) -> Option<Input> {
        if incarnation.0 == 0 {
            return None;
        }
        let pid = pid_of(incarnation);
        Some(match self.hold(pid, incarnation) {
            Ok(input) => input,
            Err(_) => {
                self.ended.insert(incarnation);
                Input::ServerExited { pid, incarnation }
            }
        })
    }

    /// Processes that are held.
    pub fn pids(&self) -> Vec<u32> {
        self.held.keys().map(|i| pid_of(*i)).collect()
    }

    /// Reads the pidfile; gives what is new.
    pub fn poll(&mut self) -> Vec<Input> {
        let mut news = Vec::new();
        let problem = match self.look() {
            Ok(input) => {
                news.extend(input);
                None
            }
            Err(why) => Some(why),
        };
        if self.problem.as_ref() != Some(&problem) {
            self.problem = Some(problem.clone());
            news.push(Input::ServerProblem(problem));
        }
        news
    }

    fn look(&mut self) -> Result<Option<Input>, String> {
        let shown = self.pidfile.display().to_string();
        let (pid, ticks) = read(&self.pidfile)?;
        let incarnation = incarnation_of(pid, ticks);
        if self.ended.contains(&incarnation) {
            return Err(format!("pidfile {shown}: process {pid} has terminated"));
        }
        if self.held.contains_key(&incarnation) {
            return Ok(None);
        }
        if is_somebody_else(&self.pidfile, ticks) {
            return Err(format!(
                "pidfile {shown} is older than process {pid}: it names a server that has gone"
            ));
        }
        self.hold(pid, incarnation).map(Some).map_err(|e| format!("pidfile {shown}: process {pid}: {e}"))
    }

    fn hold(&mut self, pid: u32, incarnation: Incarnation) -> std::io::Result<Input> {
        let gone = || std::io::Error::from(Errno::SRCH);
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let fd = Arc::new(pidfd_open(raw, PidfdFlags::NONBLOCK)?);
        // Looked at after the descriptor is held: now the pid cannot have been given to another process.
        if start_ticks(pid).map(|t| incarnation_of(pid, t)) != Some(incarnation) {
            return Err(gone());
        }
        let watched = super::pidfd::watch(fd.clone())?;
        let exits = self.exits.clone();
        tokio::spawn(async move {
            // An error here would mean epoll itself fails: then nothing is ever proven dead, and that is safe.
            if watched.readable().await.is_ok() {
                let _ = exits.send(Input::ServerExited { pid, incarnation });
            }
        });
        self.held.insert(incarnation, Held { fd });
        Ok(Input::ServerSeen { pid, incarnation })
    }

    /// The exit has been reported.
    pub fn ended(&mut self, incarnation: Incarnation) {
        self.held.remove(&incarnation);
        self.ended.insert(incarnation);
        while self.ended.len() > 16 {
            self.ended.pop_first();
        }
    }

    /// SIGKILL. That it has terminated is reported by its exit. Errors: not held, no right to signal it.
    pub fn kill(&self, incarnation: Incarnation) -> Outcome<()> {
        let Some(held) = self.held.get(&incarnation) else {
            return Err(format!("process {} is not held", pid_of(incarnation)));
        };
        match pidfd_send_signal(&*held.fd, Signal::KILL) {
            Ok(()) => {
                // A hundred threads and the pages of a large cache go with it: not behind whoever else wants the CPU.
                crate::realtime::hasten_end(pid_of(incarnation));
                Ok(())
            }
            // It is dead already: its exit is on the way.
            Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};
    use tokio::sync::mpsc;

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }
    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("reroute-pidfile-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }
    fn seen(news: &[Input]) -> Option<(u32, Incarnation)> {
        news.iter().find_map(|i| match i {
            Input::ServerSeen { pid, incarnation } => Some((*pid, *incarnation)),
            _ => None,
        })
    }
    async fn exit(exits: &mut mpsc::UnboundedReceiver<Input>) -> Input {
        tokio::time::timeout(Duration::from_secs(5), exits.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_pid_given_to_somebody_else_is_not_the_server() {
        let pidfile = dir("reuse").join("server.pid");
        let (tx, _exits) = mpsc::unbounded_channel();
        let mut somebody = sleeper();
        std::fs::write(&pidfile, somebody.id().to_string()).unwrap();
        let an_hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        std::fs::File::options().write(true).open(&pidfile).unwrap().set_modified(an_hour_ago).unwrap();
        let news = Watcher::new(pidfile.clone(), tx.clone()).poll();
        assert!(
            matches!(&news[..], [Input::ServerProblem(Some(why))] if why.contains("older than process")),
            "{news:?}"
        );
        std::fs::write(&pidfile, somebody.id().to_string()).unwrap();
        assert!(seen(&Watcher::new(pidfile, tx).poll()).is_some(), "written by its own time, it is");
        somebody.kill().unwrap();
        somebody.wait().unwrap();
    }

    #[tokio::test]
    async fn a_server_comes_late_is_killed_and_another_takes_its_place() {
        let pidfile = dir("life").join("server.pid");
        let _ = std::fs::remove_file(&pidfile);
        let (tx, mut exits) = mpsc::unbounded_channel();
        let mut watcher = Watcher::new(pidfile.clone(), tx);
        assert!(
            matches!(&watcher.poll()[..], [Input::ServerProblem(Some(why))] if why.contains("server.pid"))
        );
        assert!(watcher.poll().is_empty(), "the same problem is said once");

        let mut first = sleeper();
        std::fs::write(&pidfile, format!("{}\n", first.id())).unwrap();
        let news = watcher.poll();
        let (pid, incarnation) = seen(&news).unwrap();
        assert_eq!(pid, first.id());
        assert!(news.contains(&Input::ServerProblem(None)));
        assert!(watcher.poll().is_empty());

        watcher.kill(incarnation).unwrap();
        assert_eq!(exit(&mut exits).await, Input::ServerExited { pid, incarnation });
        watcher.ended(incarnation);
        // Not collected by its parent yet: a zombie is not a server.
        assert!(seen(&watcher.poll()).is_none());
        assert!(watcher.kill(incarnation).is_err());
        first.wait().unwrap();

        let mut second = sleeper();
        std::fs::write(&pidfile, second.id().to_string()).unwrap();
        let (_, next) = seen(&watcher.poll()).unwrap();
        assert_ne!(next, incarnation);
        second.kill().unwrap();
        second.wait().unwrap();
        assert!(
            matches!(exit(&mut exits).await, Input::ServerExited { incarnation, .. } if incarnation == next)
        );
    }

    #[tokio::test]
    async fn stale_and_malformed_pidfiles_are_named_problems() {
        let pidfile = dir("stale").join("server.pid");
        let (tx, _exits) = mpsc::unbounded_channel();
        let mut watcher = Watcher::new(pidfile.clone(), tx);
        let mut child = sleeper();
        let pid = child.id();
        child.kill().unwrap();
        child.wait().unwrap();
        for (text, word) in
            [("0".into(), "no process id"), (pid.to_string(), "exists"), ("x".into(), "no process id")]
        {
            std::fs::write(&pidfile, text).unwrap();
            let news = watcher.poll();
            assert!(matches!(&news[..], [Input::ServerProblem(Some(why))] if why.contains(word)), "{news:?}");
        }
    }

    #[tokio::test]
    async fn an_agent_that_comes_back_knows_the_server_again_or_knows_it_dead() {
        let mut child = sleeper();
        let pid = child.id();
        let incarnation = incarnation_of(pid, start_ticks(pid).unwrap());
        let (tx, mut exits) = mpsc::unbounded_channel();
        let mut watcher = Watcher::new("/nonexistent".into(), tx.clone());
        assert_eq!(watcher.adopt(incarnation), Some(Input::ServerSeen { pid, incarnation }));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(exit(&mut exits).await, Input::ServerExited { pid, incarnation });
        let mut later = Watcher::new("/nonexistent".into(), tx);
        assert_eq!(later.adopt(incarnation), Some(Input::ServerExited { pid, incarnation }));
        let own = std::process::id();
        let stranger = incarnation_of(own, start_ticks(own).unwrap() - 1);
        assert!(
            matches!(later.adopt(stranger), Some(Input::ServerExited { .. })),
            "the pid was given to another process"
        );
        assert_eq!(later.adopt(Incarnation(0)), None);
    }
}
