//! What fuzzing does with an input, as plain functions: `cargo xtask fuzz` runs them for long, the test `corpus` on stored
//! inputs and on mutations of them. And a connection without a kernel, which property tests use too.

pub mod follower;
mod input;
mod owned;
pub mod parser;
pub mod pulse;
pub mod rig;

/// A name, and what is done with an input. It panics where something is found.
pub type Target = (&'static str, fn(&[u8]));

/// Each has a program of its name in `fuzz/fuzz_targets`, and stored inputs in `fuzz/corpus`.
pub const TARGETS: [Target; 3] =
    [("parser", parser::run), ("follower", follower::run), ("pulse", pulse::run)];
