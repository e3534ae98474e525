//! The timer: calls that grow old, silence, and their ends, told once each.

use crate::bench::*;
use crate::frames::*;
use reroute_agent::sensor::Events;
use reroute_common::event::{Event, kind, way};
use reroute_common::flow::raised;
use reroute_core::ids::Epoch;
use std::time::Duration;

const MS: u64 = 1_000_000;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn next(runtime: &tokio::runtime::Runtime, events: &mut Events) -> Event {
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(10), events.next())
            .await
            .expect("an event within 10 s")
            .unwrap()
    })
}

#[test]
fn a_hung_server_is_told_once_with_its_numbers_and_so_is_its_end() {
    let runtime = runtime();
    let mut bench = Bench::admitted();
    let mut events = {
        let _guard = runtime.enter();
        bench.sensor.events().unwrap()
    };
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&call(1, WRITE, 0)));
    bench.tx(&c.answer(&reply(1, 0)));
    assert_eq!(next(&runtime, &mut events).kind, kind::FIRST_REPLY);
    let asked = now();
    bench.rx(&c.send(&[call(2, WRITE, 0), call(3, READ, 0)].concat()));
    let told = [next(&runtime, &mut events), next(&runtime, &mut events)];
    let unanswered = told.iter().find(|e| e.kind == kind::UNANSWERED).unwrap();
    let silent = told.iter().find(|e| e.kind == kind::SILENT).unwrap();
    assert_eq!((unanswered.waiting, unanswered.limit, silent.limit), (2, 50 * MS, 50 * MS));
    assert_eq!(bench.sensor.host_of(unanswered.client), Some(HOST));
    assert!(unanswered.age_ns >= 50 * MS && silent.age_ns >= 50 * MS);
    assert!(unanswered.at >= asked + 50 * MS - 10_000, "never early");
    let flows = bench.sensor.flows().unwrap();
    let (index, flow) = flows.iter().find(|(_, f)| f.raised == raised::UNANSWERED).unwrap();
    assert_eq!((*index, flow.waiting), (unanswered.flow, 2));
    let server = bench.server();
    assert_eq!((server.silent, server.waiting, server.stalled_flows), (1, 2, 1));
    assert!(server.oldest_call_age_ns >= 50 * MS);
    assert_eq!(bench.client(HOST).stalls, 1);

    bench.tx(&c.answer(&[reply(3, 0), reply(2, 0)].concat()));
    let told = [next(&runtime, &mut events).kind, next(&runtime, &mut events).kind];
    assert!(told.contains(&kind::UNANSWERED_END) && told.contains(&kind::SILENT_END), "{told:?}");
    let server = bench.server();
    assert_eq!((server.silent, server.waiting, server.stalled_flows), (0, 0, 0));
    assert!(events.try_next().is_none());
    assert_eq!((server.silent_count, server.lost_events), (1, 0));
}

#[test]
fn one_stuck_call_is_no_silence_while_replies_leave() {
    let runtime = runtime();
    let mut bench = Bench::admitted();
    let mut events = {
        let _guard = runtime.enter();
        bench.sensor.events().unwrap()
    };
    let mut stuck = Connection::open(700, &bench);
    let mut busy = Connection::open(701, &bench);
    bench.rx(&stuck.send(&call(1, WRITE, 0)));
    let until = now() + 200 * MS;
    let mut xid = 1;
    while now() < until {
        xid += 1;
        bench.rx(&busy.send(&call(xid, GETATTR, 0)));
        bench.tx(&busy.answer(&reply(xid, 0)));
    }
    let mut kinds = vec![];
    while let Some(event) = events.try_next() {
        kinds.push(event.kind);
    }
    assert!(kinds.contains(&kind::UNANSWERED), "{kinds:?}");
    // This loop itself may have been held up for longer than the limit: then silence is the truth.
    let held_up = bench.server().silent_count;
    assert_eq!(kinds.iter().filter(|k| **k == kind::SILENT).count() as u64, held_up);
    assert!(held_up <= 1, "silent {held_up} times");
}

#[test]
fn a_half_call_is_not_waited_for_and_a_closed_connection_neither() {
    let runtime = runtime();
    let mut bench = Bench::admitted();
    let mut events = {
        let _guard = runtime.enter();
        bench.sensor.events().unwrap()
    };
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&call(1, WRITE, 500)[..100]));
    let mut d = Connection::open(701, &bench);
    bench.rx(&d.send(&call(1, WRITE, 0)));
    bench.rx(&d.up(d.client_seq, RST, &[]).frame());
    let ticks = bench.server().ticks;
    wait_for("150 ticks", || bench.server().ticks > ticks + 150);
    let reset = events.try_next().unwrap();
    assert_eq!((reset.kind, reset.way, reset.waiting), (kind::RESET, way::IN, 1));
    assert!(events.try_next().is_none());
    assert_eq!((bench.server().waiting, bench.counts().orphans), (0, 1));
}

#[test]
fn replies_that_could_not_be_read_invent_no_stall() {
    let runtime = runtime();
    let mut bench = Bench::admitted();
    let mut events = {
        let _guard = runtime.enter();
        bench.sensor.events().unwrap()
    };
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&[call(1, WRITE, 0), call(2, WRITE, 0)].concat()));
    bench.tx(&c.answer(&[0x33; 100]));
    let counts = bench.counts();
    assert_eq!((counts.in_progress, counts.orphans), (0, 2));
    let ticks = bench.server().ticks;
    wait_for("150 ticks", || bench.server().ticks > ticks + 150);
    assert!(events.try_next().is_none());
}

#[test]
fn the_first_reply_of_each_epoch_is_told_once() {
    let runtime = runtime();
    let mut bench = Bench::admitted();
    let mut events = {
        let _guard = runtime.enter();
        bench.sensor.events().unwrap()
    };
    let mut c = Connection::open(700, &bench);
    for epoch in [1, 2, 7] {
        bench.sensor.admit(HOST, Epoch(epoch)).unwrap();
        for xid in [1, 2] {
            bench.rx(&c.send(&call(xid, READ, 0)));
            bench.tx(&c.answer(&reply(xid, 0)));
        }
        let told = events.try_next().unwrap();
        assert_eq!((told.kind, told.limit), (kind::FIRST_REPLY, epoch));
        assert!(events.try_next().is_none());
    }
}

#[test]
fn the_timer_keeps_its_time() {
    let bench = Bench::admitted();
    let (ticks, since) = (bench.server().ticks, now());
    wait_for("200 ticks", || bench.server().ticks >= ticks + 200);
    let period = (now() - since) / (bench.server().ticks - ticks);
    assert!(period >= MS * 9 / 10, "{period} ns is more often than asked for");
}
