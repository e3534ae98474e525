//! Filters on clsact: what carries the programs where there are no TCX links (before Linux 6.6).
//!
//! No link holds such a filter: it stays until somebody takes it away. What stands for it in our directory is a pin of
//! the program it runs, so that a filter that is wanted no more is found and taken away with everything else.

use super::SensorError;
use super::attach::explain;
use crate::config::interface_index;
use aya::programs::links::Link as _;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use std::path::Path;

/// Priority and handle of our filters: they tell ours from others'.
const PRIORITY: u16 = 49_100;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// How names of pins that stand for filters begin.
const INGRESS_PIN: &str = "filter_ingress";
const EGRESS_PIN: &str = "filter_egress";

/// The beginning of the pin's name for a filter of this direction.
pub(super) const fn pin(hook: TcAttachType) -> &'static str {
    match hook {
        TcAttachType::Egress => EGRESS_PIN,
        _ => INGRESS_PIN,
    }
}

/// Whether `pin` stands for a filter.
pub(super) fn is_filter(pin: &Path) -> bool {
    hook_of(pin).is_some()
}

fn hook_of(pin: &Path) -> Option<TcAttachType> {
    let name = pin.file_name()?.to_string_lossy();
    let begins = |with: &str| name.strip_prefix(with).is_some_and(|rest| rest.starts_with('_'));
    if begins(INGRESS_PIN) {
        Some(TcAttachType::Ingress)
    } else if begins(EGRESS_PIN) {
        Some(TcAttachType::Egress)
    } else {
        None
    }
}

/// Puts `program` in place of what our filter runs, between two packets. Errors: there is no such filter.
pub(super) fn replace(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcAttachType,
    pin: &Path,
) -> Result<(), ProgramError> {
    let standing =
        SchedClassifierLink::attached(interface, hook, PRIORITY, HANDLE, None).map_err(TcError::from)?;
    let id = program.attach_to_link(standing)?;
    // The filter stays when the agent goes.
    std::mem::forget(program.take_link(id)?);
    mark(program, pin)
}

/// Makes a filter that runs `program`, in place of one of ours that may be there unknown to us.
pub(super) fn create(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcAttachType,
    pin: &Path,
) -> Result<(), ProgramError> {
    // The mark comes first: a filter without one would never be taken away.
    mark(program, pin)?;
    if replace(program, interface, hook, pin).is_ok() {
        return Ok(());
    }
    // Refused if it is there already, whoever made it: then we share it.
    let qdisc = tc::qdisc_add_clsact(interface);
    let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None });
    let made = program.attach_with_options(interface, hook, options).and_then(|id| program.take_link(id));
    match (made, qdisc) {
        (Ok(link), _) => {
            std::mem::forget(link);
            Ok(())
        }
        (Err(_), Err(qdisc)) if !matches!(qdisc, TcError::AlreadyAttached) => Err(qdisc.into()),
        (Err(error), _) => Err(error),
    }
}

fn mark(program: &mut SchedClassifier, pin: &Path) -> Result<(), ProgramError> {
    let failed = |source: std::io::Error| ProgramError::from(TcError::from(source));
    if let Err(error) = std::fs::remove_file(pin)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(failed(error));
    }
    program.pin(pin).map_err(|error| failed(std::io::Error::other(error)))
}

/// Takes away the filter that `pin` stands for, if its interface is still there, and the pin.
pub(super) fn take_away(pin: &Path) -> Result<(), SensorError> {
    let Some(hook) = hook_of(pin) else { return Ok(()) };
    if let Some(interface) = interface_of(pin) {
        let gone = SchedClassifierLink::attached(&interface, hook, PRIORITY, HANDLE, None)
            .map_err(|error| error.to_string())
            .and_then(|link| link.detach().map_err(|error| explain(&error)));
        // A filter that somebody else took away leaves a pin behind; anything else shows when the next one is made.
        if let Err(error) = gone {
            tracing::warn!(interface, error, "no filter of ours to be taken away");
        }
    }
    std::fs::remove_file(pin)
        .map_err(|source| SensorError::Io { what: "removing the pin of an old filter", source })
}

/// The interface with the index that ends the pin's name, by the name it has now.
fn interface_of(pin: &Path) -> Option<String> {
    let name = pin.file_name()?.to_string_lossy();
    let index: u32 = name.rsplit('_').next()?.parse().ok()?;
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    let interface = netdevice::index_to_name(socket, index).ok()?;
    (interface_index(&interface) == Some(index)).then_some(interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_names_direction_and_interface() {
        let dir = Path::new("/run/pins");
        assert_eq!(hook_of(&dir.join("filter_egress_eth0_2")), Some(TcAttachType::Egress));
        assert_eq!(hook_of(&dir.join("filter_ingress_a_b_7")), Some(TcAttachType::Ingress));
        assert_eq!(hook_of(&dir.join("link_tc_egress_eth0_2")), None);
        assert_eq!(hook_of(&dir.join("filter_egress")), None);
        assert_eq!(interface_of(&dir.join("filter_egress_anything_1")).as_deref(), Some("lo"));
        assert_eq!(interface_of(&dir.join("filter_egress_lo_4000000")), None);
    }
}
