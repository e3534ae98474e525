//! What operators ask of Meta on its Unix socket: status, drain, vouch.

use crate::config::Cluster;
use crate::service::Peer;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use reroute_core::block::{Ask, BlockView, Denial, Done};
use reroute_core::ids::{Epoch, ScvmId};
use reroute_core::meta::{OperatorAnswer, OperatorAsk};
use reroute_core::proto::{Draining, Refusal};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};

/// To Meta's thread. A dropped answer means that it ends.
pub enum Question {
    /// The status as JSON.
    Status(oneshot::Sender<serde_json::Value>),
    Ask(OperatorAsk, oneshot::Sender<Result<OperatorAnswer, Refusal>>),
    /// Every block on record.
    Blocks(oneshot::Sender<Vec<BlockView>>),
    /// See `keep_out`.
    KeepOut(Ask, oneshot::Sender<Result<Done, Denial>>),
}

/// `drain`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainWish {
    /// Name or id.
    pub scvm: String,
    pub undo: bool,
    pub actor: String,
}

/// `move vouch`, as it was shown to the operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VouchWish {
    /// Names or ids.
    pub host: String,
    pub scvm: String,
    pub epoch: Epoch,
    /// The SCVM's name as the operator typed it, twice.
    pub typed: [String; 2],
    pub actor: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Of {
    #[serde(default)]
    pub host: String,
    pub scvm: String,
}

#[derive(Clone)]
struct Socket {
    questions: mpsc::Sender<Question>,
    cluster: Arc<Cluster>,
}

pub fn router(questions: mpsc::Sender<Question>, cluster: &Cluster) -> Router {
    let keep_out = super::keep_out::router(questions.clone());
    let socket = Socket { questions, cluster: Arc::new(cluster.clone()) };
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/drain", get(drained).post(drain))
        .route("/v1/move/vouch", get(unproven).post(vouch))
        .with_state(socket)
        .merge(keep_out)
}

fn gone() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "Meta is going down").into_response()
}

fn refused(why: String) -> Response {
    (StatusCode::CONFLICT, why).into_response()
}

async fn status(State(socket): State<Socket>) -> Response {
    let (answer, answered) = oneshot::channel();
    if socket.questions.send(Question::Status(answer)).await.is_ok()
        && let Ok(status) = answered.await
    {
        return Json(status).into_response();
    }
    gone()
}

impl Socket {
    async fn ask(&self, ask: OperatorAsk) -> Response {
        let (answer, answered) = oneshot::channel();
        if self.questions.send(Question::Ask(ask, answer)).await.is_err() {
            return gone();
        }
        match answered.await {
            Ok(Ok(answer)) => Json(answer).into_response(),
            Ok(Err(refusal)) => refused(refusal.to_string()),
            Err(_) => gone(),
        }
    }
}

async fn drained(State(socket): State<Socket>, Query(of): Query<Of>) -> Response {
    match socket.cluster.scvm_named(&of.scvm) {
        Ok(scvm) => socket.ask(OperatorAsk::Drained { scvm }).await,
        Err(why) => refused(why),
    }
}

async fn drain(
    State(socket): State<Socket>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(wish): Json<DrainWish>,
) -> Response {
    let actor = peer.actor(Some(&wish.actor));
    let scvm = match socket.cluster.scvm_named(&wish.scvm) {
        Ok(scvm) => scvm,
        Err(why) => return refused(why),
    };
    let ask = match wish.undo {
        true => OperatorAsk::Undrain { scvm, actor },
        false => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            OperatorAsk::Drain { scvm, draining: Draining { actor, at_unix_ms: now.as_millis() as u64 } }
        }
    };
    socket.ask(ask).await
}

/// By name or id; one that was taken out of the configuration is still known by the logins on it, so its id will do.
fn left(cluster: &Cluster, scvm: &str) -> Result<ScvmId, String> {
    cluster.scvm_named(scvm).or_else(|why| scvm.parse().map(ScvmId).map_err(|_| why))
}

async fn unproven(State(socket): State<Socket>, Query(of): Query<Of>) -> Response {
    match (socket.cluster.host_named(&of.host), left(&socket.cluster, &of.scvm)) {
        (Ok(host), Ok(scvm)) => socket.ask(OperatorAsk::Unproven { host, scvm }).await,
        (Err(why), _) | (_, Err(why)) => refused(why),
    }
}

async fn vouch(
    State(socket): State<Socket>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(wish): Json<VouchWish>,
) -> Response {
    let (host, scvm) = match (socket.cluster.host_named(&wish.host), left(&socket.cluster, &wish.scvm)) {
        (Ok(host), Ok(scvm)) => (host, scvm),
        (Err(why), _) | (_, Err(why)) => return refused(why),
    };
    let name = socket.cluster.scvm(scvm).map_or_else(|| scvm.0.to_string(), |s| s.name.clone());
    if wish.typed.iter().any(|typed| *typed != name) {
        return refused(format!("not confirmed: the name {name:?} must be given twice"));
    }
    let actor = peer.actor(Some(&wish.actor));
    socket.ask(OperatorAsk::Vouch { host, scvm, epoch: wish.epoch, actor }).await
}
