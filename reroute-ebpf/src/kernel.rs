//! Packets and sockets of the running kernel.

use crate::cell::Shared;
use crate::packet::{Bytes, Packet};
use aya_ebpf::bindings::{__sk_buff, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, xdp_md};
use aya_ebpf::helpers::generated as helpers;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use reroute_common::flow::PIECE_BYTES;
use reroute_common::pulse::LEN;

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: takes nothing.
    unsafe { helpers::bpf_ktime_get_boot_ns() }
}

/// What [`repeat`] calls: its state, until it gives 1.
pub type Body = unsafe extern "C" fn(u32, *mut c_void) -> i64;

/// Calls `body` up to `times` times: a loop the verifier walks once.
#[inline(always)]
pub fn repeat<T>(times: u32, body: Body, state: &mut T) {
    // SAFETY: `body` is given the state it was written for, while that lives.
    #[cfg(target_arch = "bpf")]
    unsafe {
        helpers::bpf_loop(times, body as *mut c_void, core::ptr::from_mut(state).cast(), 0);
    }
    #[cfg(not(target_arch = "bpf"))]
    for i in 0..times {
        // SAFETY: as above.
        if unsafe { body(i, core::ptr::from_mut(state).cast()) } != 0 {
            break;
        }
    }
}

/// Copies `len` (1 to 28) bytes between map values.
///
/// # Safety
/// As many bytes are readable at `from` and writable at `to`.
#[inline(always)]
pub unsafe fn copy(from: *const u8, to: *mut u8, len: u32) -> bool {
    // Where `from` points by a variable offset, the helper reads what the verifier would not follow.
    #[cfg(target_arch = "bpf")]
    // SAFETY: by the caller.
    unsafe {
        helpers::bpf_probe_read_kernel(to.cast(), len, from.cast()) == 0
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: by the caller.
    unsafe {
        core::ptr::copy_nonoverlapping(from, to, len as usize);
        true
    }
}

#[derive(Clone, Copy)]
pub struct XdpPacket {
    pub md: *mut xdp_md,
}

impl XdpPacket {
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: the context lives as long as the run.
        unsafe { (*self.md).ingress_ifindex }
    }
}

impl Bytes for XdpPacket {
    #[inline(always)]
    fn load_header(&self, offset: u32, header: Shared<[u8; 32]>, at: u32, len: u32) -> bool {
        if at > 31 || len == 0 || len > 28 {
            return false;
        }
        // SAFETY: 28 bytes behind any byte of a header are still inside the map value.
        unsafe {
            let to = header.as_ptr().cast::<u8>().add(at as usize);
            helpers::bpf_xdp_load_bytes(self.md, offset, to.cast(), len) == 0
        }
    }
}

impl Packet for XdpPacket {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context lives as long as the run.
        (unsafe { helpers::bpf_xdp_get_buff_len(self.md) }) as u32
    }
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes N bytes or says no.
        unsafe {
            match helpers::bpf_xdp_load_bytes(self.md, offset, bytes.as_mut_ptr().cast(), N as u32) {
                0 => Some(bytes.assume_init()),
                _ => None,
            }
        }
    }
    #[inline(always)]
    fn load_piece(&self, offset: u32, piece: Shared<[u8; PIECE_BYTES]>, len: u32) -> bool {
        if len == 0 || len > PIECE_BYTES as u32 {
            return false;
        }
        // SAFETY: at most PIECE_BYTES bytes go into the map value.
        unsafe { helpers::bpf_xdp_load_bytes(self.md, offset, piece.as_ptr().cast(), len) == 0 }
    }
    #[inline(always)]
    fn load_pulse(&self, offset: u32, words: Shared<[u64; LEN / 8]>) -> bool {
        // SAFETY: the map value is LEN bytes long.
        unsafe { helpers::bpf_xdp_load_bytes(self.md, offset, words.as_ptr().cast(), LEN as u32) == 0 }
    }
    #[inline(always)]
    fn store<const N: usize>(&self, offset: u32, bytes: &[u8; N]) -> bool {
        // SAFETY: the helper reads N bytes.
        unsafe {
            helpers::bpf_xdp_store_bytes(self.md, offset, bytes.as_ptr().cast_mut().cast(), N as u32) == 0
        }
    }
    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.md.cast()
    }
}

#[derive(Clone, Copy)]
pub struct SkbPacket {
    pub skb: *mut __sk_buff,
}

impl SkbPacket {
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: the context lives as long as the run.
        unsafe { (*self.skb).ifindex }
    }
}

impl Bytes for SkbPacket {
    #[inline(always)]
    fn load_header(&self, offset: u32, header: Shared<[u8; 32]>, at: u32, len: u32) -> bool {
        if at > 31 || len == 0 || len > 28 {
            return false;
        }
        // SAFETY: 28 bytes behind any byte of a header are still inside the map value.
        unsafe {
            let to = header.as_ptr().cast::<u8>().add(at as usize);
            helpers::bpf_skb_load_bytes(self.skb.cast(), offset, to.cast(), len) == 0
        }
    }
}

impl Packet for SkbPacket {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context lives as long as the run.
        unsafe { (*self.skb).len }
    }
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes N bytes or says no.
        unsafe {
            match helpers::bpf_skb_load_bytes(self.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) {
                0 => Some(bytes.assume_init()),
                _ => None,
            }
        }
    }
    #[inline(always)]
    fn load_piece(&self, offset: u32, piece: Shared<[u8; PIECE_BYTES]>, len: u32) -> bool {
        if len == 0 || len > PIECE_BYTES as u32 {
            return false;
        }
        // SAFETY: at most PIECE_BYTES bytes go into the map value.
        unsafe { helpers::bpf_skb_load_bytes(self.skb.cast(), offset, piece.as_ptr().cast(), len) == 0 }
    }
    #[inline(always)]
    fn load_pulse(&self, offset: u32, words: Shared<[u64; LEN / 8]>) -> bool {
        // SAFETY: the map value is LEN bytes long.
        unsafe {
            helpers::bpf_skb_load_bytes(self.skb.cast(), offset, words.as_ptr().cast(), LEN as u32) == 0
        }
    }
    #[inline(always)]
    fn store<const N: usize>(&self, offset: u32, bytes: &[u8; N]) -> bool {
        // SAFETY: the helper reads N bytes.
        unsafe { helpers::bpf_skb_store_bytes(self.skb, offset, bytes.as_ptr().cast(), N as u32, 0) == 0 }
    }
    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: the context lives as long as the run.
        let segments = unsafe { (*self.skb).gso_segs };
        if segments > 1 { segments } else { 1 }
    }
    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.skb.cast()
    }
}

/// State of the socket that would take a segment, as `TCP_*` numbers it; 0: none.
#[inline(always)]
fn socket_state(context: *mut c_void, tuple: bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1) -> u32 {
    let mut tuple = tuple;
    // SAFETY: the tuple is that of IPv4, 12 bytes; the reference is given back before anything else happens.
    unsafe {
        let socket = helpers::bpf_skc_lookup_tcp(
            context,
            (&raw mut tuple).cast::<bpf_sock_tuple>(),
            12,
            u64::MAX, // this network namespace
            0,
        );
        if socket.is_null() {
            return 0;
        }
        let state = (*socket).state;
        helpers::bpf_sk_release(socket.cast());
        state
    }
}

const TCP_ESTABLISHED: u32 = 1;
const TCP_LISTEN: u32 = 10;

#[inline(always)]
fn last_quarter(address: &[u8; 16]) -> u32 {
    u32::from_ne_bytes([address[12], address[13], address[14], address[15]])
}

/// Whether somebody listens on the service address and port (IPv4, host order port).
#[inline(always)]
pub fn listening(context: *mut c_void, address: &[u8; 16], port: u16) -> bool {
    let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: 0,
        daddr: last_quarter(address),
        sport: 0,
        dport: port.to_be(),
    };
    socket_state(context, tuple) == TCP_LISTEN
}

/// Whether an established socket takes what `remote` sends.
#[inline(always)]
pub fn established(
    context: *mut c_void,
    remote: &[u8; 16],
    remote_port: u16,
    local: &[u8; 16],
    local_port: u16,
) -> bool {
    let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: last_quarter(remote),
        daddr: last_quarter(local),
        sport: remote_port.to_be(),
        dport: local_port.to_be(),
    };
    socket_state(context, tuple) == TCP_ESTABLISHED
}
