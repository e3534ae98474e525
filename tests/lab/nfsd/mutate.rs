//! Procedures that change the store: arguments in, result out, both in XDR.

use crate::block;
use crate::ownership::{Applied, AppliedLog, Owner};
use crate::read::{Encoded, encode, post, unpack};
use crate::store::{FileId, Store, file_id, handle, status};
use nfs3_types::nfs3::*;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;
use std::time::SystemTime;

pub struct Options {
    pub fsync: bool,
    /// UNSTABLE writes wait in memory for their COMMIT.
    pub volatile: bool,
    pub verifier: u64,
}

/// The changing side of a store: one thread's.
pub struct Mutator {
    store: Arc<Store>,
    log: AppliedLog,
    options: Options,
    uncommitted: BTreeMap<FileId, Vec<Uncommitted>>,
    /// To be made stable before the reply, but after the lease's lock is let go.
    unsynced: Option<Arc<File>>,
}

struct Uncommitted {
    owner: Owner,
    offset: u64,
    data: Vec<u8>,
}

/// Whether `procedure` changes the store.
pub fn changes(procedure: NFS_PROGRAM) -> bool {
    use NFS_PROGRAM::*;
    matches!(
        procedure,
        NFSPROC3_SETATTR
            | NFSPROC3_WRITE
            | NFSPROC3_CREATE
            | NFSPROC3_MKDIR
            | NFSPROC3_SYMLINK
            | NFSPROC3_MKNOD
            | NFSPROC3_REMOVE
            | NFSPROC3_RMDIR
            | NFSPROC3_RENAME
            | NFSPROC3_LINK
            | NFSPROC3_COMMIT
    )
}

impl Mutator {
    pub fn new(store: Arc<Store>, log: AppliedLog, options: Options) -> Mutator {
        Mutator { store, log, options, uncommitted: BTreeMap::new(), unsynced: None }
    }

    /// Applies one call. `sync` must follow before its result is sent.
    pub fn call(&mut self, owner: Owner, procedure: NFS_PROGRAM, args: &[u8]) -> Encoded {
        use NFS_PROGRAM::*;
        match procedure {
            NFSPROC3_SETATTR => encode::<_, SETATTR3resfail>(self.setattr(owner, &unpack(args)?)),
            NFSPROC3_WRITE => encode::<_, WRITE3resfail>(self.write(owner, &unpack(args)?)),
            NFSPROC3_CREATE => encode::<_, CREATE3resfail>(self.create(&unpack(args)?)),
            NFSPROC3_MKDIR => encode::<_, MKDIR3resfail>(self.mkdir(&unpack(args)?)),
            NFSPROC3_REMOVE => encode::<_, REMOVE3resfail>(self.remove(&unpack(args)?)),
            NFSPROC3_RMDIR => {
                let a: RMDIR3args<'_> = unpack(args)?;
                encode::<_, REMOVE3resfail>(self.rmdir(&a))
            }
            NFSPROC3_RENAME => encode::<_, RENAME3resfail>(self.rename(&unpack(args)?)),
            NFSPROC3_COMMIT => encode::<_, WRITE3resfail>(self.commit(&unpack(args)?)),
            // Status, then an absent attribute and an absent pair of them.
            NFSPROC3_LINK => Ok([&(nfsstat3::NFS3ERR_NOTSUPP as u32).to_be_bytes()[..], &[0; 12]].concat()),
            _ => encode::<REMOVE3resok, REMOVE3resfail>(Err(nfsstat3::NFS3ERR_NOTSUPP)),
        }
    }

    /// Makes stable what the last call has to.
    pub fn sync(&mut self) -> std::io::Result<()> {
        match self.unsynced.take() {
            Some(file) if self.options.fsync => file.sync_data(),
            _ => Ok(()),
        }
    }

    fn verifier(&self) -> writeverf3 {
        writeverf3(self.options.verifier.to_be_bytes())
    }

    fn wcc(&self, id: FileId) -> wcc_data {
        wcc_data { before: pre_op_attr::None, after: post(&self.store, id) }
    }

    fn write(&mut self, owner: Owner, a: &WRITE3args<'_>) -> Result<WRITE3resok, nfsstat3> {
        let id = file_id(&a.file)?;
        let data = a.data.0.get(..a.count as usize).ok_or(nfsstat3::NFS3ERR_INVAL)?;
        let file = self.store.file(id)?;
        let unstable = a.stable == stable_how::UNSTABLE;
        if unstable && self.options.volatile {
            let waiting = self.uncommitted.entry(id).or_default();
            waiting.push(Uncommitted { owner, offset: a.offset, data: data.to_vec() });
        } else {
            self.flush(id, &file)?;
            self.apply(owner, id, &file, a.offset, data)?;
            if !unstable {
                self.unsynced = Some(file);
            }
        }
        let committed = if unstable { stable_how::UNSTABLE } else { stable_how::FILE_SYNC };
        Ok(WRITE3resok { file_wcc: self.wcc(id), count: a.count, committed, verf: self.verifier() })
    }

    fn apply(&self, owner: Owner, id: FileId, file: &File, offset: u64, data: &[u8]) -> Result<(), nfsstat3> {
        file.write_all_at(data, offset).map_err(|e| status(&e))?;
        let (writer, seq) = block::peek(data).map_or((0, 0), |h| (h.writer, h.seq));
        self.log.add(Applied { owner, file: id, offset, writer, seq }).map_err(|e| status(&e))
    }

    fn flush(&mut self, id: FileId, file: &File) -> Result<(), nfsstat3> {
        for write in self.uncommitted.remove(&id).unwrap_or_default() {
            self.apply(write.owner, id, file, write.offset, &write.data)?;
        }
        Ok(())
    }

    fn commit(&mut self, a: &COMMIT3args) -> Result<COMMIT3resok, nfsstat3> {
        let id = file_id(&a.file)?;
        let file = self.store.file(id)?;
        self.flush(id, &file)?;
        self.unsynced = Some(file);
        Ok(COMMIT3resok { file_wcc: self.wcc(id), verf: self.verifier() })
    }

    fn setattr(&mut self, _owner: Owner, a: &SETATTR3args) -> Result<SETATTR3resok, nfsstat3> {
        let id = file_id(&a.object)?;
        let ctime = self.store.attributes(id)?.ctime;
        if matches!(a.guard, sattrguard3::Some(guard) if guard != ctime) {
            return Err(nfsstat3::NFS3ERR_NOT_SYNC);
        }
        self.change(id, &a.new_attributes)?;
        Ok(SETATTR3resok { obj_wcc: self.wcc(id) })
    }

    fn change(&mut self, id: FileId, new: &sattr3) -> Result<(), nfsstat3> {
        let path = self.store.path(id)?;
        let io = |e: std::io::Error| status(&e);
        if let set_size3::Some(size) = new.size {
            let file = self.store.file(id)?;
            self.flush(id, &file)?;
            file.set_len(size).map_err(io)?;
            self.unsynced = Some(file);
        }
        if let set_mode3::Some(mode) = new.mode {
            std::fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777)).map_err(io)?;
        }
        let uid = if let set_uid3::Some(uid) = new.uid { Some(uid) } else { None };
        let gid = if let set_gid3::Some(gid) = new.gid { Some(gid) } else { None };
        if uid.is_some() || gid.is_some() {
            std::os::unix::fs::chown(&path, uid, gid).map_err(io)?;
        }
        let mut times = std::fs::FileTimes::new();
        let mut any = true;
        match (&new.atime, &new.mtime) {
            (set_atime::DONT_CHANGE, set_mtime::DONT_CHANGE) => any = false,
            (atime, mtime) => {
                match atime {
                    set_atime::DONT_CHANGE => {}
                    set_atime::SET_TO_SERVER_TIME => times = times.set_accessed(SystemTime::now()),
                    set_atime::SET_TO_CLIENT_TIME(t) => times = times.set_accessed((*t).into()),
                }
                match mtime {
                    set_mtime::DONT_CHANGE => {}
                    set_mtime::SET_TO_SERVER_TIME => times = times.set_modified(SystemTime::now()),
                    set_mtime::SET_TO_CLIENT_TIME(t) => times = times.set_modified((*t).into()),
                }
            }
        }
        if any {
            File::open(&path).and_then(|f| f.set_times(times)).map_err(io)?;
        }
        Ok(())
    }

    fn create(&mut self, a: &CREATE3args<'_>) -> Result<CREATE3resok, nfsstat3> {
        let dir = file_id(&a.where_.dir)?;
        let path = self.store.child(dir, a.where_.name.as_ref())?;
        let mut open = OpenOptions::new();
        open.read(true).write(true);
        let attributes = match &a.how {
            createhow3::UNCHECKED(attributes) => {
                open.create(true).truncate(false);
                Some(attributes)
            }
            createhow3::GUARDED(attributes) => {
                open.create_new(true);
                Some(attributes)
            }
            createhow3::EXCLUSIVE(_) => return Err(nfsstat3::NFS3ERR_NOTSUPP),
        };
        open.open(&path).map_err(|e| status(&e))?;
        self.made(dir, &path, attributes)
    }

    fn mkdir(&mut self, a: &MKDIR3args<'_>) -> Result<CREATE3resok, nfsstat3> {
        let dir = file_id(&a.where_.dir)?;
        let path = self.store.child(dir, a.where_.name.as_ref())?;
        std::fs::create_dir(&path).map_err(|e| status(&e))?;
        self.made(dir, &path, Some(&a.attributes))
    }

    fn made(
        &mut self,
        dir: FileId,
        path: &std::path::Path,
        attributes: Option<&sattr3>,
    ) -> Result<CREATE3resok, nfsstat3> {
        let (id, _) = self.store.seen(path)?;
        if let Some(attributes) = attributes {
            self.change(id, attributes)?;
        }
        let (obj, obj_attributes) = (post_op_fh3::Some(handle(id)), post(&self.store, id));
        Ok(CREATE3resok { obj, obj_attributes, dir_wcc: self.wcc(dir) })
    }

    fn remove(&mut self, a: &REMOVE3args<'_>) -> Result<REMOVE3resok, nfsstat3> {
        let dir = file_id(&a.object.dir)?;
        let path = self.store.child(dir, a.object.name.as_ref())?;
        std::fs::remove_file(path).map_err(|e| status(&e))?;
        Ok(REMOVE3resok { dir_wcc: self.wcc(dir) })
    }

    fn rmdir(&mut self, a: &RMDIR3args<'_>) -> Result<REMOVE3resok, nfsstat3> {
        let dir = file_id(&a.object.dir)?;
        let path = self.store.child(dir, a.object.name.as_ref())?;
        std::fs::remove_dir(path).map_err(|e| status(&e))?;
        Ok(REMOVE3resok { dir_wcc: self.wcc(dir) })
    }

    fn rename(&mut self, a: &RENAME3args<'_, '_>) -> Result<RENAME3resok, nfsstat3> {
        let (from_dir, to_dir) = (file_id(&a.from.dir)?, file_id(&a.to.dir)?);
        let from = self.store.child(from_dir, a.from.name.as_ref())?;
        let to = self.store.child(to_dir, a.to.name.as_ref())?;
        std::fs::rename(from, &to).map_err(|e| status(&e))?;
        self.store.seen(&to)?;
        Ok(RENAME3resok { fromdir_wcc: self.wcc(from_dir), todir_wcc: self.wcc(to_dir) })
    }
}
