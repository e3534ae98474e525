//! The route is flushed while nobody is there to put it back: the host's I/O falls to the private network, and that is
//! its local SCVM, whoever serves it.

use super::*;
use lab::Options;
use reroute_common::table::{drop, mode};

/// host1 is served by another SCVM when its route goes; later its agent comes back.
fn falls_to_the_local_server(fence: bool) {
    let lab = healthy(Options::named("flap").timing("hold_down_ms", 15_000));
    // 1,000 writes come between a late one and its arrival: each slot was written anew by then.
    let writer = paced_writer(&lab, 64, 2000);
    lab.fault("host-cut", Some("scvm1")).expect("cut");
    let (at, _) = wait_moved(&lab, 1);
    writer.wait_writes(now(), 100, SOON).expect("writes at the new server");
    lab.heal().expect("heal");
    // It would close the connections that it finds of this host a second after the fence, and with them what is late.
    lab.fault("agent-stopped", Some("scvm1")).expect("stopped");
    if !fence {
        set_kernel_mode(&lab, "scvm1", mode::BYPASS);
    }
    let before = host1(&lab, "scvm1");
    lab.fault("host-agent-killed", Some("host1")).expect("killed");
    lab.fault("link-flap", Some("host1")).expect("flap");
    assert_eq!(lab.next_hop(1).expect("route"), None, "the kernel has forgotten the route");
    // Whatever ends its connection, the next one speaks from 192.168.33.1.
    let out = lab.exec("host1", &["ss", "-K", "dst", "192.168.33.2"]).expect("ss");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    if fence {
        let count = |c: &Client| c.drops[drop::NOT_ADMITTED];
        wait_count(&lab, "scvm1", "SYNs by the private network dropped", count, count(&before));
        // The route comes back by another hand: the same socket speaks over the storage network.
        let (node, hop) =
            (lab::topology::Node::Scvm(at), lab::topology::Node::Scvm(at).storage().to_string());
        let before = strangers(&lab, &node.to_string());
        let route = ["ip", "route", "add", "192.168.33.2/32", "via", &hop, "proto", "199"];
        assert!(lab.exec("host1", &route).expect("ip").status.success());
        lab::wait_for("192.168.33.1 refused by storage", SOON, || {
            let now = strangers(&lab, &node.to_string());
            if now <= before {
                anyhow::bail!("{now}");
            }
            Ok(())
        })
        .expect("refused");
    } else {
        // Two servers write for this host by now; and what is on its way at the end comes late.
        writer.wait_writes(now(), 100, SOON).expect("the wrong server serves");
        lab.fault("private-tcp-held", Some("scvm1")).expect("held");
        wait_stuck(&writer, Duration::from_millis(50));
    }
    lab.start_process("host1/agent").expect("agent");
    let hop = lab::topology::Node::Scvm(at).storage().to_string();
    lab::wait_for("the route put back", SOON, || match lab.next_hop(1)? {
        Some(found) if found == hop => Ok(()),
        other => anyhow::bail!("{other:?}"),
    })
    .expect("route");
    writer.wait_writes(now(), 1000, SOON).expect("writes where the login is");
    lab.ask::<Vec<String>>(&lab::control::Request::Heal {
        name: Some("private-tcp-held".into()),
        target: None,
    })
    .expect("heal");
    writer.wait_writes(now(), 500, SOON).expect("writes go on");
    judge("a flushed route leads to the local server", fence, writer);
}

/// Segments from addresses that nobody has on the network they came by.
fn strangers(lab: &Lab, node: &str) -> u64 {
    table::<Client>(lab, node, pin::CLIENTS).get(&0, 0).expect("client 0").drops[drop::UNREGISTERED]
}

#[test]
fn the_local_server_is_fenced() {
    falls_to_the_local_server(true);
}
#[test]
fn without_the_fence_the_local_server_serves_too() {
    falls_to_the_local_server(false);
}
