//! `status`: one screen, whichever role's socket is asked.

use super::{Common, Output};
use crate::service;
use axum::http::Method;
use reroute_core::ids::{HostId, MS, SEC, ScvmId};
use reroute_core::proto::{ClusterView, FenceProof, LoginState, SessionState, WantView};
use serde::Deserialize;
use serde_json::Value;

/// What every role answers. `local` is the role's own.
#[derive(Debug, Deserialize)]
struct Status {
    role: String,
    node: String,
    /// None: this agent has heard no view from Meta yet.
    view: Option<ClusterView>,
    #[serde(default)]
    local: Value,
}

pub fn run(common: Common) -> anyhow::Result<()> {
    let answer: Value = service::ask_blocking(&common.socket, Method::GET, "/v1/status")?;
    match common.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Output::Text => print!("{}", render(&serde_json::from_value(answer)?)),
    }
    Ok(())
}

fn render(status: &Status) -> String {
    let mut out = format!("{} ({})", status.node, status.role);
    if let Some(view) = &status.view {
        out += &format!("  cluster {}  {}", view.cluster, view.term);
    }
    out.push('\n');
    for warning in warnings(status) {
        out += &format!("! {warning}\n");
    }
    match &status.view {
        None => out += "\nno view of the cluster: this agent has not heard from Meta since it started\n",
        Some(view) => {
            let names = Names(view);
            out += &sessions(view);
            out += &logins(view, &names);
            out += &super::block::render(&view.blocks, Some(view));
            out += &hosts(view, &names);
        }
    }
    out + &local(&status.local)
}

pub(super) struct Names<'a>(pub(super) &'a ClusterView);

impl Names<'_> {
    pub(super) fn scvm(&self, id: ScvmId) -> String {
        let found = self.0.sessions.iter().find(|s| s.scvm == id);
        found.map_or_else(|| id.to_string(), |s| s.name.clone())
    }
    pub(super) fn host(&self, id: HostId) -> String {
        let found = self.0.hosts.iter().find(|h| h.host == id);
        found.map_or_else(|| id.to_string(), |h| h.name.clone())
    }
}

/// What somebody should look at, in words.
fn warnings(status: &Status) -> Vec<String> {
    let mut all = Vec::new();
    let local = &status.local;
    if local["meta_up"] == Value::Bool(false) {
        all.push("Meta cannot be reached from here: what follows is what was heard last".into());
    }
    if let Some(session) = local["session"].as_str().filter(|s| *s != "open") {
        all.push(format!("the session with Meta is {session}"));
    }
    for list in ["alarms", "faults"] {
        all.extend(
            local[list].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string),
        );
    }
    if local["journal_lost"].as_u64().is_some_and(|n| n > 0) {
        all.push(format!("{} journal entries were lost: look at the disk", local["journal_lost"]));
    }
    let Some(view) = &status.view else { return all };
    for d in &view.draining {
        let name = Names(view).scvm(d.scvm);
        let there = view
            .logins
            .iter()
            .filter(|l| matches!(l.login.state, LoginState::At { scvm, .. } if scvm == d.scvm));
        all.push(format!(
            "{name}: being drained, by {}; {} hosts logged in",
            d.draining.actor,
            there.count()
        ));
    }
    for l in view.logins.iter().filter(|l| !l.does_not_cover.is_empty()) {
        // What rests on somebody's word is worth a look; the rest is in the table.
        if matches!(
            l.login.state,
            LoginState::At { proof: FenceProof::Operator | FenceProof::FenceCommand, .. }
        ) {
            let name = Names(view).host(l.login.host);
            all.push(format!("{name}: its login rests on trust in {}", l.does_not_cover));
        }
    }
    all.extend(view.alarms.iter().cloned());
    for s in &view.sessions {
        if s.health.held_clients > 0 {
            all.push(format!("{}: {} clients without an agent are held back", s.name, s.health.held_clients));
        }
        if s.health.bypass {
            let blocks = if view.blocks.is_empty() { "" } else { ", and blocks are" };
            all.push(format!("{}: bypass: one-writer is suspended{blocks}", s.name));
        }
        if s.state == SessionState::Lost {
            all.push(format!("{}: session lost {} ago", s.name, time(s.age_ns)));
        }
    }
    for h in &view.hosts {
        if let Some(WantView { scvm, age_ns, slowed_ns: Some(wait), .. }) = &h.wants {
            let (at, age, wait) = (Names(view).scvm(*scvm), time(*age_ns), time(*wait));
            all.push(format!(
                "{}: alternates between servers: it has waited at {at} for {age}, and goes on after {wait}",
                h.name
            ));
        }
        match (&h.report, h.report_age_ns) {
            _ if !h.has_agent => {}
            (None, _) => all.push(format!("{}: no agent heard: this host has no failover", h.name)),
            (_, Some(age)) if age > 5 * SEC => {
                all.push(format!("{}: agent not heard for {}", h.name, time(age)));
            }
            (Some(report), _) => {
                all.extend(report.error.as_ref().map(|error| format!("{}: {error}", h.name)));
            }
        }
    }
    // Several agents say the same thing of one cause.
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|w| seen.insert(w.clone()));
    all
}

fn sessions(view: &ClusterView) -> String {
    let rows = view.sessions.iter().map(|s| {
        vec![
            s.name.clone(),
            word(&s.state),
            time(s.age_ns),
            s.keepalive_age_ns.map_or_else(|| "never".into(), time),
            s.health.clients.to_string(),
            s.health.connections.to_string(),
            s.health.calls_waiting.to_string(),
            s.reason.clone(),
        ]
    });
    table(&["SCVM", "SESSION", "FOR", "KEEPALIVE", "CLIENTS", "CONNS", "WAITING", ""], rows)
}

fn logins(view: &ClusterView, names: &Names) -> String {
    let rows = view.logins.iter().map(|l| {
        let (stands, proof) = match &l.login.state {
            LoginState::At { scvm, proof, .. } => (format!("at {}", names.scvm(*scvm)), word(proof)),
            LoginState::Moving { fencing, to, planned, .. } => {
                let open: Vec<String> = fencing
                    .iter()
                    .filter(|f| f.proof.is_none() && f.scvm != *to)
                    .map(|f| names.scvm(f.scvm))
                    .collect();
                let waits = match open.is_empty() {
                    true => format!("waits for {} to admit", names.scvm(*to)),
                    false => format!("waits for the fence of {}", open.join(", ")),
                };
                let kind = if *planned { "moving (planned)" } else { "moving" };
                (format!("{kind} to {}", names.scvm(*to)), waits)
            }
            LoginState::Evicted { fencing, actor, .. } => {
                let open: Vec<String> =
                    fencing.iter().filter(|f| f.proof.is_none()).map(|f| names.scvm(f.scvm)).collect();
                let waits = match open.is_empty() {
                    true => "all are shut".to_string(),
                    false => format!("waits for the fence of {}", open.join(", ")),
                };
                (format!("evicted by {actor}"), waits)
            }
        };
        let epoch = l.login.epoch().0.to_string();
        let stands = if l.ghost { format!("{stands} (ghost)") } else { stands };
        let trust = if l.does_not_cover.is_empty() { "-".into() } else { l.does_not_cover.clone() };
        vec![names.host(l.login.host), epoch, stands, time(l.age_ns), proof, l.login.reason.clone(), trust]
    });
    table(&["LOGIN", "EPOCH", "STANDS", "FOR", "PROOF", "REASON", "NOT COVERED"], rows)
}

fn hosts(view: &ClusterView, names: &Names) -> String {
    let rows = view.hosts.iter().map(|h| {
        if !h.has_agent {
            let wants = h.wants.as_ref().map(|w| {
                format!(
                    "calls at {} ({} connections) for {}",
                    names.scvm(w.scvm),
                    w.connections,
                    time(w.age_ns)
                )
            });
            let dash = || "-".to_string();
            let Some(driven) = &h.driven else {
                let reason = wants.unwrap_or_default();
                return vec![h.name.clone(), dash(), dash(), dash(), "no agent".into(), dash(), reason];
            };
            let by = driven.by.map_or_else(|| "nobody".into(), |by| names.scvm(by));
            let read = driven.rehearsed_ns.map_or_else(|| "never".into(), |age| format!("{} ago", time(age)));
            let route = match (driven.rehearsed_ns, driven.next_hop) {
                (None, _) => dash(),
                (Some(_), None) => "none".into(),
                (Some(_), Some(hop)) => format!("via {hop}"),
            };
            let wish = driven
                .wish
                .as_ref()
                .map(|w| format!("to go to {} by {}: {}", names.scvm(w.to.scvm), w.to.network, w.reason));
            let error = driven.error.as_ref().map(|e| format!("{}: {e}", e.name()));
            let reason: Vec<String> = [error, wish, wants].into_iter().flatten().collect();
            let heard = format!("by ssh from {by}, {read}");
            return vec![h.name.clone(), route, dash(), dash(), heard, dash(), reason.join("; ")];
        }
        let Some(r) = &h.report else {
            return vec![
                h.name.clone(),
                "-".into(),
                "-".into(),
                "-".into(),
                "never".into(),
                "-".into(),
                String::new(),
            ];
        };
        let route =
            r.path.map_or_else(|| "none".into(), |p| format!("{} by {}", names.scvm(p.scvm), p.network));
        vec![
            h.name.clone(),
            route,
            time(r.route_age_ns),
            r.epoch.0.to_string(),
            h.report_age_ns.map_or_else(|| "never".into(), |age| format!("{} ago", time(age))),
            r.last_move_gap_ns.map_or_else(|| "-".into(), time),
            r.reason.clone(),
        ]
    });
    table(&["HOST", "ROUTE", "FOR", "EPOCH", "HEARD", "LAST MOVE", "REASON"], rows)
}

/// The role's own plain values, and one line per thing that it lists.
fn local(local: &Value) -> String {
    let Some(fields) = local.as_object() else { return String::new() };
    let mut out = String::from("\nHERE\n");
    for (key, value) in fields {
        // Said above already.
        if matches!(key.as_str(), "alarms" | "faults" | "report") {
            continue;
        }
        let shown = match value {
            Value::Null => "-".into(),
            Value::String(text) => text.clone(),
            Value::Number(n) if key.ends_with("_ns") => n.as_u64().map_or_else(|| n.to_string(), time),
            Value::Array(items) if items.iter().any(Value::is_object) => {
                out += &format!("  {key}\n");
                items.iter().for_each(|item| out += &format!("    {}\n", flat(item)));
                continue;
            }
            other => flat(other),
        };
        let key = key.strip_suffix("_ns").unwrap_or(key);
        out += &format!("  {key}: {shown}\n");
    }
    out
}

/// A value on one line, without the marks of JSON.
fn flat(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let each = fields.iter().filter(|(_, v)| !v.is_null());
            each.map(|(k, v)| format!("{k} {}", flat(v))).collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => items.iter().map(flat).collect::<Vec<_>>().join(" "),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The word an enum has in JSON.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word.replace('_', " "),
        _ => String::new(),
    }
}

/// A time to read: three digits that matter.
pub(super) fn time(ns: u64) -> String {
    let s = ns / SEC;
    match s {
        0 => format!("{} ms", ns / MS),
        1..=59 => format!("{}.{} s", s, ns % SEC / (100 * MS)),
        60..=3599 => format!("{} min {:02} s", s / 60, s % 60),
        3600..=86_399 => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {:02} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Columns as wide as their widest cell; nothing at all without rows.
pub(super) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    let head: Vec<String> = head.iter().map(|h| h.to_string()).collect();
    let width = |i: usize| {
        let cells = rows.iter().chain([&head]).filter_map(|r| r.get(i));
        cells.map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::from("\n");
    for row in [&head].into_iter().chain(&rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(value: Value) -> Status {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn without_a_view_it_says_so() {
        let text = render(&status(json!({
            "role": "host", "node": "x1", "view": null,
            "local": { "meta_up": false, "faults": ["a foreign route stands"], "hold_down_ns": 3_000_000_000u64 }
        })));
        assert!(text.starts_with("x1 (host)\n! Meta cannot be reached"), "{text}");
        assert!(text.contains("! a foreign route stands\n"), "{text}");
        assert!(text.contains("no view of the cluster"), "{text}");
        assert!(text.contains("  hold_down: 3.0 s\n"), "{text}");
    }

    #[test]
    fn the_whole_screen() {
        let health = json!({
            "server_incarnation": 1, "listening": true, "process_alive": true, "stalled": false, "null_failed": false,
            "no_carrier": [], "bypass": true, "clients": 1, "connections": 2, "calls_waiting": 3
        });
        let session = |id: u32, state: &str| {
            json!({
                "scvm": id, "name": format!("s{id}"), "state": state, "age_ns": 65_000_000_000u64,
                "keepalive_age_ns": 40_000_000u64, "incarnation": 1, "health": health, "reason": "bypass"
            })
        };
        let view = json!({
            "cluster": "c1", "term": 4,
            "sessions": [session(1, "alive"), session(2, "lost")],
            "logins": [{
                "host": 1, "term": 4, "reason": "silent", "age_ns": 7_000_000u64,
                "state": { "state": "moving", "to": 2, "epoch": 9, "planned": false,
                           "fencing": [{ "scvm": 1, "epoch": 8, "proof": null }] }
            }],
            "hosts": [{ "host": 1, "name": "x1", "report": null, "report_age_ns": null }]
        });
        let text = render(&status(json!({ "role": "meta", "node": "meta", "view": view, "local": {} })));
        for line in [
            "meta (meta)  cluster c1  term 4",
            "! s1: bypass: one-writer is suspended",
            "! s2: session lost 1 min 05 s ago",
            "! x1: no agent heard: this host has no failover",
            "SCVM  SESSION  FOR         KEEPALIVE  CLIENTS  CONNS  WAITING",
            "s1    alive    1 min 05 s  40 ms      1        2      3        bypass",
            "x1     9      moving to s2  7 ms  waits for the fence of s1  silent  -",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
    }
}
