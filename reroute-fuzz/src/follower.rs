//! The record follower. The input is what two connections are shown: segments of either direction, cut from streams of
//! calls and replies or made of the input's own bytes, ACKs, and time.

use crate::input::Input;
use crate::rig::{Counts, Rig, Room};
use std::rc::Rc;
use std::sync::OnceLock;

/// Calls in the streams that segments are cut from.
const CALLS: u32 = 24;
/// Room for early segments, at most.
const PIECES: u32 = 64;
/// What is held is not yet stale for so long, ns.
const FRESH: u64 = 25_000_000_000;

/// Made once each.
static SHAPES: [OnceLock<[Vec<u8>; 2]>; 256] = [const { OnceLock::new() }; 256];

fn streams(shape: u8) -> [Vec<u8>; 2] {
    let (mut calls, mut replies) = (vec![], vec![]);
    let put = |stream: &mut Vec<u8>, words: &[u32], body: u32, last: bool| {
        let len = 4 * words.len() as u32 + body;
        stream.extend((u32::from(last) << 31 | len).to_be_bytes());
        stream.extend(words.iter().flat_map(|w| w.to_be_bytes()));
        stream.extend((0..body).map(|i| i as u8));
    };
    for i in 0..CALLS {
        let xid = if shape & 1 == 0 { i } else { 8 * (i % 20) };
        let body = 16 + (i * u32::from(shape)) % 300 + if i % 8 == 7 { 5000 } else { 0 };
        let fragments = shape & 2 != 0 && i % 3 == 0;
        put(&mut calls, &[xid, 0, 2, 100_003, 3, i % 22], body, !fragments);
        put(&mut replies, &[xid, 1], body / 2, !fragments);
        if fragments {
            for stream in [&mut calls, &mut replies] {
                put(stream, &[], 0, false);
                put(stream, &[], 5, true);
            }
        }
    }
    [calls, replies]
}

/// One connection, and what it has shown so far.
struct Connection {
    rig: Rig,
    first: [u32; 2],
    before: Counts,
}

/// Shows two connections that share little room what `data` says.
///
/// # Panics
/// When what always holds does not.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    thread_local! {
        static ROOM: Rc<Room> = Rc::new(Room::new(PIECES));
    }
    let room = ROOM.with(Rc::clone);
    room.clear(u32::from(input.u8()).min(PIECES));
    let shape = input.u8();
    let streams = SHAPES[usize::from(shape)].get_or_init(|| streams(shape));
    let began = 1 << 35;
    let mut connections = [0, 1].map(|index| {
        let first = [input.u32(), input.u32()];
        Connection { rig: Rig::new(Rc::clone(&room), index, began), first, before: Counts::default() }
    });
    let mut disowned = false;
    while !input.is_empty() {
        let op = input.u8();
        let connection = &mut connections[usize::from(op >> 7)];
        let (rig, first) = (&connection.rig, connection.first);
        match op & 0x0f {
            0 => rig.open(first[0], first[1]),
            1 => rig.find(),
            2 => {
                disowned |= rig.pieces() > 0;
                rig.reopen(first[0], first[1]);
                connection.before = rig.counts();
            }
            3 => rig.fin(),
            4 => rig.reply_bytes(&[], 0, first[1], first[0].wrapping_add(u32::from(input.u16()))),
            5 => {
                let by = u64::from(input.u16()) * if op & 0x10 == 0 { 4096 } else { 1 << 22 };
                connections.iter_mut().for_each(|c| c.rig.now += by);
            }
            kind => segment(rig, first, streams, kind, &mut input),
        }
        let fresh = connections[0].rig.now - began < FRESH;
        let Connection { rig, before, .. } = &mut connections[usize::from(op >> 7)];
        rig.check();
        if fresh {
            rig.check_pieces();
        }
        let counts = rig.counts();
        grows(before, &counts);
        *before = counts;
        let listed: u32 = connections.iter().map(|c| c.rig.pieces()).sum();
        assert!(!fresh || disowned || room.used() == listed, "{} pieces used, {listed} listed", room.used());
    }
}

fn segment(rig: &Rig, first: [u32; 2], streams: &[Vec<u8>; 2], kind: u8, input: &mut Input<'_>) {
    let way = usize::from(kind & 1);
    let at = input.u16();
    let len = usize::from(input.u16());
    let stream = &streams[way];
    let (packet, offset, seq) = if kind & 8 != 0 {
        // As it was sent.
        let from = usize::from(at) % stream.len();
        (&stream[..stream.len().min(from + len)], from, from as u32)
    } else if kind & 2 != 0 {
        // Not where it belongs.
        let from = len % stream.len();
        (&stream[..], from, u32::from(at) << (input.u8() % 17))
    } else {
        (input.bytes(len % 2000), 0, u32::from(at))
    };
    let seq = first[way].wrapping_add(seq);
    match way {
        0 => rig.call_bytes(packet, offset, seq),
        _ => rig.reply_bytes(packet, offset, seq, first[0].wrapping_add(input.u32() & 0xffff)),
    }
}

/// Counts never fall.
fn grows(before: &Counts, now: &Counts) {
    assert!(now.orphans >= before.orphans && now.streams_lost >= before.streams_lost);
    for class in 0..now.calls.len() {
        assert!(now.calls[class] >= before.calls[class] && now.replies[class] >= before.replies[class]);
        let timed: u64 = now.latency[class].iter().sum();
        assert_eq!(timed, now.replies[class], "each reply was timed");
        assert!(now.replies[class] <= now.calls[class], "no reply without its call");
    }
}
