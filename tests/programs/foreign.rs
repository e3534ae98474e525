//! TC programs of somebody else.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;
/// Before all others, if none is named.
const BPF_F_BEFORE: u32 = 8;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
pub const TCX_INGRESS: u32 = 46;
pub const TCX_EGRESS: u32 = 47;

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
}

#[repr(C)]
struct ObjectPin {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// What a program of one verdict says: the next one is asked ...
pub const NEXT: i32 = -1;
/// ... or nobody else is, and the packet passes.
pub const PASS: i32 = 0;

/// A TC program that says `verdict` to every packet.
pub struct Stranger {
    program: OwnedFd,
    /// Where it is attached, for as long as this is open.
    link: Option<OwnedFd>,
}

impl Stranger {
    pub fn load(verdict: i32) -> io::Result<Stranger> {
        // r0 = verdict; exit
        let instructions: [u64; 2] = [u64::from(verdict as u32) << 32 | 0xb7, 0x95];
        let mut prog_name = [0; 16];
        prog_name[..8].copy_from_slice(b"stranger");
        let program = bpf(
            BPF_PROG_LOAD,
            &ProgLoad {
                prog_type: BPF_PROG_TYPE_SCHED_CLS,
                insn_cnt: 2,
                insns: instructions.as_ptr() as u64,
                license: c"Apache-2.0".as_ptr() as u64,
                prog_name,
                ..ProgLoad::default()
            },
        )?;
        Ok(Stranger { program, link: None })
    }

    /// By a TCX link, behind all that are there, or before them.
    pub fn tcx(verdict: i32, interface: &str, hook: u32, before: bool) -> io::Result<Stranger> {
        let mut stranger = Stranger::load(verdict)?;
        let link = LinkCreate {
            prog_fd: stranger.program.as_raw_fd() as u32,
            target_ifindex: reroute_agent::config::interface_index(interface).unwrap(),
            attach_type: hook,
            flags: if before { BPF_F_BEFORE } else { 0 },
        };
        stranger.link = Some(bpf(BPF_LINK_CREATE, &link)?);
        Ok(stranger)
    }

    pub fn pin(&self, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let pin = ObjectPin { path: path.as_ptr() as u64, fd: self.program.as_raw_fd() as u32, flags: 0 };
        call(BPF_OBJ_PIN, &pin).map(drop)
    }

    /// How often it has run, while somebody has the kernel count that.
    pub fn runs(&self) -> u64 {
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.program.as_raw_fd())).unwrap();
        let line = info.lines().find_map(|l| l.strip_prefix("run_cnt:")).unwrap();
        line.trim().parse().unwrap()
    }
}

/// A TCX link that leaves every packet to the next program, for as long as it is open.
pub fn tcx_next(interface: &str, hook: u32) -> io::Result<Stranger> {
    Stranger::tcx(NEXT, interface, hook, false)
}

/// As many of these as the hook takes.
pub fn fill(interface: &str, hook: u32) -> Vec<Stranger> {
    let mut all = Vec::new();
    loop {
        match tcx_next(interface, hook) {
            Ok(one) => all.push(one),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ERANGE), "{error}");
                return all;
            }
        }
    }
}

/// Those that give a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is a repr(C) prefix of bpf_attr, of the size given; what it points to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
