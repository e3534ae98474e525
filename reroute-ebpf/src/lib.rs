//! The parts of the programs. They build for the host too, where parsing, record following, matching and admission
//! are unit-tested; `main.rs` holds the entry points and the one table of verdicts.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    target_arch = "bpf",
    allow(internal_features),
    feature(core_intrinsics, adt_const_params, asm_experimental_arch)
)]

pub mod admit;
pub mod cell;
pub mod control;
pub mod egress;
pub mod flow;
pub mod follow;
pub mod held;
pub mod hold;
pub mod ingress;
pub mod kernel;
pub mod listener;
pub mod maps;
pub mod measure;
pub mod packet;
pub mod parse;
pub mod path;
pub mod pulse;
pub mod rpc;
pub mod signal;
pub mod stream;
pub mod timer;

/// What becomes of a packet. `main.rs` turns it into the words of each hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
    /// Send it back where it came from.
    Reflect,
}
