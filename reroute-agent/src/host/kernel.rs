//! The machine's words for routes and sockets, carried out.

use crate::config::{Config, Host, HostEntry, interface_index};
use crate::netlink::neighbour::Neighbours;
use crate::netlink::route::{NextHop, Route, RouteError, Table};
use crate::netlink::sockets::{self, Before, Filter};
use reroute_core::host::{Found, RouteFailure};
use reroute_core::ids::{Network, Path};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

pub struct Kernel {
    table: Table,
    neighbours: Neighbours,
    /// Next hop by path.
    hops: Vec<(Path, Ipv4Addr)>,
    interfaces: [(Network, String, Ipv4Addr); 3],
    protocol: u8,
    sockets: Filter,
    /// The sockets from before the route was replaced, until they are destroyed, and the source address that those
    /// opened since have.
    before: Option<(Before, IpAddr)>,
}

impl Kernel {
    pub fn open(config: &Config, host: &Host, node: &HostEntry) -> io::Result<Kernel> {
        let cluster = &config.cluster;
        let hops = cluster.scvms.iter().flat_map(|s| {
            [(Network::Storage, s.storage), (Network::Management, s.management)]
                .map(|(network, address)| (Path { scvm: s.id, network }, address))
        });
        let service = IpAddr::V4(cluster.service_address);
        Ok(Kernel {
            table: Table::open(cluster.service_address, host.route_protocol)?,
            neighbours: Neighbours::open()?,
            hops: hops.collect(),
            interfaces: host.interfaces.each().map(|(n, name)| (n, name.to_string(), node.address(n))),
            protocol: host.route_protocol,
            sockets: Filter { local: None, remote: Some((service, Some(cluster.service_port))) },
            before: None,
        })
    }

    pub fn read_route(&mut self) -> Result<Found, String> {
        self.table.read().map(|routes| self.found(&routes)).map_err(|error| error.to_string())
    }

    fn found(&self, routes: &[Route]) -> Found {
        let path = |route: &Route| {
            let gateway = route.gateway?;
            self.hops.iter().find(|(_, hop)| *hop == gateway).map(|(path, _)| *path)
        };
        let right_interface = |route: &Route, path: Path| {
            let interface = self.interfaces.iter().find(|(network, ..)| *network == path.network);
            interface.is_some_and(|(_, name, _)| route.oif.is_some() && interface_index(name) == route.oif)
        };
        if let Some(route) = routes.iter().find(|r| r.protocol != self.protocol) {
            return Found::Foreign { what: route.to_string(), path: path(route) };
        }
        match routes {
            [] => Found::None,
            [one] => match path(one).filter(|path| !one.special && right_interface(one, *path)) {
                Some(path) => Found::Ours(path),
                None => Found::OursElsewhere(one.to_string()),
            },
            many => Found::OursElsewhere(many.iter().map(Route::to_string).collect::<Vec<_>>().join(", ")),
        }
    }

    pub fn replace_route(&mut self, path: Path, adopt: bool) -> Result<(), RouteFailure> {
        let failed = |why: String| RouteFailure::Failed(why);
        let (_, gateway) = *self
            .hops
            .iter()
            .find(|(p, _)| *p == path)
            .ok_or_else(|| failed(format!("no next hop for {path}")))?;
        let (_, name, source) = self
            .interfaces
            .iter()
            .find(|(network, ..)| *network == path.network)
            .ok_or_else(|| failed(format!("no interface for {path}")))?;
        let oif = interface_index(name).ok_or_else(|| {
            failed(format!("interface {name} does not exist: the route to {path} waits for it"))
        })?;
        // Without it, all sockets count as old.
        let before = Before::now(&self.sockets).ok();
        match self.table.replace(NextHop { gateway, oif, source: *source }, adopt) {
            Ok(_) => {
                self.before = before.map(|before| (before, IpAddr::V4(*source)));
                Ok(())
            }
            Err(error @ RouteError::ForeignRoute { .. }) => Err(RouteFailure::Foreign(error.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Destroys this host's sockets to the service address; with `keep`, none if all are bound to its address there (one
    /// that is not may have shut the others, see the server's `path.rs`). After a route was replaced, not those opened
    /// since: they lead to the new server, and may have calls there already. What such a socket has sent and the kernel
    /// still keeps, for a next hop that does not answer, goes with it.
    pub fn destroy_sockets(&mut self, keep: Option<Network>) -> Result<u32, String> {
        let kept = keep.and_then(|network| self.interfaces.iter().find(|(n, ..)| *n == network));
        let kept = kept.map(|(.., address)| IpAddr::V4(*address));
        let before = self.before.take();
        let is_old = |tcp: &sockets::Tcp| {
            before.as_ref().is_none_or(|(before, source)| before.had(tcp) || tcp.local.ip() != *source)
        };
        if kept.is_some() {
            let all = sockets::list(&self.sockets).map_err(|error| error.to_string())?;
            if all.iter().all(|tcp| Some(tcp.local.ip()) == kept) {
                return Ok(0);
            }
        }
        let destroyed = sockets::destroy_where(&self.sockets, is_old).map_err(|error| error.to_string())?;
        let hops: Vec<_> = self.hops.iter().map(|(_, hop)| *hop).collect();
        self.neighbours
            .drop_waiting(&hops)
            .map_err(|error| format!("what waits for a next hop could not be dropped: {error}"))?;
        Ok(destroyed)
    }
}
