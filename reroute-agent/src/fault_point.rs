//! A hook for tests: the process aborts at one step of a move, named by `REROUTE_FAULT_POINT=before-STEP` or `after-STEP`.
//!
//! Inert unless that variable is set. It is read once, and can only end the process: whatever a crash must not do,
//! this cannot do either. The steps are those of the first move that begins after the start, in the order in which the
//! effects of `reroute_core::host` and `reroute_core::meta` are carried out; what is not listed here has no point.

use reroute_core::host::{self, PulseFlag};
use reroute_core::meta;
use reroute_core::proto::{LoginState, Order, ToMeta};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

pub const VARIABLE: &str = "REROUTE_FAULT_POINT";

/// Steps of the host agent, in the order of a move.
pub const HOST: [&str; 9] = [
    "ask",
    "persist-released",
    "release-pulse",
    "tell-released",
    "tell-fenced",
    "persist-login",
    "replace-route",
    "destroy-sockets",
    "tell-arrived",
];

/// Steps of Meta, in the order of a move.
pub const META: [&str; 7] =
    ["prepare", "store-moving", "tell-moving", "revoke", "admit", "store-at", "tell-at"];

pub fn of_host(effect: &host::Effect) -> Option<&'static str> {
    use host::Effect;
    Some(match effect {
        Effect::Meta(ToMeta::Move { .. }) => "ask",
        Effect::Persist(record) if record.released.is_some_and(|released| released >= record.epoch) => {
            "persist-released"
        }
        Effect::SendPulse { flag: PulseFlag::Release, .. } => "release-pulse",
        Effect::Meta(ToMeta::Released { .. }) => "tell-released",
        Effect::Meta(ToMeta::FencedByPulse { .. }) => "tell-fenced",
        Effect::Persist(_) => "persist-login",
        Effect::ReplaceRoute { .. } => "replace-route",
        Effect::DestroySockets { .. } => "destroy-sockets",
        Effect::Meta(ToMeta::Arrived { .. }) => "tell-arrived",
        _ => return None,
    })
}

pub fn of_meta(effect: &meta::Effect) -> Option<&'static str> {
    use meta::Effect;
    Some(match effect {
        Effect::Push { order: Order::Prepare { .. }, .. } => "prepare",
        Effect::Store { record, .. } => of_record(record),
        Effect::Push { order: Order::Moving { .. }, .. } => "tell-moving",
        Effect::Push { order: Order::Revoke { .. }, .. } => "revoke",
        Effect::Push { order: Order::Admit { .. }, .. } => "admit",
        Effect::Push { order: Order::At { .. }, .. } => "tell-at",
        _ => return None,
    })
}

pub fn of_record(record: &meta::Record) -> &'static str {
    match record.login.state {
        LoginState::Moving { .. } => "store-moving",
        LoginState::At { .. } => "store-at",
        LoginState::Evicted { .. } => "store-evicted",
    }
}

pub fn before(step: Option<&'static str>) {
    reached("before", step);
}

pub fn after(step: Option<&'static str>) {
    reached("after", step);
}

fn reached(side: &str, step: Option<&'static str>) {
    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    static MOVING: AtomicBool = AtomicBool::new(false);
    let (Some(step), Some(wanted)) = (
        step,
        WANTED.get_or_init(|| std::env::var(VARIABLE).ok().filter(|point| !point.is_empty())).as_deref(),
    ) else {
        return;
    };
    // Some of these things are done at the start as well.
    let moving = MOVING.fetch_or(matches!(step, "ask" | "prepare"), Ordering::Relaxed);
    let begins = matches!(step, "ask" | "prepare");
    if (moving || begins) && wanted.strip_prefix(side).and_then(|w| w.strip_prefix('-')) == Some(step) {
        tracing::error!(point = wanted, "{VARIABLE}: ends here");
        std::process::abort();
    }
}
