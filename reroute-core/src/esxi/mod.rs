//! The next hops of ESXi hosts, where no agent can run: changed over ssh by the SCVM that Meta has appointed.
//!
//! Meta decides ([`crate::meta`], `driven`): who drives a host, and where to. The machine here carries that out for one
//! SCVM: it looks first, replaces only what it was told to leave, reads back, tries again with growing pauses, and
//! rehearses the login when there is nothing else to do. A wrong next hop makes no second writer: who is admitted is
//! not decided here, and a client that calls at another server is held there ([ADR 0025]).
//!
//! [ADR 0025]: ../../../docs/adr/0025-esxi-hosts.md

mod error;
mod messages;
pub mod table;
#[cfg(test)]
mod tests;

pub use error::DriveError;
pub use messages::{DriveReport, DrivenView, Wish};

use crate::ids::*;
use crate::timeline::Event;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use table::Found;

/// What is run on an ESXi host. Nothing in it comes from anywhere but checked addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    List,
    /// Remove one next hop (none: there is none), add another, list.
    Replace {
        address: Ipv4Addr,
        from: Option<Ipv4Addr>,
        to: Ipv4Addr,
    },
}

impl std::fmt::Display for Command {
    /// As the host's shell gets it: what is not the table goes to the error output.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Command::Replace { address, from, to } = self {
            if let Some(from) = from {
                write!(f, "esxcfg-route -d {address}/32 {from} >&2 && ")?;
            }
            write!(f, "esxcfg-route -a {address}/32 {to} >&2 && ")?;
        }
        f.write_str("esxcfg-route -l")
    }
}

/// Times in ns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    pub service: Ipv4Addr,
    /// Every next hop that leads to an SCVM.
    pub hops: BTreeMap<Ipv4Addr, Path>,
    /// A login that works is tried this often.
    pub rehearse_ns: u64,
    /// Meta repeats whom it has appointed; who has not heard it for so long is not appointed any more.
    pub forget_ns: u64,
}

impl Settings {
    pub const FORGET_NS: u64 = 3 * SEC;
}

/// Who has failed so many times in a row is passed over, if another SCVM can try.
pub const FAILURES: u32 = 2;
/// Pauses after failures: doubled with each, up to the second one, or to the time between rehearsals. Somebody waits for
/// a change; a rehearsal has time.
const CHANGE_AGAIN: (u64, u64) = (200 * MS, 5 * SEC);
const REHEARSE_AGAIN: u64 = SEC;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Tick,
    /// Meta's order, of a session that is open.
    Appointed {
        host: HostId,
        wish: Option<Wish>,
    },
    /// What came of [`Effect::Run`]: the command's output, or why there is none.
    Ran {
        host: HostId,
        result: Result<String, DriveError>,
        took_ns: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// → [`Input::Ran`]; one at a time per host.
    Run {
        host: HostId,
        command: Command,
    },
    Report {
        host: HostId,
        report: DriveReport,
    },
    Journal(Event),
}

/// One SCVM's part in driving hosts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Driver {
    settings: Settings,
    hosts: BTreeMap<HostId, Host>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Host {
    /// When Meta last said that this SCVM drives it; None: it does not.
    appointed: Option<BootNs>,
    wish: Option<Wish>,
    /// Number of the last wish that was carried out, and what was said of it.
    done: Option<(u64, DriveReport)>,
    running: Option<Command>,
    /// What the look before the running change took, ns.
    looked_ns: u64,
    failures: u32,
    again_at: BootNs,
    said: Option<DriveError>,
}

impl Host {
    /// The wish that is still to be carried out.
    fn open(&self) -> Option<&Wish> {
        self.wish.as_ref().filter(|w| self.done.as_ref().is_none_or(|(done, _)| *done != w.number))
    }
}

impl Driver {
    pub fn new(settings: Settings, hosts: impl IntoIterator<Item = HostId>) -> Driver {
        Driver { settings, hosts: hosts.into_iter().map(|id| (id, Host::default())).collect() }
    }

    pub fn handle(&mut self, input: Input, now: BootNs) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Tick => {}
            Input::Appointed { host, wish } => self.appointed(host, wish, now, &mut out),
            Input::Ran { host, result, took_ns } => self.ran(host, result, took_ns, now, &mut out),
        }
        self.forget(now);
        for (&id, host) in &mut self.hosts {
            if host.appointed.is_some() && host.running.is_none() && now >= host.again_at {
                host.running = Some(Command::List);
                out.push(Effect::Run { host: id, command: Command::List });
            }
        }
        out
    }

    /// When to send the next [`Input::Tick`]; None: nothing is due.
    pub fn wake_at(&self) -> Option<BootNs> {
        let idle = self.hosts.values().filter(|h| h.appointed.is_some() && h.running.is_none());
        idle.map(|h| h.again_at).min()
    }

    fn forget(&mut self, now: BootNs) {
        for host in self.hosts.values_mut() {
            if host.appointed.is_some_and(|at| now.since(at) > self.settings.forget_ns) {
                // What runs comes to its end; nothing follows from it.
                *host = Host { running: host.running, ..Host::default() };
            }
        }
    }

    fn appointed(&mut self, id: HostId, wish: Option<Wish>, now: BootNs, out: &mut Vec<Effect>) {
        let Some(host) = self.hosts.get_mut(&id) else {
            // No chance, and another SCVM may have one: it counts at once.
            let what =
                format!("{id} has no `esxi` entry in its configuration: make the configurations agree");
            let outcome = Err(DriveError::Local { what });
            let report = DriveReport { wish: 0, outcome, took_ns: 0, failures: FAILURES, again_ns: SEC };
            return out.push(Effect::Report { host: id, report });
        };
        if host.appointed.replace(now).is_none() {
            // A rehearsal at once: what is wrong is known before it is needed.
            host.again_at = now;
        }
        if host.wish != wish {
            if wish.is_some() {
                (host.again_at, host.failures) = (now, 0);
            }
            host.wish = wish;
        }
        // It was lost on its way.
        if let (Some(wish), Some((done, report))) = (&host.wish, &host.done)
            && wish.number == *done
        {
            out.push(Effect::Report { host: id, report: report.clone() });
        }
    }

    fn ran(
        &mut self,
        id: HostId,
        result: Result<String, DriveError>,
        took_ns: u64,
        now: BootNs,
        out: &mut Vec<Effect>,
    ) {
        let settings = &self.settings;
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let Some(command) = host.running.take() else { return };
        if host.appointed.is_none_or(|at| now.since(at) > settings.forget_ns) {
            return;
        }
        let took_ns = match command {
            Command::List => took_ns,
            Command::Replace { .. } => host.looked_ns.saturating_add(took_ns),
        };
        let outcome = result.and_then(|text| settings.read(&text)).and_then(|found| match command {
            Command::Replace { to, .. } if found != Some(to) => {
                let found = found.map_or("no route".to_string(), |at| at.to_string());
                Err(DriveError::NotTaken { found })
            }
            _ => Ok(found),
        });
        let outcome = outcome.and_then(|found| {
            let Some(wish) = host.open() else { return Ok(Next::Stands(found)) };
            let to = settings.address(wish.to)?;
            if found == Some(to) {
                return Ok(Next::Stands(found));
            }
            settings.may_leave(wish, found)?;
            Ok(Next::Replace(Command::Replace { address: settings.service, from: found, to }))
        });
        match outcome {
            Ok(Next::Replace(command)) => {
                host.looked_ns = took_ns;
                host.running = Some(command);
                out.push(Effect::Run { host: id, command });
            }
            Ok(Next::Stands(found)) => {
                if let Command::Replace { from, to, .. } = command {
                    let reason = host.wish.as_ref().map(|w| w.reason.clone()).unwrap_or_default();
                    out.push(Effect::Journal(Event::NextHopSet { host: id, from, to, took_ns, reason }));
                }
                if host.said.take().is_some() {
                    let what = format!("{id} can be driven again: its next hop was read");
                    out.push(Effect::Journal(Event::Fault { what }));
                }
                host.failures = 0;
                host.again_at = now.plus(settings.rehearse_ns);
                let wish = host.open().map_or(0, |w| w.number);
                let again_ns = settings.rehearse_ns;
                let report = DriveReport { wish, outcome: Ok(found), took_ns, failures: 0, again_ns };
                if wish != 0 {
                    host.done = Some((wish, report.clone()));
                }
                out.push(Effect::Report { host: id, report });
            }
            Err(error) => {
                let rehearse = (REHEARSE_AGAIN, settings.rehearse_ns);
                let (first, most) = if host.open().is_some() { CHANGE_AGAIN } else { rehearse };
                let again_ns = first.saturating_mul(1 << host.failures.min(20)).min(most);
                host.failures = host.failures.saturating_add(1);
                host.again_at = now.plus(again_ns);
                let wish = host.open().map_or(0, |w| w.number);
                if host.said.as_ref() != Some(&error) {
                    let what = format!(
                        "the next hop of {id} cannot be {}: {error}",
                        if wish > 0 { "changed" } else { "read" }
                    );
                    out.push(Effect::Journal(Event::Fault { what }));
                    host.said = Some(error.clone());
                }
                let failures = host.failures;
                let report = DriveReport { wish, outcome: Err(error), took_ns, failures, again_ns };
                out.push(Effect::Report { host: id, report });
            }
        }
    }
}

enum Next {
    Stands(Option<Ipv4Addr>),
    Replace(Command),
}

impl Settings {
    fn address(&self, to: Path) -> Result<Ipv4Addr, DriveError> {
        let hop = self.hops.iter().find(|(_, path)| **path == to).map(|(at, _)| *at);
        let what =
            || format!("{to} is no next hop in this SCVM's configuration: make the configurations agree");
        hop.ok_or_else(|| DriveError::Local { what: what() })
    }

    /// The next hop to the service address, if every line was understood and nobody else has a hand in it.
    fn read(&self, text: &str) -> Result<Option<Ipv4Addr>, DriveError> {
        let rows = table::parse(text).map_err(|table::Unexpected(what)| DriveError::Unexpected { what })?;
        match table::to_address(&rows, self.service) {
            Found::None => Ok(None),
            Found::Via(at) if self.hops.contains_key(&at) => Ok(Some(at)),
            Found::Via(at) => Err(DriveError::Foreign { what: format!("{}/32 via {at}", self.service) }),
            Found::Strange(what) => Err(DriveError::Foreign { what }),
        }
    }

    fn may_leave(&self, wish: &Wish, found: Option<Ipv4Addr>) -> Result<(), DriveError> {
        // No route is what a change that was cut short leaves behind, too.
        let Some(found) = found else { return Ok(()) };
        let path = self.hops.get(&found);
        // Another network of the same server is no other server.
        match path.is_some_and(|p| wish.leave.contains(&p.scvm) || p.scvm == wish.to.scvm) {
            true => Ok(()),
            false => Err(DriveError::Elsewhere { found }),
        }
    }
}
