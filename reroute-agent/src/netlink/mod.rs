//! The kernel's tables by netlink: routes, links, TCP sockets.
//!
//! Requests are synchronous: the kernel answers within the system call (a replace with ack takes about 7 µs), so a
//! detour through a reactor would cost more than the work. Only the change notifications are asynchronous.

pub mod ethtool;
pub mod filters;
pub mod links;
pub mod neighbour;
pub mod nic;
pub mod route;
pub mod sockets;
pub mod xdp_features;

mod connection;
mod monitor;
#[cfg(test)]
pub(crate) mod namespace;
