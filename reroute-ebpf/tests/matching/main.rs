//! Calls and replies are matched whatever the network does with their segments: any calls, any replies, any cut, any
//! order, against a reference that puts bytes in order, parses records and compares XIDs.
//!
//! `PROPTEST_CASES` scales: five cases for each one of it; 5,000 without it.

mod case;
mod network;
mod reference;
mod side;
mod wire;

use case::{Case, Weather, case};
use network::Network;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use reference::sum;
use reroute_common::flow::MAX_PIECES;
use reroute_fuzz::rig::{Rig, Room};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

const CASES: u32 = 5_000;

/// How often something came to pass.
type Seen = BTreeMap<&'static str, u64>;

fn follow(case: &Case, room: &Rc<Room>, seen: &mut Seen) {
    room.clear(if let Weather::NoRoom(pieces) = case.weather { pieces.into() } else { MAX_PIECES });
    let rig = Rig::new(Rc::clone(room), 3, case.now / 4096 * 4096 + 4096);
    let mut network = Network::new(case, rig);
    network.run();
    let mut count = |what, holds: bool| *seen.entry(what).or_default() += u64::from(holds);
    count("cases", true);
    count("early segments held", network.rig.held_segments() > 0);
    count("XID repeated while waited for", network.reference.repeated > 0);
    let counts = network.rig.counts();
    count("more calls than slots", counts.untracked > 0);
    count("calls never answered", !counts.waiting.is_empty());
    if case.weather != Weather::Tcp {
        count("streams lost", counts.streams_lost > 0);
        count("all followed in bad weather", counts.orphans == 0);
        judge(case, &mut network);
        find_again(&mut network, room);
    }
    // And from here on it is exact, whatever was before.
    network.weather = Weather::Tcp;
    network.to_ask.extend(case.after.iter().cloned());
    network.run();
    assert_eq!(room.used(), 0, "all early segments were let go");
    assert_eq!(network.rig.counts(), network.reference.counts());
}

/// All was delivered, and all answered that ever will be.
fn judge(case: &Case, network: &mut Network) {
    // The server has all, and says so.
    network.show(network.server.sent..network.server.sent);
    let (ours, theirs) = (network.rig.counts(), network.reference.counts());
    for xid in ours.waiting.keys() {
        let unanswered = network.reference.unanswered.contains_key(xid);
        assert!(unanswered, "{xid:#x} was answered, and waits: {ours:?}, {theirs:?}");
    }
    assert!(sum(&ours.calls) <= sum(&theirs.calls) + network.reference.repeated, "{ours:?}, {theirs:?}");
    assert!(sum(&ours.replies) <= sum(&ours.calls), "{ours:?}");
    let timed: u64 = ours.latency.iter().flatten().sum();
    assert_eq!(timed, sum(&ours.replies), "each reply was timed: {ours:?}");
    if u64::from(ours.orphans) == ours.untracked {
        assert_eq!(ours.calls, theirs.calls, "calls were missed, and nobody knows: {ours:?}, {theirs:?}");
    }
    if ours.orphans == 0 {
        let same = ours.waiting.keys().eq(network.reference.unanswered.keys());
        assert!(same, "calls wait, and nobody knows: {ours:?}, {theirs:?}");
    }
    if case.weather == Weather::Midstream {
        assert!(ours.orphans > 0, "what was before us, nobody knows");
    }
}

/// Records that begin where segments begin.
fn find_again(network: &mut Network, room: &Room) {
    let (of_calls, of_replies) = (network.client.garbage.len(), network.server.garbage.len());
    network.calm = true;
    // The first one may be taken for the rest of what was lost.
    network.exchange();
    let lost = network.rig.counts();
    let directions = u64::from(of_calls > 0) + u64::from(of_replies > 0);
    assert!(lost.streams_lost >= directions, "garbage loses the stream: {lost:?}");
    assert!(of_calls == 0 || lost.orphans > 0, "garbage may have hidden calls: {lost:?}");
    for followed in [false, true] {
        let before = network.rig.counts();
        let (xid, waited) = network.exchange();
        let counts = network.rig.counts();
        assert!(
            waited && !counts.waiting.contains_key(&xid),
            "a call is found again, and its reply: {counts:?}"
        );
        assert_eq!(sum(&counts.calls) - sum(&before.calls), 1, "{counts:?}");
        assert_eq!(sum(&counts.replies) - sum(&before.replies), 1, "{counts:?}");
        assert_eq!(network.rig.is_followed(), (true, true));
        if followed {
            let same = (counts.orphans, counts.streams_lost) == (before.orphans, before.streams_lost);
            assert!(same, "{before:?}, {counts:?}");
        }
    }
    assert_eq!(room.used(), 0, "nothing is held for a stream that was lost");
    room.clear(MAX_PIECES);
    network.reference.go_on_from(&network.rig.counts());
}

#[test]
fn calls_and_replies_are_matched_through_any_segmentation() {
    let cases = match std::env::var("PROPTEST_CASES") {
        Ok(n) => 5 * n.parse::<u32>().expect("PROPTEST_CASES is a number"),
        Err(_) => CASES,
    };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let room = Rc::new(Room::new(MAX_PIECES));
    let seen = RefCell::new(Seen::new());
    // Each step on the way to a minimal case fails too: only the last one is told of.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let result = TestRunner::new(config).run(&case(), |case| {
        catch_unwind(AssertUnwindSafe(|| follow(&case, &room, &mut seen.borrow_mut()))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            TestCaseError::fail(text.unwrap_or_default())
        })
    });
    panic::set_hook(hook);
    if let Err(TestError::Fail(why, case)) = &result {
        panic!("{why}\nminimal case: {case:?}");
    }
    result.unwrap();
    let seen = seen.into_inner();
    println!("{seen:?}");
    for (what, n) in seen {
        assert!(n >= u64::from(cases) / 100, "{what}: in {n} of {cases} cases only");
    }
}
