//! Clients without an agent: that their logins can move when a server is lost.

use super::Findings;
use crate::doctor::facts::Clients;

pub(super) fn check(clients: &Clients, out: &mut Findings) {
    const CHECK: &str = "clients_without_agent";
    if clients.without_agent.is_empty() {
        return;
    }
    let names = clients.without_agent.join(", ");
    let unfenced = clients.unfenced.iter().map(|(scvm, policy)| (scvm, format!("{policy:?}").to_lowercase()));
    if clients.unfenced.is_empty() {
        return out.ok(CHECK, format!("{names}: they can move away from every SCVM"));
    }
    if clients.fence_command == Some(true) {
        let scvms = unfenced.map(|(scvm, policy)| format!("{scvm} (policy {policy})")).collect::<Vec<_>>();
        let scvms = scvms.join(", ");
        return out.ok(
            CHECK,
            format!("{names}: they can move away from every SCVM, from {scvms} by the fence command"),
        );
    }
    for (scvm, policy) in unfenced {
        let stuck = format!(
            "{names}: no agent of theirs can say that they have left {scvm} (policy {policy}): when {scvm} cannot be \
             reached, nothing proves it shut, and they stand still"
        );
        match clients.fence_command {
            None => out.unknown(
                CHECK,
                format!("{stuck}, unless Meta has a fence command"),
                "`doctor` on Meta's node tells whether it has one",
            ),
            Some(_) => out.warning(
                CHECK,
                stuck,
                "use policy storage where the storage checks the owner; else give Meta a fence command, or be ready \
                 to vouch for its death",
            ),
        }
    }
}
