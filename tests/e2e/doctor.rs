//! `reroute-agent doctor`: nothing critical on a healthy lab, each provoked defect by its name, nothing changed.

use crate::support::*;
use lab::handle::binary;
use lab::{Lab, Options};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

struct Diagnosis {
    code: Option<i32>,
    report: Value,
    error: String,
}

impl Diagnosis {
    /// Found texts of a check at a level.
    fn says(&self, check: &str, level: &str) -> Vec<&str> {
        let all = self.report["findings"].as_array().into_iter().flatten();
        let these = all.filter(|f| f["check"] == check && f["level"] == level);
        these.filter_map(|f| f["found"].as_str()).collect()
    }
    /// Asserts that a check says `word` at `level`, and that the exit code fits.
    fn assert_says(&self, check: &str, level: &str, word: &str) {
        let said = self.says(check, level);
        assert!(said.iter().any(|s| s.contains(word)), "{check} {level} {word:?}: {:#}", self.report);
        if level == "critical" {
            assert_eq!(self.code, Some(1), "{}", self.error);
        }
    }
}

fn doctor(lab: &Lab, node: &str, config: &str, more: &[&str]) -> std::process::Output {
    let agent = binary("reroute-agent").expect("built");
    let config = lab.root_inside().join(node).join(config);
    let (agent, config) = (agent.to_string_lossy(), config.to_string_lossy());
    let command = [&[&*agent, "doctor", "--config", &*config], more].concat();
    lab.exec(node, &command).expect("doctor runs")
}

fn diagnose(lab: &Lab, node: &str, config: &str) -> Diagnosis {
    let out = doctor(lab, node, config, &["--output", "json"]);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    let report = serde_json::from_slice(&out.stdout).unwrap_or(Value::Null);
    Diagnosis { code: out.status.code(), report, error }
}

/// A copy of the node's configuration, changed.
fn changed_config(lab: &Lab, node: &str, from: &str, to: &str) -> &'static str {
    let dir = lab.root().join(node);
    let text = std::fs::read_to_string(dir.join("agent.toml")).expect("config");
    assert!(text.contains(from), "{from:?} in\n{text}");
    std::fs::write(dir.join("changed.toml"), text.replace(from, to)).expect("written");
    "changed.toml"
}

fn run(lab: &Lab, node: &str, command: &[&str]) -> String {
    let out = lab.exec(node, command).expect("exec");
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What the doctor must leave as it is.
fn state(lab: &Lab, node: &str) -> String {
    let dir = lab.root_inside().join(node).join("bpf");
    let script = format!(
        "ip address; ip route; ip -details link | grep xdp; tc filter show dev sto0 egress; ls {} 2>&1; \
         cat /proc/sys/net/ipv4/conf/*/arp_announce",
        dir.display()
    );
    let shown = run(lab, node, &["sh", "-c", &script]);
    // Times that addresses are valid for.
    shown.lines().filter(|l| !l.contains("valid_lft")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_healthy_lab_has_nothing_critical_and_stays_as_it_is() {
    let lab = healthy(Options::named("doctor"));
    for node in ["scvm1", "host1", "meta"] {
        let before = state(&lab, node);
        let found = diagnose(&lab, node, "agent.toml");
        assert_eq!(found.code, Some(0), "{node}: {} {:#}", found.error, found.report);
        assert_ne!(found.report["worst"], "critical", "{node}");
        assert_eq!(found.says("meta", "ok").len(), 2, "{node}: {:#}", found.report);
        assert_eq!(found.says("agent", "ok").len(), 1, "{node}: {:#}", found.report);
        assert_eq!(state(&lab, node), before, "{node}");
        println!("{}", String::from_utf8_lossy(&doctor(&lab, node, "agent.toml", &[]).stdout));
    }
    let scvm = diagnose(&lab, "scvm1", "agent.toml");
    let programs = scvm.says("programs", "ok");
    assert_eq!(programs.len(), 3, "{:#}", scvm.report);
    assert!(programs.iter().all(|p| p.contains("in by tc (pinned BPF link)")), "{programs:?}");
    assert_eq!(scvm.says("strangers", "warning"), [""; 0]);
    // `status` says the same of them.
    let status = lab.agent_status("scvm1").expect("status");
    let first = &status["local"]["attachments"][0];
    assert_eq!(
        (&first["driver"], &first["mtu"], &first["multi_buffer"]),
        (&"veth".into(), &1500.into(), &"yes".into())
    );
    let text = lab.agent("scvm1", &["status"]).expect("status").stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains("ingress_link bpf link, pinned") && text.contains("no super-packets"), "{text}");
}

#[test]
fn each_defect_is_named() {
    let lab = healthy(Options::named("defects"));

    // Nobody to look at, or nothing to read.
    assert_eq!(diagnose(&lab, "scvm1", "nothere.toml").code, Some(2));
    let config = changed_config(&lab, "host1", "[host]", "[hots]");
    assert_eq!(diagnose(&lab, "host1", config).code, Some(2));
    assert_eq!(doctor(&lab, "host1", "agent.toml", &["--nonsense"]).status.code(), Some(2));

    // The cluster's secret for all to read.
    let key = lab.root().join("cluster.key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).expect("chmod");
    diagnose(&lab, "meta", "agent.toml").assert_says("key_file", "critical", "mode 644");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("chmod");

    let config = changed_config(&lab, "scvm1", "storage = \"sto0\"", "storage = \"sto9\"");
    diagnose(&lab, "scvm1", config).assert_says("interface", "critical", "no interface sto9");

    // Every SCVM would claim the service address.
    let arp = |announce: &str| {
        let script =
            format!("cd /proc/sys/net/ipv4/conf && echo {announce} | tee all/arp_announce sto0/arp_announce");
        run(&lab, "scvm1", &["sh", "-c", &script]);
    };
    arp("0");
    diagnose(&lab, "scvm1", "agent.toml").assert_says("arp", "warning", "sto0: arp_announce=0");
    arp("2");

    // Somebody else's filter, which matches nothing.
    let filter = "tc qdisc add dev sto0 clsact && tc filter add dev sto0 ingress prio 3 protocol ip bpf \
                  bytecode '1,6 0 0 0' flowid 1:1";
    run(&lab, "scvm1", &["sh", "-c", filter]);
    diagnose(&lab, "scvm1", "agent.toml").assert_says("strangers", "warning", "sto0: TC filter bpf");
    run(&lab, "scvm1", &["tc", "qdisc", "del", "dev", "sto0", "clsact"]);

    run(&lab, "scvm1", &["ip", "link", "set", "mgt0", "down"]);
    diagnose(&lab, "scvm1", "agent.toml").assert_says(
        "interface",
        "critical",
        "mgt0, driver veth, MTU 1500: down",
    );
    run(&lab, "scvm1", &["ip", "link", "set", "mgt0", "up"]);

    let config = changed_config(&lab, "meta", "10.10.85.22", "10.10.85.30");
    let found = diagnose(&lab, "meta", config);
    found.assert_says("meta_place", "critical", "10.10.85.30:7480 is an address of scvm2");
    found.assert_says("meta_place", "critical", "it has 10.10.85.30 of scvm2");

    lab.wait_healthy(HEALTHY).expect("nothing of it has stayed");
    lab.fault("server-killed", Some("scvm1")).expect("fault");
    let found = diagnose(&lab, "scvm1", "agent.toml");
    found.assert_says("listener", "critical", "nothing listens on 192.168.33.2:2049");
    found.assert_says("server", "critical", "pid");
    lab.heal().expect("heal");

    // A route that is not ours, while the agent is away.
    lab.stop_process("host1/agent", SOON).expect("stop");
    run(
        &lab,
        "host1",
        &["ip", "route", "replace", "192.168.33.2/32", "via", "10.10.85.22", "proto", "static"],
    );
    let found = diagnose(&lab, "host1", "agent.toml");
    found.assert_says("route", "critical", "via 10.10.85.22");
    assert_eq!(found.says("agent", "warning").len(), 1, "{:#}", found.report);

    lab.stop_process("meta/agent", SOON).expect("stop");
    diagnose(&lab, "host1", "agent.toml").assert_says("meta", "critical", "10.10.85.30:7480");

    // Without an agent: how it would be.
    lab.stop_process("scvm2/agent", SOON).expect("stop");
    let found = diagnose(&lab, "scvm2", "agent.toml");
    assert_eq!(found.says("programs", "ok").len(), 3, "{:#}", found.report);
    found.assert_says("programs", "ok", "would be attached as tc");
}
