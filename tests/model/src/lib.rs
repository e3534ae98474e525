//! The protocol in a world of its own.
//!
//! | module | holds |
//! |---|---|
//! | [`world`] | the machines of `reroute-core`, wired together, and a model of everything around them: clocks, network, kernels, servers, disks, clients; what must never happen |
//! | [`sim`] | a seed drives the world through random faults, in simulated time |
//!
//! The world makes no choice of its own: each step is one of [`world::World::enabled`], and whoever drives it says which.
#![forbid(unsafe_code)]

pub mod sim;
pub mod world;
