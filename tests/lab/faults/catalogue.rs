//! The faults. A new one that chaos may draw goes to the end of [`FAULTS`]: what a seed draws follows from their order.

use super::{Action, Disturbance, Fault, Kind, Load};
use crate::topology::Node;
use crate::wire::{Direction, Rule};
use std::time::Duration;

const BOTH: &[Direction] = &[Direction::ToNode, Direction::FromNode];
const HOSTS: u8 = Node::Host(1).kind_in_mac();
const META: u8 = Node::Meta.kind_in_mac();
/// Of a path that is narrower than its ends believe, bytes of IP.
pub const SHORT_MTU: u32 = 1400;

/// What [`Action::Freeze`] does to the links of an SCVM. A node that stands still sends nothing either.
pub const FROZEN: &[Disturbance] = &[
    Disturbance { links: &["sto", "mgt", "nfs"], directions: &[Direction::FromNode], rule: Rule::Drop },
    Disturbance { links: &["sto", "mgt", "nfs"], directions: &[Direction::ToNode], rule: Rule::Hold },
];

/// What [`Action::PowerOff`] does to them.
pub const DEAD: &[Disturbance] =
    &[Disturbance { links: &["sto", "mgt", "nfs"], directions: BOTH, rule: Rule::Drop }];

/// What chaos draws from.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "server-killed",
        kind: Kind::Scvm,
        action: Action::Kill("server"),
        does: "SIGKILL to the NFS server",
        healed_by: "starting it again",
    },
    Fault {
        name: "server-hung",
        kind: Kind::Scvm,
        action: Action::Stop("server", Some(Duration::from_secs(5))),
        does: "SIGSTOP to the NFS server, SIGCONT 5 s later",
        healed_by: "SIGCONT, or starting it again if it was killed meanwhile",
    },
    Fault {
        name: "storage-link-cut",
        kind: Kind::Scvm,
        action: Action::Cut("sto"),
        does: "the SCVM's storage link goes down: no carrier",
        healed_by: "the link coming up, and the server starting again if it was killed meanwhile",
    },
    Fault {
        name: "host-storage-cut",
        kind: Kind::Host,
        action: Action::Cut("sto"),
        does: "the host's storage link goes down: no carrier",
        healed_by: "the link coming up",
    },
    Fault {
        name: "agent-killed",
        kind: Kind::Scvm,
        action: Action::Kill("agent"),
        does: "SIGKILL to the SCVM's agent",
        healed_by: "starting it again",
    },
    Fault {
        name: "agent-stopped",
        kind: Kind::Scvm,
        action: Action::Stop("agent", None),
        does: "SIGSTOP to the SCVM's agent",
        healed_by: "SIGCONT",
    },
    Fault {
        name: "host-agent-killed",
        kind: Kind::Host,
        action: Action::Kill("agent"),
        does: "SIGKILL to the host's agent",
        healed_by: "starting it again",
    },
    Fault {
        name: "meta-killed",
        kind: Kind::Meta,
        action: Action::Kill("agent"),
        does: "SIGKILL to Meta",
        healed_by: "starting it again",
    },
    Fault {
        name: "meta-restarted",
        kind: Kind::Meta,
        action: Action::Restart("agent"),
        does: "SIGKILL to Meta, which is started again at once",
        healed_by: "itself",
    },
    Fault {
        name: "scvm-frozen",
        kind: Kind::Scvm,
        action: Action::Freeze(Duration::from_secs(5)),
        does: "all processes of the SCVM stand still for 5 s, and its links deliver nothing until then",
        healed_by: "the end of the 5 s, or before",
    },
    Fault {
        name: "meta-cut",
        kind: Kind::Scvm,
        action: Action::Disturb(&[Disturbance {
            links: &["sto", "mgt"],
            directions: BOTH,
            rule: Rule::DropPeers(META),
        }]),
        does: "nothing passes between the SCVM and Meta; the hosts reach both",
        healed_by: "letting it pass",
    },
    Fault {
        name: "host-cut",
        kind: Kind::Scvm,
        action: Action::Disturb(&[
            Disturbance { links: &["sto", "mgt"], directions: BOTH, rule: Rule::DropPeers(HOSTS) },
            Disturbance { links: &["nfs"], directions: BOTH, rule: Rule::Drop },
        ]),
        does: "nothing passes between the SCVM and any host; Meta reaches both",
        healed_by: "letting it pass, and the server starting again if it was killed meanwhile",
    },
    Fault {
        name: "storage-blackhole",
        kind: Kind::Scvm,
        action: Action::Disturb(&[Disturbance { links: &["sto"], directions: BOTH, rule: Rule::Drop }]),
        does: "every frame on the SCVM's storage link is lost; the carrier stays",
        healed_by: "letting them pass",
    },
    Fault {
        name: "storage-delay-2s",
        kind: Kind::Scvm,
        action: Action::Disturb(&[Disturbance {
            links: &["sto"],
            directions: BOTH,
            rule: Rule::Delay(Duration::from_secs(2)),
        }]),
        does: "every frame on the SCVM's storage link is 2 s late",
        healed_by: "letting new frames pass; those on their way arrive when they are due",
    },
    Fault {
        name: "one-way-loss",
        kind: Kind::Scvm,
        action: Action::Disturb(&[Disturbance {
            links: &["sto"],
            directions: &[Direction::FromNode],
            rule: Rule::Drop,
        }]),
        does: "what the SCVM sends on its storage link is lost, what it is sent arrives",
        healed_by: "letting it pass",
    },
    Fault {
        name: "lossy-5",
        kind: Kind::Scvm,
        action: Action::Disturb(&[Disturbance {
            links: &["sto"],
            directions: BOTH,
            rule: Rule::DropPercent(5),
        }]),
        does: "5 of 100 frames on the SCVM's storage link are lost, each way",
        healed_by: "letting them pass",
    },
    Fault {
        name: "link-flap",
        kind: Kind::Host,
        action: Action::Flap("sto"),
        does: "the host's storage interface goes down and up: its kernel forgets the routes by it",
        healed_by: "itself; the agent puts the route back",
    },
];

/// Not among what strikes by chance: for want of what they need in every lab, because they would stand in each other's
/// way (or starve the lab that is to judge them), or because they are for good.
pub const ALONE: &[Fault] = &[
    Fault {
        name: "storage-hung",
        kind: Kind::Scvm,
        action: Action::Server {
            begin: &["stuck read on", "stuck write on", "stuck metadata on"],
            end: &["stuck read off", "stuck write off", "stuck metadata off"],
        },
        does: "the server answers NULL, and no other call of anybody",
        healed_by: "the answers, all at once",
    },
    Fault {
        name: "scvm-dead",
        kind: Kind::Scvm,
        action: Action::PowerOff { known: false },
        does: "all processes of the SCVM stand still for good, and its links lose everything; nobody knows why",
        healed_by: "its links, and its server and agent starting anew",
    },
    Fault {
        name: "scvm-dead-known",
        kind: Kind::Scvm,
        action: Action::PowerOff { known: true },
        does: "the same, and the hypervisor of the host beside it lists its domain no more",
        healed_by: "the same, as a new domain",
    },
    Fault {
        name: "mtu-mismatch",
        kind: Kind::Host,
        action: Action::Disturb(&[Disturbance {
            links: &["sto"],
            directions: BOTH,
            rule: Rule::DropLonger(SHORT_MTU),
        }]),
        does: "frames of more than 1400 bytes are lost on the host's storage link, each way",
        healed_by: "letting them pass",
    },
    Fault {
        name: "scvm-mtu-mismatch",
        kind: Kind::Scvm,
        action: Action::Disturb(&[Disturbance {
            links: &["sto"],
            directions: BOTH,
            rule: Rule::DropLonger(SHORT_MTU),
        }]),
        does: "frames of more than 1400 bytes are lost on the SCVM's storage link, each way",
        healed_by: "letting them pass",
    },
    Fault {
        name: "host-one-way-loss",
        kind: Kind::Host,
        action: Action::Disturb(&[Disturbance {
            links: &["sto"],
            directions: &[Direction::FromNode],
            rule: Rule::Drop,
        }]),
        does: "what the host sends on its storage link is lost, what it is sent arrives",
        healed_by: "letting it pass",
    },
    Fault {
        name: "server-slow",
        kind: Kind::Scvm,
        action: Action::Server {
            begin: &["slow read 2000", "slow write 2000", "slow metadata 2000"],
            end: &["slow read 0", "slow write 0", "slow metadata 0"],
        },
        // NULL touches no storage. A server that answers nothing at all for 2 s is a hung one for as long.
        does: "each reply is 2 s late, but for NULL",
        healed_by: "answering new calls at once",
    },
    Fault {
        name: "one-client-wedged",
        kind: Kind::Scvm,
        action: Action::Wedge,
        does: "the server answers nothing on the connections that the host beside it has, and everything on others",
        healed_by: "the answers, all at once",
    },
    Fault {
        name: "cpu-hogs",
        kind: Kind::Scvm,
        action: Action::Load(Load::Cpu),
        does: "four ordinary threads for each CPU spin",
        healed_by: "their end",
    },
    Fault {
        name: "fifo-hogs",
        kind: Kind::Scvm,
        action: Action::Load(Load::Fifo),
        does: "two SCHED_FIFO threads for each CPU spin, below the agents: what is ordinary gets a twentieth of the CPUs",
        healed_by: "their end",
    },
    Fault {
        name: "timer-storm",
        kind: Kind::Scvm,
        action: Action::Load(Load::Timers),
        does: "four threads for each CPU sleep for 20 us again and again",
        healed_by: "their end",
    },
    Fault {
        name: "packet-flood",
        kind: Kind::Scvm,
        action: Action::Load(Load::Packets),
        does: "another host sends 20,000 datagrams a second to the SCVM's storage address: false pulses, calls by UDP",
        healed_by: "its end",
    },
    Fault {
        name: "clock-step",
        kind: Kind::Any,
        action: Action::StepClock(3600),
        does: "the wall clock of the node's agent steps an hour forward",
        healed_by: "a step back",
    },
    Fault {
        name: "clock-step-back",
        kind: Kind::Any,
        action: Action::StepClock(-3600),
        does: "the wall clock of the node's agent steps an hour back",
        healed_by: "a step forward",
    },
    Fault {
        name: "log-disk-full",
        kind: Kind::Any,
        action: Action::FillDisk,
        does: "the file systems of the agent's state and of the node's logs are full",
        healed_by: "room on them",
    },
    Fault {
        name: "duplicate-ip",
        kind: Kind::Scvm,
        action: Action::Impersonate("sto"),
        does: "another station answers ARP for the SCVM's storage address too",
        healed_by: "its end",
    },
];

/// Of use to one test each, and not among what strikes by chance: nobody could notice these.
pub const FOR_TESTS: &[Fault] = &[
    Fault {
        name: "storage-tcp-held",
        kind: Kind::Scvm,
        action: Action::Disturb(&[Disturbance {
            links: &["sto"],
            directions: &[Direction::ToNode],
            rule: Rule::HoldTcp,
        }]),
        does: "TCP segments to the SCVM's storage address stay on the way",
        healed_by: "their arrival, all at once",
    },
    Fault {
        name: "private-tcp-held",
        kind: Kind::Scvm,
        action: Action::Disturb(&[Disturbance {
            links: &["nfs"],
            directions: &[Direction::ToNode],
            rule: Rule::HoldTcp,
        }]),
        does: "TCP segments to the SCVM by its private link stay on the way",
        healed_by: "their arrival, all at once",
    },
];
