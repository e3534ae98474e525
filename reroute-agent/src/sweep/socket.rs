//! The raw ICMP socket: many packets in one system call, each way.
#![allow(unsafe_code)]

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use std::ffi::c_int;
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::Ipv4Addr;

/// Packets in one call.
pub const BATCH: usize = 64;
/// What is read of a packet: IP header with options, ICMP header, and the same again of the packet that it is about.
const READ: usize = 192;
/// `ICMP_FILTER` of <linux/icmp.h>: types whose bit is set are not delivered.
const ICMP_FILTER: c_int = 1;

pub struct IcmpSocket {
    fd: OwnedFd,
    buffers: Box<[[u8; READ]; BATCH]>,
}

impl IcmpSocket {
    /// Sends with "don't fragment", whatever path MTU the kernel believes in; delivers the `types` named, alone.
    /// Errors: EPERM without CAP_NET_RAW; ENODEV.
    pub fn open(interface: Option<&str>, types: &[u8]) -> io::Result<IcmpSocket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::ICMP))?;
        let wanted = types.iter().filter(|t| **t < 32).fold(0u32, |bits, t| bits | 1 << t);
        set(fd.as_fd(), libc::SOL_RAW, ICMP_FILTER, &!wanted)?;
        set(fd.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_PROBE)?;
        // A whole sweep's answers wait here, even if nobody reads for a while.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&fd, 4 << 20)?;
        rustix::net::sockopt::set_socket_send_buffer_size_force(&fd, 4 << 20)?;
        if let Some(interface) = interface {
            bind_to(fd.as_fd(), interface)?;
        }
        Ok(IcmpSocket { fd, buffers: Box::new([[0; READ]; BATCH]) })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends up to [`BATCH`] ICMP messages. Gives how many the kernel took; the error is the first one's, if it took none.
    pub fn send(&self, messages: &[(Ipv4Addr, Vec<u8>)]) -> io::Result<usize> {
        let messages = messages.get(..BATCH.min(messages.len())).unwrap_or_default();
        let mut addresses: Vec<libc::sockaddr_in> =
            messages.iter().map(|(to, _)| socket_address(*to)).collect();
        let mut parts: Vec<libc::iovec> = messages
            .iter()
            .map(|(_, bytes)| libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            })
            .collect();
        let mut headers: Vec<libc::mmsghdr> = addresses
            .iter_mut()
            .zip(&mut parts)
            .map(|(address, part)| {
                // SAFETY: all-zero is a valid mmsghdr.
                let mut header: libc::mmsghdr = unsafe { zeroed() };
                header.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
                header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
                header.msg_hdr.msg_iov = part;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        // SAFETY: each header points to an address and a part that live until the call returns; the kernel only reads
        // the bytes.
        let sent = unsafe {
            libc::sendmmsg(
                self.fd.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as u32,
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// What has come, up to [`BATCH`] packets from their IP header on; longer ones are cut. Empty: nothing waits.
    pub fn receive(&mut self) -> io::Result<impl Iterator<Item = &[u8]>> {
        let mut parts: Vec<libc::iovec> = self
            .buffers
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: READ })
            .collect();
        let mut headers: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: all-zero is a valid mmsghdr.
                let mut header: libc::mmsghdr = unsafe { zeroed() };
                header.msg_hdr.msg_iov = part;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        // SAFETY: each header points to a buffer of READ bytes that lives as long as `self`.
        let got = unsafe {
            let (headers, count) = (headers.as_mut_ptr(), headers.len() as u32);
            libc::recvmmsg(self.fd.as_raw_fd(), headers, count, libc::MSG_DONTWAIT, std::ptr::null_mut())
        };
        let got = match usize::try_from(got) {
            Ok(got) => got,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => 0,
                error => return Err(error),
            },
        };
        let lengths: Vec<usize> = headers.iter().take(got).map(|h| (h.msg_len as usize).min(READ)).collect();
        Ok(self.buffers.iter().zip(lengths).filter_map(|(buffer, length)| buffer.get(..length)))
    }
}

fn socket_address(to: Ipv4Addr) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(to).to_be() },
        sin_zero: [0; 8],
    }
}

fn set<T: Copy>(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is plain and outlives the call, which reads exactly its size.
    let done = unsafe {
        let value = std::ptr::from_ref(value).cast();
        libc::setsockopt(fd.as_raw_fd(), level, name, value, size_of::<T>() as u32)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind_to(fd: BorrowedFd<'_>, interface: &str) -> io::Result<()> {
    let name = interface.as_bytes();
    // SAFETY: `name` outlives the call, which reads exactly its bytes.
    let done = unsafe {
        let (value, length) = (name.as_ptr().cast(), size_of_val(name) as u32);
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, value, length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
