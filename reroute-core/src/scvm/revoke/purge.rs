//! Closing what is left of a host's sockets, after its fence is proven.

use super::{Revoke, Stage};
use crate::ids::*;
use crate::scvm::RETRY_NS;
use crate::scvm::io::{Effect, Outcome, Purge};
use crate::timeline::Event;

/// The host's sockets are closed this long after the proof, not before it: a RST that reached the client while its
/// route still led here would make it reconnect into the closed door, and sleep for seconds. The fence does not
/// need it: the kernel drops what they carry.
const PURGE_AFTER_NS: u64 = SEC;
const PURGE_TRIES: u32 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Purging {
    /// `None` while it is under way.
    pub(super) at: Option<BootNs>,
    tries: u32,
}

impl Purging {
    pub(super) fn after(now: BootNs, at_once: bool) -> Purging {
        Purging { at: Some(now.plus(if at_once { 0 } else { PURGE_AFTER_NS })), tries: 0 }
    }
}

impl Revoke {
    /// The host is being admitted anew: its sockets are no leftovers any more.
    pub fn keep_sockets(&mut self) {
        if let Stage::Proven { purge, .. } = &mut self.stage {
            *purge = None;
        }
    }

    pub fn purged(&mut self, epoch: Epoch, result: &Outcome<Purge>, now: BootNs, out: &mut Vec<Effect>) {
        let Stage::Proven { purge, .. } = &mut self.stage else { return };
        let Some(Purging { at: None, tries }) = *purge else { return };
        if epoch != self.epoch {
            return;
        }
        let host = self.host;
        let problem = match result {
            Ok(Purge { left: 0, destroyed }) => {
                *purge = None;
                if *destroyed > 0 {
                    let event = Event::SocketsReset { count: *destroyed };
                    out.push(Effect::Journal { at: now, event });
                }
                return;
            }
            Ok(Purge { left, .. }) => format!("{left} connections of {host} are left after its fence"),
            Err(why) => format!("connections of {host} not closed after its fence: {why}"),
        };
        let again = Purging { at: Some(now.plus(RETRY_NS)), tries: tries + 1 };
        *purge = (again.tries < PURGE_TRIES).then_some(again);
        out.push(Effect::Journal { at: now, event: Event::Fault { what: problem } });
    }
}
