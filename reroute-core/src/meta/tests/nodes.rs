//! The nodes of the [`World`]: SCVMs that obey and keep leases, a host that releases and affirms.

use super::world::{Packet, Scvm, Word, World};
use super::*;

impl World {
    pub(super) fn send(&mut self, from: NodeId, msg: ToMeta) {
        self.next += 1;
        let incarnation = match from {
            NodeId::Scvm(s) => self.scvms[&s].incarnation,
            NodeId::Host(_) => 1,
        };
        self.network.push(Packet::ToMeta { from, incarnation, seq: self.next, msg, sent: self.now });
    }

    /// An SCVM's beat: a keepalive, or a new session if the old one is over.
    pub fn beat(&mut self, id: ScvmId) {
        let now = self.now;
        let s = self.scvms.get_mut(&id).expect("configured");
        if !s.up {
            return;
        }
        let msg = match s.term {
            Some(term) if now < s.session_deadline => {
                let health = ServerHealth { blocks: s.blocks.unwrap_or(0), ..well() };
                ToMeta::KeepAlive { term, health }
            }
            _ => {
                s.since_open.clear();
                ToMeta::SessionOpen { boot: Incarnation(1), health: well() }
            }
        };
        self.send(NodeId::Scvm(id), msg);
    }

    /// The host's pulse reaches the server it affirms.
    pub fn pulse(&mut self) {
        let Some((epoch, id)) = self.host.at else { return };
        let deadline = self.now + settings(1).affirm_ns;
        let s = self.scvms.get_mut(&id).expect("configured");
        if s.word == (Word { epoch, fenced: false }) {
            s.affirm_deadline = deadline;
        }
        self.serve();
        self.check();
    }

    /// An SCVM dies (its kernel too) or comes up again; a new boot admits nobody, but remembers no fence either.
    pub fn power(&mut self, id: ScvmId) {
        let s = self.scvms.get_mut(&id).expect("configured");
        s.up = !s.up;
        if s.up {
            *s = Scvm { up: true, incarnation: s.incarnation + 1, ..Scvm::default() };
        } else {
            (s.session_deadline, s.affirm_deadline, s.term) = (0, 0, None);
            s.called = false;
        }
    }

    pub fn ask(&mut self, to: ScvmId, planned: bool) {
        let from_epoch = Epoch(self.host.at.map_or(0, |(e, _)| e).max(self.host.moving));
        let reason = "test".to_string();
        self.send(NodeId::Host(X), ToMeta::Move { from_epoch, to, planned, reason, evidence: vec![] });
    }

    pub fn report(&mut self) {
        let report = HostReport {
            epoch: Epoch(
                self.host.at.map_or(if self.host.evicted { self.host.moving } else { 0 }, |(e, _)| e),
            ),
            scvm: self.host.at.map(|(_, s)| s),
            released: (self.host.released > 0).then_some(Epoch(self.host.released)),
            ..HostReport::default()
        };
        self.send(NodeId::Host(X), ToMeta::HostReport { report });
    }

    pub(super) fn scvm_hears_reply(&mut self, id: ScvmId, reply: MetaReply, sent: u64, incarnation: u64) {
        let (now, lease) = (self.now, settings(1).session_ns);
        let s = self.scvms.get_mut(&id).expect("configured");
        if !s.up || s.incarnation != incarnation {
            return;
        }
        match reply {
            MetaReply::Session { term, logins, orders_to, blocks } => {
                s.blocks = Some(blocks.version);
                if s.term.is_some_and(|t| t > term) {
                    return;
                }
                let before = if s.term == Some(term) { s.orders_to } else { 0 };
                s.orders_to = before.max(orders_to);
                s.term = Some(term);
                s.session_deadline = s.session_deadline.max(sent + lease);
                let listed = logins.iter().find(|(h, _)| *h == X).map(|(_, e)| e.0);
                match listed {
                    Some(epoch) => s.word = s.word.max(Word { epoch, fenced: false }),
                    None if s.since_open.contains(&s.word.epoch) => {}
                    None => s.word.fenced = s.word.epoch > 0,
                }
            }
            MetaReply::Ok { term } if s.term == Some(term) && now < s.session_deadline => {
                s.session_deadline = s.session_deadline.max(sent + lease);
            }
            MetaReply::Ok { .. } => {}
            MetaReply::Refused { error } => {
                if error == Refusal::NoSession {
                    s.term = None;
                }
            }
        }
    }

    pub(super) fn scvm_obeys(&mut self, id: ScvmId, term: Term, seq: u64, order: Order) {
        let now = self.now;
        let s = self.scvms.get_mut(&id).expect("configured");
        if !s.up {
            return;
        }
        let in_session = s.term == Some(term) && now < s.session_deadline && seq > s.orders_to;
        if matches!(order, Order::Prepare { .. } | Order::Admit { .. }) && !in_session {
            return;
        }
        let answer = match order {
            Order::Blocks { list } => {
                s.blocks = s.blocks.max(Some(list.version));
                return;
            }
            Order::Prepare { host, epoch } => ToMeta::Prepared { host, epoch, error: None },
            Order::Revoke { host, epoch, planned } => {
                s.word = s.word.max(Word { epoch: epoch.0, fenced: true });
                if s.waits && planned {
                    let why = "test".into();
                    ToMeta::FenceWaits { host, epoch, in_progress: 1, orphans: 0, why }
                } else {
                    s.called &= s.word > Word { epoch: epoch.0, fenced: true };
                    ToMeta::Fenced { host, epoch, proof: FenceProof::Drained }
                }
            }
            Order::Admit { host, epoch } => {
                let word = Word { epoch: epoch.0, fenced: false };
                if s.cannot_admit || s.word > word {
                    ToMeta::Admitted { host, epoch, error: Some("cannot".into()) }
                } else {
                    s.word = word;
                    s.since_open.insert(epoch.0);
                    ToMeta::Admitted { host, epoch, error: None }
                }
            }
            _ => return,
        };
        self.send(NodeId::Scvm(id), answer);
    }

    pub(super) fn host_obeys(&mut self, order: Order) {
        let h = &mut self.host;
        match order {
            Order::Moving { from_epoch, epoch, .. } if epoch.0 > h.moving.max(h.at.map_or(0, |a| a.0)) => {
                h.moving = epoch.0;
                h.released = h.released.max(from_epoch.0);
                h.at = h.at.filter(|(e, _)| *e > from_epoch.0);
                let epoch = Epoch(h.released);
                if h.released > 0 {
                    self.send(NodeId::Host(X), ToMeta::Released { epoch });
                }
            }
            Order::Moving { from_epoch, .. } if h.released >= from_epoch.0 && h.released > 0 => {
                let epoch = Epoch(h.released);
                self.send(NodeId::Host(X), ToMeta::Released { epoch });
            }
            Order::At { scvm, epoch } if epoch.0 > h.released && epoch.0 >= h.moving => {
                h.at = Some((epoch.0, scvm));
                h.evicted = false;
                h.moving = epoch.0;
                let path = Path { scvm, network: Network::Storage };
                self.send(NodeId::Host(X), ToMeta::Arrived { epoch, path });
            }
            Order::Evicted { epoch, from_epoch, .. } if epoch.0 > h.moving.max(h.at.map_or(0, |a| a.0)) => {
                h.moving = epoch.0;
                h.released = h.released.max(from_epoch.0);
                h.at = None;
                h.evicted = true;
                let epoch = Epoch(h.released);
                self.send(NodeId::Host(X), ToMeta::Released { epoch });
            }
            Order::MoveRefused { .. } => h.refused += 1,
            _ => {}
        }
    }
}
