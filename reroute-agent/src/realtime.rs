//! A thread that runs when it must: SCHED_FIFO and locked memory. What decides over life and death runs on it;
//! HTTP for operators and metrics runs elsewhere.
#![allow(unsafe_code)]

use anyhow::Context;

/// Priority of the agent's thread: above everything timeshared, below the kernel's own threads (50).
const PRIORITY: i32 = 10;

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

fn become_fifo() -> anyhow::Result<()> {
    let param = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: `param` outlives the call; pid 0 is the calling thread.
    let rc = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &param) };
    if rc != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot become SCHED_FIFO (needs CAP_SYS_NICE)");
    }
    Ok(())
}

/// Runs `work` on a real-time thread with a tokio runtime of its own, until it ends.
pub fn run<T: Send + 'static>(
    name: &str,
    work: impl AsyncFnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<std::thread::JoinHandle<anyhow::Result<T>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        enter()?;
        runtime.block_on(work())
    })?;
    Ok(thread)
}
