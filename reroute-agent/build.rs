//! Builds the programs for the kernel, so that the agent carries them: always from the same `reroute-common` as itself.
//!
//! Either compiler will do: Debian's `rustc-web` with its prebuilt `core` for `bpfel-unknown-none`, or rustup's nightly
//! with `rust-src`. Which one is used is printed (`cargo build -vv`).

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "reroute-ebpf";

enum Toolchain {
    /// A compiler that has the target's `core` already.
    Prebuilt(PathBuf),
    /// `rustup run nightly`, with `-Z build-std=core`.
    Nightly,
}

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("cargo::error={why}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?);
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|e| e.to_string())?);
    let root = manifest.parent().ok_or("the crate has no workspace around it")?;
    for watched in
        ["reroute-ebpf/src", "reroute-ebpf/Cargo.toml", "reroute-common/src", "Cargo.toml", "Cargo.lock"]
    {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PATH");

    let linker = find_linker(root)?;
    let toolchain = find_toolchain()?;
    let target_dir = out.join("ebpf");
    let mut cargo = match &toolchain {
        Toolchain::Prebuilt(rustc) => {
            println!("eBPF programs: {} (prebuilt core), {}", rustc.display(), linker.display());
            let mut cargo = Command::new(env::var("CARGO").map_err(|e| e.to_string())?);
            clean(&mut cargo);
            // Unstable features are the price of BPF targets; this compiler is not a nightly.
            cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
        Toolchain::Nightly => {
            println!("eBPF programs: rustup nightly (build-std), {}", linker.display());
            let mut cargo = Command::new("rustup");
            clean(&mut cargo);
            cargo.args(["run", "nightly", "cargo"]);
            cargo
        }
    };
    cargo
        .args(["build", "--release", "--locked", "--bin", OBJECT, "--target", TARGET, "--manifest-path"])
        .arg(root.join("reroute-ebpf/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_INCREMENTAL", "false")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [
                "-Cdebuginfo=2",
                "-Clink-arg=--btf",
                "-Ctarget-cpu=v3",
                &format!("-Clinker={}", linker.display()),
                // The kernel's BTF must not name the places that the programs were built in.
                &format!("--remap-path-prefix={}=.", root.display()),
            ]
            .join("\x1f"),
        );
    if matches!(toolchain, Toolchain::Nightly) {
        cargo.args(["-Z", "build-std=core"]);
    }
    let output = cargo.output().map_err(|e| format!("cargo for the eBPF programs cannot be started: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        for line in text.lines() {
            println!("cargo::warning={line}");
        }
        return Err("the eBPF programs do not build: see above".into());
    }
    std::fs::copy(target_dir.join(TARGET).join("release").join(OBJECT), out.join("reroute-ebpf.o"))
        .map_err(|e| format!("the built eBPF object cannot be copied: {e}"))?;
    Ok(())
}

/// What the outer cargo says to its children is not meant for this one.
fn clean(cargo: &mut Command) {
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let kept = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_"];
        let ours = (name.starts_with("CARGO") && !kept.iter().any(|k| name.starts_with(k)))
            || name.starts_with("RUSTC")
            || name.starts_with("RUSTDOC")
            || name.starts_with("DEP_")
            || [
                "RUSTFLAGS",
                "RUSTUP_TOOLCHAIN",
                "TARGET",
                "HOST",
                "OUT_DIR",
                "PROFILE",
                "OPT_LEVEL",
                "DEBUG",
                "NUM_JOBS",
            ]
            .contains(&name.as_str());
        if ours {
            cargo.env_remove(&name);
        }
    }
}

fn find_linker(root: &Path) -> Result<PathBuf, String> {
    let own = root.join("target/bpf-linker/bin/bpf-linker");
    if own.is_file() {
        println!("cargo::rerun-if-changed={}", own.display());
        return Ok(own);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join("bpf-linker")).find(|p| p.is_file()).ok_or_else(|| {
        "bpf-linker is missing (neither in target/bpf-linker/bin nor in PATH): run `cargo xtask setup`".into()
    })
}

fn find_toolchain() -> Result<Toolchain, String> {
    let debian = PathBuf::from("/usr/bin/rustc");
    if let Some(sysroot) = sysroot(Command::new(&debian)) {
        let lib = sysroot.join("lib/rustlib").join(TARGET).join("lib");
        let has_core = std::fs::read_dir(lib).is_ok_and(|mut files| {
            files.any(|f| f.is_ok_and(|f| f.file_name().to_string_lossy().starts_with("libcore-")))
        });
        if has_core {
            return Ok(Toolchain::Prebuilt(debian));
        }
    }
    let mut nightly = Command::new("rustup");
    nightly.args(["run", "nightly", "rustc"]);
    if sysroot(nightly).is_some_and(|s| s.join("lib/rustlib/src/rust/library/core").is_dir()) {
        return Ok(Toolchain::Nightly);
    }
    Err(format!(
        "no Rust compiler for {TARGET}: run `cargo xtask setup` (it installs Debian's rustc-web and \
         libstd-rust-web-dev-bpf; `rustup toolchain install nightly --component rust-src` does as well)"
    ))
}

fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    rustc.args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN");
    let output = rustc.output().ok().filter(|o| o.status.success())?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}
