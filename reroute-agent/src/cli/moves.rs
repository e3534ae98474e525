//! `move`: moves under way.

use super::drain::encode;
use super::{Common, Output, Refused};
use crate::meta::operator::{Of, VouchWish};
use crate::service;
use anyhow::bail;
use axum::http::Method;
use reroute_core::ids::SEC;
use reroute_core::meta::OperatorAnswer;
use reroute_core::proto::SessionState;
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};

#[derive(clap::Subcommand)]
pub enum MoveVerb {
    /// Give your word that a server can neither accept nor execute anything of a host any more, where nothing else
    /// can prove it. If that is not so, data is lost.
    Vouch {
        /// Name or id of the host whose move waits.
        #[arg(long)]
        host: String,
        /// Name or id of the SCVM it waits for.
        #[arg(long)]
        scvm: String,
        /// For scripts: the SCVM's name, given twice (`--yes NAME --yes NAME`), instead of being asked twice.
        #[arg(long = "yes")]
        yes: Vec<String>,
        /// Who vouches, for the record; the user is recorded in any case.
        #[arg(long, default_value = "")]
        actor: String,
        #[command(flatten)]
        common: Common,
    },
}

/// Errors: no Meta answers; [`Refused`] when no move waits for that, or it was not confirmed.
pub fn run(verb: MoveVerb) -> anyhow::Result<()> {
    let MoveVerb::Vouch { host, scvm, yes, actor, common } = verb;
    let query = encode(&Of { host: host.clone(), scvm: scvm.clone() })?;
    let shown: OperatorAnswer =
        service::ask_blocking(&common.socket, Method::GET, &format!("/v1/move/vouch?{query}"))?;
    let OperatorAnswer::Unproven { waiting, takes_on_trust, .. } = &shown else {
        bail!("an answer of another release: {shown:?}");
    };
    eprintln!(
        "The move of {host} has waited for {} s for a proof that {scvm} is shut for it at {}.",
        waiting.waits_ns / SEC,
        waiting.epoch
    );
    eprintln!("Other proofs that may still come: {}.", waiting.proofs.join("; "));
    eprintln!("Your word would stand for {takes_on_trust}.");
    eprintln!(
        "If {scvm} still writes, or ever goes on, data that is written from now on is overwritten by older data."
    );
    if matches!(waiting.session, SessionState::Alive | SessionState::Suspect) {
        eprintln!("WARNING: {scvm} has a live session with Meta: it runs, and its own agent can prove this.");
    }
    if waiting.serves_others {
        eprintln!("WARNING: other hosts say that {scvm} serves them now: it is not dead.");
    }
    let typed = match &yes[..] {
        [] => ask_twice(&scvm)?,
        [first, second] => [first.clone(), second.clone()],
        _ => return Err(Refused("--yes must be given twice, each time with the SCVM's name".into()).into()),
    };
    let wish = VouchWish { host: host.clone(), scvm: scvm.clone(), epoch: waiting.epoch, typed, actor };
    let answer: OperatorAnswer = service::post_blocking(&common.socket, "/v1/move/vouch", json!(wish))?;
    match common.output {
        Output::Json => println!("{}", serde_json::to_string(&answer)?),
        Output::Text => println!("recorded: {host} moves on by an operator's word on {scvm}"),
    }
    Ok(())
}

fn ask_twice(scvm: &str) -> anyhow::Result<[String; 2]> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        let how =
            format!("not confirmed: there is no terminal to ask at. Scripts say `--yes {scvm} --yes {scvm}`");
        return Err(Refused(how).into());
    }
    let ask = |what: &str| -> anyhow::Result<String> {
        eprint!("{what}");
        std::io::stderr().flush()?;
        let mut line = String::new();
        input.lock().read_line(&mut line)?;
        Ok(line.trim().to_string())
    };
    let first = ask("Type the SCVM's name to go on: ")?;
    let second = ask("It is powered off, or cannot reach the storage, for good. Type its name again: ")?;
    Ok([first, second])
}
