//! Answers to Meta's orders: each is sent until Meta has taken it in or a newer one of its kind stands.

use super::io::{Effect, Outcome, Tag};
use crate::ids::*;
use crate::proto::{MetaReply, ToMeta};
use crate::timeline::Event;
use std::collections::BTreeMap;

const RESEND_NS: u64 = 50 * MS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Prepared,
    Fence,
    Admitted,
    /// Not sent again: whoever wants it says so anew, with what is so by then.
    Wanted,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Letter {
    id: u64,
    msg: ToMeta,
    /// Set while it has to go out again.
    again_at: Option<BootNs>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Outbox {
    last_id: u64,
    letters: BTreeMap<(HostId, Kind), Letter>,
}

impl Outbox {
    pub fn send(&mut self, host: HostId, kind: Kind, msg: ToMeta, out: &mut Vec<Effect>) {
        self.last_id += 1;
        let id = self.last_id;
        out.push(Effect::Send { tag: Tag::Answer { id }, msg: msg.clone() });
        self.letters.insert((host, kind), Letter { id, msg, again_at: None });
    }

    pub fn reply(&mut self, id: u64, reply: Outcome<MetaReply>, now: BootNs, out: &mut Vec<Effect>) {
        let Some((&key, letter)) = self.letters.iter_mut().find(|(_, l)| l.id == id) else { return };
        match reply {
            // Orders come again by themselves: what Meta refuses is not sent a second time.
            Ok(MetaReply::Refused { error }) => {
                let what = format!("Meta refused {:?} of {}: {error}", key.1, key.0);
                out.push(Effect::Journal { at: now, event: Event::Fault { what } });
                self.letters.remove(&key);
            }
            Ok(_) => {
                self.letters.remove(&key);
            }
            Err(_) if key.1 == Kind::Wanted => {
                self.letters.remove(&key);
            }
            Err(_) => letter.again_at = Some(now.plus(RESEND_NS)),
        }
    }

    pub fn tick(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        for letter in self.letters.values_mut() {
            if letter.again_at.is_some_and(|at| at <= now) {
                letter.again_at = None;
                out.push(Effect::Send { tag: Tag::Answer { id: letter.id }, msg: letter.msg.clone() });
            }
        }
    }

    /// What was said of fences holds no more: it is not said again.
    pub fn forget_fences(&mut self) {
        self.letters.retain(|&(_, kind), _| kind != Kind::Fence);
    }

    pub fn forget(&mut self, which: impl Fn(HostId, Kind) -> bool) {
        self.letters.retain(|&(host, kind), _| !which(host, kind));
    }
    pub fn has(&self, host: HostId, kind: Kind) -> bool {
        self.letters.contains_key(&(host, kind))
    }
    pub fn count(&self, kind: Kind) -> usize {
        self.letters.keys().filter(|(_, k)| *k == kind).count()
    }

    pub fn wake_at(&self) -> Option<BootNs> {
        self.letters.values().filter_map(|l| l.again_at).min()
    }
}
