//! Commands on the control socket.

use crate::gate::Class;
use crate::server::Server;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

pub async fn listen(server: Arc<Server>, listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(server.clone(), stream));
    }
}

async fn serve(server: Arc<Server>, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = command(&server, &line).unwrap_or_else(|why| json!({ "error": why }));
        if write.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

fn command(server: &Server, line: &str) -> Result<Value, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["slow", class, ms] => {
            let ms: u64 = ms.parse().map_err(|_| format!("{ms:?} is not a time in ms"))?;
            server.gate.slow(class.parse()?, Duration::from_millis(ms));
        }
        ["stuck", class, "on"] => server.gate.stuck(class.parse()?, true),
        ["stuck", class, "off"] => server.gate.stuck(class.parse()?, false),
        ["wedge", client, on @ ("on" | "off")] => {
            let client = client.parse().map_err(|_| format!("{client:?} is not an address"))?;
            let now_there = server.counts.connections.load(Ordering::Relaxed);
            server.gate.wedge(client, (*on == "on").then_some(now_there));
        }
        ["clear"] => server.gate.clear(),
        ["stats"] => return Ok(stats(server)),
        _ => {
            return Err(format!(
                "{line:?} is none of: slow CLASS MS, stuck CLASS on|off, wedge ADDRESS on|off, clear, stats"
            ));
        }
    }
    Ok(json!({ "ok": true }))
}

fn stats(server: &Server) -> Value {
    let counts = &server.counts;
    let load = |c: &AtomicU64| c.load(Ordering::Relaxed);
    let by_class = |counts: &[AtomicU64; 4]| -> Value {
        Class::ALL.into_iter().map(|c| (c.name().to_owned(), json!(load(&counts[c as usize])))).collect()
    };
    let clients = server.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    json!({
        "pid": std::process::id(),
        "connections": load(&counts.connections),
        "open": load(&counts.open),
        "clients": clients,
        "calls": by_class(&counts.calls),
        "replies": by_class(&counts.replies),
        "refused_stale": load(&counts.refused_stale),
        "refused_unknown": load(&counts.refused_unknown),
        "failed": load(&counts.failed),
    })
}
