//! The protocol, exhaustively to a stated depth: the machines of `reroute-core` in a small world, a fair schedule, and
//! an adversary who may meddle with it a bounded number of times, anywhere. See `docs/safety.md`.

mod adversary;
mod check;
mod host;
mod kernel;
mod meta;
mod nodes;
mod oracle;
mod parts;
mod scvm;
mod stories;
mod story;
mod world;

use adversary::{CAME_BACK, LEADER_LOST, RETURN, TWO_MOVES, WENT_ON};
use check::{needs, verify};
use reroute_core::ids::FencePolicy::{Kill, Storage, Wait};
use story::Safeguard;

#[test]
fn two_servers_there_and_back() {
    let found = verify("there and back", vec![stories::there_and_back(&[Storage, Kill])]);
    for name in [TWO_MOVES, RETURN, LEADER_LOST] {
        assert!(found.seen.contains(&name), "never seen: {name}");
    }
}

#[test]
fn three_servers_there_and_back() {
    verify("three servers", vec![stories::there_and_back(&[Kill, Storage, Wait])]);
}

#[test]
fn a_server_cut_off() {
    verify("cut off", vec![stories::cut_off()]);
}

#[test]
fn what_operators_ask_for() {
    let found = verify("operators", vec![stories::operators()]);
    for name in [TWO_MOVES, RETURN, CAME_BACK] {
        assert!(found.seen.contains(&name), "never seen: {name}");
    }
}

#[test]
fn clocks_that_drift() {
    verify("drifting clocks", stories::drifting());
}

#[test]
fn two_leaders_at_once() {
    verify("two leaders", vec![stories::two_leaders()]);
}

#[test]
fn two_troubles_in_one_move() {
    verify("one move", vec![stories::one_move()]);
}

#[test]
fn two_troubles_when_a_server_is_cut_off() {
    verify("cut off", vec![stories::cut_off_twice()]);
}

#[test]
fn without_an_agent_there_and_back() {
    let found = verify("without an agent", vec![stories::next_hop_there_and_back()]);
    for name in [TWO_MOVES, RETURN, LEADER_LOST, CAME_BACK] {
        assert!(found.seen.contains(&name), "never seen: {name}");
    }
}

#[test]
fn without_an_agent_cut_off() {
    verify("without an agent", vec![stories::next_hop_cut_off(), stories::next_hop_cut_off_twice()]);
}

#[test]
fn without_an_agent_and_meta_is_away() {
    let found = verify("without an agent", vec![stories::meta_away()]);
    assert!(found.seen.contains(&WENT_ON), "never seen: {WENT_ON}");
}

#[test]
fn without_the_proof_step() {
    needs(Safeguard::ProofStep, stories::a_hung_server_wakes_up());
}

#[test]
fn without_the_epoch_check() {
    needs(Safeguard::EpochCheck, stories::an_old_answer());
}

#[test]
fn without_the_stamp_echo() {
    needs(Safeguard::StampEcho, stories::a_late_affirmation());
}

#[test]
fn without_counting_from_the_send_stamp() {
    needs(Safeguard::SendStampCounting, stories::a_late_answer());
}

#[test]
fn without_the_persisted_release() {
    needs(Safeguard::PersistedRelease, stories::a_forgotten_release());
}

#[test]
fn without_the_leaders_lease() {
    needs(Safeguard::LeaderLease, stories::a_leader_of_its_own());
}

#[test]
fn without_the_fence_of_whom_a_session_does_not_name() {
    needs(Safeguard::FenceOfUnnamed, stories::a_new_session());
}

#[test]
fn without_waiting_for_the_longer_lease() {
    needs(Safeguard::LongerLease, stories::a_longer_lease());
}
