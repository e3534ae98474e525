//! The agent: every role's I/O around the pure machines of `reroute-core`.

pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod doctor;
pub mod esxi;
pub mod fault_point;
pub mod host;
pub mod journal;
pub mod keys;
pub mod meta;
pub mod meta_client;
pub mod netlink;
pub mod realtime;
pub mod record;
pub mod scvm;
pub mod sensor;
pub mod service;
pub mod sweep;
