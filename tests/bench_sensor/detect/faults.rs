//! One fault per signal.

use super::Told;
use super::tap::Tap;
use super::world::{PULSE_INTERVAL, World, abort_on_close};
use crate::space::run;
use lab::namespace::NetNs;
use reroute_agent::clock::now;
use reroute_common::event::{Event, kind};
use std::io::{ErrorKind, Write};
use std::time::Duration;

pub struct Signal {
    pub name: &'static str,
    /// What the fault is.
    pub what: &'static str,
    /// Longer than a trial takes: how long hogs may spin.
    pub at_most: Duration,
    pub provoke: fn(&mut World) -> anyhow::Result<Told>,
}

const SHORT: Duration = Duration::from_millis(150);

pub const SIGNALS: &[Signal] = &[
    Signal {
        name: "unanswered",
        what: "a call is sent that nobody answers",
        at_most: SHORT,
        provoke: unanswered,
    },
    Signal {
        name: "silent",
        what: "the only client's call is not answered",
        at_most: SHORT,
        provoke: silent,
    },
    Signal {
        name: "listener_gone",
        what: "the listener is closed; limit: the interval of pulses",
        at_most: SHORT,
        provoke: listener_gone,
    },
    Signal {
        name: "unacked",
        what: "nothing reaches the client any more; a reply is sent to it",
        at_most: Duration::from_millis(800),
        provoke: unacked,
    },
    Signal {
        name: "retransmit",
        what: "a data segment of the client's is sent once more",
        at_most: SHORT,
        provoke: retransmit,
    },
    Signal {
        name: "zero_window",
        what: "a server that reads no more; stamp of the segment that fills its window",
        at_most: Duration::from_millis(500),
        provoke: zero_window,
    },
    Signal { name: "reset", what: "the client's RST", at_most: SHORT, provoke: |w| reset(w, true) },
    Signal { name: "reset_out", what: "the server's RST", at_most: SHORT, provoke: |w| reset(w, false) },
];

/// Signals whose kinds a program of before does not know yet are not told: they fail by name.
const UNACKED: u32 = 9;
const RETRANSMIT: u32 = 11;
const ZERO_WINDOW: u32 = 13;
const RESET: u32 = 15;

/// Of events that are about no connection in particular.
const NO_LINE: u32 = u32::MAX;

fn told(event: &Event, stamp: u64) -> Told {
    Told { took: event.at as i64 - stamp as i64, limit: event.limit }
}

fn hang(world: &mut World, name: &str, wanted: u32) -> anyhow::Result<Told> {
    let mut pair = world.connect()?;
    let line = world.line_of(&pair)?;
    let call = pair.next_call();
    let stamp = now().0;
    pair.client.write_all(&call)?;
    let event =
        world.event(name, |e| e.kind == wanted && e.at >= stamp && (e.flow == line || e.flow == NO_LINE));
    pair.take()?;
    let reply = pair.reply();
    pair.server.write_all(&reply)?;
    pair.taken()?;
    pair.abort()?;
    Ok(told(&event?, stamp))
}

fn unanswered(world: &mut World) -> anyhow::Result<Told> {
    hang(world, "unanswered", kind::UNANSWERED)
}

fn silent(world: &mut World) -> anyhow::Result<Told> {
    hang(world, "silent", kind::SILENT)
}

fn listener_gone(world: &mut World) -> anyhow::Result<Told> {
    let listener = world.listener.take();
    let stamp = now().0;
    drop(listener);
    let event = world.event("listener_gone", |e| e.kind == kind::LISTENER_GONE && e.at >= stamp)?;
    Ok(Told { limit: PULSE_INTERVAL.as_nanos() as u64, ..told(&event, stamp) })
}

const HOLE: &str = "nft add table ip hole ; add chain ip hole in { type filter hook prerouting priority -300 ; policy drop ; }";

/// Nothing reaches the client any more, until this is dropped.
struct Hole(NetNs);
impl Hole {
    fn dig(world: &World) -> anyhow::Result<Hole> {
        let client = world.wire.client.try_clone()?;
        client.run(|| run(HOLE))??;
        Ok(Hole(client))
    }
}
impl Drop for Hole {
    fn drop(&mut self) {
        let filled = self.0.run(|| run("nft delete table ip hole"));
        if !matches!(filled, Ok(Ok(()))) {
            eprintln!("the client stays cut off: {filled:?}");
        }
    }
}

fn unacked(world: &mut World) -> anyhow::Result<Told> {
    let mut pair = world.connect()?;
    let line = world.line_of(&pair)?;
    let call = pair.next_call();
    pair.client.write_all(&call)?;
    pair.take()?;
    let reply = pair.reply();
    let hole = Hole::dig(world)?;
    let stamp = now().0;
    pair.server.write_all(&reply)?;
    let event = world.event("unacked", |e| e.kind == UNACKED && e.flow == line && e.at >= stamp);
    drop(hole);
    pair.abort()?;
    Ok(told(&event?, stamp))
}

fn retransmit(world: &mut World) -> anyhow::Result<Told> {
    let mut pair = world.connect()?;
    let line = world.line_of(&pair)?;
    let tap = Tap::open(&world.wire.client, "c0")?;
    pair.exchange()?;
    let frame = tap.data_of(pair.client_port()?)?;
    let stamp = now().0;
    tap.send(&frame)?;
    let event = world.event("retransmit", |e| e.kind == RETRANSMIT && e.flow == line && e.at >= stamp);
    pair.exchange()?;
    pair.abort()?;
    Ok(told(&event?, stamp))
}

fn zero_window(world: &mut World) -> anyhow::Result<Told> {
    let mut pair = world.connect()?;
    let line = world.line_of(&pair)?;
    let tap = Tap::open(&world.wire.client, "c0")?;
    pair.client.set_nonblocking(true)?;
    let begun = now().0;
    let block = vec![0x5a; 1 << 16];
    pair.client.write_all(&crate::frames::call_head(u32::MAX, crate::frames::WRITE, 1 << 24))?;
    while !matches!(pair.client.write(&block), Err(e) if e.kind() == ErrorKind::WouldBlock) {}
    let event = world.event("zero_window", |e| e.kind == ZERO_WINDOW && e.flow == line && e.at >= begun);
    let closed_at = tap.window_filled_by(pair.client_port()?);
    pair.abort()?;
    Ok(told(&event?, closed_at?))
}

fn reset(world: &mut World, by_client: bool) -> anyhow::Result<Told> {
    let pair = world.connect()?;
    let line = world.line_of(&pair)?;
    let (goes, stays) = if by_client { (pair.client, pair.server) } else { (pair.server, pair.client) };
    abort_on_close(&goes)?;
    let stamp = now().0;
    drop(goes);
    let event = world.event("reset", |e| e.kind == RESET && e.flow == line && e.at >= stamp)?;
    drop(stays);
    Ok(told(&event, stamp))
}
