//! Whom an operator keeps away: dropped by the kernel itself, for as long as was said, whatever becomes of the agent.

use crate::bench::*;
use crate::frames::*;
use reroute_agent::sensor::Sensor;
use reroute_common::table::{drop, mode};
use reroute_core::ids::{BootNs, Epoch};

const LONG: u64 = 3_600_000_000_000;

fn later(ns: u64) -> BootNs {
    BootNs(now() + ns)
}

fn blocked(bench: &Bench) -> u64 {
    bench.client(HOST).drops[drop::BLOCKED]
}

#[test]
fn what_the_blocked_send_is_dropped_on_every_way() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&call(1, WRITE, 0)));
    bench.sensor.set_block(HOST, later(LONG)).unwrap();
    let before = c.clone();
    // One call in its turn, an ACK alone, two calls at once, a new connection, the end of one, a fragment.
    assert_eq!(bench.rx(&c.send(&call(2, WRITE, 0))), XDP_DROP);
    c = before.clone();
    assert_eq!(bench.rx(&c.up(c.client_seq, ACK, &[]).frame()), XDP_DROP);
    assert_eq!(bench.rx(&c.send(&[call(2, WRITE, 0), call(3, WRITE, 0)].concat())), XDP_DROP);
    assert_eq!(bench.rx(&Connection::new(701).up(1, SYN, &[]).frame()), XDP_DROP);
    c = before;
    assert_eq!(bench.rx(&c.up(c.client_seq, RST | ACK, &[]).frame()), XDP_DROP);
    assert_eq!(blocked(&bench), 5);
    assert_eq!(bench.client(HOST).drops[drop::NOT_ADMITTED], 0);
    // It fences nobody: the word stands, and what was accepted is still counted, and may be answered.
    let counts = bench.counts();
    assert_eq!((counts.word.epoch(), counts.word.is_admitted(), counts.in_progress), (1, true, 1));
    assert_eq!(bench.tx(&c.answer(&reply(1, 0))), TC_NEXT);
    assert_eq!(bench.counts().in_progress, 0);
    // Lifted: the connection goes on.
    bench.sensor.set_block(HOST, BootNs(0)).unwrap();
    assert_eq!(bench.rx(&c.send(&call(2, WRITE, 0))), XDP_PASS);
    assert_eq!(blocked(&bench), 5);
}

#[test]
fn a_block_ends_by_the_clock_alone() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    let end = later(150_000_000);
    bench.sensor.set_block(HOST, end).unwrap();
    let before = c.clone();
    assert_eq!(bench.rx(&c.send(&call(1, WRITE, 0))), XDP_DROP);
    wait_for("the end of the block", || now() > end.0);
    c = before;
    assert_eq!(bench.rx(&c.send(&call(1, WRITE, 0))), XDP_PASS);
}

#[test]
fn nobody_else_is_kept_away_and_the_reason_is_the_block() {
    let bench = Bench::admitted();
    bench.sensor.admit(MUTE, Epoch(1)).unwrap();
    bench.sensor.set_block(HOST, later(LONG)).unwrap();
    let mute = Connection { client: MUTE_ADDRESS, ..Connection::new(9) }.up(1, SYN, &[]).frame();
    assert_eq!(bench.rx(&mute), XDP_PASS);
    // Whoever is not admitted either is counted as blocked: that is what an operator looks for.
    bench.sensor.fence(HOST, Epoch(1)).unwrap();
    assert_eq!(bench.rx(&Connection::new(1).up(1, SYN, &[]).frame()), XDP_DROP);
    assert_eq!((blocked(&bench), bench.client(HOST).drops[drop::NOT_ADMITTED]), (1, 0));
}

/// Clients without an agent are held back when they are not admitted. A block is more than that, and says so.
#[test]
fn a_client_without_an_agent_is_not_only_held_back() {
    let bench = Bench::admitted();
    let mute = |port| Connection { client: MUTE_ADDRESS, ..Connection::new(port) };
    let blocked = |bench: &Bench| bench.client(MUTE).drops[drop::BLOCKED];
    for (round, admitted) in [false, true].into_iter().enumerate() {
        if admitted {
            bench.sensor.admit(MUTE, Epoch(1)).unwrap();
        }
        bench.sensor.set_block(MUTE, BootNs(0)).unwrap();
        let mut c = mute(720 + round as u16);
        assert_eq!(bench.rx(&c.up(c.client_seq, SYN, &[]).frame()), XDP_PASS);
        bench.tx(&c.down(c.server_seq, SYN | ACK, &[]).frame());
        (c.client_seq, c.server_seq) = (c.client_seq.wrapping_add(1), c.server_seq.wrapping_add(1));
        bench.sensor.set_block(MUTE, later(LONG)).unwrap();
        let before = blocked(&bench);
        assert_eq!(bench.rx(&mute(730).up(1, SYN, &[]).frame()), XDP_DROP, "no handshake");
        assert_eq!(bench.rx(&c.up(c.client_seq, ACK, &[]).frame()), XDP_DROP);
        assert_eq!(bench.rx(&c.send(&call(1, WRITE, 0))), XDP_DROP);
        assert_eq!(blocked(&bench) - before, 3, "that is what an operator looks for");
    }
    let drops = bench.client(MUTE).drops;
    assert_eq!((drops[drop::NOT_ADMITTED], drops[drop::LEASE_EXPIRED]), (0, 0));
}

#[test]
fn shadow_counts_blocks_and_bypass_suspends_them() {
    let mut bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    bench.sensor.set_block(HOST, later(LONG)).unwrap();
    bench.sensor.set_mode(mode::SHADOW).unwrap();
    assert_eq!(bench.rx(&c.send(&call(1, WRITE, 0))), XDP_PASS);
    assert_eq!((bench.client(HOST).would_drop, blocked(&bench)), (1, 0));
    bench.sensor.set_mode(mode::BYPASS).unwrap();
    assert_eq!(bench.rx(&c.send(&call(2, WRITE, 0))), XDP_PASS);
    assert_eq!((bench.client(HOST).would_drop, blocked(&bench)), (1, 0));
    bench.sensor.set_mode(mode::ENFORCE).unwrap();
    assert_eq!(bench.rx(&c.send(&call(3, WRITE, 0))), XDP_DROP);
    assert_eq!(blocked(&bench), 1);
}

/// The agent dies and comes back: the block stands as it did, also in between.
#[test]
fn a_block_outlives_the_agent() {
    let mut bench = Bench::admitted();
    let end = later(LONG);
    bench.sensor.set_block(HOST, end).unwrap();
    bench.sensor = Sensor::start(settings(&bench.dir)).unwrap();
    bench.by(reroute_core::ids::Network::Storage);
    assert_eq!(bench.client(HOST).blocked_until, end.0);
    assert_eq!(bench.rx(&Connection::new(1).up(1, SYN, &[]).frame()), XDP_DROP);
    assert_eq!(blocked(&bench), 1);
}

/// When a packet was last let in: what `logins` shows.
#[test]
fn the_last_packet_is_the_last_that_was_let_in() {
    let bench = Bench::admitted();
    assert_eq!(bench.sensor.last_packets().get(&HOST), None);
    let mut c = Connection::open(700, &bench);
    let at = || bench.sensor.last_packets()[&HOST].0;
    let first = at();
    wait_for("a later tick", || bench.server().tick_at > first + 20_000_000);
    bench.rx(&c.send(&call(1, WRITE, 0)));
    let second = at();
    assert!(second > first, "{first} {second}");
    bench.sensor.set_block(HOST, later(LONG)).unwrap();
    wait_for("a later tick", || bench.server().tick_at > second + 20_000_000);
    assert_eq!(bench.rx(&c.send(&call(2, WRITE, 0))), XDP_DROP);
    assert_eq!(at(), second);
}
