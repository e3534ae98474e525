//! The lab: hosts, SCVMs and Meta on one machine, each in a network namespace, with real NFS servers and agents.
//!
//! One **supervisor** owns everything: it is pid 1 of a pid namespace with a mount namespace of its own, so that every
//! process, mount and interface of a lab is gone when it is, however it ends. Tests and the demo hold a [`Lab`]; the
//! command line talks to the same control socket.
//!
//! | module | |
//! |---|---|
//! | [`topology`] | nodes, addresses, links |
//! | [`supervisor`] | what runs inside: namespaces, servers, agents, processes |
//! | [`faults`] | what can be broken, what mends it, and what it leads to |
//! | [`load`], [`burden`] | processes that are a burden, and whether it is felt |
//! | [`wall_clock`] | a process whose wall clock steps |
//! | [`hypervisor`] | a stand-in for `xl` |
//! | [`wire`] | links that lose, delay or keep frames |
//! | [`control`] | requests and replies on the control socket |
//! | [`handle`] | [`Lab`]: start, break, heal, wait, read back |
//! | [`demo`] | the three failures, with a timeline each |
//! | [`chaos`] | random faults by a seed, under writers on all hosts |
//! | [`many`] | a wire with many addresses, for sweeps |
//! | [`figures`] | percentiles and the files of benchmarks |

pub mod burden;
pub mod chaos;
pub mod control;
pub mod demo;
pub mod directory;
pub mod exec;
pub mod faults;
pub mod figures;
pub mod handle;
pub mod hypervisor;
pub mod load;
pub mod many;
pub mod namespace;
pub mod options;
pub mod supervisor;
mod sys;
pub mod topology;
pub mod wall_clock;
pub mod wire;

pub use control::{Injected, ProcessStatus};
pub use handle::{Lab, Writer, binary, wait_for};
pub use options::{Options, ServerKind};
