//! The mount of host1, its connection, and a writer on it.

use lab::namespace::NetNs;
use lab::topology::{NFS_PORT, SERVICE};
use lab::{Lab, Options, ServerKind, wait_for};
use reroute_agent::netlink::sockets::{self, Filter, Tcp};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For what takes no timer of sunrpc or TCP, under emulation.
pub const SOON: Duration = Duration::from_secs(30);
/// Who was not put to sleep by sunrpc, which does it for 3 s, connects within this.
pub const AWAKE: Duration = Duration::from_millis(2500);
const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;
const PAUSE: Duration = Duration::from_millis(5);

/// Kernel numbers of TCP's states.
pub const ESTABLISHED: u8 = 1;
pub const SYN_SENT: u8 = 2;

/// A lab in which nothing moves but by the test's hand.
pub fn by_hand(name: &str) -> Lab {
    let lab = Lab::start(Options::named(name).server(ServerKind::Controllable).without_agents());
    let lab = lab.expect("the lab starts");
    lab.drive(1, 1).expect("the route");
    lab
}

fn to_service() -> Filter {
    Filter { remote: Some((IpAddr::V4(SERVICE), Some(NFS_PORT))), ..Filter::default() }
}

/// Mounted while this lives.
pub struct Mount {
    host: NetNs,
    dir: PathBuf,
}

impl Mount {
    /// By the route that host1 has. A mount belongs to the network namespace of the thread that makes it.
    pub fn new(lab: &Lab) -> Mount {
        let host = lab.namespace("host1").expect("host1");
        let dir = std::env::temp_dir().join(format!("mount-{}", lab.id()));
        fs::create_dir_all(&dir).expect("a directory to mount at");
        let source = format!("{SERVICE}:{}", lab.root_inside().join("export").display());
        let options = format!(
            "vers=3,proto=tcp,hard,nolock,port={NFS_PORT},addr={SERVICE},\
             mountvers=3,mountproto=tcp,mountport={NFS_PORT},mountaddr={SERVICE}"
        );
        let options = CString::new(options).expect("no zero byte");
        let made = host.run(|| mount(&source, &dir, "nfs", MountFlags::empty(), Some(options.as_c_str())));
        made.expect("host1").unwrap_or_else(|error| panic!("mount {source}: {error}"));
        Mount { host, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Its connections in `state`: one, or none while there is none.
    pub fn connections(&self, state: u8) -> Vec<Tcp> {
        let all = self.host.run(|| sockets::list(&to_service())).expect("host1").expect("sock_diag");
        all.into_iter().filter(|tcp| tcp.state == state).collect()
    }

    /// The local end of its connection.
    pub fn source(&self) -> String {
        let sources: Vec<_> = self.connections(ESTABLISHED).iter().map(|tcp| tcp.local.to_string()).collect();
        sources.join(" ")
    }

    /// As the host's agent destroys them after it has moved the route. Counts those that were not closed already.
    pub fn destroy(&self) -> u32 {
        let open = |tcp: &Tcp| [ESTABLISHED, SYN_SENT].contains(&tcp.state);
        self.host.run(|| sockets::destroy_where(&to_service(), open)).expect("host1").expect("SOCK_DESTROY")
    }

    /// Of the TCP of host1, by its name in /proc/net/snmp. Where there are no agents nobody but the client counts:
    /// `ActiveOpens` are its connects, `EstabResets` its connections that were reset or destroyed.
    pub fn count(&self, name: &str) -> u64 {
        let read = || fs::read_to_string("/proc/thread-self/net/snmp").expect("/proc/net/snmp");
        counter(&self.host.run(read).expect("host1"), name).expect("a counter of TCP")
    }

    pub fn connects(&self) -> u64 {
        self.count("ActiveOpens")
    }

    /// Waits until `name` counts more than `known`. Gives the time it was seen at.
    pub fn wait_count(&self, name: &str, known: u64) -> Instant {
        let seen = wait_for(name, SOON, || {
            anyhow::ensure!(self.count(name) > known, "{known}");
            Ok(Instant::now())
        });
        seen.expect("it counts")
    }

    pub fn wait_connect(&self, known: u64) -> Instant {
        self.wait_count("ActiveOpens", known)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What hangs shall not keep the lab.
        let _ = unmount(&self.dir, UnmountFlags::FORCE | UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Of the two lines for TCP: names, then values.
fn counter(snmp: &str, name: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let at = lines.next()?.split_whitespace().position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

/// Destroys the connections that an SCVM's server still has, as its agent does before it admits a client.
pub fn purge(lab: &Lab, scvm: u32) -> u32 {
    let filter = Filter { local: Some((IpAddr::V4(SERVICE), Some(NFS_PORT))), ..Filter::default() };
    let ns = lab.namespace(&format!("scvm{scvm}")).expect("the SCVM");
    ns.run(|| sockets::destroy(&filter)).expect("the SCVM").expect("SOCK_DESTROY")
}

/// Writes numbered blocks, synchronously, one after the other.
pub struct Writing {
    stop: Arc<AtomicBool>,
    /// When each was done; its index is its number.
    done: Arc<Mutex<Vec<Instant>>>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Writing {
    pub fn start(path: &Path) -> Writing {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_SYNC)
            .open(path)
            .expect("a file on the mount");
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, told) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            for number in 0_u64.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all_at(&block(number), (number % BLOCKS) * BLOCK as u64)?;
                told.lock().unwrap().push(Instant::now());
                std::thread::sleep(PAUSE);
            }
            Ok(())
        });
        let writing = Writing { stop, done, thread };
        writing.wait(Instant::now(), 20);
        writing
    }

    fn after(&self, at: Instant) -> Vec<Instant> {
        self.done.lock().unwrap().iter().filter(|done| **done > at).copied().collect()
    }

    /// Waits until `count` writes were done after `at`. Gives the time from `at` to the first of them.
    pub fn wait(&self, at: Instant, count: usize) -> Duration {
        let waited = wait_for("writes", SOON, || {
            let done = self.after(at);
            anyhow::ensure!(done.len() >= count, "{} of {count} done", done.len());
            Ok(done[0] - at)
        });
        waited.expect("writes go on")
    }

    /// Waits until none has been done for `long`.
    pub fn wait_still(&self, long: Duration) {
        let still = wait_for("no write", SOON, || {
            let last = self.done.lock().unwrap().last().copied();
            anyhow::ensure!(last.is_some_and(|last| last.elapsed() >= long), "they go on");
            Ok(())
        });
        still.expect("writes stop");
    }

    /// The longest time without one that was done, from the last before `from` on.
    pub fn gap(&self, from: Instant) -> Duration {
        let done = self.done.lock().unwrap();
        let first = done.iter().rposition(|at| *at <= from).unwrap_or(0);
        done[first..].windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Stops, and compares what was acknowledged with what lies in `store`. Gives the number of writes.
    pub fn finish(self, store: &Path) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer").expect("no write fails");
        let count = self.done.lock().unwrap().len() as u64;
        let stored = fs::read(store).expect("the exported file");
        for number in count.saturating_sub(BLOCKS)..count {
            let at = (number % BLOCKS) as usize * BLOCK;
            assert!(stored[at..at + BLOCK] == block(number), "write {number} is not in the store");
        }
        count
    }
}

fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

/// Read from what the guest prints.
pub fn seen(what: std::fmt::Arguments<'_>) {
    println!("\nseen: {what}");
}
