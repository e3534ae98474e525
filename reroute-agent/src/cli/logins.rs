//! `logins`: who holds what, since when, and what shows that somebody stands behind it; `logins evict`.

use super::block::{acting_for, at_meta, duration, view, with_query};
use super::status::{Names, table, time, word};
use super::{Common, Output, Unconfirmed};
use crate::meta::Why;
use crate::service;
use axum::http::Method;
use reroute_core::block::Done;
use reroute_core::ids::{BlockId, Epoch, HostId, SEC};
use reroute_core::proto::{ClusterView, LoginState, LoginView, SessionState};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<LoginsVerb>,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Subcommand)]
pub enum LoginsVerb {
    /// End a client's login: it is shut out at its server, and has to log in anew. At Meta's socket.
    ///
    /// A host with an agent does so at once, unless it is blocked (`block add`).
    Evict {
        /// A host by its name, id, storage or management address.
        client: String,
        #[arg(long, default_value = "")]
        reason: String,
        /// Wait so long for the proof that its server is shut. Exit code 3: it is not proven yet.
        #[arg(long, default_value = "10s", value_parser = duration)]
        timeout: Duration,
        #[arg(long)]
        actor: Option<String>,
        #[command(flatten)]
        common: Common,
    },
}

/// One login as `--output json` shows it. Ages in ns; `null`: not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub client: String,
    pub id: HostId,
    /// `at`, `moving` or `evicted`.
    pub state: String,
    /// Its server; while it moves, the target. None: nobody's.
    pub scvm: Option<String>,
    pub since_ns: u64,
    pub epoch: u64,
    /// Of the leader that wrote the record.
    pub term: u64,
    pub proof: Option<String>,
    pub reason: String,
    /// `alive`, `quiet` (nothing was heard lately), `ghost`.
    pub life: String,
    pub connections: Option<u32>,
    pub in_progress: Option<u32>,
    pub orphans: Option<u32>,
    pub packet_age_ns: Option<u64>,
    /// Since the host's last pulse reached its server.
    pub pulse_age_ns: Option<u64>,
    /// What remains of the host's own affirmation.
    pub affirm_ns: Option<u64>,
    /// Since the host's agent reported to Meta.
    pub report_age_ns: Option<u64>,
    /// Since its server last answered a pulse of the host, as the host says.
    pub reply_age_ns: Option<u64>,
    /// Of the server's session with Meta.
    pub session: Option<SessionState>,
    pub blocked: Option<BlockId>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        None => list(args.common),
        Some(LoginsVerb::Evict { client, reason, timeout, actor, common }) => {
            evict(&client, Why { actor: acting_for(actor), reason }, timeout, common)
        }
    }
}

/// The logins of a view that is `age_ns` old.
fn holders(view: &ClusterView, age_ns: u64) -> Vec<Holder> {
    view.logins.iter().map(|l| holder(view, l, age_ns)).collect()
}

fn holder(view: &ClusterView, l: &LoginView, age_ns: u64) -> Holder {
    let names = Names(view);
    let (state, at, proof) = match &l.login.state {
        LoginState::At { scvm, proof, .. } => ("at", Some(*scvm), Some(word(proof))),
        LoginState::Moving { to, .. } => ("moving", Some(*to), None),
        LoginState::Evicted { .. } => ("evicted", None, None),
    };
    let host = view.hosts.iter().find(|h| h.host == l.login.host);
    let session = at.and_then(|at| view.sessions.iter().find(|s| s.scvm == at));
    let heard = l.holder.as_ref();
    let older = |age: u64| age.saturating_add(age_ns);
    let aged = |pick: fn(&reroute_core::block::HolderFacts) -> Option<u64>| {
        heard.and_then(|h| pick(&h.facts).map(|age| older(age.saturating_add(h.heard_age_ns))))
    };
    let report_age_ns = host.and_then(|h| h.report_age_ns).map(older);
    let reply_age_ns = host.and_then(|h| h.report.as_ref()).and_then(|report| {
        let here = report.paths.iter().filter(|p| Some(p.path.scvm) == at);
        let age = here.filter_map(|p| p.last_reply_age_ns).min()?;
        Some(age.saturating_add(report_age_ns.unwrap_or(0)))
    });
    let pulse_age_ns = aged(|f| f.pulse_age_ns);
    let lately = |age: Option<u64>| age.is_some_and(|age| age.saturating_sub(age_ns) < 5 * SEC);
    let connections = heard.map(|h| h.facts.connections);
    let life = if l.ghost {
        "ghost"
    } else if lately(report_age_ns) || lately(pulse_age_ns) || connections.is_some_and(|n| n > 0) {
        "alive"
    } else {
        "quiet"
    };
    Holder {
        client: names.host(l.login.host),
        id: l.login.host,
        state: state.into(),
        scvm: at.map(|at| names.scvm(at)),
        since_ns: older(l.age_ns),
        epoch: l.login.epoch().0,
        term: l.login.term.0,
        proof,
        reason: l.login.reason.clone(),
        life: life.into(),
        connections,
        in_progress: heard.map(|h| h.facts.in_progress),
        orphans: heard.map(|h| h.facts.orphans),
        packet_age_ns: aged(|f| f.packet_age_ns),
        pulse_age_ns,
        affirm_ns: heard.map(|h| h.facts.affirm_ns),
        report_age_ns,
        reply_age_ns,
        session: session.map(|s| s.state),
        blocked: view.blocks.iter().find(|b| b.block.host == l.login.host).map(|b| b.block.id),
    }
}

fn list(common: Common) -> anyhow::Result<()> {
    let status: Value = service::ask_blocking(&common.socket, Method::GET, "/v1/status")?;
    let age_ns = status["view_age_ns"].as_u64().unwrap_or(0);
    let view: Option<ClusterView> = serde_json::from_value(status["view"].clone())?;
    let view = view.ok_or_else(|| {
        anyhow::anyhow!("no view of the cluster: this agent has not heard from Meta since it started")
    })?;
    let holders = holders(&view, age_ns);
    match common.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&holders)?),
        Output::Text => {
            if status["role"].as_str() != Some("meta") {
                println!("as this agent heard it from Meta {} ago", time(age_ns));
            }
            print!("{}", render(&holders));
        }
    }
    Ok(())
}

fn render(holders: &[Holder]) -> String {
    let age = |age: Option<u64>| age.map_or_else(|| "-".into(), |age| format!("{} ago", time(age)));
    let number = |n: Option<u32>| n.map_or_else(|| "-".into(), |n| n.to_string());
    let rows = holders.iter().map(|h| {
        vec![
            h.client.clone(),
            match &h.scvm {
                Some(scvm) => format!("{} {scvm}", h.state),
                None => h.state.clone(),
            },
            time(h.since_ns),
            h.epoch.to_string(),
            h.term.to_string(),
            h.proof.clone().unwrap_or_else(|| "-".into()),
            h.blocked.map_or_else(|| h.life.clone(), |id| format!("{}, {id}", h.life)),
            number(h.connections),
            number(h.in_progress),
            age(h.packet_age_ns),
            age(h.pulse_age_ns),
            age(h.report_age_ns),
            age(h.reply_age_ns),
            h.session.map_or_else(|| "-".into(), |s| word(&s)),
            h.reason.clone(),
        ]
    });
    table(
        &[
            "LOGIN", "STANDS", "FOR", "EPOCH", "TERM", "PROOF", "LIFE", "CONNS", "CALLS", "PACKET", "PULSE",
            "REPORT", "ANSWER", "SESSION", "REASON",
        ],
        rows,
    )
}

fn evict(client: &str, why: Why, timeout: Duration, common: Common) -> anyhow::Result<()> {
    let path = with_query(&["v1", "logins", client, "evict"], &why)?;
    let done: Done = at_meta(&common, Method::POST, &path)?;
    let Done::Evicted { host, epoch, .. } = done else {
        anyhow::bail!("Meta answered something else: {done:?}")
    };
    let deadline = Instant::now() + timeout;
    loop {
        let view = view(&common).map_err(|error| {
            Unconfirmed(format!(
                "the login has ended on record at {epoch}, but what became of it is not known: {error:#}"
            ))
        })?;
        let Shut { proofs, open, anew } = shut(&view, host, epoch);
        if !open.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        }
        let name = Names(&view).host(host);
        match common.output {
            Output::Json => println!(
                "{}",
                serde_json::json!({ "done": "evicted", "client": name, "epoch": epoch, "open": open, "anew": anew })
            ),
            Output::Text => {
                println!("the login of {name} has ended at {epoch}");
                proofs.iter().chain(&anew).for_each(|line| println!("{line}"));
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let open = open.join(", ");
        return Err(Unconfirmed(format!(
            "the login is ended on record, but {open} is not known to be shut: nobody is let in elsewhere before (`logins`)"
        ))
        .into());
    }
}

/// What has become of the servers of a login that ended at `epoch`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shut {
    proofs: Vec<String>,
    /// Servers that are not known to be shut.
    open: Vec<String>,
    /// It has asked for a login anew already.
    anew: Option<String>,
}

fn shut(view: &ClusterView, host: HostId, epoch: Epoch) -> Shut {
    let names = Names(view);
    let mut found = Shut::default();
    let login = view.logins.iter().find(|l| l.login.host == host).map(|l| &l.login.state);
    let (fencing, to) = match login {
        Some(LoginState::Evicted { fencing, epoch: at, .. }) if *at == epoch => (fencing.as_slice(), None),
        // That one waits for the same proofs, but for its own target's.
        Some(LoginState::Moving { fencing, to, epoch, .. }) => {
            found.anew = Some(format!("on its way to a login anew at {}, {epoch}", names.scvm(*to)));
            (fencing.as_slice(), Some(*to))
        }
        Some(LoginState::At { scvm, epoch, .. }) => {
            found.anew = Some(format!("logged in anew at {}, {epoch}", names.scvm(*scvm)));
            (&[][..], None)
        }
        _ => (&[][..], None),
    };
    for f in fencing.iter().filter(|f| Some(f.scvm) != to) {
        match f.proof {
            Some(proof) => found.proofs.push(format!("{} is shut ({})", names.scvm(f.scvm), word(&proof))),
            None => found.open.push(names.scvm(f.scvm)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use reroute_core::block::{HolderFacts, HolderView};
    use reroute_core::ids::{ScvmId, Term};
    use reroute_core::proto::{FenceProof, Fencing, Login};

    fn login(ghost: bool, holder: Option<HolderView>) -> ClusterView {
        let state = LoginState::At { scvm: ScvmId(1), epoch: Epoch(4), proof: FenceProof::Drained };
        let login = Login { host: HostId(1), state, term: Term(2), reason: "first".into() };
        let view = LoginView { login, age_ns: 7 * SEC, does_not_cover: String::new(), holder, ghost };
        ClusterView { logins: vec![view], ..ClusterView::default() }
    }

    fn seen(connections: u32, pulse_age_ns: Option<u64>) -> HolderView {
        let facts = HolderFacts {
            host: HostId(1),
            epoch: Epoch(4),
            word: "admitted".into(),
            connections,
            in_progress: 1,
            orphans: 0,
            packet_age_ns: Some(SEC),
            pulse_age_ns,
            affirm_ns: 0,
            blocked_packets: 0,
        };
        HolderView { heard_age_ns: SEC / 2, facts }
    }

    #[test]
    fn life_is_what_was_heard_lately() {
        let life = |view: &ClusterView| holders(view, 0)[0].life.clone();
        assert_eq!(life(&login(false, Some(seen(0, Some(SEC))))), "alive");
        assert_eq!(life(&login(false, Some(seen(2, None)))), "alive");
        assert_eq!(life(&login(false, Some(seen(0, Some(60 * SEC))))), "quiet");
        assert_eq!(life(&login(false, None)), "quiet");
        assert_eq!(life(&login(true, Some(seen(0, None)))), "ghost");
    }

    #[test]
    fn ages_grow_with_the_age_of_the_news_and_of_the_view() {
        let of = |age| holders(&login(false, Some(seen(2, None))), age)[0].clone();
        assert_eq!((of(0).packet_age_ns, of(0).since_ns), (Some(3 * SEC / 2), 7 * SEC));
        assert_eq!((of(SEC).packet_age_ns, of(SEC).since_ns), (Some(5 * SEC / 2), 8 * SEC));
        let text = render(&holders(&login(true, None), 0));
        assert!(text.contains("ghost") && text.contains("at scvm 1") && text.contains("drained"), "{text}");
    }

    /// A host with an agent asks for a login anew at once: its old server is not shut by that.
    #[test]
    fn a_login_anew_does_not_show_that_the_old_server_is_shut() {
        let at = |state: LoginState| {
            let mut view = login(false, None);
            view.logins[0].login.state = state;
            shut(&view, HostId(1), Epoch(5))
        };
        let fencing = |proof| {
            [(1, proof), (2, None)]
                .map(|(scvm, proof)| Fencing { scvm: ScvmId(scvm), epoch: Epoch(4), proof })
                .to_vec()
        };
        let moving = |proof| LoginState::Moving {
            fencing: fencing(proof),
            to: ScvmId(2),
            epoch: Epoch(6),
            planned: false,
        };
        let evicted =
            |proof| LoginState::Evicted { fencing: fencing(proof), epoch: Epoch(5), actor: "a".into() };
        let open = at(moving(None));
        assert_eq!(open.open, ["scvm 1"], "{open:?}");
        assert!(open.anew.is_some(), "{open:?}");
        let proven = at(moving(Some(FenceProof::Drained)));
        assert_eq!((proven.open.len(), proven.proofs.len()), (0, 1), "{proven:?}");
        assert_eq!(at(evicted(None)).open, ["scvm 1", "scvm 2"]);
        assert_eq!(at(evicted(Some(FenceProof::Drained))).open, ["scvm 2"]);
        let anew = LoginState::At { scvm: ScvmId(1), epoch: Epoch(7), proof: FenceProof::Drained };
        assert!(at(anew.clone()).open.is_empty() && at(anew).anew.is_some());
    }
}
