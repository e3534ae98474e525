//! Links that go bad while their carrier stays: frames lost, late, or kept back.
//!
//! A link is disturbed at our end of it (the switch's port, or the host's end of a private link) by a TCX program
//! that drops frames, or hands them to a TAP. A thread reads the TAP and puts the frames back later, byte by byte
//! what they were. Frames that were put back carry a mark, so that nobody delays them twice.

mod program;
mod tap;

use crate::namespace::NetNs;
use crate::sys::{self, Switch};
use anyhow::Context;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// As the node at the far end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToNode,
    FromNode,
}

/// What happens to the frames of one direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Drop,
    /// So many of a hundred, at random.
    DropPercent(u32),
    /// Those that carry more than so many bytes of IP: on a path that is narrower than its ends believe. What the kernel
    /// would cut into frames later is one frame here, and lost as one.
    DropLonger(u32),
    /// Those from or to nodes of this kind (as [`crate::topology::Node::mac`] numbers them); broadcasts of others pass.
    DropPeers(u8),
    /// All of them are late by this.
    Delay(Duration),
    /// Kept until the link is mended, then delivered in their order. What exceeds the room of a NIC's ring is lost.
    Hold,
    /// The same for TCP alone.
    HoldTcp,
}

/// Our end of a link.
pub struct Port<'a> {
    pub ns: &'a NetNs,
    pub interface: String,
    /// Ports by which frames from the node go on, each with the address it leads to. Empty: nowhere.
    pub others: Vec<(String, [u8; 6])>,
}

/// A disturbed direction. Dropping it mends the link; frames that are late stay late.
pub struct Disturbed {
    link: Option<OwnedFd>,
    late: Option<tap::Late>,
}

impl Port<'_> {
    /// From when `switch` is turned on. Errors: no such interface; the kernel takes no TCX link (Linux 6.6) or no TAP.
    pub fn disturb(&self, direction: Direction, rule: Rule, switch: &Switch) -> anyhow::Result<Disturbed> {
        let ingress = direction == Direction::FromNode;
        let (late, program) = match rule {
            Rule::Drop => (None, program::drop_all()),
            Rule::DropPercent(percent) => (None, program::drop_percent(percent)),
            Rule::DropLonger(bytes) => (None, program::drop_longer(bytes)),
            Rule::DropPeers(kind) => (None, program::drop_kind(kind, !ingress)),
            Rule::Delay(_) | Rule::Hold | Rule::HoldTcp => {
                let late = tap::Late::start(self, direction, rule)?;
                let program = program::redirect(late.interface, rule == Rule::HoldTcp);
                (Some(late), program)
            }
        };
        let program = program::when(switch.number(), program);
        let link = self.ns.run(|| -> anyhow::Result<OwnedFd> {
            let index =
                reroute_agent::config::interface_index(&self.interface).context("no such interface")?;
            Ok(sys::attach_tcx(index, ingress, &program)?)
        })?;
        let link = link.with_context(|| format!("cannot disturb {}", self.interface))?;
        Ok(Disturbed { link: Some(link), late })
    }
}

impl Drop for Disturbed {
    fn drop(&mut self) {
        if let Some(late) = &self.late {
            late.release();
        }
        // New frames pass by themselves from here on; the thread ends when it has nothing left.
        self.link.take();
    }
}
