//! What operators ask of Meta to keep a client away: blocks, and the end of a login.

use super::operator::Question;
use crate::service::Peer;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use reroute_core::block::{Ask, Denial};
use reroute_core::ids::BlockId;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

type Questions = mpsc::Sender<Question>;

pub fn router(questions: Questions) -> Router {
    Router::new()
        .route("/v1/blocks", get(blocks).post(block))
        .route("/v1/blocks/{id}", delete(unblock))
        .route("/v1/logins/{client}/evict", post(evict))
        .with_state(questions)
}

/// The query of a block that is wanted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    pub client: String,
    pub for_ms: u64,
    pub reason: String,
    pub actor: Option<String>,
    #[serde(default)]
    pub sure: bool,
}

/// The query of what an operator takes away: a block, a login.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Why {
    pub actor: Option<String>,
    #[serde(default)]
    pub reason: String,
}

fn gone() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "Meta is going down").into_response()
}

async fn put<T>(questions: &Questions, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    questions.send(question(answer)).await.ok()?;
    answered.await.ok()
}

async fn blocks(State(questions): State<Questions>) -> Response {
    match put(&questions, Question::Blocks).await {
        Some(blocks) => Json(blocks).into_response(),
        None => gone(),
    }
}

async fn ask(questions: Questions, ask: Ask) -> Response {
    match put(&questions, |answer| Question::KeepOut(ask, answer)).await {
        Some(Ok(done)) => Json(done).into_response(),
        // Nothing is wrong with the question.
        Some(Err(denial @ (Denial::Store { .. } | Denial::Busy))) => {
            (StatusCode::SERVICE_UNAVAILABLE, denial.to_string()).into_response()
        }
        Some(Err(denial)) => (StatusCode::CONFLICT, denial.to_string()).into_response(),
        None => gone(),
    }
}

async fn block(
    State(questions): State<Questions>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Query(wanted): Query<Wanted>,
) -> Response {
    let Wanted { client, for_ms, reason, actor, sure } = wanted;
    let actor = peer.actor(actor.as_deref());
    ask(questions, Ask::AddBlock { client, for_ms, reason, actor, sure }).await
}

async fn unblock(
    State(questions): State<Questions>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(id): Path<u64>,
    Query(why): Query<Why>,
) -> Response {
    let actor = peer.actor(why.actor.as_deref());
    ask(questions, Ask::RemoveBlock { id: BlockId(id), actor }).await
}

async fn evict(
    State(questions): State<Questions>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(client): Path<String>,
    Query(why): Query<Why>,
) -> Response {
    let (actor, reason) = (peer.actor(why.actor.as_deref()), why.reason);
    ask(questions, Ask::Evict { client, reason, actor }).await
}
