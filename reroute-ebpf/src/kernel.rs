//! Packets and sockets of the running kernel.

use crate::cell::{Shared, opaque};
use crate::packet::{Bytes, HEAD, Packet};
use crate::parse::{Frame, tcp};
use aya_ebpf::bindings::{
    __sk_buff, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2, xdp_md,
};
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

/// `len`, if it is 1 to `most`, by the one comparison that every verifier understands: of the number that is used, and
/// no other, against an upper bound.
#[inline(always)]
pub fn within(len: u32, most: u32) -> Option<u32> {
    let less = opaque((len as u64).wrapping_sub(1));
    (less < most as u64).then_some(less as u32 + 1)
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
        if at > 31 {
            return false;
        }
        let Some(len) = within(len, 28) else { return false };
        // SAFETY: 28 bytes behind any byte of a header are still inside the map value.
        unsafe {
            let to = header.as_ptr().cast::<u8>().add(at as usize);
            helpers::bpf_xdp_load_bytes(self.md, offset, to.cast(), len) == 0
        }
    }
}

impl Packet for XdpPacket {
    #[inline(always)]
    fn head(&self) -> Option<&[u8; HEAD]> {
        // SAFETY: the kernel keeps what lies between the two for the run, and the verifier sees the bound.
        unsafe {
            let (start, end) = ((*self.md).data as usize, (*self.md).data_end as usize);
            if start + HEAD > end { None } else { Some(&*(start as *const [u8; HEAD])) }
        }
    }
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context lives as long as the run.
        (unsafe { helpers::bpf_xdp_get_buff_len(self.md) }) as u32
    }
    #[inline(always)]
    fn len_of(&self, end: u32) -> u32 {
        // SAFETY: the context lives as long as the run.
        let (start, data_end) = unsafe { ((*self.md).data as usize, (*self.md).data_end as usize) };
        // In full width: half a pointer is none.
        let near = data_end - start;
        if end as usize <= near { near as u32 } else { self.len() }
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
        let Some(len) = within(len, PIECE_BYTES as u32) else { return false };
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
        if at > 31 {
            return false;
        }
        let Some(len) = within(len, 28) else { return false };
        // SAFETY: 28 bytes behind any byte of a header are still inside the map value.
        unsafe {
            let to = header.as_ptr().cast::<u8>().add(at as usize);
            helpers::bpf_skb_load_bytes(self.skb.cast(), offset, to.cast(), len) == 0
        }
    }
}

impl Packet for SkbPacket {
    #[inline(always)]
    fn head(&self) -> Option<&[u8; HEAD]> {
        // SAFETY: the kernel keeps what lies between the two for the run, and the verifier sees the bound.
        unsafe {
            let (start, end) = ((*self.skb).data as usize, (*self.skb).data_end as usize);
            if start + HEAD > end { None } else { Some(&*(start as *const [u8; HEAD])) }
        }
    }
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
        let Some(len) = within(len, PIECE_BYTES as u32) else { return false };
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

/// What `look` says of the socket that would take a segment; 0: none. `len`: of the tuple, IPv4's or IPv6's.
#[inline(always)]
fn socket<F: Fn(*mut bpf_sock) -> u32>(
    context: *mut c_void,
    tuple: &mut bpf_sock_tuple,
    len: u32,
    look: F,
) -> u32 {
    // SAFETY: the tuple is filled to `len`; the reference is given back before anything else happens.
    unsafe {
        let socket = helpers::bpf_skc_lookup_tcp(
            context,
            tuple,
            len,
            u64::MAX, // this network namespace
            0,
        );
        if socket.is_null() {
            return 0;
        }
        let found = look(socket);
        helpers::bpf_sk_release(socket.cast());
        found
    }
}

/// Its state, as `TCP_*` numbers it.
#[inline(always)]
fn state(socket: *mut bpf_sock) -> u32 {
    // SAFETY: called for a socket that is held.
    unsafe { (*socket).state }
}

const TCP_ESTABLISHED: u32 = 1;
const TCP_SYN_RECV: u32 = 3;
const TCP_TIME_WAIT: u32 = 6;
const TCP_CLOSE: u32 = 7;
const TCP_NEW_SYN_RECV: u32 = 12;
const TCP_LISTEN: u32 = 10;

#[inline(always)]
fn quarter(address: &[u8; 16], i: usize) -> u32 {
    u32::from_ne_bytes([address[4 * i], address[4 * i + 1], address[4 * i + 2], address[4 * i + 3]])
}

#[inline(always)]
fn quarters(address: &[u8; 16]) -> [u32; 4] {
    [quarter(address, 0), quarter(address, 1), quarter(address, 2), quarter(address, 3)]
}

#[inline(always)]
fn is_ipv4(address: &[u8; 16]) -> bool {
    quarter(address, 0) | quarter(address, 1) == 0 && quarter(address, 2) == 0xffff_u32.to_be()
}

#[inline(always)]
fn look_up<F: Fn(*mut bpf_sock) -> u32>(
    context: *mut c_void,
    remote: (&[u8; 16], u16),
    local: (&[u8; 16], u16),
    look: F,
) -> u32 {
    let ipv4 = is_ipv4(local.0);
    // SAFETY: integers: zeros are a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    if ipv4 {
        tuple.__bindgen_anon_1.ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: quarter(remote.0, 3),
            daddr: quarter(local.0, 3),
            sport: remote.1.to_be(),
            dport: local.1.to_be(),
        };
        socket(context, &mut tuple, 12, look)
    } else {
        tuple.__bindgen_anon_1.ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: quarters(remote.0),
            daddr: quarters(local.0),
            sport: remote.1.to_be(),
            dport: local.1.to_be(),
        };
        socket(context, &mut tuple, 36, look)
    }
}

/// Whether somebody listens on the service address and port (host order). Not inlined: as above.
#[inline(never)]
pub fn listening(context: *mut c_void, address: &[u8; 16], port: u16) -> bool {
    look_up(context, (&[0; 16], 0), (address, port), state) == TCP_LISTEN
}

/// Whether an established socket takes this segment, or, where it has bytes, one that those will establish: they may
/// come before the client's ACK, or with it. Not inlined: its stack is given back, and the verifier knows nothing of how
/// it went.
#[inline(never)]
pub fn established(context: *mut c_void, frame: &Frame) -> bool {
    let key = &frame.key;
    let state = look_up(context, (&key.remote, key.remote_port), (&key.local, key.local_port), state);
    let has_bytes = frame.payload_len > 0 && frame.flags & (tcp::SYN | tcp::RST) == 0;
    state == TCP_ESTABLISHED || (has_bytes && (state == TCP_SYN_RECV || state == TCP_NEW_SYN_RECV))
}

/// What takes a segment with bytes.
pub mod taker {
    /// Nothing that would accept them: the kernel answers with a RST, or not at all.
    pub const NOBODY: u32 = 1;
    /// A connection that is established, or that this very segment establishes (it has a valid SYN cookie).
    pub const CONNECTION: u32 = 2;
    /// One that opens or ends.
    pub const OTHER: u32 = 3;
}

/// One of [`taker`]. Not inlined: as above.
#[inline(never)]
pub fn taker(context: *mut c_void, frame: &Frame) -> u32 {
    let key = &frame.key;
    let look = |socket: *mut bpf_sock| match state(socket) {
        TCP_ESTABLISHED => taker::CONNECTION,
        TCP_LISTEN if has_cookie(socket, frame) => taker::CONNECTION,
        TCP_LISTEN | TCP_TIME_WAIT | TCP_CLOSE => taker::NOBODY,
        _ => taker::OTHER,
    };
    match look_up(context, (&key.remote, key.remote_port), (&key.local, key.local_port), look) {
        0 => taker::NOBODY,
        found => found,
    }
}

/// Whether this listener would make a connection of the segment by its SYN cookie. The helper reads addresses, ports and
/// numbers alone: headers are made for it, whatever options the segment's own have.
#[inline(always)]
fn has_cookie(socket: *mut bpf_sock, frame: &Frame) -> bool {
    let key = &frame.key;
    let ports = u32::from_ne_bytes([
        (key.remote_port >> 8) as u8,
        key.remote_port as u8,
        (key.local_port >> 8) as u8,
        key.local_port as u8,
    ]);
    // Data offset 5; ACK and no other flag of those that the helper looks at.
    let flags = u32::from_be(0x5000_0000 | (frame.flags as u32) << 16);
    let mut tcp = [ports, frame.sequence.to_be(), frame.acknowledgment.to_be(), flags, 0];
    let len = size_of_val(&tcp) as u32;
    let tcp = tcp.as_mut_ptr().cast();
    // SAFETY: the socket is held, and both headers are as long as is said.
    let valid = unsafe {
        if is_ipv4(&key.local) {
            let mut ip = [u32::from_be(0x4500_0000), 0, 0, quarter(&key.remote, 3), quarter(&key.local, 3)];
            helpers::bpf_tcp_check_syncookie(socket.cast(), ip.as_mut_ptr().cast(), 20, tcp, len)
        } else {
            let (remote, local) = (quarters(&key.remote), quarters(&key.local));
            let mut ip = [
                u32::from_be(0x6000_0000),
                0,
                remote[0],
                remote[1],
                remote[2],
                remote[3],
                local[0],
                local[1],
                local[2],
                local[3],
            ];
            helpers::bpf_tcp_check_syncookie(socket.cast(), ip.as_mut_ptr().cast(), 40, tcp, len)
        }
    };
    valid == 0
}
