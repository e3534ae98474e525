//! Meta: that it can be reached, and that it does not sit in what it must fail over.

use super::Findings;
use crate::doctor::facts::{Facts, MetaRole};

pub(super) fn reachability(facts: &Facts, out: &mut Findings) {
    let lost: Vec<_> = facts.meta.iter().filter(|m| m.reached.is_err()).collect();
    let all_lost = lost.len() == facts.meta.len();
    for meta in &facts.meta {
        match &meta.reached {
            Ok(()) => out.ok("meta", format!("{} answers", meta.address)),
            Err(why) if all_lost => out.critical(
                "meta",
                format!("{} cannot be reached: {why}", meta.address),
                "start Meta, or correct cluster.meta: nothing can move without it",
            ),
            Err(why) => out.warning(
                "meta",
                format!("{} cannot be reached: {why}", meta.address),
                "look at that network: Meta should be reached by each",
            ),
        }
        if let Some(scvm) = &meta.in_scvm {
            inside(format!("{} is an address of {scvm}", meta.address), out);
        }
    }
}

pub(super) fn check(role: &MetaRole, out: &mut Findings) {
    super::agent(&role.agent, out);
    for (address, here) in &role.listen {
        match here {
            true => out.ok("listen", format!("{address} is this node's")),
            false => out.critical(
                "listen",
                format!("{address} is not an address of this node"),
                "give the node that address, or correct meta.listen",
            ),
        }
    }
    match role.signs_of_scvm.as_slice() {
        [] => out.ok("meta_place", "the store is outside the SCVMs"),
        signs => inside(format!("this node is an SCVM: {}", signs.join(", ")), out),
    }
    if let Some(program) = &role.fence_command {
        super::fences::command(program, out);
    }
}

fn inside(what: String, out: &mut Findings) {
    out.critical(
        "meta_place",
        format!("{what}: Meta's store would go down with a server that it must fail over"),
        "run Meta on a node of its own, or on a host",
    );
}
