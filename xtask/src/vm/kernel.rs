//! Debian's kernels, unpacked below `target/vm`: nothing of them is installed.

use super::Series;
use crate::workspace;
use anyhow::{Context, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The unpacked package.
    root: PathBuf,
}

impl Kernel {
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// Files of the modules called `names` and of all they need, in the order in which they can be inserted. What is
    /// built in has no file.
    pub fn modules(&self, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let dir = self.root.join("lib/modules").join(&self.release);
        let listed = |file: &str| {
            let path = dir.join(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (dependencies, builtin) = (listed("modules.dep")?, listed("modules.builtin")?);
        let needs =
            |file: &str| dependencies.lines().find_map(|line| line.strip_prefix(file)?.strip_prefix(':'));
        let mut order: Vec<&str> = Vec::new();
        for name in names {
            if builtin.lines().any(|file| module_name(file) == *name) {
                continue;
            }
            let mut files = dependencies.lines().filter_map(|line| Some(line.split_once(':')?.0));
            let Some(file) = files.find(|file| module_name(file) == *name) else {
                bail!("Linux {} has no module {name}", self.release)
            };
            insert(file, &needs, &mut order);
        }
        Ok(order.into_iter().map(|file| dir.join(file)).collect())
    }
}

/// Puts into `order` what `file` needs, then `file`, unless they are there.
fn insert<'a>(file: &'a str, needs: &impl Fn(&str) -> Option<&'a str>, order: &mut Vec<&'a str>) {
    if order.contains(&file) {
        return;
    }
    for need in needs(file).unwrap_or_default().split_whitespace() {
        insert(need, needs, order);
    }
    order.push(file);
}

/// `kernel/net/sched/cls_bpf.ko.xz` is `cls_bpf`.
fn module_name(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name)
}

/// The newest kernel of a series that apt knows, downloaded and unpacked unless it is there. Without a network, the
/// newest that is there.
pub fn fetch(series: Series) -> anyhow::Result<Kernel> {
    let dir = workspace::target().join("vm");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let wanted = newest(&known()?, series);
    if let Some(package) = &wanted
        && let Some(kernel) = unpacked(&dir, package)
    {
        return Ok(kernel);
    }
    // What apt remembers may be gone from the archive by now.
    let refreshed = command("apt-get", &["update", "--quiet"], &dir)
        .and_then(|_| newest(&known()?, series).with_context(|| nothing(series)))
        .and_then(|package| download(&dir, &package));
    match refreshed {
        Ok(kernel) => Ok(kernel),
        Err(error) => {
            let here: Vec<String> = fs::read_dir(&dir)?
                .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
                .collect();
            let kernel = newest(&here, series).and_then(|package| unpacked(&dir, &package));
            if kernel.is_some() {
                println!("vm: {error:#}; going on with what is there");
            }
            kernel.ok_or(error)
        }
    }
}

fn nothing(series: Series) -> String {
    format!("apt knows no linux-image-{}*-cloud-amd64: see /etc/apt/sources.list", series.name())
}

fn known() -> anyhow::Result<Vec<String>> {
    let names = command("apt-cache", &["pkgnames", "linux-image-6."], Path::new("/"))?;
    Ok(names.lines().map(Into::into).collect())
}

/// Of package names, the one with the highest version in a series.
fn newest(names: &[String], series: Series) -> Option<String> {
    let version = |name: &String| -> Option<Vec<u32>> {
        let release = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
        // 6.1.0-56, 6.12.117+deb12; a meta-package has no third number.
        let rest = release.strip_prefix(series.name())?.strip_prefix('.')?;
        let digits = |c: char| !c.is_ascii_digit();
        Some(rest.split(digits).filter_map(|number| number.parse().ok()).collect())
    };
    names.iter().filter_map(|name| Some((version(name)?, name))).max().map(|(_, name)| name.clone())
}

/// A package that was unpacked to the end.
fn unpacked(dir: &Path, package: &str) -> Option<Kernel> {
    let release = package.strip_prefix("linux-image-")?.to_string();
    let root = dir.join(package);
    root.join("lib/modules").join(&release).join("modules.dep").exists().then_some(Kernel { release, root })
}

fn download(dir: &Path, package: &str) -> anyhow::Result<Kernel> {
    println!("vm: downloading {package}");
    let debs = dir.join("debs");
    fs::create_dir_all(&debs)?;
    command("apt-get", &["download", "--quiet", "-o", "APT::Sandbox::User=root", package], &debs)?;
    let deb = fs::read_dir(&debs)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
        })
        .with_context(|| format!("apt-get download left no {package}_*.deb"))?;
    let root = dir.join(package);
    let (deb, to) = (deb.to_string_lossy(), root.to_string_lossy());
    command("dpkg-deb", &["--extract", &deb, &to], dir)?;
    let release = package.strip_prefix("linux-image-").unwrap_or(package);
    // The last step: what has this file is complete.
    command("busybox", &["depmod", "-b", &to, release], dir)?;
    unpacked(dir, package).with_context(|| format!("{package} holds no modules"))
}

/// What `program` printed. Errors: it cannot be run, or fails; then what it said.
pub fn command(program: &str, args: &[&str], dir: &Path) -> anyhow::Result<String> {
    let out = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("{program} {} failed ({}): {}", args.join(" "), out.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_found() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.1.0-58-cloud-amd64-unsigned",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
        ]
        .map(String::from);
        assert_eq!(newest(&names, Series::V6_1).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(&names, Series::V6_12).as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(&names[2..5], Series::V6_1), None);
    }

    #[test]
    fn a_module_is_called_as_its_file_is() {
        assert_eq!(module_name("kernel/net/sched/cls_bpf.ko.xz"), "cls_bpf");
        assert_eq!(module_name("kernel/drivers/net/veth.ko"), "veth");
    }
}
