//! A bare TCP ACK from the service address whose numbers fit nothing: the client's TCP answers with its own, and that answer
//! draws an exact RST from this node's kernel, which has no such socket (CTDB calls it a tickle).

use crate::sweep::packet::checksum;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};
use std::io;
use std::net::SocketAddrV4;

const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
const TTL: u8 = 64;
const ACK: u8 = 0x10;
/// A third of all numbers: whatever fits a window (1 GiB at most) in one round does not in the next.
const STEP: u32 = 0x5555_5555;

/// Sends only: the protocol is in each packet, with an IP header of our own.
pub struct Tickler {
    fd: OwnedFd,
}

impl Tickler {
    /// Errors: EPERM without CAP_NET_RAW.
    pub fn open() -> io::Result<Tickler> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(Tickler { fd: socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::RAW))? })
    }

    pub fn send(&self, service: SocketAddrV4, client: SocketAddrV4, round: u32) -> io::Result<()> {
        let packet = ack(service, client, round);
        sendto(&self.fd, &packet, SendFlags::DONTWAIT, &SocketAddrV4::new(*client.ip(), 0))?;
        Ok(())
    }
}

/// IPv4 (RFC 791), whose checksum and identification the kernel fills in, and TCP (RFC 9293).
fn ack(from: SocketAddrV4, to: SocketAddrV4, round: u32) -> Vec<u8> {
    let length = ((IP_HEADER + TCP_HEADER) as u16).to_be_bytes();
    let (source, destination) = (from.ip().octets(), to.ip().octets());
    let number = round.wrapping_sub(1).wrapping_mul(STEP).to_be_bytes();
    let data_offset = ((TCP_HEADER / 4) << 4) as u8;
    let tcp = |sum: u16| {
        let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        let rest = [[data_offset, ACK, 0, 0], [sum.to_be_bytes()[0], sum.to_be_bytes()[1], 0, 0]].concat();
        [ports, number.to_vec(), number.to_vec(), rest].concat()
    };
    let pseudo = [source, destination, [0, ipproto_tcp(), 0, TCP_HEADER as u8]].concat();
    let sum = checksum(&[pseudo, tcp(0)].concat());
    // Don't fragment.
    let ip =
        [[0x45, 0, length[0], length[1]], [0, 0, 0x40, 0], [TTL, ipproto_tcp(), 0, 0], source, destination];
    [ip.concat(), tcp(sum)].concat()
}

fn ipproto_tcp() -> u8 {
    libc::IPPROTO_TCP as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::namespace::{self, eventually};
    use crate::netlink::sockets::{self, Filter};
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn its_numbers_differ_from_round_to_round_by_more_than_a_window() {
        let at = |round| {
            let packet = ack("192.168.33.2:2049".parse().unwrap(), "10.0.0.1:700".parse().unwrap(), round);
            assert_eq!(packet.len(), IP_HEADER + TCP_HEADER);
            assert_eq!(packet[24..28], packet[28..32]);
            u32::from_be_bytes(packet[24..28].try_into().unwrap())
        };
        assert_eq!(at(1), 0);
        for round in 1..8 {
            let apart = at(round + 1).wrapping_sub(at(round));
            assert!(apart > 1 << 30 && apart.wrapping_neg() > 1 << 30);
        }
    }

    /// The whole of it, on one kernel: a connection whose other end vanished without a word ends at once.
    #[test]
    fn a_connection_whose_other_end_is_gone_is_reset_and_one_that_is_well_is_not() {
        namespace::run(|| {
            let service: SocketAddrV4 = "127.0.0.2:2049".parse().unwrap();
            let listener = TcpListener::bind(service).unwrap();
            let connect = || {
                let client = TcpStream::connect(service).unwrap();
                let (server, _) = listener.accept().unwrap();
                (client, server)
            };
            let ((mut lost, gone), (mut well, mut stays)) = (connect(), connect());
            let at = |stream: &TcpStream| match stream.local_addr().unwrap() {
                std::net::SocketAddr::V4(at) => at,
                at => panic!("{at}"),
            };
            let of = |stream: &TcpStream| Filter {
                local: Some(((*service.ip()).into(), Some(2049))),
                remote: Some(((*at(stream).ip()).into(), Some(at(stream).port()))),
            };
            // What its end says of it is not heard.
            namespace::ip("link set lo down");
            assert_eq!(sockets::destroy(&of(&lost)).unwrap(), 1);
            drop(gone);
            namespace::ip("link set lo up");
            lost.set_nonblocking(true).unwrap();
            assert_eq!(
                lost.read(&mut [0]).unwrap_err().kind(),
                io::ErrorKind::WouldBlock,
                "it has not heard"
            );

            let tickler = Tickler::open().unwrap();
            tickler.send(service, at(&well), 1).unwrap();
            tickler.send(service, at(&lost), 1).unwrap();
            eventually("a reset", || {
                lost.read(&mut [0]).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset)
            });
            io::Write::write_all(&mut stays, b"x").unwrap();
            assert_eq!(well.read(&mut [0]).unwrap(), 1, "it goes on");
        });
    }
}
