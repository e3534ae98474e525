//! The guest's file system: an initramfs of busybox, `ip`, our binaries with the libraries they need, and modules.

use super::kernel::{Kernel, command};
use super::tests::{NFS_CLIENT, PROGRAMS, Programs};
use crate::workspace;
use anyhow::{Context, bail};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The guest's first process.
const INIT: &str = include_str!("init.sh");
/// The agent's configuration there.
const AGENT: &str = include_str!("agent.toml");
/// Where this machine has them.
const TOOLS: &[&str] = &["busybox", "ip"];
/// What the tests' networks, the programs' attachments, the NFS client and SOCK_DESTROY need where it is not built in.
const MODULES: &[&str] = &["veth", "bridge", "sch_ingress", "cls_bpf", "tcp_diag", "nfsv3"];

/// Makes the archive, anew each time: binaries change.
pub fn build(kernel: &Kernel, programs: &Programs) -> anyhow::Result<PathBuf> {
    let dir = workspace::target().join("vm");
    let root = dir.join(format!("root-{}", kernel.release));
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    for name in ["bin", "dev", "etc", "modules", "proc", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    let mut libraries = BTreeSet::new();
    for tool in TOOLS {
        let from = find(tool)?;
        copy(&from, &root.join("bin").join(tool))?;
        libraries.extend(needed_by(&from)?);
    }
    for (name, from) in programs {
        let to = root.join("bin").join(name);
        // Debugging information is most of a binary, and all of this lies in the guest's memory.
        let (from_text, to_text) = (from.to_string_lossy(), to.to_string_lossy());
        command("strip", &["--strip-debug", "-o", &to_text, &from_text], &dir)?;
        libraries.extend(needed_by(from)?);
    }
    for library in libraries {
        let inside = library.strip_prefix("/").unwrap_or(&library);
        copy(&library, &root.join(inside))?;
    }
    modules(kernel, &root)?;
    write(&root.join("tests-programs"), &PROGRAMS.join("\n"))?;
    write(&root.join("tests-nfs-client"), &NFS_CLIENT.join("\n"))?;
    write(&root.join("agent.toml"), AGENT)?;
    write(&root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;

    let archive = dir.join(format!("initramfs-{}.cpio", kernel.release));
    pack(&root, &archive)?;
    fs::remove_dir_all(&root)?;
    Ok(archive)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, format!("{}\n", text.trim_end()))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn find(tool: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|dir| dir.join(tool))
        .find(|file| file.is_file())
        .with_context(|| format!("there is no {tool} on this machine"))
}

/// Shared libraries and the loader, by the paths the loader looks for them at.
fn needed_by(binary: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(binary).output().context("cannot run ldd")?;
    // It fails on binaries that need none.
    let text = String::from_utf8_lossy(&out.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("{}: {}", binary.display(), line.trim());
    }
    Ok(libraries(&text))
}

/// Out of `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)` and `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn libraries(ldd: &str) -> Vec<PathBuf> {
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    ldd.lines().filter_map(path).collect()
}

/// The modules, uncompressed, and the order in which they are to be inserted.
fn modules(kernel: &Kernel, root: &Path) -> anyhow::Result<()> {
    let mut order = Vec::new();
    for file in kernel.modules(MODULES)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let to = root.join("modules").join(&name);
        copy(&file, &to)?;
        if let Some(plain) = name.strip_suffix(".xz") {
            command("xz", &["--decompress", &to.to_string_lossy()], root)?;
            order.push(plain.to_string());
        } else {
            order.push(name);
        }
    }
    write(&root.join("modules/order"), &order.join("\n"))
}

fn pack(root: &Path, archive: &Path) -> anyhow::Result<()> {
    let file = fs::File::create(archive).with_context(|| format!("cannot write {}", archive.display()))?;
    let names = command("find", &[".", "-print"], root)?;
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(file)
        .spawn()
        .context("cannot run cpio")?;
    if let Some(mut stdin) = cpio.stdin.take() {
        std::io::Write::write_all(&mut stdin, names.as_bytes()).context("cpio takes no names")?;
    }
    let status = cpio.wait()?;
    if !status.success() {
        bail!("cpio failed ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f22)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f23)\n";
        let found = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(text), found);
        assert_eq!(libraries("\tnot a dynamic executable\n"), Vec::<PathBuf>::new());
    }
}
