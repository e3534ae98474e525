//! The loop that this project replaces, as it ran on each host (`reroute.py`): every 3 s the session list and a ping of
//! every address, and where the target is not healthy, delete and add the route. It runs in a lab's host in place of the
//! agent.
//!
//! | kept as it was | |
//! |---|---|
//! | list | from Meta by REST, every 3 s; no list, no decision |
//! | ping | full size, don't fragment, one for each address, all at once; waited for 1 s |
//! | targets | local storage, other storage (random), management (random) |
//! | move | refresh the client's address at Meta, whatever comes of it; `ip route del`, `ip route add` |
//! | way back | when the local SCVM has been healthy for 180 s |
//!
//! Left out: the heartbeat to the target (it only tells the monitor), ssh, cron, the lock.

pub mod decide;
pub mod stand_in;

use anyhow::{Context, bail};
use decide::{Decision, OldLoop, Round, Session};
use lab::topology::SERVICE;
use reroute_agent::{clock, sweep};
use reroute_core::ids::{BootNs, MS};
use reroute_core::sweep::{Outcome, Settings};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(3);
const STABLE: Duration = Duration::from_secs(180);
const PING: Settings = Settings { tries: 1, patience_ns: 1000 * MS, longest_patience_ns: 1000 * MS };
const MTU: u16 = 1500;

/// A line of its log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub at: BootNs,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// A round is over; these SCVMs are healthy by storage.
    Round {
        healthy: Vec<u32>,
        said: String,
    },
    Verdict {
        to: Ipv4Addr,
        why: String,
    },
    Routed {
        to: Ipv4Addr,
    },
    Failed {
        what: String,
    },
}

fn say(what: What) {
    if let Ok(line) = serde_json::to_string(&Line { at: clock::now(), what }) {
        println!("{line}");
    }
}

/// Runs until it is killed.
pub async fn run(host: u32) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(stand_in::PATIENCE).build()?;
    let mut old = OldLoop::new(host, STABLE);
    let mut turn = tokio::time::interval(INTERVAL);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        if let Err(error) = round(&client, &mut old).await {
            say(What::Failed { what: format!("{error:#}") });
        }
    }
}

async fn round(client: &reqwest::Client, old: &mut OldLoop) -> anyhow::Result<()> {
    let sessions = sessions(client).await?;
    let addresses: Vec<Ipv4Addr> = sessions.iter().flat_map(|s| [s.storage, s.management]).collect();
    let answer = ping(addresses).await?;
    let seen = Round { sessions, answer, hop: next_hop()?, lot: rand_lot() };
    let healthy = seen.sessions.iter().filter(|s| s.alive && seen.answer.contains(&s.storage));
    let healthy = healthy.map(|s| s.id).collect();
    match old.decide(&seen, clock::now()) {
        Decision::Stay(why) => say(What::Round { healthy, said: why.into() }),
        Decision::Go { to, why } => {
            say(What::Verdict { to, why: why.into() });
            go(client, &seen.sessions, to).await?;
            say(What::Routed { to });
        }
    }
    Ok(())
}

async fn sessions(client: &reqwest::Client) -> anyhow::Result<Vec<Session>> {
    let mut why = Vec::new();
    for address in stand_in::meta() {
        match client.get(format!("http://{address}/api/v3/sessions")).send().await {
            Ok(answer) => return Ok(answer.json().await?),
            Err(error) => why.push(error.to_string()),
        }
    }
    bail!("no session list: {}", why.join("; "))
}

async fn ping(addresses: Vec<Ipv4Addr>) -> anyhow::Result<BTreeSet<Ipv4Addr>> {
    let options = sweep::Options { interface: None, mtu: MTU, settings: PING };
    let swept = tokio::task::spawn_blocking(move || {
        sweep::sweep(&addresses, &options).map(|report| (addresses, report.outcomes))
    });
    let (addresses, outcomes) = swept.await?.context("ping")?;
    let answered = addresses.into_iter().zip(outcomes);
    Ok(answered.filter(|(_, o)| matches!(o, Outcome::Answers { .. })).map(|(address, _)| address).collect())
}

fn rand_lot() -> usize {
    clock::new_incarnation().0 as usize / 1000
}

/// The move: refresh, delete, add.
async fn go(client: &reqwest::Client, sessions: &[Session], to: Ipv4Addr) -> anyhow::Result<()> {
    if let Some(session) = sessions.iter().find(|s| to == s.storage || to == s.management) {
        let [address, _] = stand_in::meta();
        let refresh = client.put(format!("http://{address}/api/v2/zbs_session/session/{}", session.id));
        // The gate that got lost: whether it was refused is not looked at.
        let _ = refresh.send().await;
    }
    reroute(to)
}

/// What an operator ran (ROUTE mode), and what the loop does in the end.
pub fn reroute(to: Ipv4Addr) -> anyhow::Result<()> {
    let service = format!("{SERVICE}/32");
    if next_hop()?.is_some() {
        ip(&["route", "del", &service])?;
    }
    ip(&["route", "add", &service, "via", &to.to_string()]).map(drop)
}

/// Of the /32, if there is one.
fn next_hop() -> anyhow::Result<Option<Ipv4Addr>> {
    let text = ip(&["route", "show", "exact", &format!("{SERVICE}/32")])?;
    let via = text.split_whitespace().skip_while(|word| *word != "via").nth(1);
    via.map(|hop| hop.parse().with_context(|| format!("a next hop in {text:?}"))).transpose()
}

fn ip(args: &[&str]) -> anyhow::Result<String> {
    let out = Command::new("ip").args(args).output().context("cannot run `ip`")?;
    if !out.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
