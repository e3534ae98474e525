//! The storage side of an instance. With the check it is a process of its own, joined by a socket pair: an access
//! server that is stopped in the middle of an operation must not stop the storage with a client's lease locked, as it
//! would not in a real cluster. It ends when its server ends. Without the check operations run in the server itself,
//! so that nothing outlives a killed one.
//!
//! Messages (SOCK_SEQPACKET, little endian): client u64, epoch u64, procedure u32, arguments in XDR; answered by a
//! byte (0 result, 1 refused, 2 garbage arguments, 3 failed) and the result in XDR, the current epoch, or a text.

use crate::cli::Place;
use crate::mutate::{Mutator, Options};
use crate::ownership::{AppliedLog, Leases, Owner, Refused};
use crate::read::TRANSFER;
use crate::store::Store;
use anyhow::Context;
use nfs3_types::nfs3::NFS_PROGRAM;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

const HEADER: usize = 20;
const MESSAGE: usize = TRANSFER as usize + 4096;

/// What became of an operation.
#[derive(Debug)]
pub enum Outcome {
    Result(Vec<u8>),
    Refused(Refused),
    Garbage,
    Failed(String),
}

pub enum Storage {
    Direct(Mutex<Mutator>),
    Side(Mutex<Side>),
}

pub struct Side {
    socket: OwnedFd,
    child: Child,
}

impl Storage {
    pub fn direct(place: &Place, store: Arc<Store>) -> anyhow::Result<Storage> {
        Ok(Storage::Direct(Mutex::new(mutator(place, store)?)))
    }

    /// Starts the storage side. Gives its process id too.
    pub fn side(place: &Place) -> anyhow::Result<(Storage, u32)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context("socketpair")?;
        let mut command = Command::new(std::env::current_exe().context("own path")?);
        command.arg("storage").arg("--store").arg(&place.store).arg("--meta").arg(place.meta());
        for (flag, value) in [("--server-id", place.server_id), ("--verifier", place.verifier)] {
            if let Some(value) = value {
                command.arg(flag).arg(value.to_string());
            }
        }
        for (flag, on) in [("--no-fsync", place.no_fsync), ("--volatile", place.volatile)] {
            if on {
                command.arg(flag);
            }
        }
        let child = command.stdin(Stdio::from(theirs)).spawn().context("starting the storage side")?;
        let pid = child.id();
        Ok((Storage::Side(Mutex::new(Side { socket: ours, child })), pid))
    }

    /// Ends the storage side and reaps it; an operation under way is finished.
    pub fn end(&self) -> std::io::Result<()> {
        if let Storage::Side(side) = self {
            let mut side = side.lock().unwrap_or_else(PoisonError::into_inner);
            rustix::net::shutdown(&side.socket, rustix::net::Shutdown::Both)?;
            side.child.wait()?;
        }
        Ok(())
    }

    /// Runs one changing procedure to its end; blocks.
    pub fn call(&self, owner: Owner, procedure: NFS_PROGRAM, args: &[u8]) -> Outcome {
        match self {
            Storage::Direct(mutator) => {
                let mut mutator = mutator.lock().unwrap_or_else(PoisonError::into_inner);
                run(&mut mutator, owner, procedure, args)
            }
            Storage::Side(side) => {
                let side = side.lock().unwrap_or_else(PoisonError::into_inner);
                ask(&side.socket, owner, procedure, args).unwrap_or_else(|e| Outcome::Failed(e.to_string()))
            }
        }
    }
}

fn mutator(place: &Place, store: Arc<Store>) -> anyhow::Result<Mutator> {
    let server = place.server_id.unwrap_or_else(|| u64::from(std::process::id()));
    let meta = place.meta();
    let log = AppliedLog::open(&meta, server).with_context(|| format!("log in {}", meta.display()))?;
    let verifier = place.verifier.unwrap_or_default();
    Ok(Mutator::new(store, log, Options { fsync: !place.no_fsync, volatile: place.volatile, verifier }))
}

fn run(mutator: &mut Mutator, owner: Owner, procedure: NFS_PROGRAM, args: &[u8]) -> Outcome {
    let result = mutator.call(owner, procedure, args);
    synced(mutator, result)
}

fn synced(mutator: &mut Mutator, result: crate::read::Encoded) -> Outcome {
    match (result, mutator.sync()) {
        (_, Err(why)) => Outcome::Failed(format!("fdatasync: {why}")),
        (Ok(bytes), Ok(())) => Outcome::Result(bytes),
        (Err(_), Ok(())) => Outcome::Garbage,
    }
}

fn ask(socket: &OwnedFd, owner: Owner, procedure: NFS_PROGRAM, args: &[u8]) -> std::io::Result<Outcome> {
    let mut message = Vec::with_capacity(HEADER + args.len());
    message.extend_from_slice(&owner.client.to_le_bytes());
    message.extend_from_slice(&owner.epoch.to_le_bytes());
    message.extend_from_slice(&(procedure as u32).to_le_bytes());
    message.extend_from_slice(args);
    retry(|| send(socket, &message, SendFlags::NOSIGNAL))?;
    // Answers carry no data: attributes and handles only.
    let mut answer = [0; 4096];
    let len = retry(|| recv(socket, &mut answer[..], RecvFlags::empty()))?.0;
    let Some((kind, rest)) = answer[..len].split_first() else {
        return Ok(Outcome::Failed("the storage side has ended".to_owned()));
    };
    Ok(match kind {
        0 => Outcome::Result(rest.to_vec()),
        1 => Outcome::Refused(Refused { current: word(rest, 0) }),
        2 => Outcome::Garbage,
        _ => Outcome::Failed(String::from_utf8_lossy(rest).into_owned()),
    })
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// The storage side's process: serves until the server's end of the socket is closed.
pub fn serve(place: &Place) -> anyhow::Result<()> {
    let socket = &std::io::stdin();
    let store = Arc::new(Store::open(&place.store)?);
    let mut mutator = mutator(place, store)?;
    let mut leases = Leases::new(&place.meta())?;
    let mut message = vec![0; MESSAGE];
    loop {
        let len = match retry(|| recv(socket, &mut message[..], RecvFlags::empty())) {
            Ok((len, _)) if len > 0 => len,
            // The server has ended; RESET when it left an answer unread.
            Ok(_) => return Ok(()),
            Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            Err(why) => return Err(why).context("the server's socket"),
        };
        let outcome = match message.get(..len).filter(|m| m.len() >= HEADER) {
            None => Outcome::Failed("message without a header".to_owned()),
            Some(message) => {
                let owner = Owner { client: word(message, 0), epoch: word(message, 8) };
                let procedure =
                    message[16..HEADER].try_into().map(u32::from_le_bytes).map_err(std::io::Error::other)?;
                match NFS_PROGRAM::try_from(procedure) {
                    Err(_) => Outcome::Garbage,
                    Ok(procedure) => {
                        match leases.guarded(owner, || mutator.call(owner, procedure, &message[HEADER..])) {
                            Ok(Ok(result)) => synced(&mut mutator, result),
                            Ok(Err(refused)) => Outcome::Refused(refused),
                            Err(why) => Outcome::Failed(format!("lease: {why}")),
                        }
                    }
                }
            }
        };
        let (kind, rest) = match outcome {
            Outcome::Result(bytes) => (0, bytes),
            Outcome::Refused(refused) => (1, refused.current.to_le_bytes().to_vec()),
            Outcome::Garbage => (2, Vec::new()),
            Outcome::Failed(why) => (3, why.into_bytes()),
        };
        let answer = [&[kind], rest.as_slice()].concat();
        match retry(|| send(socket, &answer, SendFlags::NOSIGNAL)) {
            Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        };
    }
}
