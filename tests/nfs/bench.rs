//! Three network namespaces: a client, and two servers that both own the service address. The client's route says
//! which of them it reaches. Everything is taken down again on drop.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const SERVICE: &str = "192.168.33.2";
pub const LIMIT: Duration = Duration::from_secs(20);
const URL: &str = "nfs://192.168.33.2/export?version=3&nfsport=2049&mountport=2049";
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Waits until `condition` gives something.
pub fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn sh(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One line of command, one line of answer.
pub fn ask(socket: &Path, command: &str) -> Value {
    let mut stream = wait("control socket", || UnixStream::connect(socket).ok());
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    writeln!(stream, "{command}").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{command}: {line:?}: {e}"))
}

pub struct Bench {
    name: String,
    pub dir: PathBuf,
}

impl Bench {
    pub fn new() -> Bench {
        let name = format!("rrnfs{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // In memory: what is measured is not a disk.
        let dir = Path::new("/dev/shm").join(&name);
        std::fs::create_dir_all(dir.join("store")).unwrap();
        let bench = Bench { name, dir };
        for node in ["c", "a", "b"] {
            sh("ip", &["netns", "add", &bench.netns(node)]);
            sh("ip", &["-n", &bench.netns(node), "link", "set", "lo", "up"]);
        }
        for (server, net) in [("a", 1), ("b", 2)] {
            let (c, s, link) = (bench.netns("c"), bench.netns(server), format!("to-{server}"));
            let peer = ["peer", "name", "to-c", "netns", &s];
            sh("ip", &[&["-n", &c, "link", "add", "name", &link, "type", "veth"], &peer[..]].concat());
            for (ns, link, host) in [(&c, link.as_str(), 1), (&s, "to-c", 2)] {
                sh("ip", &["-n", ns, "address", "add", &format!("10.77.{net}.{host}/24"), "dev", link]);
                sh("ip", &["-n", ns, "link", "set", link, "up"]);
            }
            sh("ip", &["-n", &s, "address", "add", &format!("{SERVICE}/32"), "dev", "lo"]);
        }
        bench.route("a");
        bench
    }

    fn netns(&self, node: &str) -> String {
        format!("{}{node}", self.name)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// The client's way to the service address.
    pub fn route(&self, server: &str) {
        let hop = if server == "a" { "10.77.1.2" } else { "10.77.2.2" };
        sh("ip", &["-n", &self.netns("c"), "route", "replace", &format!("{SERVICE}/32"), "via", hop]);
    }

    pub fn no_route(&self) {
        sh("ip", &["-n", &self.netns("c"), "route", "delete", &format!("{SERVICE}/32")]);
    }

    /// Whether server `node` gets what is sent to it; nobody is told when it does not.
    pub fn hole(&self, node: &str, on: bool) {
        let table =
            "table ip hole { chain everything { type filter hook prerouting priority -300; policy drop; }; }";
        let rules = if on { table } else { "delete table ip hole" };
        sh("ip", &["netns", "exec", &self.netns(node), "nft", rules]);
    }

    /// Of long replies, the client gets the first segments and never the last.
    pub fn halve_replies(&self, on: bool) {
        let replies = "type filter hook prerouting priority -300; \
                       tcp sport 2049 ip length 300-1400 drop; tcp sport 2049 ip length > 1600 drop;";
        let table = format!("table ip halve {{ chain replies {{ {replies} }}; }}");
        let rules = if on { table.as_str() } else { "delete table ip halve" };
        sh("ip", &["netns", "exec", &self.netns("c"), "nft", rules]);
    }

    /// SOCK_DESTROY of server `node`'s connections: the client gets a RST.
    pub fn destroy_server_sockets(&self, node: &str) {
        sh("ip", &["netns", "exec", &self.netns(node), "ss", "-K", "state", "connected", "src", SERVICE]);
    }

    /// SOCK_DESTROY of the client's sockets to the service address.
    pub fn destroy_sockets(&self) {
        sh("ip", &["netns", "exec", &self.netns("c"), "ss", "-K", "dst", SERVICE]);
    }

    /// What server `node` may serve: the client's epoch, or nobody.
    pub fn epoch(&self, node: &str, epoch: Option<u64>) {
        let entry =
            epoch.map(|e| format!(r#"{{"host":1,"addresses":["10.77.1.1","10.77.2.1"],"epoch":{e}}}"#));
        let text = format!(r#"{{"epochs":[{}]}}"#, entry.unwrap_or_default());
        let (path, new) = (self.path(&format!("{node}.epochs")), self.path(&format!("{node}.new")));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn command(&self, node: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns(node))).arg(program);
        command
    }

    pub fn nfsd(&self, node: &str, flags: &[&str]) -> Nfsd {
        let (pidfile, control) = (self.path(&format!("{node}.pid")), self.path(&format!("{node}.sock")));
        let _ = std::fs::remove_file(&pidfile);
        let mut command = self.command(node, env!("CARGO_BIN_EXE_reroute-nfsd"));
        command.args(["--die-with-parent", "--store"]).arg(self.store());
        command.arg("--pidfile").arg(&pidfile).arg("--control").arg(&control);
        command.args(["--server-id", if node == "a" { "1" } else { "2" }]).args(flags);
        if self.path(&format!("{node}.epochs")).exists() {
            command.arg("--epoch-file").arg(self.path(&format!("{node}.epochs")));
        }
        let process = Process(command.spawn().unwrap());
        wait("pidfile of the server", || pidfile.exists().then_some(()));
        Nfsd { process, control }
    }

    pub fn writer(&self, flags: &[&str]) -> Writer {
        let control = self.path("writer.sock");
        let mut command = self.command("c", env!("CARGO_BIN_EXE_reroute-writer"));
        command.args(["--url", URL, "--max-seconds", "60", "--backing"]).arg(self.store());
        command.arg("--control").arg(&control).args(flags).stdout(Stdio::piped());
        Writer { process: Process(command.spawn().unwrap()), control }
    }

    /// Runs one of libnfs's own programs on `path`, from the client.
    pub fn client(&self, program: &str, path: &str) -> Output {
        let url = format!("nfs://{SERVICE}{path}?version=3&nfsport=2049&mountport=2049");
        let output = self.command("c", program).arg(url).output().unwrap();
        assert!(output.status.success(), "{program} {path}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Counts of the shared log of applied writes.
    pub fn applied(&self) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reroute-nfsd"));
        let output = command.args(["applied", "--store"]).arg(self.store()).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A NULL call from the client; the time to its reply.
    pub fn null(&self) -> Duration {
        let netns = std::fs::File::open(format!("/run/netns/{}", self.netns("c"))).unwrap();
        let call = move || {
            let net = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(net)).unwrap();
            let start = Instant::now();
            let mut stream = TcpStream::connect((SERVICE, 2049)).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let words = [0x8000_0000u32 | 40, 99, 0, 2, 100_003, 3, 0, 0, 0, 0, 0];
            stream.write_all(&words.map(u32::to_be_bytes).concat()).unwrap();
            let mut reply = [0; 28];
            stream.read_exact(&mut reply).unwrap();
            assert_eq!(reply, [0x8000_0000u32 | 24, 99, 1, 0, 0, 0, 0].map(u32::to_be_bytes).concat()[..]);
            start.elapsed()
        };
        std::thread::spawn(call).join().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for node in ["c", "a", "b"] {
            let _ = Command::new("ip").args(["netns", "delete", &self.netns(node)]).output();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub struct Process(Child);

impl Process {
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Nfsd {
    pub process: Process,
    control: PathBuf,
}

impl Nfsd {
    pub fn ask(&self, command: &str) -> Value {
        ask(&self.control, command)
    }

    /// Replies of a class sent so far.
    pub fn replies(&self, class: &str) -> u64 {
        self.ask("stats")["replies"][class].as_u64().unwrap()
    }
}

pub struct Writer {
    process: Process,
    control: PathBuf,
}

impl Writer {
    pub fn ask(&self, command: &str) -> Value {
        ask(&self.control, command)
    }

    /// Waits for `more` completed sync writes than now.
    pub fn progress(&self, more: u64) {
        let completed = || self.ask("snapshot")["completed"].as_u64().unwrap();
        let goal = completed() + more;
        wait("writes to be completed", || (completed() >= goal).then_some(()));
    }

    /// Longest gap between `from` and now, ms.
    pub fn gap(&self, from: u64) -> f64 {
        self.ask(&format!("gap {from} 0"))["longest_gap_ns"].as_f64().unwrap() / 1e6
    }

    /// Stops it; its result and how it ended.
    pub fn stop(mut self) -> (Value, ExitStatus) {
        let answer = self.ask("stop");
        let (status, printed) = self.end();
        assert_eq!(printed.as_ref(), Some(&answer), "the printed result is the one that was answered");
        (answer, status)
    }

    /// Waits for its end.
    pub fn end(&mut self) -> (ExitStatus, Option<Value>) {
        let status = wait("the writer to end", || self.process.0.try_wait().unwrap());
        let mut text = String::new();
        self.process.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        (status, serde_json::from_str(&text).ok())
    }
}
