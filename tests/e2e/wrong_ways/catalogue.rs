//! The lab's faults of links do what they say, and stop doing it.

use lab::faults::{Action, FAULTS, FOR_TESTS, Fault};
use lab::topology::{HOST_PRIVATE, Node, SERVICE};
use lab::{Lab, Options};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

/// Both ends of a link's traffic: datagrams from a node to scvm1, and back.
struct Link {
    name: &'static str,
    there: UdpSocket,
    scvm: UdpSocket,
}

fn socket(lab: &Lab, node: Node, address: Ipv4Addr) -> UdpSocket {
    let ns = lab.namespace(&node.to_string()).expect("namespace");
    ns.run(|| UdpSocket::bind((address, 0))).expect("enter").expect("bind")
}

impl Link {
    fn new(lab: &Lab, name: &'static str, node: Node, from: Ipv4Addr, to: Ipv4Addr) -> Link {
        let (there, scvm) = (socket(lab, node, from), socket(lab, Node::Scvm(1), to));
        there.connect(scvm.local_addr().expect("address")).expect("connect");
        scvm.connect(there.local_addr().expect("address")).expect("connect");
        Link { name, there, scvm }
    }

    /// How many of `count` datagrams come through, to scvm1 or back, until nothing has come for `patience`.
    fn pass(&self, to_scvm: bool, count: u32, patience: Duration) -> u32 {
        let (from, to) = if to_scvm { (&self.there, &self.scvm) } else { (&self.scvm, &self.there) };
        to.set_read_timeout(Some(patience)).expect("timeout");
        let mut received = 0;
        for _ in 0..count {
            // One at a time: no queue of ours is full.
            from.send(b"frame").expect("send");
            received += u32::from(to.recv(&mut [0; 16]).is_ok());
        }
        received
    }

    /// Whether anything comes through: to scvm1, and from it. The first ones may wait for a link address.
    fn open(&self) -> (bool, bool) {
        let some = |to_scvm| self.pass(to_scvm, 3, Duration::from_millis(100)) > 0;
        (some(true), some(false))
    }
}

const OPEN: (bool, bool) = (true, true);
const SHUT: (bool, bool) = (false, false);

#[test]
fn links_are_disturbed_as_named_and_mended() {
    let lab = Lab::start(Options::named("links").without_agents()).expect("lab");
    let (scvm, host, meta) = (Node::Scvm(1), Node::Host(1), Node::Meta);
    let links = [
        Link::new(&lab, "host by storage", host, host.storage(), scvm.storage()),
        Link::new(&lab, "host by management", host, host.management(), scvm.management()),
        Link::new(&lab, "host by the private link", host, HOST_PRIVATE, SERVICE),
        Link::new(&lab, "Meta by storage", meta, meta.storage(), scvm.storage()),
        Link::new(&lab, "Meta by management", meta, meta.management(), scvm.management()),
    ];
    let state = || links.each_ref().map(Link::open);
    assert_eq!(state(), [OPEN; 5]);
    let cases = [
        ("storage-blackhole", [SHUT, OPEN, OPEN, SHUT, OPEN]),
        // A link address that was asked for in between cannot be answered.
        ("one-way-loss", [(true, false), OPEN, OPEN, (true, false), OPEN]),
        ("meta-cut", [OPEN, OPEN, OPEN, SHUT, SHUT]),
        ("host-cut", [SHUT, SHUT, SHUT, OPEN, OPEN]),
    ];
    for (name, expected) in cases {
        lab.fault(name, Some("scvm1")).expect(name);
        let found = state();
        for ((link, found), expected) in links.iter().zip(found).zip(expected) {
            assert_eq!(found, expected, "{name}: {}", link.name);
        }
        lab.heal().expect("heal");
        assert_eq!(state(), [OPEN; 5], "{name} healed");
    }

    lab.fault("lossy-5", Some("scvm1")).expect("lossy-5");
    for to_scvm in [true, false] {
        let passed = links[0].pass(to_scvm, 200, Duration::from_millis(30));
        assert!((150..200).contains(&passed), "{passed} of 200 passed");
    }
    lab.heal().expect("heal");

    lab.fault("storage-delay-2s", Some("scvm1")).expect("storage-delay-2s");
    for to_scvm in [true, false] {
        let began = Instant::now();
        assert_eq!(links[0].pass(to_scvm, 1, Duration::from_secs(20)), 1);
        assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    }
    lab.heal().expect("heal");
    assert_eq!(state(), [OPEN; 5]);
}

fn is_stopped(lab: &Lab, process: &str) -> bool {
    let pid = lab.process(process).expect("process").pid;
    // Its pid in the lab, whose /proc is to be seen beside its root.
    let root = lab.root().to_string_lossy().into_owned();
    let proc = format!(
        "{}/proc/{pid}/stat",
        root.split_once("/root/").expect("/proc/PID/root/...").0.to_owned() + "/root"
    );
    let stat = std::fs::read_to_string(&proc).unwrap_or_else(|error| panic!("{proc}: {error}"));
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}

#[test]
fn a_frozen_node_gets_what_was_sent_when_it_thaws() {
    let lab = Lab::start(Options::named("frozen").without_agents()).expect("lab");
    let (scvm, meta) = (Node::Scvm(1), Node::Meta);
    let link = Link::new(&lab, "Meta by storage", meta, meta.storage(), scvm.storage());
    assert_eq!(link.open(), OPEN);
    lab.fault("scvm-frozen", Some("scvm1")).expect("scvm-frozen");
    assert!(is_stopped(&lab, "scvm1/server") && !is_stopped(&lab, "scvm2/server"));
    assert_eq!(link.open(), SHUT);
    // It goes on by itself, and what was kept comes in.
    link.scvm.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    for _ in 0..3 {
        link.scvm.recv(&mut [0; 16]).expect("what was sent meanwhile");
    }
    lab::wait_for("its processes to go on", Duration::from_secs(10), || {
        match is_stopped(&lab, "scvm1/server") {
            true => anyhow::bail!("stopped"),
            false => Ok(()),
        }
    })
    .expect("thaw");
    assert_eq!(link.open(), OPEN);
    lab.heal().expect("heal");
}

#[test]
fn every_fault_is_named_once() {
    let mut names: Vec<&str> = FAULTS.iter().chain(FOR_TESTS).map(|f| f.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(matches!(Fault::find("meta-restarted").expect("named").action, Action::Restart("agent")));
}
