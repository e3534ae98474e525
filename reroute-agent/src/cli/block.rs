//! `block`: keeps a client away from every server for a time. Meta has the list; every SCVM's kernel enforces it.

use super::status::{Names, table, time};
use super::{Common, Output, Refused, Unconfirmed};
use crate::meta::{Wanted, Why};
use crate::service;
use anyhow::Context;
use axum::http::Method;
use reroute_core::block::{BlockView, Done};
use reroute_core::ids::{BlockId, SEC};
use reroute_core::proto::{ClusterView, SessionState};
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(clap::Subcommand)]
pub enum BlockVerb {
    /// Blocks that run: who, why, by whom, how long, and which SCVMs have not confirmed.
    Ls {
        /// Those that have ended, too (Meta's socket only).
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Drop everything a client sends to any server, and let it neither log in nor be moved. At Meta's socket.
    ///
    /// A block gives no fence: it proves nothing about calls that were accepted before.
    Add {
        /// A host by its name, id, storage or management address.
        client: String,
        #[arg(long)]
        reason: String,
        /// It ends by itself after this: a number and s, m, h or d (90s, 30m, 2h, 1d).
        #[arg(long = "for", value_parser = duration)]
        duration: Duration,
        /// Return when every SCVM that can be reached has confirmed. Exit code 3: some have not; they are named.
        #[arg(long)]
        wait: bool,
        /// Give up waiting after this.
        #[arg(long, default_value = "10s", value_parser = duration)]
        timeout: Duration,
        /// Although the client is being served, and its virtual machines lose their storage.
        #[arg(long)]
        yes: bool,
        /// Whom you act for; your user is recorded in any case.
        #[arg(long)]
        actor: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// End a block before its time. At Meta's socket.
    Rm {
        id: u64,
        #[arg(long)]
        actor: Option<String>,
        #[command(flatten)]
        common: Common,
    },
}

pub fn run(verb: BlockVerb) -> anyhow::Result<()> {
    match verb {
        BlockVerb::Ls { all, common } => list(all, common),
        BlockVerb::Add { client, reason, duration, wait, timeout, yes, actor, common } => {
            let wanted = Wanted {
                client,
                for_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
                reason,
                actor: acting_for(actor),
                sure: yes,
            };
            add(wanted, wait.then_some(timeout), common)
        }
        BlockVerb::Rm { id, actor, common } => {
            let why = Why { actor: acting_for(actor), reason: String::new() };
            let done: Done =
                at_meta(&common, Method::DELETE, &with_query(&["v1", "blocks", &id.to_string()], &why)?)?;
            match (common.output, &done) {
                (Output::Json, _) => println!("{}", serde_json::to_string(&done)?),
                (Output::Text, Done::Unblocked { block, .. }) => {
                    println!("{} is removed: {} may log in again", block.id, block.host);
                }
                (Output::Text, other) => println!("{other:?}"),
            }
            Ok(())
        }
    }
}

/// `--actor`, or whoever called sudo.
pub(super) fn acting_for(actor: Option<String>) -> Option<String> {
    actor.or_else(|| std::env::var("SUDO_USER").ok())
}

/// A path with its parameters, as it stands in a URL. Errors: what somebody typed is no part of a path.
pub(super) fn with_query(path: &[&str], query: &impl serde::Serialize) -> anyhow::Result<String> {
    if let Some(bad) = path.iter().find(|part| matches!(**part, "" | "." | "..")) {
        return Err(Refused(format!("{bad:?} names no client: see `status` for names")).into());
    }
    let mut url = reqwest::Url::parse("http://agent/")?;
    if let Ok(mut parts) = url.path_segments_mut() {
        parts.clear().extend(path);
    }
    let fields = serde_json::to_value(query)?;
    for (key, value) in fields.as_object().into_iter().flatten() {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        url.query_pairs_mut().append_pair(key, &text);
    }
    Ok(format!("{}?{}", url.path(), url.query().unwrap_or_default()))
}

/// Asks what only Meta can answer; an agent's socket is refused by name.
pub(super) fn at_meta<T: serde::de::DeserializeOwned>(
    common: &Common,
    method: Method,
    path: &str,
) -> anyhow::Result<T> {
    let status: Value = service::ask_blocking(&common.socket, Method::GET, "/v1/status")?;
    match status["role"].as_str() {
        Some("meta") => service::ask_blocking(&common.socket, method, path),
        role => Err(Refused(format!(
            "{} is the socket of a {}: only Meta can do this; run it on Meta's node with --socket as in its [meta]",
            common.socket.display(),
            role.unwrap_or("stranger")
        ))
        .into()),
    }
}

pub(super) fn view(common: &Common) -> anyhow::Result<ClusterView> {
    let mut status: Value = service::ask_blocking(&common.socket, Method::GET, "/v1/status")?;
    let view = status["view"].take();
    serde_json::from_value::<Option<ClusterView>>(view)?
        .context("no view of the cluster: this agent has not heard from Meta since it started")
}

fn add(mut wanted: Wanted, wait: Option<Duration>, common: Common) -> anyhow::Result<()> {
    let ask = |wanted: &Wanted| -> anyhow::Result<Done> {
        at_meta(&common, Method::POST, &with_query(&["v1", "blocks"], wanted)?)
    };
    let done = match ask(&wanted) {
        // It is in use: a person may say so a second time.
        Err(error) if error.to_string().contains("--yes") && std::io::stdin().is_terminal() => {
            eprintln!("{error}");
            if !confirmed(&wanted.client)? {
                return Err(Refused("not confirmed: nothing was changed".into()).into());
            }
            wanted.sure = true;
            ask(&wanted)?
        }
        other => other?,
    };
    let Done::Blocked { block, .. } = &done else { anyhow::bail!("Meta answered something else: {done:?}") };
    if matches!(common.output, Output::Text) {
        let ends = time(block.for_ms.saturating_mul(1_000_000));
        println!("{}: {} is blocked for {ends} ({})", block.id, block.host, block.reason);
    }
    let Some(timeout) = wait else {
        if matches!(common.output, Output::Json) {
            println!("{}", serde_json::to_string(&done)?);
        }
        return Ok(());
    };
    let state = wait_confirmed(block.id, timeout, &common).map_err(|error| {
        Unconfirmed(format!("{} is on record, but who enforces it is not known: {error:#}", block.id))
    })?;
    if matches!(common.output, Output::Json) {
        let mut answer = serde_json::to_value(&done)?;
        answer["confirmed"] = json!(state.confirmed);
        answer["unconfirmed"] = json!(state.open.iter().map(|(name, _)| name).collect::<Vec<_>>());
        println!("{answer}");
    } else if !state.confirmed.is_empty() {
        println!("enforced by {}", state.confirmed.join(", "));
    }
    if state.open.is_empty() {
        return Ok(());
    }
    let open: Vec<String> = state.open.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    Err(Unconfirmed(format!(
        "{} is on record, but not known to be enforced by {}",
        block.id,
        open.join(", ")
    ))
    .into())
}

/// Asks on the terminal, a second time: the client's name has to be typed.
fn confirmed(client: &str) -> anyhow::Result<bool> {
    eprint!("type {client} to block it all the same: ");
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim() == client)
}

struct Confirmation {
    confirmed: Vec<String>,
    /// Who has not, and why.
    open: Vec<(String, String)>,
}

/// Returns when every SCVM with a live session has confirmed, or at the end of `timeout`.
fn wait_confirmed(id: BlockId, timeout: Duration, common: &Common) -> anyhow::Result<Confirmation> {
    let deadline = Instant::now() + timeout;
    loop {
        let view = view(common)?;
        let mut state = Confirmation { confirmed: Vec::new(), open: Vec::new() };
        let mut waits = false;
        for s in &view.sessions {
            let live = matches!(s.state, SessionState::Alive | SessionState::Suspect);
            if live && s.health.blocks >= id.0 {
                let says = if s.health.bypass { " (but bypass is on there)" } else { "" };
                state.confirmed.push(format!("{}{says}", s.name));
            } else if live {
                waits = true;
                state.open.push((s.name.clone(), "it has not confirmed".into()));
            } else {
                state
                    .open
                    .push((s.name.clone(), "out of reach: it hears of it with its next session".into()));
            }
        }
        if !waits || Instant::now() >= deadline {
            return Ok(state);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn list(all: bool, common: Common) -> anyhow::Result<()> {
    let status: Value = service::ask_blocking(&common.socket, Method::GET, "/v1/status")?;
    let view: Option<ClusterView> = serde_json::from_value(status["view"].clone())?;
    let blocks: Vec<BlockView> = match (all, status["role"].as_str()) {
        (true, Some("meta")) => service::ask_blocking(&common.socket, Method::GET, "/v1/blocks")?,
        (true, _) => {
            return Err(
                Refused("only Meta remembers blocks that have ended: ask at its socket".into()).into()
            );
        }
        (false, _) => view.as_ref().map(|v| v.blocks.clone()).unwrap_or_default(),
    };
    match common.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&blocks)?),
        Output::Text => print!("{}", render(&blocks, view.as_ref())),
    }
    Ok(())
}

/// The same lines as in `status`.
pub(super) fn render(blocks: &[BlockView], view: Option<&ClusterView>) -> String {
    let empty = ClusterView::default();
    let names = Names(view.unwrap_or(&empty));
    let rows = blocks.iter().map(|b| {
        let ends = match &b.block.removed {
            Some(removed) => format!("removed by {}", removed.actor),
            None if b.remaining_ns == 0 => "ended".into(),
            None => time(b.remaining_ns),
        };
        let runs = b.block.removed.is_none() && b.remaining_ns > 0;
        let open: Vec<String> = b.unconfirmed.iter().filter(|_| runs).map(|s| names.scvm(*s)).collect();
        vec![
            b.block.id.0.to_string(),
            names.host(b.block.host),
            ends,
            if open.is_empty() { String::new() } else { format!("not by {}", open.join(", ")) },
            b.block.actor.clone(),
            b.block.reason.clone(),
        ]
    });
    table(&["BLOCK", "CLIENT", "ENDS IN", "ENFORCED", "BY", "REASON"], rows)
}

/// `90s`, `30m`, `2h`, `1d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: give a number and s, m, h or d (90s, 30m, 2h, 1d)");
    let at = text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at)).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(seconds).filter(|s| *s > 0 && *s < u64::MAX / SEC).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_say_their_unit() {
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        for wrong in ["", "2", "h", "0s", "-1h", "2 hours", "1.5h", "99999999999999999d", "2ü"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_people_write_survives_the_url() {
        let why = Why { actor: Some("j. doe & co".into()), reason: "100% ÜBER=1?".into() };
        let path = with_query(&["v1", "blocks", "3"], &why).unwrap();
        let url = reqwest::Url::parse(&format!("http://agent{path}")).unwrap();
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        assert_eq!(url.path(), "/v1/blocks/3");
        assert!(pairs.contains(&("actor".into(), "j. doe & co".into())), "{pairs:?}");
        assert!(pairs.contains(&("reason".into(), "100% ÜBER=1?".into())), "{pairs:?}");
    }

    #[test]
    fn a_client_is_one_part_of_the_path_whatever_was_typed() {
        let path = |client| with_query(&["v1", "logins", client, "evict"], &Why::default());
        assert!(path("no such").unwrap().starts_with("/v1/logins/no%20such/evict?"));
        assert!(path("a/b?c#d").unwrap().starts_with("/v1/logins/a%2Fb%3Fc%23d/evict?"));
        for bad in ["", ".", ".."] {
            let refused = path(bad).unwrap_err();
            assert!(refused.is::<Refused>() && refused.to_string().contains("names no client"), "{refused}");
        }
    }
}
