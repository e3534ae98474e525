//! What can be broken, by name, and what mends it.

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
}

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
];

impl Fault {
    pub fn find(name: &str) -> anyhow::Result<&'static Fault> {
        FAULTS.iter().find(|f| f.name == name).ok_or_else(|| {
            let names: Vec<_> = FAULTS.iter().map(|f| f.name).collect();
            anyhow::anyhow!("no fault {name:?}: there are {}", names.join(", "))
        })
    }

    /// The node it strikes. Errors: a node that is not of its kind.
    pub fn target(&self, wanted: Option<&str>) -> anyhow::Result<String> {
        use crate::topology::Node;
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
