//! Clients without an agent that are not admitted: what gets in, what is held back, what is told, and by whom it is not.

use crate::bench::*;
use crate::frames::*;
use crate::lasting::wire;
use crate::records::connect_from;
use reroute_agent::config::XdpMode;
use reroute_agent::sensor::{Events, Sensor};
use reroute_common::event::{WANTED_GAP, kind};
use reroute_common::table::{Client, drop as dropped, mode};
use reroute_core::ids::{BootNs, Epoch, HostId, Network};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// The programs' events, as they come.
struct Told {
    runtime: tokio::runtime::Runtime,
    events: Events,
}

impl Told {
    fn of(sensor: &mut Sensor) -> Told {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let events = {
            let _inside = runtime.enter();
            sensor.events().unwrap()
        };
        Told { runtime, events }
    }
    /// Kinds of wishes told since, with the epoch of the word; nothing else is looked at.
    fn wishes(&mut self) -> Vec<(u32, u64)> {
        let _inside = self.runtime.enter();
        std::iter::from_fn(|| self.events.try_next())
            .filter(|e| matches!(e.kind, kind::LOGIN_WANTED | kind::LOGIN_WANTED_UNSEEN))
            .map(|e| (e.kind, e.limit))
            .collect()
    }
    fn wait(&mut self, wanted: (u32, u64)) {
        wait_for("the wish", || self.wishes().contains(&wanted));
    }
}

const WANTED: fn(u64) -> (u32, u64) = |epoch| (kind::LOGIN_WANTED, epoch);
const UNSEEN: (u32, u64) = (kind::LOGIN_WANTED_UNSEEN, 0);

/// A client that nobody has admitted; its kernel's side is real, its frames are made here.
struct Held {
    bench: Bench,
    told: Told,
    _listener: TcpListener,
    _theirs: TcpStream,
    _ours: TcpStream,
    c: Connection,
}

impl Held {
    /// A connection of MUTE that is established in the kernel; `seen`: its handshake has come by the programs.
    fn new(seen: bool) -> Held {
        let mut bench = Bench::new();
        bench.lease(Duration::from_secs(3600));
        run("ip addr add 192.168.33.2/32 dev lo");
        run("ip addr add 10.10.85.12/32 dev lo");
        let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
        let theirs = connect_from(MUTE_ADDRESS);
        let (ours, _) = listener.accept().unwrap();
        let port = theirs.local_addr().unwrap().port();
        let mut c = Connection { client: MUTE_ADDRESS, ..Connection::new(port) };
        let told = Told::of(&mut bench.sensor);
        if seen {
            assert_eq!(bench.rx(&c.up(c.client_seq, SYN, &[]).frame()), XDP_PASS);
            bench.tx(&c.down(c.server_seq, SYN | ACK, &[]).frame());
        }
        c.client_seq = c.client_seq.wrapping_add(1);
        c.server_seq = c.server_seq.wrapping_add(1);
        if seen {
            assert_eq!(bench.rx(&c.up(c.client_seq, ACK, &[]).frame()), XDP_PASS);
        }
        Held { bench, told, _listener: listener, _theirs: theirs, _ours: ours, c }
    }
    fn client(&self) -> Client {
        self.bench.client(MUTE)
    }
    fn nothing_in_progress(&self) {
        let counts = self.bench.sensor.read(MUTE).unwrap();
        assert_eq!((counts.in_progress, counts.orphans), (0, 0));
        assert_eq!(self.client().calls, [0; 4]);
    }
    /// Until the next wish may be told.
    fn pause(&self) {
        let until = now() + WANTED_GAP;
        wait_for("the gap between two events", || now() > until);
    }
}

#[test]
fn a_call_on_its_connection_is_held_back_and_told_once_in_a_while() {
    let mut held = Held::new(true);
    assert_eq!(held.client().opened, 1);
    assert!(held.told.wishes().is_empty(), "a handshake wants nothing yet");
    let first = held.c.clone().send(&call(1, WRITE, 100));
    for _ in 0..20 {
        assert_eq!(held.bench.rx(&first), XDP_DROP);
    }
    let wishes = held.told.wishes();
    assert!(!wishes.is_empty() && wishes.len() < 20 && wishes[0] == WANTED(0), "{wishes:?}");
    assert_eq!(held.client().drops[dropped::NOT_ADMITTED], 20);
    held.nothing_in_progress();
    held.pause();
    assert_eq!(held.bench.rx(&first), XDP_DROP);
    assert_eq!(held.told.wishes(), [WANTED(0)], "again, while it lasts");

    // Admitted, the same bytes are a call like any other, on the same connection.
    held.bench.sensor.admit(MUTE, Epoch(1)).unwrap();
    assert_eq!(held.bench.rx(&held.c.send(&call(1, WRITE, 100))), XDP_PASS);
    assert_eq!(held.bench.sensor.read(MUTE).unwrap().in_progress, 1);
    held.bench.tx(&held.c.acknowledge());
    held.bench.tx(&held.c.answer(&reply(1, 0)));
    held.nothing_in_progress_but_counted();

    // Fenced at its epoch, and heard of at it.
    held.bench.sensor.fence(MUTE, Epoch(1)).unwrap();
    held.pause();
    assert_eq!(held.bench.rx(&held.c.clone().send(&call(2, WRITE, 100))), XDP_DROP);
    assert_eq!(held.told.wishes(), [WANTED(1)]);
    assert_eq!(held.bench.sensor.read(MUTE).unwrap().in_progress, 0);
}

impl Held {
    fn nothing_in_progress_but_counted(&self) {
        let client = self.client();
        assert_eq!((client.in_progress, client.orphans, client.calls[2], client.replies[2]), (0, 0, 1, 1));
    }
}

#[test]
fn who_does_not_know_the_connections_numbers_is_not_heard() {
    let mut held = Held::new(true);
    let bytes = call(1, WRITE, 100);
    let c = held.c.clone();
    for shift in [1, 4, 100, 1 << 16, 1 << 31, u32::MAX] {
        // As if later bytes of it, or earlier ones.
        assert_eq!(held.bench.rx(&c.up(c.client_seq.wrapping_add(shift), ACK, &bytes).frame()), XDP_DROP);
        // What has not been sent yet, or was long ago.
        let ack = c.server_seq.wrapping_add(shift.min(1 << 31));
        let ahead = Tcp { ack, ..c.up(c.client_seq, ACK, &bytes) };
        assert_eq!(held.bench.rx(&ahead.frame()), XDP_DROP);
    }
    // Without ACK nothing is ever taken.
    assert_eq!(held.bench.rx(&c.up(c.client_seq, 0, &bytes).frame()), XDP_DROP);
    // Another port of its address: no connection, so the kernel is left to refuse it.
    let ghost = Connection { client: MUTE_ADDRESS, ..Connection::new(7) };
    assert_eq!(held.bench.rx(&ghost.up(1, ACK, &bytes).frame()), XDP_PASS);
    // Acknowledgments, resets and ends carry no call.
    assert_eq!(held.bench.rx(&c.up(c.client_seq, ACK, &[]).frame()), XDP_PASS);
    assert_eq!(held.bench.rx(&ghost.up(1, RST, &[]).frame()), XDP_PASS);
    assert_eq!(held.bench.rx(&ghost.up(1, FIN | ACK, &[]).frame()), XDP_PASS);
    assert!(held.told.wishes().is_empty());
    held.nothing_in_progress();
    let fresh = c.clone().send(&bytes);
    assert_eq!(held.bench.rx(&fresh), XDP_DROP);
    assert_eq!(held.told.wishes(), [WANTED(0)], "the client itself is");
}

#[test]
fn a_syn_brings_no_call_and_half_a_handshake_proves_nothing() {
    use std::os::fd::AsRawFd;
    let mut held = Held::new(true);
    let c = Connection { client: MUTE_ADDRESS, ..Connection::new(9) };
    assert_eq!(held.bench.rx(&c.up(1, SYN, &call(1, WRITE, 0)).frame()), XDP_DROP, "TCP Fast Open");
    // The kernel takes such a connection with its first bytes, not before.
    let wait: libc::c_int = 30;
    // SAFETY: the kernel reads the number.
    #[allow(unsafe_code)]
    let rc = unsafe {
        let value = (&raw const wait).cast();
        libc::setsockopt(held._listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, 4)
    };
    assert_eq!(rc, 0);
    let socket = connect_from(MUTE_ADDRESS);
    let mut c = Connection { client: MUTE_ADDRESS, ..Connection::new(socket.local_addr().unwrap().port()) };
    held.bench.rx(&c.up(c.client_seq, SYN, &[]).frame());
    held.bench.tx(&c.down(c.server_seq, SYN | ACK, &[]).frame());
    c.client_seq = c.client_seq.wrapping_add(1);
    c.server_seq = c.server_seq.wrapping_add(1);
    assert_eq!(held.bench.rx(&c.send(&call(1, WRITE, 0))), XDP_DROP);
    assert!(held.told.wishes().is_empty());
    held.nothing_in_progress();
}

#[test]
fn a_connection_whose_beginning_was_not_seen_is_told_as_such() {
    let mut held = Held::new(false);
    let c = held.c.clone();
    assert_eq!(held.bench.rx(&c.up(c.client_seq, ACK, &[]).frame()), XDP_PASS);
    assert!(held.bench.sensor.flows().unwrap().is_empty(), "nothing is followed that is to end");
    assert_eq!(held.bench.rx(&c.clone().send(&call(1, WRITE, 0))), XDP_DROP);
    assert_eq!(held.told.wishes(), [UNSEEN]);
    held.nothing_in_progress();
}

#[test]
fn one_whose_lease_has_run_out_is_held_back_and_goes_on_with_it() {
    let mut other = Bench::new();
    let second = now() + 1_000_000_000;
    run("ip addr add 192.168.33.2/32 dev lo");
    run("ip addr add 10.10.85.12/32 dev lo");
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    let theirs = connect_from(MUTE_ADDRESS);
    let _ours = listener.accept().unwrap();
    let mut told = Told::of(&mut other.sensor);
    other.sensor.renew(BootNs(second), BootNs(second)).unwrap();
    other.sensor.admit(MUTE, Epoch(4)).unwrap();
    let port = theirs.local_addr().unwrap().port();
    let mut c = Connection { client: MUTE_ADDRESS, ..Connection::new(port) };
    other.rx(&c.up(c.client_seq, SYN, &[]).frame());
    other.tx(&c.down(c.server_seq, SYN | ACK, &[]).frame());
    c.client_seq = c.client_seq.wrapping_add(1);
    c.server_seq = c.server_seq.wrapping_add(1);
    assert_eq!(other.rx(&c.send(&call(1, WRITE, 0))), XDP_PASS);
    other.tx(&c.acknowledge());
    other.tx(&c.answer(&reply(1, 0)));
    wait_for("the lease to end", || now() > second);
    assert_eq!(other.rx(&c.clone().send(&call(2, WRITE, 0))), XDP_DROP);
    assert_eq!(told.wishes(), [WANTED(4)]);
    assert_eq!(other.client(MUTE).drops[dropped::LEASE_EXPIRED], 1);
    assert_eq!(other.sensor.read(MUTE).unwrap().in_progress, 0);
    other.lease(Duration::from_secs(60));
    assert_eq!(other.rx(&c.send(&call(2, WRITE, 0))), XDP_PASS);
    assert_eq!(other.sensor.read(MUTE).unwrap().in_progress, 1);
}

#[test]
fn strangers_and_hosts_with_an_agent_are_shut_out_as_ever() {
    let mut held = Held::new(true);
    for client in [STORAGE_ADDRESS, [10, 10, 85, 99]] {
        let c = Connection { client, ..Connection::new(held.c.port) };
        for frame in [c.up(1, SYN, &[]), c.up(2, ACK, &[]), c.up(2, ACK, &call(1, WRITE, 0))] {
            assert_eq!(held.bench.rx(&frame.frame()), XDP_DROP);
        }
    }
    assert_eq!(held.bench.client(HostId(0)).drops[dropped::UNREGISTERED], 3, "counted, and so reported");
    assert_eq!(held.bench.client(HOST).drops[dropped::NOT_ADMITTED], 3);
    assert!(held.told.wishes().is_empty());
    // Shadow counts, and lets pass.
    held.bench.sensor.set_mode(mode::SHADOW).unwrap();
    assert_eq!(held.bench.rx(&held.c.clone().send(&call(1, WRITE, 0))), XDP_PASS);
    assert_eq!((held.client().would_drop, held.told.wishes().len()), (1, 0));
}

/// Enforces on `s0`; the client by the wire has no agent, and is not admitted.
fn closed(dir: &std::path::Path, way: XdpMode) -> Sensor {
    let mut settings = settings(dir);
    (settings.xdp, settings.interfaces) = (way, vec![(Network::Storage, "s0".into())]);
    settings.clients[0].has_agent = false;
    let sensor = Sensor::start(settings).unwrap();
    let hour = BootNs(now() + 3_600_000_000_000);
    sensor.renew(hour, hour).unwrap();
    sensor
}

fn host(sensor: &Sensor) -> Client {
    sensor.clients().unwrap().into_iter().find(|c| c.host == HOST.0).unwrap()
}

fn nothing_to_read(socket: &mut TcpStream) {
    socket.set_nonblocking(true).unwrap();
    assert_eq!(socket.read(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
}

fn takes(socket: &mut TcpStream, xid: u32) {
    socket.read_exact(&mut vec![0; call(xid, WRITE, 200).len()]).unwrap();
    socket.write_all(&reply(xid, 0)).unwrap();
}

/// By the wire: held through its handshake and its first call, and served on the very connection it came with.
fn held_and_served(way: XdpMode) {
    let (space, client) = wire();
    let mut sensor = closed(&space.bpffs.join("scvm"), way);
    let mut told = Told::of(&mut sensor);
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    let mut theirs = client.call(|| connect_from(STORAGE_ADDRESS)).recv().unwrap();
    let (mut ours, _) = listener.accept().unwrap();
    // It comes back two epochs later.
    for (xid, before, epoch) in [(1, 0, 1), (2, 1, 3)] {
        theirs.write_all(&call(xid, WRITE, 200)).unwrap();
        told.wait(WANTED(before));
        wait_for("it to be sent again", || host(&sensor).drops[dropped::NOT_ADMITTED] >= 2 * u64::from(xid));
        nothing_to_read(&mut ours);
        assert_eq!((host(&sensor).in_progress, host(&sensor).orphans), (0, 0));
        sensor.admit(HOST, Epoch(epoch)).unwrap();
        takes(&mut ours, xid);
        theirs.read_exact(&mut [0; 28]).unwrap();
        assert_eq!((host(&sensor).opened, host(&sensor).in_progress), (1, 0));
        sensor.fence(HOST, Epoch(epoch)).unwrap();
    }
    // The server has no such connection any more, and the client does not know: what it sends draws a RST, although it
    // is shut out.
    client.run("nft add table ip deaf");
    client.run("nft add chain ip deaf in { type filter hook input priority 0 ; }");
    client.run("nft add rule ip deaf in tcp sport 2049 tcp flags & (fin|rst) != 0 drop");
    rustix::net::sockopt::set_socket_linger(&ours, Some(Duration::ZERO)).unwrap();
    drop((listener, ours));
    client.run("nft delete table ip deaf");
    wait_for("the reset", || theirs.write_all(&call(9, WRITE, 200)).is_err());
}

#[test]
fn held_and_served_by_tc() {
    held_and_served(XdpMode::Tc);
}

#[test]
fn held_and_served_by_xdp() {
    held_and_served(XdpMode::Generic);
}

/// Under SYN cookies the first bytes may be what makes the connection: no socket is there to find, only a listener.
#[test]
fn a_call_that_brings_its_own_cookie_is_held_back_too() {
    let (space, client) = wire();
    // Of this thread's namespace: sysctl looks at whoever opens the file.
    std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").unwrap();
    let mut sensor = closed(&space.bpffs.join("scvm"), XdpMode::Tc);
    let mut told = Told::of(&mut sensor);
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    listener.set_nonblocking(true).unwrap();
    // The ACK that would end the handshake is lost.
    client.run("nft add table ip lost");
    client.run("nft add chain ip lost out { type filter hook output priority 0 ; }");
    client.run("nft add rule ip lost out tcp dport 2049 tcp flags == ack ip length < 100 drop");
    let mut theirs = client.call(|| connect_from(STORAGE_ADDRESS)).recv().unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "the ACK got through");
    theirs.write_all(&call(1, WRITE, 200)).unwrap();
    told.wait(WANTED(0));
    wait_for("it to be sent again", || host(&sensor).drops[dropped::NOT_ADMITTED] >= 2);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(host(&sensor).in_progress, 0);
    sensor.admit(HOST, Epoch(1)).unwrap();
    let mut ours = None;
    wait_for("the connection", || {
        ours = listener.accept().ok().map(|(socket, _)| socket);
        ours.is_some()
    });
    let mut ours = ours.unwrap();
    ours.set_nonblocking(false).unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    takes(&mut ours, 1);
}
