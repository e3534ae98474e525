//! The programs, run in the kernel on real frames.
mod bench;

#[test]
fn loads() {
    let bench = bench::Bench::new();
    assert!(!bench.sensor.adopted());
}
