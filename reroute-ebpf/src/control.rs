//! Userspace's commands: run on demand, so that admission changes atomically beside the packet path.

use crate::cell::Shared;
use crate::kernel::{self, repeat};
use crate::{admit, at, flow, maps, timer};
use core::ffi::c_void;
use reroute_common::admission::{Word, rank};
use reroute_common::control::{Command, MAGIC, op, result};
use reroute_common::flow::{MAX_FLOWS, state as flow_state};
use reroute_common::table::{MAX_CLIENTS, orphan};

/// Carries a command out, and writes the answer into it.
#[inline(always)]
pub fn run(command: Shared<Command>) {
    at!(command.result).set(result::INVALID);
    if at!(command.magic).get() != MAGIC {
        return;
    }
    let outcome = match at!(command.op).get() {
        op::READ => result::OK,
        op::ADMIT => raise(command, rank::ADMITTED),
        op::FENCE => raise(command, rank::FENCED),
        op::RENEW => renew(command),
        op::SERVER => server(command),
        op::START_TIMER => start_timer(),
        _ => return,
    };
    let Some(client) = maps::client(at!(command.client).get()) else { return };
    // The word first, then the counts, in this order: what was accepted before the word was closed is seen.
    at!(command.word).set(at!(client.word).get());
    at!(command.in_progress).set(at!(client.in_progress).get());
    at!(command.orphans).set(at!(client.orphans).get());
    at!(command.result).set(outcome);
}

#[inline(always)]
fn raise(command: Shared<Command>, rank: u8) -> u32 {
    let slot = at!(command.client).get();
    let Some(client) = maps::client(slot) else { return result::INVALID };
    if slot == 0 {
        return result::INVALID;
    }
    let to = Word::new(at!(command.epoch).get(), rank);
    if admit::raise(client, to) { result::OK } else { result::STALE }
}

#[inline(always)]
fn renew(command: Shared<Command>) -> u32 {
    let Some(server) = maps::server() else { return result::INVALID };
    at!(server.session_deadline).raise(at!(command.value).get());
    at!(server.session_deadline_no_agent).raise(at!(command.value2).get());
    result::OK
}

#[inline(always)]
fn start_timer() -> u32 {
    let (Some(config), Some(server)) = (maps::config(), maps::server()) else { return result::INVALID };
    let period = at!(config.timer_period_ns).get();
    if timer::start(server, period, kernel::now()) { result::OK } else { result::INVALID }
}

struct Forget {
    /// Connections opened later than this are the new server's.
    until: u64,
}

#[inline(always)]
fn server(command: Shared<Command>) -> u32 {
    let Some(server) = maps::server() else { return result::INVALID };
    let new = at!(command.value).get();
    let known = at!(server.incarnation).swap(new);
    // The first one we hear of is the one that serves already: its calls are in progress.
    if known == 0 || known == new {
        return result::OK;
    }
    let gone_at = at!(server.listener_gone_at).get();
    let mut forget = Forget { until: if gone_at == 0 { u64::MAX } else { gone_at } };
    repeat(MAX_CLIENTS, forget_orphans, &mut forget);
    repeat(MAX_FLOWS, forget_line, &mut forget);
    result::OK
}

/// A connection to the dead server is forgotten. One that the new server has had already, before we were told of it,
/// keeps its calls, and an orphan if anything of it was missed: all orphans have just gone.
unsafe extern "C" fn forget_line(index: u32, state: *mut c_void) -> i64 {
    // SAFETY: `repeat` hands over the state of `server`.
    let state = unsafe { &*state.cast::<Forget>() };
    let Some(line) = maps::flow(index) else { return 1 };
    if at!(line.state).get() == flow_state::FREE {
        return 0;
    }
    let Some(client) = maps::client(at!(line.client).get()) else { return 0 };
    let is_new = at!(line.opened_at).get() > state.until;
    if !is_new {
        flow::forget(line, client);
    } else if flow::missed_any(line) {
        flow::orphan(client, orphan::UNSEEN);
    }
    0
}

unsafe extern "C" fn forget_orphans(slot: u32, _: *mut c_void) -> i64 {
    let Some(client) = maps::client(slot) else { return 1 };
    let orphans = at!(client.orphans).get();
    if orphans != 0 {
        at!(client.orphans).decrease(orphans);
    }
    0
}
