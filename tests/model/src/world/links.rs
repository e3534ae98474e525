//! Which links are cut: each way of its own.

use super::flight::Node;
use reroute_core::ids::Network;
use std::collections::BTreeSet;

/// One direction of a link. `None`: to or from everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    pub from: Option<Node>,
    pub to: Option<Node>,
    pub network: Network,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Links {
    cut: BTreeSet<Link>,
}

impl Links {
    pub fn cut(&mut self, link: Link) {
        self.cut.insert(link);
    }
    pub fn heal(&mut self, link: Link) {
        self.cut.remove(&link);
    }
    pub fn heal_all(&mut self) {
        self.cut.clear();
    }
    pub fn each(&self) -> impl Iterator<Item = Link> {
        self.cut.iter().copied()
    }

    pub fn carries(&self, from: Node, to: Node, network: Network) -> bool {
        if self.cut.is_empty() {
            return true;
        }
        let is_cut = |from, to| self.cut.contains(&Link { from, to, network });
        !(is_cut(Some(from), Some(to)) || is_cut(Some(from), None) || is_cut(None, Some(to)))
    }
}
