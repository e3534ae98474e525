//! Pulses: which are answered, with what, and what they change.

#![allow(unsafe_code)]

use crate::bench::*;
use crate::frames::*;
use reroute_common::admission::{Word, rank};
use reroute_common::flow::CALL_WAYS;
use reroute_common::pulse::{self, LEN, Pulse, direction_key, flags, kind, server};
use reroute_common::table::{drop, mode, pulse_reject};
use reroute_common::{event, siphash};
use reroute_core::ids::{BootNs, Epoch, Incarnation, Network};
use std::net::TcpListener;

const LOCAL: [u8; 4] = [10, 10, 85, 1];

fn request(asked: u16, epoch: u64, boot: u64, stamp: u64) -> Pulse {
    Pulse {
        magic: pulse::MAGIC,
        version: pulse::VERSION,
        kind: kind::REQUEST,
        flags: asked,
        host: HOST.0,
        scvm: SCVM.0,
        host_incarnation: 5,
        seq: 42,
        host_time: 43,
        epoch,
        scvm_boot: boot,
        scvm_stamp: stamp,
        server_incarnation: 0,
        word: 0,
        lease_ns: 0,
        server_state: 0,
        calls_waiting: 0,
        data_reply_age_ns: 0,
        oldest_call_age_ns: 0,
        stalled_flows: 0,
        in_progress: 0,
        orphans: 0,
        network: 0,
        agent_age_ns: 0,
        mac: 0,
    }
}

fn words(p: &Pulse) -> [u64; LEN / 8] {
    // SAFETY: a pulse is LEN bytes of integers.
    unsafe { std::mem::transmute_copy(p) }
}

fn sealed(mut p: Pulse, key: [u64; 2]) -> Vec<u8> {
    let covered: [u64; LEN / 8 - 1] = words(&p)[..LEN / 8 - 1].try_into().unwrap();
    p.mac = siphash::hash(direction_key(key, p.kind), &covered);
    words(&p).iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn ask(bench: &Bench, p: Pulse) -> Option<Pulse> {
    let frame = udp(STORAGE_ADDRESS, LOCAL, pulse::PORT, &sealed(p, KEY));
    let (verdict, out) = bench.reflect(&frame);
    if verdict == XDP_DROP {
        return None;
    }
    assert_eq!(verdict, XDP_TX);
    // Ethernet, IP and UDP are turned round; nothing else of the headers moved.
    assert_eq!((&out[..6], &out[6..12]), (&frame[6..12], &frame[..6]));
    assert_eq!((&out[26..30], &out[30..34]), (&LOCAL[..], &STORAGE_ADDRESS[..]));
    assert_eq!((&out[34..36], &out[36..38]), (&frame[36..38], &frame[34..36]));
    assert_eq!((&out[40..42], &out[12..26]), (&[0, 0][..], &frame[12..26]));
    let mut reply = [0_u64; LEN / 8];
    for (word, bytes) in reply.iter_mut().zip(out[42..].chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap());
    }
    // SAFETY: as in `words`.
    let reply: Pulse = unsafe { std::mem::transmute(reply) };
    let covered: [u64; LEN / 8 - 1] = words(&reply)[..LEN / 8 - 1].try_into().unwrap();
    assert_eq!(reply.mac, siphash::hash(direction_key(KEY, kind::REPLY), &covered), "the reply is sealed");
    assert_eq!(
        (reply.kind, reply.seq, reply.host_time, reply.host),
        (kind::REPLY, p.seq, p.host_time, p.host)
    );
    assert_eq!((reply.flags, reply.epoch, reply.host_incarnation), (p.flags, p.epoch, p.host_incarnation));
    Some(reply)
}

fn probe(bench: &Bench) -> Pulse {
    ask(bench, request(flags::PROBE, 0, 0, 0)).unwrap()
}

fn syn_passes(bench: &Bench, port: u16) -> bool {
    bench.rx(&Connection::new(port).up(1, SYN, &[]).frame()) == XDP_PASS
}

#[test]
fn a_reply_tells_what_the_kernel_sees() {
    // However slow this machine is, the server falls not silent, and the agent is not forgotten.
    let mut bench = Bench::with(|settings| {
        (settings.timing.unanswered_ms, settings.timing.unanswered_ceiling_ms) = (600_000, 600_000);
    });
    let before = now();
    let reply = probe(&bench);
    assert!(reply.scvm_stamp >= before && reply.scvm_stamp <= now());
    assert_eq!((reply.scvm_boot, reply.word, reply.lease_ns), (BOOT, 0, 0));
    assert_eq!(reply.server_state, server::ENFORCING | server::DATA_REPLIES);
    assert_eq!((reply.data_reply_age_ns, reply.network), (u64::MAX, reroute_common::network::STORAGE));

    bench.sensor.server_started(Incarnation(6)).unwrap();
    bench.lease(std::time::Duration::from_secs(60));
    bench.sensor.admit(HOST, Epoch(2)).unwrap();
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&call(1, WRITE, 0)));
    bench.rx(&c.send(&(0..=CALL_WAYS).flat_map(|i| call(2 + 8 * i, WRITE, 0)).collect::<Vec<_>>()));
    bench.tx(&c.answer(&reply_of(1)));
    bench.sensor.set_agent_state(server::NULL_FAILED).unwrap();
    bench.sensor.touch(BootNs(now() + 60_000_000_000)).unwrap();
    bench.sensor.set_mode(mode::SHADOW).unwrap();
    run("ip addr add 192.168.33.2/32 dev lo");
    let _listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    let reply = probe(&bench);
    assert_eq!(reply.server_state, server::LISTENING | server::NULL_FAILED | server::DATA_REPLIES);
    assert_eq!((reply.server_incarnation, reply.word), (6, Word::new(2, rank::ADMITTED).0));
    assert_eq!((reply.in_progress, reply.orphans), (8, 1));
    assert!(reply.lease_ns > 59_000_000_000 && reply.lease_ns < 60_000_000_000);
    assert!(reply.data_reply_age_ns < 10_000_000_000);
    assert!(reply.agent_age_ns < 60_000_000_000);
    wait_for("the timer's count", || probe(&bench).calls_waiting == 8);
    assert_eq!(bench.server().pulse_rejects, [0; 5]);

    // What an agent said before it died is no news.
    bench.sensor.touch(BootNs(now() - 400_000_000)).unwrap();
    assert_eq!(probe(&bench).server_state, server::LISTENING | server::DATA_REPLIES);
}

/// A connection whose calls are answered at once, until `end` says so.
fn answered_until(bench: &Bench, c: &mut Connection, procedure: u32, end: impl Fn(&Pulse) -> bool) -> Pulse {
    let deadline = now() + 10_000_000_000;
    for xid in 1000.. {
        bench.rx(&c.send(&call(xid, procedure, 0)));
        bench.tx(&c.answer(&reply(xid, 0)));
        let told = probe(bench);
        if end(&told) {
            return told;
        }
        assert!(now() < deadline, "state {:#x}", told.server_state);
    }
    unreachable!()
}

#[test]
fn data_that_nobody_gets_is_told_while_other_calls_are_answered() {
    let bench = Bench::admitted();
    let (mut stuck, mut busy) = (Connection::open(700, &bench), Connection::open(701, &bench));
    let data_silent = |p: &Pulse| p.server_state & server::DATA_SILENT != 0;
    assert_eq!(probe(&bench).data_reply_age_ns, u64::MAX);

    // Metadata alone never makes it, however late.
    bench.rx(&stuck.send(&call(1, GETATTR, 0)));
    let told = answered_until(&bench, &mut busy, GETATTR, |p| p.stalled_flows == 1);
    assert!(!data_silent(&told));
    bench.tx(&stuck.answer(&reply(1, 0)));

    bench.rx(&stuck.send(&call(2, WRITE, 0)));
    // Replies leave: silent it is not, but for a moment if this loop was held up.
    let replies_leave = |p: &Pulse| p.server_state & server::SILENT == 0;
    let told = answered_until(&bench, &mut busy, GETATTR, |p| data_silent(p) && replies_leave(p));
    assert_eq!((told.stalled_flows, told.data_reply_age_ns), (1, u64::MAX));

    // Somebody gets data: it is that call, not the storage.
    let told = answered_until(&bench, &mut busy, READ, |p| !data_silent(p));
    assert_eq!(told.stalled_flows, 1);
    assert!(told.data_reply_age_ns < 1_000_000_000);
    answered_until(&bench, &mut busy, GETATTR, data_silent);
    bench.tx(&stuck.answer(&reply(2, 0)));
    answered_until(&bench, &mut busy, GETATTR, |p| !data_silent(p) && p.stalled_flows == 0);
}

fn reply_of(xid: u32) -> Vec<u8> {
    reply(xid, 0)
}

#[test]
fn what_is_not_a_pulse_of_this_host_is_counted_by_reason_and_dropped() {
    let mut bench = Bench::new();
    let good = request(flags::AFFIRM, 1, BOOT, 1);
    let send =
        |bench: &Bench, source: [u8; 4], payload: &[u8]| bench.rx(&udp(source, LOCAL, pulse::PORT, payload));
    let rejects = |bench: &Bench| bench.server().pulse_rejects;
    let expect = |bench: &Bench, reason: usize, source: [u8; 4], payload: &[u8]| {
        let before = rejects(bench);
        assert_eq!(send(bench, source, payload), XDP_DROP);
        let mut after = before;
        after[reason] += 1;
        assert_eq!(rejects(bench), after);
    };
    let genuine = sealed(good, KEY);
    assert_eq!(send(&bench, STORAGE_ADDRESS, &genuine), XDP_TX);

    expect(&bench, pulse_reject::SIZE, STORAGE_ADDRESS, &genuine[..LEN - 1]);
    expect(&bench, pulse_reject::SIZE, STORAGE_ADDRESS, &[&genuine[..], &[0]].concat());
    expect(&bench, pulse_reject::SIZE, STORAGE_ADDRESS, b"what is this");
    let other = sealed(Pulse { magic: 7, ..good }, KEY);
    expect(&bench, pulse_reject::SIZE, STORAGE_ADDRESS, &other);
    expect(&bench, pulse_reject::VERSION, STORAGE_ADDRESS, &sealed(Pulse { version: 2, ..good }, KEY));
    expect(&bench, pulse_reject::UNKNOWN_HOST, [10, 10, 85, 99], &genuine);
    expect(&bench, pulse_reject::UNKNOWN_HOST, STORAGE_ADDRESS, &sealed(Pulse { host: 2, ..good }, KEY));
    expect(&bench, pulse_reject::UNKNOWN_HOST, PRIVATE_ADDRESS, &genuine);
    expect(&bench, pulse_reject::WRONG_SCVM, STORAGE_ADDRESS, &sealed(Pulse { scvm: 9, ..good }, KEY));
    expect(&bench, pulse_reject::MAC, STORAGE_ADDRESS, &sealed(good, [KEY[0], KEY[1] ^ 1]));
    for byte in [10, 40, 60, LEN - 1] {
        let mut forged = genuine.clone();
        forged[byte] ^= 1;
        let before = rejects(&bench).iter().sum::<u64>();
        assert_eq!(send(&bench, STORAGE_ADDRESS, &forged), XDP_DROP, "byte {byte}");
        assert_eq!(rejects(&bench).iter().sum::<u64>(), before + 1);
    }
    // A reply, even a genuine one, is no request; nor is it one with the kind put right.
    let mut answer = sealed(Pulse { kind: kind::REPLY, ..good }, KEY);
    expect(&bench, pulse_reject::VERSION, STORAGE_ADDRESS, &answer);
    answer[5] = kind::REQUEST;
    expect(&bench, pulse_reject::MAC, STORAGE_ADDRESS, &answer);
    // The private address is this host's too, on the private network.
    bench.by(Network::Private);
    assert_eq!(send(&bench, PRIVATE_ADDRESS, &genuine), XDP_TX);
}

#[test]
fn an_affirmation_opens_for_its_time_from_our_own_stamp() {
    let bench = Bench::new();
    bench.sensor.admit(HOST, Epoch(4)).unwrap();
    assert!(!syn_passes(&bench, 1), "no lease runs yet");
    let stamp = probe(&bench).scvm_stamp;
    // None of these renews: another epoch, boot, the future, no stamp.
    for (epoch, boot, stamp) in [
        (3, BOOT, stamp),
        (5, BOOT, stamp),
        (4, BOOT + 1, stamp),
        (4, BOOT, now() + 3_600_000_000_000),
        (4, BOOT, 0),
    ] {
        assert_eq!(ask(&bench, request(flags::AFFIRM, epoch, boot, stamp)).unwrap().lease_ns, 0);
        assert!(!syn_passes(&bench, 1));
    }
    assert_eq!(bench.client(HOST).affirm_deadline, 0);
    let stamp = probe(&bench).scvm_stamp;
    ask(&bench, request(flags::AFFIRM, 4, BOOT, stamp)).unwrap();
    assert_eq!(bench.client(HOST).affirm_deadline, stamp + 100_000_000);
    // An older stamp moves nothing back.
    ask(&bench, request(flags::AFFIRM, 4, BOOT, stamp - 1_000_000)).unwrap();
    assert_eq!(bench.client(HOST).affirm_deadline, stamp + 100_000_000);
    let fresh = probe(&bench).scvm_stamp;
    ask(&bench, request(flags::AFFIRM, 4, BOOT, fresh)).unwrap();
    let until = fresh + 100_000_000;
    let passed = syn_passes(&bench, 2);
    assert!(passed || now() >= until);
    wait_for("the lease to end", || now() >= until);
    assert!(!syn_passes(&bench, 3));
    // A stale stamp, replayed, opens nothing.
    ask(&bench, request(flags::AFFIRM, 4, BOOT, fresh)).unwrap();
    assert!(!syn_passes(&bench, 4));
}

#[test]
fn a_release_closes_at_once_and_only_what_it_names() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    let mut bench = Bench::admitted();
    let mut events = bench.sensor.events().unwrap();
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&call(1, WRITE, 0)));
    let stamp = probe(&bench).scvm_stamp;
    // Other epochs are none of ours.
    for epoch in [0, 2] {
        ask(&bench, request(flags::RELEASE, epoch, BOOT, stamp)).unwrap();
        assert!(bench.counts().word.is_admitted());
    }
    let reply = ask(&bench, request(flags::RELEASE, 1, BOOT, stamp)).unwrap();
    assert_eq!((Word(reply.word), reply.in_progress), (Word::new(1, rank::RELEASED), 1));
    assert!(!syn_passes(&bench, 2));
    let told = events.try_next().unwrap();
    assert_eq!((told.kind, told.limit, told.waiting), (event::kind::RELEASED, 1, 1));
    assert_eq!(bench.sensor.host_of(told.client), Some(HOST));

    // Said again, it changes and tells nothing; an affirmation from before it opens nothing.
    ask(&bench, request(flags::RELEASE, 1, BOOT, stamp)).unwrap();
    assert!(events.try_next().is_none());
    ask(&bench, request(flags::AFFIRM, 1, BOOT, stamp)).unwrap();
    assert!(!syn_passes(&bench, 3));
    assert!(bench.sensor.admit(HOST, Epoch(1)).unwrap().stale);

    // At the next epoch too, a stamp older than the release counts for nothing.
    bench.sensor.admit(HOST, Epoch(3)).unwrap();
    assert!(bench.client(HOST).released_at > stamp);
    ask(&bench, request(flags::AFFIRM, 3, BOOT, stamp)).unwrap();
    assert_eq!(bench.client(HOST).affirm_deadline, 0);
    ask(&bench, request(flags::RELEASE, 1, BOOT, stamp)).unwrap();
    assert!(bench.counts().word.is_admitted(), "an old release, replayed, closes nothing");
}

#[test]
fn the_shield_holds_back_a_dead_servers_farewell() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    let mut bench = Bench::admitted();
    let mut events = bench.sensor.events().unwrap();
    run("ip addr add 192.168.33.2/32 dev lo");
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    probe(&bench);
    assert_eq!(events.try_next().unwrap().kind, event::kind::LISTENER_BACK);
    let c = Connection::open(700, &bench);
    let fin = c.down(c.server_seq, FIN | ACK, &[]).frame();
    assert_eq!(bench.tx(&fin), TC_NEXT, "a living server may close what it likes");
    drop_listener(listener);
    let d = Connection::new(701);
    probe(&bench);
    assert_eq!(events.try_next().unwrap().kind, event::kind::LISTENER_GONE);
    let rst = d.down(d.server_seq, RST, &[]).frame();
    assert_eq!(bench.tx(&rst), TC_SHOT);
    assert!(!syn_passes(&bench, 702));
    assert_eq!(bench.client(HOST).drops[drop::SHIELD], 2);
    // Without live pulses nobody is kept waiting.
    let quiet = bench.client(HOST).pulse_at + 201_000_000;
    wait_for("pulses to grow old", || now() > quiet);
    assert_eq!(bench.tx(&rst), TC_NEXT);
    assert!(syn_passes(&bench, 703));
    let _listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    probe(&bench);
    assert_eq!(events.try_next().unwrap().kind, event::kind::LISTENER_BACK);
    assert_eq!(bench.tx(&rst), TC_NEXT);
}

fn drop_listener(listener: TcpListener) {
    std::mem::drop(listener);
}
