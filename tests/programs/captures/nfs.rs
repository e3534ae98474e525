//! NFSv3 records as clients and servers write them (RFC 1813): a dissector finds nothing wrong with them.

use crate::frames::{GETATTR, NFS, READ, WRITE, record};

pub const NULL: u32 = 0;
pub const LOOKUP: u32 = 3;
pub const COMMIT: u32 = 21;
pub const PROCEDURES: [u32; 6] = [NULL, GETATTR, LOOKUP, READ, WRITE, COMMIT];

fn words(out: &mut Vec<u8>, words: &[u32]) {
    out.extend(words.iter().flat_map(|w| w.to_be_bytes()));
}

fn opaque(out: &mut Vec<u8>, len: usize) {
    words(out, &[len as u32]);
    out.extend((0..len.next_multiple_of(4)).map(|i| if i < len { i as u8 } else { 0 }));
}

/// A call; a WRITE carries `data` bytes.
pub fn call(xid: u32, procedure: u32, data: usize) -> Vec<u8> {
    record(&call_body(xid, procedure, data))
}

pub fn call_body(xid: u32, procedure: u32, data: usize) -> Vec<u8> {
    let mut body = vec![];
    words(&mut body, &[xid, 0, 2, NFS, 3, procedure, 0, 0, 0, 0]);
    if procedure != NULL {
        opaque(&mut body, 32); // the file handle
    }
    match procedure {
        LOOKUP => opaque(&mut body, 9),
        READ | COMMIT => words(&mut body, &[0, 4096, 4096]),
        WRITE => {
            words(&mut body, &[0, 4096, data as u32, 2]);
            opaque(&mut body, data);
        }
        _ => {}
    }
    body
}

/// A successful reply without attributes, or, where there is none, NFS3ERR_STALE; READ brings `data` bytes.
pub fn reply(xid: u32, procedure: u32, data: usize) -> Vec<u8> {
    let mut body = vec![];
    words(&mut body, &[xid, 1, 0, 0, 0, 0]);
    match procedure {
        NULL => {}
        GETATTR => words(&mut body, &[70]),
        READ => {
            words(&mut body, &[0, 0, data as u32, 0]);
            opaque(&mut body, data);
        }
        WRITE => words(&mut body, &[0, 0, 0, 4096, 2, 1, 2]),
        COMMIT => words(&mut body, &[0, 0, 0, 1, 2]),
        _ => words(&mut body, &[70, 0]),
    }
    record(&body)
}
