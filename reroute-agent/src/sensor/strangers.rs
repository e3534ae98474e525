//! XDP and TC programs of others on an interface that we watch.

use super::SensorError;
use super::attach::{name_of, programs_linked_from, read_dir};
use super::clsact;
use crate::netlink::filters::{self, Hook};
use crate::netlink::nic::Nic;
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use std::path::Path;

/// In words; ours are those that pins in `dir` stand for. Errors: the kernel does not tell.
pub fn strangers(dir: &Path, nic: &Nic) -> Result<Vec<String>, SensorError> {
    let mut ours = programs_linked_from(dir);
    let pins = read_dir(dir).unwrap_or_default().into_iter().filter(|path| clsact::is_filter(path));
    ours.extend(pins.filter_map(|path| ProgramInfo::from_pin(path).ok()).map(|info| info.id()));

    let mut all: Vec<String> =
        nic.xdp.iter().filter(|id| !ours.contains(id)).map(|id| name_of(*id)).collect();
    for (hook, name) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
        // Refused where there are no TCX links: then there are no programs on them.
        let Ok((_, programs)) = SchedClassifier::query_tcx(&nic.name, hook) else { continue };
        for program in programs.iter().filter(|p| !ours.contains(&p.id())) {
            let called = program.name_as_str().unwrap_or_default();
            all.push(format!("TC program {called} (id {}, tcx, {name})", program.id()));
        }
    }
    let filters = filters::list(nic.index)
        .map_err(|source| SensorError::Io { what: "reading the TC filters", source })?;
    for filter in filters.iter().filter(|f| f.program.is_none_or(|id| !ours.contains(&id))) {
        let hook = if filter.hook == Hook::Egress { "egress" } else { "ingress" };
        let name = filter.name.as_ref().map_or_else(String::new, |name| format!(" {name}"));
        all.push(format!("TC filter {}{name} (priority {}, {hook})", filter.kind, filter.priority));
    }
    Ok(all)
}
