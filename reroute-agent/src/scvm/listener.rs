//! Whether a socket listens on the service address and port: asked of the kernel by sock_diag.
//!
//! The programs look only when a pulse or a new connection comes in; a server that nobody talks to yet must not be
//! taken for a dead one.

use netlink_packet_core::{
    ErrorBuffer, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::net::Ipv4Addr;

pub struct Listener {
    socket: Socket,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Listener {
    /// In the calling thread's network namespace.
    pub fn new(address: Ipv4Addr, port: u16) -> io::Result<Listener> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut socket_id = SocketId::new_v4();
        socket_id.source_address = address.into();
        socket_id.source_port = port;
        // Any socket will do (INET_DIAG_NOCOOKIE). Without a peer only a listener can match, and the kernel finds
        // it as it would for a SYN: bound to this address, to any, or to any of IPv6.
        socket_id.cookie = [0xff; 8];
        let message = SockDiagMessage::InetRequest(InetRequest {
            family: AF_INET,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id,
        });
        let mut packet = NetlinkMessage::new(Default::default(), NetlinkPayload::from(message));
        packet.header.flags = NLM_F_REQUEST;
        packet.finalize();
        let mut request = vec![0; packet.buffer_len()];
        packet.serialize(&mut request);
        Ok(Listener { socket, request, answer: Vec::with_capacity(4096) })
    }

    /// Errors: the kernel gave none of the two answers.
    pub fn is_there(&mut self) -> io::Result<bool> {
        // What an earlier call that failed has left is not the answer to this one.
        while self.receive().is_ok() {}
        self.socket.send(&self.request, 0)?;
        // The kernel has answered when `send` returns.
        self.receive()?;
        let answer = NetlinkBuffer::new_checked(&self.answer).map_err(invalid)?;
        if answer.message_type() != NLMSG_ERROR {
            return Ok(true);
        }
        match ErrorBuffer::new_checked(answer.payload()).map_err(invalid)?.code() {
            Some(code) if code.get() == -libc::ENOENT => Ok(false),
            Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_abs())),
            None => Err(invalid("an acknowledgement, not an answer")),
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        self.answer.clear();
        self.socket.recv(&mut self.answer, libc::MSG_DONTWAIT)
    }
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("sock_diag: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_listener_is_seen_however_it_is_bound_and_a_connection_is_none() {
        for bind in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let server = TcpListener::bind(bind).unwrap();
            let port = server.local_addr().unwrap().port();
            let mut listener = Listener::new(Ipv4Addr::LOCALHOST, port).unwrap();
            assert!(listener.is_there().unwrap(), "{bind}");
            let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let _accepted = server.accept().unwrap();
            drop(server);
            assert!(!listener.is_there().unwrap(), "{bind}: only its connection is left");
            assert!(!listener.is_there().unwrap());
        }
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let mut other = Listener::new(Ipv4Addr::new(127, 0, 0, 2), port).unwrap();
        assert!(!other.is_there().unwrap(), "on another address");
    }
}
