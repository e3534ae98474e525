//! The 4 KiB block that the writer puts into files. Self-describing, so that whoever reads it knows which write it
//! came from and whether it is whole.
//!
//! Little endian: magic `RRBLOCK1` (8 bytes), writer u64, sequence u64, offset in the file u64, SipHash-1-3 of
//! everything else u64, then 4056 bytes that depend on writer and sequence.

use siphasher::sip::SipHasher13;
use std::hash::Hasher;

pub const SIZE: usize = 4096;
const MAGIC: [u8; 8] = *b"RRBLOCK1";
const CHECKSUM: usize = 32;
const PAYLOAD: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub writer: u64,
    /// Counts the writes of this writer from 1.
    pub seq: u64,
    /// Where in the file the block belongs, bytes.
    pub offset: u64,
}

/// Why a block is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("nothing but zeros, or shorter than a block")]
    Empty,
    #[error("no block begins here")]
    Magic,
    #[error("checksum does not match: torn or altered")]
    Checksum,
}

/// The block of `header`, `SIZE` bytes.
pub fn encode(header: Header) -> Vec<u8> {
    let mut block = Vec::with_capacity(SIZE);
    block.extend_from_slice(&MAGIC);
    block.extend_from_slice(&header.writer.to_le_bytes());
    block.extend_from_slice(&header.seq.to_le_bytes());
    block.extend_from_slice(&header.offset.to_le_bytes());
    block.extend_from_slice(&[0; 8]);
    let mut word = header.seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ header.writer;
    while block.len() < SIZE {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        block.extend_from_slice(&word.to_le_bytes());
    }
    let sum = checksum(&block);
    block[CHECKSUM..PAYLOAD].copy_from_slice(&sum.to_le_bytes());
    block
}

/// The header, without a look at the checksum. None if no block begins here.
pub fn peek(bytes: &[u8]) -> Option<Header> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    (bytes.get(..8)? == MAGIC).then_some(())?;
    Some(Header { writer: word(8)?, seq: word(16)?, offset: word(24)? })
}

/// The header of a whole block.
pub fn decode(bytes: &[u8]) -> Result<Header, Damage> {
    if bytes.len() < SIZE || bytes.iter().all(|b| *b == 0) {
        return Err(Damage::Empty);
    }
    let header = peek(bytes).ok_or(Damage::Magic)?;
    if bytes[CHECKSUM..PAYLOAD] != checksum(&bytes[..SIZE]).to_le_bytes() {
        return Err(Damage::Checksum);
    }
    Ok(header)
}

fn checksum(block: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(&block[..CHECKSUM]);
    hasher.write(&block[PAYLOAD..]);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_byte_is_seen() {
        let header = Header { writer: 7, seq: 42, offset: 8192 };
        let block = encode(header);
        assert_eq!(block.len(), SIZE);
        assert_eq!(decode(&block), Ok(header));
        for at in [0, 9, 17, 25, 33, 40, SIZE - 1] {
            let mut broken = block.clone();
            broken[at] ^= 1;
            assert!(decode(&broken).is_err(), "byte {at}");
        }
        assert_eq!(decode(&[0; SIZE]), Err(Damage::Empty));
        assert_eq!(decode(&block[..100]), Err(Damage::Empty));
    }
}
