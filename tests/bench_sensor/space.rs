//! Namespaces, a wire between two of them, and threads that run when they must.
#![allow(unsafe_code)]

use anyhow::{Context, bail};
use lab::namespace::NetNs;
use reroute_agent::sensor::{Pass, attach_pass};
use rustix::thread::UnshareFlags;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where everything of this process lies that is a file: a tmpfs that nobody else sees.
const FILES: &str = "/mnt";

/// Namespaces of this process: network and mounts.
pub struct Space {
    bpffs: PathBuf,
}

impl Space {
    /// Moves the calling thread, and all that it starts, into new namespaces: call it before there are others.
    pub fn enter() -> anyhow::Result<Space> {
        if !rustix::process::geteuid().is_root() {
            bail!("this makes network namespaces and loads eBPF programs: run it as root");
        }
        // SAFETY: namespaces only, not FILES: no descriptor changes its meaning.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
            .context("making namespaces")?;
        run("mount --make-rprivate /")?;
        run(&format!("mount -t tmpfs tmpfs {FILES}"))?;
        let bpffs = PathBuf::from(FILES).join("bpf");
        std::fs::create_dir(&bpffs)?;
        run(&format!("mount -t bpf bpf {}", bpffs.display()))?;
        run("ip link set lo up")?;
        Ok(Space { bpffs })
    }

    /// A place for the pins of one sensor.
    pub fn pins(&self, name: &str) -> PathBuf {
        self.bpffs.join(name)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(FILES).join(name)
    }
}

/// Runs a command that must succeed.
pub fn run(command: &str) -> anyhow::Result<()> {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap_or_default())
        .args(words)
        .output()
        .with_context(|| format!("cannot run `{command}`"))?;
    if !output.status.success() {
        bail!("`{command}`: {} {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The client's side: a namespace at the other end of the veth pair `s0`-`c0`. Both ends go when it goes.
pub struct Wire {
    pub client: NetNs,
    /// What sends `XDP_TX` to the client needs a program there.
    _pass: Pass,
}

impl Wire {
    pub fn new() -> anyhow::Result<Wire> {
        let client = NetNs::new()?;
        run(&format!("ip link add s0 type veth peer name c0 netns {}", client.path()))?;
        run("ip addr add 10.10.85.1/24 dev s0")?;
        run("ip addr replace 192.168.33.2/32 dev lo")?;
        run("ip link set s0 up")?;
        let pass = client.run(|| -> anyhow::Result<Pass> {
            run("ip link set lo up")?;
            run("ip addr add 10.10.85.11/24 dev c0")?;
            run("ip link set c0 up")?;
            run("ip route add 192.168.33.2/32 via 10.10.85.1")?;
            attach_pass("c0").context("on c0")
        })??;
        Ok(Wire { client, _pass: pass })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = run("ip link del s0");
    }
}

/// Makes the calling thread SCHED_FIFO.
pub fn fifo(priority: i32) -> anyhow::Result<()> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` outlives the call; 0 is the calling thread.
    let rc = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &param) };
    if rc != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot become SCHED_FIFO");
    }
    Ok(())
}

/// Makes the calling thread an ordinary one again.
pub fn timeshared() -> anyhow::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: as above.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &param) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot become SCHED_OTHER");
    }
    Ok(())
}

/// Of the bench's own threads that must not be late, above [`Hogs`].
pub const PRIORITY: i32 = 20;

/// One SCHED_FIFO thread per CPU that does nothing but spin, when asked to, for as long as it was asked to.
pub struct Hogs {
    until: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Hogs {
    pub fn new() -> anyhow::Result<Hogs> {
        let cpus = std::thread::available_parallelism()?.get();
        let (until, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (told, ready) = std::sync::mpsc::channel();
        let mut hogs = Hogs { until, over, threads: Vec::new() };
        for cpu in 0..cpus {
            let (until, over, told) = (hogs.until.clone(), hogs.over.clone(), told.clone());
            hogs.threads.push(std::thread::Builder::new().name("hog".into()).spawn(move || {
                let mut set = rustix::thread::CpuSet::new();
                set.set(cpu);
                let pinned = rustix::thread::sched_setaffinity(None, &set);
                let _ = told.send(pinned.map_err(Into::into).and_then(|()| fifo(1)));
                while !over.load(Ordering::Relaxed) {
                    if reroute_agent::clock::now().0 >= until.load(Ordering::Relaxed) {
                        std::thread::park_timeout(std::time::Duration::from_millis(200));
                    }
                }
            })?);
        }
        for _ in 0..cpus {
            ready.recv()??;
        }
        Ok(hogs)
    }

    /// They spin from now on, until this much later at most.
    pub fn spin(&self, time: std::time::Duration) {
        let until = reroute_agent::clock::now().0 + time.as_nanos() as u64;
        self.until.store(until, Ordering::Relaxed);
        for thread in &self.threads {
            thread.thread().unpark();
        }
    }

    pub fn rest(&self) {
        self.until.store(0, Ordering::Relaxed);
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
