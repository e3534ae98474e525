//! A hypervisor host: its interfaces, and who owns the route.

use super::Findings;
use crate::doctor::facts::Host;

pub(super) fn check(host: &Host, out: &mut Findings) {
    super::agent(&host.agent, out);
    for interface in &host.interfaces {
        super::interface(interface, out);
    }
    route(host, out);
    if let Some(hypervisor) = &host.hypervisor {
        super::fences::hypervisor(hypervisor, out);
    }
}

fn route(host: &Host, out: &mut Findings) {
    let service = host.service;
    let routes = match &host.routes {
        Ok(routes) => routes,
        Err(why) => return out.unknown("route", why, "see `ip route`"),
    };
    let foreign: Vec<String> =
        routes.iter().filter(|r| r.protocol != host.protocol).map(ToString::to_string).collect();
    if !foreign.is_empty() {
        return out.critical(
            "route",
            format!("a route to {service} that is not ours stands: {}", foreign.join("; ")),
            "remove it, or take it over with `reroute-agent route adopt`",
        );
    }
    match routes.as_slice() {
        [] => out.warning(
            "route",
            format!("no route to {service} of ours (protocol {}) stands", host.protocol),
            "the agent sets it when Meta has logged this host in: see `status`",
        ),
        [one] if !one.special && one.gateway.is_some_and(|gateway| host.hops.contains(&gateway)) => {
            out.ok("route", format!("{service}/32 {one}: ours"));
        }
        other => {
            let shown: Vec<String> = other.iter().map(ToString::to_string).collect();
            out.warning(
                "route",
                format!("{service}/32 carries our mark but leads elsewhere: {}", shown.join("; ")),
                "the agent puts it right when it runs; if it does run, somebody uses our route_protocol",
            );
        }
    }
}
