//! What operators may ask: status, and leave to take over a foreign route.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use reroute_core::host::Local;
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
}

pub type Requests = mpsc::Sender<Request>;

pub fn router(requests: Requests) -> Router {
    Router::new().route("/v1/status", get(status)).route("/v1/route/adopt", post(adopt)).with_state(requests)
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
