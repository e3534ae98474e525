//! Frames that are late: read from a TAP, put back on the way they were on.

use super::program::MARK;
use super::{Direction, Port, Rule};
use crate::sys::{self, PacketSocket};
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Frames a NIC keeps for a guest that does not fetch them.
const RING: usize = 1024;
/// Frames on their way at once, at most.
const IN_FLIGHT: usize = 200_000;
const FRAME: usize = 65_600;
const BROADCAST_BIT: u8 = 1;

pub struct Late {
    pub interface: u32,
    /// A byte: let go of what is held. Closed: nothing comes any more.
    thread: PipeWriter,
}

/// Where frames are put back.
struct WayBack {
    socket: PacketSocket,
    /// Interfaces with the address behind each; the only one takes everything.
    ports: Vec<(u32, [u8; 6])>,
    all: bool,
}

impl Late {
    pub fn start(port: &Port, direction: Direction, rule: Rule) -> anyhow::Result<Late> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("late{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let others = match direction {
            Direction::ToNode => vec![(port.interface.clone(), [0; 6])],
            Direction::FromNode => port.others.clone(),
        };
        let made = port.ns.run(|| -> anyhow::Result<_> {
            let tap = sys::open_tap(&name).context("no TAP")?;
            sys::set_link(&name, true, || ())?;
            let index = |name: &str| {
                reroute_agent::config::interface_index(name).with_context(|| format!("no {name}"))
            };
            let ports = others.iter().map(|(name, mac)| Ok((index(name)?, *mac)));
            let ports = ports.collect::<anyhow::Result<Vec<_>>>()?;
            let all = direction == Direction::ToNode;
            Ok((tap, index(&name)?, WayBack { socket: PacketSocket::open(MARK)?, ports, all }))
        })?;
        let (tap, interface, back) = made?;
        let (told, tell) = std::io::pipe()?;
        std::thread::Builder::new().name("late".into()).spawn(move || {
            let _ = run(tap, told, &back, rule);
        })?;
        Ok(Late { interface, thread: tell })
    }

    pub fn release(&self) {
        let _ = (&self.thread).write_all(&[0]);
    }
}

/// `told`: see [`Late::thread`].
fn run(mut tap: File, mut told: PipeReader, back: &WayBack, rule: Rule) -> anyhow::Result<()> {
    let (mut delay, mut room) = match rule {
        Rule::Delay(delay) => (Some(delay), IN_FLIGHT),
        _ => (None, RING),
    };
    let mut queue: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut ends = false;
    let mut frame = vec![0; FRAME];
    loop {
        let now = Instant::now();
        while let Some(delay) = delay
            && let Some((came, frame)) = queue.front()
            && now.duration_since(*came) >= delay
        {
            back.put(frame);
            queue.pop_front();
        }
        let due = queue.front().and_then(|(came, _)| Some((*came + delay?).saturating_duration_since(now)));
        if ends && due.is_none() {
            return Ok(());
        }
        let timeout = due.map(|d| Timespec { tv_sec: d.as_secs() as i64, tv_nsec: d.subsec_nanos().into() });
        let mut fds = vec![PollFd::new(&tap, PollFlags::IN)];
        if !ends {
            fds.push(PollFd::new(&told, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            let len = tap.read(&mut frame)?;
            if queue.len() < room {
                queue.push_back((Instant::now(), frame[..len].to_vec()));
            }
        }
        if ready.get(1) == Some(&true) && told.read(&mut [0])? == 0 {
            ends = true;
        } else if ready.get(1) == Some(&true) && delay.is_none() {
            (delay, room) = (Some(Duration::ZERO), IN_FLIGHT);
        }
    }
}

impl WayBack {
    /// A frame that cannot be put back is lost, as frames are.
    fn put(&self, frame: &[u8]) {
        let to_all = self.all || frame.first().is_some_and(|b| b & BROADCAST_BIT != 0);
        for (interface, _) in self.ports.iter().filter(|(_, mac)| to_all || frame.starts_with(mac)) {
            let _ = self.socket.send(*interface, frame);
        }
    }
}
