//! Pure logic: what the evidence means, who may be served where, what to do next.
//!
//! Every machine here has one shape: `handle(input, now) -> Vec<Effect>`. The agent carries the effects out and
//! brings their success or failure back as the next input. Nothing here reads a clock, a file or a socket.
//!
//! | pair | logic here | I/O in `reroute-agent` |
//! |---|---|---|
//! | health ↔ sensor | [`scvm`] | `sensor`, `scvm` |
//! | session ↔ meta | [`meta`] | `meta` |
//! | route ↔ host | [`host`] | `host` |
//! | next hop ↔ ESXi host | [`esxi`] | `esxi` |
#![forbid(unsafe_code)]

pub mod block;
pub mod duplicate;
pub mod esxi;
pub mod host;
pub mod ids;
pub mod meta;
pub mod proto;
pub mod recording;
pub mod scvm;
pub mod sweep;
pub mod timeline;
