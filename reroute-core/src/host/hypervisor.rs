//! Whether the domain of the local SCVM is dead, by the hypervisor of this node.
//!
//! A name proves nothing: it may be mistyped, and a restarted SCVM bears it again. What was seen alive under the name
//! is remembered by its number and UUID, and only *that one* can be found dead: gone from the hypervisor's list, dying,
//! or shut down for good. Anything else (an answer that cannot be read, a paused, blocked or suspended domain) is no
//! proof.

use super::*;
use serde::{Deserialize, Serialize};

/// The list is read this often when nobody asks, to know the domain before it is needed.
const WATCH_NS: u64 = 5 * SEC;
/// ... and while it has not been seen yet.
const SEARCH_NS: u64 = SEC;
/// An answer that never comes must not end the story.
const LOST_NS: u64 = 30 * SEC;

/// One line of the hypervisor's list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Domain {
    pub id: u32,
    pub uuid: String,
    /// As the toolstack has it; empty if it could not tell.
    pub name: String,
    pub life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Life {
    /// Running, blocked, paused: its processors run, or may at any moment.
    Alive,
    /// Shut down to be suspended, or for a reason that does not say that it is for good.
    Suspended,
    /// Dying, crashed, powered off, or shut down to be started anew: this one never runs again.
    Dead,
}

/// A domain that was seen alive.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownDomain {
    pub id: u32,
    pub uuid: String,
    /// Boot of the node it ran on: numbers start anew with the next one.
    pub node_boot: u64,
    /// Boot of its own kernel, once a pulse has told.
    pub boot: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Hypervisor {
    name: String,
    node_boot: u64,
    /// Questions of Meta that the next answer is for, and those the answer on its way was begun for.
    asked: BTreeSet<(HostId, Epoch)>,
    answering: BTreeSet<(HostId, Epoch)>,
    reading_since: Option<BootNs>,
    read_at: Option<BootNs>,
    /// The known one was last seen suspended: if it is gone, it may go on elsewhere.
    suspended: bool,
    /// Kernel boot of the one before, which is dead.
    former: Option<u64>,
    said: String,
}

impl Hypervisor {
    pub fn new(name: String, node_boot: u64) -> Hypervisor {
        Hypervisor {
            name,
            node_boot,
            asked: BTreeSet::new(),
            answering: BTreeSet::new(),
            reading_since: None,
            read_at: None,
            suspended: false,
            former: None,
            said: String::new(),
        }
    }

    /// By its name, or under the names that a migration gives it.
    fn bears_name(&self, domain: &Domain) -> bool {
        let rest = domain.name.strip_prefix(&self.name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("--"))
    }
}

impl Machine {
    pub(super) fn domain_asked(
        &mut self,
        scvm: ScvmId,
        host: HostId,
        epoch: Epoch,
        now: BootNs,
        fx: &mut Effects,
    ) {
        if scvm == self.settings.local
            && let Some(hypervisor) = &mut self.hypervisor
        {
            hypervisor.asked.insert((host, epoch));
            self.watch_domain(now, fx);
        }
    }

    /// Reads the list when somebody waits for it, or when it is time.
    pub(super) fn watch_domain(&mut self, now: BootNs, fx: &mut Effects) {
        let every = if self.notes.domain.is_some() { WATCH_NS } else { SEARCH_NS };
        let Some(hypervisor) = &mut self.hypervisor else { return };
        let reads = hypervisor.reading_since.is_some_and(|since| now.since(since) < LOST_NS);
        let due = !hypervisor.asked.is_empty() || hypervisor.read_at.is_none_or(|at| now.since(at) >= every);
        if !reads && due {
            hypervisor.reading_since = Some(now);
            hypervisor.read_at = Some(now);
            // Only what is read from now on answers these.
            hypervisor.answering = std::mem::take(&mut hypervisor.asked);
            fx.push(Effect::AskHypervisor);
        }
    }

    pub(super) fn domains_read(
        &mut self,
        began: BootNs,
        result: Result<Vec<Domain>, String>,
        now: BootNs,
        fx: &mut Effects,
    ) {
        let Some(mut hypervisor) = self.hypervisor.take() else { return };
        let stray = hypervisor.reading_since.is_none_or(|since| began < since);
        if !stray {
            hypervisor.reading_since = None;
            let asked = std::mem::take(&mut hypervisor.answering);
            match result {
                Ok(domains) => {
                    self.faults.remove("hypervisor");
                    self.judge_domain(&mut hypervisor, &domains, &asked, began, now, fx);
                }
                Err(why) => {
                    self.fault("hypervisor", format!("the hypervisor's answer is of no use: {why}"), fx);
                }
            }
        }
        self.hypervisor = Some(hypervisor);
        self.write_notes(now, fx);
    }

    fn judge_domain(
        &mut self,
        hypervisor: &mut Hypervisor,
        domains: &[Domain],
        asked: &BTreeSet<(HostId, Epoch)>,
        began: BootNs,
        now: BootNs,
        fx: &mut Effects,
    ) {
        let known = self.notes.domain.clone();
        let is_known = |d: &Domain| known.as_ref().is_some_and(|k| k.id == d.id && k.uuid == d.uuid);
        let of_this_boot = known.as_ref().is_some_and(|k| k.node_boot == hypervisor.node_boot);
        let row = domains.iter().find(|d| of_this_boot && is_known(d));
        // Whatever else bears its name or its UUID, or whose name nobody can tell, may be the SCVM.
        let others: Vec<&Domain> = domains
            .iter()
            .filter(|d| {
                let same_uuid = known.as_ref().is_some_and(|k| k.uuid == d.uuid);
                let is_row = row.is_some_and(|r| std::ptr::eq(r, *d));
                !is_row
                    && d.life != Life::Dead
                    && (hypervisor.bears_name(d) || same_uuid || d.name.is_empty())
            })
            .collect();
        let dead = match (&known, row.map(|r| r.life)) {
            (None, _) => false,
            (Some(_), Some(Life::Dead)) => true,
            (Some(_), Some(Life::Alive)) => {
                hypervisor.suspended = false;
                false
            }
            (Some(_), Some(Life::Suspended)) => {
                hypervisor.suspended = true;
                false
            }
            (Some(_), None) => !hypervisor.suspended,
        };
        let what = match (&known, dead, row.map(|r| r.life)) {
            (None, ..) => format!("no domain {} has been seen alive yet", hypervisor.name),
            (Some(k), true, Some(_)) => format!("domain {} is dead (number {})", hypervisor.name, k.id),
            (Some(k), true, None) => format!("domain {} is gone (number {})", hypervisor.name, k.id),
            (Some(k), false, Some(Life::Alive)) => {
                format!("domain {} is alive (number {})", hypervisor.name, k.id)
            }
            (Some(k), false, _) => {
                format!("domain {} is suspended (number {}): it may go on", hypervisor.name, k.id)
            }
        };
        if hypervisor.said != what {
            hypervisor.said = what.clone();
            fx.push(Effect::Journal(Event::Domain { what }));
        }

        let local = self.settings.local;
        let facts = self.servers.get(&local).and_then(|s| s.facts);
        let heard = self.paths_of(local).filter_map(|(_, s)| s.last_reply).max();
        if let Some(known) = known.clone().filter(|_| dead) {
            let successor = !others.is_empty();
            // Its own kernel's, or (it never told) that of the one before, which is as dead.
            let boot = known.boot.or(hypervisor.former);
            // The dead do not answer. A kernel that was started after this one may.
            let answers = heard.is_some_and(|at| at >= began || now.since(at) < self.settings.path_lost_ns);
            let contradicted = answers && (!successor || facts.map(|f| f.scvm_boot) == known.boot);
            if contradicted && !successor && heard.is_some_and(|at| at >= began) {
                let what = format!(
                    "the hypervisor says that domain {} is dead, but {local} answers pulses: is [host] hypervisor.domain the right one?",
                    hypervisor.name
                );
                self.fault("domain", what, fx);
            }
            if !contradicted {
                self.faults.remove("domain");
                self.tell_dead(asked, successor, boot, fx);
                hypervisor.former = boot;
            }
            if let [only] = others[..]
                && only.life == Life::Alive
            {
                self.know(only, None, hypervisor.node_boot);
                hypervisor.suspended = false;
            }
            return;
        }
        match (known, row) {
            // The one before is dead, this one lives: so much can be said of the former.
            (Some(mut known), Some(_)) => {
                self.faults.remove("domain");
                if hypervisor.former.is_some() {
                    self.tell_dead(asked, true, hypervisor.former, fx);
                }
                // Heard while it lives, and not from the one before.
                let boot = facts.filter(|_| heard.is_some_and(|at| at >= began)).map(|f| f.scvm_boot);
                if boot.is_some() && boot != known.boot && boot != hypervisor.former {
                    known.boot = boot;
                    self.notes.domain = Some(known);
                }
            }
            (Some(_), None) => {}
            (None, _) => {
                if let [only] = others[..]
                    && only.life == Life::Alive
                    && only.name == hypervisor.name
                {
                    self.know(only, None, hypervisor.node_boot);
                }
            }
        }
    }

    fn know(&mut self, domain: &Domain, boot: Option<u64>, node_boot: u64) {
        let (id, uuid) = (domain.id, domain.uuid.clone());
        self.notes.domain = Some(KnownDomain { id, uuid, node_boot, boot });
    }

    /// Answers Meta. Of a domain with a successor only if it is known which kernel it ran.
    fn tell_dead(
        &self,
        asked: &BTreeSet<(HostId, Epoch)>,
        successor: bool,
        boot: Option<u64>,
        fx: &mut Effects,
    ) {
        let boot = match (successor, boot) {
            (false, _) => None,
            (true, Some(boot)) => Some(Incarnation(boot)),
            (true, None) => return,
        };
        let scvm = self.settings.local;
        for &(host, epoch) in asked {
            fx.push(Effect::Meta(ToMeta::DomainDead { scvm, host, epoch, boot }));
        }
    }
}
