//! Hosts that stand for ESXi: an sshd of their own, and an `esxcfg-route` over their network namespace's routes.
//!
//! Keys are made for this lab alone, and go with it.

use super::Supervisor;
use crate::control::Spec;
use crate::topology::Node;
use anyhow::{Context, bail};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const ESXCFG_ROUTE: &str = include_str!("esxcfg-route");
const SSHD: &str = "/usr/sbin/sshd";
const WITHIN: Duration = Duration::from_secs(10);

/// Where the SCVMs' key pair lies, in the lab's file system; and the list of the hosts' keys.
pub const IDENTITY: &str = "esxi/key";
pub const KNOWN_HOSTS: &str = "esxi/known_hosts";
/// In the host's directory.
pub const SSHD_CONFIG: &str = "sshd_config";
pub const AUTHORIZED_KEYS: &str = "authorized_keys";
/// What `esxcfg-route` prints instead of what is so.
pub const SAYS: &str = "bin/says";

/// What the agents' configuration says of the login.
pub fn login(root: &Path, host: Node) -> String {
    let (identity, known) = (root.join(IDENTITY), root.join(KNOWN_HOSTS));
    format!(
        "esxi = {{ address = \"{}\", user = \"root\", identity = \"{}\", known_hosts = \"{}\" }}\n",
        host.management(),
        identity.display(),
        known.display(),
    )
}

/// Returns when each answers.
pub fn start(lab: &Supervisor) -> anyhow::Result<()> {
    if lab.options.esxi.is_empty() {
        return Ok(());
    }
    if !Path::new(SSHD).exists() {
        bail!("{SSHD} is not there: `cargo xtask setup` installs it (package openssh-server)");
    }
    let identity = lab.root.join(IDENTITY);
    let public = make_key(&identity)?;
    let mut known = String::new();
    for &i in &lab.options.esxi {
        let node = Node::Host(i);
        let dir = lab.node_dir(node);
        let host_key = make_key(&dir.join("host_key"))?;
        known.push_str(&format!("{} {host_key}\n", node.management()));
        std::fs::write(dir.join(AUTHORIZED_KEYS), format!("{public}\n"))?;
        let program = dir.join("bin/esxcfg-route");
        std::fs::create_dir_all(dir.join("bin"))?;
        std::fs::write(&program, ESXCFG_ROUTE)?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        let config = dir.join(SSHD_CONFIG);
        std::fs::write(&config, sshd_config(&dir, node))?;
        let mut sshd =
            Spec::new(format!("{node}/sshd"), &[SSHD, "-D", "-e", "-f", &config.to_string_lossy()]);
        sshd.private_run = true;
        lab.run(sshd)?;
    }
    std::fs::write(lab.root.join(KNOWN_HOSTS), known)?;
    for &i in &lab.options.esxi {
        answers(lab, Node::Host(i))?;
    }
    Ok(())
}

/// A new key pair; gives the public half.
fn make_key(path: &PathBuf) -> anyhow::Result<String> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let out = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "reroute-lab", "-f"])
        .arg(path)
        .output()
        .context("cannot run ssh-keygen (package openssh-client)")?;
    if !out.status.success() {
        bail!("ssh-keygen: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(std::fs::read_to_string(path.with_extension("pub"))?.trim().to_string())
}

/// The shell that carries out commands is whatever root has here: without a home and as an inner one it reads nobody's
/// start-up files, which on this machine may do anything.
fn sshd_config(dir: &Path, node: Node) -> String {
    let dir = dir.display();
    format!(
        "ListenAddress {}\nPort 22\nHostKey {dir}/host_key\nAuthorizedKeysFile {dir}/{AUTHORIZED_KEYS}\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n\
         StrictModes no\nPidFile none\nPrintMotd no\nUseDNS no\n\
         SetEnv HOME={dir} SHLVL=2 PATH={dir}/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
        node.management(),
    )
}

fn answers(lab: &Supervisor, node: Node) -> anyhow::Result<()> {
    let name = format!("{node}/sshd");
    let address = SocketAddr::from((node.management(), 22));
    let deadline = Instant::now() + WITHIN;
    loop {
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(500));
        if lab.namespace(&node.to_string())?.run(connect)?.is_ok() {
            return Ok(());
        }
        if !lab.processes.status(&name)?.runs() {
            bail!("{name} ended while it started");
        }
        if Instant::now() > deadline {
            bail!("{name} does not listen on {address}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
