//! One message, to every address at once.

use super::{SEND_TIMEOUT, Shared, TERM_HEADER, reply_direction};
use crate::keys::{self, MAC_HEADER};
use reroute_core::ids::Term;
use reroute_core::proto::{Envelope, MetaReply, Refusal, ToMeta, VERSION};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

const PATH: &str = "/v1/message";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No address gave a genuine answer in time. The message may have been taken in all the same.
    #[error("Meta cannot be reached: {why}")]
    Unreachable { why: String },
    /// A Meta answered, but turned the message away before looking inside.
    #[error("Meta at {address} turned the message away ({status}): {why}")]
    TurnedAway { address: SocketAddr, status: u16, why: String },
    /// A genuine answer, but not of our Meta.
    #[error("Meta at {address} is not ours: {why}")]
    Stranger { address: SocketAddr, why: String },
    #[error("the message cannot be written as JSON: {why}")]
    Unwritable { why: String },
}

pub(super) async fn send(shared: &Arc<Shared>, msg: ToMeta) -> Result<MetaReply, SendError> {
    let envelope = Envelope {
        version: VERSION,
        cluster: shared.cluster.clone(),
        from: shared.node,
        incarnation: shared.incarnation,
        seq: shared.seq.fetch_add(1, Ordering::Relaxed) + 1,
        msg,
    };
    let body = serde_json::to_vec(&envelope).map_err(|e| SendError::Unwritable { why: e.to_string() })?;
    let body = bytes::Bytes::from(body);
    let mac = keys::message_mac(&shared.key, PATH, &body);
    shared.counters.sent.inc();
    // Each runs to its end: to cut off the slower ones would cost their connections, ten times a second.
    let (answered, mut answers) = mpsc::unbounded_channel();
    for &address in &shared.addresses {
        let (shared, body, mac, answered) = (shared.clone(), body.clone(), mac.clone(), answered.clone());
        tokio::spawn(async move {
            let _ = answered.send(post(&shared, address, body, &mac).await);
        });
    }
    drop(answered);
    let mut errors = Vec::new();
    let first = async {
        let mut not_leader = None;
        while let Some(answer) = answers.recv().await {
            match answer {
                // Another address may be the leader's.
                Ok(reply @ MetaReply::Refused { error: Refusal::NotLeader { .. } }) => {
                    not_leader = Some(reply)
                }
                Ok(reply) => return Some(reply),
                Err(error) => errors.push(error),
            }
        }
        not_leader
    };
    let outcome = tokio::time::timeout(SEND_TIMEOUT, first).await;
    if let Ok(Some(reply)) = outcome {
        if matches!(reply, MetaReply::Refused { .. }) {
            shared.counters.refused.inc();
        }
        return Ok(reply);
    }
    shared.counters.unreachable.inc();
    let said_no = |e: &&SendError| matches!(e, SendError::TurnedAway { .. } | SendError::Stranger { .. });
    if let Some(turned) = errors.iter().find(said_no) {
        return Err(turned.clone());
    }
    let mut why: Vec<String> = errors.iter().map(SendError::to_string).collect();
    if outcome.is_err() {
        why.push(format!("no answer within {} ms", SEND_TIMEOUT.as_millis()));
    }
    Err(SendError::Unreachable { why: why.join("; ") })
}

async fn post(
    shared: &Shared,
    address: SocketAddr,
    body: bytes::Bytes,
    mac: &str,
) -> Result<MetaReply, SendError> {
    let unreachable = |why: String| SendError::Unreachable { why: format!("{address}: {why}") };
    let response = shared
        .http
        .post(format!("http://{address}{PATH}"))
        .timeout(SEND_TIMEOUT)
        .header(MAC_HEADER, mac)
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await
        .map_err(|e| unreachable(root_cause(&e)))?;
    let status = response.status();
    let term = response.headers().get(TERM_HEADER).and_then(|v| v.to_str().ok()).and_then(|t| t.parse().ok());
    let term = Term(term.unwrap_or(0));
    let reply_mac = response.headers().get(MAC_HEADER).and_then(|v| v.to_str().ok()).map(str::to_string);
    let body = response.bytes().await.map_err(|e| unreachable(root_cause(&e)))?;
    // Only an answer signed for this very request counts: `serve exactly these` must not be anybody's to say.
    let Some(reply_mac) = reply_mac else {
        let why = String::from_utf8_lossy(&body).chars().take(200).collect();
        return Err(SendError::TurnedAway { address, status: status.as_u16(), why });
    };
    if !keys::message_is_genuine(&shared.key, &reply_direction(mac, term), &body, &reply_mac) {
        shared.counters.bad_mac.inc();
        return Err(unreachable("its answer is not signed with our key".into()));
    }
    let reply: MetaReply = serde_json::from_slice(&body).map_err(|e| {
        shared.counters.malformed.inc();
        unreachable(format!("its answer cannot be read: {e}"))
    })?;
    // Another one may answer at another address: this is no answer to us.
    if let MetaReply::Refused { error: error @ Refusal::Cluster { .. } } = &reply {
        return Err(SendError::Stranger { address, why: error.to_string() });
    }
    if let Err(why) = shared.ours.hears(term) {
        shared.counters.old_term.inc();
        return Err(SendError::Stranger { address, why: format!("it {why}") });
    }
    Ok(reply)
}

/// The innermost cause: "connection refused" says more than "error sending request".
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
