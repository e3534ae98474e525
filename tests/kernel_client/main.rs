//! A kernel's own NFS client on a host of the lab. Needs root, and a kernel that has one: `cargo xtask vm` boots Debian's,
//! and runs these tests there. What they saw stands in lines that begin with `seen:`.
//!
//! Under emulation everything takes some tens of times longer, and the timers of sunrpc and of TCP do not: 3 s after
//! a refusal, 1 s after an unanswered SYN. The tests tell those apart from what goes on at once, and nothing finer.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod client;
mod moves;
mod sunrpc;
