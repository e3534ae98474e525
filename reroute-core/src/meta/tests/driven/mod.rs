//! An ESXi host X, three SCVMs with the machines that drive it, and Meta. X calls where its next hop leads.

use super::table::send;
use super::*;
use crate::esxi::{self, Command, DriveError, Driver};
use std::net::Ipv4Addr;

const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 2);
const Y: HostId = HostId(2);
const Z: HostId = HostId(3);
const STEP: u64 = 20 * MS;
/// What one command over ssh takes.
const SSH: u64 = 100 * MS;

mod world;

use world::*;

/// X is served at its local SCVM; another one drives it, and has rehearsed.
fn at_home() -> World {
    let mut w = World::new();
    w.until("at A", 2 * SEC, |w| w.at() == Some(A));
    w.until("rehearsed", 2 * SEC, |w| w.view().rehearsed_ns.is_some());
    w.run(5 * SEC);
    assert_eq!((w.hop, w.changes.len()), (Some(hop(A)), 0));
    w
}

#[test]
fn who_drives_it_is_not_who_serves_it() {
    let w = at_home();
    assert_eq!(w.view().by, Some(B));
    assert_eq!(w.view().next_hop, Some(hop(A)));
    assert_eq!(w.alarms(), "");
}

#[test]
fn a_dead_server_is_left_and_returned_to() {
    let mut w = at_home();
    w.scvm(A).health.process_alive = false;
    let took = w.until("driven", 2 * SEC, |w| w.hop != Some(hop(A)));
    assert!(took < 500 * MS, "{} ms", took / MS);
    w.until("served there", 2 * SEC, |w| w.at().is_some_and(|at| at != A));
    let (to, reason, pieces) = w.wanted().remove(0);
    assert_eq!((Some(to.scvm), pieces), (w.at(), 1), "{reason}");
    assert!(reason.contains("ProcessExit"), "{reason}");
    assert_ne!(w.view().by, w.at(), "and now another one drives it than the one that serves it");
    w.run(2 * SEC);
    assert_eq!(w.changes.len(), 1, "once");
    // Well again: back home, after the wait.
    w.scvm(A).health.process_alive = true;
    let took = w.until("home", 10 * SEC, |w| w.at() == Some(A));
    assert!(took >= 3 * SEC, "{} ms", took / MS);
    w.run(60 * SEC);
    assert_eq!(w.changes.len(), 2);
}

#[test]
fn one_that_flaps_is_returned_to_later_and_later() {
    let mut w = at_home();
    let mut waits = Vec::new();
    for _ in 0..3 {
        w.scvm(A).health.process_alive = false;
        w.until("away", 120 * SEC, |w| w.hop != Some(hop(A)));
        w.until("served", 120 * SEC, |w| w.at().is_some_and(|at| at != A));
        w.scvm(A).health.process_alive = true;
        waits.push(w.until("home", 400 * SEC, |w| w.at() == Some(A)) / SEC);
    }
    let least = [3, 6, 12];
    assert!(waits.iter().zip(least).all(|(wait, least)| *wait >= least), "{waits:?}");
    assert!(w.changes.len() <= 6);
}

#[test]
fn a_server_that_is_back_at_once_is_not_left() {
    let mut w = at_home();
    w.scvm(A).health.process_alive = false;
    w.run(40 * MS);
    w.scvm(A).health.process_alive = true;
    w.run(30 * SEC);
    assert!(w.changes.is_empty() && w.wanted().is_empty());
}

/// Its agent died, and the server serves on: that alone changes nothing, before the lease of such clients is over.
#[test]
fn keepalives_that_stay_away_are_one_piece() {
    let mut w = at_home();
    w.scvm(A).up = false;
    w.run(7 * SEC);
    assert!(w.changes.is_empty() && w.wanted().is_empty());
    assert_eq!(w.view().by, Some(B));
    let took = w.until("nobody can be served there", 4 * SEC, |w| w.hop != Some(hop(A)));
    assert!((8 * SEC..10 * SEC).contains(&(7 * SEC + took)), "{} ms", (7 * SEC + took) / MS);
}

#[test]
fn two_observers_that_agree_are_enough() {
    // Meta, and another SCVM that was asked.
    let mut w = at_home();
    w.scvm(A).up = false;
    w.silent = vec![(C, A)];
    let took = w.until("driven", 3 * SEC, |w| w.hop != Some(hop(A)));
    assert!(took < 1000 * MS, "{} ms", took / MS);
    assert_eq!(w.wanted()[0].2, 2, "{:?}", w.wanted());
    // Meta, and a host.
    let mut w = at_home();
    w.failed_paths.insert(Y, vec![by_storage(A)]);
    w.run(5 * SEC);
    assert!(w.changes.is_empty(), "one host alone");
    w.scvm(A).up = false;
    w.until("driven", 3 * SEC, |w| w.hop != Some(hop(A)));
    // Two hosts: its storage network is a black hole, though it says itself that all is well.
    let mut w = at_home();
    w.failed_paths = [(Y, vec![by_storage(A)]), (Z, vec![by_storage(A)])].into();
    w.until("driven", 3 * SEC, |w| w.hop != Some(hop(A)));
    // Hosts that reach nobody say something of themselves.
    let mut w = at_home();
    let all = vec![by_storage(A), by_storage(B), by_storage(C)];
    w.failed_paths = [(Y, all.clone()), (Z, all)].into();
    w.run(10 * SEC);
    assert!(w.changes.is_empty());
}

#[test]
fn what_a_peer_says_unasked_or_late_is_no_evidence() {
    let mut w = at_home();
    w.say(NodeId::Scvm(B), ToMeta::PeerSilent { scvm: A });
    w.say(NodeId::Scvm(C), ToMeta::PeerSilent { scvm: A });
    w.run(SEC);
    assert!(w.wanted().is_empty());
    let reply = w.say(NodeId::Scvm(B), ToMeta::PeerSilent { scvm: ScvmId(9) });
    assert_eq!(reply, MetaReply::Refused { error: Refusal::UnknownScvm { scvm: ScvmId(9) } });
}

#[test]
fn the_appointment_leaves_one_that_is_dead_too() {
    let mut w = at_home();
    let by = w.view().by.unwrap();
    // Both at once: who serves it, and who would drive it.
    w.scvm(A).health.process_alive = false;
    w.scvm(by).up = false;
    w.scvm(by).due.clear();
    let took = w.until("driven", 5 * SEC, |w| w.hop.is_some_and(|at| at == hop(C)));
    assert!(took < 2 * SEC, "{} ms", took / MS);
    assert_eq!(w.changes.last().map(|c| c.1), Some(C));
    assert_eq!(w.view().by, Some(C), "the last one that is there, though it serves it");
}

#[test]
fn one_that_cannot_log_in_gives_way_to_another() {
    let mut w = at_home();
    let by = w.view().by.unwrap();
    w.scvm(by).broken = Some(DriveError::KeyRefused);
    // Found by the rehearsal, before it is needed.
    w.until("noticed", 61 * SEC, |w| w.alarms().contains("key_refused"));
    w.until("another one", 10 * SEC, |w| w.view().by != Some(by) && w.view().error.is_none());
    w.scvm(A).health.process_alive = false;
    w.until("driven", 2 * SEC, |w| w.hop != Some(hop(A)));
    assert_ne!(w.changes[0].1, by);
}

#[test]
fn whoever_tries_nobody_gets_in_and_it_is_said() {
    let mut w = at_home();
    for id in [A, B, C] {
        w.scvm(id).broken = Some(DriveError::Filtered { what: "test".into() });
    }
    w.until("noticed", 61 * SEC, |w| w.alarms().contains("filtered"));
    w.scvm(A).health.process_alive = false;
    w.run(20 * SEC);
    assert!(w.changes.is_empty() && w.view().wish.is_some(), "{:?}", w.view());
    // Its server is back before anybody gets in: it is not driven away from it.
    w.scvm(A).health.process_alive = true;
    w.run(SEC);
    assert_eq!(w.view().wish, None);
    for id in [A, B, C] {
        w.scvm(id).broken = None;
    }
    w.until("rehearsed again", 130 * SEC, |w| w.alarms().is_empty());
    assert!(w.changes.is_empty());
}

#[test]
fn without_a_fit_target_the_route_stays() {
    let mut w = at_home();
    w.scvm(B).health.listening = false;
    w.scvm(C).health.bypass = true;
    w.run(SEC);
    w.scvm(A).health.process_alive = false;
    w.run(5 * SEC);
    assert!(w.changes.is_empty() && w.wanted().is_empty());
    // No storage network, but the management network.
    w.scvm(C).health.bypass = false;
    w.scvm(C).health.no_carrier = vec![Network::Storage];
    w.until("driven", 2 * SEC, |w| w.hop == Some(Ipv4Addr::new(10, 1, 0, 3)));
}

/// Its links go one after the other: it has told of the first, and can tell of no more.
#[test]
fn one_that_is_in_doubt_is_gone_to_only_if_nobody_is_well() {
    for (doubtful, other) in [(B, C), (C, B)] {
        let mut w = at_home();
        w.scvm(doubtful).health.no_carrier = vec![Network::Management];
        w.run(200 * MS);
        w.scvm(doubtful).up = false;
        w.scvm(A).health.process_alive = false;
        w.until("driven", 2 * SEC, |w| w.hop != Some(hop(A)));
        w.run(2 * SEC);
        let to: Vec<Path> = w.wanted().into_iter().map(|(to, ..)| to).collect();
        assert_eq!(to, [by_storage(other)]);
        assert!(w.changes.iter().all(|(_, _, to)| *to == hop(other)), "{:?}", w.changes);
    }
    let mut w = at_home();
    w.scvm(B).health.no_carrier = vec![Network::Management];
    w.scvm(C).health.listening = false;
    w.run(200 * MS);
    w.scvm(A).health.process_alive = false;
    w.until("driven", 2 * SEC, |w| w.hop == Some(hop(B)));
}

#[test]
fn a_drained_server_is_left_and_not_returned_to() {
    let mut w = at_home();
    let draining = Draining { actor: "alice".into(), at_unix_ms: 5 };
    w.input(Input::Operator { request: RequestId(1), ask: OperatorAsk::Drain { scvm: A, draining } });
    w.until("driven", 2 * SEC, |w| w.at().is_some_and(|at| at != A));
    w.run(30 * SEC);
    assert_eq!(w.changes.len(), 1);
}

#[test]
fn a_leader_that_does_not_lead_drives_nobody_and_a_new_one_rehearses_first() {
    let mut w = at_home();
    w.scvm(A).health.process_alive = false;
    w.step();
    w.master = SessionMaster::new(two_more_hosts(2), w.store.clone(), BootNs(w.now))
        .with_driven(driven(), BootNs(w.now));
    for id in [A, B, C] {
        w.scvm(id).open = false;
    }
    w.until("driven", 3 * SEC, |w| w.hop != Some(hop(A)));
    let numbers: Vec<u64> = w.view().wish.iter().map(|wish| wish.number).collect();
    assert!(numbers.iter().all(|n| *n > 2 << 32), "{numbers:?}");
    let reply = w.say(
        NodeId::Scvm(B),
        ToMeta::Driven {
            host: Y,
            report: crate::esxi::DriveReport {
                wish: 1,
                outcome: Ok(None),
                took_ns: 0,
                failures: 0,
                again_ns: 0,
            },
        },
    );
    assert!(
        matches!(reply, MetaReply::Refused { error: Refusal::UnknownNode { .. } }),
        "Y has an agent: {reply:?}"
    );
}

/// The SCVM that serves X dies together with Meta's leader (its own node): nobody of this term ever hears of it.
#[test]
fn a_server_that_died_before_this_leader_began_is_left() {
    let mut w = at_home();
    w.scvm(A).up = false;
    w.scvm(A).due.clear();
    w.master = SessionMaster::new(two_more_hosts(2), w.store.clone(), BootNs(w.now))
        .with_driven(driven(), BootNs(w.now));
    for id in [A, B, C] {
        w.scvm(id).open = false;
    }
    w.silent = vec![(B, A), (C, A)];
    w.until("driven", 120 * SEC, |w| w.hop != Some(hop(A)));
}

/// Y and Z have lost their storage NICs; they reach everybody by management. X is well.
#[test]
fn hosts_that_lost_their_own_storage_network_say_something_of_themselves() {
    let mut w = at_home();
    let storage = vec![by_storage(A), by_storage(B), by_storage(C)];
    w.failed_paths = [(Y, storage.clone()), (Z, storage)].into();
    w.management = true;
    w.run(10 * SEC);
    assert!(w.changes.is_empty(), "{:?}: {:?}", w.hop, w.wanted());
}

/// While X's next hop is being changed, each candidate has a call over its limit for a beat.
#[test]
fn a_stall_at_the_target_does_not_use_up_the_budget() {
    let mut w = at_home();
    for id in [A, B, C] {
        w.scvm(id).broken = Some(DriveError::CommandFailed { code: 1, said: "busy".into() });
    }
    w.scvm(A).health.process_alive = false;
    w.run(200 * MS);
    for id in [B, C, B, C] {
        w.scvm(id).health.stalled = true;
        w.run(200 * MS);
        w.scvm(id).health.stalled = false;
        w.run(200 * MS);
    }
    for id in [A, B, C] {
        w.scvm(id).broken = None;
    }
    let began = w.now;
    w.until("driven", 120 * SEC, |w| w.hop != Some(hop(A)));
    assert!(w.now - began < 6 * SEC, "{} s, {:?}", (w.now - began) / SEC, w.wanted());
}

/// The way back must leave a token for the next failure.
#[test]
fn a_failure_after_returns_is_left_at_once() {
    let mut w = at_home();
    for _ in 0..2 {
        w.scvm(A).health.process_alive = false;
        w.until("away", 10 * SEC, |w| w.hop != Some(hop(A)));
        w.until("served", 10 * SEC, |w| w.at().is_some_and(|at| at != A));
        w.scvm(A).health.process_alive = true;
        w.until("home", 60 * SEC, |w| w.at() == Some(A));
        w.run(SEC);
    }
    w.scvm(A).health.process_alive = false;
    let took = w.until("away", 120 * SEC, |w| w.hop != Some(hop(A)));
    let served = w.until("served", 120 * SEC, |w| w.at().is_some_and(|at| at != A));
    assert!(took < 2 * SEC, "{} ms, served {} ms later", took / MS, served / MS);
}

/// Cut off while it drives, or only passed over: what it was told last is not done any more.
#[test]
fn who_is_not_appointed_any_more_is_told_to_stop() {
    let mut w = at_home();
    let by = w.view().by.unwrap();
    w.scvm(A).health.process_alive = false;
    w.scvm(by).broken = Some(DriveError::Refused);
    w.until("another one is appointed", 20 * SEC, |w| w.view().by != Some(by));
    w.until("driven", 20 * SEC, |w| w.hop != Some(hop(A)));
    w.scvm(by).broken = None;
    let (changes, hop) = (w.changes.len(), w.hop);
    w.run(2 * SEC);
    assert_eq!((w.changes.len(), w.hop), (changes, hop), "{:?}", w.changes);
    assert!(w.changes.iter().all(|(_, id, _)| *id != by), "{:?}", w.changes);
}
