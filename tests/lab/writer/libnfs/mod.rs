//! A safe face of libnfs 4.0: one NFSv3 session, raw calls, replies in a queue.
//!
//! What matters of its behaviour (seen in its source and measured): a FIN, a RST, an aborted or a refused connect
//! each make it open a new socket *at once*, without any backoff, on another privileged source port; every call
//! without a reply is sent again, with its XID, on the new connection. Only a connect that fails inside `connect(2)`
//! (no route) errors all calls back to us; `service` tries again then. Calls have no timeout: without a sign from
//! TCP it waits for ever. So whoever polls paces the attempts (`Client::connected`). What it has read of a reply it would
//! keep over the end of a connection: see `records`.
#![allow(unsafe_code)]

mod abi;
mod records;

use abi::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_int, c_void};
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;

/// `stable_how` of RFC 1813.
pub const UNSTABLE: u32 = 0;
pub const FILE_SYNC: u32 = 2;
pub const NFS3ERR_NOENT: u32 = 2;
pub const NFS3ERR_EXIST: u32 = 17;

/// For each call of a mount; libnfs takes whole seconds.
const MOUNT_TIMEOUT_MS: c_int = 2000;

/// A file handle, opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle(Vec<u8>);

/// A call. Names are single path components.
#[derive(Clone, Debug)]
pub enum Op {
    Write {
        file: Handle,
        offset: u64,
        data: Vec<u8>,
        stable: u32,
    },
    Read {
        file: Handle,
        offset: u64,
        count: u32,
    },
    Commit {
        file: Handle,
    },
    Lookup {
        dir: Handle,
        name: CString,
    },
    Mkdir {
        dir: Handle,
        name: CString,
    },
    /// GUARDED: an existing name is an error.
    Create {
        dir: Handle,
        name: CString,
    },
    Rename {
        dir: Handle,
        from: CString,
        to: CString,
    },
    Remove {
        dir: Handle,
        name: CString,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Written {
        count: u32,
        committed: u32,
        verifier: [u8; 8],
    },
    Committed {
        verifier: [u8; 8],
    },
    Data(Vec<u8>),
    Found(Handle),
    Done,
    /// The server answered with this `nfsstat3`.
    Status(u32),
    /// No answer, and libnfs will not send the call again: what it did at the server is unknown.
    Lost(String),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {why}")]
    Libnfs { what: &'static str, why: String },
    #[error("{url:?} is no nfs:// URL: {why}")]
    Url { url: String, why: String },
}

type Queue = Rc<RefCell<VecDeque<(u64, Reply)>>>;

/// Owned by libnfs from submission to callback; keeps the arguments alive that long.
struct Pending {
    tag: u64,
    op: Op,
    replies: Queue,
}

/// One mounted export. Not Send: libnfs contexts stay on their thread.
pub struct Client {
    nfs: *mut c_void,
    rpc: *mut c_void,
    root: Handle,
    replies: Queue,
}

impl Client {
    /// Mounts `url` (`nfs://ADDRESS/EXPORT?version=3&nfsport=..&mountport=..`). A server that refuses, or does not
    /// answer a call for 2 s, is an error; SYNs that get lost are waited for as long as TCP does.
    pub fn mount(url: &str) -> Result<Client, Error> {
        let text = CString::new(url).map_err(|e| Error::Url { url: url.to_owned(), why: e.to_string() })?;
        // SAFETY: no arguments; null is checked.
        let nfs = unsafe { nfs_init_context() };
        if nfs.is_null() {
            return Err(Error::Libnfs { what: "nfs_init_context", why: "out of memory".to_owned() });
        }
        let mut client =
            Client { nfs, rpc: std::ptr::null_mut(), root: Handle(Vec::new()), replies: Queue::default() };
        // SAFETY: the context is live, the URL is NUL-terminated.
        let parsed = unsafe { nfs_parse_url_dir(nfs, text.as_ptr()) };
        if parsed.is_null() {
            return Err(Error::Url { url: url.to_owned(), why: client.last_error() });
        }
        // SAFETY: server and path are strings of the parsed URL, freed only after the mount.
        let mounted = unsafe {
            nfs_set_timeout(nfs, MOUNT_TIMEOUT_MS);
            let rc = nfs_mount(nfs, (*parsed).server, (*parsed).path);
            nfs_destroy_url(parsed);
            rc
        };
        if mounted != 0 {
            return Err(client.error("nfs_mount"));
        }
        // SAFETY: the context is mounted: it has an RPC context and a root handle, copied here.
        unsafe {
            nfs_set_autoreconnect(nfs, -1);
            nfs_set_timeout(nfs, -1);
            client.rpc = nfs_get_rpc_context(nfs);
            client.root = copy_handle(&*nfs_get_rootfh(nfs));
            records::watch(nfs_get_fd(nfs));
        }
        Ok(client)
    }

    pub fn root(&self) -> &Handle {
        &self.root
    }

    /// The socket to poll. Its number stays over reconnects.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the context is live.
        let fd: RawFd = unsafe { nfs_get_fd(self.nfs) };
        // SAFETY: libnfs keeps this descriptor open until its next call, and this borrow ends before.
        (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Events to poll for (POLLIN, POLLOUT).
    pub fn events(&self) -> i16 {
        // SAFETY: the context is live.
        unsafe { nfs_which_events(self.nfs) as i16 }
    }

    /// Whether TCP is established, as far as libnfs has noticed.
    pub fn connected(&self) -> bool {
        self.events() & libc::POLLIN != 0
    }

    /// Reads, writes, reconnects. False: a reconnect failed at once and every call was answered with `Lost`.
    pub fn service(&mut self, revents: i16) -> bool {
        // SAFETY: the context is live.
        records::watch(unsafe { nfs_get_fd(self.nfs) });
        // SAFETY: the context is live; callbacks run inside and touch only their Pending and the reply queue.
        unsafe { nfs_service(self.nfs, c_int::from(revents)) == 0 }
    }

    /// The next reply, with its call's tag.
    pub fn take(&mut self) -> Option<(u64, Reply)> {
        self.replies.borrow_mut().pop_front()
    }

    /// Queues a call; its reply comes by `take`, exactly once.
    pub fn submit(&mut self, tag: u64, op: Op) -> Result<(), Error> {
        let pending = Box::into_raw(Box::new(Pending { tag, op, replies: self.replies.clone() }));
        // SAFETY: just made, and libnfs only hands it to `on_reply`, later.
        let op = unsafe { &(*pending).op };
        let (rpc, private) = (self.rpc, pending.cast::<c_void>());
        // SAFETY: arguments point into `pending`, which lives until the reply; libnfs encodes them before it returns.
        let rc = unsafe {
            match op {
                Op::Write { file, offset, data, stable } => {
                    let args = WriteArgs {
                        file: fh(file),
                        offset: *offset,
                        count: data.len() as u32,
                        stable: *stable,
                        data: Fh { len: data.len() as u32, val: data.as_ptr().cast() },
                    };
                    rpc_nfs3_write_async(rpc, on_reply, &args, private)
                }
                Op::Read { file, offset, count } => {
                    let args = ReadArgs { file: fh(file), offset: *offset, count: *count };
                    rpc_nfs3_read_async(rpc, on_reply, &args, private)
                }
                Op::Commit { file } => {
                    let args = CommitArgs { file: fh(file), offset: 0, count: 0 };
                    rpc_nfs3_commit_async(rpc, on_reply, &args, private)
                }
                Op::Lookup { dir, name } => rpc_nfs3_lookup_async(rpc, on_reply, &place(dir, name), private),
                Op::Mkdir { dir, name } => {
                    let args = MkdirArgs { place: place(dir, name), attributes: attributes(0o755) };
                    rpc_nfs3_mkdir_async(rpc, on_reply, &args, private)
                }
                Op::Create { dir, name } => {
                    let args = CreateArgs { place: place(dir, name), mode: 1, attributes: attributes(0o644) };
                    rpc_nfs3_create_async(rpc, on_reply, &args, private)
                }
                Op::Rename { dir, from, to } => {
                    let args = RenameArgs { from: place(dir, from), to: place(dir, to) };
                    rpc_nfs3_rename_async(rpc, on_reply, &args, private)
                }
                Op::Remove { dir, name } => rpc_nfs3_remove_async(rpc, on_reply, &place(dir, name), private),
            }
        };
        if rc != 0 {
            // SAFETY: not queued, so there will be no callback: ours again.
            drop(unsafe { Box::from_raw(pending) });
            return Err(self.error("queueing a call"));
        }
        Ok(())
    }

    /// Why the last thing failed, in libnfs's words.
    pub fn last_error(&self) -> String {
        // SAFETY: the context is live; the string is copied before its next use.
        let text = unsafe { nfs_get_error(self.nfs) };
        if text.is_null() {
            return "no reason given".to_owned();
        }
        // SAFETY: NUL-terminated, owned by the context.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    fn error(&self, what: &'static str) -> Error {
        Error::Libnfs { what, why: self.last_error() }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: made by nfs_init_context, destroyed once; pending calls get their callback inside.
        unsafe { nfs_destroy_context(self.nfs) }
    }
}

unsafe extern "C" fn on_reply(_rpc: *mut c_void, status: c_int, data: *mut c_void, private: *mut c_void) {
    // SAFETY: `private` is the Box of `submit`; libnfs calls back once per queued call.
    let pending = unsafe { Box::from_raw(private.cast::<Pending>()) };
    let reply = if status != 0 || data.is_null() {
        Reply::Lost(format!("RPC status {status}"))
    } else {
        // SAFETY: with status 0 libnfs gives the result structure of the called procedure.
        unsafe { result(&pending.op, data) }
    };
    pending.replies.borrow_mut().push_back((pending.tag, reply));
}

/// # Safety
/// `data` must be libnfs's result structure of the procedure that `op` calls.
unsafe fn result(op: &Op, data: *mut c_void) -> Reply {
    // SAFETY: every NFSv3 result begins with its status.
    let status = unsafe { *data.cast::<u32>() };
    if status != 0 {
        return Reply::Status(status);
    }
    match op {
        Op::Write { .. } => {
            // SAFETY: a WRITE3res with status OK.
            let res = unsafe { &*data.cast::<WriteRes>() };
            Reply::Written { count: res.count, committed: res.committed, verifier: res.verifier }
        }
        Op::Read { .. } => {
            // SAFETY: a READ3res with status OK; its data is a counted string like a handle.
            Reply::Data(unsafe { copy_handle(&(*data.cast::<ReadRes>()).data) }.0)
        }
        Op::Commit { .. } => {
            // SAFETY: a COMMIT3res with status OK.
            Reply::Committed { verifier: unsafe { (*data.cast::<CommitRes>()).verifier } }
        }
        Op::Lookup { .. } => {
            // SAFETY: a LOOKUP3res with status OK.
            Reply::Found(unsafe { copy_handle(&(*data.cast::<LookupRes>()).object) })
        }
        Op::Mkdir { .. } | Op::Create { .. } | Op::Rename { .. } | Op::Remove { .. } => Reply::Done,
    }
}

/// # Safety
/// `fh` must describe readable memory.
unsafe fn copy_handle(fh: &Fh) -> Handle {
    if fh.val.is_null() {
        return Handle(Vec::new());
    }
    // SAFETY: the caller's promise.
    Handle(unsafe { std::slice::from_raw_parts(fh.val.cast::<u8>(), fh.len as usize) }.to_vec())
}

fn fh(handle: &Handle) -> Fh {
    Fh { len: handle.0.len() as u32, val: handle.0.as_ptr().cast() }
}

fn place(dir: &Handle, name: &CString) -> DirOp {
    DirOp { dir: fh(dir), name: name.as_ptr() }
}

fn attributes(mode: u32) -> Sattr {
    Sattr { set_mode: 1, mode, rest: [0; 7] }
}
