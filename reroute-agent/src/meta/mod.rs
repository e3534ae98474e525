//! The Meta role: sessions, logins and epochs for the whole cluster.
//!
//! | file | is |
//! |---|---|
//! | `driver` | the task that owns the session master (`reroute_core::meta`) |
//! | `http` | what agents post, and their push streams |
//! | `store` | where logins are kept: compare-and-set on a thread of its own |
//! | `fence` | the site's fence command |
//! | `operator`, `metrics` | what people and Prometheus see |

mod driver;
mod fence;
mod http;
mod keep_out;
mod metrics;
pub mod operator;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use keep_out::{Wanted, Why};

use crate::cli::Refused;
use crate::config::{Config, ns};
use crate::journal::Journal;
use crate::record::Recorded;
use crate::service::ServiceHandle;
use crate::{clock, realtime, service};
use anyhow::Context;
use axum::serve::ListenerExt;
use driver::Driver;
use metrics::Metrics;
use reroute_core::meta::{Agentless, DrivenSettings, Settings, Start};
use reroute_core::timeline::Event;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use store::{Opened, Redb, Store, StoreError, Written};
use tokio::sync::mpsc;

/// Calls that may wait for the driver.
const CALLS: usize = 1024;
/// A peer that acknowledges nothing for this long is gone, ms.
const PEER_GONE_MS: u32 = 3000;
const RESEND_MS: u64 = 200;

/// Runs until SIGTERM or SIGINT. Errors: an address, the store or the socket cannot be had; nothing is half-started.
pub fn run(config: Config) -> anyhow::Result<()> {
    let meta = Meta::bind(config)?;
    let thread = realtime::run("meta", async move || {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut int = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        meta.serve(realtime::become_fifo, async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        })
        .await
    })?;
    thread.join().map_err(|_| anyhow::anyhow!("Meta's thread panicked"))?
}

/// A Meta that holds all it needs and serves nobody yet.
pub struct Meta {
    config: Config,
    listeners: Vec<(SocketAddr, TcpListener)>,
    store: Redb,
    opened: Opened,
    journal: Journal,
    metrics: Metrics,
    questions: mpsc::Receiver<operator::Question>,
    service: ServiceHandle,
}

impl Meta {
    pub fn bind(config: Config) -> anyhow::Result<Meta> {
        let section = config.meta()?.clone();
        anyhow::ensure!(
            !section.listen.is_empty(),
            "config {}: meta.listen names no address",
            config.path.display()
        );
        let mut listeners = Vec::new();
        for &address in &section.listen {
            let listener = TcpListener::bind(address).map_err(|error| {
                Refused(format!(
                    "[meta] listen: cannot listen on {address} ({error}): is it this node's, and free?"
                ))
            })?;
            listener.set_nonblocking(true)?;
            listeners.push((address, listener));
        }
        let (store, opened) = open(&section.state_dir, &config.cluster.id).map_err(|error| match error {
            StoreError::InUse { .. } | StoreError::OtherCluster { .. } => Refused(error.to_string()).into(),
            other => anyhow::Error::from(other),
        })?;
        let journal = Journal::open(&section.state_dir, "meta")
            .with_context(|| format!("journal in {}", section.state_dir.display()))?;
        let metrics = Metrics::new();
        let (asking, questions) = mpsc::channel(16);
        let registry = Arc::new(metrics.registry());
        let service = service::serve(
            &section.socket,
            section.metrics,
            registry,
            operator::router(asking, &config.cluster),
        )?;
        Ok(Meta { config, listeners, store, opened, journal, metrics, questions, service })
    }

    /// Serves until `stop`. `prepare`: see [`store::spawn`].
    pub async fn serve(
        self,
        prepare: fn() -> anyhow::Result<()>,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let Meta { config, listeners, store, opened, journal, metrics, questions, service } = self;
        let (calling, calls) = mpsc::channel(CALLS);
        let (write_done, written) = mpsc::unbounded_channel::<Written>();
        let writes = store::spawn(store, prepare, move |done| {
            let _ = write_done.send(done);
        })?;
        let adopted = format!("{} logins, {}", opened.logins.len(), opened.term);
        journal.record(Event::Started { role: "meta".into(), adopted });
        let now = clock::now();
        let start = Start {
            settings: settings(&config, &opened),
            logins: opened.logins.into_iter().collect(),
            draining: opened.draining.into_iter().collect(),
            blocks: opened.blocks,
            wall: clock::wall(),
            driven: driven(&config),
            fence_command: config.meta()?.fence_command.as_ref().map(fence::settings),
        };
        let master = Recorded::begin(start, config.record.as_deref(), now)?;
        let listen = listeners.iter().map(|(address, _)| *address).collect();
        let router = http::router(http::Gate::new(&config, opened.term, calling, metrics.clone()));
        let mut servers = tokio::task::JoinSet::new();
        for (address, listener) in listeners {
            let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(move |socket| {
                let set = socket
                    .set_nodelay(true)
                    .and_then(|()| Ok(rustix::net::sockopt::set_tcp_user_timeout(&*socket, PEER_GONE_MS)?));
                if let Err(error) = set {
                    tracing::debug!(%error, %address, "socket options");
                }
            });
            let router = router.clone();
            servers.spawn(async move { (address, axum::serve(listener, router).await) });
        }
        drop(router);
        let driver = Driver::new(&config, listen, master, writes, journal, metrics);
        let ended = tokio::select! {
            ended = driver.run(calls, written, questions, stop) => ended.map_err(anyhow::Error::from),
            Some(ended) = servers.join_next() => match ended {
                Ok((address, end)) => Err(anyhow::anyhow!("the server on {address} has ended: {end:?}")),
                Err(panicked) => Err(panicked.into()),
            },
        };
        drop(service);
        ended
    }
}

fn open(dir: &std::path::Path, cluster: &str) -> Result<(Redb, Opened), StoreError> {
    let mut store = Redb::at(dir)?;
    let opened = store.open(cluster)?;
    Ok((store, opened))
}

/// ESXi hosts that this cluster's SCVMs can log in to.
fn driven(config: &Config) -> DrivenSettings {
    let hosts = config.cluster.hosts.iter();
    DrivenSettings {
        hosts: hosts.filter(|h| h.esxi.is_some()).map(|h| h.id).collect(),
        hold_down_ns: ns(config.timing.hold_down_ms),
        hold_down_max_ns: ns(config.timing.hold_down_max_ms),
        rehearse_ns: ns(config.timing.rehearse_ms),
    }
}

fn settings(config: &Config, opened: &Opened) -> Settings {
    let t = &config.timing;
    Settings {
        cluster: config.cluster.id.clone(),
        term: opened.term,
        scvms: config.cluster.scvm_infos(),
        hosts: config.cluster.host_infos(),
        keepalive_ns: ns(t.keepalive_ms),
        session_ns: ns(t.session_ms),
        // The longer lease is for clients without an agent: where there are none, nobody waits for it.
        longest_session_ns: match config.cluster.host_infos().iter().all(|h| h.has_agent) {
            true => ns(t.session_ms),
            false => ns(t.session_ms.max(t.session_no_agent_ms)),
        },
        leader_ns: ns(t.leader_ms),
        agentless: Agentless {
            session_ns: ns(t.session_no_agent_ms),
            burst: t.client_moves,
            move_every_ns: ns(t.client_move_every_ms),
        },
        affirm_ns: ns(t.affirm_ms),
        planned_drain_ns: ns(t.planned_drain_ms),
        resend_ns: ns(RESEND_MS),
    }
}
