//! System calls that have no safe wrapper.
#![allow(unsafe_code)]

use rustix::thread::UnshareFlags;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Moves the calling thread into new namespaces.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the flags given here are namespaces and FS only, never FILES: no descriptor changes its meaning.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags.difference(UnshareFlags::FILES)) }?)
}

/// Makes the calling thread SCHED_FIFO; what it starts is ordinary again.
pub fn become_fifo(priority: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` outlives the call; pid 0 is the calling thread.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &param) };
    if done != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an interface of the calling thread's network namespace up or down. `before` runs right before the call.
pub fn set_link<T>(name: &str, up: bool, before: impl FnOnce() -> T) -> io::Result<T> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of a live ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let bit = libc::IFF_UP as libc::c_short;
    request.ifr_ifru.ifru_flags = if up { flags | bit } else { flags & !bit };
    let stamp = before();
    // SAFETY: SIOCSIFFLAGS reads a live ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stamp)
}

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Makes a TAP of this name in the calling thread's network namespace; it lives as long as the returned file.
pub fn open_tap(name: &str) -> io::Result<std::fs::File> {
    let tap = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes a live ifreq.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tap)
}

/// Sends whole frames by any interface of the network namespace it was opened in; receives none.
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// `mark`: `skb->mark` of what it sends.
    pub fn open(mark: u32) -> io::Result<PacketSocket> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let (value, size) = (std::ptr::from_ref(&mark).cast(), std::mem::size_of_val(&mark));
        // SAFETY: `value` points to `size` bytes that live during the call.
        let done = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_MARK, value, size as u32) };
        if done != 0 { Err(io::Error::last_os_error()) } else { Ok(PacketSocket(socket)) }
    }

    pub fn send(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        // SAFETY: sockaddr_ll is plain data; all zeroes is a valid value.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = interface as i32;
        // The protocol that the frame itself states.
        if let Some(protocol) = frame.get(12..14).and_then(|p| p.try_into().ok()) {
            to.sll_protocol = u16::from_ne_bytes(protocol);
        }
        let size = std::mem::size_of_val(&to) as u32;
        // SAFETY: frame and address live during the call, and have the lengths given.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                std::ptr::from_ref(&to).cast(),
                size,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A word that programs read: off until it is turned on, for all of them at one moment.
pub struct Switch(OwnedFd);

impl Switch {
    pub fn off() -> io::Result<Switch> {
        let (key_size, value_size) = (4, 4);
        let map =
            MapCreate { map_type: BPF_MAP_TYPE_ARRAY, key_size, value_size, max_entries: 1, map_flags: 0 };
        bpf(BPF_MAP_CREATE, &map).map(Switch)
    }

    /// As an instruction names it.
    pub fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    pub fn turn_on(&self) -> io::Result<()> {
        let (key, value) = (0u32, 1u32);
        let update = MapUpdate {
            map_fd: self.0.as_raw_fd() as u32,
            key: std::ptr::from_ref(&key) as u64,
            value: std::ptr::from_ref(&value) as u64,
            flags: 0,
        };
        call(BPF_MAP_UPDATE_ELEM, &update).map(drop)
    }
}

/// Attaches a program to an interface of the calling thread's network namespace, for as long as the returned link is
/// open: to what comes in by it, or to what goes out.
pub fn attach_tcx(interface: u32, ingress: bool, instructions: &[u64]) -> io::Result<OwnedFd> {
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..ProgLoad::default()
    };
    let program = bpf(BPF_PROG_LOAD, &load)?;
    let attach_type = if ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS };
    let link =
        LinkCreate { prog_fd: program.as_raw_fd() as u32, target_ifindex: interface, attach_type, flags: 0 };
    bpf(BPF_LINK_CREATE, &link)
}

/// Attaches an XDP program that passes everything (`r0 = XDP_PASS; exit`) to an interface of the calling thread's
/// network namespace, for as long as the returned link is open. A veth delivers what its peer sends by `XDP_TX`
/// only when it has an XDP program itself.
pub fn attach_xdp_pass(interface: u32) -> io::Result<OwnedFd> {
    let instructions: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: 2,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        prog_flags: BPF_F_XDP_HAS_FRAGS,
        expected_attach_type: BPF_XDP,
        ..ProgLoad::default()
    };
    let program = bpf(BPF_PROG_LOAD, &load)?;
    bpf(
        BPF_LINK_CREATE,
        &LinkCreate {
            prog_fd: program.as_raw_fd() as u32,
            target_ifindex: interface,
            attach_type: BPF_XDP,
            flags: XDP_FLAGS_DRV_MODE,
        },
    )
}

/// One of those commands that give a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is a repr(C) prefix of bpf_attr, of the size given; what it points to outlives the call.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), std::mem::size_of::<T>())
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}
