//! Whole records, or none.
//!
//! libnfs 4.0 keeps what it has read of a reply when its connection ends, and takes the first bytes of the next
//! connection for the rest (its issues 424 and 497): a wrong reply, and a stream that it never finds its way in again.
//! It reads by `recv`. This one, which the linker prefers, gives it a record (RFC 5531, section 11) when all of it has
//! come, and until then nothing: so nothing is left over.

use libc::{c_int, c_void, size_t, ssize_t};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// The descriptor that is read so; -1: none.
static SOCKET: AtomicI32 = AtomicI32::new(-1);
/// What is still to be handed out of a record that has come.
static LEFT: AtomicUsize = AtomicUsize::new(0);
const MARK: usize = 4;

/// From now on records are read whole by this descriptor.
pub fn watch(fd: c_int) {
    SOCKET.store(fd, Ordering::Relaxed);
}

/// Like recv(2).
///
/// # Safety
/// `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(fd: c_int, buffer: *mut c_void, length: size_t, flags: c_int) -> ssize_t {
    if fd != SOCKET.load(Ordering::Relaxed) || fd < 0 {
        // SAFETY: as the caller promises.
        return unsafe { really(fd, buffer, length, flags) };
    }
    if LEFT.load(Ordering::Relaxed) == 0 {
        match whole_record(fd) {
            Some(bytes) => LEFT.store(bytes, Ordering::Relaxed),
            None if has_ended(fd) => discard(fd),
            None => {
                // SAFETY: this thread's own errno.
                unsafe { *libc::__errno_location() = libc::EAGAIN };
                return -1;
            }
        }
    }
    let left = LEFT.load(Ordering::Relaxed);
    let wanted = if left == 0 { length } else { length.min(left) };
    // SAFETY: `wanted` is not more than the caller has room for.
    let got = unsafe { really(fd, buffer, wanted, flags) };
    LEFT.store(usize::try_from(got).map_or(0, |got| left.saturating_sub(got)), Ordering::Relaxed);
    got
}

unsafe fn really(fd: c_int, buffer: *mut c_void, length: size_t, flags: c_int) -> ssize_t {
    let none = std::ptr::null_mut::<c_void>();
    // SAFETY: recv(2) is recvfrom(2) without an address; the caller answers for the buffer.
    unsafe { libc::syscall(libc::SYS_recvfrom, fd, buffer, length, flags, none, none) as ssize_t }
}

/// The length of the next record with its mark, if all of it waits in the socket. Until then, poll(2) is quiet about it.
fn whole_record(fd: c_int) -> Option<usize> {
    let mut mark = [0u8; MARK];
    // SAFETY: `mark` has room for what is asked.
    let got = unsafe { really(fd, mark.as_mut_ptr().cast(), MARK, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    let wanted = match got {
        4 => MARK + (u32::from_be_bytes(mark) & 0x7fff_ffff) as usize,
        _ => MARK,
    };
    let mut waiting: c_int = 0;
    // SAFETY: FIONREAD writes an int.
    unsafe { libc::ioctl(fd, libc::FIONREAD, &mut waiting) };
    let is_whole = got == 4 && usize::try_from(waiting).is_ok_and(|waiting| waiting >= wanted);
    let lowest = c_int::try_from(if is_whole { 1 } else { wanted }).unwrap_or(1);
    let (value, size) = (std::ptr::from_ref(&lowest).cast(), size_of::<c_int>() as u32);
    // SAFETY: `value` points to an int that lives during the call.
    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, value, size) };
    is_whole.then_some(wanted)
}

/// No more will come.
fn has_ended(fd: c_int) -> bool {
    let ended = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
    let mut asked = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one pollfd, and no waiting.
    unsafe { libc::poll(&mut asked, 1, 0) > 0 && asked.revents & ended != 0 }
}

/// Reads the beginning of a record whose end will not come.
fn discard(fd: c_int) {
    let mut scratch = [0u8; 4096];
    loop {
        let mut waiting: c_int = 0;
        // SAFETY: FIONREAD writes an int.
        unsafe { libc::ioctl(fd, libc::FIONREAD, &mut waiting) };
        if waiting <= 0 {
            return;
        }
        // SAFETY: `scratch` has room for what is asked.
        let got = unsafe { really(fd, scratch.as_mut_ptr().cast(), scratch.len(), libc::MSG_DONTWAIT) };
        if got <= 0 {
            return;
        }
    }
}
