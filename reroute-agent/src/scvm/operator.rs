//! What the operators' socket serves: status, flows, bypass.

use super::report;
use crate::sensor::Attachment;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use reroute_common::flow::Flow;
use reroute_common::table::{Client, Config, Server};
use reroute_core::ids::{BootNs, HostId};
use reroute_core::proto::ClusterView;
use reroute_core::scvm::{Outcome, View};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// The real-time thread answers within a beat; if it does not, an operator must hear that.
const ANSWER: Duration = Duration::from_secs(2);

/// How things stood at `at`.
#[derive(Debug)]
pub struct Snapshot {
    pub at: BootNs,
    pub machine: View,
    pub cluster: Option<ClusterView>,
    /// When it was heard.
    pub cluster_at: BootNs,
    /// Registered hosts, and host 0: everybody else.
    pub clients: Vec<Client>,
    pub server: Server,
    pub config: Config,
    pub journal_lost: u64,
}

/// What the real-time thread leaves for others to read.
#[derive(Debug)]
pub struct Shared {
    pub node: String,
    hosts: BTreeMap<HostId, String>,
    attachments: Vec<Attachment>,
    snapshot: Mutex<Option<Arc<Snapshot>>>,
}

impl Shared {
    pub fn new(node: String, hosts: BTreeMap<HostId, String>, attachments: Vec<Attachment>) -> Shared {
        Shared { node, hosts, attachments, snapshot: Mutex::new(None) }
    }
    pub fn put(&self, snapshot: Snapshot) {
        let new = Some(Arc::new(snapshot));
        let old = std::mem::replace(&mut *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner), new);
        // Freed outside the lock.
        drop(old);
    }
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    pub fn host_name(&self, host: HostId) -> String {
        match self.hosts.get(&host) {
            Some(name) => name.clone(),
            None if host.0 == 0 => "unregistered".into(),
            None => host.to_string(),
        }
    }
}

/// Asked of the real-time thread.
pub enum Request {
    Bypass { on: bool, actor: String, answer: oneshot::Sender<Outcome<()>> },
    Flows { answer: oneshot::Sender<Outcome<Vec<(HostId, Flow)>>> },
}

#[derive(Clone)]
struct App {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

type Answer = Result<Json<Value>, (StatusCode, String)>;

pub fn router(shared: Arc<Shared>, requests: mpsc::Sender<Request>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/flows", get(flows))
        .route("/v1/bypass/{switch}", post(bypass))
        .with_state(App { shared, requests })
}

fn failed(why: impl ToString) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, why.to_string())
}

/// Sends a request to the real-time thread and waits for its answer.
async fn ask<T>(
    app: &App,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Result<T, (StatusCode, String)> {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        app.requests.send(request(answer)).await.ok()?;
        answered.await.ok()
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(failed("the agent is stopping")),
        Err(_) => Err(failed("the agent's real-time thread does not answer")),
    }
}

async fn status(State(app): State<App>) -> Answer {
    let snapshot = app.shared.snapshot().ok_or_else(|| failed("the agent is starting"))?;
    let mut local = serde_json::to_value(&snapshot.machine).map_err(failed)?;
    local["attachments"] = serde_json::to_value(&app.shared.attachments).map_err(failed)?;
    local["journal_lost"] = snapshot.journal_lost.into();
    local["age_ns"] = crate::clock::now().since(snapshot.at).into();
    let cluster = &snapshot.cluster;
    let view_age_ns = cluster.as_ref().map(|_| crate::clock::now().since(snapshot.cluster_at));
    Ok(Json(json!({
        "role": "scvm", "node": app.shared.node, "view": cluster, "view_age_ns": view_age_ns, "local": local,
    })))
}

async fn flows(State(app): State<App>) -> Answer {
    let flows = ask(&app, |answer| Request::Flows { answer }).await?.map_err(failed)?;
    let snapshot = app.shared.snapshot().ok_or_else(|| failed("the agent is starting"))?;
    let report = report::flows(&app.shared.node, |h| app.shared.host_name(h), &snapshot, &flows);
    Ok(Json(serde_json::to_value(report).map_err(failed)?))
}

#[derive(Deserialize)]
struct Actor {
    actor: Option<String>,
}

async fn bypass(State(app): State<App>, Path(switch): Path<String>, Query(by): Query<Actor>) -> Answer {
    let on = match switch.as_str() {
        "on" => true,
        "off" => false,
        other => {
            return Err((StatusCode::NOT_FOUND, format!("bypass is switched `on` or `off`, not {other:?}")));
        }
    };
    let actor = by.actor.filter(|a| !a.is_empty()).unwrap_or_else(|| "somebody on this node".into());
    ask(&app, |answer| Request::Bypass { on, actor, answer }).await?.map_err(failed)?;
    Ok(Json(json!({ "node": app.shared.node, "bypass": on })))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::service;
    use axum::http::Method;
    use reroute_common::admission::{Word, rank};
    use reroute_common::{class, flow, mapped_ipv4, table};
    use reroute_core::ids::{FencePolicy, Incarnation, ScvmId};
    use reroute_core::scvm::{Mode, Scvm, Settings};

    pub fn shared() -> Shared {
        Shared::new("scvm-1".into(), BTreeMap::from([(HostId(1), "host-1".into())]), vec![])
    }

    fn client(host: u32) -> Client {
        Client {
            host,
            has_agent: u32::from(host != 0),
            pulse_key: [0; 2],
            unanswered_limit_ns: 0,
            word: 0,
            blocked_until: 0,
            affirm_deadline: 0,
            pulse_at: 0,
            released_at: 0,
            in_progress: 0,
            orphans: 0,
            first_reply_epoch: 0,
            wanted_at: 0,
            path: 0,
            generation: 0,
            newest_at: 0,
            rx_packets: 0,
            rx_bytes: 0,
            tx_packets: 0,
            tx_bytes: 0,
            rx_retransmitted: 0,
            tx_retransmitted: 0,
            opened: 0,
            closed: 0,
            reset: 0,
            calls: [0; class::COUNT],
            replies: [0; class::COUNT],
            stalls: 0,
            streams_lost: 0,
            orphaned: [0; table::orphan::COUNT],
            drops: [0; table::drop::COUNT],
            would_drop: 0,
            pulses: 0,
            latency: [[0; table::LATENCY_BUCKETS]; class::COUNT],
        }
    }

    pub fn sample() -> Snapshot {
        let at = crate::clock::now();
        let settings = Settings {
            id: ScvmId(1),
            boot: Incarnation(1),
            policy: FencePolicy::Wait,
            mode: Mode::Enforce,
            bypass: false,
            keepalive_ns: 1,
            session_ns: 1,
            session_no_agent_ns: 1,
            affirm_ns: 1,
            silent_ns: 1,
            drain_ns: 1,
            planned_drain_ns: 1,
            null_rpc_ns: 1,
        };
        let mut unregistered = client(0);
        unregistered.drops[table::drop::UNREGISTERED] = 3;
        let mut one = client(1);
        one.word = Word::new(5, rank::ADMITTED).0;
        one.affirm_deadline = at.0 + 1_000_000_000;
        one.opened = 3;
        one.unanswered_limit_ns = 20_000_000;
        one.closed = 1;
        one.rx_bytes = 4096;
        one.calls[class::WRITE as usize] = 7;
        one.latency[class::WRITE as usize][3] = 5;
        one.latency[class::WRITE as usize][10] = 2;
        Snapshot {
            at,
            machine: Scvm::new(settings, at).view(at),
            cluster: None,
            cluster_at: BootNs(0),
            clients: vec![unregistered, one],
            server: Server {
                session_deadline: 0,
                session_deadline_no_agent: 0,
                incarnation: 0,
                last_reply_at: 0,
                data_reply_at: 0,
                tick_at: 0,
                ticks: 0,
                worst_tick_gap_ns: 0,
                waiting: 0,
                silent: 0,
                stalled_flows: 0,
                listening: 1,
                listener_gone_at: 0,
                data_silent: 0,
                _pad: 0,
                oldest_call_age_ns: 0,
                silent_count: 2,
                pulse_rejects: [0, 0, 0, 9, 0],
                untracked_calls: 0,
                untracked_flows: 0,
                evicted_flows: 0,
                sums_begun: 0,
                sums_ended: 0,
                lost_events: 0,
                held_segments: 0,
                next_piece: 0,
            },
            config: Config {
                mode: table::mode::ENFORCE,
                scvm: 1,
                scvm_boot: 0,
                service_address: [0; 16],
                service_port: 2049,
                pulse_port: 7481,
                unanswered_limit_ns: 50_000_000,
                unacked_limit_ns: 0,
                look_again_ns: 0,
                affirm_ns: 0,
                shield_ns: 0,
                timer_period_ns: 0,
                agent_seen_at: 0,
                agent_state: 0,
                registered: 0,
                interfaces: [table::Interface { index: 0, network: 0 }; table::MAX_INTERFACES],
            },
            journal_lost: 0,
        }
    }

    fn flow(at: BootNs) -> Flow {
        let stream = flow::Stream {
            flags: 0,
            next_seq: 0,
            remaining: 0,
            gathered: 0,
            header: [0; 32],
            lost: 0,
            more: 0,
            packets: 0,
            bytes: 0,
            retransmitted: 0,
        };
        let mut calls = [0; flow::CALL_SLOTS];
        calls[5] = flow::call::pack(77, class::WRITE, at.0 - 60_000_000);
        calls[6] = flow::call::pack(78, class::WRITE, at.0 - 20_000_000);
        Flow {
            state: flow::state::OPEN,
            client: 1,
            key: flow::FlowKey {
                remote: mapped_ipv4([10, 10, 85, 11]),
                local: mapped_ipv4([192, 168, 33, 2]),
                remote_port: 700,
                local_port: 2049,
                network: reroute_common::network::STORAGE,
            },
            opened_at: at.0 - 5_000_000_000,
            last_at: at.0,
            rx: stream,
            tx: stream,
            waiting: 2,
            raised: flow::raised::UNANSWERED,
            oldest: 0,
            unacked_since: 0,
            client_acked: 0,
            server_acked: 0,
            retransmitted_at: [0; 2],
            client_syn: 0,
            pieces_end: 0,
            registered: 0,
            generation: 0,
            _pad: 0,
            _to_cache_line: [0; 2],
            calls_seen: [0, 0, 7, 0],
            replies_seen: [0, 0, 5, 0],
            first_piece: 0,
            last_piece: 0,
            pieces: 0,
            calls,
        }
    }

    #[test]
    fn flows_shows_clients_and_connections() {
        let (shared, snapshot) = (shared(), sample());
        let report =
            report::flows("scvm-1", |h| shared.host_name(h), &snapshot, &[(HostId(1), flow(snapshot.at))]);
        let one = &report.clients[1];
        assert_eq!((one.host.as_str(), one.epoch, one.word.as_str()), ("host-1", 5, "admitted"));
        assert!(one.admitted, "the host's own affirmation runs");
        assert_eq!((one.connections, one.calls.write), (2, 7));
        assert_eq!((one.p50_ns, one.p99_ns), (Some(16_000), Some(2_048_000)));
        assert_eq!(report.clients[0].p50_ns, None);
        let (all, write) = (one.latency.all, one.latency.write);
        assert_eq!((write.replies, write.p50_us, write.p999_us), (7, Some(16), Some(2048)));
        assert_eq!((all, one.latency.read.p99_us), (write, None));
        assert_eq!((one.unanswered_limit_us, report.clients[0].unanswered_limit_us), (20_000, 50_000));
        assert_eq!(
            (report.clients[0].oldest_call_ns, one.oldest_call_ns),
            (None, report.connections[0].oldest_call_ns)
        );
        let line = &report.connections[0];
        assert_eq!(line.remote.to_string(), "10.10.85.11:700");
        assert_eq!((line.network.as_str(), line.waiting, line.stalled), ("storage", 2, true));
        let oldest = line.oldest_call_ns.unwrap();
        assert!((59_000_000..=61_000_000).contains(&oldest), "{oldest}");

        let mut expired = sample();
        expired.clients[1].affirm_deadline = 0;
        let report = report::flows("scvm-1", |h| shared.host_name(h), &expired, &[]);
        assert!(!report.clients[1].admitted, "both leases have run out");
    }

    #[tokio::test]
    async fn the_socket_answers_and_passes_bypass_on() {
        let dir = std::env::temp_dir().join(format!("reroute-operator-{}", std::process::id()));
        let socket = dir.join("agent.sock");
        let shared = Arc::new(shared());
        let (requests, mut asked) = mpsc::channel(4);
        let router = router(shared.clone(), requests);
        let _service = service::serve(&socket, None, Arc::default(), router).unwrap();
        let starting = service::ask::<Value>(&socket, Method::GET, "/v1/status").await.unwrap_err();
        assert!(starting.to_string().contains("starting"), "{starting:#}");
        shared.put(sample());
        let status: Value = service::ask(&socket, Method::GET, "/v1/status").await.unwrap();
        assert_eq!((&status["role"], &status["node"]), (&json!("scvm"), &json!("scvm-1")));
        assert_eq!(status["local"]["session"], json!("closed"));
        assert_eq!(status["view"], Value::Null);

        let agent = tokio::spawn(async move {
            for reply in [Ok(()), Err("the kernel said no".to_string())] {
                let Some(Request::Bypass { on: true, actor, answer }) = asked.recv().await else {
                    panic!("another request")
                };
                assert_eq!(actor, "root");
                answer.send(reply).unwrap();
            }
        });
        let done: Value = service::ask(&socket, Method::POST, "/v1/bypass/on?actor=root").await.unwrap();
        assert_eq!(done["bypass"], json!(true));
        let failed =
            service::ask::<Value>(&socket, Method::POST, "/v1/bypass/on?actor=root").await.unwrap_err();
        assert!(failed.to_string().contains("the kernel said no"), "{failed:#}");
        agent.await.unwrap();
        let wrong = service::ask::<Value>(&socket, Method::POST, "/v1/bypass/maybe").await.unwrap_err();
        assert!(wrong.is::<crate::cli::Refused>(), "{wrong:#}");
    }
}
