//! Meta's HTTP side: what agents post, and their push streams. Everything is checked here before the master sees it;
//! what is turned away is counted by reason and changes nothing.

use super::driver::{Call, STREAM_QUEUE};
use super::metrics::{Metrics, reason};
use crate::config::{ClusterKey, Config};
use crate::keys::{self, MAC_HEADER};
use crate::meta_client::{TERM_HEADER, push_direction, reply_direction};
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use reroute_core::ids::{HostId, NodeId, ScvmId, Term};
use reroute_core::proto::{Envelope, MetaReply, Refusal, VERSION};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Largest body taken in, bytes.
pub const BODY_LIMIT: usize = 64 << 10;

pub struct Gate {
    key: ClusterKey,
    cluster: String,
    /// Every answer says in which it was given.
    term: Term,
    nodes: BTreeSet<NodeId>,
    calls: mpsc::Sender<Call>,
    metrics: Metrics,
}

impl Gate {
    pub fn new(config: &Config, term: Term, calls: mpsc::Sender<Call>, metrics: Metrics) -> Gate {
        let hosts = config.cluster.hosts.iter().map(|h| NodeId::Host(h.id));
        let scvms = config.cluster.scvms.iter().map(|s| NodeId::Scvm(s.id));
        Gate {
            key: config.key.clone(),
            cluster: config.cluster.id.clone(),
            term,
            nodes: hosts.chain(scvms).collect(),
            calls,
            metrics,
        }
    }

    fn turn_away(&self, status: StatusCode, reason: &str, why: String) -> Response {
        self.metrics.reject(reason);
        tracing::warn!(reason, %why, "message turned away");
        (status, why).into_response()
    }

    /// A signed answer: it belongs to the one request whose MAC is given.
    fn answer(&self, request_mac: &str, reply: &MetaReply) -> Response {
        let status = match reply {
            MetaReply::Refused { error } => match error {
                Refusal::Version { .. } => StatusCode::BAD_REQUEST,
                Refusal::Cluster { .. }
                | Refusal::UnknownNode { .. }
                | Refusal::WrongSender { .. }
                | Refusal::WithoutAgent { .. } => StatusCode::FORBIDDEN,
                _ => StatusCode::CONFLICT,
            },
            _ => StatusCode::OK,
        };
        match serde_json::to_vec(reply) {
            Ok(body) => {
                let mac = keys::message_mac(&self.key, &reply_direction(request_mac, self.term), &body);
                let term = self.term.0.to_string();
                let headers = [
                    (header::CONTENT_TYPE.as_str(), "application/json"),
                    (MAC_HEADER, mac.as_str()),
                    (TERM_HEADER, term.as_str()),
                ];
                (status, headers, body).into_response()
            }
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }

    fn refuse(&self, request_mac: &str, error: Refusal) -> Response {
        self.metrics.reject(reason(&error));
        tracing::warn!(%error, "message turned away");
        self.answer(request_mac, &MetaReply::Refused { error })
    }
}

pub fn router(gate: Gate) -> Router {
    Router::new()
        .route("/v1/message", post(message))
        .route("/v1/push/{role}/{id}", get(push))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Arc::new(gate))
}

fn mac_of(headers: &HeaderMap) -> &str {
    headers.get(MAC_HEADER).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

async fn message(
    State(gate): State<Arc<Gate>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(error) => return gate.turn_away(error.status(), "malformed", error.body_text()),
    };
    let mac = mac_of(&headers);
    if !keys::message_is_genuine(&gate.key, "/v1/message", &body, mac) {
        let why =
            format!("{MAC_HEADER} is missing or not by this cluster's key: check key_file on both sides");
        return gate.turn_away(StatusCode::UNAUTHORIZED, "mac", why);
    }
    let malformed = |why: String| gate.turn_away(StatusCode::BAD_REQUEST, "malformed", why);
    // The version first: a message of another one need not look like ours.
    let value: serde_json::Value = match serde_json::from_slice(&body) {
        Ok(value) => value,
        Err(error) => return malformed(format!("not JSON: {error}")),
    };
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(v) if v == u64::from(VERSION) => {}
        Some(v) => {
            let got = u32::try_from(v).unwrap_or(u32::MAX);
            return gate.refuse(mac, Refusal::Version { got, want: VERSION });
        }
        None => return malformed("no version".into()),
    }
    let envelope: Envelope = match serde_json::from_value(value) {
        Ok(envelope) => envelope,
        Err(error) => return malformed(format!("not a message of version {VERSION}: {error}")),
    };
    if envelope.cluster != gate.cluster {
        return gate.refuse(mac, Refusal::Cluster { got: envelope.cluster });
    }
    if !gate.nodes.contains(&envelope.from) {
        return gate.refuse(mac, Refusal::UnknownNode { node: envelope.from });
    }
    let (answer, answered) = oneshot::channel();
    if gate.calls.send(Call::Message { envelope, answer }).await.is_ok()
        && let Ok(reply) = answered.await
    {
        return gate.answer(mac, &reply);
    }
    (StatusCode::SERVICE_UNAVAILABLE, "Meta is going down").into_response()
}

async fn push(
    State(gate): State<Arc<Gate>>,
    Path((role, id)): Path<(String, u32)>,
    headers: HeaderMap,
) -> Response {
    let node = match role.as_str() {
        "host" => NodeId::Host(HostId(id)),
        "scvm" => NodeId::Scvm(ScvmId(id)),
        _ => {
            return gate.turn_away(
                StatusCode::NOT_FOUND,
                "malformed",
                format!("no push stream for a {role:?}"),
            );
        }
    };
    // Whoever listens must know the key: the streams say where everybody's data goes.
    if !keys::message_is_genuine(&gate.key, &push_direction(node), b"", mac_of(&headers)) {
        let why =
            format!("{MAC_HEADER} is missing or not by this cluster's key: check key_file on both sides");
        return gate.turn_away(StatusCode::UNAUTHORIZED, "mac", why);
    }
    if !gate.nodes.contains(&node) {
        return gate.turn_away(StatusCode::FORBIDDEN, "node", Refusal::UnknownNode { node }.to_string());
    }
    let (lines, queue) = mpsc::channel(STREAM_QUEUE);
    if gate.calls.send(Call::Connect { node, lines }).await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "Meta is going down").into_response();
    }
    let body = futures_util::stream::unfold(queue, |mut queue| async move {
        let line = queue.recv().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(line), queue))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response()
}
