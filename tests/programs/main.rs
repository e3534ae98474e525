//! The programs, run in the kernel on real frames (BPF_PROG_TEST_RUN) and on real interfaces. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod admission;
mod agentless;
mod attaching;
mod bench;
mod blocks;
mod captures;
mod counting;
mod flood;
mod foreign;
mod frames;
mod lasting;
mod order;
mod paths;
mod pulses;
mod records;
mod stalls;
