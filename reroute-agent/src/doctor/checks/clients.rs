//! Clients without an agent: that their logins can move when a server is lost.

use super::Findings;
use crate::doctor::facts::Clients;

pub(super) fn check(clients: &Clients, out: &mut Findings) {
    if clients.without_agent.is_empty() {
        return;
    }
    let names = clients.without_agent.join(", ");
    if clients.unfenced.is_empty() {
        out.ok("clients_without_agent", format!("{names}: they can move away from every SCVM"));
    }
    for (scvm, policy) in &clients.unfenced {
        let policy = format!("{policy:?}").to_lowercase();
        out.warning(
            "clients_without_agent",
            format!(
                "{names}: no agent of theirs can say that they have left {scvm} (policy {policy}): when {scvm} cannot \
                 be reached, nothing proves it shut, and they stand still"
            ),
            "use policy storage where the storage checks the owner; else give the SCVM a fence command, or be ready \
             to vouch for its death",
        );
    }
}
