//! Faults at random, for seconds only: `cargo xtask chaos` is the long run.

use lab::ServerKind;
use lab::chaos::{Options, Outcome};

/// By name and in this order, so that the schedule of the seed stays what it is when the catalogue grows.
const FAULTS: &[&str] = &[
    "server-killed",
    "server-hung",
    "storage-link-cut",
    "host-storage-cut",
    "agent-killed",
    "agent-stopped",
    "host-agent-killed",
    "meta-killed",
];

/// 24 s of faults, of which a cut storage link and a killed server move logins. Every violation is an error of `run`.
fn chaos(seed: u64, server: ServerKind) -> Outcome {
    let dir = std::env::temp_dir().join(format!("reroute-chaos-{}-{server:?}-{seed}", std::process::id()));
    let options = Options {
        minutes: 0.4,
        seed: Some(seed),
        faults: FAULTS.iter().map(ToString::to_string).collect(),
        server,
        json: dir.join("chaos.json"),
        ..Options::default()
    };
    let outcome = lab::chaos::run(&options).expect("no violation");
    let text = std::fs::read_to_string(dir.join("chaos.json")).expect("figures");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    std::fs::remove_dir_all(&dir).expect("nothing else needs it");
    for key in ["minutes", "seed", "moves", "lost_writes", "stale_writes", "gap_ms", "proofs"] {
        assert!(!json[key].is_null(), "{key} in {text}");
    }
    assert_eq!((json["lost_writes"].as_u64(), json["stale_writes"].as_u64()), (Some(0), Some(0)));
    let injected: u64 = outcome.faults.values().map(|f| f.injected).sum();
    assert!(injected >= 5 && outcome.writes > 1000, "{outcome:#?}");
    outcome
}

#[test]
fn random_faults_lose_no_write_with_ganesha() {
    let outcome = chaos(1, ServerKind::Ganesha);
    assert!(outcome.moves > 0 && !outcome.proofs.is_empty(), "{outcome:#?}");
}

#[test]
fn random_faults_lose_no_write_with_the_controllable_server() {
    let outcome = chaos(1, ServerKind::Controllable);
    assert!(outcome.moves > 0 && !outcome.proofs.is_empty(), "{outcome:#?}");
}
