//! The machine's words for routes and sockets, carried out.

use crate::config::{Config, Host, HostEntry, interface_index};
use crate::netlink::neighbour::Neighbours;
use crate::netlink::route::{NextHop, Route, RouteError, Table};
use crate::netlink::sockets::{self, Before, Filter};
use reroute_core::host::{Found, OldSocket, RouteFailure};
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
    /// Why no sockets are destroyed here; None: they are.
    keeps: Option<&'static str>,
    /// Those that were to be, for that.
    staying: Before,
}

/// What became of the sockets to the service address that were to go.
pub enum Reset {
    Destroyed(u32),
    /// This kernel destroys none, or is not to.
    Stay(Vec<OldSocket>),
}

impl Kernel {
    pub fn open(config: &Config, host: &Host, node: &HostEntry) -> io::Result<Kernel> {
        let cluster = &config.cluster;
        let hops = cluster.scvms.iter().flat_map(|s| {
            [(Network::Storage, s.storage), (Network::Management, s.management)]
                .map(|(network, address)| (Path { scvm: s.id, network }, address))
        });
        let service = IpAddr::V4(cluster.service_address);
        let keeps = match sockets::can_destroy() {
            _ if !host.destroy_sockets => Some("[host] destroy_sockets is false"),
            Ok(false) => Some("this kernel was built without CONFIG_INET_DIAG_DESTROY"),
            // What else fails is told when it is tried.
            Ok(true) | Err(_) => None,
        };
        if let Some(why) = keeps {
            tracing::info!(why, "old sockets are not destroyed here: after a move the new server ends them");
        }
        Ok(Kernel {
            table: Table::open(cluster.service_address, host.route_protocol)?,
            neighbours: Neighbours::open()?,
            hops: hops.collect(),
            interfaces: host.interfaces.each().map(|(n, name)| (n, name.to_string(), node.address(n))),
            protocol: host.route_protocol,
            sockets: Filter { local: None, remote: Some((service, Some(cluster.service_port))) },
            before: None,
            keeps,
            staying: Before::default(),
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
    pub fn destroy_sockets(&mut self, keep: Option<Network>) -> Result<Reset, String> {
        let kept = keep.and_then(|network| self.interfaces.iter().find(|(n, ..)| *n == network));
        let kept = kept.map(|(.., address)| IpAddr::V4(*address));
        let before = self.before.take();
        let is_old = |tcp: &sockets::Tcp| {
            before.as_ref().is_none_or(|(before, source)| before.had(tcp) || tcp.local.ip() != *source)
        };
        if kept.is_some() {
            let all = sockets::list(&self.sockets).map_err(|error| error.to_string())?;
            if all.iter().all(|tcp| Some(tcp.local.ip()) == kept) {
                return Ok(Reset::Destroyed(0));
            }
        }
        let reset = match self.keeps {
            None => Reset::Destroyed(
                sockets::destroy_where(&self.sockets, is_old).map_err(|error| error.to_string())?,
            ),
            Some(_) => {
                let mut old = sockets::list(&self.sockets).map_err(|error| error.to_string())?;
                old.retain(|tcp| tcp.is_alive() && is_old(tcp));
                let all = self.by_network(&old);
                // One that still connects is only hastened: whatever it sends once it has, goes to the new server.
                old.retain(|tcp| !tcp.is_connecting());
                self.staying = Before::of(&old);
                Reset::Stay(all)
            }
        };
        let hops: Vec<_> = self.hops.iter().map(|(_, hop)| *hop).collect();
        self.neighbours
            .drop_waiting(&hops)
            .map_err(|error| format!("what waits for a next hop could not be dropped: {error}"))?;
        Ok(reset)
    }

    /// Those of the sockets that could not be destroyed which are there still.
    pub fn find_sockets(&self) -> Result<Vec<OldSocket>, String> {
        let mut found = sockets::list(&self.sockets).map_err(|error| error.to_string())?;
        found.retain(|tcp| tcp.is_alive() && self.staying.is_among(tcp));
        Ok(self.by_network(&found))
    }

    fn by_network(&self, sockets: &[sockets::Tcp]) -> Vec<OldSocket> {
        let network = |ip: IpAddr| {
            let interface = self.interfaces.iter().find(|(.., address)| IpAddr::V4(*address) == ip);
            interface.map(|(network, ..)| *network)
        };
        let named =
            |tcp: &sockets::Tcp| OldSocket { network: network(tcp.local.ip()), port: tcp.local.port() };
        sockets.iter().map(named).collect()
    }
}
