use super::*;
use crate::doctor::facts::*;
use crate::netlink::nic::Nic;
use crate::netlink::route::Route;
use crate::sensor::{Attachment, LinkKind, MultiBuffer};
use Level::{Critical, Unknown, Warning};
use reroute_core::host::Life;
use reroute_core::ids::{FencePolicy, Network};
use reroute_core::sweep::{Diagnosis, Mac};
use std::net::Ipv4Addr;

const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 2);

fn nic(index: u32, name: &str) -> Nic {
    Nic {
        index,
        name: name.into(),
        up: true,
        carrier: true,
        mtu: 9000,
        driver: Some("virtio_net".into()),
        features: None,
        xdp: vec![],
    }
}

fn interfaces() -> Vec<Interface> {
    let all = [(Network::Private, "nfs0"), (Network::Storage, "sto0"), (Network::Management, "mgt0")];
    let each = all.into_iter().enumerate().map(|(i, (network, name))| Interface {
        network,
        name: name.into(),
        address: [10, 0, 0, i as u8 + 1].into(),
        nic: Some(nic(i as u32 + 2, name)),
        has_address: true,
        planned: Ok(("tc (tcx)".into(), "disturbs no driver".into())),
        strangers: Ok(vec![]),
    });
    each.collect()
}

fn attachment(it: &Interface) -> Attachment {
    let nic = it.nic.as_ref().unwrap();
    Attachment {
        network: it.network,
        interface: it.name.clone(),
        index: nic.index,
        driver: nic.driver.clone(),
        mtu: nic.mtu,
        ingress: "tc".into(),
        ingress_link: LinkKind::BpfLink,
        egress: "tcx".into(),
        egress_link: LinkKind::BpfLink,
        multi_buffer: MultiBuffer::Yes,
        reason: "disturbs no driver".into(),
    }
}

fn agent_with(attachments: Vec<Attachment>) -> Agent {
    Agent { socket: "/run/agent.sock".into(), answer: Ok(Answer { alarms: vec![], attachments }) }
}

fn route(protocol: u8, gateway: [u8; 4]) -> Route {
    Route {
        protocol,
        gateway: Some(gateway.into()),
        oif: Some(3),
        source: None,
        metric: 0,
        tos: 0,
        special: false,
    }
}

fn feature(name: &'static str, instead: Option<&'static str>) -> Feature {
    Feature { name, since: "6.6", instead, found: Ok(true) }
}

fn runs(path: &str) -> Program {
    Program { path: path.into(), state: ProgramState::Runs }
}

/// A node that has every role, and nothing wrong with it.
fn healthy() -> Facts {
    let interfaces = interfaces();
    Facts {
        nodes: vec![],
        machine: Machine {
            kernel: "6.12".into(),
            lacks: vec![],
            lockdown: Ok("none".into()),
            clock_source: Ok("tsc".into()),
            fifo: Ok(()),
            memory_lock: None,
            destroys_sockets: Ok(true),
        },
        key_file: KeyFile { path: "/etc/key".into(), mode: 0o100600, owner: 0 },
        state_dirs: vec![("/var/lib/reroute".into(), StateDir::Writable)],
        meta: ["10.0.0.30:7480", "10.0.1.30:7480"]
            .map(|a| MetaAddress { address: a.parse().unwrap(), reached: Ok(()), in_scvm: None })
            .to_vec(),
        scvm: Some(Scvm {
            agent: agent_with(interfaces.iter().map(attachment).collect()),
            interfaces: interfaces.clone(),
            service: SERVICE,
            port: 2049,
            service_on: Ok(vec!["nfs0".into()]),
            listening: Ok(true),
            policy: FencePolicy::Kill,
            pidfile: "/run/server.pid".into(),
            server: Ok((77, "ganesha.nfsd".into())),
            arp: vec![("sto0".into(), Ok((2, 1))), ("mgt0".into(), Ok((2, 8)))],
            bpf_dir: "/sys/fs/bpf/reroute".into(),
            bpffs: Ok(()),
            features: vec![feature("bpf_timer", None), feature("TCX links", Some("filters on clsact"))],
            btf: true,
        }),
        host: Some(Host {
            agent: agent_with(vec![]),
            interfaces,
            service: SERVICE,
            protocol: 199,
            routes: Ok(vec![route(199, [10, 10, 85, 21])]),
            hops: vec![[10, 10, 85, 21].into()],
            paths: vec![path(Ok(Diagnosis::Up { rtt_ns: 200_000 }))],
            hypervisor: Some(Hypervisor {
                program: runs("/usr/sbin/xl"),
                domain: "scvm1".into(),
                answer: Ok(vec![Life::Alive]),
            }),
        }),
        clients: Clients { without_agent: vec!["esxi1".into()], unfenced: vec![], fence_command: Some(true) },
        policies: vec![("s1".into(), FencePolicy::Kill), ("s2".into(), FencePolicy::Wait)],
        meta_role: Some(MetaRole {
            agent: agent_with(vec![]),
            listen: vec![("10.0.0.30:7480".parse().unwrap(), true)],
            signs_of_scvm: vec![],
            fence_command: Some(runs("/etc/reroute/fence")),
        }),
    }
}

fn path(diagnosis: Result<Diagnosis, String>) -> PathFound {
    PathFound { network: Network::Storage, scvm: "s1".into(), address: [10, 10, 85, 21].into(), diagnosis }
}

#[test]
fn what_is_wrong_with_a_path_has_its_name() {
    let mac = |n| Mac([2, 0, 0, 0, 0, n]);
    for (diagnosis, level, words) in [
        (Ok(Diagnosis::Up { rtt_ns: 200_000 }), Level::Ok, "full frames pass"),
        (Ok(Diagnosis::Down), Level::Warning, "down"),
        (Ok(Diagnosis::Filtered { by: Some([10, 0, 0, 1].into()) }), Level::Warning, "filtered"),
        (Ok(Diagnosis::Mtu { next_hop: Some(1400) }), Level::Critical, "MTU"),
        (Ok(Diagnosis::WrongSubnet), Level::Critical, "wrong subnet"),
        (
            Ok(Diagnosis::DuplicateAddress { macs: [mac(1), mac(2)].into() }),
            Level::Critical,
            "02:00:00:00:00:01 and 02:00:00:00:00:02",
        ),
        (Ok(Diagnosis::NotSent { errno: libc::ENETDOWN }), Level::Unknown, "Network is down"),
        (Err("not permitted".into()), Level::Unknown, "not permitted"),
    ] {
        let mut facts = healthy();
        host(&mut facts).paths = vec![path(diagnosis)];
        let found: Vec<Finding> = check(&facts).into_iter().filter(|f| f.check == "path").collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].level, level, "{found:?}");
        assert!(found[0].found.contains(words), "{found:?}");
        assert_eq!(found[0].advice.is_empty(), level == Level::Ok);
    }
}

fn scvm(facts: &mut Facts) -> &mut Scvm {
    facts.scvm.as_mut().unwrap()
}
fn host(facts: &mut Facts) -> &mut Host {
    facts.host.as_mut().unwrap()
}
fn hypervisor(facts: &mut Facts) -> &mut Hypervisor {
    host(facts).hypervisor.as_mut().unwrap()
}
fn fence(facts: &mut Facts) -> &mut ProgramState {
    &mut facts.meta_role.as_mut().unwrap().fence_command.as_mut().unwrap().state
}
fn attached(facts: &mut Facts) -> &mut Attachment {
    &mut scvm(facts).agent.answer.as_mut().unwrap().attachments[1]
}

#[test]
fn nothing_is_wrong_with_a_healthy_node_and_everything_was_looked_at() {
    let findings = check(&healthy());
    assert!(findings.iter().all(|f| f.level == Level::Ok && f.advice.is_empty()), "{findings:#?}");
    for check in [
        "kernel",
        "capabilities",
        "realtime",
        "clock",
        "lockdown",
        "sock_destroy",
        "key_file",
        "state_dir",
        "meta",
        "agent",
        "kernel_feature",
        "bpffs",
        "interface",
        "programs",
        "service",
        "listener",
        "server",
        "arp",
        "route",
        "listen",
        "meta_place",
        "fence_policy",
        "hypervisor",
        "fence_command",
        "clients_without_agent",
    ] {
        assert!(findings.iter().any(|f| f.check == check), "{check}");
    }
}

type Break = fn(&mut Facts);

/// What is broken; the check that says so, how badly, and a word that it must say.
const DEFECTS: &[(&str, Break, &str, Level, &str)] = &[
    ("no rights", |f| f.machine.lacks = vec!["CAP_BPF".into()], "capabilities", Warning, "CAP_BPF"),
    ("no real time", |f| f.machine.fifo = Err("EPERM".into()), "realtime", Critical, "EPERM"),
    ("memlock", |f| f.machine.memory_lock = Some(65536), "memory_lock", Critical, "64 KiB"),
    ("slow clock", |f| f.machine.clock_source = Ok("hpet".into()), "clock", Warning, "hpet"),
    ("clock?", |f| f.machine.clock_source = Err("gone".into()), "clock", Unknown, "gone"),
    ("lockdown", |f| f.machine.lockdown = Ok("confidentiality".into()), "lockdown", Warning, "refused"),
    ("lockdown?", |f| f.machine.lockdown = Err("no securityfs".into()), "lockdown", Unknown, "securityfs"),
    ("no destroy", |f| f.machine.destroys_sockets = Ok(false), "sock_destroy", Critical, "destroy"),
    (
        "no destroy on a host",
        |f| {
            f.scvm = None;
            f.machine.destroys_sockets = Ok(false);
        },
        "sock_destroy",
        Warning,
        "the new server resets",
    ),
    ("destroy?", |f| f.machine.destroys_sockets = Err("EPERM".into()), "sock_destroy", Unknown, "EPERM"),
    ("key for all", |f| f.key_file.mode = 0o100644, "key_file", Critical, "mode 644"),
    ("key for a group", |f| f.key_file.mode = 0o100640, "key_file", Critical, "mode 640"),
    ("key of another", |f| f.key_file.owner = 1000, "key_file", Warning, "1000"),
    ("state dir", |f| f.state_dirs[0].1 = StateDir::Missing, "state_dir", Warning, "/var/lib/reroute"),
    ("read-only", |f| f.state_dirs[0].1 = StateDir::NotWritable, "state_dir", Critical, "cannot be written"),
    ("a file", |f| f.state_dirs[0].1 = StateDir::NoDirectory, "state_dir", Critical, "not a directory"),
    ("one Meta path", |f| f.meta[1].reached = Err("timed out".into()), "meta", Warning, "10.0.1.30:7480"),
    (
        "no Meta",
        |f| f.meta.iter_mut().for_each(|m| m.reached = Err("refused".into())),
        "meta",
        Critical,
        "10.0.0.30:7480",
    ),
    ("Meta in an SCVM", |f| f.meta[0].in_scvm = Some("scvm2".into()), "meta_place", Critical, "scvm2"),
    (
        "Meta is an SCVM",
        |f| f.meta_role.as_mut().unwrap().signs_of_scvm = vec!["it has 10.10.85.21 of scvm1".into()],
        "meta_place",
        Critical,
        "of scvm1",
    ),
    ("listen", |f| f.meta_role.as_mut().unwrap().listen[0].1 = false, "listen", Critical, "10.0.0.30:7480"),
    ("no agent", |f| host(f).agent.answer = Err("no such file".into()), "agent", Warning, "no such file"),
    (
        "alarm",
        |f| scvm(f).agent.answer.as_mut().unwrap().alarms = vec!["one-writer is suspended".into()],
        "agent",
        Warning,
        "suspended",
    ),
    ("no timer", |f| scvm(f).features[0].found = Ok(false), "kernel_feature", Critical, "bpf_timer"),
    ("timer?", |f| scvm(f).features[0].found = Err("EPERM".into()), "kernel_feature", Unknown, "EPERM"),
    ("no TCX", |f| scvm(f).features[1].found = Ok(false), "kernel_feature", Level::Ok, "clsact instead"),
    ("no BTF", |f| scvm(f).btf = false, "btf", Warning, "timer"),
    ("no bpffs", |f| scvm(f).bpffs = Err("not on a bpffs".into()), "bpffs", Critical, "bpffs"),
    ("no interface", |f| scvm(f).interfaces[1].nic = None, "interface", Critical, "no interface sto0"),
    ("host's, too", |f| host(f).interfaces[2].nic = None, "interface", Critical, "no interface mgt0"),
    (
        "down",
        |f| host(f).interfaces[0].nic.as_mut().unwrap().up = false,
        "interface",
        Critical,
        "nfs0, driver virtio_net, MTU 9000: down",
    ),
    (
        "no carrier",
        |f| scvm(f).interfaces[2].nic.as_mut().unwrap().carrier = false,
        "interface",
        Critical,
        "mgt0, driver virtio_net, MTU 9000: no carrier",
    ),
    ("no address", |f| host(f).interfaces[1].has_address = false, "address", Critical, "10.0.0.2"),
    (
        "made anew",
        |f| scvm(f).interfaces[1].nic.as_mut().unwrap().index = 40,
        "programs",
        Critical,
        "sto0 was made anew",
    ),
    (
        "not attached",
        |f| drop(scvm(f).agent.answer.as_mut().unwrap().attachments.remove(1)),
        "programs",
        Critical,
        "sto0",
    ),
    ("generic", |f| attached(f).ingress = "xdp generic".into(), "programs", Warning, "xdp generic"),
    ("one buffer", |f| attached(f).multi_buffer = MultiBuffer::No, "programs", Critical, "MTU is 9000"),
    ("buffers?", |f| attached(f).multi_buffer = MultiBuffer::Unknown, "programs", Warning, "MTU 9000"),
    (
        "strangers",
        |f| scvm(f).interfaces[1].strangers = Ok(vec!["XDP program firewall (id 7)".into()]),
        "strangers",
        Warning,
        "sto0: XDP program firewall",
    ),
    ("strangers?", |f| scvm(f).interfaces[1].strangers = Err("EPERM".into()), "strangers", Unknown, "EPERM"),
    ("no service", |f| scvm(f).service_on = Ok(vec![]), "service", Critical, "192.168.33.2"),
    ("no listener", |f| scvm(f).listening = Ok(false), "listener", Critical, "192.168.33.2:2049"),
    ("listener?", |f| scvm(f).listening = Err("EIO".into()), "listener", Unknown, "EIO"),
    ("no server", |f| scvm(f).server = Err("holds no process id".into()), "server", Critical, "process id"),
    (
        "no server, none killed",
        |f| {
            scvm(f).policy = FencePolicy::Storage;
            scvm(f).server = Err("holds no process id".into());
        },
        "server",
        Warning,
        "process id",
    ),
    ("announce", |f| scvm(f).arp[0].1 = Ok((0, 1)), "arp", Warning, "sto0: arp_announce=0"),
    ("ignore", |f| scvm(f).arp[1].1 = Ok((2, 0)), "arp", Warning, "mgt0: arp_announce=2, arp_ignore=0"),
    ("arp?", |f| scvm(f).arp[1].1 = Err("no such file".into()), "arp", Unknown, "no such file"),
    (
        "foreign route",
        |f| host(f).routes = Ok(vec![route(4, [10, 10, 85, 22])]),
        "route",
        Critical,
        "via 10.10.85.22",
    ),
    (
        "beside ours",
        |f| host(f).routes.as_mut().unwrap().push(route(4, [10, 10, 85, 22])),
        "route",
        Critical,
        "proto 4",
    ),
    ("no route", |f| host(f).routes = Ok(vec![]), "route", Warning, "protocol 199"),
    ("elsewhere", |f| host(f).routes = Ok(vec![route(199, [10, 9, 9, 9])]), "route", Warning, "10.9.9.9"),
    (
        "no xl",
        |f| hypervisor(f).program.state = ProgramState::NoFile,
        "hypervisor",
        Critical,
        "xl is no file",
    ),
    ("xl?", |f| hypervisor(f).answer = Err("xl list -v: exit 1".into()), "hypervisor", Critical, "exit 1"),
    ("no domain", |f| hypervisor(f).answer = Ok(vec![]), "hypervisor", Warning, "no domain scvm1"),
    ("crashed", |f| hypervisor(f).answer = Ok(vec![Life::Dead]), "hypervisor", Warning, "scvm1: dead"),
    ("two", |f| hypervisor(f).answer = Ok(vec![Life::Alive; 2]), "hypervisor", Critical, "several domains"),
    ("no fence", |f| *fence(f) = ProgramState::NoFile, "fence_command", Critical, "fence is no file"),
    ("not x", |f| *fence(f) = ProgramState::NotExecutable, "fence_command", Critical, "executed"),
    ("relative", |f| *fence(f) = ProgramState::Relative, "fence_command", Critical, "absolute"),
    ("fence?", |f| *fence(f) = ProgramState::Unseen("EACCES".into()), "fence_command", Unknown, "EACCES"),
    (
        "mixed policies",
        |f| f.policies.push(("s3".into(), FencePolicy::Storage)),
        "fence_policy",
        Warning,
        "s3 (storage) beside s1 (kill), s2 (wait)",
    ),
    ("route?", |f| host(f).routes = Err("ENOBUFS".into()), "route", Unknown, "ENOBUFS"),
];

#[test]
fn each_defect_is_named_by_its_check_with_what_to_do() {
    for (what, breaks, name, level, word) in DEFECTS {
        let mut facts = healthy();
        breaks(&mut facts);
        let findings = check(&facts);
        let found = findings.iter().find(|f| f.check == *name && f.level == *level && f.found.contains(word));
        let Some(found) = found else { panic!("{what}: {findings:#?}") };
        assert_eq!(found.advice.is_empty(), *level == Level::Ok, "{what}: {found:?}");
        // And nothing else is blamed for it.
        let others: Vec<_> = findings.iter().filter(|f| f.level != Level::Ok && f.check != *name).collect();
        assert!(others.is_empty(), "{what}: {others:#?}");
    }
}

#[test]
fn without_an_agent_it_says_how_the_programs_would_be_attached() {
    let mut facts = healthy();
    scvm(&mut facts).agent.answer = Err("no such file".into());
    let findings = check(&facts);
    let planned = findings.iter().filter(|f| f.check == "programs" && f.level == Level::Ok);
    assert_eq!(planned.filter(|f| f.found.contains("would be attached as tc (tcx)")).count(), 3);
}

#[test]
fn a_client_without_an_agent_that_can_never_leave_is_named() {
    let mut facts = healthy();
    let found = |facts: &Facts| {
        check(facts).into_iter().filter(|f| f.check == "clients_without_agent").collect::<Vec<_>>()
    };
    assert_eq!(found(&facts)[0].level, Level::Ok);
    facts.clients.unfenced = vec![("s2".into(), FencePolicy::Wait)];
    let findings = found(&facts);
    assert_eq!((findings.len(), findings[0].level), (1, Level::Ok), "the fence command stands in");
    assert!(findings[0].found.contains("s2 (policy wait) by the fence command"), "{findings:?}");
    facts.clients.fence_command = None;
    let findings = found(&facts);
    assert_eq!((findings.len(), findings[0].level), (1, Unknown), "another node's configuration tells");
    facts.clients.fence_command = Some(false);
    let findings = found(&facts);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].level, Warning);
    for word in ["esxi1", "s2", "policy wait"] {
        assert!(findings[0].found.contains(word), "{findings:?}");
    }
    facts.clients.without_agent.clear();
    assert!(found(&facts).is_empty(), "nobody is concerned");
}
