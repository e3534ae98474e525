//! TC programs of others before and behind ours: none lets pass what we drop, all see what we pass.

use crate::attaching::{attachment, names, tcx_on};
use crate::bench::*;
use crate::foreign::{NEXT, PASS, Stranger, TCX_EGRESS, TCX_INGRESS, tcx_next};
use crate::frames::*;
use crate::lasting::{ClientSide, wire};
use crate::records::connect_from;
use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::sys::{Stats, enable_stats};
use reroute_agent::config::XdpMode;
use reroute_agent::sensor::{Sensor, remove};
use reroute_core::ids::{BootNs, Epoch, Network};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

/// Enforces, by TC; the host is admitted.
fn admitting(dir: &Path, way: XdpMode) -> Sensor {
    let mut settings = settings(dir);
    (settings.xdp, settings.interfaces) = (way, vec![(Network::Storage, "s0".into())]);
    let sensor = Sensor::start(settings).unwrap();
    let hour = BootNs(now() + 3_600_000_000_000);
    sensor.renew(hour, hour).unwrap();
    sensor.admit(HOST, Epoch(1)).unwrap();
    sensor
}

fn connected(client: &ClientSide) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    let theirs = client.call(|| connect_from(STORAGE_ADDRESS));
    let (ours, _) = listener.accept().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (theirs.recv().unwrap(), ours)
}

/// Some calls and their replies. Gives the segments that came in and left meanwhile.
fn converse(sensor: &Sensor, theirs: &mut TcpStream, ours: &mut TcpStream) -> (u64, u64) {
    let seen = || sensor.clients().unwrap().into_iter().find(|c| c.host == HOST.0).unwrap();
    let before = seen();
    theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for xid in 1..=20 {
        theirs.write_all(&call(xid, WRITE, 100)).unwrap();
        ours.read_exact(&mut vec![0; call(xid, WRITE, 100).len()]).unwrap();
        ours.write_all(&reply(xid, 0)).unwrap();
        theirs.read_exact(&mut [0; 28]).unwrap();
    }
    let after = seen();
    assert_eq!(after.replies[2] - before.replies[2], 20);
    assert_eq!(after.drops, before.drops);
    (after.rx_packets - before.rx_packets, after.tx_packets - before.tx_packets)
}

/// What the client sends now is dropped by us, all of it, and the server gets none.
fn fenced(sensor: &Sensor, epoch: Epoch, theirs: &mut TcpStream, ours: &mut TcpStream) {
    sensor.fence(HOST, epoch).unwrap();
    let seen = || {
        let c = sensor.clients().unwrap().into_iter().find(|c| c.host == HOST.0).unwrap();
        (c.drops.iter().sum::<u64>(), c.rx_packets)
    };
    let (drops, packets) = seen();
    theirs.write_all(&call(99, WRITE, 0)).unwrap();
    // The first, and some that its TCP sends again.
    wait_for("drops", || seen().0 >= drops + 3);
    wait_for("each of them to be seen and dropped", || {
        let now = seen();
        now.0 - drops == now.1 - packets
    });
    ours.set_nonblocking(true).unwrap();
    assert_eq!(ours.read(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
    ours.set_nonblocking(false).unwrap();
}

#[test]
fn no_tcx_program_of_others_lets_a_fenced_client_past() {
    let (space, client) = wire();
    let dir = space.bpffs.join("scvm");
    // Whoever says PASS ends the chain: those behind it are not asked.
    let last = || [TCX_INGRESS, TCX_EGRESS].map(|hook| Stranger::tcx(PASS, "s0", hook, false).unwrap());
    let earlier = last();
    let sensor = admitting(&dir, XdpMode::Tc);
    let later = last();
    let order = names(&["ingress_tc", "stranger", "stranger"]);
    assert_eq!(tcx_on("s0", TcAttachType::Ingress), order);
    assert_eq!(tcx_on("s0", TcAttachType::Egress)[0], "egress");

    let _stats = enable_stats(Stats::RunTime).unwrap();
    let (mut theirs, mut ours) = connected(&client);
    let ran = [earlier[0].runs(), earlier[1].runs()];
    let (came, left) = converse(&sensor, &mut theirs, &mut ours);
    assert!(came >= 20 && left >= 20, "{came} {left}");
    assert!(earlier[0].runs() - ran[0] >= came, "{came}: what we pass, others see");
    assert!(earlier[1].runs() - ran[1] >= left, "{left}: what we pass, others see");
    assert_eq!((later[0].runs(), later[1].runs()), (0, 0), "behind a PASS");
    fenced(&sensor, Epoch(1), &mut theirs, &mut ours);
    drop((theirs, ours));

    // One that has put itself before us since: the next agent goes first again.
    let usurpers = [TCX_INGRESS, TCX_EGRESS].map(|hook| Stranger::tcx(PASS, "s0", hook, true).unwrap());
    assert_eq!(tcx_on("s0", TcAttachType::Ingress)[..2], names(&["stranger", "ingress_tc"]));
    drop(sensor);
    let sensor = admitting(&dir, XdpMode::Tc);
    assert!(attachment(&sensor).reason.contains("put before programs"), "{}", attachment(&sensor).reason);
    sensor.admit(HOST, Epoch(2)).unwrap();
    // The link that stood behind goes a grace period after its pin.
    wait_for("the old links to go", || tcx_on("s0", TcAttachType::Ingress).len() == 4);
    wait_for("the old links to go", || tcx_on("s0", TcAttachType::Egress).len() == 4);
    assert_eq!(tcx_on("s0", TcAttachType::Ingress)[..2], names(&["ingress_tc", "stranger"]));
    assert_eq!(tcx_on("s0", TcAttachType::Egress)[..2], names(&["egress", "stranger"]));
    let (mut theirs, mut ours) = connected(&client);
    let ran = usurpers[0].runs();
    let (came, _) = converse(&sensor, &mut theirs, &mut ours);
    assert!(usurpers[0].runs() - ran >= came);
    fenced(&sensor, Epoch(2), &mut theirs, &mut ours);

    // Who stands first stays there, adopted.
    drop(sensor);
    let sensor = admitting(&dir, XdpMode::Tc);
    assert_eq!(attachment(&sensor).reason.matches("adopted").count(), 2, "{}", attachment(&sensor).reason);
    assert_eq!(tcx_on("s0", TcAttachType::Ingress).len(), 4);
    let pins = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(pins.filter(|n| n.starts_with("link_")).count(), 2);
}

#[test]
fn programs_of_others_run_for_what_we_pass() {
    let (space, client) = wire();
    for way in [XdpMode::Tc, XdpMode::Clsact] {
        let dir = space.bpffs.join(format!("{way:?}"));
        let sensor = admitting(&dir, way);
        // Filters behind ours, and links, which are asked before any filter.
        let filters = [TcAttachType::Ingress, TcAttachType::Egress].map(|hook| {
            let stranger = Stranger::load(NEXT).unwrap();
            let pin = space.bpffs.join(format!("stranger_{way:?}_{hook:?}"));
            stranger.pin(&pin).unwrap();
            let mut program = SchedClassifier::from_pin(&pin).unwrap();
            let _ = qdisc_add_clsact("s0");
            let options = NlOptions { priority: 60_000, handle: TcHandle::new(0, 7), classid: None };
            program.attach_with_options("s0", hook, TcAttachOptions::Netlink(options)).unwrap();
            (stranger, program)
        });
        let links = [TCX_INGRESS, TCX_EGRESS].map(|hook| tcx_next("s0", hook).unwrap());
        let _stats = enable_stats(Stats::RunTime).unwrap();
        let (mut theirs, mut ours) = connected(&client);
        let runs = || {
            let all = [&links[0], &filters[0].0, &links[1], &filters[1].0];
            all.map(Stranger::runs)
        };
        let before = runs();
        let (came, left) = converse(&sensor, &mut theirs, &mut ours);
        for (i, ran) in runs().into_iter().enumerate() {
            let wanted = if i < 2 { came } else { left };
            assert!(ran - before[i] >= wanted, "{way:?} {i}: {ran} - {}, not {wanted}", before[i]);
        }
        fenced(&sensor, Epoch(1), &mut theirs, &mut ours);
        drop(sensor);
        remove(&dir).unwrap();
    }
}
