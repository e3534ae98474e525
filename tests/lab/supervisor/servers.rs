//! The access servers: three over one directory, each in its SCVM's network namespace.

use super::Supervisor;
use crate::control::Spec;
use crate::options::ServerKind;
use crate::topology::{NFS_PORT, Node, PAIRS, SERVICE};
use anyhow::{Context, bail};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A fresh Ganesha takes 0.2 s without its grace period (which NFSv3 without locks has no use for), 5 s with it.
const WITHIN: Duration = Duration::from_secs(40);

/// The controllable server's control socket, in its node's directory.
pub const SERVER_SOCKET: &str = "server.sock";

pub fn pidfile(dir: &Path) -> PathBuf {
    dir.join("server.pid")
}

pub fn epoch_file(dir: &Path) -> PathBuf {
    dir.join("epochs.json")
}

/// Starts all of them, then waits until each answers a NULL call.
pub fn start(lab: &Supervisor) -> anyhow::Result<()> {
    for i in 1..=PAIRS {
        match lab.options.server {
            ServerKind::Ganesha => ganesha(lab, Node::Scvm(i))?,
            ServerKind::Controllable => controllable(lab, i)?,
        }
    }
    let deadline = Instant::now() + WITHIN;
    for i in 1..=PAIRS {
        let node = Node::Scvm(i).to_string();
        let name = format!("{node}/server");
        loop {
            let answer = lab.namespace(&node)?.run(|| null_call(Duration::from_millis(500)))?;
            let Err(error) = answer else { break };
            if !lab.processes.status(&name)?.runs() {
                bail!("{name} ended while it started");
            }
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("{name} does not answer on port {NFS_PORT}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

fn ganesha(lab: &Supervisor, node: Node) -> anyhow::Result<()> {
    let dir = lab.node_dir(node);
    let config = dir.join("ganesha.conf");
    std::fs::write(&config, ganesha_config(&lab.root.join("export")))?;
    let mut rpcbind = Spec::new(format!("{node}/rpcbind"), &["rpcbind", "-f", "-w"]);
    rpcbind.private_run = true;
    lab.run(rpcbind)?;
    // Ganesha gives up at once when it cannot register.
    let socket = dir.join("run/rpcbind.sock");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !socket.exists() {
        if Instant::now() > deadline {
            bail!("rpcbind of {node} does not listen");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut server = Spec::new(
        format!("{node}/server"),
        &[
            "ganesha.nfsd",
            "-F",
            "-f",
            &config.to_string_lossy(),
            "-L",
            "/dev/stderr",
            "-p",
            &pidfile(&dir).to_string_lossy(),
        ],
    );
    server.private_run = true;
    lab.run(server)?;
    Ok(())
}

fn ganesha_config(export: &Path) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "LOG {{ Default_Log_Level = MAJ; }}\n\
         NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = {NFS_PORT}; MNT_Port = 20048; Enable_NLM = false; \
         Enable_RQUOTA = false; Enable_UDP = false; }}\n\
         NFSv4 {{ Graceless = true; }}\n\
         NFS_KRB5 {{ Active_krb5 = false; }}\n\
         EXPORT {{ Export_Id = 1; Path = {path}; Pseudo = /export; Access_Type = RW; Squash = None; \
         SecType = sys; Protocols = 3; Transports = TCP; FSAL {{ Name = VFS; }} }}\n",
        path = export.display()
    );
    text
}

fn controllable(lab: &Supervisor, id: u32) -> anyhow::Result<()> {
    let node = Node::Scvm(id);
    let dir = lab.node_dir(node);
    let binary = super::beside("reroute-nfsd")?;
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let export = text(lab.root.join("export"));
    let mut argv = vec![
        text(binary),
        "--store".into(),
        export.clone(),
        "--export".into(),
        export,
        "--server-id".into(),
        id.to_string(),
        "--listen".into(),
        format!("0.0.0.0:{NFS_PORT}"),
        "--pidfile".into(),
        text(pidfile(&dir)),
        "--control".into(),
        text(dir.join(SERVER_SOCKET)),
    ];
    // Without an agent nobody publishes epochs, and everybody may write.
    if lab.options.agents {
        argv.extend(["--epoch-file".into(), text(epoch_file(&dir))]);
    }
    if !lab.options.storage_check {
        argv.push("--no-storage-check".into());
    }
    lab.run(Spec { argv, ..Spec::new(format!("{node}/server"), &[]) })?;
    Ok(())
}

/// An NFSv3 NULL call to the service address of the calling thread's network namespace.
fn null_call(within: Duration) -> anyhow::Result<()> {
    const XID: u32 = 0x7265_7231;
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((SERVICE, NFS_PORT)), within)?;
    stream.set_read_timeout(Some(within))?;
    // Record mark; then xid, CALL, RPC 2, program 100003, version 3, procedure 0, AUTH_NONE twice.
    let words = [0x8000_0000 | 40, XID, 0, 2, 100_003, 3, 0, 0, 0, 0, 0];
    let call: Vec<u8> = words.iter().flat_map(|w: &u32| w.to_be_bytes()).collect();
    stream.write_all(&call)?;
    let mut reply = [0; 28];
    stream.read_exact(&mut reply)?;
    let word = |i: usize| u32::from_be_bytes([reply[i], reply[i + 1], reply[i + 2], reply[i + 3]]);
    // xid, REPLY, MSG_ACCEPTED; after the verifier, SUCCESS.
    if word(4) != XID || word(8) != 1 || word(12) != 0 || word(24) != 0 {
        bail!("the server does not serve NFSv3: it answered {reply:02x?}");
    }
    Ok(())
}
