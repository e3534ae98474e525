//! The route to the service address: a /32 in the main table.
//!
//! The kernel does not tell owners apart: a replace takes whatever stands at the same prefix, tos and metric, whoever
//! set it. So we look first; what carries another protocol number is a named error until it is adopted.

use super::connection::{Connection, invalid, messages};
use super::monitor::{Heard, Monitor};
use anyhow::Context;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, Parseable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use tokio::sync::mpsc;

/// A /32 to the service address, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Who set it (rtm_protocol).
    pub protocol: u8,
    pub gateway: Option<Ipv4Addr>,
    /// Interface index.
    pub oif: Option<u32>,
    pub source: Option<Ipv4Addr>,
    pub metric: u32,
    pub tos: u8,
    /// Not a plain unicast route: several next hops, a nexthop object, blackhole, ...
    pub special: bool,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.special {
            f.write_str("special ")?;
        }
        if let Some(gateway) = self.gateway {
            write!(f, "via {gateway} ")?;
        }
        if let Some(oif) = self.oif {
            write!(f, "dev #{oif} ")?;
        }
        write!(f, "proto {} metric {}", self.protocol, self.metric)
    }
}

/// Where the route shall lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    pub gateway: Ipv4Addr,
    /// Interface index.
    pub oif: u32,
    /// The host's own address there: what the server will see.
    pub source: Ipv4Addr,
}

#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    #[error(
        "a route to {service} that is not ours stands ({found}): remove it, or take it over with `reroute-agent route adopt`"
    )]
    ForeignRoute { service: Ipv4Addr, found: Route },
    #[error(
        "the route to {service} reads back as [{found}] after it was set: another program changes it too"
    )]
    NotReadBack { service: Ipv4Addr, found: String },
    #[error("route to {service} via {}: {source}", .hop.gateway)]
    Replace { service: Ipv4Addr, hop: NextHop, source: io::Error },
    #[error("route to {service}: {source}")]
    Io { service: Ipv4Addr, source: io::Error },
}

/// The routes to one service address.
pub struct Table {
    connection: Connection,
    service: Ipv4Addr,
    protocol: u8,
}

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

impl Table {
    /// `protocol` is our mark. Works in the calling thread's network namespace.
    pub fn open(service: Ipv4Addr, protocol: u8) -> io::Result<Table> {
        Ok(Table { connection: Connection::open(NETLINK_ROUTE)?, service, protocol })
    }

    /// Every /32 to the service address in the main table, whoever set it.
    pub fn read(&mut self) -> Result<Vec<Route>, RouteError> {
        let service = self.service;
        self.connection
            .dump(
                RouteNetlinkMessage::GetRoute(RouteMessageBuilder::<Ipv4Addr>::new().build()),
                Vec::new,
                |found, kind, payload| {
                    if kind == RTM_NEWROUTE {
                        found.extend(decode(payload, service)?);
                    }
                    Ok(())
                },
            )
            .map_err(|source| RouteError::Io { service, source })
    }

    /// The first of `routes` that is not ours.
    pub fn foreign<'a>(&self, routes: &'a [Route]) -> Option<&'a Route> {
        routes.iter().find(|r| r.protocol != self.protocol)
    }

    /// Sets the route in one step, so that no packet finds none, and reads it back. With `adopt`, what others have
    /// set is taken over; without, it is a [`RouteError::ForeignRoute`] and stays untouched.
    pub fn replace(&mut self, hop: NextHop, adopt: bool) -> Result<Route, RouteError> {
        let service = self.service;
        let before = self.read()?;
        if let Some(found) = self.foreign(&before).filter(|_| !adopt) {
            return Err(RouteError::ForeignRoute { service, found: found.clone() });
        }
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(service, 32)
            .gateway(hop.gateway)
            .output_interface(hop.oif)
            .pref_source(hop.source)
            .protocol(RouteProtocol::from(self.protocol))
            .build();
        self.connection
            .change(RouteNetlinkMessage::NewRoute(message), NLM_F_REPLACE | NLM_F_CREATE)
            .map_err(|source| RouteError::Replace { service, hop, source })?;
        // Ours has metric 0 and wins already; what stands behind it would come back one day.
        for old in &before {
            if old.metric != 0 || old.tos != 0 {
                self.delete(old)?;
            }
        }
        let after = self.read()?;
        match &after[..] {
            [one]
                if one.protocol == self.protocol
                    && one.gateway == Some(hop.gateway)
                    && one.oif == Some(hop.oif) =>
            {
                Ok(one.clone())
            }
            found => Err(RouteError::NotReadBack {
                service,
                found: found.iter().map(Route::to_string).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    fn delete(&mut self, route: &Route) -> Result<(), RouteError> {
        let service = self.service;
        let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(service, 32)
            .protocol(RouteProtocol::from(route.protocol))
            .priority(route.metric)
            .tos(route.tos)
            .build();
        // Whatever its type and scope: prefix, metric, tos and protocol name it.
        message.header.kind = RouteType::Unspec;
        message.header.scope = netlink_packet_route::route::RouteScope::NoWhere;
        match self.connection.change(RouteNetlinkMessage::DelRoute(message), 0) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                Err(RouteError::Io { service, source: error })
            }
            _ => Ok(()),
        }
    }
}

/// The route in `payload`, if it is a /32 to `service` in the main table.
fn decode(payload: &[u8], service: Ipv4Addr) -> io::Result<Option<Route>> {
    // Others' routes may hold anything: only what concerns us is taken apart (family, destination length).
    let [family, 32, ..] = payload else { return Ok(None) };
    if *family != libc::AF_INET as u8 {
        return Ok(None);
    }
    let message = RouteMessage::parse(payload).map_err(invalid)?;
    let mut route = Route {
        protocol: message.header.protocol.into(),
        gateway: None,
        oif: None,
        source: None,
        metric: 0,
        tos: message.header.tos,
        special: message.header.kind != RouteType::Unicast,
    };
    let mut table = u32::from(message.header.table);
    let mut destination = None;
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = Some(ip),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.gateway = Some(ip),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => route.source = Some(ip),
            RouteAttribute::Oif(index) => route.oif = Some(index),
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::Table(id) => table = id,
            RouteAttribute::MultiPath(_)
            | RouteAttribute::NhId(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::Encap(_) => route.special = true,
            _ => {}
        }
    }
    let ours = table == u32::from(RouteHeader::RT_TABLE_MAIN) && destination == Some(service);
    Ok(ours.then_some(route))
}

/// Something that concerns the route may have changed: read it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A /32 to the service address was set or removed (by us too).
    Route,
    /// A link or an address changed: the kernel flushes routes then, and not every flush is announced.
    Interface,
}

/// Changes in the calling thread's network namespace, from a task on the current tokio runtime. The stream ends when the
/// receiver is dropped, or with a logged error when the kernel's socket fails.
pub fn watch(service: Ipv4Addr) -> anyhow::Result<mpsc::UnboundedReceiver<Change>> {
    let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr];
    let mut monitor = Monitor::open(&groups).context("cannot subscribe to route changes")?;
    let (changes, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let heard = tokio::select! {
                heard = monitor.next() => heard,
                () = changes.closed() => return,
            };
            let (mut route, mut interface) = (false, false);
            match heard {
                Ok(Heard::Overrun) => (route, interface) = (true, true),
                Ok(Heard::Datagram(bytes)) => {
                    for message in messages(bytes) {
                        match message {
                            Ok(m) if matches!(m.kind, RTM_NEWROUTE | RTM_DELROUTE) => {
                                // What cannot be decoded may be ours: one look too many does no harm.
                                route |= decode(m.payload, service).map_or(true, |r| r.is_some());
                            }
                            _ => interface = true,
                        }
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "route changes are no longer seen");
                    return;
                }
            }
            for (seen, change) in [(route, Change::Route), (interface, Change::Interface)] {
                if seen {
                    let _ = changes.send(change);
                }
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
