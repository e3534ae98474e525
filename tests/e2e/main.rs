//! Tests in labs of their own. They need root and the release binaries (`cargo xtask test` sees to both), and run one
//! at a time: each uses the whole machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod agentless;
mod chaos;
mod doctor;
mod failover;
mod holders;
mod input;
mod isolation;
mod latency;
mod observe;
mod one_writer;
mod own_failures;
mod proofs;
mod restarts;
mod routes;
mod signals;
mod support;
mod writer;
mod wrong_ways;
