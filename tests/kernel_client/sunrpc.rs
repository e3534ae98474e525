//! What the client does when its connection ends, and how long that takes. The route is replaced, servers end and
//! sockets are destroyed by hand.

use crate::client::{AWAKE, ESTABLISHED, Mount, SOON, SYN_SENT, Writing, by_hand, purge, seen};
use lab::{Lab, wait_for};
use std::time::{Duration, Instant};

/// sunrpc lets a call sleep for 3 s after a connect that was refused. A little less, for what it took to see its start.
const ASLEEP: Duration = Duration::from_millis(2800);
/// The first SYN is sent again after 1 s.
const SYN_AGAIN: Duration = Duration::from_millis(900);

fn stop_server(lab: &Lab, scvm: u32) {
    let name = format!("scvm{scvm}/server");
    lab.signal(&name, libc::SIGKILL).expect("the server runs");
    lab.wait_process(&name, SOON).expect("it ends");
}

/// Starts the server of an SCVM again; gives the time at which it is known to listen.
fn start_server(lab: &Lab, scvm: u32) -> Instant {
    lab.start_process(&format!("scvm{scvm}/server")).expect("it starts");
    wait_for("a listening server", SOON, || lab.server(&format!("scvm{scvm}"), "stats")).expect("it answers");
    Instant::now()
}

fn ip(lab: &Lab, node: &str, words: &str) {
    let words: Vec<&str> = std::iter::once("ip").chain(words.split(' ')).collect();
    let out = lab.exec(node, &words).expect("ip");
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn store(lab: &Lab) -> std::path::PathBuf {
    lab.root().join("export/blocks")
}

#[test]
#[ignore = "needs the kernel's NFS client: cargo xtask vm"]
fn a_destroyed_socket_is_replaced_at_once() {
    let lab = by_hand("destroyed");
    let mount = Mount::new(&lab);
    let writing = Writing::start(&mount.path("blocks"));
    let first = mount.source();
    // Its kernel acknowledges the call, and nobody answers it: a hung server.
    lab.server("scvm1", "stuck write on").expect("stuck");
    writing.wait_still(Duration::from_secs(1));
    lab.drive(1, 2).expect("the route");
    // The route alone brings nothing back: the client has nothing to send. Its own timer is 60 s.
    writing.wait_still(Duration::from_secs(5));
    assert_eq!(mount.source(), first);

    let mut took = Vec::new();
    let mut destroy = |to: u32| {
        let (connects, at) = (mount.connects(), Instant::now());
        assert_eq!(mount.destroy(), 1, "sock_diag finds a socket of the kernel, and may destroy it");
        let connected = mount.wait_connect(connects) - at;
        assert!(connected < AWAKE, "it slept: {connected:?}");
        let resumed = writing.wait(at, 20);
        assert_eq!(mount.connects(), connects + 1, "one connect");
        took.push(format!(
            "scvm{to}: connects after {} ms, writes after {} ms, from {}",
            connected.as_millis(),
            resumed.as_millis(),
            mount.source()
        ));
    };
    destroy(2);
    // Again and again: no back-off grows. The server that is come back to has given up the connection it knew.
    for to in [3, 2, 3, 2] {
        purge(&lab, to);
        lab.drive(1, to).expect("the route");
        destroy(to);
    }
    seen(format_args!("destroyed: was {first}; {}", took.join("; ")));
    seen(format_args!("destroyed: {} writes, all in the store", writing.finish(&store(&lab))));
}

#[test]
#[ignore = "needs the kernel's NFS client: cargo xtask vm"]
fn a_reset_is_answered_by_a_connect_at_once() {
    let lab = by_hand("reset");
    let mount = Mount::new(&lab);
    let writing = Writing::start(&mount.path("blocks"));
    let mut took = Vec::new();
    for to in [2, 3, 2] {
        purge(&lab, to);
        let (known, resets, before) = (mount.connects(), mount.count("EstabResets"), mount.source());
        // The next call goes to a server whose kernel does not know the connection.
        lab.drive(1, to).expect("the route");
        let reset = mount.wait_count("EstabResets", resets);
        let connected = mount.wait_connect(known).saturating_duration_since(reset);
        assert!(connected < AWAKE, "it slept: {connected:?}");
        let resumed = writing.wait(reset, 20);
        assert_eq!(mount.connects(), known + 1, "one connect");
        took.push(format!(
            "scvm{to}: connects after {} ms, writes after {} ms, {before} then {}",
            connected.as_millis(),
            resumed.as_millis(),
            mount.source()
        ));
    }
    seen(format_args!("reset: {}", took.join("; ")));
    seen(format_args!("reset: {} writes, all in the store", writing.finish(&store(&lab))));
}

#[test]
#[ignore = "needs the kernel's NFS client: cargo xtask vm"]
fn a_refused_connect_lets_the_call_sleep() {
    let lab = by_hand("refused");
    let mount = Mount::new(&lab);
    let writing = Writing::start(&mount.path("blocks"));
    stop_server(&lab, 2);
    let known = mount.connects();
    lab.drive(1, 2).expect("the route");
    mount.destroy();
    let mut attempts = vec![mount.wait_connect(known)];
    // Refused again and again.
    for _ in 0..3 {
        attempts.push(mount.wait_connect(known + attempts.len() as u64));
    }
    let last = attempts[attempts.len() - 1];
    let waits: Vec<u128> = attempts.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    let listening = start_server(&lab, 2);
    let resumed = writing.wait(last, 20);
    seen(format_args!("refused: tried again after {waits:?} ms"));
    seen(format_args!(
        "refused: the server listens {} ms after the last refusal, the write is done {} ms after it",
        (listening - last).as_millis(),
        resumed.as_millis()
    ));
    assert!(waits.iter().all(|ms| *ms >= ASLEEP.as_millis()), "{waits:?}");
    assert!(resumed >= ASLEEP, "{resumed:?}");

    // The same, and while the call sleeps the server is there and another call comes.
    stop_server(&lab, 3);
    let known = mount.connects();
    lab.drive(1, 3).expect("the route");
    mount.destroy();
    let refused = mount.wait_connect(known);
    let listening = start_server(&lab, 3);
    let second = Writing::start(&mount.path("second"));
    let others = Instant::now();
    let resumed = writing.wait(refused, 20);
    seen(format_args!(
        "refused: after a refusal the server listens {} ms later, another writer's 20 writes are done {} ms later, \
         the sleeping write {} ms later",
        (listening - refused).as_millis(),
        (others - refused).as_millis(),
        resumed.as_millis()
    ));
    assert!(resumed >= ASLEEP, "{resumed:?}");
    second.finish(&lab.root().join("export/second"));
    writing.finish(&store(&lab));
}

#[test]
#[ignore = "needs the kernel's NFS client: cargo xtask vm"]
fn a_server_that_ends_is_met_again_by_a_refusal() {
    let lab = by_hand("farewell");
    let mount = Mount::new(&lab);
    let writing = Writing::start(&mount.path("blocks"));
    let (known, at) = (mount.connects(), Instant::now());
    // Its kernel says FIN or RST, the client connects, and is refused.
    stop_server(&lab, 1);
    let refused = mount.wait_connect(known);
    lab.drive(1, 2).expect("the route");
    let moved = Instant::now();
    let destroyed = mount.destroy();
    let resumed = writing.wait(refused, 20);
    seen(format_args!(
        "farewell: connects after {} ms; the route is moved {} ms after that, {destroyed} sockets to destroy, \
         the write is done after {} ms",
        (refused - at).as_millis(),
        (moved - refused).as_millis(),
        resumed.as_millis()
    ));
    assert!(resumed >= ASLEEP, "{resumed:?}");
    writing.finish(&store(&lab));
}

/// A client that connects to where nobody answers, as the SCVM's shield does for a dead server.
fn connecting(lab: &Lab, mount: &Mount) -> Instant {
    // Nothing that is for the host's storage address leaves.
    ip(lab, "scvm2", "route add blackhole 10.10.85.11/32");
    let known = mount.connects();
    lab.drive(1, 2).expect("the route");
    assert_eq!(mount.destroy(), 1);
    let at = mount.wait_connect(known);
    wait_for("a SYN", SOON, || {
        anyhow::ensure!(mount.connections(SYN_SENT).len() == 1, "{:?}", mount.connections(ESTABLISHED));
        Ok(())
    })
    .expect("it connects");
    lab.drive(1, 3).expect("the route");
    at
}

#[test]
#[ignore = "needs the kernel's NFS client: cargo xtask vm"]
fn a_connect_that_nobody_answers_goes_on_by_the_new_route() {
    let lab = by_hand("syn");
    let mount = Mount::new(&lab);
    let writing = Writing::start(&mount.path("blocks"));
    let at = connecting(&lab, &mount);
    let moved = at.elapsed();
    let resumed = writing.wait(at, 20);
    seen(format_args!(
        "connecting: the route is moved after {} ms, the write is done after {} ms from {}",
        moved.as_millis(),
        resumed.as_millis(),
        mount.source()
    ));
    assert!(resumed >= SYN_AGAIN, "{resumed:?}");
    writing.finish(&store(&lab));
}

#[test]
#[ignore = "needs the kernel's NFS client: cargo xtask vm"]
fn a_connect_that_is_destroyed_lets_the_call_sleep() {
    let lab = by_hand("syn-destroyed");
    let mount = Mount::new(&lab);
    let writing = Writing::start(&mount.path("blocks"));
    let at = connecting(&lab, &mount);
    let destroyed_at = Instant::now();
    let destroyed = mount.destroy();
    let resumed = writing.wait(destroyed_at, 20);
    seen(format_args!(
        "connecting: the SYN is out for {} ms; {destroyed} socket destroyed, the write is done {} ms after that from {}",
        (destroyed_at - at).as_millis(),
        resumed.as_millis(),
        mount.source()
    ));
    writing.finish(&store(&lab));
}

#[test]
#[ignore = "needs the kernel's NFS client: cargo xtask vm"]
fn an_old_connection_at_the_server_costs_a_second() {
    let lab = by_hand("stale");
    let mount = Mount::new(&lab);
    let writing = Writing::start(&mount.path("blocks"));
    let ports = [mount.source()];
    lab.drive(1, 2).expect("the route");
    mount.destroy();
    writing.wait(Instant::now(), 20);
    // Back to the first, which never heard of the end of its connection: it went to the second.
    lab.drive(1, 1).expect("the route");
    let at = Instant::now();
    assert_eq!(mount.destroy(), 1);
    let resumed = writing.wait(at, 20);
    seen(format_args!(
        "stale: {} at first; back at the first server, the write is done after {} ms from {}",
        ports[0],
        resumed.as_millis(),
        mount.source()
    ));
    writing.finish(&store(&lab));
}
