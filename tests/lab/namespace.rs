//! A network namespace without a name: it lives as long as its descriptor or a process in it.

use crate::sys;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

pub struct NetNs(File);

impl NetNs {
    pub fn new() -> io::Result<NetNs> {
        std::thread::scope(|scope| {
            join(scope.spawn(|| {
                sys::unshare(UnshareFlags::NEWNET)?;
                File::open("/proc/thread-self/ns/net").map(NetNs)
            }))?
        })
    }

    /// Opens the namespace at `path` (`/proc/PID/fd/N`, `/proc/PID/ns/net`).
    pub fn open(path: &str) -> io::Result<NetNs> {
        File::open(path).map(NetNs)
    }

    pub fn try_clone(&self) -> io::Result<NetNs> {
        self.0.try_clone().map(NetNs)
    }

    pub fn fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// For `ip ... netns PATH`, while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd())
    }

    /// Makes the calling thread, and what it starts, live in this namespace.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Runs `work` inside, on a thread of its own: processes it starts stay inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            join(scope.spawn(|| {
                self.enter()?;
                Ok(work())
            }))?
        })
    }
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> io::Result<T> {
    thread.join().map_err(|_| io::Error::other("a thread in a namespace panicked"))
}
