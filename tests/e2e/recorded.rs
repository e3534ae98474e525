//! A failover that happens again, from what the agents were told.

use crate::support::*;
use lab::{Lab, Options};
use std::path::PathBuf;
use std::process::Command;

/// What `node`'s agents have recorded, one file for each of its starts.
fn recordings(lab: &Lab, node: &str) -> Vec<PathBuf> {
    let dir = lab.root().join(node).join("records");
    let files = std::fs::read_dir(dir).expect("records").map(|entry| entry.expect("entry").path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    files
}

fn replay(file: &PathBuf) -> (bool, String) {
    let output = Command::new(lab::binary("reroute-agent").expect("agent")).arg("replay").arg(file).output();
    let output = output.expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_failover_happens_again_from_its_recordings() {
    let lab = healthy(Options::named("recorded").record());
    let writer = lab.writer(1, 1, &["--outstanding", "4"]).expect("writer");
    fault_and_move(&lab, &writer, "server-killed");
    lab.heal().expect("heal");
    lab.wait_healthy(HEALTHY).expect("back home");
    assert_intact(writer);
    for (node, words) in [
        ("host1", ["ListenerGone", "route_replaced"]),
        ("scvm1", ["server_process", "fenced"]),
        ("meta", ["move_recorded", "fence_proven"]),
    ] {
        lab.stop_process(&format!("{node}/agent"), SOON).expect("it ends");
        let files = recordings(&lab, node);
        assert_eq!(files.len(), 1, "{files:?}");
        let (same, text) = replay(&files[0]);
        assert!(same && text.contains("every effect as recorded"), "{node}: {text}");
        for word in words {
            assert!(text.to_lowercase().contains(&word.to_lowercase()), "{node}: no {word}: {text}");
        }
        // Another past is noticed.
        let told = std::fs::read_to_string(&files[0]).expect("recording");
        let lines: Vec<&str> = told.lines().collect();
        let without = lines.iter().enumerate().filter(|(i, _)| *i < lines.len() / 3 || *i > lines.len() / 2);
        let cut: String = without.map(|(_, line)| format!("{line}\n")).collect();
        let path = files[0].with_extension("cut");
        std::fs::write(&path, cut).expect("cut");
        let (same, text) = replay(&path);
        assert!(!same && text.contains("other effects than recorded"), "{node}: {text}");
    }
}
