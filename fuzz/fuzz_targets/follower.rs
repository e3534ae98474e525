#![no_main]

// For its memory functions.
use reroute_fuzz_targets as _;

libfuzzer_sys::fuzz_target!(|data: &[u8]| reroute_fuzz::follower::run(data));
