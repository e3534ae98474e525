#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| reroute_fuzz::follower::run(data));
