//! The lab's faults of links do what they say, and stop doing it.

use lab::faults::{Action, FOR_TESTS, Fault};
use lab::topology::{HOST_PRIVATE, Node, SERVICE};
use lab::{Lab, Options};
use reroute_agent::sweep::arp;
use reroute_core::ids::MS;
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

/// Whether a datagram that makes a frame of so many bytes of IP comes through, from a host to scvm1 and back.
fn passes(link: &Link, bytes: usize) -> (bool, bool) {
    let one = |from: &UdpSocket, to: &UdpSocket| {
        to.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        from.send(&vec![0; bytes - 28]).expect("send");
        to.recv(&mut [0; 2000]).is_ok()
    };
    (one(&link.there, &link.scvm), one(&link.scvm, &link.there))
}

#[test]
fn long_frames_alone_are_lost_on_a_narrow_path() {
    let lab = Lab::start(Options::named("narrow").without_agents()).expect("lab");
    let (host, scvm, meta) = (Node::Host(1), Node::Scvm(1), Node::Meta);
    let storage = Link::new(&lab, "host by storage", host, host.storage(), scvm.storage());
    let management = Link::new(&lab, "host by management", host, host.management(), scvm.management());
    let other = Link::new(&lab, "Meta by storage", meta, meta.storage(), scvm.storage());
    assert_eq!((storage.open(), management.open(), other.open()), (OPEN, OPEN, OPEN));
    for (fault, node, meta_too) in [("mtu-mismatch", "host1", false), ("scvm-mtu-mismatch", "scvm1", true)] {
        lab.fault(fault, Some(node)).expect(fault);
        let most = lab::faults::catalogue::SHORT_MTU as usize;
        assert_eq!((passes(&storage, most), passes(&storage, most + 1)), (OPEN, SHUT), "{fault}");
        assert_eq!(passes(&management, 1500), OPEN, "{fault}");
        assert_eq!(passes(&other, 1500), if meta_too { SHUT } else { OPEN }, "{fault}");
        lab.heal().expect("heal");
        assert_eq!(passes(&storage, 1500), OPEN, "{fault} healed");
    }
}

#[test]
fn a_full_disk_takes_nothing_and_then_takes_all_again() {
    let lab = Lab::start(Options::named("full")).expect("lab");
    let write = |what: &str| std::fs::write(lab.root().join("scvm1").join(what), [1; 8192]);
    for what in ["state/file", "log/file"] {
        write(what).expect("room");
    }
    lab.fault("log-disk-full", Some("scvm1")).expect("log-disk-full");
    for what in ["state/more", "log/more"] {
        let error = write(what).expect_err("no room");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{what}: {error}");
    }
    std::fs::write(lab.root().join("scvm2/state/more"), [1; 8192]).expect("another node's");
    lab.heal().expect("heal");
    for what in ["state/more", "log/more"] {
        write(what).expect("room again");
    }
}

#[test]
fn a_second_station_answers_for_an_address_until_it_goes() {
    let lab = Lab::start(Options::named("twin").without_agents()).expect("lab");
    let (host, scvm) = (Node::Host(1), Node::Scvm(1));
    let answer = || {
        let ask = || arp::who_has("sto0", &[scvm.storage(), host.storage()], 200 * MS);
        let found = lab.namespace("host1").expect("namespace").run(ask).expect("enter").expect("ARP");
        (found.get(&scvm.storage()).map_or(0, |m| m.len()), found.get(&host.storage()).map_or(0, |m| m.len()))
    };
    assert_eq!(answer(), (1, 0));
    lab.fault("duplicate-ip", Some("scvm1")).expect("duplicate-ip");
    assert_eq!(answer(), (2, 0));
    lab.heal().expect("heal");
    assert_eq!(answer(), (1, 0));
}

#[test]
fn burdens_end_when_they_are_healed_and_with_their_lab() {
    let lab = Lab::start(Options::named("burden").without_agents()).expect("lab");
    lab.fault("cpu-hogs", Some("scvm1")).expect("cpu-hogs");
    assert!(lab.process("scvm1/cpu-hogs").expect("hogs").runs());
    lab.heal().expect("heal");
    assert_eq!(lab.process("scvm1/cpu-hogs").expect("hogs").exit.expect("ended").signal, Some(libc::SIGKILL));

    lab.fault("fifo-hogs", Some("scvm1")).expect("fifo-hogs");
    let inside = lab.process("scvm1/fifo-hogs").expect("hogs").pid;
    let ours = hogs().into_iter().filter(|(_, number)| *number == inside).map(|(pid, _)| pid);
    let ours: Vec<u32> = ours.collect();
    assert!(!ours.is_empty(), "{:?}", hogs());
    // However it ends: they are in the supervisor's pid namespace.
    let supervisor =
        lab.root().components().nth(2).expect("/proc/PID").as_os_str().to_string_lossy().into_owned();
    let supervisor = rustix::process::Pid::from_raw(supervisor.parse().expect("a pid")).expect("a pid");
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).expect("kill");
    lab::wait_for("their end", Duration::from_secs(10), || {
        let left: Vec<u32> = hogs().into_iter().map(|(pid, _)| pid).filter(|p| ours.contains(p)).collect();
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .expect("they end");
}

/// Every such process of this machine: its id here, and in its own pid namespace.
fn hogs() -> Vec<(u32, u32)> {
    let pids =
        std::fs::read_dir("/proc").expect("/proc").filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    let inside = |pid: u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let ids = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
        let of_lab = line.windows(11).any(|w| w == b"\0load\0fifo\0");
        of_lab.then(|| ids.split_whitespace().next_back()?.parse().ok()).flatten()
    };
    pids.filter_map(|pid| Some((pid, inside(pid)?))).collect()
}

fn is_stopped(lab: &Lab, process: &str) -> bool {
    lab.process_stat(process).expect("stat")[0] == "T"
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
    let mut names: Vec<&str> = Fault::all().chain(FOR_TESTS).map(|f| f.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(matches!(Fault::find("meta-restarted").expect("named").action, Action::Restart("agent")));
}
