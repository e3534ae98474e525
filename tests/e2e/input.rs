//! Bad input: exit 2, named, nothing touched. And a Meta that is not there is waited for.

use crate::support::*;
use lab::Options;
use lab::handle::binary;
use std::path::PathBuf;
use std::process::Command;

const GOOD: &str = r#"
[cluster]
id = "input"
key_file = "KEY"
service_address = "192.168.33.2"
meta = ["127.0.0.1:7480"]
[[cluster.hosts]]
id = 1
name = "host1"
private = "192.168.33.1"
storage = "10.10.85.11"
management = "192.168.85.11"
local_scvm = 1
[[cluster.scvms]]
id = 1
name = "scvm1"
storage = "10.10.85.21"
management = "192.168.85.21"
server = { name = "s", pidfile = "/nonexistent/pid", policy = "wait" }
[host]
id = 1
state_dir = "STATE"
socket = "STATE/agent.sock"
interfaces = { private = "lo", storage = "lo", management = "lo" }
"#;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("reroute-input-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("scratch");
        std::fs::write(dir.join("key"), "ab".repeat(32)).expect("key");
        Scratch(dir)
    }
    /// Runs the host role with `GOOD` changed by `from` -> `to`; gives the exit code and the message.
    fn run(&self, from: &str, to: &str, args: &[&str]) -> (Option<i32>, String) {
        assert!(GOOD.contains(from), "{from}");
        let text = GOOD.replacen(from, to, 1);
        let text = text.replace("KEY", &self.0.join("key").to_string_lossy());
        let text = text.replace("STATE", &self.0.join("state").to_string_lossy());
        let config = self.0.join("agent.toml");
        std::fs::write(&config, text).expect("config");
        let mut command = Command::new(binary("reroute-agent").expect("agent"));
        let out = command.arg("host").arg("--config").arg(&config).args(args).output().expect("run");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    }
    fn touched(&self) -> bool {
        self.0.join("state").exists()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn bad_configuration_is_named_and_changes_nothing() {
    let scratch = Scratch::new("bad");
    assert_eq!(scratch.run("id = 1", "id = 1", &["--check"]).0, Some(0), "the good one is good");
    let cases = [
        ("id = \"input\"", "id = \"input\"\ncolour = \"red\"", "colour"),
        ("[host]", "[host]\nspeed = 9", "speed"),
        ("10.10.85.11", "10.10.85.311", "10.10.85.311"),
        ("storage = \"lo\"", "storage = \"eth77\"", "eth77"),
        ("127.0.0.1:7480", "127.0.0.1:0", "port 0"),
        (
            "service_address = \"192.168.33.2\"",
            "service_address = \"192.168.33.2\"\nservice_port = 0",
            "port",
        ),
        (", policy = \"wait\"", "", "policy"),
        ("policy = \"wait\"", "policy = \"maybe\"", "maybe"),
        ("10.10.85.21", "10.10.85.11", "claimed by both"),
        ("local_scvm = 1", "local_scvm = 7", "local_scvm"),
        ("[host]\nid = 1", "[host]\nid = 9", "host 9"),
        ("[host]", "[timing]\nunanswered_floor_ms = 0\n[host]", "unanswered_floor_ms"),
        ("[host]", "[timing]\nunanswered_ceiling_ms = 9\n[host]", "unanswered_ceiling_ms"),
        ("[host]", "[timing]\nunanswered_ms = 2001\n[host]", "unanswered_ms"),
        ("[host]", "[scvm]", "scvm"),
    ];
    for (from, to, named) in cases {
        let (code, message) = scratch.run(from, to, &[]);
        assert_eq!(code, Some(2), "{to}: {message}");
        assert!(message.contains(named), "{to}: {message}");
        assert!(!scratch.touched(), "{to}: something was made");
    }
    let mut command = Command::new(binary("reroute-agent").expect("agent"));
    let out = command.args(["host", "--config", "/nonexistent/agent.toml"]).output().expect("run");
    assert_eq!(out.status.code(), Some(2));
}

/// Meta away at the start: hosts and SCVMs say so, wait, and go on when it comes.
#[test]
fn meta_unreachable_at_start_is_said_and_waited_for() {
    let lab = lab::Lab::start(Options { log: "warn".into(), ..Options::named("nometa") }).expect("lab");
    lab.wait_healthy(HEALTHY).expect("healthy");
    lab.fault("meta-killed", None).expect("fault");
    lab.stop_process("host1/agent", SOON).expect("stop");
    lab.start_process("host1/agent").expect("start");
    lab::wait_for("the host to say that Meta is away", SOON, || {
        let log = lab.node_log("host1/agent")?;
        if !log.to_lowercase().contains("meta") {
            anyhow::bail!("{log}");
        }
        Ok(())
    })
    .expect("said");
    assert!(lab.process("host1/agent").expect("process").runs(), "it waits");
    lab.heal().expect("heal");
    lab.wait_healthy(HEALTHY).expect("healthy once Meta is there");
}
