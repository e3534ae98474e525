//! A network driver's name, whatever `/sys` shows (a mount may belong to another namespace).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    _version_firmware_bus_rom: [u8; 128],
    _reserved: [u8; 12],
    _counts: [u32; 5],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// `None`: the interface has no driver of its own (loopback). Errors: there is no such interface.
pub fn driver(interface: &str) -> io::Result<Option<String>> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        _version_firmware_bus_rom: [0; 128],
        _reserved: [0; 12],
        _counts: [0; 5],
    };
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut info).cast();
    // SAFETY: the kernel reads the name and fills the live structure behind `ifru_data`, whose size it knows by the command.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &mut request) } != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EOPNOTSUPP) { Ok(None) } else { Err(error) };
    }
    let end = info.driver.iter().position(|b| *b == 0).unwrap_or(info.driver.len());
    let name = String::from_utf8_lossy(&info.driver[..end]).into_owned();
    Ok(Some(name).filter(|name| !name.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::namespace::{ip, run};

    #[test]
    fn drivers_have_names_and_loopback_has_none() {
        run(|| {
            ip("link add va type veth peer name vb");
            ip("tuntap add mode tap ta");
            assert_eq!(driver("va").unwrap().as_deref(), Some("veth"));
            assert_eq!(driver("ta").unwrap().as_deref(), Some("tun"));
            assert_eq!(driver("lo").unwrap(), None);
            assert_eq!(driver("nothere0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        });
    }
}
