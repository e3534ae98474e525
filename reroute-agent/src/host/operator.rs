//! What operators may ask: status, leave to take over a foreign route, a pinned place.

use crate::config::Cluster;
use crate::service::Peer;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use reroute_core::host::{Local, Pin};
use reroute_core::ids::{Network, ScvmId};
use reroute_core::proto::ClusterView;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub role: String,
    pub node: String,
    /// Meta's view as last pushed; none until it was heard.
    pub view: Option<ClusterView>,
    /// Since it was heard, ns.
    #[serde(default)]
    pub view_age_ns: Option<u64>,
    pub local: Local,
}

/// What became of `route adopt`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adopted {
    /// The route that was found.
    pub found: String,
    /// Whether ours stands in its place; if not, it is taken over at the next login.
    pub replaced: bool,
}

/// To the real-time thread. A dropped answer means that it ends.
pub enum Request {
    Status(oneshot::Sender<Box<Status>>),
    /// `Err`: nothing to adopt, or it failed, in words.
    Adopt(oneshot::Sender<Result<Adopted, String>>),
    /// None: nothing is to be pinned any more. `Err`: why not, in words.
    Pin(Option<PinWish>, oneshot::Sender<Result<Pinned, String>>),
    /// By whom. `Err`: why not, in words.
    Dry(String, oneshot::Sender<Result<(), String>>),
}

/// `route set`: a place by name, for how long, and who says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinWish {
    /// Name (or id) of an SCVM, with `/storage` or `/management` behind it if it must be that network.
    pub target: String,
    pub for_ms: Option<u64>,
    pub actor: String,
}

/// What became of `route set` and `route auto`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pinned {
    pub pin: Option<Pin>,
    pub before: Option<Pin>,
}

/// The place that `target` names.
///
/// # Errors
/// No such SCVM or network, in words.
pub fn place(cluster: &Cluster, target: &str) -> Result<(ScvmId, Option<Network>), String> {
    let (name, network) = match target.split_once('/') {
        None => (target, None),
        Some((name, "storage")) => (name, Some(Network::Storage)),
        Some((name, "management")) => (name, Some(Network::Management)),
        Some((name, "private")) => (name, Some(Network::Private)),
        Some((_, other)) => return Err(format!("no network {other:?}: storage or management")),
    };
    Ok((cluster.scvm_named(name)?, network))
}

pub type Requests = mpsc::Sender<Request>;

pub fn router(requests: Requests) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/route/adopt", post(adopt))
        .route("/v1/route/set", post(set))
        .route("/v1/route/auto", post(auto))
        .route("/v1/route/dry", post(dry))
        .with_state(requests)
}

fn gone() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the agent is ending").into_response()
}

async fn status(State(requests): State<Requests>) -> Response {
    let (answer, status) = oneshot::channel();
    if requests.send(Request::Status(answer)).await.is_err() {
        return gone();
    }
    match status.await {
        Ok(status) => Json(status).into_response(),
        Err(_) => gone(),
    }
}

async fn adopt(State(requests): State<Requests>) -> Response {
    let (answer, adopted) = oneshot::channel();
    if requests.send(Request::Adopt(answer)).await.is_err() {
        return gone();
    }
    match adopted.await {
        Ok(Ok(adopted)) => Json(adopted).into_response(),
        Ok(Err(why)) => (StatusCode::CONFLICT, why).into_response(),
        Err(_) => gone(),
    }
}

async fn set(
    State(requests): State<Requests>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(wish): Json<PinWish>,
) -> Response {
    let actor = peer.actor(Some(&wish.actor));
    pin(requests, Some(PinWish { actor, ..wish })).await
}

async fn auto(State(requests): State<Requests>) -> Response {
    pin(requests, None).await
}

async fn dry(State(requests): State<Requests>, ConnectInfo(peer): ConnectInfo<Peer>) -> Response {
    let (answer, done) = oneshot::channel();
    if requests.send(Request::Dry(peer.actor(None), answer)).await.is_err() {
        return gone();
    }
    match done.await {
        Ok(Ok(())) => Json(()).into_response(),
        Ok(Err(why)) => (StatusCode::CONFLICT, why).into_response(),
        Err(_) => gone(),
    }
}

async fn pin(requests: Requests, wish: Option<PinWish>) -> Response {
    let (answer, pinned) = oneshot::channel();
    if requests.send(Request::Pin(wish, answer)).await.is_err() {
        return gone();
    }
    match pinned.await {
        Ok(Ok(pinned)) => Json(pinned).into_response(),
        Ok(Err(why)) => (StatusCode::CONFLICT, why).into_response(),
        Err(_) => gone(),
    }
}
