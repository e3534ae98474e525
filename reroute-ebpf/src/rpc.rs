//! ONC RPC (RFC 5531): what a call is, and which class it is counted in.

use crate::at;
use crate::cell::Shared;
use reroute_common::class;
use reroute_common::flow::Stream;

/// Bytes after the record mark that tell a call: xid, CALL, RPC version, program, version, procedure.
pub const CALL_HEAD: u32 = 24;
/// ... and a reply: xid, REPLY.
pub const REPLY_HEAD: u32 = 8;
/// Longest fragment believed. NFS transfers are 1 MiB at most in practice.
pub const MAX_FRAGMENT: u32 = 1 << 25;

const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;
const NLM: u32 = 100_021;
const NFS_ACL: u32 = 100_227;

/// A call's identity, read from a gathered header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub xid: u32,
    pub class: u32,
}

/// Big-endian word `index` of the header: 0 is the record mark.
#[inline(always)]
pub fn word(stream: Shared<Stream>, index: u32) -> u32 {
    let header = at!(stream.header);
    // SAFETY: 32 bytes at an offset divisible by 8 are eight words.
    let words: Shared<[u32; 8]> = unsafe { Shared::new(header.as_ptr().cast()) };
    u32::from_be(words.element(index).get())
}

#[inline(always)]
pub fn xid(stream: Shared<Stream>) -> u32 {
    word(stream, 1)
}
#[inline(always)]
pub fn is_call(stream: Shared<Stream>) -> bool {
    word(stream, 2) == CALL && word(stream, 3) == RPC_VERSION
}
#[inline(always)]
pub fn is_reply(stream: Shared<Stream>) -> bool {
    word(stream, 2) == REPLY
}

#[inline(always)]
pub fn call(stream: Shared<Stream>) -> Call {
    Call { xid: xid(stream), class: classify(word(stream, 4), word(stream, 5), word(stream, 6)) }
}

#[inline(always)]
pub const fn classify(program: u32, version: u32, procedure: u32) -> u32 {
    if procedure == 0 {
        return class::NULL;
    }
    if program == NFS && version == 3 {
        return match procedure {
            6 => class::READ,
            7 | 21 => class::WRITE,
            _ => class::METADATA,
        };
    }
    class::METADATA
}

/// Whether the header, taken from the start of a segment, is so surely a call that a lost stream may go on from it.
#[inline(always)]
pub fn looks_like_call(stream: Shared<Stream>) -> bool {
    let length = word(stream, 0) & 0x7fff_ffff;
    let program = word(stream, 4);
    let known = program == NFS || program == MOUNT || program == NLM || program == NFS_ACL;
    is_call(stream) && known && word(stream, 5) <= 4 && (40..=MAX_FRAGMENT).contains(&length)
}

/// The same for a reply; the caller checks that its XID is waited for.
#[inline(always)]
pub fn looks_like_reply(stream: Shared<Stream>) -> bool {
    let length = word(stream, 0) & 0x7fff_ffff;
    is_reply(stream) && (12..=MAX_FRAGMENT).contains(&length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        assert_eq!(classify(NFS, 3, 0), class::NULL);
        assert_eq!(classify(NFS, 3, 6), class::READ);
        assert_eq!(classify(NFS, 3, 7), class::WRITE);
        assert_eq!(classify(NFS, 3, 21), class::WRITE);
        assert_eq!(classify(NFS, 3, 1), class::METADATA);
        assert_eq!(classify(MOUNT, 3, 1), class::METADATA);
        assert_eq!(classify(NFS, 4, 7), class::METADATA, "no procedure of version 3");
    }
}
