//! What Meta exports. Counters are kept here; the state of sessions and logins is read from the last snapshot of the
//! view when somebody asks.

use crate::clock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use reroute_core::ids::{BootNs, ScvmId};
use reroute_core::proto::{ClusterView, LoginState, Refusal, SessionState};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Move {
    pub cause: String,
    pub outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Proof {
    pub proof: String,
}

#[derive(Clone, Debug)]
pub struct Metrics {
    pub messages: Counter,
    pub rejected: Family<Reason, Counter>,
    pub moves: Family<Move, Counter>,
    pub fences: Family<Proof, Counter>,
    pub store_seconds: Histogram,
    pub store_failures: Counter,
    pub lease_seconds: Histogram,
    pub lease_failures: Counter,
    pub leader: Gauge,
    pub streams: Gauge,
    pub streams_dropped: Counter,
    pub faults: Counter,
    snapshot: Snapshot,
}

/// The view as it was at a time.
type Snapshot = Arc<Mutex<(BootNs, Arc<ClusterView>)>>;

impl Metrics {
    pub fn new() -> Metrics {
        Metrics {
            messages: Counter::default(),
            rejected: Family::default(),
            moves: Family::default(),
            fences: Family::default(),
            store_seconds: Histogram::new(exponential_buckets(0.000_125, 2.0, 14)),
            store_failures: Counter::default(),
            lease_seconds: Histogram::new(exponential_buckets(0.000_031_25, 2.0, 16)),
            lease_failures: Counter::default(),
            leader: Gauge::default(),
            streams: Gauge::default(),
            streams_dropped: Counter::default(),
            faults: Counter::default(),
            snapshot: Arc::default(),
        }
    }

    pub fn registry(&self) -> Registry {
        let mut all = Registry::default();
        let r = all.sub_registry_with_prefix("reroute_meta");
        r.register("messages", "Messages from agents that were taken in", self.messages.clone());
        r.register("messages_rejected", "Messages turned away; nothing was changed", self.rejected.clone());
        r.register("moves", "Moves of logins", self.moves.clone());
        r.register("fences", "Fences proven, by proof", self.fences.clone());
        r.register("store_seconds", "Time of a durable write", self.store_seconds.clone());
        r.register("store_failures", "Writes the store did not take", self.store_failures.clone());
        r.register(
            "lease_seconds",
            "Time of a confirmation of the leader's lease",
            self.lease_seconds.clone(),
        );
        r.register("lease_failures", "Confirmations the store could not give", self.lease_failures.clone());
        r.register("leader", "1 while this Meta's own lease is confirmed in the store", self.leader.clone());
        r.register("push_streams", "Push streams that are open", self.streams.clone());
        r.register("push_streams_dropped", "Push streams that did not drain", self.streams_dropped.clone());
        r.register("faults", "Journal entries that somebody should look at", self.faults.clone());
        r.register_collector(Box::new(ViewCollector(self.snapshot.clone())));
        all
    }

    pub fn reject(&self, reason: &str) {
        self.rejected.get_or_create(&Reason { reason: reason.into() }).inc();
    }

    pub fn moved(&self, cause: &str, outcome: &str) {
        self.moves.get_or_create(&Move { cause: cause.into(), outcome: outcome.into() }).inc();
    }

    pub fn fenced(&self, proof: &str) {
        self.fences.get_or_create(&Proof { proof: proof.into() }).inc();
    }

    pub fn snapshot(&self, now: BootNs, view: Arc<ClusterView>) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = (now, view);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

/// The label a refusal is counted under.
pub fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NoSession => "no_session",
        Refusal::NotLeader { .. } => "not_leader",
        Refusal::Version { .. } => "version",
        Refusal::Cluster { .. } => "cluster",
        Refusal::UnknownNode { .. } => "node",
        Refusal::UnknownScvm { .. } => "scvm",
        Refusal::StaleEpoch { .. } => "epoch",
        Refusal::MoveToSelf { .. } => "move_to_self",
        Refusal::TargetNotReady { .. } => "target",
        Refusal::Draining { .. } => "draining",
        Refusal::NotDraining { .. } => "not_draining",
        Refusal::NowhereToGo { .. } => "nowhere_to_go",
        Refusal::NothingToVouch { .. } => "nothing_to_vouch",
        Refusal::NotBeside { .. } => "not_beside",
        Refusal::OtherInstance { .. } => "other_instance",
        Refusal::Blocked { .. } => "blocked",
        Refusal::MoveInProgress { .. } => "move_in_progress",
        Refusal::Store { .. } => "store",
        Refusal::WrongSender { .. } => "sender",
        Refusal::WithoutAgent { .. } | Refusal::WithAgent { .. } => "agent",
        Refusal::ProofNotAllowed { .. } => "proof",
        Refusal::TooOld { .. } => "too_old",
    }
}

#[derive(Debug)]
struct ViewCollector(Snapshot);

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// One family of gauges: a value per label set. The registry puts its prefix before the name.
fn family<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (L, f64)>,
) -> fmt::Result {
    let kind = ConstGauge::new(0.0).metric_type();
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

impl Collector for ViewCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let (at, view) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stale = clock::now().since(at);
        let e = &mut encoder;
        let none: [(&str, &str); 0] = [];
        family(e, "term", "Term of this Meta", [(none, view.term.0 as f64)].into_iter())?;
        let states = [
            ("absent", SessionState::Absent),
            ("alive", SessionState::Alive),
            ("suspect", SessionState::Suspect),
            ("lost", SessionState::Lost),
        ];
        let counts = states.iter().map(|(name, state)| {
            ([("state", *name)], view.sessions.iter().filter(|s| s.state == *state).count() as f64)
        });
        family(e, "sessions", "SCVM sessions by state", counts)?;
        let ages = view.sessions.iter().filter_map(|s| {
            Some(([("scvm", s.name.clone())], seconds(s.keepalive_age_ns?.saturating_add(stale))))
        });
        family(e, "keepalive_age_seconds", "Since the last keepalive", ages)?;
        let bypass =
            view.sessions.iter().map(|s| ([("scvm", s.name.clone())], f64::from(u8::from(s.health.bypass))));
        family(e, "bypass", "1 while one-writer is suspended on this SCVM", bypass)?;
        let host_name = |id| view.hosts.iter().find(|h| h.host == id).map(|h| h.name.clone());
        let scvm_name = |id| view.sessions.iter().find(|s| s.scvm == id).map(|s| s.name.clone());
        let logins = view.logins.iter().map(|l| {
            let (state, scvm) = match l.login.state {
                LoginState::At { scvm, .. } => ("at", scvm),
                LoginState::Moving { to, .. } => ("moving", to),
                LoginState::Evicted { .. } => ("evicted", ScvmId::default()),
            };
            let labels = [
                ("host", host_name(l.login.host).unwrap_or_default()),
                ("scvm", scvm_name(scvm).unwrap_or_default()),
                ("state", state.to_string()),
            ];
            (labels, l.login.epoch().0 as f64)
        });
        family(e, "login_epoch", "Epoch of each host's login", logins)?;
        let moving =
            view.logins.iter().filter(|l| matches!(l.login.state, LoginState::Moving { .. })).map(|l| {
                let age = seconds(l.age_ns.saturating_add(stale));
                ([("host", host_name(l.login.host).unwrap_or_default())], age)
            });
        family(e, "moving_seconds", "How long moves under way have taken", moving)?;
        let reports = view.hosts.iter().filter_map(|h| {
            Some(([("host", h.name.clone())], seconds(h.report_age_ns?.saturating_add(stale))))
        });
        family(e, "host_report_age_seconds", "Since the host's agent was heard", reports)?;
        let unheard = view.hosts.iter().filter(|h| h.has_agent && h.report.is_none()).count() as f64;
        let wants: Vec<_> = view.hosts.iter().filter_map(|h| Some((h, h.wants.as_ref()?))).collect();
        let waiting = wants.iter().map(|(h, w)| {
            let labels = [("host", h.name.clone()), ("scvm", scvm_name(w.scvm).unwrap_or_default())];
            (labels, seconds(w.age_ns.saturating_add(stale)))
        });
        family(
            e,
            "client_waiting_seconds",
            "How long a client without an agent has waited for its login",
            waiting,
        )?;
        let slowed = wants.iter().filter(|(_, w)| w.slowed_ns.is_some()).count() as f64;
        family(e, "clients_slowed", "Clients that alternate between servers", [(none, slowed)].into_iter())?;
        let ghosts = view.logins.iter().map(|l| {
            let labels = [("host", host_name(l.login.host).unwrap_or_default())];
            (labels, f64::from(u8::from(l.ghost)))
        });
        family(e, "login_ghost", "1: nobody stands behind this login any more", ghosts)?;
        let connections = view.logins.iter().filter_map(|l| {
            let held = l.holder.as_ref()?;
            let labels = [("host", host_name(l.login.host).unwrap_or_default())];
            Some((labels, f64::from(held.facts.connections)))
        });
        family(e, "login_connections", "Connections of the client, by its server's own word", connections)?;
        let blocks = || {
            view.blocks.iter().map(|b| {
                let host = host_name(b.block.host).unwrap_or_default();
                ([("host", host), ("block", b.block.id.0.to_string())], b)
            })
        };
        let left = blocks().map(|(labels, b)| (labels, seconds(b.remaining_ns.saturating_sub(stale))));
        family(e, "block_remaining_seconds", "Until an operator's block of this client ends", left)?;
        let open = blocks().map(|(labels, b)| (labels, b.unconfirmed.len() as f64));
        family(e, "block_unconfirmed_scvms", "SCVMs not known to enforce it", open)?;
        let alarms = view.alarms.len() as f64;
        family(e, "alarms", "Faults of the cluster that stand", [(none, alarms)].into_iter())?;
        family(e, "hosts_unheard", "Hosts not heard in this term", [(none, unheard)].into_iter())
    }
}
