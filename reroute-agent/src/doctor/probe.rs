//! What this kernel and this process can do. Nothing stays of what is tried here.

use super::facts::{Feature, Known, Machine};
use crate::netlink::sockets;
use crate::realtime;
use aya::maps::MapType;
use aya::programs::{ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use aya::util::KernelVersion;
use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;
use std::error::Error;

/// What the agent needs and `held` has not.
fn lacks(held: CapabilitySet) -> Vec<String> {
    let needed = [
        ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
        // Hosts: sizes of the path, who else has their address. SCVMs: that too, resets, asking a peer.
        ("CAP_NET_RAW", CapabilitySet::NET_RAW),
        ("CAP_BPF", CapabilitySet::BPF),
        ("CAP_PERFMON", CapabilitySet::PERFMON),
        ("CAP_SYS_NICE", CapabilitySet::SYS_NICE),
        ("CAP_IPC_LOCK", CapabilitySet::IPC_LOCK),
        ("CAP_KILL", CapabilitySet::KILL),
    ];
    let all_powerful = held.contains(CapabilitySet::SYS_ADMIN);
    let lacks = needed.into_iter().filter(|(_, one)| {
        let covered = all_powerful && (*one == CapabilitySet::BPF || *one == CapabilitySet::PERFMON);
        !held.contains(*one) && !covered
    });
    lacks.map(|(name, _)| name.to_string()).collect()
}

pub(super) fn machine() -> Machine {
    let held =
        rustix::thread::capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
    Machine {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        lacks: lacks(held),
        lockdown: lockdown(),
        clock_source: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        fifo: realtime::allowed().map_err(|e| format!("{e:#}")),
        memory_lock: match held.contains(CapabilitySet::IPC_LOCK) {
            true => None,
            false => getrlimit(Resource::Memlock).current,
        },
        destroys_sockets: sockets::can_destroy().map_err(|e| e.to_string()),
    }
}

fn line(path: &str) -> Known<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_string()),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

/// The word in brackets is the one in force.
fn lockdown() -> Known<String> {
    let text = line("/sys/kernel/security/lockdown")?;
    let chosen = text.split_whitespace().find_map(|w| w.strip_prefix('[')?.strip_suffix(']'));
    chosen.map(str::to_string).ok_or_else(|| format!("/sys/kernel/security/lockdown says {text:?}"))
}

/// What the programs use, tried where it can be, else known by the kernel's version.
pub(super) fn features() -> Vec<Feature> {
    let since = |version: KernelVersion| {
        KernelVersion::current().map(|running| running >= version).map_err(|e| e.to_string())
    };
    let helper = |helper| is_helper_supported(ProgramType::Xdp, helper).map_err(|e| chain(&e));
    let program = |kind| is_program_supported(kind).map_err(|e| chain(&e));
    let feature = |name, since, found| Feature { name, since, instead: None, found };
    vec![
        feature("XDP programs", "4.8", program(ProgramType::Xdp)),
        feature("TC programs", "4.1", program(ProgramType::SchedClassifier)),
        feature("ring buffers", "5.8", is_map_supported(MapType::RingBuf).map_err(|e| chain(&e))),
        feature("bpf_timer", "5.15", helper(BpfHelper::BPF_FUNC_timer_init)),
        feature("bpf_loop", "5.17", helper(BpfHelper::BPF_FUNC_loop)),
        feature("XDP programs for frames of several buffers", "5.18", since(KernelVersion::new(5, 18, 0))),
        Feature {
            instead: Some("TC ingress"),
            ..feature("XDP links", "5.9", since(KernelVersion::new(5, 9, 0)))
        },
        Feature {
            instead: Some("filters on clsact"),
            ..feature("TCX links", "6.6", Ok(SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()))
        },
    ]
}

/// An error with its causes: the errno stands last.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_capability_that_is_missing_is_named() {
        assert_eq!(lacks(CapabilitySet::all()), [""; 0]);
        assert_eq!(lacks(CapabilitySet::all() - CapabilitySet::NET_RAW), ["CAP_NET_RAW"]);
        let powerful = CapabilitySet::all() - CapabilitySet::BPF - CapabilitySet::PERFMON;
        assert_eq!(lacks(powerful), [""; 0], "CAP_SYS_ADMIN covers them");
        assert_eq!(lacks(powerful - CapabilitySet::SYS_ADMIN), ["CAP_BPF", "CAP_PERFMON"]);
    }

    /// The tests of the programs need all of it too.
    #[test]
    fn this_machine_has_what_the_programs_need() {
        for feature in features() {
            assert_eq!(feature.found, Ok(true), "{}", feature.name);
        }
        let machine = machine();
        assert_eq!((machine.lacks.as_slice(), machine.fifo), (&[][..], Ok(())));
        assert_eq!(machine.destroys_sockets, Ok(true));
    }
}
