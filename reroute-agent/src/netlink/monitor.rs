//! The kernel's notifications: a socket in multicast groups, read by a tokio task.
#![allow(unsafe_code)]

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rtnetlink::MulticastGroup;
use std::io;
use tokio::io::unix::AsyncFd;

pub(super) struct Monitor {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

pub(super) enum Heard<'a> {
    Datagram(&'a [u8]),
    /// The kernel had more to say than the socket could hold: look at the tables again.
    Overrun,
}

impl Monitor {
    /// Subscribes in the calling thread's network namespace. From here on nothing is missed unnoticed.
    pub fn open(groups: &[MulticastGroup]) -> io::Result<Monitor> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        // Groups 1 to 31 are bits of the address.
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
        socket.bind(&SocketAddr::new(0, mask))?;
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor, and names the same one for as long as it lives.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
        Ok(Monitor { socket, buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Waits for the next datagram. Errors: the socket is unusable.
    pub async fn next(&mut self) -> io::Result<Heard<'_>> {
        loop {
            let mut ready = self.socket.readable().await?;
            self.buffer.clear();
            match ready.try_io(|socket| socket.get_ref().recv(&mut self.buffer, 0)) {
                Err(_would_block) => continue,
                Ok(Ok(_)) => break,
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Heard::Overrun),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(Err(error)) => return Err(error),
            }
        }
        Ok(Heard::Datagram(&self.buffer))
    }
}
