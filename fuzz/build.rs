//! See `src/lib.rs`.

fn main() {
    for symbol in ["memcpy", "memmove", "memset"] {
        println!("cargo::rustc-link-arg-bins=-Wl,--wrap={symbol}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
