//! The data itself, and what must never happen to it (design §8, invariant 1; some of 4 and 6).

use super::settings::{Safeguard, Settings};
use super::tcp::Write;
use reroute_core::ids::*;
use reroute_core::meta::Record;
use reroute_core::proto::{FenceProof, LoginState};
use std::collections::BTreeMap;

/// What went wrong, in words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Violation {
    pub kind: Kind,
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Two kernels let the same host in at the same moment.
    TwoAdmit,
    /// A server let a call in after another one did so at a later epoch.
    TwoServe,
    /// A call from before a move was carried out after the new server's first reply.
    LateExecution,
    /// An acknowledged write was overwritten by an earlier one.
    StaleWrite,
    /// A write was acknowledged and is not there.
    LostWrite,
    /// A route to a server that never admitted the host.
    WrongRoute,
    /// A record that does not follow from the one before it, or whose proof is not its servers' to give.
    WrongRecord,
    /// Long after the last fault, a host still does no I/O where Meta's record says.
    Stuck,
}

/// A write as it was carried out; number 0: none was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Held {
    pub number: u64,
    by: Option<(ScvmId, Epoch)>,
}

/// One host's data.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Data {
    /// By block, the write that it holds.
    pub blocks: Vec<Held>,
    /// By block, the highest acknowledged one.
    pub acked: Vec<u64>,
    /// The storage's lease: the highest epoch that has written.
    pub owner: Epoch,
    /// The highest epoch at which a call was let in, and where.
    accepted: Option<(Epoch, ScvmId)>,
    /// The highest epoch at which each server has replied.
    replied: BTreeMap<ScvmId, Epoch>,
    /// The highest epoch each server has admitted the host at.
    admitted: BTreeMap<ScvmId, Epoch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Oracle {
    hosts: BTreeMap<HostId, Data>,
    /// Writes that came too late within one login, at one server: a segment of a connection that the
    /// host had given up came late, after a change of path. No move, and not covered by the protocol: docs/adr/0020.
    pub overtaken: u64,
    pub violations: Vec<Violation>,
}

impl Oracle {
    pub fn new(settings: &Settings) -> Oracle {
        let data = Data {
            blocks: vec![Held::default(); settings.load.blocks],
            acked: vec![0; settings.load.blocks],
            owner: Epoch(0),
            accepted: None,
            replied: BTreeMap::new(),
            admitted: BTreeMap::new(),
        };
        Oracle {
            hosts: settings.host_ids().map(|h| (h, data.clone())).collect(),
            overtaken: 0,
            violations: Vec::new(),
        }
    }

    pub fn data(&self, host: HostId) -> Option<&Data> {
        self.hosts.get(&host)
    }

    pub fn say(&mut self, kind: Kind, what: String) {
        self.violations.push(Violation { kind, what });
    }

    /// `scvm` admits the host at `epoch` from now on.
    pub fn admitted(&mut self, host: HostId, scvm: ScvmId, epoch: Epoch) {
        if let Some(data) = self.hosts.get_mut(&host) {
            let known = data.admitted.entry(scvm).or_default();
            *known = epoch.max(*known);
        }
    }

    /// A call got in. `doubtful`: this server's machine stood still since it admitted the host, and nobody can vouch
    /// for its leases.
    pub fn accepted(&mut self, host: HostId, scvm: ScvmId, epoch: Epoch, doubtful: bool) {
        let Some(data) = self.hosts.get_mut(&host) else { return };
        match data.accepted {
            Some((later, other)) if later > epoch && other != scvm && !doubtful => {
                let what =
                    format!("{scvm} let a call of {host} in at {epoch}, after {other} did so at {later}");
                self.say(Kind::TwoServe, what);
            }
            Some((known, _)) if known >= epoch => {}
            _ => data.accepted = Some((epoch, scvm)),
        }
    }

    /// A server carries a write out. False: the storage refused it.
    pub fn execute(
        &mut self,
        settings: &Settings,
        host: HostId,
        scvm: ScvmId,
        (write, epoch, owner): (Write, Epoch, Option<Epoch>),
    ) -> bool {
        let Some(data) = self.hosts.get_mut(&host) else { return false };
        if let Some(owner) = owner
            && owner < data.owner
            && settings.has(Safeguard::EpochCheck)
        {
            return false;
        }
        // Every server takes the ownership; only those whose policy rests on it are refused without.
        data.owner = data.owner.max(owner.unwrap_or(epoch));
        let later = data.replied.iter().filter(|(s, _)| **s != scvm).max_by_key(|(_, e)| **e);
        let late = later.filter(|(_, replied)| **replied > epoch).map(|(s, e)| (*s, *e));
        let acked = data.acked[write.block];
        let held = data.blocks[write.block];
        if write.number < held.number && held.by == Some((scvm, epoch)) {
            // Counted, and left out, so that what else may happen to this block is seen.
            self.overtaken += 1;
            return true;
        }
        data.blocks[write.block] = Held { number: write.number, by: Some((scvm, epoch)) };
        if let Some((other, replied)) = late {
            let what = format!(
                "write {} of {host}, let in by {scvm} at {epoch}, was carried out after {other} had replied at {replied}",
                write.number
            );
            self.say(Kind::LateExecution, what);
        }
        if write.number < acked {
            let what = format!(
                "block {} of {host}: {scvm} ({epoch}) put write {} over the acknowledged {acked}",
                write.block, write.number
            );
            self.say(Kind::StaleWrite, what);
        }
        true
    }

    /// A reply leaves.
    pub fn replied(&mut self, host: HostId, scvm: ScvmId, epoch: Epoch) {
        if let Some(data) = self.hosts.get_mut(&host) {
            let known = data.replied.entry(scvm).or_default();
            *known = epoch.max(*known);
        }
    }

    /// The client has its answer.
    pub fn acknowledged(&mut self, host: HostId, write: Write) {
        let Some(data) = self.hosts.get_mut(&host) else { return };
        let there = data.blocks[write.block];
        let known = &mut data.acked[write.block];
        *known = write.number.max(*known);
        let there = there.number;
        if there < write.number {
            let what = format!("write {} of {host} was acknowledged, the block holds {there}", write.number);
            self.say(Kind::LostWrite, what);
        }
    }

    /// The host's kernel takes a route.
    pub fn routed(&mut self, host: HostId, path: Path) {
        let Some(data) = self.hosts.get(&host) else { return };
        if !data.admitted.contains_key(&path.scvm) {
            self.say(Kind::WrongRoute, format!("{host} goes to {path}, which never admitted it"));
        }
    }

    /// The store takes a record.
    pub fn recorded(&mut self, settings: &Settings, old: Option<&Record>, new: &Record) {
        if let Err(why) = follows(settings, old, new) {
            self.say(Kind::WrongRecord, format!("{why}: {old:?} -> {new:?}"));
        }
    }
}

fn follows(settings: &Settings, old: Option<&Record>, new: &Record) -> Result<(), &'static str> {
    let epoch = old.map_or(Epoch(0), |r| r.epoch());
    if new.epoch() < epoch {
        return Err("epochs only grow");
    }
    if let LoginState::Moving { .. } = new.login.state {
        let next = new.epoch() == epoch || new.epoch() == epoch.next();
        return if next { Ok(()) } else { Err("a move takes the next epoch") };
    }
    let LoginState::At { scvm, proof, .. } = new.login.state else { return Ok(()) };
    let Some(old) = old else { return Err("a login begins with a move") };
    let fencing = match &old.login.state {
        LoginState::Moving { fencing, to, epoch, .. } if *to == scvm && *epoch == new.epoch() => fencing,
        LoginState::At { .. } if old.login.state == new.login.state => return Ok(()),
        _ => return Err("a login stands only where a move on record led"),
    };
    let others: Vec<ScvmId> = fencing.iter().map(|f| f.scvm).filter(|s| *s != scvm).collect();
    let policy = |p| others.iter().any(|s| settings.policy(*s) == p);
    let right = match proof {
        FenceProof::FirstLogin => old.from.is_none() && others.is_empty(),
        FenceProof::SameServer => others.is_empty(),
        FenceProof::Killed => policy(FencePolicy::Kill),
        FenceProof::Storage | FenceProof::LeaseExpiredStorage => policy(FencePolicy::Storage),
        _ => !others.is_empty(),
    };
    if right { Ok(()) } else { Err("the proof is not one of these servers'") }
}
