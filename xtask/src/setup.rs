//! What building and testing need, and how it gets onto the machine.

use crate::workspace;
use anyhow::{Context, bail};
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The lab and its tests: servers, the writer's library, a second client, networks.
const LAB: &[&str] = &[
    "iproute2",
    "libnfs-dev",
    "libnfs-utils",
    "nfs-ganesha",
    "nfs-ganesha-vfs",
    "nftables",
    "openssh-client",
    "openssh-server",
    "pkg-config",
    "rpcbind",
    "tshark",
];
/// A compiler with a prebuilt core for BPF, and what bpf-linker links to.
const EBPF: &[&str] = &[
    "libclang-22-dev",
    "libpolly-22-dev",
    "libstd-rust-web-dev-bpf",
    "libxml2-dev",
    "libzstd-dev",
    "llvm-22-dev",
    "rustc-web",
    "zlib1g-dev",
];
const LINKER_VERSION: &str = "0.13.0";

/// Installs what is missing. Errors: no Debian, no root (with the commands to run), or apt's and cargo's own words.
pub fn run() -> anyhow::Result<()> {
    let nightly = nightly_toolchain();
    let wanted: Vec<&str> = if nightly { LAB.to_vec() } else { [LAB, EBPF].concat() };
    let packages = missing_packages(&wanted)?;
    let linker = !nightly && !linker_is_there();
    if packages.is_empty() && !linker {
        println!("setup: nothing is missing (eBPF by {})", compiler(nightly));
        return Ok(());
    }
    let mut commands = Vec::new();
    if !packages.is_empty() {
        commands.push(install_command(&packages));
    }
    if linker {
        commands.push(format!("LLVM_PREFIX=/usr/lib/llvm-22 cargo {}", linker_arguments().join(" ")));
    }
    let commands = commands.join("\n  ");
    if !packages.is_empty() {
        may_install(&commands)?;
        install_packages(&packages)?;
    }
    if linker {
        install_linker()?;
    }
    println!("setup: done (eBPF by {})", compiler(nightly));
    Ok(())
}

fn install_command(packages: &[String]) -> String {
    format!("apt-get update && apt-get install --yes --no-install-recommends {}", packages.join(" "))
}

/// Errors: where we cannot install anything, with what would have been run.
fn may_install(commands: &str) -> anyhow::Result<()> {
    if !Path::new("/etc/debian_version").exists() {
        bail!("this is no Debian; install by its means what these give there:\n  {commands}");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("something is missing; as root, run:\n  {commands}");
    }
    Ok(())
}

/// Installs those of `packages` that are missing, for a verb that needs more than building and testing do. Errors: as
/// those of [`run`].
pub fn require(packages: &[&str]) -> anyhow::Result<()> {
    let missing = missing_packages(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    may_install(&install_command(&missing))?;
    install_packages(&missing)
}

fn compiler(nightly: bool) -> &'static str {
    if nightly {
        "the nightly toolchain and bpf-linker of this user"
    } else {
        "Debian's rustc and target/bpf-linker"
    }
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_string())
}

/// A rustup nightly with rust-src, and a bpf-linker on PATH: then nothing for eBPF needs to be installed.
fn nightly_toolchain() -> bool {
    let sysroot = output("rustc", &["+nightly", "--print", "sysroot"]);
    let source = sysroot.map(|s| PathBuf::from(s).join("lib/rustlib/src/rust/library/Cargo.toml"));
    source.is_some_and(|s| s.exists()) && output("bpf-linker", &["--version"]).is_some()
}

fn missing_packages(wanted: &[&str]) -> anyhow::Result<Vec<String>> {
    // Status 1 means that some are unknown to dpkg: they are among the missing.
    let installed = match Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(wanted)
        .output()
    {
        Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).context("cannot run dpkg-query"),
    };
    let there = |name: &str| installed.lines().any(|l| l.split_once(' ') == Some((name, "installed")));
    Ok(wanted.iter().filter(|w| !there(w)).map(|w| w.to_string()).collect())
}

fn install_packages(packages: &[String]) -> anyhow::Result<()> {
    println!("setup: installing {}", packages.join(" "));
    let _no_daemons = NoDaemons::new()?;
    let apt = |args: &[&str]| -> anyhow::Result<()> {
        let out = Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
            .context("cannot run apt-get")?;
        if !out.status.success() {
            bail!(
                "apt-get {} failed ({}):\n{}{}",
                args.join(" "),
                out.status,
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr)
            );
        }
        Ok(())
    };
    apt(&["update", "--quiet"])?;
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    apt(&[&["install", "--yes", "--quiet", "--no-install-recommends"], names.as_slice()].concat())
}

/// While it lives, packages that are installed start no daemon: the lab runs its own in its namespaces.
struct NoDaemons(Option<PathBuf>);

impl NoDaemons {
    fn new() -> anyhow::Result<NoDaemons> {
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        // If this process is killed, the file forbids nothing any more and removes itself.
        let text =
            format!("#!/bin/sh\n[ -e /proc/{} ] && exit 101\nrm -f \"$0\"\nexit 0\n", std::process::id());
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path);
        match made {
            Ok(mut file) => {
                std::io::Write::write_all(&mut file, text.as_bytes())?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                Ok(NoDaemons(Some(path)))
            }
            // The machine has a policy of its own.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(NoDaemons(None)),
            Err(error) => Err(error).with_context(|| format!("cannot write {}", path.display())),
        }
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = fs::remove_file(path);
        }
    }
}

fn linker_dir() -> PathBuf {
    workspace::target().join("bpf-linker")
}

fn linker_is_there() -> bool {
    let found = output(&linker_dir().join("bin/bpf-linker").to_string_lossy(), &["--version"]);
    found.is_some_and(|version| version.contains(LINKER_VERSION))
}

fn linker_arguments() -> Vec<String> {
    let fixed = "install bpf-linker --locked --no-default-features --features llvm-22 --version";
    let mut arguments: Vec<String> = fixed.split(' ').map(Into::into).collect();
    arguments.extend([LINKER_VERSION.into(), "--root".into(), linker_dir().to_string_lossy().into_owned()]);
    arguments
}

fn install_linker() -> anyhow::Result<()> {
    println!("setup: building bpf-linker {LINKER_VERSION} into {} (about a minute)", linker_dir().display());
    let arguments = linker_arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = workspace::cargo(&arguments);
    command.env("LLVM_PREFIX", "/usr/lib/llvm-22");
    if !command.status().context("cannot run cargo")?.success() {
        bail!("bpf-linker could not be built (see above)");
    }
    Ok(())
}
