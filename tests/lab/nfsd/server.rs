//! Connections: one task reads a connection's calls, each call runs in a task of its own and answers when it is done.
//! A call that was read runs to its end even when its connection is gone: as in a real server, that is the danger.

use crate::gate::{Caller, Class, Gate};
use crate::mutate;
use crate::ownership::{self, EpochError, Owner};
use crate::read;
use crate::rpc::{self, Answer, Call};
use crate::storage::{Outcome, Storage};
use crate::store::{self, Store, file_id};
use nfs3_types::mount::{self, MOUNT_PROGRAM, fhandle3, mountres3, mountres3_ok, mountstat3};
use nfs3_types::nfs3::{self, NFS_PROGRAM};
use nfs3_types::xdr_codec::{Opaque, Pack};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OnceCell};

#[derive(Default)]
pub struct Counts {
    pub connections: AtomicU64,
    pub open: AtomicU64,
    /// Calls read, calls answered, by class.
    pub calls: [AtomicU64; 4],
    pub replies: [AtomicU64; 4],
    /// Operations that the storage refused because a newer epoch of the client had written.
    pub refused_stale: AtomicU64,
    /// Connections of clients without an epoch.
    pub refused_unknown: AtomicU64,
    pub failed: AtomicU64,
}

pub struct Server {
    pub store: Arc<Store>,
    pub storage: Storage,
    pub gate: Gate,
    pub counts: Counts,
    pub export: String,
    pub epoch_file: Option<PathBuf>,
    pub check: bool,
    /// Connections by client address.
    pub clients: Mutex<BTreeMap<IpAddr, u64>>,
}

struct Connection {
    server: Arc<Server>,
    peer: SocketAddr,
    number: u64,
    owner: OnceCell<Option<Owner>>,
    write: tokio::sync::Mutex<OwnedWriteHalf>,
    close: Notify,
}

impl Server {
    pub async fn listen(self: Arc<Server>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    tokio::spawn(self.clone().connection(stream, peer));
                }
                Err(why) => {
                    eprintln!("reroute-nfsd: accept: {why}");
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Server>, stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let number = self.counts.connections.fetch_add(1, Ordering::Relaxed) + 1;
        self.counts.open.fetch_add(1, Ordering::Relaxed);
        self.client(peer.ip(), 1);
        let (read, write) = stream.into_split();
        let mut read = tokio::io::BufReader::with_capacity(1 << 16, read);
        let connection = Arc::new(Connection {
            server: self.clone(),
            peer,
            number,
            owner: OnceCell::new(),
            write: tokio::sync::Mutex::new(write),
            close: Notify::new(),
        });
        loop {
            let call = tokio::select! {
                biased;
                () = connection.close.notified() => break,
                call = rpc::read(&mut read) => call,
            };
            match call {
                Ok(Some(call)) => {
                    tokio::spawn(connection.clone().call(call));
                }
                Ok(None) => break,
                Err(why) => {
                    if !matches!(why, rpc::StreamError::Io(_)) {
                        eprintln!("reroute-nfsd: {peer}: {why}");
                    }
                    break;
                }
            }
        }
        // The writing half lives in calls in progress; nothing more may leave.
        let _ = connection.write.lock().await.shutdown().await;
        self.client(peer.ip(), -1);
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
    }

    fn client(&self, address: IpAddr, change: i64) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(address).or_default();
        *count = count.saturating_add_signed(change);
        clients.retain(|_, count| *count > 0);
    }

    fn bind(&self, peer: IpAddr) -> Result<Owner, EpochError> {
        let address = match peer {
            IpAddr::V4(v4) => u64::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6) as u64,
        };
        let Some(path) = &self.epoch_file else { return Ok(Owner { client: address, epoch: 0 }) };
        match ownership::lookup(path, peer) {
            Err(_) if !self.check => Ok(Owner { client: address, epoch: 0 }),
            other => other,
        }
    }
}

impl Connection {
    async fn call(self: Arc<Connection>, call: Call) {
        let class = match (call.program, NFS_PROGRAM::try_from(call.procedure)) {
            (nfs3::PROGRAM, Ok(procedure)) => Class::of(procedure),
            (_, Ok(NFS_PROGRAM::NFSPROC3_NULL)) => Class::Null,
            _ => Class::Metadata,
        };
        let counts = &self.server.counts;
        counts.calls[class as usize].fetch_add(1, Ordering::Relaxed);
        // The owner is who it was when the call arrived, however late the call runs.
        let owner = if class == Class::Null { None } else { self.owner().await };
        self.server.gate.pass(class, Caller { address: self.peer.ip(), connection: self.number }).await;
        let answer = match (class, owner) {
            (Class::Null, _) => self.answer(&call, None).await,
            (_, None) => None,
            (_, owner) => self.answer(&call, owner).await,
        };
        let Some(answer) = answer else {
            self.close.notify_one();
            return;
        };
        let bytes = rpc::reply(call.xid, &answer);
        if self.write.lock().await.write_all(&bytes).await.is_ok() {
            counts.replies[class as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn owner(&self) -> Option<Owner> {
        let bind = async || match self.server.bind(self.peer.ip()) {
            Ok(owner) => Some(owner),
            Err(why) => {
                eprintln!("reroute-nfsd: {}: closed: {why}", self.peer);
                self.server.counts.refused_unknown.fetch_add(1, Ordering::Relaxed);
                None
            }
        };
        *self.owner.get_or_init(bind).await
    }

    /// None: the connection must be closed, without an answer.
    async fn answer(self: &Arc<Connection>, call: &Call, owner: Option<Owner>) -> Option<Answer> {
        match (call.program, call.version) {
            (nfs3::PROGRAM, nfs3::VERSION) => {}
            (mount::PROGRAM, mount::VERSION) => return Some(self.mount(call)),
            (nfs3::PROGRAM | mount::PROGRAM, _) => return Some(Answer::NoVersion(3)),
            _ => return Some(Answer::NoProgram),
        }
        let Ok(procedure) = NFS_PROGRAM::try_from(call.procedure) else { return Some(Answer::NoProcedure) };
        let Some(owner) = owner.filter(|_| mutate::changes(procedure)) else {
            return Some(match read::call(&self.server.store, procedure, call.args()) {
                None => Answer::NoProcedure,
                Some(Ok(bytes)) => Answer::Success(bytes),
                Some(Err(_)) => Answer::Garbage,
            });
        };
        let (server, args) = (self.server.clone(), call.args().to_vec());
        let outcome = tokio::task::spawn_blocking(move || server.storage.call(owner, procedure, &args)).await;
        match outcome {
            Ok(Outcome::Result(bytes)) => Some(Answer::Success(bytes)),
            Ok(Outcome::Garbage) => Some(Answer::Garbage),
            Ok(Outcome::Refused(refused)) => {
                self.server.counts.refused_stale.fetch_add(1, Ordering::Relaxed);
                eprintln!(
                    "reroute-nfsd: {}: {procedure} of client {} at epoch {} refused: epoch {} has written; closed",
                    self.peer, owner.client, owner.epoch, refused.current
                );
                None
            }
            Ok(Outcome::Failed(why)) => self.failed(&why),
            Err(why) => self.failed(&why.to_string()),
        }
    }

    fn failed(&self, why: &str) -> Option<Answer> {
        self.server.counts.failed.fetch_add(1, Ordering::Relaxed);
        eprintln!("reroute-nfsd: {}: {why}", self.peer);
        Some(Answer::SystemError)
    }

    fn mount(&self, call: &Call) -> Answer {
        let packed = |result: mountres3<'_>| {
            let mut bytes = Vec::new();
            result.pack(&mut bytes).map_or(Answer::SystemError, |_| Answer::Success(bytes))
        };
        match MOUNT_PROGRAM::try_from(call.procedure) {
            Ok(MOUNT_PROGRAM::MOUNTPROC3_MNT) => {
                let Ok(path) = read::unpack::<mount::dirpath<'_>>(call.args()) else {
                    return Answer::Garbage;
                };
                let path = String::from_utf8_lossy(&path.0.0).into_owned();
                let Some(root) = self.exported(&path) else {
                    return packed(mountres3::Err(mountstat3::MNT3ERR_NOENT));
                };
                let fhandle = fhandle3(Opaque::owned(root.data.0.into_owned()));
                // AUTH_NONE, AUTH_UNIX
                packed(mountres3::Ok(mountres3_ok { fhandle, auth_flavors: vec![0, 1] }))
            }
            Ok(MOUNT_PROGRAM::MOUNTPROC3_EXPORT) => {
                let name = self.server.export.as_bytes();
                let padded = name.len().next_multiple_of(4);
                let mut bytes = 1u32.to_be_bytes().to_vec();
                bytes.extend_from_slice(&(name.len() as u32).to_be_bytes());
                bytes.extend_from_slice(name);
                bytes.resize(8 + padded, 0);
                // No groups, no further export.
                bytes.extend_from_slice(&[0; 8]);
                Answer::Success(bytes)
            }
            // An empty list.
            Ok(MOUNT_PROGRAM::MOUNTPROC3_DUMP) => Answer::Success(vec![0; 4]),
            Ok(_) => Answer::Success(Vec::new()),
            Err(_) => Answer::NoProcedure,
        }
    }

    /// The handle of the exported directory, or of a directory below it.
    fn exported(&self, path: &str) -> Option<nfs3::nfs_fh3> {
        let below = path.strip_prefix(self.server.export.trim_end_matches('/'))?;
        if !below.is_empty() && !below.starts_with('/') {
            return None;
        }
        let store = &self.server.store;
        let mut at = store.root_handle();
        for name in below.split('/').filter(|n| !n.is_empty()) {
            let dir = file_id(&at).ok()?;
            let (id, _) = store.seen(&store.child(dir, name.as_bytes()).ok()?).ok()?;
            at = store::handle(id);
        }
        store.dir(file_id(&at).ok()?).ok()?;
        Some(at)
    }
}
