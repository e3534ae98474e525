//! A packet socket: what passes an interface, with the kernel's stamps, and frames sent as they are.
#![allow(unsafe_code)]

use anyhow::{Context, bail};
use lab::namespace::NetNs;
use reroute_agent::config::interface_index;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const ETH: usize = 14;
const SERVICE_PORT: u16 = crate::frames::PORT;
/// Longest frame that is kept whole.
const WHOLE: usize = 2048;

pub struct Tap(OwnedFd);

/// A frame, cut at [`WHOLE`], and when it passed: CLOCK_BOOTTIME ns.
struct Passed {
    bytes: Vec<u8>,
    at: u64,
}

impl Passed {
    fn ip(&self) -> Option<&[u8]> {
        let is_tcp = self.bytes.get(12..14)? == [8, 0] && *self.bytes.get(ETH + 9)? == 6;
        if is_tcp { self.bytes.get(ETH..) } else { None }
    }
    fn tcp(&self) -> Option<&[u8]> {
        let ip = self.ip()?;
        ip.get(usize::from(ip[0] & 15) * 4..).filter(|tcp| tcp.len() >= 20)
    }
    /// Source and destination port.
    fn ports(&self) -> Option<(u16, u16)> {
        let tcp = self.tcp()?;
        Some((u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]])))
    }
    fn window(&self) -> Option<u16> {
        self.tcp().map(|tcp| u16::from_be_bytes([tcp[14], tcp[15]]))
    }
    /// Neither SYN nor FIN nor RST.
    fn is_plain(&self) -> bool {
        self.tcp().is_some_and(|tcp| tcp[13] & 7 == 0)
    }
    fn has_payload(&self) -> bool {
        let Some((ip, tcp)) = self.ip().zip(self.tcp()) else { return false };
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        // 0: a super-packet.
        total == 0 || total > usize::from(ip[0] & 15) * 4 + usize::from(tcp[12] >> 4) * 4
    }
}

impl Tap {
    pub fn open(namespace: &NetNs, interface: &str) -> anyhow::Result<Tap> {
        namespace.run(|| Tap::open_here(interface))?.context("a packet socket")
    }

    fn open_here(interface: &str) -> io::Result<Tap> {
        let index = interface_index(interface).ok_or(io::ErrorKind::NotFound)?;
        let every = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: makes a descriptor or gives -1.
        let fd =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(every)) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let on: libc::c_int = 1;
        // SAFETY: plain data, all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every;
        address.sll_ifindex = index as i32;
        // SAFETY: both pointers lead to live values of the sizes given.
        unsafe {
            let size = size_of::<libc::c_int>() as u32;
            let option = (&raw const on).cast();
            if libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, option, size) != 0
                || libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) != 0
            {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Tap(fd))
    }

    /// What has passed and was not looked at yet.
    fn passed(&self) -> anyhow::Result<Vec<Passed>> {
        let realtime = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let boot = reroute_agent::clock::now().0 as i128;
        let offset = boot - nanoseconds(realtime.tv_sec, realtime.tv_nsec);
        let mut all = Vec::new();
        loop {
            let mut bytes = vec![0; WHOLE];
            let mut control = [0_u64; 16];
            let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            // SAFETY: plain data, all zeroes is a value.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            // SAFETY: what the message points to outlives the call.
            let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
            if len < 0 {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(all),
                    io::ErrorKind::Interrupted => continue,
                    _ => return Err(error).context("reading a packet socket"),
                }
            }
            bytes.truncate(len as usize);
            // SAFETY: the kernel has filled the message and its control part.
            let stamp = unsafe {
                let header = libc::CMSG_FIRSTHDR(&message);
                if header.is_null() || (*header).cmsg_type != libc::SCM_TIMESTAMPNS {
                    bail!("a frame without a stamp");
                }
                libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned()
            };
            let at = (nanoseconds(stamp.tv_sec, stamp.tv_nsec) + offset) as u64;
            all.push(Passed { bytes, at });
        }
    }

    /// The last data segment that the client's `port` has sent, as it would be sent again.
    pub fn data_of(&self, port: u16) -> anyhow::Result<Vec<u8>> {
        let passed = self.passed()?;
        let data = passed.into_iter().rfind(|f| f.ports() == Some((port, SERVICE_PORT)) && f.has_payload());
        let mut frame = data.context("no data segment of the connection has passed")?.bytes;
        // Taken before the device would have summed it up.
        seal(&mut frame);
        Ok(frame)
    }

    /// When the client's `port` sent the data after which the server's window was closed.
    pub fn window_filled_by(&self, port: u16) -> anyhow::Result<u64> {
        let mut filled = None;
        for frame in self.passed()? {
            match frame.ports() {
                Some(ports) if ports == (port, SERVICE_PORT) && frame.has_payload() => {
                    filled = Some(frame.at);
                }
                Some((SERVICE_PORT, to)) if to == port && frame.is_plain() && frame.window() == Some(0) => {
                    return filled.context("the window was closed before any data");
                }
                _ => {}
            }
        }
        bail!("the server's window was never closed")
    }

    pub fn send(&self, frame: &[u8]) -> anyhow::Result<()> {
        // SAFETY: the frame outlives the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent != frame.len() as isize {
            return Err(io::Error::last_os_error()).context("sending a frame");
        }
        Ok(())
    }
}

fn nanoseconds(seconds: i64, rest: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

/// Writes the TCP checksum (RFC 9293) of a frame over IPv4.
fn seal(frame: &mut [u8]) {
    let ip = usize::from(frame[ETH] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([frame[ETH + 2], frame[ETH + 3]]));
    let (head, rest) = frame.split_at_mut(ETH + ip);
    let Some(tcp) = rest.get_mut(..total.saturating_sub(ip)).filter(|tcp| tcp.len() >= 20) else { return };
    tcp[16..18].fill(0);
    let words = |bytes: &[u8]| -> u64 {
        let (pairs, odd) = bytes.as_chunks::<2>();
        let last = odd.first().map_or(0, |b| u64::from(*b) << 8);
        pairs.iter().map(|p| u64::from(u16::from_be_bytes(*p))).sum::<u64>() + last
    };
    let mut sum = words(&head[ETH + 12..ETH + 20]) + 6 + tcp.len() as u64 + words(tcp);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    tcp[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
