//! Whether the server may be killed for an unplanned revoke: is it hung, or is there only nothing to do?

use super::Settings;
use super::server::{Probed, Server};
use crate::ids::*;

/// Calls of a host that is shut out are waited for this long, if the server answers otherwise and replies leave for
/// nobody: longer than a slow disk takes, short beside what the host's virtual machines endure.
pub const UNANSWERED_NS: u64 = 300 * MS;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Judgement {
    Kill(String),
    Spare(&'static str),
    /// It is being asked.
    Open,
}

/// What the last NULL call says of a fence that stands since then. One that was sent before it and still waits says
/// more than one that is sent now, unless a reply has left since it was sent; an answer must be of now.
fn evidence(settings: &Settings, server: &Server, fenced_at: BootNs) -> Option<Probed> {
    let from = wanted_from(settings, server, fenced_at);
    let waits = |p: &Probed| !p.answered && p.took_ns >= settings.null_rpc_ns;
    server.probed().filter(|p| p.sent_at >= from || waits(p) && p.sent_at > server.facts().last_reply_at)
}

fn wanted_from(settings: &Settings, server: &Server, fenced_at: BootNs) -> BootNs {
    let from = BootNs(fenced_at.0.saturating_sub(settings.null_rpc_ns));
    let last_reply = server.facts().last_reply_at;
    if last_reply < fenced_at { from.max(last_reply.plus(1)) } else { from }
}

/// A probe sent then or later is wanted: at once if there is none, and now and then.
pub fn probe_from(settings: &Settings, server: &Server, fenced_at: BootNs) -> BootNs {
    match evidence(settings, server, fenced_at) {
        Some(probed) => probed.sent_at,
        None => wanted_from(settings, server, fenced_at),
    }
}

/// A NULL call waits in vain, and so does everybody else since it was sent.
pub fn answers_nothing(settings: &Settings, server: &Server, fenced_at: BootNs, now: BootNs) -> bool {
    let last_reply = server.facts().last_reply_at;
    let waited = |p: Probed| !p.answered && now.since(p.sent_at) >= settings.null_rpc_ns;
    server.is_alive()
        && !server.replies_leave(now)
        && evidence(settings, server, fenced_at)
            .is_some_and(|p| waited(p) && last_reply < p.sent_at.min(fenced_at))
}

/// Quiet is not hung: with its only client cut off, a healthy server sends no reply either. So it is asked, and
/// killed only if it gives no answer and nobody has got a reply since, or if its replies cannot leave. But one call
/// must not keep a host shut out for ever.
pub fn judge(settings: &Settings, server: &Server, fenced_at: BootNs, now: BootNs) -> Judgement {
    if !server.is_alive() {
        return Judgement::Spare("no server process is known that could be killed");
    }
    if server.replies_leave(now) {
        return Judgement::Spare("replies still leave: busy is not dead");
    }
    let last_reply = server.facts().last_reply_at;
    let quiet = now.since(last_reply) / MS;
    let probe = evidence(settings, server, fenced_at);
    // A call that was refused at once has waited for nobody.
    let early = |p: Probed| now.since(p.sent_at) < settings.null_rpc_ns;
    if answers_nothing(settings, server, fenced_at, now) {
        return Judgement::Kill(format!("a NULL call failed, no reply to anybody for {quiet} ms"));
    }
    // Replies that are in its sockets already will not leave them.
    if server.no_carrier.contains(&Network::Storage) {
        return Judgement::Kill(format!(
            "the storage NIC has no carrier, no reply to anybody for {quiet} ms"
        ));
    }
    if now.since(fenced_at.max(last_reply)) >= UNANSWERED_NS {
        let limit = UNANSWERED_NS / MS;
        return Judgement::Kill(format!(
            "unanswered {limit} ms since the fence and the last reply, no reply to anybody for {quiet} ms"
        ));
    }
    match probe {
        Some(probe) if !probe.answered && early(probe) => Judgement::Open,
        Some(probe) if probe.answered => {
            Judgement::Spare("the server answers NULL: quiet is not hung, its calls may finish")
        }
        Some(_) => Judgement::Spare("replies have left since the fence: busy is not dead"),
        // Nothing to tell while an answer is due.
        None if now.since(fenced_at) <= settings.null_rpc_ns.saturating_mul(2) => Judgement::Open,
        None => Judgement::Spare("the server is being asked whether it still answers"),
    }
}
