//! Who is blocked: Meta's list as ends by this node's clock, and the kernel's entries that follow it.
//!
//! The kernel compares the end with the clock itself, so that a block ends without anybody's help; entries are
//! pinned, so that it stands without anybody's help, too. A block is no fence: it changes no word and proves nothing.

use super::io::{Effect, Outcome};
use crate::block::BlockOrder;
use crate::ids::*;
use crate::timeline::Event;
use std::collections::BTreeMap;

/// What the kernel did not take is tried again after this.
const AGAIN_NS: u64 = 200 * MS;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Blocks {
    /// Of the list that is enforced; `None`: none was heard since this agent started, and the kernel's entries stand.
    version: Option<u64>,
    blocks: BTreeMap<BlockId, (HostId, BootNs)>,
    /// Ends as the kernel has them.
    standing: BTreeMap<HostId, BootNs>,
    /// Told to the kernel, answer outstanding; or failed, and to be told again then.
    setting: BTreeMap<HostId, (BootNs, Option<BootNs>)>,
}

impl Blocks {
    /// Meta's list. Times count from now: a copy that was long on its way makes no block longer, because an end that
    /// is known stays the earlier one.
    pub fn take(&mut self, order: BlockOrder, now: BootNs) {
        if self.version.is_some_and(|known| order.version < known) {
            return;
        }
        self.version = Some(order.version);
        let before = std::mem::take(&mut self.blocks);
        for entry in order.blocks {
            let until = now.plus(entry.remaining_ns);
            let until = before.get(&entry.id).map_or(until, |(_, known)| until.min(*known));
            self.blocks.insert(entry.id, (entry.host, until));
        }
    }

    /// The list of a session that begins: what was heard before it, perhaps of a store that was replaced, is void.
    pub fn begin(&mut self, order: BlockOrder, now: BootNs) {
        if self.version.is_some_and(|known| order.version < known) {
            self.version = None;
            self.blocks.clear();
        }
        self.take(order, now);
    }

    /// The end that stands in the kernel (0: none).
    pub fn learn(&mut self, host: HostId, until: BootNs) {
        self.standing.insert(host, until);
    }

    /// Until when a client is kept away by the kernel, if it is.
    pub fn until(&self, host: HostId, now: BootNs) -> Option<BootNs> {
        self.standing.get(&host).copied().filter(|until| now < *until)
    }

    /// How many clients the kernel keeps away.
    pub fn count(&self, now: BootNs) -> usize {
        self.standing.values().filter(|until| now < **until).count()
    }

    fn wanted(&self) -> BTreeMap<HostId, BootNs> {
        let mut wanted: BTreeMap<HostId, BootNs> =
            self.standing.keys().map(|host| (*host, BootNs(0))).collect();
        for (host, until) in self.blocks.values() {
            let end = wanted.entry(*host).or_default();
            *end = (*end).max(*until);
        }
        wanted
    }

    /// The version of the list that the kernel enforces; 0: not known to enforce any.
    pub fn enforced(&self) -> u64 {
        let stands = |(host, until): (&HostId, &BootNs)| self.standing.get(host) == Some(until);
        self.version.filter(|_| self.wanted().iter().all(stands)).unwrap_or(0)
    }

    pub fn tick(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        if self.version.is_none() {
            return;
        }
        for (host, until) in self.wanted() {
            let waits = self
                .setting
                .get(&host)
                .is_some_and(|(asked, again)| *asked == until && again.is_none_or(|at| at > now));
            if self.standing.get(&host) != Some(&until) && !waits {
                self.setting.insert(host, (until, None));
                out.push(Effect::SetBlock { host, until });
            }
        }
    }

    pub fn set(
        &mut self,
        host: HostId,
        until: BootNs,
        result: Outcome<()>,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        match result {
            Ok(()) => {
                if self.setting.get(&host).is_some_and(|(asked, _)| *asked == until) {
                    self.setting.remove(&host);
                }
                self.standing.insert(host, until);
                let event = Event::BlockSet { host, for_ns: until.since(now) };
                out.push(Effect::Journal { at: now, event });
            }
            Err(why) => {
                self.setting.insert(host, (until, Some(now.plus(AGAIN_NS))));
                let what = format!("the block of {host} is not enforced here: {why}");
                out.push(Effect::Journal { at: now, event: Event::Fault { what } });
            }
        }
    }

    pub fn wake_at(&self) -> Option<BootNs> {
        self.setting.values().filter_map(|(_, again)| *again).min()
    }
}
