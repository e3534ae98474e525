//! A storage VM: kernel features, how the programs sit on the interfaces, the access server, ARP.

use super::Findings;
use crate::doctor::facts::{Interface, Scvm};
use crate::sensor::{Attachment, LinkKind, MultiBuffer, ONE_BUFFER_MTU};
use reroute_core::ids::FencePolicy;

pub(super) fn check(scvm: &Scvm, out: &mut Findings) {
    super::agent(&scvm.agent, out);
    features(scvm, out);
    for interface in &scvm.interfaces {
        super::interface(interface, out);
        if interface.nic.is_some() {
            programs(scvm, interface, out);
        }
    }
    server(scvm, out);
    for (interface, settings) in &scvm.arp {
        arp(scvm, interface, settings, out);
    }
}

fn features(scvm: &Scvm, out: &mut Findings) {
    for feature in &scvm.features {
        let (name, since) = (feature.name, feature.since);
        match (&feature.found, feature.instead) {
            (Ok(true), _) => out.ok("kernel_feature", name),
            (Ok(false), Some(instead)) => {
                out.ok("kernel_feature", format!("no {name} (Linux {since}): {instead} instead"))
            }
            (Ok(false), None) => out.critical(
                "kernel_feature",
                format!("the kernel has no {name}: the programs cannot run"),
                &format!("use Linux {since} or later, with CONFIG_BPF_SYSCALL and CONFIG_BPF_JIT"),
            ),
            (Err(why), _) => out.unknown("kernel_feature", format!("{name}: {why}"), "run this as root"),
        }
    }
    if !scvm.btf {
        out.warning(
            "btf",
            "/sys/kernel/btf/vmlinux is not there: the kernel may refuse programs with a timer",
            "use a kernel with CONFIG_DEBUG_INFO_BTF",
        );
    }
    match &scvm.bpffs {
        Ok(()) => out.ok("bpffs", format!("{} is on a bpffs", scvm.bpf_dir.display())),
        Err(why) => out.critical("bpffs", why, "`mount -t bpf bpf /sys/fs/bpf`, at every boot"),
    }
}

fn programs(scvm: &Scvm, interface: &Interface, out: &mut Findings) {
    let name = &interface.name;
    let attached = scvm.agent.answer.as_ref().ok().map(|answer| {
        answer.attachments.iter().find(|a| a.interface == *name && a.network == interface.network)
    });
    match attached {
        Some(Some(attached)) => as_attached(interface, attached, out),
        Some(None) => out.critical(
            "programs",
            format!("{name}: the running agent has no programs there"),
            "it runs with another configuration: restart it",
        ),
        None => match &interface.planned {
            Ok((way, why)) => out.ok("programs", format!("{name}: would be attached as {way} ({why})")),
            Err(why) => out.unknown("programs", format!("{name}: {why}"), "run this as root"),
        },
    }
    match &interface.strangers {
        Ok(strangers) => {
            for stranger in strangers {
                out.warning(
                    "strangers",
                    format!("{name}: {stranger}"),
                    "what passes or redirects packets before our programs hides them from us: make sure it does neither",
                );
            }
        }
        Err(why) => out.unknown("strangers", format!("{name}: {why}"), "run this as root"),
    }
}

fn as_attached(interface: &Interface, attached: &Attachment, out: &mut Findings) {
    let name = &interface.name;
    let mtu = interface.nic.as_ref().map_or(attached.mtu, |nic| nic.mtu);
    if interface.nic.as_ref().is_some_and(|nic| nic.index != attached.index) {
        return out.critical(
            "programs",
            format!("{name} was made anew: the programs sit on the interface that it was before"),
            "restart the agent",
        );
    }
    let kind = |kind| match kind {
        LinkKind::BpfLink => "pinned BPF link",
        LinkKind::NetlinkFilter => "netlink filter",
    };
    let about = format!(
        "{name}: in by {} ({}), out by {} ({}): {}",
        attached.ingress,
        kind(attached.ingress_link),
        attached.egress,
        kind(attached.egress_link),
        attached.reason
    );
    match attached.multi_buffer {
        MultiBuffer::No if mtu > ONE_BUFFER_MTU => out.critical(
            "programs",
            format!("{about}; but the driver gives XDP one buffer per frame, and the MTU is {mtu} now"),
            "restart the agent with `xdp = \"tc\"`, or lower the MTU",
        ),
        MultiBuffer::Unknown if mtu > ONE_BUFFER_MTU => out.warning(
            "programs",
            format!("{about}; whether frames of MTU {mtu} are seen whole is not known"),
            "set `xdp = \"tc\"`",
        ),
        _ if attached.ingress == "xdp generic" => out.warning(
            "programs",
            about,
            "generic XDP copies packets: `xdp = \"auto\"` or `\"tc\"` is cheaper",
        ),
        _ => out.ok("programs", about),
    }
}

fn server(scvm: &Scvm, out: &mut Findings) {
    let (service, port) = (scvm.service, scvm.port);
    match &scvm.service_on {
        Ok(on) if on.is_empty() => out.critical(
            "service",
            format!("this node does not have the service address {service}"),
            "add it to the private interface: hosts send to it by every network",
        ),
        Ok(on) => out.ok("service", format!("{service} is on {}", on.join(", "))),
        Err(why) => out.unknown("service", why, "see `ip address`"),
    }
    match &scvm.listening {
        Ok(true) => out.ok("listener", format!("something listens on {service}:{port}")),
        Ok(false) => out.critical(
            "listener",
            format!("nothing listens on {service}:{port}"),
            "start the NFS server; it must listen on this address or on any",
        ),
        Err(why) => out.unknown("listener", why, "see `ss -ltn`"),
    }
    let pidfile = scvm.pidfile.display();
    match &scvm.server {
        Ok((pid, name)) => out.ok("server", format!("process {pid} ({name}), by {pidfile}")),
        Err(why) if scvm.policy == FencePolicy::Kill => {
            out.critical("server", why, "start the server, or correct its pidfile: policy `kill` needs it")
        }
        Err(why) => out.warning("server", why, "start the server, or correct its pidfile"),
    }
}

fn arp(scvm: &Scvm, interface: &str, settings: &Result<(u32, u32), String>, out: &mut Findings) {
    let service = scvm.service;
    match settings {
        Ok((announce, ignore)) if *announce < 2 || *ignore < 1 => out.warning(
            "arp",
            format!(
                "{interface}: arp_announce={announce}, arp_ignore={ignore}: this SCVM tells everybody there that it \
                 has {service}, as all the others do"
            ),
            "sysctl net.ipv4.conf.all.arp_announce=2 net.ipv4.conf.all.arp_ignore=1, at every boot",
        ),
        Ok((announce, ignore)) => {
            out.ok("arp", format!("{interface}: arp_announce={announce}, arp_ignore={ignore}"));
        }
        Err(why) => out.unknown("arp", format!("{interface}: {why}"), "see /proc/sys/net/ipv4/conf"),
    }
}
