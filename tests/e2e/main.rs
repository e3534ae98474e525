//! Tests in labs of their own. They need root and the release binaries (`cargo xtask test` sees to both), and run one
//! at a time: each uses the whole machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod agentless;
mod bench;
mod chaos;
mod client_reset;
mod doctor;
mod dry;
mod esxi;
mod failover;
mod holders;
mod input;
mod isolation;
mod latency;
mod observe;
mod one_writer;
mod outcomes;
mod own_failures;
mod proofs;
mod recorded;
mod restarts;
mod routes;
mod signals;
mod support;
mod sweep;
mod writer;
mod wrong_ways;
