//! What is drawn: calls, replies, and a tape of numbers that the network's whims are read from.

use crate::wire::{Filling, PROCEDURES};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// How the network and the peers behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weather {
    /// TCP as it is: segments cut anyhow, late, lost, sent again. All can be followed.
    Tcp,
    /// The same, with room for so many pieces of early segments only.
    NoRoom(u8),
    /// Some records of either direction are none.
    Garbage,
    /// The programs come to a connection that is in use.
    Midstream,
    /// Some segments reach the server without passing by here.
    Bypass,
    /// Segments with replies pass in another order than they were sent in, or not at all.
    Disorder,
}

#[derive(Clone, Copy, Debug)]
pub enum Xid {
    Next,
    Any(u32),
    /// One that was answered.
    Used(u8),
    /// One that is waited for.
    Waiting(u8),
}

#[derive(Clone, Debug)]
pub struct Body {
    pub len: usize,
    pub cuts: Vec<u8>,
    pub filling: Filling,
}

#[derive(Clone, Debug)]
pub struct Exchange {
    pub xid: Xid,
    pub procedure: usize,
    pub call: Body,
    /// None: it is never answered.
    pub reply: Option<Body>,
    /// Garbage, where that is the weather, instead of call (even) or reply (odd).
    pub garbage: Option<(bool, Vec<u8>)>,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub weather: Weather,
    pub exchanges: Vec<Exchange>,
    /// In what weather ever: these come after, in [`Weather::Tcp`].
    pub after: Vec<Exchange>,
    pub tape: Vec<u16>,
    pub first_xid: u32,
    /// Sequence numbers of the first bytes, client's and server's.
    pub first: [u32; 2],
    pub now: u64,
}

fn body() -> impl Strategy<Value = Body> {
    let len = prop_oneof![
        8 => 0..64_usize,
        6 => 0..600_usize,
        3 => 0..9_000_usize,
        1 => 0..=65_536_usize,
    ];
    let cuts =
        prop_oneof![6 => Just(vec![]), 3 => vec(0..=16_u8, 1..3), 1 => vec(select(vec![0, 16, 7]), 1..7)];
    let filling =
        select(vec![Filling::Text, Filling::Zeros, Filling::Marks, Filling::Calls, Filling::Replies]);
    (len, cuts, filling).prop_map(|(len, cuts, filling)| Body { len, cuts, filling })
}

fn exchange() -> impl Strategy<Value = Exchange> {
    let xid = prop_oneof![
        10 => Just(Xid::Next),
        3 => any::<u32>().prop_map(Xid::Any),
        2 => any::<u8>().prop_map(Xid::Used),
        2 => any::<u8>().prop_map(Xid::Waiting),
    ];
    let garbage = option::weighted(0.3, (any::<bool>(), vec(any::<u8>(), 1..200)));
    (xid, 0..PROCEDURES.len(), body(), option::weighted(0.85, body()), garbage)
        .prop_map(|(xid, procedure, call, reply, garbage)| Exchange { xid, procedure, call, reply, garbage })
}

/// XIDs of one set of slots, and more of them than it has.
fn crowding() -> impl Strategy<Value = Exchange> {
    (exchange(), 0..1000_u32).prop_map(|(exchange, n)| Exchange { xid: Xid::Any(8 * n), ..exchange })
}

pub fn case() -> impl Strategy<Value = Case> {
    let weather = prop_oneof![
        10 => Just(Weather::Tcp),
        2 => (0..12_u8).prop_map(Weather::NoRoom),
        2 => Just(Weather::Garbage),
        2 => Just(Weather::Midstream),
        2 => Just(Weather::Bypass),
        2 => Just(Weather::Disorder),
    ];
    // Near the wrap half of the time, the further from it the fewer.
    let seq = prop_oneof![any::<u32>(), (0..200_000_u32).prop_map(|n| 0_u32.wrapping_sub(n))];
    let exchanges = prop_oneof![
        8 => vec(exchange(), 1..16),
        1 => vec(exchange(), 16..100),
        1 => vec(crowding(), 12..50),
    ];
    (
        weather,
        exchanges,
        vec(exchange(), 0..6),
        vec(any::<u16>(), 0..500),
        any::<u32>(),
        [seq.clone(), seq],
        (1_u64 << 22)..(1 << 45),
    )
        .prop_map(|(weather, exchanges, after, tape, first_xid, first, now)| Case {
            weather,
            exchanges,
            after,
            tape,
            first_xid,
            first,
            now,
        })
}
