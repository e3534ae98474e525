//! The failover benchmark, for seconds only: `cargo xtask bench failover` is the long run.

use crate::support::SOON;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Removed when it goes.
struct Figures(PathBuf);

impl Figures {
    fn new(name: &str) -> Figures {
        Figures(std::env::temp_dir().join(format!("reroute-bench-{name}-{}", std::process::id())))
    }
    fn json(&self) -> PathBuf {
        self.0.join("failover.json")
    }
    fn read(&self) -> Value {
        let text = std::fs::read_to_string(self.json()).expect("figures");
        serde_json::from_str(&text).expect("JSON")
    }
}

impl Drop for Figures {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn bench(figures: &Figures, args: &str) -> Command {
    let mut command = Command::new(lab::handle::binary("reroute-bench-failover").expect("built"));
    command.arg("--json").arg(figures.json()).arg("--unlearnt").args(args.split(' '));
    command.args(["--server", "controllable"]);
    command
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn ours_and_the_old_loop_are_measured_in_the_same_way() {
    let figures = Figures::new("rows");
    let args = "--only server-killed,planned --systems reroute,legacy --trials 2 --peer-trials 1";
    let status = bench(&figures, args).status().expect("run");
    assert!(status.success(), "{status}");
    let json = figures.read();
    assert_eq!(keys(&json), ["ladder", "rows"]);
    let rows = json["rows"].as_array().expect("rows");
    let row = |fault: &str, system: &str| {
        let found = rows.iter().find(|r| r["fault"] == fault && r["system"] == system);
        found.unwrap_or_else(|| panic!("no row {fault} {system} in {json:#}"))
    };
    for (fault, system, trials) in [
        ("server-killed", "reroute", 2),
        ("server-killed", "legacy", 1),
        ("planned", "reroute", 2),
        ("planned", "legacy", 1),
    ] {
        let row = row(fault, system);
        let shape =
            ["detect_ms", "fault", "gap_ms", "lost_writes", "recovered", "stale_writes", "system", "trials"];
        assert_eq!(keys(row), shape);
        assert_eq!(keys(&row["gap_ms"]), ["max", "p50", "p99"]);
        assert_eq!(
            (row["trials"].as_u64(), row["recovered"].as_u64()),
            (Some(trials), Some(trials)),
            "{row}"
        );
    }
    let ours = row("server-killed", "reroute");
    assert!(ours["gap_ms"]["max"].as_f64().expect("a gap") < 500.0, "{ours}");
    assert!(ours["detect_ms"]["max"].as_f64() < ours["gap_ms"]["max"].as_f64(), "{ours}");
    assert_eq!((ours["lost_writes"].as_u64(), ours["stale_writes"].as_u64()), (Some(0), Some(0)));
    // Its session lapses 4 to 8 s after its server's end, and somebody looks every 3 s.
    let old = row("server-killed", "legacy");
    let noticed = old["detect_ms"]["max"].as_f64().expect("noticed");
    assert!((3_000.0..15_000.0).contains(&noticed), "{old}");
    assert!(old["gap_ms"]["max"].as_f64() > Some(noticed), "{old}");
    let picture = std::fs::read_to_string(figures.0.join("failover.svg")).expect("a picture");
    assert!(picture.contains("server-killed") && picture.contains("(2)"), "{picture}");
}

#[test]
fn a_rung_of_the_ladder_moves_nothing() {
    let figures = Figures::new("ladder");
    let status = bench(&figures, "--ladder --only host-agent-killed --seconds 3").status().expect("run");
    assert!(status.success(), "{status}");
    let json = figures.read();
    let rung = &json["ladder"][0];
    let shape = ["admission_closed", "fault", "max_gap_ms", "moves", "seconds", "servers_killed"];
    assert_eq!(keys(rung), shape);
    for nothing in ["moves", "admission_closed", "servers_killed"] {
        assert_eq!(rung[nothing].as_u64(), Some(0), "{rung}");
    }
    assert!(rung["max_gap_ms"].as_f64() < Some(500.0), "{rung}");
}

/// Ended, whatever the test does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    let figures = Figures::new("interrupted");
    let mut command = bench(&figures, "--only planned --systems legacy");
    let mut run = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run"));
    let name = format!("peer-{}-", run.0.id());
    let labs = || -> Vec<String> {
        let all = lab::directory::all().into_iter().map(|d| d.id);
        all.filter(|id| id.starts_with(&name)).collect()
    };
    let loops = |lab: &str| lab::Lab::attach(lab)?.process("host1/loop").map(drop);
    lab::wait_for("its lab, and the old loop in it", SOON, || {
        labs().first().map_or_else(|| anyhow::bail!("no lab yet"), |lab| loops(lab))
    })
    .expect("up");
    let pid = rustix::process::Pid::from_child(&run.0);
    // As Ctrl-C does; SIGINT itself is ignored by what a shell has put into the background.
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
    run.0.wait().expect("ended");
    lab::wait_for("the lab's end", SOON, || match labs() {
        left if left.is_empty() => Ok(()),
        left => anyhow::bail!("{left:?}"),
    })
    .expect("nothing is left");
    assert!(!Path::new(&figures.json()).exists(), "figures of nothing");
}
