//! What can be broken, by name, and what mends it.

use crate::topology::Node;
use crate::wire::{Direction, Rule};
use std::time::Duration;

#[derive(Debug)]
pub struct Fault {
    pub name: &'static str,
    /// Kind of node it strikes; the first of the kind is the default target.
    pub kind: Kind,
    pub action: Action,
    /// For people.
    pub does: &'static str,
    pub healed_by: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Host,
    Scvm,
    Meta,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL to the node's process of this name. Healed: started again.
    Kill(&'static str),
    /// SIGSTOP, and SIGCONT after the time given. Healed: SIGCONT; started again if something killed it meanwhile.
    Stop(&'static str, Option<Duration>),
    /// The switch's end of this link goes down: the node loses carrier. Healed: up again.
    Cut(&'static str),
    /// The node itself takes this interface down, and up again.
    Flap(&'static str),
    /// SIGKILL, and started again as soon as it is reaped.
    Restart(&'static str),
    /// SIGSTOP to every process of the node, and SIGCONT after the time given. Meanwhile its links deliver nothing, and
    /// keep as much of what arrives as a NIC's ring does: that comes in first thing after.
    Freeze(Duration),
    /// These links go on with a carrier, and with something wrong. Healed: frames pass; those that are late stay late.
    Disturb(&'static [Disturbance]),
}

/// On some links of a node, in these directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// `sto`, `mgt`, or `nfs`: the private one.
    pub links: &'static [&'static str],
    pub directions: &'static [Direction],
    pub rule: Rule,
}

const BOTH: &[Direction] = &[Direction::ToNode, Direction::FromNode];
const HOSTS: u8 = Node::Host(1).kind_in_mac();
const META: u8 = Node::Meta.kind_in_mac();

/// What [`Action::Freeze`] does to the links of an SCVM. A node that stands still sends nothing either.
pub const FROZEN: &[Disturbance] = &[
    Disturbance { links: &["sto", "mgt", "nfs"], directions: &[Direction::FromNode], rule: Rule::Drop },
    Disturbance { links: &["sto", "mgt", "nfs"], directions: &[Direction::ToNode], rule: Rule::Hold },
];

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

impl Fault {
    pub fn find(name: &str) -> anyhow::Result<&'static Fault> {
        FAULTS.iter().chain(FOR_TESTS).find(|f| f.name == name).ok_or_else(|| {
            let names: Vec<_> = FAULTS.iter().map(|f| f.name).collect();
            anyhow::anyhow!("no fault {name:?}: there are {}", names.join(", "))
        })
    }

    /// The node it strikes. Errors: a node that is not of its kind.
    pub fn target(&self, wanted: Option<&str>) -> anyhow::Result<String> {
        let fits = |node: Node| {
            matches!(
                (self.kind, node),
                (Kind::Host, Node::Host(_)) | (Kind::Scvm, Node::Scvm(_)) | (Kind::Meta, Node::Meta)
            )
        };
        let nodes: Vec<String> =
            Node::all().into_iter().filter(|n| fits(*n)).map(|n| n.to_string()).collect();
        match wanted {
            None => Ok(nodes[0].clone()),
            Some(name) if nodes.iter().any(|n| n == name) => Ok(name.to_string()),
            Some(name) => {
                anyhow::bail!("{} cannot strike {name:?}: its targets are {}", self.name, nodes.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_of_the_right_kind() {
        let cut = Fault::find("storage-link-cut").unwrap();
        assert_eq!(cut.target(None).unwrap(), "scvm1");
        assert_eq!(cut.target(Some("scvm3")).unwrap(), "scvm3");
        assert!(cut.target(Some("host1")).is_err());
        assert!(cut.target(Some("scvm4")).is_err());
        assert!(Fault::find("no-such").unwrap_err().to_string().contains("server-hung"));
    }
}
