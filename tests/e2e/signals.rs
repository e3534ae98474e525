//! Each signal of the kernel is told, on live traffic, idle and beside real-time hogs. How fast is for the benchmark to say.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

const SIGNALS: [&str; 8] =
    ["unanswered", "silent", "listener_gone", "unacked", "retransmit", "zero_window", "reset", "reset_out"];

#[test]
fn every_signal_is_told() {
    let json = std::env::temp_dir().join(format!("reroute-signals-{}.json", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_reroute-bench-sensor"))
        .args(["--quick", "--only", "detect", "--json"])
        .arg(&json)
        .output()
        .expect("it runs");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let told = told(&json);
    std::fs::remove_file(&json).expect("its figures");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for signal in SIGNALS {
        for beside in ["", "_fifo_hogs"] {
            let row = &told[format!("{signal}{beside}")];
            assert_eq!(row["trials"], 10, "{signal}{beside}: {row}");
            // Not before its time, but for a stamp that is as old as the last tick. Pulses come at theirs.
            let limit = if signal == "listener_gone" { Some(0.0) } else { row["limit"].as_f64() };
            assert!(row["min"].as_f64() >= limit.map(|ms| ms - 1.1), "{signal}{beside}: {row}");
        }
    }
}

fn told(json: &Path) -> Value {
    let text = std::fs::read_to_string(json).expect("figures");
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    figures["detect_ms"].clone()
}
