//! One failover out of the journals: what happened when, and what should have happened and did not.

use reroute_core::ids::{BootNs, HostId};
use reroute_core::proto::FenceProof;
use reroute_core::timeline::{Entry, Event};
use serde::Serialize;

/// A step of a failover.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    pub event: &'static str,
    /// Since the fault.
    pub at_us: u64,
    pub node: String,
    pub detail: String,
}

/// Without these a failover is not explained.
pub const REQUIRED: &[&str] = &[
    "fault",
    "kernel_signal",
    "verdict",
    "revoke_sent",
    "fence_proven",
    "route_replaced",
    "sockets_reset",
    "first_reply",
];

#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    pub steps: Vec<Step>,
    pub proof: Option<FenceProof>,
}

impl Timeline {
    pub fn missing(&self) -> Vec<&'static str> {
        REQUIRED.iter().copied().filter(|name| !self.steps.iter().any(|s| s.event == *name)).collect()
    }
}

/// Whose failover: that of `host`, away from `scvm`, between two times of the lab's one clock.
pub struct Window<'a> {
    pub host: HostId,
    pub host_name: &'a str,
    pub scvm_name: &'a str,
    pub fault: &'a str,
    pub from: BootNs,
    pub to: BootNs,
}

/// The first of each kind of step in the window, by time.
pub fn read(entries: &[Entry], window: &Window<'_>) -> Timeline {
    let mut steps =
        vec![Step { event: "fault", at_us: 0, node: window.scvm_name.into(), detail: window.fault.into() }];
    let mut proof = None;
    for entry in entries.iter().filter(|e| e.at >= window.from && e.at <= window.to) {
        let Some((event, detail)) = step(entry, window) else { continue };
        if steps.iter().any(|s| s.event == event) {
            continue;
        }
        if let Event::FenceProven { proof: by, .. } = &entry.event {
            proof = Some(*by);
        }
        let at_us = entry.at.since(window.from) / 1_000;
        steps.push(Step { event, at_us, node: entry.node.clone(), detail });
    }
    steps.sort_by_key(|s| s.at_us);
    Timeline { steps, proof }
}

fn step(entry: &Entry, w: &Window<'_>) -> Option<(&'static str, String)> {
    let by_host = entry.node == w.host_name;
    let by_old = entry.node == w.scvm_name;
    let of_host = |host: &HostId| *host == w.host;
    Some(match &entry.event {
        Event::KernelSignal { signal, age_ns, waiting, .. } if by_old => {
            ("kernel_signal", format!("{signal} ({:.1} ms, {waiting} calls waiting)", *age_ns as f64 / 1e6))
        }
        Event::ServerProcess { pid, alive: false } if by_old => {
            ("kernel_signal", format!("process_exit (pid {pid})"))
        }
        Event::Verdict { to, reason, .. } if by_host => ("verdict", format!("to {to}: {reason}")),
        Event::MoveRecorded { host, to, epoch, .. } if of_host(host) => {
            ("move_recorded", format!("to {to} at {epoch}"))
        }
        Event::RevokeSent { host, scvm, epoch } if of_host(host) => {
            ("revoke_sent", format!("to {scvm}, {epoch}"))
        }
        Event::Released { epoch } if by_host => ("released", epoch.to_string()),
        Event::Fenced { host, epoch, in_progress, orphans } if of_host(host) && by_old => {
            ("fenced", format!("{epoch}, {in_progress} calls in progress, {orphans} orphans"))
        }
        Event::FenceProven { host, scvm, proof, does_not_cover, .. } if of_host(host) => {
            let trust = match does_not_cover.as_str() {
                "" => String::new(),
                what => format!("; does not cover {what}"),
            };
            ("fence_proven", format!("{scvm}: {}{trust}", proof_name(*proof)))
        }
        Event::Admitted { host, epoch } if of_host(host) && !by_old => {
            ("admitted", format!("by {} at {epoch}", entry.node))
        }
        Event::LoginStored { host, scvm, epoch } if of_host(host) => {
            ("login_stored", format!("{scvm} at {epoch}"))
        }
        Event::RouteReplaced { path, .. } if by_host => ("route_replaced", format!("to {path}")),
        Event::SocketsReset { count } if by_host => ("sockets_reset", format!("{count} destroyed")),
        Event::ResetAsked { scvm, connections, .. } if by_host => {
            ("reset_asked", format!("{scvm} is to end {connections} connections"))
        }
        Event::ClientReset { host, tickled, destroyed, .. } if of_host(host) && !by_old => {
            ("client_reset", format!("by {}: {} connections", entry.node, tickled + destroyed))
        }
        Event::OldConnectionsEnded { connections, .. } if by_host => {
            ("sockets_reset", format!("{connections} ended"))
        }
        Event::FirstReply { host, epoch } if of_host(host) && !by_old => {
            ("first_reply", format!("from {} at {epoch}", entry.node))
        }
        _ => return None,
    })
}

/// As in JSON: `killed`, `process_dead`, ...
pub fn proof_name(proof: FenceProof) -> String {
    serde_json::to_value(proof).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reroute_core::ids::{Epoch, ScvmId};

    fn window() -> Window<'static> {
        Window {
            host: HostId(1),
            host_name: "host1",
            scvm_name: "scvm1",
            fault: "server-killed",
            from: BootNs(1_000_000),
            to: BootNs(900_000_000),
        }
    }

    fn entry(at_us: u64, node: &str, event: Event) -> Entry {
        Entry { at: BootNs(1_000_000 + at_us * 1_000), node: node.into(), event }
    }

    #[test]
    fn others_and_earlier_steps_do_not_count() {
        let reset = |n| Event::SocketsReset { count: n };
        let proven = |host| Event::FenceProven {
            host: HostId(host),
            scvm: ScvmId(1),
            epoch: Epoch(1),
            proof: FenceProof::ProcessDead,
            does_not_cover: String::new(),
        };
        let mut early = entry(0, "host1", reset(9));
        early.at = BootNs(10);
        let entries = [
            early,
            entry(5, "host2", reset(1)),
            entry(7, "meta", proven(2)),
            entry(8, "meta", proven(1)),
            entry(9, "host1", reset(2)),
            entry(11, "host1", reset(3)),
        ];
        let timeline = read(&entries, &window());
        let seen: Vec<_> = timeline.steps.iter().map(|s| (s.event, s.at_us)).collect();
        assert_eq!(seen, [("fault", 0), ("fence_proven", 8), ("sockets_reset", 9)]);
        assert_eq!(timeline.proof, Some(FenceProof::ProcessDead));
        assert_eq!(
            timeline.missing(),
            ["kernel_signal", "verdict", "revoke_sent", "route_replaced", "first_reply"]
        );
    }
}
