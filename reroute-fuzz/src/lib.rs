//! What fuzzing does with an input, as plain functions: `cargo xtask fuzz` runs them for long, the test `corpus` on stored
//! inputs and on mutations of them. And a connection without a kernel, which property tests use too.

mod owned;
pub mod rig;
