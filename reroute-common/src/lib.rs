//! The ABI between the programs in the kernel and the agent, and the pulse that crosses the wire.
//!
//! Integers only, padding spelled out, sizes asserted at compile time: what userspace reads from a map is what
//! the programs wrote. Multi-byte wire fields are little endian; addresses are IPv6 or IPv4-mapped, network order.
#![cfg_attr(not(test), no_std)]

pub mod admission;
pub mod control;
pub mod event;
pub mod flow;
pub mod measure;
pub mod pulse;
pub mod siphash;
pub mod table;

/// The networks a host and an SCVM share. The value is what maps, pulses and config carry.
pub mod network {
    pub const PRIVATE: u32 = 0;
    pub const STORAGE: u32 = 1;
    pub const MANAGEMENT: u32 = 2;
    pub const COUNT: usize = 3;
}

/// Classes of RPC that are counted and timed apart.
pub mod class {
    pub const NULL: u32 = 0;
    pub const READ: u32 = 1;
    /// WRITE and COMMIT.
    pub const WRITE: u32 = 2;
    /// Everything else of NFS and MOUNT.
    pub const METADATA: u32 = 3;
    pub const COUNT: usize = 4;

    /// It has to reach the storage behind the server.
    pub const fn is_data(class: u32) -> bool {
        class == READ || class == WRITE
    }
}

/// An IPv4 address as the maps hold it: `::ffff:a.b.c.d`.
pub const fn mapped_ipv4(octets: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = octets;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Marks a `repr(C)` integer struct as readable from maps by aya.
#[macro_export]
macro_rules! pod {
    ($($t:ty),+ $(,)?) => {$(
        #[cfg(feature = "user")]
        #[allow(unsafe_code)]
        // SAFETY: repr(C), integers only, padding explicit (asserted by the size checks beside each type).
        unsafe impl aya::Pod for $t {}
    )+};
}
