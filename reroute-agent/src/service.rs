//! What every role serves to people: the operators' Unix socket and `/metrics`; and the asking side for the verbs.
//!
//! Both run on one ordinary thread with a runtime of its own, so that a slow reader never holds up the real-time
//! thread. Handlers see snapshots, or send requests to that thread and await the answer.

use crate::cli::Refused;
use anyhow::{Context, bail};
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use rustix::fs::Mode;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Content type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// An agent that does not answer an operator within this is reported as hung.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Who has connected to the operators' socket, by the kernel's word.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// `None`: the kernel does not say.
    uid: Option<u32>,
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, tokio::net::UnixListener>>
    for Peer
{
    fn connect_info(stream: axum::serve::IncomingStream<'_, tokio::net::UnixListener>) -> Peer {
        Peer { uid: stream.io().peer_cred().ok().map(|cred| cred.uid()) }
    }
}

impl Peer {
    /// For the record: the user behind the socket, and whom they say they act for.
    pub fn actor(&self, said: Option<&str>) -> String {
        let name = self.uid.and_then(user_name);
        let user = match (self.uid, &name) {
            (Some(uid), Some(name)) => format!("{name}, uid {uid}"),
            (Some(uid), None) => format!("uid {uid}"),
            (None, _) => "somebody on this node".into(),
        };
        let said = said.unwrap_or_default().trim();
        let said: String = said.chars().filter(|c| !c.is_control()).take(80).collect();
        match said.is_empty() || Some(&said) == name.as_ref() {
            true => user,
            false => format!("{said} ({user})"),
        }
    }
}

fn user_name(uid: u32) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_string())
    })
}

/// Keeps the service running; dropping it ends the service and removes the socket.
pub struct ServiceHandle {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    socket: PathBuf,
}

impl Drop for ServiceHandle {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Serves `operator` on the Unix socket (mode 0600) and, if asked, `/metrics` on a TCP address.
///
/// Both are bound before this returns. Errors: another agent answers on the socket, the path is not a socket, the
/// address cannot be bound.
pub fn serve(
    socket: &Path,
    metrics: Option<SocketAddr>,
    registry: Arc<Registry>,
    operator: Router,
) -> anyhow::Result<ServiceHandle> {
    let tcp = match metrics {
        Some(address) => {
            let listener = std::net::TcpListener::bind(address)
                .with_context(|| format!("/metrics: cannot listen on {address}"))?;
            listener.set_nonblocking(true)?;
            Some(listener)
        }
        None => None,
    };
    let unix = bind_socket(socket)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("service".into()).spawn(move || {
        runtime.block_on(async move {
            let served = async {
                let operator = operator.into_make_service_with_connect_info::<Peer>();
                let unix = axum::serve(tokio::net::UnixListener::from_std(unix)?, operator);
                match tcp {
                    Some(tcp) => {
                        let tcp =
                            axum::serve(tokio::net::TcpListener::from_std(tcp)?, metrics_router(registry));
                        tokio::try_join!(async { unix.await }, async { tcp.await }).map(drop)
                    }
                    None => unix.await,
                }
            };
            tokio::select! {
                ended = served => tracing::error!(?ended, "the operators' service has ended"),
                _ = stopped => {}
            }
        });
    })?;
    Ok(ServiceHandle { stop: Some(stop), thread: Some(thread), socket: socket.to_path_buf() })
}

fn metrics_router(registry: Arc<Registry>) -> Router {
    let text = move || {
        let registry = registry.clone();
        async move {
            let mut out = String::new();
            match prometheus_client::encoding::text::encode(&mut out, &registry) {
                Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], out).into_response(),
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        }
    };
    Router::new().route("/metrics", get(text))
}

/// Binds the socket; a file left by a dead agent is replaced, one that answers is not.
fn bind_socket(path: &Path) -> anyhow::Result<std::os::unix::net::UnixListener> {
    let shown = path.display();
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            bail!(
                "{shown} exists and is not a socket: move it away, or correct `socket` in the configuration"
            );
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!(
                "another agent answers on {shown}: stop it first, or correct `socket` in the configuration"
            );
        }
        std::fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {shown}"))?;
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    use rustix::net;
    let fd = net::socket_with(
        net::AddressFamily::UNIX,
        net::SocketType::STREAM,
        net::SocketFlags::CLOEXEC | net::SocketFlags::NONBLOCK,
        None,
    )?;
    let address = net::SocketAddrUnix::new(path).with_context(|| format!("socket path {shown}"))?;
    net::bind(&fd, &address).with_context(|| format!("cannot bind {shown}"))?;
    // Nobody can connect before `listen`, so nobody gets in before the mode is right.
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR).with_context(|| format!("cannot restrict {shown}"))?;
    net::listen(&fd, 64)?;
    Ok(std::os::unix::net::UnixListener::from(fd))
}

/// Asks the agent behind `socket`, for a verb of the command line.
///
/// A 4xx answer is [`Refused`] with the agent's own words; other errors say what could not be reached.
pub async fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: axum::http::Method,
    path: &str,
) -> anyhow::Result<T> {
    ask_with(socket, method, path, None).await
}

/// [`ask`] with a body (JSON).
pub async fn ask_with<T: DeserializeOwned>(
    socket: &Path,
    method: axum::http::Method,
    path: &str,
    body: Option<serde_json::Value>,
) -> anyhow::Result<T> {
    let shown = socket.display();
    let client = reqwest::Client::builder().unix_socket(socket).timeout(ASK_TIMEOUT).build()?;
    let changes = method != axum::http::Method::GET;
    let mut request = client.request(method, format!("http://agent{path}"));
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.map_err(|error| {
        let patience = ASK_TIMEOUT.as_secs();
        let why = match (error.is_timeout(), changes) {
            // It may have been taken in all the same.
            (true, true) => format!(
                "no answer on {shown} within {patience} s: whether it is done is not known; look before you ask again"
            ),
            (true, false) => format!("no answer on {shown} within {patience} s: the agent there hangs"),
            (false, _) => format!(
                "no agent answers on {shown}: is it running, and is --socket the one of its configuration?"
            ),
        };
        anyhow::Error::new(error).context(why)
    })?;
    let status = answer.status();
    let body = answer.bytes().await.with_context(|| format!("{shown}: the answer broke off"))?;
    if status.is_client_error() || status.is_server_error() {
        let said = String::from_utf8_lossy(&body).trim().to_string();
        let said = if said.is_empty() { format!("{path}: {status}") } else { said };
        if status.is_client_error() {
            return Err(Refused(said).into());
        }
        bail!("{said}");
    }
    serde_json::from_slice(&body)
        .with_context(|| format!("{shown}: {path} gave an answer of another release"))
}

/// [`ask`] for verbs, which have no runtime of their own.
pub fn ask_blocking<T: DeserializeOwned>(
    socket: &Path,
    method: axum::http::Method,
    path: &str,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask(socket, method, path))
}

/// [`ask_with`] for verbs.
pub fn post_blocking<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: serde_json::Value,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask_with(socket, axum::http::Method::POST, path, Some(body)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::testing::Dir;
    use std::os::unix::fs::PermissionsExt;

    fn start(path: &Path) -> anyhow::Result<ServiceHandle> {
        let hello = Router::new().route("/v1/status", get(|| async { axum::Json("here") }));
        serve(path, None, Arc::default(), hello)
    }

    #[test]
    fn answers_on_a_private_socket_and_cleans_up() {
        let dir = Dir::new("service");
        let path = dir.path().join("run/agent.sock");
        let service = start(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let said: String = ask_blocking(&path, axum::http::Method::GET, "/v1/status").unwrap();
        assert_eq!(said, "here");
        let refused = ask_blocking::<String>(&path, axum::http::Method::GET, "/v1/other").unwrap_err();
        assert!(refused.is::<Refused>(), "{refused:#}");
        drop(service);
        assert!(!path.exists());
        let nobody = ask_blocking::<String>(&path, axum::http::Method::GET, "/v1/status").unwrap_err();
        assert!(nobody.to_string().contains("no agent answers"), "{nobody:#}");
    }

    #[test]
    fn replaces_a_stale_socket_but_neither_a_live_one_nor_a_file() {
        let dir = Dir::new("service-stale");
        let path = dir.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a dead agent's socket stays");
        let service = start(&path).unwrap();
        let second = start(&path).err().unwrap();
        assert!(second.to_string().contains("another agent answers"), "{second:#}");
        let said: String = ask_blocking(&path, axum::http::Method::GET, "/v1/status").unwrap();
        assert_eq!(said, "here", "the first one is not disturbed");
        drop(service);
        std::fs::write(&path, "notes").unwrap();
        let file = start(&path).err().unwrap();
        assert!(file.to_string().contains("not a socket"), "{file:#}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "notes");
    }
}
