//! The route is ours alone, and stays what was decided.

use crate::support::*;
use lab::{Lab, Options};
use reroute_core::timeline::Event;

fn route_in(lab: &Lab, host: &str, args: &[&str]) -> String {
    let out = lab.exec(host, &[&["ip", "route"], args].concat()).expect("ip route");
    assert!(out.status.success(), "ip route {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn a_flushed_route_is_put_back() {
    let lab = healthy(Options::named("flush"));
    let writer = lab.writer(1, 1, &[]).expect("writer");
    let flap_at = now();
    for state in ["down", "up"] {
        let out = lab.exec("host1", &["ip", "link", "set", "sto0", state]).expect("ip link");
        assert!(out.status.success());
    }
    lab.wait_healthy(HEALTHY).expect("the route is back");
    assert!(route_in(&lab, "host1", &["show", "192.168.33.2/32"]).contains("via 10.10.85.21"));
    writer.wait_writes(now(), 50, SOON).expect("writes");
    println!("flap: gap {:.1} ms", gap_ms(&writer, flap_at));
    // And one that somebody removes.
    let removed_at = now();
    route_in(&lab, "host1", &["del", "192.168.33.2/32"]);
    first(&lab, removed_at, "disturbance", |e| {
        matches!(e.event, Event::RouteDisturbed { .. } if e.node == "host1").then_some(())
    });
    lab.wait_healthy(HEALTHY).expect("the route is back again");
    writer.wait_writes(now(), 50, SOON).expect("writes");
    println!("removed: gap {:.1} ms", gap_ms(&writer, removed_at));
    assert_intact(writer);
}

#[test]
fn a_foreign_route_is_refused_until_adopted() {
    let lab = healthy(Options::named("foreign"));
    // An operator pins it by hand while the agent is away.
    lab.stop_process("host1/agent", SOON).expect("stop");
    let foreign = ["replace", "192.168.33.2/32", "via", "10.10.85.22", "proto", "static"];
    route_in(&lab, "host1", &foreign);
    lab.start_process("host1/agent").expect("start");

    let view = lab
        .wait_view("the foreign route named", SOON, |view| {
            let report = view.hosts.iter().find(|h| h.host.0 == 1).and_then(|h| h.report.as_ref());
            match report.and_then(|r| r.error.as_deref()) {
                Some(error) if error.contains("adopt") => None,
                other => Some(format!("{other:?}")),
            }
        })
        .expect("named");
    println!("{:?}", view.hosts[0].report.as_ref().map(|r| &r.error));
    let kept = route_in(&lab, "host1", &["show", "192.168.33.2/32"]);
    assert!(kept.contains("via 10.10.85.22") && kept.contains("proto static"), "untouched: {kept}");

    let out = lab.agent("host1", &["route", "adopt"]).expect("adopt");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    lab.wait_healthy(HEALTHY).expect("home again");
    let ours = route_in(&lab, "host1", &["show", "192.168.33.2/32"]);
    assert!(ours.contains("via 10.10.85.21") && ours.contains("proto 199"), "{ours}");
}

#[test]
fn an_orderly_stop_leaves_the_route() {
    let lab = healthy(Options::named("stop"));
    let before = route_in(&lab, "host1", &["show", "192.168.33.2/32"]);
    let ended = lab.stop_process("host1/agent", SOON).expect("stop");
    assert_eq!(ended.exit.expect("ended").code, Some(0));
    assert_eq!(route_in(&lab, "host1", &["show", "192.168.33.2/32"]), before);
}
