//! Procedures that change nothing: arguments in, result out, both in XDR.

use crate::store::{FileId, Store, file_id, handle, status};
use nfs3_types::nfs3::*;
use nfs3_types::xdr_codec::{List, Opaque, Pack, Unpack};
use std::io::Cursor;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// Largest READ and WRITE, bytes.
pub const TRANSFER: u32 = 128 << 10;

/// The arguments do not fit the procedure, or the result could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("{0:?}")]
pub struct Garbage(#[from] nfs3_types::xdr_codec::Error);

pub type Encoded = Result<Vec<u8>, Garbage>;

pub fn unpack<T: Unpack>(args: &[u8]) -> Result<T, Garbage> {
    Ok(T::unpack(&mut Cursor::new(args))?.0)
}

/// A result, or a status with nothing else to say.
pub fn encode<T: Pack, E: Pack + Default>(result: Result<T, nfsstat3>) -> Encoded {
    let result = match result {
        Ok(ok) => Nfs3Result::Ok(ok),
        Err(status) => Nfs3Result::Err((status, E::default())),
    };
    let mut bytes = Vec::with_capacity(result.packed_size());
    result.pack(&mut bytes)?;
    Ok(bytes)
}

/// None: no such procedure here.
pub fn call(store: &Store, procedure: NFS_PROGRAM, args: &[u8]) -> Option<Encoded> {
    use NFS_PROGRAM::*;
    Some(match procedure {
        NFSPROC3_NULL => Ok(Vec::new()),
        NFSPROC3_GETATTR => unpack(args).and_then(|a| getattr(store, &a)),
        NFSPROC3_LOOKUP => unpack(args).and_then(|a| lookup(store, &a)),
        NFSPROC3_ACCESS => unpack(args).and_then(|a| access(store, &a)),
        NFSPROC3_READ => unpack(args).and_then(|a| read(store, &a)),
        NFSPROC3_READDIR => unpack(args).and_then(|a| readdir(store, &a)),
        NFSPROC3_READDIRPLUS => unpack(args).and_then(|a| readdirplus(store, &a)),
        NFSPROC3_FSSTAT => unpack(args).and_then(|a| fsstat(store, &a)),
        NFSPROC3_FSINFO => unpack(args).and_then(|a| fsinfo(store, &a)),
        NFSPROC3_PATHCONF => unpack(args).and_then(|a| pathconf(store, &a)),
        NFSPROC3_READLINK => encode::<READLINK3resok<'_>, READLINK3resfail>(Err(nfsstat3::NFS3ERR_NOTSUPP)),
        _ => return None,
    })
}

pub fn post(store: &Store, id: FileId) -> post_op_attr {
    store.attributes(id).map_or(post_op_attr::None, post_op_attr::Some)
}

fn getattr(store: &Store, a: &GETATTR3args) -> Encoded {
    let result = file_id(&a.object).and_then(|id| store.attributes(id));
    let result = match result {
        Ok(obj_attributes) => GETATTR3res::Ok(GETATTR3resok { obj_attributes }),
        Err(status) => GETATTR3res::Err((status, nfs3_types::xdr_codec::Void)),
    };
    let mut bytes = Vec::new();
    result.pack(&mut bytes)?;
    Ok(bytes)
}

fn lookup(store: &Store, a: &LOOKUP3args<'_>) -> Encoded {
    let result = file_id(&a.what.dir).and_then(|dir| {
        let path = match a.what.name.as_ref() {
            b"." => store.dir(dir)?,
            b".." if store.path(dir)? == store.root() => store.dir(dir)?,
            b".." => store.dir(dir)?.parent().map(ToOwned::to_owned).ok_or(nfsstat3::NFS3ERR_NOENT)?,
            name => store.child(dir, name)?,
        };
        let (id, attributes) = store.seen(&path)?;
        let obj_attributes = post_op_attr::Some(attributes);
        Ok(LOOKUP3resok { object: handle(id), obj_attributes, dir_attributes: post(store, dir) })
    });
    encode::<_, LOOKUP3resfail>(result)
}

fn access(store: &Store, a: &ACCESS3args) -> Encoded {
    let result = file_id(&a.object).and_then(|id| store.attributes(id));
    let result = result.map(|f| ACCESS3resok { obj_attributes: post_op_attr::Some(f), access: a.access });
    encode::<_, ACCESS3resfail>(result)
}

fn read(store: &Store, a: &READ3args) -> Encoded {
    let result = file_id(&a.file).and_then(|id| {
        let file = store.file(id)?;
        let mut data = vec![0; a.count.min(TRANSFER) as usize];
        let mut have = 0;
        while have < data.len() {
            match file.read_at(&mut data[have..], a.offset + have as u64).map_err(|e| status(&e))? {
                0 => break,
                n => have += n,
            }
        }
        data.truncate(have);
        let attributes = store.attributes(id)?;
        Ok(READ3resok {
            eof: a.offset + have as u64 >= attributes.size,
            file_attributes: post_op_attr::Some(attributes),
            count: have as u32,
            data: Opaque::owned(data),
        })
    });
    encode::<_, READ3resfail>(result)
}

/// Names of a directory in inode order after `cookie`, which is an inode number: stable while names come and go.
fn list(store: &Store, dir: FileId, cookie: u64) -> Result<Vec<(u64, Vec<u8>)>, nfsstat3> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(store.dir(dir)?).map_err(|e| status(&e))?.flatten() {
        use std::os::unix::fs::DirEntryExt;
        names.push((entry.ino(), entry.file_name().as_bytes().to_vec()));
    }
    names.sort();
    names.retain(|(id, _)| *id > cookie);
    Ok(names)
}

fn readdir(store: &Store, a: &READDIR3args) -> Encoded {
    let result = file_id(&a.dir).and_then(|dir| {
        let mut left = (a.count as usize).saturating_sub(128);
        let (mut entries, mut eof) = (Vec::new(), true);
        for (id, name) in list(store, dir, a.cookie)? {
            let entry = entry3 { fileid: id, name: name.into(), cookie: id };
            let size = entry.packed_size() + 4;
            if size > left {
                eof = false;
                break;
            }
            left -= size;
            entries.push(entry);
        }
        let reply = dirlist3 { entries: List(entries), eof };
        Ok(READDIR3resok { dir_attributes: post(store, dir), cookieverf: cookieverf3::default(), reply })
    });
    encode::<_, READDIR3resfail>(result)
}

fn readdirplus(store: &Store, a: &READDIRPLUS3args) -> Encoded {
    let result = file_id(&a.dir).and_then(|dir| {
        let path = store.dir(dir)?;
        let mut left = (a.maxcount as usize).saturating_sub(128);
        let (mut entries, mut eof) = (Vec::new(), true);
        for (id, name) in list(store, dir, a.cookie)? {
            let seen = store.seen(&path.join(std::ffi::OsStr::from_bytes(&name)));
            let name_attributes = seen.map_or(post_op_attr::None, |(_, f)| post_op_attr::Some(f));
            let name_handle = post_op_fh3::Some(handle(id));
            let entry =
                entryplus3 { fileid: id, name: name.into(), cookie: id, name_attributes, name_handle };
            let size = entry.packed_size() + 4;
            if size > left {
                eof = false;
                break;
            }
            left -= size;
            entries.push(entry);
        }
        let reply = dirlistplus3 { entries: List(entries), eof };
        Ok(READDIRPLUS3resok { dir_attributes: post(store, dir), cookieverf: cookieverf3::default(), reply })
    });
    encode::<_, READDIRPLUS3resfail>(result)
}

fn fsstat(store: &Store, a: &FSSTAT3args) -> Encoded {
    let result = file_id(&a.fsroot).and_then(|id| {
        let s = rustix::fs::statvfs(store.root()).map_err(|e| status(&e.into()))?;
        Ok(FSSTAT3resok {
            obj_attributes: post(store, id),
            tbytes: s.f_blocks * s.f_frsize,
            fbytes: s.f_bfree * s.f_frsize,
            abytes: s.f_bavail * s.f_frsize,
            tfiles: s.f_files,
            ffiles: s.f_ffree,
            afiles: s.f_favail,
            invarsec: 0,
        })
    });
    encode::<_, FSSTAT3resfail>(result)
}

fn fsinfo(store: &Store, a: &FSINFO3args) -> Encoded {
    let result = file_id(&a.fsroot).map(|id| FSINFO3resok {
        obj_attributes: post(store, id),
        rtmax: TRANSFER,
        rtpref: TRANSFER,
        rtmult: 4096,
        wtmax: TRANSFER,
        wtpref: TRANSFER,
        wtmult: 4096,
        dtpref: 65536,
        maxfilesize: 1 << 43,
        time_delta: nfstime3 { seconds: 0, nseconds: 1 },
        properties: FSF3_HOMOGENEOUS | FSF3_CANSETTIME,
    });
    encode::<_, FSINFO3resfail>(result)
}

fn pathconf(store: &Store, a: &PATHCONF3args) -> Encoded {
    let result = file_id(&a.object).map(|id| PATHCONF3resok {
        obj_attributes: post(store, id),
        linkmax: 1,
        name_max: 255,
        no_trunc: true,
        chown_restricted: true,
        case_insensitive: false,
        case_preserving: true,
    });
    encode::<_, PATHCONF3resfail>(result)
}
