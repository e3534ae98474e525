//! An agent's link to Meta.
//!
//! One task per Meta address reads that address's push stream; they all end in one queue to the agent (unbounded:
//! orders must not be lost, and Meta bounds what it sends). Messages go out to every address at once.

mod counters;
mod ours;
mod send;
mod stream;
#[cfg(test)]
mod tests;

pub use counters::Counters;
pub use send::SendError;

use crate::config::{ClusterKey, Config};
use anyhow::Context;
use reroute_core::ids::{Incarnation, NodeId, Term};
use reroute_core::proto::{FromMeta, MetaReply, ToMeta};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long one message may take before Meta counts as unreachable.
pub const SEND_TIMEOUT: Duration = Duration::from_millis(500);

/// What the link tells the agent.
#[derive(Debug, Clone, PartialEq)]
pub enum LinkEvent {
    /// The push stream of this address is up: its first genuine line has come.
    Up { address: SocketAddr },
    /// It broke, fell silent, or cannot be had; one event per change.
    Down { address: SocketAddr, why: String },
    /// This address answers, but is not our Meta: another cluster's, or a leader that is over. Said once.
    Stranger { address: SocketAddr, why: String },
    /// An order. Copies are dropped by (term, seq), and so are orders of an older term than one already seen;
    /// every stream's Hello and View pass.
    Order(FromMeta),
}

#[derive(Clone)]
pub struct MetaClient {
    shared: Arc<Shared>,
}

struct Shared {
    http: reqwest::Client,
    key: ClusterKey,
    cluster: String,
    node: NodeId,
    incarnation: Incarnation,
    addresses: Vec<SocketAddr>,
    seq: AtomicU64,
    counters: Counters,
    ours: ours::Ours,
}

impl MetaClient {
    /// Starts the streams on the current tokio runtime; they go on until the receiver is dropped.
    ///
    /// Meta need not be there yet: the link says so once and keeps trying. Errors: no HTTP client can be made.
    pub fn start(
        config: &Config,
        node: NodeId,
        incarnation: Incarnation,
    ) -> anyhow::Result<(MetaClient, mpsc::UnboundedReceiver<LinkEvent>)> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .tcp_nodelay(true)
            .connect_timeout(SEND_TIMEOUT)
            .build()
            .context("cannot make an HTTP client")?;
        let shared = Arc::new(Shared {
            http,
            key: config.key.clone(),
            cluster: config.cluster.id.clone(),
            node,
            incarnation,
            addresses: config.cluster.meta.clone(),
            seq: AtomicU64::new(0),
            counters: Counters::default(),
            ours: ours::Ours::default(),
        });
        let (events, receiver) = mpsc::unbounded_channel();
        stream::spawn(shared.clone(), events);
        Ok((MetaClient { shared }, receiver))
    }

    /// Sends one signed message to every Meta address at once; the first genuine answer is the answer.
    ///
    /// A refusal is an answer ([`MetaReply::Refused`]). Errors: nobody answered within [`SEND_TIMEOUT`], or all who
    /// answered gave something that is not Meta's.
    pub async fn send(&self, msg: ToMeta) -> Result<MetaReply, SendError> {
        send::send(&self.shared, msg).await
    }

    /// Who answers at Meta's addresses and is not our Meta, in words.
    pub fn strangers(&self) -> Vec<String> {
        self.shared.ours.problems()
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}

/// What is signed on the push stream of a node, and the path it is asked for by (with `/v1/` before it).
pub fn push_direction(node: NodeId) -> String {
    match node {
        NodeId::Host(id) => format!("push/host/{}", id.0),
        NodeId::Scvm(id) => format!("push/scvm/{}", id.0),
    }
}

/// HTTP header that says in which term an answer was given.
pub const TERM_HEADER: &str = "x-reroute-term";

/// What an answer is signed under: it belongs to this one request, and to a term.
pub fn reply_direction(request_mac: &str, term: Term) -> String {
    format!("reply to {request_mac} in {}", term.0)
}
