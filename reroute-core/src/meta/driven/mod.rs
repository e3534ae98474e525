//! ESXi hosts: which SCVM changes their next hop over ssh, and where to ([`crate::esxi`]).
//!
//! | file | decides |
//! |---|---|
//! | here | whom to appoint, what an order says, what a report means |
//! | `failed` | whether the server a host is at has failed, on what evidence |
//! | `choice` | whether to leave, and where to |
//!
//! Nothing here admits anybody: the login follows the client's calls as that of every client without an agent, with the
//! same proofs. All of it is in the leader's memory; a new leader appoints anew, and rehearses first.

mod choice;
mod failed;

use super::login::push;
use super::wanted::Budget;
use super::{Effect, SessionMaster};
use crate::esxi::{DriveError, DriveReport, DrivenView, FAILURES, Wish};
use crate::host::choice::HoldDown;
use crate::ids::*;
use crate::proto::*;
use crate::timeline::Event;
use choice::Cause;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Who is appointed hears it this often.
const REPEAT_NS: u64 = SEC;
/// An SCVM that has failed to log in [`FAILURES`] times is passed over for this long, if there is another.
const PASSED_OVER_NS: u64 = 60 * SEC;

/// What holds for ESXi hosts. Times in ns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct DrivenSettings {
    pub hosts: BTreeSet<HostId>,
    /// A better place must have been well for so long before a host goes there; doubling with each departure ...
    pub hold_down_ns: u64,
    /// ... up to this.
    pub hold_down_max_ns: u64,
    /// A login that works is tried this often.
    pub rehearse_ns: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Driven {
    hosts: BTreeMap<HostId, Host>,
    peers: failed::Peers,
    /// A host whose next hop nobody has read for so long is an alarm.
    unrehearsed_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Host {
    since: BootNs,
    by: Option<ScvmId>,
    order_at: BootNs,
    wish: Option<(Wish, Cause)>,
    /// Of the wishes of this term.
    wishes: u32,
    /// The last wish that was carried out: where to, and when.
    done: Option<(Path, BootNs)>,
    /// When its next hop was last read, and what it was.
    read: Option<(BootNs, Option<Ipv4Addr>)>,
    /// The last attempt, if it failed.
    failed: Option<(BootNs, DriveReport)>,
    passed_over: BTreeMap<ScvmId, BootNs>,
    /// Since when the place it is at has failed.
    failing: Option<BootNs>,
    hold: HoldDown,
    budget: Budget,
}

impl Driven {
    pub(super) fn new(settings: DrivenSettings, now: BootNs) -> Driven {
        let host = Host {
            since: now,
            by: None,
            order_at: now,
            wish: None,
            wishes: 0,
            done: None,
            read: None,
            failed: None,
            passed_over: BTreeMap::new(),
            failing: None,
            hold: HoldDown::new(settings.hold_down_ns, settings.hold_down_max_ns, now),
            budget: Budget::default(),
        };
        let hosts = settings.hosts.iter().map(|id| (*id, host.clone())).collect();
        let unrehearsed_ns = settings.rehearse_ns.saturating_mul(2).saturating_add(30 * SEC);
        Driven { hosts, peers: failed::Peers::default(), unrehearsed_ns }
    }
}

impl SessionMaster {
    pub(super) fn drive(&mut self, now: BootNs, out: &mut Vec<Effect>) {
        if self.driven.hosts.is_empty() || !self.leads(now) {
            return;
        }
        let mut driven = std::mem::take(&mut self.driven);
        let places: BTreeSet<ScvmId> =
            driven.hosts.iter().filter_map(|(id, host)| Some(self.place(*id, host)?.scvm)).collect();
        self.ask_peers(&mut driven.peers, &places, now, out);
        for (&id, host) in &mut driven.hosts {
            let appointed = self.appoint(id, host, now, out);
            let decided = self.decide(id, host, &driven.peers, now, out);
            self.generation += u64::from(appointed || decided);
            if let Some(by) = host.by
                && (appointed || decided || now >= host.order_at)
            {
                host.order_at = now.plus(REPEAT_NS);
                let wish = host.wish.as_ref().map(|(wish, _)| wish.clone());
                push(NodeId::Scvm(by), Order::Drive { host: id, wish }, out);
            }
        }
        self.driven = driven;
    }

    /// The server of its login: it may be the next to die.
    fn server_of(&self, id: HostId) -> Option<ScvmId> {
        match self.hosts.get(&id)?.record()?.login.state {
            LoginState::At { scvm, .. } => Some(scvm),
            LoginState::Moving { to, .. } => Some(to),
            LoginState::Evicted { .. } => None,
        }
    }

    /// An SCVM with a live session, which has not failed at it lately; rather not the one that serves the host: what it
    /// is appointed for is that one's death. Who is appointed stays so while nobody is better.
    fn appoint(&self, id: HostId, host: &mut Host, now: BootNs, out: &mut Vec<Effect>) -> bool {
        host.passed_over.retain(|_, at| now.since(*at) < PASSED_OVER_NS);
        let server = self.server_of(id);
        let live = self.sessions.iter().filter(|(_, s)| s.is_live());
        let grade = |(scvm, session): &(&ScvmId, &super::sessions::Session)| {
            let scvm = **scvm;
            let failed = host.passed_over.contains_key(&scvm);
            (failed, server == Some(scvm), session.state != SessionState::Alive, host.by != Some(scvm), scvm)
        };
        let best = live.min_by_key(grade).map(|(scvm, _)| *scvm);
        if best == host.by {
            return false;
        }
        if let Some(scvm) = best {
            let why = match host.by {
                None => "nobody was".to_string(),
                Some(by) if host.passed_over.contains_key(&by) => format!("{by} cannot log in there"),
                Some(by) if server == Some(by) => format!("{by} serves it"),
                Some(by) => format!("{by} has no session that is well"),
            };
            out.push(Effect::Journal(Event::Appointed { host: id, scvm, why }));
        }
        // Whoever was appointed before does nothing more of what it was last told.
        if let Some(by) = host.by {
            push(NodeId::Scvm(by), Order::Drive { host: id, wish: None }, out);
        }
        host.by = best;
        true
    }

    /// What a next hop leads to. None: no SCVM.
    fn path_of(&self, id: HostId, hop: Option<Ipv4Addr>) -> Option<Path> {
        let Some(hop) = hop else {
            let local = self.settings.hosts.iter().find(|h| h.id == id)?.local_scvm;
            return Some(Path { scvm: local, network: Network::Private });
        };
        let networks = [Network::Storage, Network::Management];
        self.settings.scvms.iter().find_map(|info| {
            let network = networks.into_iter().find(|n| info.address(*n) == Some(IpAddr::V4(hop)))?;
            Some(Path { scvm: info.id, network })
        })
    }

    /// Where its calls go, as far as is known: to the server of its login, or to where its next hop was changed since.
    fn place(&self, id: HostId, host: &Host) -> Option<Path> {
        let scvm = self.server_of(id)?;
        let since = self.hosts.get(&id)?.since;
        if let Some((path, _)) = host.done.filter(|(_, at)| *at > since) {
            return Some(path);
        }
        let read = host.read.and_then(|(_, hop)| self.path_of(id, hop)).filter(|p| p.scvm == scvm);
        Some(read.unwrap_or(Path { scvm, network: Network::Storage }))
    }

    pub(super) fn driven_report(
        &mut self,
        scvm: ScvmId,
        id: HostId,
        report: DriveReport,
        now: BootNs,
    ) -> Result<(), Refusal> {
        let host = self.driven.hosts.get_mut(&id).ok_or(Refusal::UnknownNode { node: NodeId::Host(id) })?;
        // Of one who is not appointed any more: somebody else tells how it stands.
        if host.by != Some(scvm) {
            return Ok(());
        }
        self.generation += 1;
        match &report.outcome {
            Ok(hop) => {
                host.read = Some((now, *hop));
                host.failed = None;
                host.passed_over.remove(&scvm);
                if let Some((wish, _)) = host.wish.take_if(|(wish, _)| wish.number == report.wish) {
                    host.done = Some((wish.to, now));
                    // Nothing more to do: it hears so at once.
                    host.order_at = now;
                }
            }
            Err(error) => {
                if report.failures >= FAILURES && is_of_the_way(error) {
                    host.passed_over.insert(scvm, now);
                }
                host.failed = Some((now, report));
            }
        }
        Ok(())
    }

    pub(super) fn driven_view(&self, id: HostId, now: BootNs) -> Option<DrivenView> {
        let host = self.driven.hosts.get(&id)?;
        let failed = host.failed.as_ref();
        Some(DrivenView {
            by: host.by,
            rehearsed_ns: host.read.map(|(at, _)| now.since(at)),
            next_hop: host.read.and_then(|(_, hop)| hop),
            error: failed.and_then(|(_, report)| report.outcome.clone().err()),
            error_age_ns: failed.map(|(at, _)| now.since(*at)),
            failures: failed.map_or(0, |(_, report)| report.failures),
            wish: host.wish.as_ref().map(|(wish, _)| wish.clone()),
        })
    }

    /// Of a host without an agent, at a server that it is to leave.
    pub(super) fn why_driven_stays(&self, id: HostId) -> String {
        match self.driven.hosts.get(&id) {
            None => "it has no agent: it leaves when its next hop is changed".into(),
            Some(Host { wish: Some((wish, _)), .. }) => {
                format!("its next hop is being changed to {}", wish.to)
            }
            Some(_) => {
                "its next hop is changed when another SCVM can take it; it leaves with its next call".into()
            }
        }
    }

    pub(super) fn driven_alarms(&self, now: BootNs) -> Vec<String> {
        let alarm = |(id, host): (&HostId, &Host)| {
            let name = self.settings.hosts.iter().find(|h| h.id == *id).map_or("", |h| h.name.as_str());
            let Some(by) = host.by else {
                return Some(format!("{name}: no SCVM has a live session: nobody can change its next hop"));
            };
            if let Some((at, DriveReport { outcome: Err(error), failures, again_ns, .. })) = &host.failed {
                let left = again_ns.saturating_sub(now.since(*at)).div_ceil(SEC);
                return Some(format!(
                    "{name}: {by} cannot drive its next hop ({}, {failures} times): {error}; tried again within {left} s",
                    error.name()
                ));
            }
            let quiet = now.since(host.read.map_or(host.since, |(at, _)| at));
            (quiet > self.driven.unrehearsed_ns).then(|| {
                format!("{name}: {by} has not rehearsed its login for {} s: look at its journal", quiet / SEC)
            })
        };
        self.driven.hosts.iter().filter_map(alarm).collect()
    }
}

/// Another SCVM may have more luck. What the host itself answers it would answer anybody.
fn is_of_the_way(error: &DriveError) -> bool {
    match error {
        DriveError::Filtered { .. }
        | DriveError::Refused
        | DriveError::Unreachable { .. }
        | DriveError::TimedOut { .. }
        | DriveError::HostKey { .. }
        | DriveError::KeyRefused
        | DriveError::LoginRefused
        | DriveError::Ssh { .. }
        | DriveError::Local { .. } => true,
        DriveError::CommandFailed { .. }
        | DriveError::Unexpected { .. }
        | DriveError::Foreign { .. }
        | DriveError::Elsewhere { .. }
        | DriveError::NotTaken { .. } => false,
    }
}
