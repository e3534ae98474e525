//! CLOCK_BOOTTIME: the one clock that decides anything.

use reroute_core::ids::{BootNs, Incarnation, WallMs};

pub fn now() -> BootNs {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    BootNs(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// The wall clock: only for what must outlive a reboot, and for people.
pub fn wall() -> WallMs {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    WallMs(u64::try_from(t.tv_sec).unwrap_or(0) * 1000 + t.tv_nsec as u64 / 1_000_000)
}

/// Tells this run of the process from any other on this node: never repeats while the node is up, and is drawn
/// from the wall clock so that a reboot does not repeat one either. Decides nothing but "same or not".
pub fn new_incarnation() -> Incarnation {
    let wall = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Incarnation(wall.tv_sec as u64 * 1_000_000_000 + wall.tv_nsec as u64)
}

/// Names this boot of the node: the kernel's random boot id, first half.
pub fn boot_id() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).map_err(std::io::Error::other)
}
