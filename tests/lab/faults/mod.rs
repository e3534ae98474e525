//! What can be broken, by name, and what mends it.
//!
//! | module | |
//! |---|---|
//! | [`catalogue`] | the faults |
//! | [`outcomes`] | what each of them leads to |

pub mod catalogue;
pub mod outcomes;

pub use catalogue::{ALONE, DEAD, FAULTS, FOR_TESTS, FROZEN};

use crate::options::{Options, ServerKind};
use crate::topology::Node;
use crate::wire::{Direction, Rule};
use anyhow::bail;
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
    Any,
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
    /// Every process of an SCVM stands still for good, and its links lose everything. With `known` the hypervisor of the
    /// host beside it lists its domain no more (needs [`Options::hypervisor`]). Healed: links, then server and agent
    /// start anew. The kernel's tables outlive it, as in no real machine.
    PowerOff { known: bool },
    /// What the controllable server is told, and what takes that back.
    Server { begin: &'static [&'static str], end: &'static [&'static str] },
    /// The controllable server answers nothing to the host beside it.
    Wedge,
    /// A process in the node that is a burden to everybody. Healed: SIGKILL; it ends by itself after [`load::LONGEST`].
    ///
    /// [`load::LONGEST`]: crate::load::LONGEST
    Load(Load),
    /// CLOCK_REALTIME of the node's agent steps by so many seconds, see [`crate::wall_clock`]. Healed: back.
    StepClock(i64),
    /// The file systems of the agent's state and of the logs take nothing more. Healed: they do.
    FillDisk,
    /// Another station of this network answers ARP for the node's address. Healed: it goes.
    Impersonate(&'static str),
}

/// A burden, see [`crate::load`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Load {
    /// Ordinary threads that spin.
    Cpu,
    /// Threads that spin as SCHED_FIFO, below every agent and above everything ordinary.
    Fifo,
    /// Threads whose timers expire all the time.
    Timers,
    /// Datagrams to an SCVM: no pulses, pulses that nobody signed, calls by UDP.
    Packets,
}

/// On some links of a node, in these directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// `sto`, `mgt`, or `nfs`: the private one.
    pub links: &'static [&'static str],
    pub directions: &'static [Direction],
    pub rule: Rule,
}

impl Fault {
    /// Those that have an outcome.
    pub fn all() -> impl Iterator<Item = &'static Fault> {
        FAULTS.iter().chain(ALONE)
    }

    /// Errors: what it needs is not in a lab with these options.
    pub fn check(&self, options: &Options) -> anyhow::Result<()> {
        let name = self.name;
        match self.action {
            Action::Server { .. } | Action::Wedge if options.server != ServerKind::Controllable => {
                bail!(
                    "{name} is done by the controllable server alone: start the lab with it (--server controllable)"
                )
            }
            Action::PowerOff { known: true } if !options.hypervisor => {
                bail!("{name} needs a hypervisor to ask: start the lab with one (--hypervisor)")
            }
            Action::StepClock(_) | Action::FillDisk if !options.agents => {
                bail!("{name} strikes an agent, and this lab has none")
            }
            _ => Ok(()),
        }
    }

    pub fn find(name: &str) -> anyhow::Result<&'static Fault> {
        Fault::all().chain(FOR_TESTS).find(|f| f.name == name).ok_or_else(|| {
            let names: Vec<_> = Fault::all().map(|f| f.name).collect();
            anyhow::anyhow!("no fault {name:?}: there are {}", names.join(", "))
        })
    }

    /// The node it strikes. Errors: a node that is not of its kind.
    pub fn target(&self, wanted: Option<&str>) -> anyhow::Result<String> {
        let fits = |node: Node| {
            matches!(
                (self.kind, node),
                (Kind::Host, Node::Host(_))
                    | (Kind::Scvm, Node::Scvm(_))
                    | (Kind::Meta, Node::Meta)
                    | (Kind::Any, _)
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
        assert_eq!(Fault::find("clock-step").unwrap().target(Some("meta")).unwrap(), "meta");
        assert!(Fault::find("no-such").unwrap_err().to_string().contains("server-hung"));
    }

    #[test]
    fn what_a_lab_cannot_do_is_named() {
        let check = |name: &str, options: &Options| Fault::find(name).unwrap().check(options);
        let plain = Options::default();
        assert!(check("server-hung", &plain).is_ok());
        assert!(check("server-slow", &plain).unwrap_err().to_string().contains("--server controllable"));
        assert!(check("server-slow", &plain.clone().server(ServerKind::Controllable)).is_ok());
        assert!(check("scvm-dead-known", &plain).unwrap_err().to_string().contains("--hypervisor"));
        assert!(check("scvm-dead-known", &plain.hypervisor()).is_ok());
    }
}
