//! A packet, wherever it is looked at: XDP, TC, or a byte slice of a test.

use crate::cell::Shared;
use reroute_common::flow::PIECE_BYTES;
use reroute_common::pulse::LEN;

/// Bytes in which records are followed.
pub trait Bytes: Copy {
    /// Copies `len` (1 to 28) bytes at `offset` to `header[at..]`.
    fn load_header(&self, offset: u32, header: Shared<[u8; 32]>, at: u32, len: u32) -> bool;
}

/// Ethernet, IPv4 and TCP without options.
pub const HEAD: usize = 54;

pub trait Packet: Bytes {
    /// The first bytes where they lie, if they lie together.
    fn head(&self) -> Option<&[u8; HEAD]>;
    /// Bytes of the frame, all buffers.
    fn len(&self) -> u32;
    /// [`len`](Packet::len), where the first `end` bytes are expected to lie together: then it costs less.
    fn len_of(&self, end: u32) -> u32 {
        let _ = end;
        self.len()
    }
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The bytes at `offset`; none if the frame ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Copies `len` (1 to [`PIECE_BYTES`]) bytes at `offset`.
    fn load_piece(&self, offset: u32, piece: Shared<[u8; PIECE_BYTES]>, len: u32) -> bool;
    /// Copies a pulse's length at `offset` to `words`.
    fn load_pulse(&self, offset: u32, words: Shared<[u64; LEN / 8]>) -> bool;
    /// Writes `bytes` at `offset`.
    fn store<const N: usize>(&self, offset: u32, bytes: &[u8; N]) -> bool;
    /// Wire segments this frame stands for.
    fn segments(&self) -> u32 {
        1
    }
    /// What the kernel's helpers take as their context.
    fn context(&self) -> *mut core::ffi::c_void {
        core::ptr::null_mut()
    }
}

impl Bytes for &[u8] {
    fn load_header(&self, offset: u32, header: Shared<[u8; 32]>, at: u32, len: u32) -> bool {
        let Some(from) = self.get(offset as usize..(offset + len) as usize) else { return false };
        assert!(at + len <= 32);
        // SAFETY: `at + len` stays inside the header, which is a live value of 32 bytes.
        unsafe {
            core::ptr::copy_nonoverlapping(
                from.as_ptr(),
                header.as_ptr().cast::<u8>().add(at as usize),
                from.len(),
            )
        };
        true
    }
}

impl Packet for &[u8] {
    fn head(&self) -> Option<&[u8; HEAD]> {
        self.first_chunk()
    }
    fn len(&self) -> u32 {
        <[u8]>::len(self) as u32
    }
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.get(offset as usize..offset as usize + N)?.try_into().ok()
    }
    fn load_piece(&self, offset: u32, piece: Shared<[u8; PIECE_BYTES]>, len: u32) -> bool {
        let Some(from) = self.get(offset as usize..(offset + len) as usize) else { return false };
        assert!(len as usize <= PIECE_BYTES);
        // SAFETY: `len` bytes fit into the piece, which is a live value.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), piece.as_ptr().cast::<u8>(), from.len()) };
        true
    }
    fn load_pulse(&self, _offset: u32, _words: Shared<[u64; LEN / 8]>) -> bool {
        false
    }
    fn store<const N: usize>(&self, _offset: u32, _bytes: &[u8; N]) -> bool {
        false
    }
}

/// A big-endian number of a head: one load, wherever it lies, not one per byte.
#[inline(always)]
pub fn be32<const AT: usize>(head: &[u8; HEAD]) -> u32 {
    u32::from_be(ne32::<AT>(head))
}

/// The same as it lies in memory.
#[inline(always)]
pub fn ne32<const AT: usize>(head: &[u8; HEAD]) -> u32 {
    const { assert!(AT + 4 <= HEAD) }
    #[cfg(target_arch = "bpf")]
    {
        let number: u64;
        // SAFETY: four bytes of `head`. The kernel loads the programs only where the processor takes any address, or
        // asks its verifier for aligned ones.
        unsafe {
            core::arch::asm!(
                "{0} = *(u32 *)({1} + {2})", out(reg) number, in(reg) head.as_ptr(), const AT,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        number as u32
    }
    #[cfg(not(target_arch = "bpf"))]
    u32::from_ne_bytes([head[AT], head[AT + 1], head[AT + 2], head[AT + 3]])
}

#[inline(always)]
pub fn be16<const AT: usize>(head: &[u8; HEAD]) -> u16 {
    const { assert!(AT + 2 <= HEAD) }
    #[cfg(target_arch = "bpf")]
    {
        let number: u64;
        // SAFETY: two bytes of `head`; as above.
        unsafe {
            core::arch::asm!(
                "{0} = *(u16 *)({1} + {2})", out(reg) number, in(reg) head.as_ptr(), const AT,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        u16::from_be(number as u16)
    }
    #[cfg(not(target_arch = "bpf"))]
    u16::from_be_bytes([head[AT], head[AT + 1]])
}
