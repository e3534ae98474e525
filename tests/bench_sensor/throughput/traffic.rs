//! What runs over the wire while programs come and go.

use crate::frames::{PORT, SERVICE, WRITE, call_head, reply_head};
use crate::space::{Space, Wire};
use anyhow::{Context, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

pub trait Traffic {
    fn name(&self) -> &'static str;
    fn what(&self) -> &'static str;
    /// How much was done so far.
    fn done(&mut self) -> anyhow::Result<u64>;
    /// Waits until it goes on.
    fn flows(&mut self) -> anyhow::Result<()> {
        let from = self.done()?;
        wait("traffic", || Ok((self.done()? > from).then_some(())))
    }
}

/// The lab's server and its writer.
pub struct Nfs {
    control: PathBuf,
    // In this order: the writer has its server to the end.
    _writer: Process,
    _server: Process,
}

struct Process(Child);
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const OUTSTANDING: &str = "8";

impl Nfs {
    pub fn start(space: &Space, wire: &Wire) -> anyhow::Result<Nfs> {
        let programs = std::env::current_exe()?;
        let program = |name: &str| programs.with_file_name(name);
        let (store, control, pidfile) =
            (space.file("store"), space.file("nfsd.sock"), space.file("nfsd.pid"));
        std::fs::create_dir_all(&store)?;
        let mut server = Command::new(program("reroute-nfsd"));
        server.args(["--die-with-parent", "--server-id", "1", "--store"]).arg(&store);
        server.arg("--control").arg(&control).arg("--pidfile").arg(&pidfile);
        let server = Process(server.spawn().context("starting reroute-nfsd")?);
        wait("the server's pidfile", || Ok(pidfile.exists().then_some(())))?;
        let mut writer = Command::new("nsenter");
        writer.arg(format!("--net={}", wire.client.path())).arg(program("reroute-writer"));
        writer.args(["--url", "nfs://192.168.33.2/export?version=3&nfsport=2049&mountport=2049"]);
        writer.args(["--outstanding", OUTSTANDING, "--max-seconds", "1800", "--max-bytes", "16777216"]);
        writer.arg("--backing").arg(&store).stdout(Stdio::null());
        let writer = Process(writer.spawn().context("starting reroute-writer")?);
        let mut nfs = Nfs { control, _writer: writer, _server: server };
        wait("the first writes", || Ok((nfs.done()? > 500).then_some(())))?;
        Ok(nfs)
    }
}

impl Traffic for Nfs {
    fn name(&self) -> &'static str {
        "NFS"
    }
    fn what(&self) -> &'static str {
        "reroute-writer (libnfs), 8 FILE_SYNC writes of 4 KiB outstanding, against reroute-nfsd on tmpfs"
    }
    fn done(&mut self) -> anyhow::Result<u64> {
        let stats = ask(&self.control, "stats")?;
        stats["replies"]["write"].as_u64().with_context(|| format!("no replies in {stats}"))
    }
}

fn wait<T>(what: &str, mut condition: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ask(socket: &Path, command: &str) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(socket).context("the server's control socket")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{command}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("{command}: {line:?}"))
}

/// One client that writes 1 MiB after another, and a sink that answers.
pub struct Bulk {
    bytes: Arc<AtomicU64>,
    /// Closed, it ends both threads.
    client: TcpStream,
}

const BODY: u32 = 1 << 20;
/// Writes sent ahead of their replies: so many fit into a connection's line.
const AHEAD: u32 = 16;

impl Bulk {
    pub fn start(wire: &Wire) -> anyhow::Result<Bulk> {
        let service = (Ipv4Addr::from(SERVICE), PORT);
        let listener = TcpListener::bind(service)?;
        let client = wire.client.run(|| TcpStream::connect(service))??;
        let (sink, _) = listener.accept()?;
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = bytes.clone();
        std::thread::Builder::new().name("sink".into()).spawn(move || {
            // The end of the connection ends it.
            let _ = take(sink, &counted);
        })?;
        let sender = client.try_clone()?;
        std::thread::Builder::new().name("sender".into()).spawn(move || {
            let _ = send(sender);
        })?;
        Ok(Bulk { bytes, client })
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        let _ = self.client.shutdown(std::net::Shutdown::Both);
    }
}

fn send(mut socket: TcpStream) -> std::io::Result<()> {
    let body = vec![0x5a; BODY as usize];
    let mut reply = [0; 28];
    for xid in 1.. {
        socket.write_all(&call_head(xid, WRITE, BODY))?;
        socket.write_all(&body)?;
        if xid > AHEAD {
            socket.read_exact(&mut reply)?;
        }
    }
    Ok(())
}

fn take(mut socket: TcpStream, counted: &AtomicU64) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let record = u64::from(BODY) + call_head(0, WRITE, 0).len() as u64;
    let mut total = 0;
    for xid in 1.. {
        while total < u64::from(xid) * record {
            let n = socket.read(&mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            total += n as u64;
            counted.store(total, Ordering::Relaxed);
        }
        socket.write_all(&reply_head(xid, 0))?;
    }
    Ok(())
}

impl Traffic for Bulk {
    fn name(&self) -> &'static str {
        "TCP"
    }
    fn what(&self) -> &'static str {
        "one connection, WRITE calls of 1 MiB back to back, answered by a sink"
    }
    fn done(&mut self) -> anyhow::Result<u64> {
        Ok(self.bytes.load(Ordering::Relaxed))
    }
}
