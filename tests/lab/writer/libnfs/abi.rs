//! libnfs 4.0's C interface (nfsc/libnfs.h, libnfs-raw.h, libnfs-raw-nfs.h), as far as it is used.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};

#[repr(C)]
pub struct Fh {
    pub len: u32,
    pub val: *const c_char,
}
#[repr(C)]
pub struct NfsUrl {
    pub server: *const c_char,
    pub path: *const c_char,
    pub file: *const c_char,
}
#[repr(C)]
pub struct DirOp {
    pub dir: Fh,
    pub name: *const c_char,
}
#[repr(C)]
pub struct WriteArgs {
    pub file: Fh,
    pub offset: u64,
    pub count: u32,
    pub stable: u32,
    pub data: Fh,
}
#[repr(C)]
pub struct WriteRes {
    pub status: u32,
    pub wcc: [u64; 16],
    pub count: u32,
    pub committed: u32,
    pub verifier: [u8; 8],
}
#[repr(C)]
pub struct CommitArgs {
    pub file: Fh,
    pub offset: u64,
    pub count: u32,
}
#[repr(C)]
pub struct CommitRes {
    pub status: u32,
    pub wcc: [u64; 16],
    pub verifier: [u8; 8],
}
#[repr(C)]
pub struct ReadArgs {
    pub file: Fh,
    pub offset: u64,
    pub count: u32,
}
#[repr(C)]
pub struct ReadRes {
    pub status: u32,
    pub attributes: [u64; 12],
    pub count: u32,
    pub eof: u32,
    pub data: Fh,
}
#[repr(C)]
pub struct LookupRes {
    pub status: u32,
    pub object: Fh,
}
/// `sattr3`: `set_mode3` first (flag, mode), the other fields unset.
#[repr(C)]
pub struct Sattr {
    pub set_mode: u32,
    pub mode: u32,
    pub rest: [u64; 7],
}
#[repr(C)]
pub struct CreateArgs {
    pub place: DirOp,
    pub mode: u32,
    pub attributes: Sattr,
}
#[repr(C)]
pub struct MkdirArgs {
    pub place: DirOp,
    pub attributes: Sattr,
}
#[repr(C)]
pub struct RenameArgs {
    pub from: DirOp,
    pub to: DirOp,
}

// The sizes of libnfs-raw-nfs.h on a 64-bit machine.
const _: () = {
    assert!(size_of::<WriteArgs>() == 48 && size_of::<WriteRes>() == 152);
    assert!(size_of::<ReadArgs>() == 32 && size_of::<ReadRes>() == 128);
    assert!(size_of::<CommitArgs>() == 32 && size_of::<CommitRes>() == 144);
    assert!(size_of::<CreateArgs>() == 96 && size_of::<MkdirArgs>() == 88);
    assert!(size_of::<RenameArgs>() == 48 && size_of::<DirOp>() == 24 && size_of::<Sattr>() == 64);
    assert!(std::mem::offset_of!(LookupRes, object) == 8);
};

pub type Callback = unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, *mut c_void);

#[link(name = "nfs")]
unsafe extern "C" {
    pub fn nfs_init_context() -> *mut c_void;
    pub fn nfs_destroy_context(nfs: *mut c_void);
    pub fn nfs_parse_url_dir(nfs: *mut c_void, url: *const c_char) -> *mut NfsUrl;
    pub fn nfs_destroy_url(url: *mut NfsUrl);
    pub fn nfs_set_autoreconnect(nfs: *mut c_void, retries: c_int);
    pub fn nfs_set_timeout(nfs: *mut c_void, milliseconds: c_int);
    pub fn nfs_mount(nfs: *mut c_void, server: *const c_char, export: *const c_char) -> c_int;
    pub fn nfs_get_error(nfs: *mut c_void) -> *const c_char;
    pub fn nfs_get_rootfh(nfs: *mut c_void) -> *const Fh;
    pub fn nfs_get_rpc_context(nfs: *mut c_void) -> *mut c_void;
    pub fn nfs_get_fd(nfs: *mut c_void) -> c_int;
    pub fn nfs_which_events(nfs: *mut c_void) -> c_int;
    pub fn nfs_service(nfs: *mut c_void, revents: c_int) -> c_int;
    pub fn rpc_nfs3_write_async(
        rpc: *mut c_void,
        cb: Callback,
        args: *const WriteArgs,
        private: *mut c_void,
    ) -> c_int;
    pub fn rpc_nfs3_read_async(
        rpc: *mut c_void,
        cb: Callback,
        args: *const ReadArgs,
        private: *mut c_void,
    ) -> c_int;
    pub fn rpc_nfs3_commit_async(
        rpc: *mut c_void,
        cb: Callback,
        args: *const CommitArgs,
        private: *mut c_void,
    ) -> c_int;
    pub fn rpc_nfs3_lookup_async(
        rpc: *mut c_void,
        cb: Callback,
        args: *const DirOp,
        private: *mut c_void,
    ) -> c_int;
    pub fn rpc_nfs3_mkdir_async(
        rpc: *mut c_void,
        cb: Callback,
        args: *const MkdirArgs,
        private: *mut c_void,
    ) -> c_int;
    pub fn rpc_nfs3_create_async(
        rpc: *mut c_void,
        cb: Callback,
        args: *const CreateArgs,
        private: *mut c_void,
    ) -> c_int;
    pub fn rpc_nfs3_rename_async(
        rpc: *mut c_void,
        cb: Callback,
        args: *const RenameArgs,
        private: *mut c_void,
    ) -> c_int;
    pub fn rpc_nfs3_remove_async(
        rpc: *mut c_void,
        cb: Callback,
        args: *const DirOp,
        private: *mut c_void,
    ) -> c_int;
}
