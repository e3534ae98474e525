//! A hypervisor host: its interfaces, and who owns the route.

use super::Findings;
use crate::doctor::facts::{Host, PathFound};
use reroute_core::sweep::Diagnosis;

pub(super) fn check(host: &Host, out: &mut Findings) {
    super::agent(&host.agent, out);
    for interface in &host.interfaces {
        super::interface(interface, out);
    }
    route(host, out);
    for path in &host.paths {
        one_path(path, out);
    }
    if let Some(hypervisor) = &host.hypervisor {
        super::fences::hypervisor(hypervisor, out);
    }
}

fn one_path(path: &PathFound, out: &mut Findings) {
    let PathFound { network, scvm, address, diagnosis } = path;
    let about = format!("{scvm} by {network} ({address})");
    match diagnosis {
        Err(why) => {
            out.unknown("path", format!("{about}: {why}"), "run it as root, while the interface is up")
        }
        Ok(Diagnosis::Up { rtt_ns }) => {
            out.ok("path", format!("{about}: full frames pass, {:.2} ms", *rtt_ns as f64 / 1e6));
        }
        Ok(Diagnosis::DuplicateAddress { macs }) => {
            let macs: Vec<String> = macs.iter().map(ToString::to_string).collect();
            out.critical(
                "path",
                format!("{about}: duplicate address, {} answer for it", macs.join(" and ")),
                "find the second one by its MAC address in the switch's table, and take the address away from it",
            );
        }
        Ok(Diagnosis::WrongSubnet) => out.critical(
            "path",
            format!("{about}: wrong subnet: no address of this node's interface there shares one with it"),
            "correct the address or its prefix, here or in [[cluster.scvms]]",
        ),
        Ok(Diagnosis::Mtu { next_hop }) => {
            let told = next_hop.map_or(String::new(), |mtu| format!(" (a router says {mtu})"));
            out.critical(
                "path",
                format!("{about}: MTU: small frames pass, full ones do not{told}"),
                "set the same MTU on this interface, the switch ports and the SCVM's",
            );
        }
        Ok(Diagnosis::Filtered { by }) => {
            let by = by.map_or(String::new(), |by| format!(", says {by}"));
            out.warning(
                "path",
                format!("{about}: filtered: it is there, and echoes are not answered{by}"),
                "pulses may pass all the same (see `status`); if not, open UDP 7481 and TCP to the service port",
            );
        }
        Ok(Diagnosis::Down) => {
            out.warning(
                "path",
                format!("{about}: down: nobody answers by ARP"),
                "look at the SCVM and its NIC",
            );
        }
        Ok(Diagnosis::NotSent { errno }) => out.unknown(
            "path",
            format!("{about}: nothing left this node: {}", std::io::Error::from_raw_os_error(*errno)),
            "look at this node's own interface",
        ),
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
