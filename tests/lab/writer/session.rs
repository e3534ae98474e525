//! Mounting, and the few calls that are waited for one by one before the lanes start.

use crate::libnfs::{Client, Error, Handle, NFS3ERR_EXIST, Op, Reply};
use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

/// Least time between two connection attempts. libnfs itself has none: against a port that refuses it would take a
/// whole CPU and walk through its 500 source ports in a few milliseconds.
pub const RECONNECT_PAUSE: Duration = Duration::from_millis(1);

/// Mounts, again and again until `limit`.
pub fn mount(url: &str, limit: Duration) -> anyhow::Result<Client> {
    let deadline = Instant::now() + limit;
    loop {
        match Client::mount(url) {
            Ok(client) => return Ok(client),
            Err(why @ Error::Url { .. }) => return Err(why.into()),
            Err(why) if Instant::now() >= deadline => {
                return Err(why).with_context(|| format!("{url} could not be mounted within {limit:?}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Polls once and lets libnfs work. False: all calls were given back as `Lost`.
pub fn turn(client: &mut Client, timeout: Duration) -> anyhow::Result<bool> {
    let wanted = PollFlags::from_bits_truncate(client.events() as u16);
    let revents = match client.fd() {
        None => PollFlags::HUP,
        Some(fd) => {
            let mut fds = [PollFd::from_borrowed_fd(fd, wanted)];
            match poll(&mut fds, Some(&timespec(timeout))) {
                Ok(_) | Err(rustix::io::Errno::INTR) => fds[0].revents(),
                Err(why) => return Err(why).context("poll"),
            }
        }
    };
    Ok(revents.is_empty() || client.service(revents.bits() as i16))
}

pub fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: d.as_secs() as i64, tv_nsec: i64::from(d.subsec_nanos()) }
}

/// One call, waited for. Calls that got lost are made again until `deadline`.
pub fn call(client: &mut Client, op: Op, deadline: Instant) -> anyhow::Result<Reply> {
    client.submit(0, op.clone())?;
    loop {
        if !turn(client, Duration::from_millis(50))? || !client.connected() {
            std::thread::sleep(RECONNECT_PAUSE);
        }
        match client.take() {
            Some((_, Reply::Lost(why))) if Instant::now() >= deadline => bail!("no answer to {op:?}: {why}"),
            Some((_, Reply::Lost(_))) => client.submit(0, op.clone())?,
            Some((_, reply)) => return Ok(reply),
            None if Instant::now() >= deadline => bail!("no answer to {op:?}: the server does not reply"),
            None => {}
        }
    }
}

/// Makes directory `name` in `dir`; gives its handle.
pub fn make_dir(client: &mut Client, dir: &Handle, name: &str, deadline: Instant) -> anyhow::Result<Handle> {
    let op = Op::Mkdir { dir: dir.clone(), name: CString::new(name)? };
    make(client, dir, name, op, deadline)
}

/// Makes file `name` in `dir`; gives its handle.
pub fn make_file(client: &mut Client, dir: &Handle, name: &str, deadline: Instant) -> anyhow::Result<Handle> {
    let op = Op::Create { dir: dir.clone(), name: CString::new(name)? };
    make(client, dir, name, op, deadline)
}

fn make(client: &mut Client, dir: &Handle, name: &str, op: Op, deadline: Instant) -> anyhow::Result<Handle> {
    match call(client, op, deadline)? {
        // It did not exist before we started: an answer got lost on the way.
        Reply::Done | Reply::Status(NFS3ERR_EXIST) => {}
        other => bail!("making {name:?} was answered with {other:?}"),
    }
    let lookup = Op::Lookup { dir: dir.clone(), name: CString::new(name)? };
    match call(client, lookup, deadline)? {
        Reply::Found(handle) => Ok(handle),
        other => bail!("looking up {name:?} was answered with {other:?}"),
    }
}

/// Polls; the last descriptor is the one that wakes, and is emptied.
pub fn poll_all(fds: &mut [PollFd<'_>], timeout: Duration) -> anyhow::Result<()> {
    match poll(fds, Some(&timespec(timeout))) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(why) => return Err(why).context("poll"),
    }
    if let Some(wake) = fds.last().filter(|f| f.revents().contains(PollFlags::IN)) {
        let _ = rustix::io::read(wake, &mut [0; 8]);
    }
    Ok(())
}

/// Opens the local side of an exported file.
pub fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path)
        .with_context(|| format!("{} is not there: is --backing the exported directory?", path.display()))
}
