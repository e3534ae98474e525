//! What Meta tells operators on its Unix socket.

use super::driver::Question;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::sync::{mpsc, oneshot};

pub fn router(questions: mpsc::Sender<Question>) -> Router {
    Router::new().route("/v1/status", get(move || status(questions.clone())))
}

async fn status(questions: mpsc::Sender<Question>) -> Response {
    let (answer, answered) = oneshot::channel();
    if questions.send(Question { answer }).await.is_ok()
        && let Ok(status) = answered.await
    {
        return Json(status).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "Meta is going down").into_response()
}
