//! On real interfaces, and across restarts of the agent.

use crate::bench::*;
use crate::frames::*;
use crate::records::connect_from;
use reroute_agent::config::XdpMode;
use reroute_agent::sensor::{LinkKind, Sensor, SensorError, Settings, attach_pass, remove};
use reroute_common::admission::{Word, rank};
use reroute_common::flow::Flow;
use reroute_common::table::{Client, mode};
use reroute_core::ids::{Epoch, HostId, Network};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

#[test]
fn a_restart_adopts_counters_admission_slots_and_the_timer() {
    let mut bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&call(1, WRITE, 0)));
    bench.sensor.set_mode(mode::BYPASS).unwrap();
    assert!(!bench.sensor.adopted());
    // The call grows old meanwhile: we wait for that, so that nothing else changes.
    wait_for("the stall", || bench.client(HOST).stalls == 1);
    let before = bench.client(HOST);
    let flows = calls_and_counts(&bench);

    let mut settings = settings(&bench.dir);
    // A new host comes first, an old one is gone from the configuration.
    settings.clients.remove(1);
    let mut third = settings.clients[0].clone();
    third.host = HostId(3);
    third.addresses[1].1 = [10, 10, 85, 13].into();
    third.addresses[0].1 = [192, 168, 33, 7].into();
    third.addresses[2].1 = [192, 168, 85, 13].into();
    settings.clients.insert(0, third);
    bench.sensor = Sensor::start(settings).unwrap();
    assert!(bench.sensor.adopted());
    // A tick that the machine delays for long ends the stall, and it begins anew.
    assert_eq!(Client { stalls: before.stalls, ..bench.client(HOST) }, before);
    assert_eq!(calls_and_counts(&bench), flows);
    assert_eq!(bench.counts().word, Word::new(1, rank::ADMITTED));
    let slots: Vec<u32> = bench.sensor.clients().unwrap().iter().map(|c| c.host).collect();
    assert_eq!(slots, [0, HOST.0, MUTE.0, 3], "slots stay where they were");
    assert_eq!(bench.sensor.config().unwrap().mode, mode::BYPASS, "a bypass stands until it is lifted");
    let ticks = bench.server().ticks;
    wait_for("the timer to go on", || bench.server().ticks > ticks + 10);
    // The call from before is still matched by what runs now.
    bench.by(Network::Storage);
    bench.tx(&c.answer(&reply(1, 0)));
    assert_eq!(bench.counts().in_progress, 0);
}

/// All of the lines but what the timer writes: a tick that the machine delays rebases it.
fn calls_and_counts(bench: &Bench) -> Vec<(u32, Flow)> {
    let mut flows = bench.sensor.flows().unwrap();
    for (_, flow) in &mut flows {
        (flow.raised, flow.oldest, flow.last_at) = (0, 0, 0);
    }
    flows
}

#[test]
fn maps_of_another_layout_are_refused_and_left_alone() {
    let space = Space::new();
    let dir = space.bpffs.join("scvm");
    let sensor = Sensor::start(settings(&dir)).unwrap();
    std::mem::drop(sensor);
    std::fs::remove_file(dir.join("SERVER")).unwrap();
    assert!(matches!(Sensor::start(settings(&dir)), Err(SensorError::Incomplete { .. })));
    std::fs::rename(dir.join("CONFIG"), dir.join("SERVER")).unwrap();
    assert!(matches!(Sensor::start(settings(&dir)), Err(SensorError::Layout { name: "SERVER", .. })));
    remove(&dir).unwrap();
    assert!(!Sensor::start(settings(&dir)).unwrap().adopted());
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let space = Space::new();
    let dir = space.bpffs.join("scvm");
    let mut settings = settings(&dir);
    settings.interfaces = vec![(Network::Storage, "lo".into()), (Network::Management, "nothere0".into())];
    assert!(
        matches!(Sensor::start(settings), Err(SensorError::Attach { interface, .. }) if interface == "nothere0")
    );
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

/// A server side in this namespace and a client side in a child namespace, joined by a veth pair.
pub fn wire() -> (Space, ClientSide) {
    let space = Space::new();
    let client = ClientSide::start();
    run(&format!("ip link add s0 type veth peer name c0 netns {}", client.tid));
    run("ip addr add 10.10.85.1/24 dev s0");
    run("ip addr add 192.168.33.2/32 dev lo");
    run("ip link set s0 up");
    client.run("ip link set lo up");
    client.run("ip addr add 10.10.85.11/24 dev c0");
    client.run("ip link set c0 up");
    client.run("ip route add 192.168.33.2/32 via 10.10.85.1");
    (space, client)
}

/// A restart asks the verifier about every program, which takes seconds where the processor is emulated.
const PATIENCE: Duration = Duration::from_secs(120);

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own.
pub struct ClientSide {
    pub tid: i32,
    jobs: std::sync::mpsc::Sender<Job>,
}

impl ClientSide {
    fn start() -> ClientSide {
        let (jobs, work) = std::sync::mpsc::channel::<Job>();
        let (told, tid) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            unshare_network();
            told.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            for job in work {
                job();
            }
        });
        ClientSide { tid: tid.recv().unwrap(), jobs }
    }
    pub fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::sync::mpsc::Receiver<T> {
        let (done, result) = std::sync::mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(work())))).unwrap();
        result
    }
    pub fn run(&self, command: &str) {
        let command = command.to_string();
        self.call(move || run(&command)).recv().unwrap();
    }
}

/// Whether TC programs can be attached by links: since Linux 6.6.
fn has_tcx() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap());
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    version >= (6, 6)
}

fn converse(way: XdpMode, native: bool) {
    let (space, client) = wire();
    let dir = space.bpffs.join("scvm");
    let start = |xdp| {
        let mut settings = settings(&dir);
        settings.xdp = xdp;
        settings.interfaces = vec![(Network::Storage, "s0".into())];
        Sensor::start(settings).unwrap()
    };
    let sensor = start(way);
    let pass = native.then(|| client.call(|| attach_pass("c0").unwrap()).recv().unwrap());
    let [attachment] = sensor.attachments() else { panic!("{:?}", sensor.attachments()) };
    let egress = if has_tcx() && way != XdpMode::Clsact { "tcx" } else { "clsact" };
    let wanted = match way {
        XdpMode::Native => "xdp native",
        XdpMode::Generic => "xdp generic",
        XdpMode::Auto | XdpMode::Tc | XdpMode::Clsact => "tc",
    };
    assert_eq!((attachment.ingress.as_str(), attachment.egress.as_str()), (wanted, egress), "{attachment:?}");
    let lacking = way != XdpMode::Clsact && !has_tcx();
    assert_eq!(attachment.reason.contains("(needs Linux 6.6)"), lacking, "{attachment:?}");

    sensor.admit(HOST, Epoch(1)).unwrap();
    let hour = reroute_core::ids::BootNs(now() + 3_600_000_000_000);
    sensor.renew(hour, hour).unwrap();
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    const CALLS: u32 = 400;
    let talk = client.call(|| {
        let mut socket = connect_from(STORAGE_ADDRESS);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut buffer = [0; 28];
        for xid in 1..=CALLS {
            socket.write_all(&call(xid, WRITE, 3000)).unwrap();
            socket.read_exact(&mut buffer).unwrap();
        }
        socket
    });
    let (mut socket, _) = listener.accept().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_nodelay(true).unwrap();
    let mut buffer = vec![0; call(1, WRITE, 3000).len()];
    let mut sensor = Some(sensor);
    for xid in 1..=CALLS {
        socket.read_exact(&mut buffer).unwrap();
        if xid % 100 == 0 {
            // The agent goes, its programs stay; another one comes while the client talks on.
            drop(sensor.take());
            sensor = Some(start(way));
            assert!(sensor.as_ref().unwrap().adopted());
            assert!(sensor.as_ref().unwrap().attachments()[0].reason.contains("adopted"));
        }
        socket.write_all(&reply(xid, 0)).unwrap();
    }
    let client_socket = talk.recv().unwrap();
    let sensor = sensor.unwrap();
    let seen = sensor.clients().unwrap().into_iter().find(|c| c.host == HOST.0).unwrap();
    assert_eq!((seen.calls[2], seen.replies[2]), (CALLS.into(), CALLS.into()));
    assert_eq!((seen.in_progress, seen.orphans, seen.streams_lost, seen.opened), (0, 0, 0, 1));
    assert_eq!(seen.drops, [0; reroute_common::table::drop::COUNT]);
    // None, unless a busy machine made one end wait; never more than that end has sent.
    assert!(seen.rx_retransmitted <= sent_again(&client_socket), "{seen:?}");
    assert!(seen.tx_retransmitted <= sent_again(&socket), "{seen:?}");

    // Fenced, nothing of it gets in.
    sensor.fence(HOST, Epoch(1)).unwrap();
    let drops = seen.drops.iter().sum::<u64>();
    let refused = client.call(move || {
        let mut socket = client_socket;
        socket.write_all(&call(9, WRITE, 0)).unwrap();
        socket
    });
    let _client_socket = refused.recv().unwrap();
    wait_for("a drop", || sensor.clients().unwrap()[1].drops.iter().sum::<u64>() > drops);
    drop(sensor);
    drop(pass);
    remove(&dir).unwrap();
}

#[test]
fn traffic_in_generic_mode_survives_restarts() {
    converse(XdpMode::Generic, false);
}

#[test]
fn traffic_in_native_mode_survives_restarts() {
    converse(XdpMode::Native, true);
}

#[test]
fn traffic_by_tc_survives_restarts() {
    converse(XdpMode::Tc, false);
}

#[test]
fn traffic_by_clsact_survives_restarts() {
    converse(XdpMode::Clsact, false);
}

/// A connection that programs attached by `way` shut out gets in once `let_go` has taken them away.
fn taken_away(way: XdpMode, let_go: impl FnOnce(Sensor, Settings)) {
    let (space, client) = wire();
    let mut settings = settings(&space.bpffs.join("scvm"));
    settings.xdp = way;
    settings.interfaces = vec![(Network::Storage, "s0".into())];
    let sensor = Sensor::start(settings.clone()).unwrap();
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    let connected = client.call(|| drop(connect_from(STORAGE_ADDRESS)));
    wait_for("a drop", || sensor.clients().unwrap()[1].drops.iter().sum::<u64>() > 0);
    let_go(sensor, settings);
    connected.recv_timeout(PATIENCE).unwrap();
    drop(listener);
}

#[test]
fn filters_go_with_their_directory() {
    taken_away(XdpMode::Clsact, |sensor, settings| {
        drop(sensor);
        remove(&settings.bpf_dir).unwrap();
        assert_eq!(std::fs::read_dir(&settings.bpf_dir).unwrap().count(), 0);
    });
}

#[test]
fn filters_go_from_interfaces_no_longer_watched() {
    taken_away(XdpMode::Clsact, |sensor, mut settings| {
        drop(sensor);
        settings.interfaces.clear();
        let sensor = Sensor::start(settings).unwrap();
        assert!(sensor.adopted());
        assert!(sensor.attachments().is_empty());
    });
}

#[test]
fn links_give_way_to_filters() {
    taken_away(XdpMode::Generic, |sensor, mut settings| {
        drop(sensor);
        settings.xdp = XdpMode::Clsact;
        let sensor = Sensor::start(settings).unwrap();
        let [now_attached] = sensor.attachments() else { panic!("{:?}", sensor.attachments()) };
        assert_eq!(
            (now_attached.ingress_link, now_attached.egress.as_str()),
            (LinkKind::NetlinkFilter, "clsact")
        );
        sensor.admit(HOST, Epoch(1)).unwrap();
        let hour = reroute_core::ids::BootNs(now() + 3_600_000_000_000);
        sensor.renew(hour, hour).unwrap();
        wait_for("the handshake", || sensor.clients().unwrap()[1].opened == 1);
        // A link that had stayed would have seen the SYN before.
        assert_eq!(sensor.clients().unwrap()[1].rx_retransmitted, 0);
    });
}
