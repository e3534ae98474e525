//! Burdens: processes of the lab that only cost others something. Each is bounded in number and in time by itself, and by
//! the kernel (RLIMIT_CPU, RLIMIT_RTTIME); each dies with the lab, as everything in it does.
//!
//! A lab has one kernel. What starves here starves for all of its nodes at once, the writers and the lab itself among
//! them: that nobody draws a conclusion from being starved is shown, and that a healthy node sees through *another's*
//! starvation is not.

use crate::faults::Load;
use crate::sys;
use crate::topology::{NFS_PORT, Node};
use anyhow::Context;
use reroute_common::pulse;
use reroute_core::host::PulseFlag;
use reroute_core::host::wire::{Header, Request, encode};
use reroute_core::ids::{BootNs, Epoch, HostId, Incarnation, ScvmId};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// No burden goes on for longer than this.
pub const LONGEST: Duration = Duration::from_secs(20);
/// Below every agent's thread, above everything ordinary.
const PRIORITY: i32 = 1;
const NAP: Duration = Duration::from_micros(20);
/// Datagrams of one flood, at most; so many leave each millisecond.
const PACKETS: u32 = 300_000;
const PER_MS: u32 = 20;

/// Is a burden until it is killed, or [`LONGEST`] has passed. Packets go from this host to this SCVM.
pub fn run(load: Load, host: u32, scvm: u32) -> anyhow::Result<()> {
    let until = Instant::now() + LONGEST;
    let cpus = std::thread::available_parallelism()?.get();
    bound(load, cpus)?;
    let threads = match load {
        Load::Cpu => 4 * cpus,
        Load::Fifo => 2 * cpus,
        Load::Timers => 4 * cpus,
        Load::Packets => return flood(host, scvm, until),
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(move || thread(load, until))).collect();
        let ended =
            threads.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
        ended.collect()
    })
}

/// The kernel ends this process if it does not end itself.
fn bound(load: Load, cpus: usize) -> anyhow::Result<()> {
    let seconds = LONGEST.as_secs() + 1;
    let limit = |n: u64| Rlimit { current: Some(n), maximum: Some(n) };
    setrlimit(Resource::Cpu, limit(seconds * cpus as u64)).context("RLIMIT_CPU")?;
    if load == Load::Fifo {
        // Of one thread without a pause, us.
        setrlimit(Resource::Rttime, limit(seconds * 1_000_000)).context("RLIMIT_RTTIME")?;
    }
    Ok(())
}

fn thread(load: Load, until: Instant) -> anyhow::Result<()> {
    match load {
        Load::Fifo => sys::become_fifo(PRIORITY).context("cannot become SCHED_FIFO")?,
        Load::Timers => rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?,
        Load::Cpu | Load::Packets => {}
    }
    while Instant::now() < until {
        match load {
            Load::Timers => std::thread::sleep(NAP),
            _ => std::hint::spin_loop(),
        }
    }
    Ok(())
}

/// What is no pulse, a pulse that nobody of the cluster has signed, and calls by a protocol that is not served.
fn flood(host: u32, scvm: u32, until: Instant) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Node::Host(host).storage(), 0))?;
    let to = |port: u16| SocketAddr::from((Node::Scvm(scvm).storage(), port));
    let short: &[u8] = b"no pulse";
    let request = Request { flag: PulseFlag::Release, epoch: Epoch(u64::MAX), scvm_boot: 0, scvm_stamp: 0 };
    let forged = encode(&Header {
        key: [0; 2],
        host: HostId(host),
        scvm: ScvmId(scvm),
        incarnation: Incarnation(1),
        sequence: 1,
        time: BootNs(1),
        request,
    });
    let kinds: [(SocketAddr, &[u8]); 3] =
        [(to(pulse::PORT), short), (to(pulse::PORT), &forged), (to(NFS_PORT), short)];
    let mut sent = 0;
    let mut next = Instant::now();
    while sent < PACKETS && Instant::now() < until {
        for (to, bytes) in kinds.iter().cycle().take(PER_MS as usize) {
            // A full queue, or a port that nobody listens on: lost, as such things are.
            let _ = socket.send_to(bytes, to);
        }
        sent += PER_MS;
        next += Duration::from_millis(1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}
