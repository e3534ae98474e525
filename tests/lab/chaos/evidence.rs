//! `chaos-SEED/`: the schedule, written before the run; and what is kept of a run that went wrong.
//!
//! | | |
//! |---|---|
//! | `schedule.json` | what was to be broken when |
//! | `outcome.json`, `struck.json` | the figures; what became of each fault, CLOCK_BOOTTIME ns |
//! | `hostN.timeline` | everything in the journals that concerns the host, with the faults in between |
//! | `moves.json` | every move |
//! | `hostN.findings.json`, `blocks/` | damaged blocks: as found, the writes that belong there, the servers the host was logged in at, and who wrote (the controllable servers log it) |
//! | `journals/`, `logs/` | of every node |
//! | `state.txt` | how the cluster stood when everything was over |

use super::oplog::Writes;
use super::report::Outcome;
use super::run::Ran;
use super::schedule::Schedule;
use crate::handle::Lab;
use crate::options::ServerKind;
use crate::topology::{Node, PAIRS};
use anyhow::Context;
use reroute_core::ids::BootNs;
use reroute_core::timeline::{Entry, Event};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub const SCHEDULE: &str = "schedule.json";
const BLOCK: usize = 4096;

/// Makes the directory anew with the schedule in it.
pub fn prepare(dir: &Path, schedule: &Schedule) -> anyhow::Result<PathBuf> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    std::fs::write(dir.join(SCHEDULE), serde_json::to_string_pretty(schedule)? + "\n")?;
    Ok(dir.to_path_buf())
}

pub fn keep(dir: &Path, lab: &Lab, ran: &Ran, outcome: &Outcome) -> anyhow::Result<()> {
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text + "\n");
    write("outcome.json", serde_json::to_string_pretty(outcome)?)?;
    write("struck.json", serde_json::to_string_pretty(&ran.struck)?)?;
    write("moves.json", serde_json::to_string_pretty(&outcome.all_moves)?)?;
    for host in 1..=PAIRS {
        write(&format!("host{host}.timeline"), story(ran, outcome, host))?;
        let findings = findings(dir, lab, ran, host)?;
        if !findings.is_empty() {
            write(&format!("host{host}.findings.json"), serde_json::to_string_pretty(&findings)?)?;
        }
    }
    copy_nodes(dir, lab)?;
    if lab.options().server == ServerKind::Controllable
        && let Ok(applied) = lab.applied()
    {
        write("applied.json", serde_json::to_string(&applied)?)?;
    }
    let view = lab.view().map_or_else(|e| format!("{e:#}"), |v| format!("{v:#?}"));
    write("state.txt", format!("{:#}", lab.explain(anyhow::anyhow!("{view}"))))?;
    Ok(())
}

fn copy_nodes(dir: &Path, lab: &Lab) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir.join("journals"))?;
    for node in Node::all().iter().map(Node::to_string) {
        let from = lab.root().join(&node);
        let journal = from.join("state/journal.jsonl");
        if journal.exists() {
            std::fs::copy(&journal, dir.join("journals").join(format!("{node}.jsonl")))?;
        }
        let logs = dir.join("logs").join(&node);
        std::fs::create_dir_all(&logs)?;
        for entry in std::fs::read_dir(from.join("log"))? {
            let entry = entry?;
            std::fs::copy(entry.path(), logs.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Every line that concerns `host`, in µs since the begin of the run.
fn story(ran: &Ran, outcome: &Outcome, host: u32) -> String {
    let mut lines: Vec<(BootNs, String)> = Vec::new();
    let mut line = |at: BootNs, event: &str, node: &str, detail: &str| {
        let us = at.since(ran.begin) / 1000;
        lines.push((at, format!("  {us:>11} µs  {event:<15} {node:<6} {detail}")));
    };
    for entry in ran.journal.iter().filter(|e| e.at >= ran.begin && concerns(e, host)) {
        let (event, detail) = words(entry);
        line(entry.at, &event, &entry.node, &detail);
    }
    for s in &ran.struck {
        if let Some(at) = s.at {
            line(at, "FAULT", &s.target, &s.fault);
        }
        if let Some(at) = s.healed {
            line(at, "HEALED", &s.target, &s.fault);
        }
    }
    for v in outcome.violations.iter().filter(|v| v.host.is_none_or(|h| h == host)) {
        line(v.at, "VIOLATION", "", &v.what);
    }
    for finding in ran.reports.get(&host).iter().flat_map(|r| &r.findings) {
        let at = BootNs(finding["at"].as_u64().unwrap_or_default());
        line(at, "DAMAGE", &format!("host{host}"), &finding.to_string());
    }
    if let Some(writes) = ran.writes.get(&host) {
        let (gap, from) = writes.gap(ran.begin.0, ran.end.0);
        line(BootNs(from), "LONGEST GAP", &format!("host{host}"), &format!("{:.1} ms", gap as f64 / 1e6));
    }
    lines.sort_by_key(|(at, _)| *at);
    let head = format!("host{host}, seed {}; 0 µs is CLOCK_BOOTTIME {} ns", outcome.seed, ran.begin.0);
    lines.into_iter().fold(head, |text, (_, line)| text + "\n" + &line)
}

fn concerns(entry: &Entry, host: u32) -> bool {
    let fields = serde_json::to_value(&entry.event).unwrap_or_default();
    match fields["host"].as_u64() {
        Some(of) => of == u64::from(host),
        None => !entry.node.starts_with("host") || entry.node == Node::Host(host).to_string(),
    }
}

/// Name and fields of an event.
fn words(entry: &Entry) -> (String, String) {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(&entry.event) else {
        return (String::new(), format!("{:?}", entry.event));
    };
    let name = fields.remove("event").and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default();
    let detail = fields.iter().fold(String::new(), |mut text, (key, value)| {
        let _ = write!(text, "{}{key} {value}", if text.is_empty() { "" } else { ", " });
        text
    });
    (name, detail)
}

/// Each damaged block with the writes it speaks of.
fn findings(dir: &Path, lab: &Lab, ran: &Ran, host: u32) -> anyhow::Result<Vec<Value>> {
    let Some(report) = ran.reports.get(&host) else { return Ok(Vec::new()) };
    let none = Writes::default();
    let writes = ran.writes.get(&host).unwrap_or(&none);
    let mut all = Vec::new();
    for finding in &report.findings {
        let (file, offset) =
            (finding["file"].as_str().unwrap_or_default(), finding["offset"].as_u64().unwrap_or_default());
        let path = lab.root().join("export").join(format!("writer-{host}")).join(file);
        let mut block = vec![0; BLOCK];
        let have = std::fs::File::open(&path).and_then(|f| f.read_at(&mut block, offset)).unwrap_or_default();
        block.truncate(have);
        std::fs::create_dir_all(dir.join("blocks"))?;
        let kept = format!("blocks/host{host}-{file}-{offset}");
        std::fs::write(dir.join(&kept), &block)?;
        let write_of = |seq: Option<u64>| {
            seq.and_then(|s| writes.find(s)).map(|w| {
                json!({
                    "write": w,
                    "server_when_issued": server(&ran.journal, host, w.issued),
                    "server_when_completed": server(&ran.journal, host, w.completed),
                })
            })
        };
        let at = finding["at"].as_u64().unwrap_or_default();
        all.push(json!({
            "finding": finding,
            "applied": applied_to(lab, host, offset),
            "us_since_begin": BootNs(at).since(ran.begin) / 1000,
            "found_write": write_of(finding["found"]["seq"].as_u64()),
            "acknowledged_write": write_of(finding["acked"].as_u64()),
            "server_when_found": server(&ran.journal, host, at),
            "now_in_file": { "kept": kept, "writer": word(&block, 8), "seq": word(&block, 16), "offset": word(&block, 24) },
        }));
    }
    Ok(all)
}

/// What the controllable servers applied at `offset` of the host's files, last first: `applied.log` has 64-byte records of
/// time, client, epoch, server, file id, offset, writer, sequence.
fn applied_to(lab: &Lab, host: u32, offset: u64) -> Vec<Value> {
    let log = std::fs::read(lab.root().join("export.meta/applied.log")).unwrap_or_default();
    let records = log.chunks_exact(64).rev();
    let of = records.filter(|r| word(r, 40) == Some(offset) && word(r, 48) == Some(u64::from(host)));
    let told = |r: &[u8]| {
        let field = |nth: usize| word(r, nth * 8);
        json!({ "at": field(0), "client": field(1), "epoch": field(2), "server": field(3), "file_id": field(4), "seq": field(7) })
    };
    of.take(20).map(told).collect()
}

fn word(block: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(block.get(at..at + 8)?.try_into().ok()?))
}

/// Where the login of `host` stood at a time.
fn server(journal: &[Entry], host: u32, at: u64) -> String {
    let stored =
        |e: &&Entry| matches!(&e.event, Event::LoginStored { host: h, .. } if h.0 == host) && e.at.0 <= at;
    match journal.iter().rev().find(stored).map(|e| &e.event) {
        Some(Event::LoginStored { scvm, epoch, .. }) => format!("{scvm} at {epoch}"),
        _ => "none known".into(),
    }
}
