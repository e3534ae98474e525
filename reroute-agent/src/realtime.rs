//! A thread that runs when it must: SCHED_FIFO and locked memory. What decides over life and death runs on it;
//! HTTP for operators and metrics runs elsewhere.
#![allow(unsafe_code)]

use anyhow::Context;
use std::time::Duration;

/// Priority of the agent's thread: above everything timeshared, below the kernel's own threads (50).
const PRIORITY: i32 = 10;

/// Whatever is under way aside when a role ends has so long to finish.
const FINISH: Duration = Duration::from_secs(1);

/// Makes the calling thread SCHED_FIFO and locks the process's memory. Errors: missing rights (CAP_SYS_NICE, CAP_IPC_LOCK).
pub fn enter() -> anyhow::Result<()> {
    rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE)
        .context("cannot lock memory (needs CAP_IPC_LOCK or a higher memlock limit)")?;
    become_fifo()
}

/// Whether a thread of this process may become SCHED_FIFO: tried on one that ends at once.
pub fn allowed() -> anyhow::Result<()> {
    std::thread::spawn(become_fifo).join().map_err(|_| anyhow::anyhow!("the thread has panicked"))?
}

/// Makes the calling thread SCHED_FIFO. Errors: missing rights (CAP_SYS_NICE).
pub fn become_fifo() -> anyhow::Result<()> {
    let param = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: `param` outlives the call; pid 0 is the calling thread.
    let rc = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &param) };
    if rc != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot become SCHED_FIFO (needs CAP_SYS_NICE)");
    }
    Ok(())
}

/// Above everything timeshared, below ourselves.
const DYING: i32 = 1;

/// A process that was sent SIGKILL runs its end, each thread its own, before everything timeshared. What goes wrong is
/// left: it dies all the same, later.
pub fn hasten_end(pid: u32) {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
    let param = libc::sched_param { sched_priority: DYING };
    for thread in threads.flatten() {
        let Some(tid) = thread.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // SAFETY: `param` outlives the call, which changes a scheduling policy and nothing else.
        unsafe { libc::sched_setscheduler(tid, libc::SCHED_FIFO, &param) };
    }
}

/// Runs `work` on a real-time thread with a tokio runtime of its own, until it ends.
pub fn run<T: Send + 'static>(
    name: &str,
    work: impl AsyncFnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<std::thread::JoinHandle<anyhow::Result<T>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        enter()?;
        to_the_end(runtime, work)
    })?;
    Ok(thread)
}

/// What is still under way aside when the work has ended may finish what it writes. It is not waited for without end: a
/// fence command runs for half a minute, and nobody leads until this process is gone and started anew.
fn to_the_end<T>(runtime: tokio::runtime::Runtime, work: impl AsyncFnOnce() -> T) -> T {
    let result = runtime.block_on(work());
    runtime.shutdown_timeout(FINISH);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    #[test]
    fn what_runs_aside_may_finish_and_holds_nobody_up() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let began = Instant::now();
        let (hold, held) = mpsc::channel::<()>();
        let work = async || {
            let (begun, begins) = tokio::sync::oneshot::channel();
            tokio::task::spawn_blocking(move || {
                let _ = begun.send(());
                let _ = held.recv_timeout(30 * FINISH);
            });
            begins.await.is_ok()
        };
        assert!(to_the_end(runtime(), work));
        assert!(began.elapsed() < 15 * FINISH, "{:?}", began.elapsed());
        drop(hold);

        let (done, is_done) = mpsc::channel();
        let work = async || {
            tokio::task::spawn_blocking(move || {
                std::thread::sleep(FINISH / 10);
                let _ = done.send(());
            });
            tokio::task::yield_now().await;
        };
        to_the_end(runtime(), work);
        assert_eq!(is_done.try_recv(), Ok(()));
    }
}
