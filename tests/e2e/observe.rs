//! What operators and monitors see, on a lab with traffic: status, flows, metrics; and what forgers are counted as.

use crate::support::*;
pub use lab::handle::sample;
use lab::{Lab, Options, wait_for};

pub fn metrics(lab: &Lab, node: &str) -> anyhow::Result<String> {
    lab.metrics(node)
}

#[test]
fn status_flows_metrics_and_forgeries() {
    let lab = healthy(Options::named("observe"));
    let writer = lab.writer(1, 1, &["--outstanding", "4"]).expect("writer");
    writer.wait_writes(now(), 500, SOON).expect("writes");

    for node in ["meta", "host1", "scvm1"] {
        let out = lab.agent(node, &["status"]).expect("status");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success() && text.contains("scvm1") && text.contains("host1"), "{node}: {text}");
        let json = lab.agent_status(node).expect("json");
        assert_eq!(json["view"]["sessions"].as_array().map(Vec::len), Some(3), "{node}: {json:#}");
        assert_eq!(json["view"]["logins"].as_array().map(Vec::len), Some(3), "{node}: {json:#}");
    }
    println!("{}", String::from_utf8_lossy(&lab.agent("meta", &["status"]).expect("status").stdout));

    let out = lab.agent("scvm1", &["flows"]).expect("flows");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    println!("{text}");
    assert!(out.status.success() && text.contains("host1") && text.contains("10.10.85.11"), "{text}");
    let json = lab.agent("scvm1", &["flows", "--output", "json"]).expect("flows").stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).expect("json");
    assert!(json.to_string().contains("10.10.85.11"), "{json:#}");

    let scvm = metrics(&lab, "scvm1").expect("metrics");
    for family in
        ["reroute_client_connections", "reroute_rpc_calls", "reroute_rpc_replies", "reroute_dropped_packets"]
    {
        assert!(scvm.contains(family), "{family} in\n{scvm}");
    }
    assert!(scvm.contains("_bucket{") && scvm.contains("le="), "a latency histogram in\n{scvm}");
    let host = metrics(&lab, "host1").expect("metrics");
    assert!(sample(&host, "reroute_host_pulses_sent", &[]) > Some(0.0), "{host}");
    let meta = metrics(&lab, "meta").expect("metrics");
    assert!(sample(&meta, "reroute_meta_sessions", &["alive"]) == Some(3.0), "{meta}");

    forged_pulse_is_counted(&lab);
    forged_message_is_counted(&lab);
    assert_intact(writer);
}

fn forged_pulse_is_counted(lab: &Lab) {
    // From a registered address, right port, garbage: it must be dropped and counted, and no pulse lost for it.
    let out = lab.exec("host1", &["bash", "-c", "echo forged > /dev/udp/10.10.85.21/7481"]).expect("send");
    assert!(out.status.success());
    wait_for("the forged pulse counted", SOON, || {
        let text = metrics(lab, "scvm1")?;
        match sample(&text, "reroute_pulses_rejected", &["size"]) {
            Some(n) if n > 0.0 => Ok(()),
            _ => anyhow::bail!("{text}"),
        }
    })
    .expect("counted");
}

fn forged_message_is_counted(lab: &Lab) {
    let body = r#"{"version":1}"#;
    let script = format!(
        "exec 3<>/dev/tcp/10.10.85.30/7480; printf 'POST /v1/message HTTP/1.1\\r\\nHost: x\\r\\nx-reroute-mac: 00\\r\\nContent-Length: {}\\r\\nConnection: close\\r\\n\\r\\n{}' >&3; cat <&3",
        body.len(),
        body.replace('"', "\\\"")
    );
    let out = lab.exec("host1", &["bash", "-c", &script]).expect("post");
    let reply = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(reply.starts_with("HTTP/1.1 4"), "refused: {reply}");
    wait_for("the forged message counted", SOON, || {
        let text = metrics(lab, "meta")?;
        match sample(&text, "reroute_meta_messages_rejected", &["mac"]) {
            Some(n) if n > 0.0 => Ok(()),
            _ => anyhow::bail!("{text}"),
        }
    })
    .expect("counted");
}

#[test]
fn bypass_lets_everything_pass_and_is_alarmed() {
    let lab = healthy(Options::named("bypass"));
    let writer = lab.writer(1, 1, &[]).expect("writer");
    let out = lab.agent("scvm1", &["bypass", "on"]).expect("bypass");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    lab.wait_view("bypass in the view", SOON, |view| {
        let session = view.sessions.iter().find(|s| s.scvm.0 == 1)?;
        (!session.health.bypass).then(|| "not yet".to_string())
    })
    .expect("seen");
    let text = lab.agent("meta", &["status"]).expect("status").stdout;
    assert!(String::from_utf8_lossy(&text).to_lowercase().contains("bypass"), "status warns");
    // It outlives the agent.
    lab.fault("agent-killed", Some("scvm1")).expect("fault");
    lab.heal().expect("heal");
    lab.wait_view("bypass after a restart", SOON, |view| {
        let session = view.sessions.iter().find(|s| s.scvm.0 == 1)?;
        (!session.health.bypass).then(|| "lost".to_string())
    })
    .expect("kept");
    // Its view is Meta's memory at first: the agent itself serves its socket a moment later.
    wait_for("the agent to answer", SOON, || {
        let out = lab.agent("scvm1", &["bypass", "off"])?;
        anyhow::ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    })
    .expect("bypass off");
    lab.wait_healthy(HEALTHY).expect("healthy");
    writer.wait_writes(now(), 50, SOON).expect("writes");
    assert_intact(writer);
}
