//! TC programs of somebody else.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
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
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// A TCX link that leaves every packet to the next program (`r0 = TCX_NEXT; exit`), for as long as it is open.
pub fn tcx_next(interface: &str, hook: u32) -> io::Result<OwnedFd> {
    let instructions: [u64; 2] = [0xffff_ffff_0000_00b7, 0x0000_0000_0000_0095];
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
    bpf(
        BPF_LINK_CREATE,
        &LinkCreate {
            prog_fd: program.as_raw_fd() as u32,
            target_ifindex: reroute_agent::config::interface_index(interface).unwrap(),
            attach_type: hook,
            flags: 0,
        },
    )
}

/// As many of these as the hook takes.
pub fn fill(interface: &str, hook: u32) -> Vec<OwnedFd> {
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

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attributes` is a repr(C) prefix of bpf_attr, of the size given; what it points to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
