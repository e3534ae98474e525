//! How the programs get onto interfaces, what holds them there, and what is said about it.

use crate::bench::*;
use crate::foreign::{TCX_EGRESS, TCX_INGRESS, fill, tcx_next};
use crate::frames::*;
use crate::lasting::{ClientSide, wire};
use crate::records::connect_from;
use aya::programs::{SchedClassifier, TcAttachType};
use reroute_agent::config::{XdpMode, interface_index};
use reroute_agent::netlink::{filters, nic};
use reroute_agent::sensor::{Attachment, LinkKind, MultiBuffer, Sensor, attach_pass, remove};
use reroute_common::table::mode;
use reroute_core::ids::Network;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

fn start_on(dir: &Path, interface: &str, xdp: XdpMode) -> Sensor {
    let mut settings = settings(dir);
    settings.xdp = xdp;
    settings.interfaces = vec![(Network::Storage, interface.into())];
    let mut sensor = Sensor::start(settings).unwrap();
    // What is tried here is who sees a packet, not who may send one.
    sensor.set_mode(mode::BYPASS).unwrap();
    sensor
}

pub fn attachment(sensor: &Sensor) -> &Attachment {
    let [one] = sensor.attachments() else { panic!("{:?}", sensor.attachments()) };
    one
}

/// The client makes one call with a body of this size, and the sensor sees exactly that.
fn talk(sensor: &Sensor, client: &ClientSide, body: usize) {
    let seen = |s: &Sensor| {
        let c = s.clients().unwrap().into_iter().find(|c| c.host == HOST.0).unwrap();
        (c.calls[2], c.replies[2], c.streams_lost, c.in_progress)
    };
    let before = seen(sensor);
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    let asked = client.call(move || {
        let mut socket = connect_from(STORAGE_ADDRESS);
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.write_all(&call(1, WRITE, body)).unwrap();
        socket.read_exact(&mut [0; 28]).unwrap();
    });
    let (mut socket, _) = listener.accept().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.read_exact(&mut vec![0; call(1, WRITE, body).len()]).unwrap();
    socket.write_all(&reply(1, 0)).unwrap();
    asked.recv().unwrap();
    let after = seen(sensor);
    assert_eq!(after, (before.0 + 1, before.1 + 1, before.2, 0), "{:?}", attachment(sensor));
}

fn xdp_on(interface: &str) -> Vec<u32> {
    nic::read().unwrap()[interface].xdp.clone()
}

pub fn tcx_on(interface: &str, hook: TcAttachType) -> Vec<String> {
    let (_, programs) = SchedClassifier::query_tcx(interface, hook).unwrap();
    programs.iter().map(|p| p.name_as_str().unwrap_or_default().to_string()).collect()
}

fn filters_on(interface: &str) -> Vec<String> {
    let all = filters::list(interface_index(interface).unwrap()).unwrap();
    all.into_iter().map(|f| f.name.unwrap_or(f.kind)).collect()
}

/// What runs on `s0`: native and generic XDP, TCX in and out, filters.
fn programs() -> (usize, Vec<String>, Vec<String>, Vec<String>) {
    let tcx = |hook| tcx_on("s0", hook);
    (xdp_on("s0").len(), tcx(TcAttachType::Ingress), tcx(TcAttachType::Egress), filters_on("s0"))
}

pub fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|n| n.to_string()).collect()
}

#[test]
fn each_kind_is_reported_sees_traffic_and_is_adopted() {
    use LinkKind::*;
    let (space, client) = wire();
    let wishes = [
        (XdpMode::Auto, "tc", BpfLink, "tcx", BpfLink),
        (XdpMode::Native, "xdp native", BpfLink, "tcx", BpfLink),
        (XdpMode::Generic, "xdp generic", BpfLink, "tcx", BpfLink),
        (XdpMode::Tc, "tc", BpfLink, "tcx", BpfLink),
        (XdpMode::Clsact, "tc", NetlinkFilter, "clsact", NetlinkFilter),
    ];
    for (i, (wish, ingress, ingress_link, egress, egress_link)) in wishes.into_iter().enumerate() {
        let dir = space.bpffs.join(format!("scvm{i}"));
        let sensor = start_on(&dir, "s0", wish);
        let first = attachment(&sensor).clone();
        let wanted = Attachment {
            network: Network::Storage,
            interface: "s0".into(),
            index: interface_index("s0").unwrap(),
            driver: Some("veth".into()),
            mtu: 1500,
            ingress: ingress.into(),
            ingress_link,
            egress: egress.into(),
            egress_link,
            multi_buffer: MultiBuffer::Yes,
            reason: first.reason.clone(),
        };
        assert_eq!(first, wanted, "{wish:?}");
        assert!(!first.reason.is_empty() && !first.reason.contains("adopted"), "{}", first.reason);
        talk(&sensor, &client, 3000);
        let stands = programs();
        drop(sensor);
        assert_eq!(programs(), stands, "{wish:?}: nothing goes with the agent");
        let sensor = start_on(&dir, "s0", wish);
        let second = attachment(&sensor);
        assert_eq!(second.reason.matches("adopted").count(), 2, "in and out: {}", second.reason);
        assert_eq!(Attachment { reason: first.reason, ..second.clone() }, wanted, "{wish:?}");
        assert_eq!(programs(), stands, "{wish:?}");
        talk(&sensor, &client, 3000);
        drop(sensor);
        remove(&dir).unwrap();
    }
}

#[test]
fn another_wish_leaves_nothing_of_the_one_before() {
    let (space, client) = wire();
    let dir = space.bpffs.join("scvm");
    let nothing = names(&[]);
    let (ingress, egress) = (names(&["ingress_tc"]), names(&["egress"]));
    let xdp = (1, nothing.clone(), egress.clone(), nothing.clone());
    let tc = (0, ingress.clone(), egress.clone(), nothing.clone());
    let clsact = (0, nothing.clone(), nothing.clone(), names(&["ingress_tc", "egress"]));
    for (wish, wanted) in [
        (XdpMode::Native, &xdp),
        (XdpMode::Generic, &xdp),
        (XdpMode::Tc, &tc),
        (XdpMode::Clsact, &clsact),
        (XdpMode::Generic, &xdp),
        (XdpMode::Native, &xdp),
        (XdpMode::Clsact, &clsact),
        (XdpMode::Tc, &tc),
        // What stands is good enough for it.
        (XdpMode::Auto, &tc),
    ] {
        let sensor = start_on(&dir, "s0", wish);
        // A link goes a grace period after its pin.
        wait_for(&format!("{wish:?}: {:?}, not {wanted:?}", programs()), || programs() == *wanted);
        talk(&sensor, &client, 100);
    }
}

#[test]
fn a_foreign_xdp_program_stays_and_is_named() {
    let (space, client) = wire();
    let dir = space.bpffs.join("scvm");
    let stranger = attach_pass("s0").unwrap();
    let theirs = xdp_on("s0");
    assert_eq!(theirs.len(), 1);
    for wish in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
        let sensor = start_on(&dir, "s0", wish);
        let found = attachment(&sensor);
        assert_eq!((found.ingress.as_str(), found.ingress_link), ("tc", LinkKind::BpfLink), "{wish:?}");
        let named = format!("pass (id {})", theirs[0]);
        assert!(found.reason.contains(&named) && found.reason.contains("stays"), "{}", found.reason);
        assert_eq!(xdp_on("s0"), theirs, "{wish:?}");
        talk(&sensor, &client, 3000);
        drop(sensor);
        remove(&dir).unwrap();
    }
    drop(stranger);
    wait_for("the stranger to go", || xdp_on("s0").is_empty());

    // Another agent's generic program is a stranger too; our own is not.
    let other = start_on(&space.bpffs.join("other"), "s0", XdpMode::Generic);
    let theirs = xdp_on("s0");
    let sensor = start_on(&dir, "s0", XdpMode::Auto);
    assert!(attachment(&sensor).reason.contains("ingress (id"), "{}", attachment(&sensor).reason);
    assert_eq!(attachment(&sensor).ingress, "tc");
    assert_eq!(xdp_on("s0"), theirs);
    drop(other);
}

#[test]
fn an_interface_made_anew_is_attached_anew() {
    let (space, client) = wire();
    for wish in [XdpMode::Auto, XdpMode::Generic, XdpMode::Tc, XdpMode::Clsact] {
        let dir = space.bpffs.join("scvm");
        let first = start_on(&dir, "s0", wish);
        let before = attachment(&first).clone();
        drop(first);
        // Under the same name and index the old pins are found, and hold nothing; under another index they are strangers.
        for index in [before.index, before.index + 100] {
            run("ip link del s0");
            run(&format!("ip link add s0 index {index} type veth peer name c0 netns {}", client.tid));
            run("ip addr add 10.10.85.1/24 dev s0");
            run("ip link set s0 up");
            client.run("ip addr add 10.10.85.11/24 dev c0");
            client.run("ip link set c0 up");
            client.run("ip route add 192.168.33.2/32 via 10.10.85.1");
            let sensor = start_on(&dir, "s0", wish);
            let after = attachment(&sensor);
            assert!(!after.reason.contains("adopted from"), "{wish:?} {index}: {}", after.reason);
            assert_eq!((&after.ingress, after.index), (&before.ingress, index), "{wish:?}");
            talk(&sensor, &client, 100);
            let pins: Vec<String> = std::fs::read_dir(&dir)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .filter(|n| n.starts_with("link_") || n.starts_with("filter_"))
                .collect();
            assert_eq!(pins.len(), 2, "{wish:?} {index}: {pins:?}");
            assert!(pins.iter().all(|p| p.ends_with(&format!("_s0_{index}"))), "{pins:?}");
        }
        remove(&dir).unwrap();
        run("ip link del s0");
        run(&format!("ip link add s0 type veth peer name c0 netns {}", client.tid));
        run("ip link set s0 up");
    }
}

#[test]
fn where_tcx_is_full_filters_do_it_until_there_is_room() {
    let (space, client) = wire();
    let dir = space.bpffs.join("scvm");
    let strangers = [fill("s0", TCX_INGRESS), fill("s0", TCX_EGRESS)];
    let sensor = start_on(&dir, "s0", XdpMode::Tc);
    let found = attachment(&sensor);
    assert_eq!((found.ingress.as_str(), found.egress.as_str()), ("tc", "clsact"));
    assert_eq!((found.ingress_link, found.egress_link), (LinkKind::NetlinkFilter, LinkKind::NetlinkFilter));
    assert!(found.reason.contains("tcx: ") && found.reason.contains("egress tcx: "), "{}", found.reason);
    assert_eq!(tcx_on("s0", TcAttachType::Ingress).len(), strangers[0].len(), "none was thrown out");
    assert_eq!(filters_on("s0"), ["ingress_tc", "egress"]);
    talk(&sensor, &client, 3000);
    drop(sensor);
    drop(strangers);
    let sensor = start_on(&dir, "s0", XdpMode::Tc);
    let found = attachment(&sensor);
    assert_eq!((found.egress.as_str(), found.ingress_link), ("tcx", LinkKind::BpfLink), "{}", found.reason);
    assert_eq!(filters_on("s0"), [""; 0], "a packet is judged once");
    talk(&sensor, &client, 3000);
}

#[test]
fn tc_programs_of_others_stay_beside_ours() {
    let (space, client) = wire();
    let dir = space.bpffs.join("scvm");
    let _strangers = [tcx_next("s0", TCX_INGRESS).unwrap(), tcx_next("s0", TCX_EGRESS).unwrap()];
    run("tc qdisc add dev s0 clsact");
    let index = interface_index("s0").unwrap();
    for hook in ["ingress", "egress"] {
        // Matches nothing, leaves everything.
        let filter = ["filter", "add", "dev", "s0", hook, "protocol", "ip", "bpf", "bytecode", "1,6 0 0 0"];
        let done = std::process::Command::new("tc").args(filter).args(["flowid", "1:1"]).status().unwrap();
        assert!(done.success(), "{hook}");
    }
    for wish in [XdpMode::Tc, XdpMode::Clsact, XdpMode::Tc] {
        for _ in 0..2 {
            let sensor = start_on(&dir, "s0", wish);
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                assert!(tcx_on("s0", hook).contains(&"stranger".to_string()), "{wish:?} {hook:?}");
            }
            let theirs = filters::list(index).unwrap().into_iter().filter(|f| f.name.is_none()).count();
            assert_eq!(theirs, 2, "{wish:?}");
            talk(&sensor, &client, 3000);
        }
    }
}

#[test]
fn a_large_mtu_falls_back_where_the_driver_has_one_buffer() {
    let space = Space::new();
    run("ip tuntap add mode tap t0");
    run("ip link set t0 mtu 9000 up");
    for wish in [XdpMode::Auto, XdpMode::Native] {
        let dir = space.bpffs.join("large");
        let sensor = start_on(&dir, "t0", wish);
        let found = attachment(&sensor);
        assert_eq!((found.ingress.as_str(), found.mtu), ("tc", 9000), "{wish:?}");
        assert_eq!(found.driver.as_deref(), Some("tun"));
        assert!(found.reason.contains("one buffer") && found.reason.contains("9000"), "{}", found.reason);
        assert_eq!(found.multi_buffer, MultiBuffer::Yes, "TC sees packets whole");
        drop(sensor);
        remove(&dir).unwrap();
    }
    run("ip link set t0 mtu 1500");
    let sensor = start_on(&space.bpffs.join("small"), "t0", XdpMode::Auto);
    let found = attachment(&sensor);
    assert_eq!((found.ingress.as_str(), found.multi_buffer), ("xdp native", MultiBuffer::No), "{found:?}");
}

#[test]
fn frames_of_several_buffers_are_followed_in_every_mode() {
    let (space, client) = wire();
    run("ip link set s0 mtu 9000");
    client.run("ip link set c0 mtu 9000");
    for wish in [XdpMode::Auto, XdpMode::Generic, XdpMode::Tc, XdpMode::Clsact] {
        let dir = space.bpffs.join(format!("{wish:?}"));
        let sensor = start_on(&dir, "s0", wish);
        assert_eq!((attachment(&sensor).mtu, attachment(&sensor).multi_buffer), (9000, MultiBuffer::Yes));
        talk(&sensor, &client, 60_000);
        drop(sensor);
        remove(&dir).unwrap();
    }
}
