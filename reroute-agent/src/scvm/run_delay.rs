//! Whether a process waits for a CPU: then that it does not answer is load, not a hang.

use std::collections::BTreeMap;
use std::path::Path;

/// Of a process with more threads, these many are looked at.
const THREADS: usize = 256;

/// A thread's clocks, ns (`/proc/PID/task/TID/schedstat`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    on_cpu: u64,
    /// Time runnable without running. It grows only when the wait is over.
    delay: u64,
    /// Running, or waiting for a CPU, now.
    runnable: bool,
}

pub type Reading = BTreeMap<u32, Thread>;

/// What cannot be read (a thread that has ended, a kernel without these statistics) is left out.
pub fn read(pids: &[u32]) -> Reading {
    let mut reading = Reading::new();
    for pid in pids {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten().take(THREADS) {
            let tid = task.file_name().to_str().and_then(|name| name.parse().ok());
            if let (Some(tid), Some(thread)) = (tid, thread(&task.path())) {
                reading.insert(tid, thread);
            }
        }
    }
    reading
}

fn thread(task: &Path) -> Option<Thread> {
    let clocks = std::fs::read_to_string(task.join("schedstat")).ok()?;
    let mut clocks = clocks.split_ascii_whitespace();
    let (on_cpu, delay) = (clocks.next()?.parse().ok()?, clocks.next()?.parse().ok()?);
    let stat = std::fs::read_to_string(task.join("stat")).ok()?;
    // The name may hold anything: the state follows its last parenthesis.
    let state = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().next()?;
    Some(Thread { on_cpu, delay, runnable: state == "R" })
}

/// A thread waited for a CPU for a quarter of `took_ns` or more, or waits for one now and has had it for less than
/// half of that time. A thread that spins on a CPU of its own is not starved.
pub fn starved(before: &Reading, after: &Reading, took_ns: u64) -> bool {
    after.iter().any(|(tid, now)| {
        let was = before.get(tid).copied().unwrap_or_default();
        let ran = now.on_cpu.saturating_sub(was.on_cpu);
        let waited = now.delay.saturating_sub(was.delay);
        waited >= took_ns / 4 && waited > 0 || now.runnable && ran < took_ns / 2
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(on_cpu: u64, delay: u64, runnable: bool) -> Reading {
        BTreeMap::from([(1, Thread { on_cpu, delay, runnable })])
    }

    #[test]
    fn waiting_for_a_cpu_is_told_from_sleeping_and_from_spinning() {
        let before = one(1000, 500, false);
        assert!(!starved(&before, &one(1000, 500, false), 100), "asleep");
        assert!(!starved(&before, &one(1100, 500, true), 100), "spins");
        assert!(!starved(&before, &one(1010, 510, false), 100), "a short wait is every day");
        assert!(starved(&before, &one(1010, 560, false), 100), "has waited");
        assert!(starved(&before, &one(1000, 500, true), 100), "still waits");
        assert!(!starved(&Reading::new(), &Reading::new(), 100), "nothing is known");
    }

    #[test]
    fn our_own_threads_are_read() {
        let busy = std::time::Instant::now();
        while busy.elapsed() < std::time::Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        let pid = std::process::id();
        let reading = read(&[pid, u32::MAX]);
        assert!(reading.values().any(|t| t.runnable), "this one: {reading:?}");
        assert!(reading.values().any(|t| t.on_cpu > 0), "{reading:?}");
    }
}
