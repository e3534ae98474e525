//! What Prometheus sees of a host. Labels are bounded by the configuration.

use super::pulse::Reject;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use reroute_core::host::Local;
use reroute_core::ids::{Network, Path};
use reroute_core::proto::Health;
use std::sync::atomic::AtomicU64;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PathLabels {
    scvm: u32,
    network: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    scvm: u32,
    network: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectLabels {
    network: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MoveLabels {
    cause: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

#[derive(Clone, Default)]
pub struct Metrics {
    sent: Family<PathLabels, Counter>,
    send_errors: Family<PathLabels, Counter>,
    answered: Family<PathLabels, Counter>,
    rejected: Family<RejectLabels, Counter>,
    pub late: Counter,
    state: Family<StateLabels, Gauge>,
    rtt: Family<PathLabels, Seconds>,
    moves: Family<MoveLabels, Counter>,
    gap: Seconds,
    route: Family<PathLabels, Gauge>,
    route_errors: Gauge,
    epoch: Gauge,
    affirming: Gauge,
    meta_up: Gauge,
    budget: Gauge,
    hold_down: Seconds,
    journal_lost: Gauge,
}

const STATES: [(Health, &str); 5] = [
    (Health::Unknown, "unknown"),
    (Health::Healthy, "healthy"),
    (Health::Suspect, "suspect"),
    (Health::Failed, "failed"),
    (Health::Recovering, "recovering"),
];

fn labels(path: Path) -> PathLabels {
    PathLabels { scvm: path.scvm.0, network: path.network.to_string() }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("reroute_host");
        r.register("pulses_sent", "Pulses sent", self.sent.clone());
        r.register("pulse_send_errors", "Pulses the own network stack refused", self.send_errors.clone());
        r.register("pulses_answered", "Genuine pulse replies", self.answered.clone());
        r.register("pulses_rejected", "Datagrams that were no reply to us", self.rejected.clone());
        r.register("late", "Times this agent itself ran later than a pulse period", self.late.clone());
        r.register("path_state", "1 for the state the path is in", self.state.clone());
        r.register("path_rtt_seconds", "Round trip of the last pulse", self.rtt.clone());
        r.register("moves", "Decisions to leave a path or server", self.moves.clone());
        r.register(
            "last_move_gap_seconds",
            "Last move: from letting go to route and sockets done",
            self.gap.clone(),
        );
        r.register("route", "1 for the path the route leads by", self.route.clone());
        r.register("errors", "Faults that stand, the route's among them", self.route_errors.clone());
        r.register("epoch", "Epoch of the login this host acts on", self.epoch.clone());
        r.register("affirming", "1 while this host affirms its login", self.affirming.clone());
        r.register("meta_up", "1 while a push stream of Meta is up", self.meta_up.clone());
        r.register("move_budget", "Moves left before the budget is empty", self.budget.clone());
        r.register(
            "hold_down_seconds",
            "How long a better place must be well before the host goes there",
            self.hold_down.clone(),
        );
        r.register("journal_lost_entries", "Journal entries lost", self.journal_lost.clone());
    }

    pub fn pulse_sent(&self, path: Path, worked: bool) {
        let family = if worked { &self.sent } else { &self.send_errors };
        family.get_or_create(&labels(path)).inc();
    }
    pub fn pulse_answered(&self, path: Path) {
        self.answered.get_or_create(&labels(path)).inc();
    }
    pub fn pulse_rejected(&self, network: Network, reject: Reject) {
        let labels = RejectLabels { network: network.to_string(), reason: reject.name() };
        self.rejected.get_or_create(&labels).inc();
    }
    /// `cause`: of the evidence, by kind.
    pub fn moved(&self, cause: &'static str) {
        self.moves.get_or_create(&MoveLabels { cause }).inc();
    }

    /// Brings the gauges up to date.
    pub fn show(&self, local: &Local, paths: &[Path], journal_lost: u64) {
        for health in &local.report.paths {
            for (state, name) in STATES {
                let (scvm, network) = (health.path.scvm.0, health.path.network.to_string());
                let labels = StateLabels { scvm, network, state: name };
                self.state.get_or_create(&labels).set(i64::from(health.state == state));
            }
            if let Some(rtt) = health.rtt_ns {
                self.rtt.get_or_create(&labels(health.path)).set(seconds(rtt));
            }
        }
        for path in paths {
            self.route.get_or_create(&labels(*path)).set(i64::from(local.report.path == Some(*path)));
        }
        if let Some(gap) = local.report.last_move_gap_ns {
            self.gap.set(seconds(gap));
        }
        self.route_errors.set(local.faults.len() as i64);
        self.epoch.set(local.report.epoch.0 as i64);
        self.affirming.set(i64::from(local.affirms.is_some()));
        self.meta_up.set(i64::from(local.meta_up));
        self.budget.set(i64::from(local.budget));
        self.hold_down.set(seconds(local.hold_down_ns));
        self.journal_lost.set(journal_lost as i64);
    }
}
