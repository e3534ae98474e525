//! One request, its answers: a blocking netlink socket.

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::time::Duration;

/// Room for one read: the kernel fills at most 32 KiB of a dump at once.
const BUFFER: usize = 64 * 1024;
/// The kernel answers within the call: this long without an answer is a fault, not a slow kernel.
const PATIENCE: Duration = Duration::from_secs(1);
/// A table that changed while it was being read is read again, at most this often.
const DUMP_TRIES: u32 = 8;

pub(super) struct Connection {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One message of a datagram.
pub(super) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

pub(super) fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("netlink: {error}"))
}

/// The messages of one datagram.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let buffer = match NetlinkBuffer::new_checked(rest) {
            Ok(buffer) => buffer,
            Err(error) => {
                rest = &[];
                return Some(Err(invalid(error)));
            }
        };
        let length = (buffer.length() as usize).next_multiple_of(4).min(rest.len());
        let message = Message {
            kind: buffer.message_type(),
            flags: buffer.flags(),
            sequence: buffer.sequence_number(),
            payload: buffer.payload(),
        };
        rest = &rest[length..];
        Some(Ok(message))
    })
}

/// What an error or done message carries: 0 or a negative errno.
fn outcome(payload: &[u8]) -> io::Result<()> {
    if payload.len() < 4 {
        return Ok(()); // NLMSG_DONE may be empty
    }
    match ErrorBuffer::new_checked(payload).map_err(invalid)?.code() {
        None => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_abs())),
    }
}

impl Connection {
    /// A socket of `protocol` (NETLINK_ROUTE, NETLINK_SOCK_DIAG) in the calling thread's network namespace.
    pub fn open(protocol: isize) -> io::Result<Connection> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(PATIENCE),
        )?;
        Ok(Connection { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    fn send<I: NetlinkSerializable>(
        &mut self,
        message: impl Into<NetlinkPayload<I>>,
        flags: u16,
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = NetlinkMessage::new(Default::default(), message.into());
        packet.header.flags = NLM_F_REQUEST | flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    /// Asks for a change and waits for the kernel's answer. Errors: the kernel's errno.
    pub fn change<I: NetlinkSerializable>(
        &mut self,
        message: impl Into<NetlinkPayload<I>>,
        flags: u16,
    ) -> io::Result<()> {
        self.send(message, flags | NLM_F_ACK)?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            for message in messages(&self.buffer) {
                let message = message?;
                if message.sequence == self.sequence && message.kind == NLMSG_ERROR {
                    return outcome(message.payload);
                }
            }
        }
    }

    /// Reads a table. `each` gets type and payload of every entry; `restart` is called when the table changed
    /// under the reader and everything seen so far is void.
    pub fn dump<I: NetlinkSerializable, S>(
        &mut self,
        message: impl Into<NetlinkPayload<I>> + Clone,
        mut start: impl FnMut() -> S,
        mut each: impl FnMut(&mut S, u16, &[u8]) -> io::Result<()>,
    ) -> io::Result<S> {
        for _ in 0..DUMP_TRIES {
            self.send(message.clone(), NLM_F_DUMP)?;
            let mut seen = start();
            let mut interrupted = false;
            'reading: loop {
                self.buffer.clear();
                self.socket.recv(&mut self.buffer, 0)?;
                for message in messages(&self.buffer) {
                    let message = message?;
                    if message.sequence != self.sequence {
                        continue; // of a dump that was given up
                    }
                    interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                    match message.kind {
                        NLMSG_DONE | NLMSG_ERROR => {
                            outcome(message.payload)?;
                            break 'reading;
                        }
                        kind => each(&mut seen, kind, message.payload)?,
                    }
                }
            }
            if !interrupted {
                return Ok(seen);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "netlink: the table changed each time while it was read: try again",
        ))
    }
}
