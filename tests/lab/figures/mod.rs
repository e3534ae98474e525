//! What benchmarks share: percentiles of few numbers, and the file that figures are kept in.

pub mod report;
pub mod stats;

pub use report::Report;
