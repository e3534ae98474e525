//! Whether the server listens, and the shield for the moments when it does not (design §4).

use crate::at;
use crate::cell::Shared;
use crate::{kernel, maps};
use core::ffi::c_void;
use reroute_common::event::{Event, kind};
use reroute_common::table::{Client, Config, Server, mode};

/// A client's pulses are live if the last one is not older than this, ns.
const LIVE: u64 = 200_000_000;

/// Looks the listener up; tells userspace when that changes.
#[inline(always)]
pub fn look(context: *mut c_void, config: Shared<Config>, server: Shared<Server>, now: u64) -> bool {
    let address = at!(config.service_address).address();
    let listening = kernel::listening(context, &address, at!(config.service_port).get() as u16);
    let known = at!(server.listening).get();
    if known != listening as u32 {
        if !listening {
            at!(server.listener_gone_at).set(now);
        }
        if at!(server.listening).replace(known, listening as u32) {
            let kind = if listening { kind::LISTENER_BACK } else { kind::LISTENER_GONE };
            maps::emit(&Event { waiting: at!(server.waiting).get(), ..Event::new(now, kind) });
        }
    }
    listening
}

/// Whether this client is to be spared a refusal at all: its host is alive, and will move it.
#[inline(always)]
pub fn may_spare(config: Shared<Config>, client: Shared<Client>, now: u64) -> bool {
    let pulse_at = at!(client.pulse_at).get();
    at!(config.mode).get() == mode::ENFORCE && pulse_at != 0 && now.saturating_sub(pulse_at) <= LIVE
}

/// Nobody listens: the client is spared the refusals for a while.
#[inline(always)]
pub fn shields(config: Shared<Config>, client: Shared<Client>, server: Shared<Server>, now: u64) -> bool {
    let gone_at = at!(server.listener_gone_at).get();
    may_spare(config, client, now)
        && gone_at != 0
        && now.saturating_sub(gone_at) <= at!(config.shield_ns).get()
}
