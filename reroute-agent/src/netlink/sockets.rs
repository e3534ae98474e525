//! TCP sockets of this node: count them, destroy them (SOCK_DESTROY), so that a client reconnects at once.

use super::connection::{Connection, invalid};
use netlink_packet_core::Parseable;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, InetResponseHeader, SocketId, StateFlags, Timer,
};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use std::collections::HashSet;
use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};

/// Kernel number of the state.
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;

/// Which sockets are meant: every part that is given must match. IPv4-mapped IPv6 addresses count as IPv4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub local: Option<(IpAddr, Option<u16>)>,
    pub remote: Option<(IpAddr, Option<u16>)>,
}

/// One TCP socket, in any state but LISTEN. Addresses are canonical (a mapped one shows as IPv4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Kernel number of the state (1: ESTABLISHED).
    pub state: u8,
    /// What the kernel tells sockets apart by, whatever their ports.
    pub cookie: [u8; 8],
}

impl Filter {
    fn matches(&self, socket: &Tcp) -> bool {
        let end = |want: &Option<(IpAddr, Option<u16>)>, have: SocketAddr| {
            want.is_none_or(|(ip, port)| {
                ip.to_canonical() == have.ip() && port.is_none_or(|port| port == have.port())
            })
        };
        end(&self.local, socket.local) && end(&self.remote, socket.remote)
    }
}

/// Sockets that match.
pub fn list(filter: &Filter) -> io::Result<Vec<Tcp>> {
    Ok(find(&mut Connection::open(NETLINK_SOCK_DIAG)?, filter)?.into_iter().map(|(tcp, ..)| tcp).collect())
}

/// How many sockets match.
pub fn count(filter: &Filter) -> io::Result<u32> {
    Ok(list(filter)?.len() as u32)
}

impl Tcp {
    /// Its SYN has not been answered.
    pub fn is_connecting(&self) -> bool {
        self.state == SYN_SENT
    }
    /// It may still wait for something, or have something to send.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, TIME_WAIT | CLOSE)
    }
}

/// Whether this kernel destroys sockets: asked for one that cannot exist. Errors: EPERM without CAP_NET_ADMIN. (Before
/// Linux 4.5 the message itself is unknown: EINVAL.)
pub fn can_destroy() -> io::Result<bool> {
    let mut nobody = SocketId::new_v4();
    // Any cookie; nothing has port 0.
    nobody.cookie = [0xff; 8];
    let message = one(AF_INET, nobody);
    match Connection::open(NETLINK_SOCK_DIAG)?.change(SockDiagDestroy::new(message), 0) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Destroys what matches; the peer of an open connection gets a RST. Returns how many were destroyed. A socket
/// that is gone before its turn is no error. Errors: EPERM without CAP_NET_ADMIN; EOPNOTSUPP when the kernel was
/// built without CONFIG_INET_DIAG_DESTROY.
pub fn destroy(filter: &Filter) -> io::Result<u32> {
    destroy_where(filter, |_| true)
}

/// [`destroy`], but only those that `wanted` picks.
pub fn destroy_where(filter: &Filter, wanted: impl Fn(&Tcp) -> bool) -> io::Result<u32> {
    let mut connection = Connection::open(NETLINK_SOCK_DIAG)?;
    let mut destroyed = 0;
    let mut failure = None;
    for (tcp, family, id) in find(&mut connection, filter)? {
        if !wanted(&tcp) {
            continue;
        }
        let message = one(family, id);
        match connection.change(SockDiagDestroy::new(message), 0) {
            Ok(()) => destroyed += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            // Older kernels destroy none that only waits for its name to be free again; nothing is lost by it.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) && !tcp.is_alive() => {}
            // One that resists must not save the others.
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(destroyed), Err)
}

/// The sockets that there were at one moment.
#[derive(Clone, Debug, Default)]
pub struct Before(HashSet<[u8; 8]>);

impl Before {
    pub fn now(filter: &Filter) -> io::Result<Before> {
        Ok(Before(list(filter)?.into_iter().map(|tcp| tcp.cookie).collect()))
    }

    /// Whether a socket was there then. One that still connects counts as old: its SYN may have gone the old way.
    pub fn had(&self, tcp: &Tcp) -> bool {
        tcp.state != ESTABLISHED || self.0.contains(&tcp.cookie)
    }

    /// These alone.
    pub fn of(sockets: &[Tcp]) -> Before {
        Before(sockets.iter().map(|tcp| tcp.cookie).collect())
    }

    /// Whether it is one of them, whatever became of it.
    pub fn is_among(&self, tcp: &Tcp) -> bool {
        self.0.contains(&tcp.cookie)
    }
}

fn request(family: u8, socket_id: SocketId, extensions: ExtensionFlags) -> SockDiagMessage {
    let states = StateFlags::all() - StateFlags::LISTEN;
    SockDiagMessage::InetRequest(InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id })
}

fn one(family: u8, id: SocketId) -> SockDiagMessage {
    request(family, id, ExtensionFlags::empty())
}

fn all(family: u8, filter: &Filter, extensions: ExtensionFlags) -> SockDiagMessage {
    let mut id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    // The kernel narrows by port; addresses are compared here, where mapped ones are understood.
    id.source_port = filter.local.and_then(|(_, port)| port).unwrap_or(0);
    id.destination_port = filter.remote.and_then(|(_, port)| port).unwrap_or(0);
    request(family, id, extensions)
}

fn tcp(header: &InetResponseHeader) -> Tcp {
    let id = &header.socket_id;
    let end = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
    Tcp {
        local: end(id.source_address, id.source_port),
        remote: end(id.destination_address, id.destination_port),
        state: header.state,
        cookie: id.cookie,
    }
}

fn find(connection: &mut Connection, filter: &Filter) -> io::Result<Vec<(Tcp, u8, SocketId)>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        found.extend(connection.dump(
            all(family, filter, ExtensionFlags::empty()),
            Vec::new,
            |found, _, payload| {
                let header = InetResponseHeader::parse(payload).map_err(invalid)?;
                let tcp = tcp(&header);
                if filter.matches(&tcp) {
                    found.push((tcp, header.family, header.socket_id));
                }
                Ok(())
            },
        )?);
    }
    Ok(found)
}

/// Whether one of them waits: it has sent again what is not acknowledged yet; or it has sent something, and received
/// nothing since, for `ms` at least. (One that is idle has received last.)
pub fn any_waits(filter: &Filter, ms: u32) -> io::Result<bool> {
    let mut connection = Connection::open(NETLINK_SOCK_DIAG)?;
    for family in [AF_INET, AF_INET6] {
        let waiting = connection.dump(
            all(family, filter, ExtensionFlags::INFO),
            || false,
            |waiting: &mut bool, _, payload| {
                let response = InetResponse::parse(payload).map_err(invalid)?;
                let sent_again = matches!(response.header.timer, Some(Timer::Retransmit(_, 1..)));
                let unanswered = response.nlas.iter().any(|nla| match nla {
                    Nla::TcpInfo(info) => is_unanswered(info, ms),
                    _ => false,
                });
                let tcp = tcp(&response.header);
                *waiting |= tcp.state == ESTABLISHED && filter.matches(&tcp) && (sent_again || unanswered);
                Ok(())
            },
        )?;
        if waiting {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `info`: the kernel's `struct tcp_info`, which grows with its versions.
fn is_unanswered(info: &[u8], ms: u32) -> bool {
    let word = |at: usize| {
        let bytes = info.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let sent = word(offset_of!(libc::tcp_info, tcpi_last_data_sent));
    let received = word(offset_of!(libc::tcp_info, tcpi_last_data_recv));
    sent.zip(received).is_some_and(|(sent, received)| received >= ms && sent < received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::namespace::{self, eventually};
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    #[test]
    fn only_what_the_filter_says_is_destroyed() {
        namespace::run(|| {
            let nfs = TcpListener::bind("127.0.0.1:2049").unwrap();
            let other = TcpListener::bind("127.0.0.1:3000").unwrap();
            let (mut nfs_client, _nfs_server) = pair(&nfs);
            let (mut other_client, mut other_server) = pair(&other);
            let filter =
                Filter { remote: Some(("127.0.0.1".parse().unwrap(), Some(2049))), ..Filter::default() };
            assert_eq!(count(&filter).unwrap(), 1);
            assert_eq!(destroy(&filter).unwrap(), 1);
            let error = nfs_client.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            assert_eq!(count(&filter).unwrap(), 0);
            io::Write::write_all(&mut other_server, b"x").unwrap();
            assert_eq!(other_client.read(&mut [0]).unwrap(), 1, "a stranger's connection goes on");
            assert!(TcpStream::connect("127.0.0.1:2049").is_ok(), "the listener stands");
        });
    }

    #[test]
    fn who_asked_last_waits_and_who_heard_last_does_not() {
        namespace::run(|| {
            let listener = TcpListener::bind("127.0.0.1:2049").unwrap();
            let (mut client, mut server) = pair(&listener);
            let filter =
                Filter { remote: Some(("127.0.0.1".parse().unwrap(), Some(2049))), ..Filter::default() };
            assert!(!any_waits(&filter, 100).unwrap(), "nothing was sent");
            // Kernels count in jiffies: a few of them lie between what was heard and what is asked.
            let mut heard = || {
                io::Write::write_all(&mut server, b"x").unwrap();
                assert_eq!(client.read(&mut [0]).unwrap(), 1);
                client.try_clone().unwrap()
            };
            let mut client = heard();
            std::thread::sleep(std::time::Duration::from_millis(50));
            io::Write::write_all(&mut client, b"x").unwrap();
            assert!(!any_waits(&filter, 100).unwrap(), "not for so long");
            eventually("it waits", || any_waits(&filter, 100).unwrap());
            heard();
            std::thread::sleep(std::time::Duration::from_millis(150));
            assert!(!any_waits(&filter, 100).unwrap(), "it was answered");
        });
    }

    #[test]
    fn a_mapped_ipv6_socket_counts_as_ipv4() {
        namespace::run(|| {
            let listener = TcpListener::bind("[::]:2049").unwrap();
            let client = TcpStream::connect("127.0.0.1:2049").unwrap();
            let (mut server, _) = listener.accept().unwrap();
            assert!(server.local_addr().unwrap().is_ipv6());
            let filter = Filter {
                local: Some(("127.0.0.1".parse().unwrap(), Some(2049))),
                remote: Some(("127.0.0.1".parse().unwrap(), None)),
            };
            assert_eq!(count(&filter).unwrap(), 1);
            assert_eq!(destroy(&filter).unwrap(), 1);
            assert!(server.read(&mut [0]).is_err());
            eventually("the peer was reset", || client.peek(&mut [0]).is_err());
        });
    }

    #[test]
    fn the_wanted_ones_of_those_that_match() {
        namespace::run(|| {
            namespace::ip("addr add 127.0.0.9/32 dev lo");
            let listener = TcpListener::bind("127.0.0.1:2049").unwrap();
            let _pairs: Vec<_> = (0..3).map(|_| pair(&listener)).collect();
            let filter =
                Filter { remote: Some(("127.0.0.1".parse().unwrap(), Some(2049))), ..Filter::default() };
            let keep = list(&filter).unwrap()[0].local;
            assert_eq!(destroy_where(&filter, |tcp| tcp.local != keep).unwrap(), 2);
            assert_eq!(list(&filter).unwrap().iter().map(|t| t.local).collect::<Vec<_>>(), [keep]);
        });
    }

    #[test]
    fn what_was_opened_since_is_not_old() {
        namespace::run(|| {
            let listener = TcpListener::bind("127.0.0.1:2049").unwrap();
            let (mut old, _kept) = pair(&listener);
            let filter =
                Filter { remote: Some(("127.0.0.1".parse().unwrap(), Some(2049))), ..Filter::default() };
            let before = Before::now(&filter).unwrap();
            let (new, mut its_server) = pair(&listener);
            assert_eq!(destroy_where(&filter, |tcp| before.had(tcp)).unwrap(), 1);
            assert_eq!(old.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
            io::Write::write_all(&mut its_server, b"x").unwrap();
            assert_eq!(new.peek(&mut [0]).unwrap(), 1);
            let connecting = Tcp { state: 2, ..list(&filter).unwrap()[0] };
            assert!(before.had(&connecting), "its SYN may have gone to the old server");
        });
    }

    #[test]
    fn half_open_ones_count_too() {
        namespace::run(|| {
            namespace::ip("link add va type veth peer name vb");
            namespace::ip("addr add 10.9.0.1/24 dev va");
            namespace::ip("link set va up");
            namespace::ip("link set vb up");
            let address: SocketAddr = "10.9.0.2:2049".parse().unwrap();
            let connecting = std::thread::scope(|scope| {
                let connecting = scope.spawn(|| TcpStream::connect(address));
                let filter = Filter { remote: Some((address.ip(), Some(2049))), ..Filter::default() };
                eventually("a connect is under way", || count(&filter).unwrap() == 1);
                assert_eq!(destroy(&filter).unwrap(), 1);
                connecting.join().unwrap()
            });
            assert_eq!(connecting.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        });
    }
}
