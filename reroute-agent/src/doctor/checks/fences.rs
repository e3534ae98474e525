//! Who can prove that an SCVM is shut: the policies, the hypervisor, the fence command.

use super::Findings;
use crate::doctor::facts::{Hypervisor, Program, ProgramState};
use reroute_core::host::Life;
use reroute_core::ids::FencePolicy;

/// One cluster, two ways to be shut: the storage refuses a former owner only where a later one has taken the ownership.
pub(super) fn policies(policies: &[(String, FencePolicy)], out: &mut Findings) {
    let named = |is_storage: bool| {
        let these = policies.iter().filter(|(_, policy)| (*policy == FencePolicy::Storage) == is_storage);
        these
            .map(|(name, policy)| format!("{name} ({})", format!("{policy:?}").to_lowercase()))
            .collect::<Vec<_>>()
    };
    let (storage, others) = (named(true).join(", "), named(false).join(", "));
    if storage.is_empty() || others.is_empty() {
        return out.ok("fence_policy", [storage, others].concat());
    }
    out.warning(
        "fence_policy",
        format!(
            "{storage} beside {others}: a late write of the former is refused only if the latter take the volumes' \
             ownership at the storage, too"
        ),
        "make sure that every access server takes it; else give no SCVM of this cluster policy storage",
    );
}

pub(super) fn hypervisor(hypervisor: &Hypervisor, out: &mut Findings) {
    const CHECK: &str = "hypervisor";
    let Hypervisor { program, domain, answer } = hypervisor;
    if !can_run(CHECK, program, out) {
        return;
    }
    let shown = program.path.display();
    match answer.as_ref().map(Vec::as_slice) {
        Err(why) => out.critical(
            CHECK,
            format!("{why}: the death of {domain} would never be proven"),
            &format!("run `{shown} list -v` by hand, as root"),
        ),
        Ok([Life::Alive]) => out.ok(CHECK, format!("{shown} shows {domain}: alive")),
        Ok([life]) => out.warning(
            CHECK,
            format!("{shown} shows {domain}: {}", format!("{life:?}").to_lowercase()),
            "if nobody meant that, start the SCVM again",
        ),
        Ok([]) => out.warning(
            CHECK,
            format!("{shown} shows no domain {domain}"),
            "start the SCVM, or correct `domain`: as `xl list` shows it",
        ),
        Ok(_) => out.critical(
            CHECK,
            format!("{shown} shows several domains {domain}: whose death counts cannot be told"),
            "give each its own name",
        ),
    }
}

pub(super) fn command(program: &Program, out: &mut Findings) {
    if can_run("fence_command", program, out) {
        out.ok(
            "fence_command",
            format!("{} can be run (whether it fences, only its rehearsal tells)", program.path.display()),
        );
    }
}

/// Whether it can be; if not, it was said.
fn can_run(check: &'static str, program: &Program, out: &mut Findings) -> bool {
    let path = program.path.display();
    let (what, advice) = match &program.state {
        ProgramState::Runs => return true,
        ProgramState::Relative => ("is not an absolute path", "name the program from the root on"),
        ProgramState::NoFile => ("is no file", "install it there, or correct `command`"),
        ProgramState::NotExecutable => ("may not be executed", "`chmod 755` it, on a mount without noexec"),
        ProgramState::Unseen(why) => {
            out.unknown(check, format!("{path}: {why}"), "run this as root");
            return false;
        }
    };
    out.critical(check, format!("{path} {what}: no fence would come of it, and moves would wait"), advice);
    false
}
