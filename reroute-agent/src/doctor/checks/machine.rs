//! The machine: rights, clocks, files.

use super::Findings;
use crate::doctor::facts::{Facts, StateDir};

/// Reading one of these costs a trap or a bus access: every packet that needs the time would pay.
const SLOW_CLOCKS: [&str; 4] = ["hpet", "acpi_pm", "jiffies", "refined-jiffies"];

pub(super) fn check(facts: &Facts, out: &mut Findings) {
    let machine = &facts.machine;
    out.ok("kernel", format!("Linux {}", machine.kernel));
    match machine.lacks.as_slice() {
        [] => out.ok("capabilities", "all that the agent needs"),
        lacks => out.warning(
            "capabilities",
            format!("missing here: {}", lacks.join(", ")),
            "run this as root; if the agent runs with the same rights, give it these",
        ),
    }
    match &machine.fifo {
        Ok(()) => out.ok("realtime", "a thread may become SCHED_FIFO"),
        Err(why) => out.critical(
            "realtime",
            format!("no thread may become SCHED_FIFO: {why}"),
            "give the agent CAP_SYS_NICE; in a cgroup v1 container, a cpu.rt_runtime_us",
        ),
    }
    if let Some(bytes) = machine.memory_lock {
        out.critical(
            "memory_lock",
            format!("only {} KiB may be locked", bytes / 1024),
            "give the agent CAP_IPC_LOCK, or LimitMEMLOCK=infinity",
        );
    }
    match &machine.clock_source {
        Ok(name) if SLOW_CLOCKS.contains(&name.as_str()) => out.warning(
            "clock",
            format!("clock source {name}: slow to read"),
            "use tsc, kvm-clock, xen or hyperv where the machine has one (`clocksource=` on the kernel's command line)",
        ),
        Ok(name) => out.ok("clock", format!("clock source {name}")),
        Err(why) => out.unknown("clock", why, "look at /sys/devices/system/clocksource"),
    }
    if facts.scvm.is_some() {
        match &machine.lockdown {
            Ok(mode) if mode == "confidentiality" => out.warning(
                "lockdown",
                "the kernel is locked down for confidentiality: BPF programs may be refused",
                "boot with lockdown=integrity, or none",
            ),
            Ok(mode) => out.ok("lockdown", mode),
            Err(why) => {
                out.unknown("lockdown", why, "mount securityfs to see it; the programs tell by loading")
            }
        }
    }
    if facts.scvm.is_some() || facts.host.is_some() {
        match &machine.destroys_sockets {
            Ok(true) => out.ok("sock_destroy", "the kernel destroys sockets on request"),
            // An SCVM must be rid of the sockets of a host that it has let go.
            Ok(false) if facts.scvm.is_some() => out.critical(
                "sock_destroy",
                "the kernel cannot destroy sockets: nobody could move here, or back here",
                "use a kernel with CONFIG_INET_DIAG_DESTROY",
            ),
            Ok(false) => out.warning(
                "sock_destroy",
                "the kernel cannot destroy sockets: after a move the new server resets the client's connections, and those of another network end by their timeouts",
                "use a kernel with CONFIG_INET_DIAG_DESTROY",
            ),
            Err(why) => out.unknown("sock_destroy", why, "run this as root"),
        }
    }
    files(facts, out);
}

fn files(facts: &Facts, out: &mut Findings) {
    let key = &facts.key_file;
    let path = key.path.display();
    if key.mode & 0o077 != 0 {
        out.critical(
            "key_file",
            format!("{path} has mode {:03o}: others can read the cluster's secret", key.mode & 0o777),
            "`chmod 600` it, and make a new key if somebody may have read this one",
        );
    } else if key.owner != 0 {
        out.warning("key_file", format!("{path} belongs to uid {}", key.owner), "`chown root` it");
    } else {
        out.ok("key_file", format!("{path}, mode {:03o}", key.mode & 0o777));
    }
    for (dir, state) in &facts.state_dirs {
        let shown = dir.display();
        match state {
            StateDir::Writable => out.ok("state_dir", format!("{shown} is writable")),
            StateDir::Missing => out.warning(
                "state_dir",
                format!("{shown} does not exist"),
                "make it; after the first start, its loss means lost records",
            ),
            StateDir::NoDirectory => out.critical(
                "state_dir",
                format!("{shown} is not a directory"),
                "move it away, or correct `state_dir`",
            ),
            StateDir::NotWritable => out.critical(
                "state_dir",
                format!("{shown} cannot be written"),
                "correct its owner, mode or mount",
            ),
        }
    }
}
