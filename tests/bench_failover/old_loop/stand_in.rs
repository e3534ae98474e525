//! What stands around the old loop: Meta's session list, and the keepalives of the access servers.
//!
//! A session is alive for 8 s after its last keepalive. An access server sends one every 4 s for as long as its process
//! runs, by both networks: a failure of the server is on the list 4 to 8 s later.

use super::decide::Session;
use anyhow::Context;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use lab::topology::{Node, PAIRS};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub const PORT: u16 = 10206;
const KEEPALIVE: Duration = Duration::from_secs(8);
const INTERVAL: Duration = Duration::from_secs(4);
/// Of any request here.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Meta's addresses, the management network first: that is where the old loop asked.
pub fn meta() -> [SocketAddr; 2] {
    [Node::Meta.management(), Node::Meta.storage()].map(|address| SocketAddr::from((address, PORT)))
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<BTreeMap<u32, Instant>>>);

impl Kept {
    fn map(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Meta: serves the list, takes keepalives and the addresses of clients.
pub async fn serve() -> anyhow::Result<()> {
    let kept = Kept::default();
    let app = Router::new()
        .route("/api/v3/sessions", get(sessions))
        .route("/api/v2/zbs_session/session/{id}", put(refresh))
        .route("/keepalive/{id}", post(keepalive))
        .with_state(kept);
    let mut servers = tokio::task::JoinSet::new();
    for address in meta() {
        let listener =
            tokio::net::TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        let app = app.clone();
        servers.spawn(async move { axum::serve(listener, app).await });
    }
    while let Some(ended) = servers.join_next().await {
        ended??;
    }
    Ok(())
}

async fn sessions(State(kept): State<Kept>) -> Json<Vec<Session>> {
    let kept = kept.map();
    let session = |id| Session {
        id,
        storage: Node::Scvm(id).storage(),
        management: Node::Scvm(id).management(),
        alive: kept.get(&id).is_some_and(|at| at.elapsed() < KEEPALIVE),
    };
    Json((1..=PAIRS).map(session).collect())
}

async fn keepalive(State(kept): State<Kept>, Path(id): Path<u32>) {
    kept.map().insert(id, Instant::now());
}

/// `RefreshLocalNFSClientIPs`: of a session that is alive.
async fn refresh(State(kept): State<Kept>, Path(id): Path<u32>) -> StatusCode {
    match kept.map().get(&id).is_some_and(|at| at.elapsed() < KEEPALIVE) {
        true => StatusCode::OK,
        false => StatusCode::NOT_FOUND,
    }
}

/// An access server's follower: keepalives while the process of `pidfile` runs.
pub async fn follow(id: u32, pidfile: PathBuf) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let mut turn = tokio::time::interval(INTERVAL);
    loop {
        turn.tick().await;
        if !runs(&pidfile) {
            continue;
        }
        for address in meta() {
            let request = client.post(format!("http://{address}/keepalive/{id}"));
            // By either network; one that is cut holds up nobody.
            tokio::spawn(async move { request.send().await.map(drop) });
        }
    }
}

/// Neither ended nor stopped.
fn runs(pidfile: &std::path::Path) -> bool {
    let state = || {
        let pid = std::fs::read_to_string(pidfile).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok()?;
        // `PID (NAME) STATE ...`; the name may hold anything.
        stat.rsplit_once(") ")?.1.chars().next()
    };
    state().is_some_and(|s| !matches!(s, 'T' | 't' | 'Z' | 'X'))
}
