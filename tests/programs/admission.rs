//! Who gets in, when, and that nothing ever opens what was closed.

use crate::bench::*;
use crate::frames::*;
use reroute_agent::config::AdmissionMode;
use reroute_agent::sensor::Sensor;
use reroute_common::admission::{Word, rank};
use reroute_common::flow::{CALL_WAYS, stream as bits};
use reroute_common::table::{drop, mode};
use reroute_core::ids::{BootNs, Epoch, HostId, Incarnation, Network};
use std::time::Duration;

fn syn(port: u16) -> Vec<u8> {
    Connection::new(port).up(1, SYN, &[]).frame()
}

#[test]
fn only_the_admitted_get_in_and_only_while_a_lease_runs() {
    let bench = Bench::new();
    assert_eq!(bench.rx(&syn(1)), XDP_DROP);
    assert_eq!(bench.client(HOST).drops[drop::NOT_ADMITTED], 1);
    bench.sensor.admit(HOST, Epoch(3)).unwrap();
    assert_eq!(bench.rx(&syn(1)), XDP_DROP);
    assert_eq!(bench.client(HOST).drops[drop::LEASE_EXPIRED], 1);
    assert!(bench.sensor.flows().unwrap().is_empty(), "what is dropped leaves no trace in the streams");

    bench.lease(Duration::from_secs(60));
    assert_eq!(bench.rx(&syn(1)), XDP_PASS);
    // Deadlines never move back.
    bench.sensor.renew(BootNs(1), BootNs(1)).unwrap();
    assert_eq!(bench.rx(&syn(2)), XDP_PASS);

    let answer = bench.sensor.fence(HOST, Epoch(3)).unwrap();
    assert_eq!((answer.word, answer.stale), (Word::new(3, rank::FENCED), false));
    assert_eq!(bench.rx(&syn(3)), XDP_DROP);
    assert_eq!(bench.client(HOST).drops[drop::NOT_ADMITTED], 2);
    assert_eq!(bench.counts().in_progress, 0, "the guard is given back");
}

#[test]
fn a_lease_ends_by_the_clock_alone_and_opens_again_by_renewal() {
    let bench = Bench::new();
    bench.sensor.admit(HOST, Epoch(1)).unwrap();
    bench.sensor.admit(MUTE, Epoch(1)).unwrap();
    let mute = Connection { client: MUTE_ADDRESS, ..Connection::new(9) }.up(1, SYN, &[]).frame();
    let soon = now() + 150_000_000;
    // The two kinds of client have deadlines of their own.
    bench.sensor.renew(BootNs(soon), BootNs(soon + 3_600_000_000_000)).unwrap();
    assert_eq!(bench.rx(&syn(1)), XDP_PASS);
    assert_eq!(bench.rx(&mute), XDP_PASS);
    wait_for("the lease to end", || now() > soon);
    assert_eq!(bench.rx(&syn(2)), XDP_DROP);
    assert_eq!(bench.rx(&mute), XDP_PASS);
    bench.lease(Duration::from_secs(60));
    assert_eq!(bench.rx(&syn(2)), XDP_PASS);
}

#[test]
fn the_word_only_grows() {
    let bench = Bench::new();
    let s = &bench.sensor;
    assert_eq!(s.admit(HOST, Epoch(5)).unwrap().word, Word::new(5, rank::ADMITTED));
    assert!(!s.admit(HOST, Epoch(5)).unwrap().stale, "again is no error");
    assert!(s.admit(HOST, Epoch(4)).unwrap().stale);
    assert!(s.fence(HOST, Epoch(4)).unwrap().stale);
    assert_eq!(s.read(HOST).unwrap().word, Word::new(5, rank::ADMITTED));
    assert!(!s.fence(HOST, Epoch(5)).unwrap().stale);
    let answer = s.admit(HOST, Epoch(5)).unwrap();
    assert!(answer.stale, "what is fenced at an epoch stays fenced at it");
    assert_eq!(answer.word, Word::new(5, rank::FENCED));
    assert!(!s.admit(HOST, Epoch(6)).unwrap().stale);
    // A fence of a later epoch than was ever admitted closes it beforehand.
    assert!(!s.fence(HOST, Epoch(9)).unwrap().stale);
    assert!(s.admit(HOST, Epoch(8)).unwrap().stale);
    assert!(s.admit(reroute_core::ids::HostId(99), Epoch(1)).is_err());
}

#[test]
fn shadow_counts_and_bypass_does_not_even_that() {
    let mut bench = Bench::new();
    bench.sensor.set_mode(mode::SHADOW).unwrap();
    assert_eq!(bench.rx(&syn(1)), XDP_PASS);
    assert_eq!((bench.client(HOST).would_drop, bench.client(HOST).drops), (1, [0; drop::COUNT]));
    bench.sensor.set_mode(mode::BYPASS).unwrap();
    assert_eq!(bench.rx(&syn(2)), XDP_PASS);
    assert_eq!(bench.client(HOST).would_drop, 1);
    bench.sensor.set_mode(mode::ENFORCE).unwrap();
    assert_eq!(bench.rx(&syn(3)), XDP_DROP);
    assert!(bench.sensor.set_mode(7).is_err());
    assert_eq!(bench.counts().in_progress, 0);
}

#[test]
fn a_fence_sees_every_call_that_got_in_before_it() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&call(1, WRITE, 0)));
    let half = call(2, WRITE, 100);
    bench.rx(&c.send(&half[..60]));
    let answer = bench.sensor.fence(HOST, Epoch(1)).unwrap();
    assert_eq!((answer.in_progress, answer.orphans), (1, 0));
    // The rest of the half call is dropped: it never runs, so it was never in progress.
    assert_eq!(bench.rx(&c.send(&half[60..])), XDP_DROP);
    assert_eq!(bench.counts().in_progress, 1);
    bench.tx(&c.answer(&reply(1, 0)));
    let drained = bench.counts();
    assert_eq!((drained.in_progress, drained.orphans), (0, 0));
}

/// Thousands of fences, each against a stream of calls on another CPU. It catches a guard that is missing or not
/// given back; one in the wrong order opens a window of a few ns, which this may miss.
#[test]
fn calls_race_with_a_fence_and_none_slips_through() {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    const ROUNDS: u64 = 2000;
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    // The round the sender may run in, and the one it has ended; calls that passed in it.
    let (go, done, passed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mut answers = c.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut xid = 0;
            for round in 1..=ROUNDS {
                while go.load(SeqCst) < round {
                    std::thread::yield_now();
                }
                loop {
                    let before = c.client_seq;
                    if bench.rx(&c.send(&call(xid + 1, WRITE, 0))) == XDP_DROP {
                        c.client_seq = before;
                        break;
                    }
                    xid += 1;
                    if passed.fetch_add(1, SeqCst) == 50 {
                        break;
                    }
                }
                done.store(round, SeqCst);
            }
        });
        let mut answered = 0;
        for round in 1..=ROUNDS {
            bench.sensor.admit(HOST, Epoch(round + 1)).unwrap();
            passed.store(0, SeqCst);
            go.store(round, SeqCst);
            while passed.load(SeqCst) < round % 5 {
                std::thread::yield_now();
            }
            for _ in 0..round % 701 {
                std::hint::spin_loop();
            }
            let answer = bench.sensor.fence(HOST, Epoch(round + 1)).unwrap();
            while done.load(SeqCst) < round {
                std::thread::yield_now();
            }
            let calls = passed.load(SeqCst);
            assert_eq!(u64::from(bench.counts().in_progress), calls, "round {round}");
            // A packet that was being judged counts too, whatever became of it.
            let seen = u64::from(answer.in_progress);
            assert!(seen == calls || seen == calls + 1, "round {round}: {seen} seen, then {calls} were in");
            for _ in 0..calls {
                answered += 1;
                bench.tx(&answers.answer(&reply(answered, 0)));
            }
        }
    });
}

#[test]
fn a_new_server_starts_from_nothing_and_the_same_one_forgets_nothing() {
    let bench = Bench::admitted();
    let s = &bench.sensor;
    let mut c = Connection::open(700, &bench);
    // One more than the slots that they have in common.
    bench.rx(&c.send(&(0..=CALL_WAYS).flat_map(|i| call(1 + 8 * i, WRITE, 0)).collect::<Vec<_>>()));
    s.server_started(Incarnation(10)).unwrap();
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (8, 1), "it was serving already");
    s.server_started(Incarnation(10)).unwrap();
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (8, 1));
    s.server_started(Incarnation(11)).unwrap();
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (0, 0));
    assert_eq!(bench.server().incarnation, 11);
    // A late reply of the dead one answers nothing.
    bench.tx(&c.answer(&reply(1, 0)));
    assert_eq!(bench.counts().in_progress, 0);
}

#[test]
fn both_sides_at_once_lose_no_count() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let bench = Bench::admitted();
    let c = Connection::open(700, &bench);
    const CALLS: u32 = 20_000;
    let (sent, answered) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut c = c.clone();
            for xid in 1..=CALLS {
                while sent.load(Ordering::Acquire) - answered.load(Ordering::Acquire) >= 60 {
                    std::thread::yield_now();
                }
                bench.rx(&c.send(&call(xid, if xid % 2 == 0 { WRITE } else { READ }, 0)));
                sent.store(xid, Ordering::Release);
            }
        });
        scope.spawn(|| {
            let mut c = c.clone();
            for xid in 1..=CALLS {
                while sent.load(Ordering::Acquire) < xid {
                    std::thread::yield_now();
                }
                bench.tx(&c.answer(&reply(xid, 0)));
                answered.store(xid, Ordering::Release);
            }
        });
    });
    let client = bench.client(HOST);
    let half = u64::from(CALLS / 2);
    assert_eq!((client.calls, client.replies), ([0, half, half, 0], [0, half, half, 0]));
    assert_eq!((client.in_progress, client.orphans), (0, 0));
    wait_for("the timer's count", || bench.server().waiting == 0);
    let flows = bench.sensor.flows().unwrap();
    assert!(flows.iter().all(|(_, f)| f.waiting == 0 && f.calls.iter().all(|c| *c == 0)));
    assert_eq!(bench.server().untracked_calls, 0);
}

/// A connection outlives its address's registration: from then on it is the new client's, on whichever way it is judged.
#[test]
fn a_connection_goes_with_its_address_to_another_client() {
    let mut bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&call(1, WRITE, 0)));
    let mut settings = settings(&bench.dir);
    // Another host has taken its place, and is not admitted; the old one's word stands.
    settings.clients.remove(0);
    let mut third = settings.clients[0].clone();
    third.host = HostId(3);
    third.addresses = vec![(Network::Storage, STORAGE_ADDRESS.into())];
    third.has_agent = true;
    settings.clients.push(third);
    bench.sensor = Sensor::start(settings).unwrap();
    bench.by(Network::Storage);
    let new = || bench.client(HostId(3));
    assert_eq!(bench.sensor.read(HostId(3)).unwrap().word.0, 0);
    let before = c.clone();
    assert_eq!(bench.rx(&c.send(&call(2, WRITE, 0))), XDP_DROP, "whoever sends now is not admitted");
    c = before;
    bench.sensor.admit(HostId(3), Epoch(1)).unwrap();
    assert_eq!(bench.rx(&c.send(&call(2, WRITE, 0))), XDP_PASS);
    assert_eq!(bench.rx(&c.send(&[call(3, WRITE, 0), call(4, WRITE, 0)].concat())), XDP_PASS);
    assert_eq!((new().in_progress, new().orphans), (3, 1), "the call from before may be anybody's");
    assert_eq!((new().calls[2], bench.client(HOST).calls[2]), (3, 1));
    bench.tx(&c.answer(&[reply(2, 0), reply(3, 0), reply(4, 0)].concat()));
    assert_eq!((new().in_progress, bench.client(HOST).in_progress), (0, 0));
    assert_eq!(bench.client(HOST).orphans, 1);
}

/// A host was given another address, or is not named any more: whoever sends from its old one is nobody's.
#[test]
fn an_address_that_was_given_up_lets_nobody_in() {
    let mut bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    assert_eq!(bench.rx(&c.send(&call(1, WRITE, 0))), XDP_PASS);
    let syn = |client| Connection { client, ..Connection::new(701) }.up(1, SYN, &[]).frame();
    let mut settings = settings(&bench.dir);
    let elsewhere = [10, 10, 85, 77];
    settings.clients[0].addresses[1].1 = elsewhere.into();
    bench.sensor = Sensor::start(settings.clone()).unwrap();
    bench.by(Network::Storage);
    assert_eq!(bench.rx(&c.send(&call(2, WRITE, 0))), XDP_DROP);
    assert_eq!(bench.rx(&syn(STORAGE_ADDRESS)), XDP_DROP);
    assert_eq!(bench.client(HostId(0)).drops[drop::UNREGISTERED], 2);
    assert_eq!(bench.rx(&syn(elsewhere)), XDP_PASS, "the host is admitted as before");
    assert_eq!(bench.sensor.read(HOST).unwrap().word, Word::new(1, rank::ADMITTED));
    settings.clients.remove(0);
    bench.sensor = Sensor::start(settings).unwrap();
    bench.by(Network::Storage);
    assert_eq!(bench.rx(&syn(elsewhere)), XDP_DROP);
}

/// In shadow mode a host may be served before anybody has registered it.
#[test]
fn a_connection_from_before_its_registration_is_admitted_with_its_host() {
    let mut bench = Bench::with(|s| {
        s.mode = AdmissionMode::Shadow;
        s.clients.remove(0);
    });
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&call(1, WRITE, 0)));
    bench.tx(&c.answer(&reply(1, 0)));
    bench.sensor = Sensor::start(settings(&bench.dir)).unwrap();
    bench.by(Network::Storage);
    bench.lease(Duration::from_secs(3600));
    bench.sensor.admit(HOST, Epoch(1)).unwrap();
    assert_eq!(bench.rx(&c.send(&call(2, WRITE, 0))), XDP_PASS);
    bench.rx(&c.send(&[call(3, WRITE, 0), call(4, WRITE, 0)].concat()));
    assert_eq!(bench.counts().in_progress, 3);
    bench.tx(&c.answer(&[reply(2, 0), reply(3, 0), reply(4, 0)].concat()));
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (0, 0));
    assert_eq!(bench.sensor.clients().unwrap()[0].in_progress, 0);
}

/// The server's end and a train of calls meet on two CPUs: none of them stays behind as one that waits for ever.
#[test]
fn calls_race_with_the_end_of_their_connection_and_none_waits_on() {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    const ROUNDS: u64 = 3000;
    let bench = Bench::admitted();
    let mut left = 0;
    let (go, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = |round: u64| {
        let mut c = Connection::new((round % 60_000) as u16 + 1);
        c.server_seq = c.server_seq.wrapping_add(1);
        c.down(c.server_seq, RST | ACK, &[]).frame()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                let frame = end(round);
                while go.load(SeqCst) < round {
                    std::hint::spin_loop();
                }
                for _ in 0..round * 37 % 4000 {
                    std::hint::spin_loop();
                }
                bench.tx(&frame);
                done.store(round, SeqCst);
            }
        });
        for round in 1..=ROUNDS {
            let mut c = Connection::open((round % 60_000) as u16 + 1, &bench);
            let calls: Vec<u8> = (1..=40).flat_map(|xid| call(xid, WRITE, 0)).collect();
            let frame = c.send(if round % 2 == 0 { &calls } else { &calls[..44] });
            go.store(round, SeqCst);
            for _ in 0..round * 53 % 2000 {
                std::hint::spin_loop();
            }
            bench.rx(&frame);
            while done.load(SeqCst) < round {
                std::hint::spin_loop();
            }
            let waiting = bench.counts().in_progress;
            assert!(waiting >= left);
            left = waiting;
        }
    });
    assert_eq!(left, 0, "of {ROUNDS} connections, all closed");
    let flows = bench.sensor.flows().unwrap();
    let forgot = flows.iter().filter(|(_, flow)| flow.rx.flags & bits::RESET == 0).count();
    assert_eq!(forgot, 0, "of {} that were reset", flows.len());
}
