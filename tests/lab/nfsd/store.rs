//! Real files by inode number: the same handle means the same file in every instance over the same directory.

use nfs3_types::nfs3::{fattr3, ftype3, nfs_fh3, nfsstat3, nfstime3, specdata3};
use nfs3_types::xdr_codec::Opaque;
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An inode number of the exported file system.
pub type FileId = u64;
type Result<T> = std::result::Result<T, nfsstat3>;

const HANDLE_MAGIC: [u8; 8] = *b"RRNFSD01";

pub struct Store {
    root: PathBuf,
    root_id: FileId,
    /// Where an inode was last seen; looked for anew when it is no longer there.
    paths: Mutex<BTreeMap<FileId, PathBuf>>,
    /// Open regular files.
    files: Mutex<BTreeMap<FileId, Arc<File>>>,
}

impl Store {
    pub fn open(root: &Path) -> std::io::Result<Store> {
        let root_id = std::fs::metadata(root)?.ino();
        let paths = Mutex::new(BTreeMap::from([(root_id, root.to_owned())]));
        Ok(Store { root: root.to_owned(), root_id, paths, files: Mutex::default() })
    }

    pub fn root_handle(&self) -> nfs_fh3 {
        handle(self.root_id)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where file `id` is now.
    pub fn path(&self, id: FileId) -> Result<PathBuf> {
        let known = lock(&self.paths).get(&id).cloned();
        if let Some(path) = known
            && std::fs::symlink_metadata(&path).is_ok_and(|m| m.ino() == id)
        {
            return Ok(path);
        }
        let path = find(&self.root, id).ok_or(nfsstat3::NFS3ERR_STALE)?;
        lock(&self.paths).insert(id, path.clone());
        Ok(path)
    }

    /// The directory `id`.
    pub fn dir(&self, id: FileId) -> Result<PathBuf> {
        let path = self.path(id)?;
        if path.is_dir() { Ok(path) } else { Err(nfsstat3::NFS3ERR_NOTDIR) }
    }

    /// `name` in directory `dir`: a single component, never one that leads out of it.
    pub fn child(&self, dir: FileId, name: &[u8]) -> Result<PathBuf> {
        match name {
            b"" | b"." | b".." => Err(nfsstat3::NFS3ERR_INVAL),
            _ if name.contains(&b'/') || name.contains(&0) => Err(nfsstat3::NFS3ERR_INVAL),
            _ if name.len() > 255 => Err(nfsstat3::NFS3ERR_NAMETOOLONG),
            _ => Ok(self.dir(dir)?.join(std::ffi::OsStr::from_bytes(name))),
        }
    }

    /// Notes where a file is. Gives its id and attributes.
    pub fn seen(&self, path: &Path) -> Result<(FileId, fattr3)> {
        let meta = std::fs::symlink_metadata(path).map_err(|e| status(&e))?;
        lock(&self.paths).insert(meta.ino(), path.to_owned());
        Ok((meta.ino(), attributes(&meta)))
    }

    /// The open regular file `id`.
    pub fn file(&self, id: FileId) -> Result<Arc<File>> {
        let open = lock(&self.files).get(&id).cloned();
        if let Some(file) = open {
            if file.metadata().map_err(|e| status(&e))?.nlink() > 0 {
                return Ok(file);
            }
            lock(&self.files).remove(&id);
            return Err(nfsstat3::NFS3ERR_STALE);
        }
        let path = self.path(id)?;
        if path.is_dir() {
            return Err(nfsstat3::NFS3ERR_ISDIR);
        }
        let file = Arc::new(File::options().read(true).write(true).open(&path).map_err(|e| status(&e))?);
        if file.metadata().map_err(|e| status(&e))?.ino() != id {
            return Err(nfsstat3::NFS3ERR_STALE);
        }
        lock(&self.files).insert(id, file.clone());
        Ok(file)
    }

    pub fn attributes(&self, id: FileId) -> Result<fattr3> {
        let open = lock(&self.files).get(&id).cloned();
        if let Some(meta) = open.and_then(|f| f.metadata().ok()).filter(|m| m.nlink() > 0) {
            return Ok(attributes(&meta));
        }
        let path = self.path(id)?;
        Ok(attributes(&std::fs::symlink_metadata(path).map_err(|e| status(&e))?))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(dir: &Path, id: FileId) -> Option<PathBuf> {
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.ino() == id {
            return Some(entry.path());
        }
        if meta.is_dir() {
            dirs.push(entry.path());
        }
    }
    dirs.iter().find_map(|d| find(d, id))
}

pub fn handle(id: FileId) -> nfs_fh3 {
    nfs_fh3 { data: Opaque::owned([HANDLE_MAGIC, id.to_be_bytes()].concat()) }
}

pub fn file_id(handle: &nfs_fh3) -> Result<FileId> {
    let bytes = handle.data.0.as_ref();
    match (bytes.get(..8), bytes.get(8..).and_then(|b| b.try_into().ok())) {
        (Some(magic), Some(id)) if magic == HANDLE_MAGIC => Ok(u64::from_be_bytes(id)),
        _ => Err(nfsstat3::NFS3ERR_BADHANDLE),
    }
}

pub fn status(error: &std::io::Error) -> nfsstat3 {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::PERM) => nfsstat3::NFS3ERR_PERM,
        Some(Errno::NOENT) => nfsstat3::NFS3ERR_NOENT,
        Some(Errno::ACCESS) => nfsstat3::NFS3ERR_ACCES,
        Some(Errno::EXIST) => nfsstat3::NFS3ERR_EXIST,
        Some(Errno::NOTDIR) => nfsstat3::NFS3ERR_NOTDIR,
        Some(Errno::ISDIR) => nfsstat3::NFS3ERR_ISDIR,
        Some(Errno::INVAL) => nfsstat3::NFS3ERR_INVAL,
        Some(Errno::FBIG) => nfsstat3::NFS3ERR_FBIG,
        Some(Errno::NOSPC) => nfsstat3::NFS3ERR_NOSPC,
        Some(Errno::ROFS) => nfsstat3::NFS3ERR_ROFS,
        Some(Errno::NAMETOOLONG) => nfsstat3::NFS3ERR_NAMETOOLONG,
        Some(Errno::NOTEMPTY) => nfsstat3::NFS3ERR_NOTEMPTY,
        Some(Errno::STALE) => nfsstat3::NFS3ERR_STALE,
        _ => nfsstat3::NFS3ERR_IO,
    }
}

pub fn attributes(meta: &Metadata) -> fattr3 {
    let time = |s: i64, n: i64| nfstime3 { seconds: s as u32, nseconds: n as u32 };
    let kind = meta.file_type();
    let type_ = if kind.is_dir() {
        ftype3::NF3DIR
    } else if kind.is_symlink() {
        ftype3::NF3LNK
    } else if kind.is_fifo() {
        ftype3::NF3FIFO
    } else if kind.is_socket() {
        ftype3::NF3SOCK
    } else {
        ftype3::NF3REG
    };
    fattr3 {
        type_,
        mode: meta.mode() & 0o7777,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        size: meta.size(),
        used: meta.blocks() * 512,
        rdev: specdata3::default(),
        fsid: meta.dev(),
        fileid: meta.ino(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
    }
}
