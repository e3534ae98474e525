//! The block list: kept in the store, counted down by this node's clock, told to every SCVM.

use super::{Effect, SessionMaster, Ticket};
use crate::block::*;
use crate::ids::*;
use crate::proto::{Order, Refusal};
use crate::timeline::Event;
use std::collections::{BTreeMap, BTreeSet};

/// SCVMs that have not confirmed the list are told again after this.
const TELL_AGAIN_NS: u64 = 500 * MS;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Blocks {
    /// As the store holds it.
    list: BlockList,
    /// When each block that runs ends, by this node's clock.
    until: BTreeMap<BlockId, BootNs>,
    /// Those whose end is in the journal.
    said: BTreeSet<BlockId>,
    storing: Option<Storing>,
    told_at: BootNs,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Storing {
    list: BlockList,
    ticket: Ticket,
    done: Done,
}

impl Blocks {
    /// The list as it was found in the store; `wall` is the wall clock at `now`.
    pub(super) fn load(&mut self, list: BlockList, wall: WallMs, now: BootNs) {
        let before = std::mem::take(&mut self.until);
        for block in list.blocks.iter().filter(|b| b.removed.is_none()) {
            let remaining = list.remaining_ns(block, wall);
            // Of one that is counted down already, the wall clock is not asked again.
            if let Some(until) = before.get(&block.id) {
                self.until.insert(block.id, *until);
            } else if remaining > 0 {
                self.until.insert(block.id, now.plus(remaining));
            }
        }
        let until = &self.until;
        self.said.retain(|id| until.contains_key(id));
        self.list = list;
    }

    fn block(&self, id: BlockId) -> Option<&Block> {
        self.list.blocks.iter().find(|b| b.id == id)
    }

    /// The blocks that run, with their ends.
    fn running(&self, now: BootNs) -> impl Iterator<Item = (&Block, BootNs)> {
        let running = self.until.iter().filter(move |(_, until)| now < **until);
        running.filter_map(|(id, until)| Some((self.block(*id)?, *until)))
    }

    /// The block that keeps this client away longest.
    pub(super) fn of(&self, host: HostId, now: BootNs) -> Option<(&Block, BootNs)> {
        self.running(now).filter(|(b, _)| b.host == host).max_by_key(|(_, until)| *until)
    }

    pub(super) fn order(&self, now: BootNs) -> BlockOrder {
        let entry = |(block, until): (&Block, BootNs)| BlockEntry {
            id: block.id,
            host: block.host,
            remaining_ns: until.since(now),
        };
        BlockOrder { version: self.list.version, blocks: self.running(now).map(entry).collect() }
    }

    /// The next list, without those ends that nobody will ask for any more.
    fn changed(&self, wall: WallMs, change: impl FnOnce(&mut BlockList)) -> BlockList {
        let mut list = self.list.clone();
        list.version += 1;
        // Not earlier than it was: or what a clock that was set back gives away would be lost count of.
        list.written = wall.max(list.written);
        change(&mut list);
        let written = list.written;
        let old: Vec<BlockId> = list
            .blocks
            .iter()
            .filter(|b| b.removed.is_some() || written >= b.expires)
            .map(|b| b.id)
            .collect();
        let forget = old.get(..old.len().saturating_sub(REMEMBERED)).unwrap_or_default();
        list.blocks.retain(|b| !forget.contains(&b.id));
        list
    }
}

impl SessionMaster {
    /// With the blocks that the store holds; `wall` is the wall clock at `now`.
    pub fn with_blocks(mut self, list: BlockList, wall: WallMs, now: BootNs) -> SessionMaster {
        self.blocks.load(list, wall, now);
        self
    }

    /// Every block on record, ended ones too; oldest first.
    pub fn blocks(&self, now: BootNs) -> Vec<BlockView> {
        self.blocks.list.blocks.iter().map(|b| self.block_view(b, now)).collect()
    }

    pub(super) fn running_blocks(&self, now: BootNs) -> Vec<BlockView> {
        self.blocks.running(now).map(|(b, _)| self.block_view(b, now)).collect()
    }

    fn block_view(&self, block: &Block, now: BootNs) -> BlockView {
        let until = self.blocks.until.get(&block.id).copied().unwrap_or_default();
        let confirmed = |s: &super::Session| s.is_live() && s.health.blocks >= block.id.0;
        let unconfirmed = self.sessions.iter().filter(|(_, s)| !confirmed(s)).map(|(id, _)| *id);
        BlockView { block: block.clone(), remaining_ns: until.since(now), unconfirmed: unconfirmed.collect() }
    }

    /// Why a client may not log in or be moved.
    pub(super) fn blocked(&self, host: HostId, now: BootNs) -> Result<(), Refusal> {
        match self.blocks.of(host, now) {
            None => Ok(()),
            Some((block, until)) => Err(Refusal::Blocked {
                id: block.id,
                reason: block.reason.clone(),
                actor: block.actor.clone(),
                remaining_s: seconds(until.since(now)) + 1,
            }),
        }
    }

    /// A move that was asked for before the block, and is not on record, has not begun.
    fn drop_asked(&mut self, id: HostId, now: BootNs, out: &mut Vec<Effect>) {
        if let Err(error) = self.blocked(id, now)
            && let Some(ask) = self.hosts.get_mut(&id).and_then(|host| host.ask.take())
        {
            super::login::refuse(id, ask.wanted.to, error, out);
        }
    }

    pub(super) fn ask_block(
        &mut self,
        ticket: Ticket,
        ask: Ask,
        wall: WallMs,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        if let Err(denial) = self.try_ask(ticket, ask, wall, now, out) {
            out.push(Effect::Told { ticket, answer: Err(denial) });
        }
    }

    fn try_ask(
        &mut self,
        ticket: Ticket,
        ask: Ask,
        wall: WallMs,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) -> Result<(), Denial> {
        match ask {
            Ask::AddBlock { client, for_ms, reason, actor, sure } => {
                let host = self.client(&client)?;
                if reason.trim().is_empty() {
                    return Err(Denial::NoReason);
                }
                if for_ms == 0 || for_ms > LONGEST_MS {
                    return Err(Denial::BadDuration { for_ms });
                }
                if !sure && let Some((scvm, connections)) = self.serving(host, now) {
                    return Err(Denial::InUse { host, scvm, connections });
                }
                // By the clock that only goes forward, as far as this list knows it.
                let added = wall.max(self.blocks.list.written);
                let block = Block {
                    id: BlockId(self.blocks.list.version + 1),
                    host,
                    reason,
                    actor,
                    added,
                    for_ms,
                    expires: WallMs(added.0.saturating_add(for_ms)),
                    removed: None,
                };
                let new = block.clone();
                let list = self.blocks.changed(wall, |list| list.blocks.push(new));
                let done = Done::Blocked { block, version: list.version };
                self.store_blocks(list, ticket, done, out)
            }
            Ask::RemoveBlock { id, actor } => {
                let block = self.blocks.block(id).ok_or(Denial::UnknownBlock { id })?.clone();
                if let Some(Removed { actor, .. }) = block.removed {
                    return Err(Denial::BlockRemoved { id, host: block.host, actor });
                }
                let until = self.blocks.until.get(&id).copied().unwrap_or_default();
                if now >= until {
                    let ago_s = match until {
                        // It ended before this Meta started.
                        BootNs(0) => wall.0.saturating_sub(block.expires.0) / 1000,
                        until => seconds(now.since(until)),
                    };
                    return Err(Denial::BlockExpired { id, host: block.host, ago_s });
                }
                let removed = Removed { actor, at: wall };
                let list = self.blocks.changed(wall, |list| {
                    if let Some(block) = list.blocks.iter_mut().find(|b| b.id == id) {
                        block.removed = Some(removed.clone());
                    }
                });
                let block = Block { removed: Some(removed), ..block };
                let done = Done::Unblocked { block, version: list.version };
                self.store_blocks(list, ticket, done, out)
            }
            Ask::Evict { client, reason, actor } => {
                let host = self.client(&client)?;
                self.evict(ticket, host, reason, actor, now, out)
            }
        }
    }

    /// A client by what operators call it.
    fn client(&self, client: &str) -> Result<HostId, Denial> {
        let is = |h: &&HostInfo| {
            h.name == client
                || h.id.0.to_string() == client
                || [h.storage, h.management].iter().any(|a| a.to_string() == client)
        };
        let found = self.settings.hosts.iter().find(is).map(|h| h.id);
        found.ok_or_else(|| Denial::UnknownClient { client: client.into() })
    }

    fn store_blocks(
        &mut self,
        list: BlockList,
        ticket: Ticket,
        done: Done,
        out: &mut Vec<Effect>,
    ) -> Result<(), Denial> {
        if self.blocks.storing.is_some() {
            return Err(Denial::Busy);
        }
        out.push(Effect::StoreBlocks { expected: self.blocks.list.version, list: list.clone() });
        self.blocks.storing = Some(Storing { list, ticket, done });
        Ok(())
    }

    /// `found`: what the store holds now, if the change is not in it, or nobody can tell.
    pub(super) fn blocks_stored(
        &mut self,
        result: Result<(), (String, Option<BlockList>)>,
        wall: WallMs,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        let Some(Storing { list, ticket, done }) = self.blocks.storing.take() else { return };
        let answer = match result {
            Ok(()) => Ok(list),
            // It is there all the same.
            Err((_, Some(found))) if found == list => Ok(list),
            Err((why, found)) => Err((why, found)),
        };
        match answer {
            Ok(list) => {
                let event = match &done {
                    Done::Blocked { block: b, .. } => Event::BlockAdded {
                        id: b.id,
                        host: b.host,
                        reason: b.reason.clone(),
                        actor: b.actor.clone(),
                        for_ms: b.for_ms,
                    },
                    Done::Unblocked { block, .. } => Event::BlockEnded {
                        id: block.id,
                        host: block.host,
                        by: block.removed.as_ref().map(|r| r.actor.clone()),
                    },
                    Done::Evicted { .. } => return,
                };
                out.push(Effect::Journal(event));
                self.blocks.load(list, wall, now);
                if let Done::Blocked { block, .. } = &done {
                    self.drop_asked(block.host, now, out);
                }
                self.generation += 1;
                self.tell_blocks(None, now, out);
                out.push(Effect::Told { ticket, answer: Ok(done) });
            }
            Err((why, found)) => {
                let what = format!("the list of blocks was not stored: {why}");
                out.push(Effect::Journal(Event::Fault { what }));
                if let Some(found) = found.filter(|f| f.version > self.blocks.list.version) {
                    // Somebody else wrote: the store is the truth.
                    self.blocks.load(found, wall, now);
                    self.generation += 1;
                    self.tell_blocks(None, now, out);
                }
                out.push(Effect::Told { ticket, answer: Err(Denial::Store { why }) });
            }
        }
    }

    /// Tells every SCVM, or only `one`, what is blocked.
    pub(super) fn tell_blocks(&mut self, one: Option<ScvmId>, now: BootNs, out: &mut Vec<Effect>) {
        if self.blocks.list.version == 0 {
            return;
        }
        let list = self.blocks.order(now);
        for scvm in self.sessions.keys().copied().filter(|s| one.is_none_or(|o| o == *s)) {
            let order = Order::Blocks { list: list.clone() };
            out.push(Effect::Push { node: NodeId::Scvm(scvm), order });
        }
    }

    /// Blocks that have ended, and SCVMs that have not confirmed.
    pub(super) fn tick_blocks(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        let ended: Vec<BlockId> =
            self.blocks.until.iter().filter(|(_, u)| now >= **u).map(|(id, _)| *id).collect();
        for id in ended {
            let Some(host) = self.blocks.block(id).map(|b| b.host) else { continue };
            if !self.blocks.said.insert(id) {
                continue;
            }
            out.push(Effect::Journal(Event::BlockEnded { id, host, by: None }));
            self.generation += 1;
        }
        if now.since(self.blocks.told_at) < TELL_AGAIN_NS {
            return;
        }
        self.blocks.told_at = now;
        let version = self.blocks.list.version;
        let late = self.sessions.iter().filter(|(_, s)| s.is_live() && s.health.blocks != version);
        for scvm in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.tell_blocks(Some(scvm), now, out);
        }
    }
}
