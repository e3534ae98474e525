//! For tests: a network namespace of one's own. Needs root, and fails without.
#![allow(unsafe_code)]

use std::process::Command;
use std::time::{Duration, Instant};

/// Runs `test` on a thread in a new network namespace with `lo` up; the namespace ends with the thread.
pub fn run<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: CLONE_NEWNET alone shares or unshares no file descriptors, and only this thread moves.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .expect("a network namespace of one's own (are you root?)");
            ip("link set lo up");
            test()
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// [`run`], on a current-thread tokio runtime.
pub fn run_async<T: Send>(test: impl AsyncFnOnce() -> T + Send) -> T {
    run(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test()))
}

/// `ip ARGUMENTS` in the calling thread's namespace.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What `ip ARGUMENTS` prints.
pub fn ip_shows(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2");
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        std::thread::yield_now();
    }
}

/// Runs `work` in another network namespace, on the calling thread.
pub fn within<T>(namespace: std::os::fd::BorrowedFd<'_>, work: impl FnOnce() -> T) -> T {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace, network).unwrap();
    let result = work();
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&home), network).unwrap();
    result
}
