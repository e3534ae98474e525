//! `drain`: hosts leave an SCVM before it is taken down.

use super::{Common, Output, Refused};
use crate::meta::operator::{DrainWish, Of};
use crate::service;
use anyhow::{Context, bail};
use axum::http::Method;
use reroute_core::meta::{OperatorAnswer, StillThere};
use serde_json::json;
use std::time::{Duration, Instant};

const ASK_EVERY: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
pub struct Args {
    /// Name or id of the SCVM.
    scvm: String,
    /// End it: hosts may return.
    #[arg(long)]
    undo: bool,
    /// Return when nobody is logged in there any more (exit code 1 if that takes longer than --timeout).
    #[arg(long, conflicts_with = "undo")]
    wait: bool,
    /// For --wait.
    #[arg(long, value_parser = duration, default_value = "10m")]
    timeout: Duration,
    /// Who asks, for the record; the user is recorded in any case.
    #[arg(long, default_value = "")]
    actor: String,
    #[command(flatten)]
    common: Common,
}

/// A number with its unit: 500ms, 90s, 30m, 12h, 2d.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: a number with ms, s, m, h or d, as in 30m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit_ms: u64 = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    match number.checked_mul(unit_ms).filter(|ms| (1..=3_650 * 86_400_000).contains(ms)) {
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => Err(format!("{text:?} is not between 1ms and 3650d")),
    }
}

/// Errors: no Meta answers; [`Refused`] with why it cannot be drained; with `--wait`, who has not left, and why.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { scvm, undo, wait, timeout, actor, common } = args;
    let wish = DrainWish { scvm: scvm.clone(), undo, actor };
    let mut answer: OperatorAnswer = service::post_blocking(&common.socket, "/v1/drain", json!(wish))?;
    let until = Instant::now() + timeout;
    let mut shown = String::new();
    loop {
        let still = still(&answer)?;
        if !wait || still.is_empty() {
            break;
        }
        let text = list(still);
        if Instant::now() >= until {
            bail!("{scvm} is not empty after {} s:\n{text}", timeout.as_secs());
        }
        if matches!(common.output, Output::Text) && text != shown {
            eprint!("still there:\n{text}");
            shown = text;
        }
        std::thread::sleep(ASK_EVERY);
        let query = Of { host: String::new(), scvm: scvm.clone() };
        let path = format!("/v1/drain?{}", encode(&query)?);
        answer = service::ask_blocking(&common.socket, Method::GET, &path)?;
        if matches!(&answer, OperatorAnswer::Drain { draining: None, .. }) {
            return Err(Refused(format!("somebody else ended the draining of {scvm} meanwhile")).into());
        }
    }
    match common.output {
        Output::Json => println!("{}", serde_json::to_string(&answer)?),
        Output::Text if undo => println!("{scvm} is not drained any more: hosts may return"),
        Output::Text => {
            let still = still(&answer)?;
            match still.is_empty() {
                true => println!("{scvm} is being drained: nobody is logged in there"),
                false => print!("{scvm} is being drained; still there:\n{}", list(still)),
            }
        }
    }
    Ok(())
}

fn still(answer: &OperatorAnswer) -> anyhow::Result<&[StillThere]> {
    match answer {
        OperatorAnswer::Drain { still, .. } => Ok(still),
        other => bail!("an answer of another release: {other:?}"),
    }
}

fn list(still: &[StillThere]) -> String {
    still.iter().map(|s| format!("  {}: {}\n", s.name, s.why)).collect()
}

/// As a query of an address.
pub(super) fn encode(of: &Of) -> anyhow::Result<String> {
    let plain = |text: &str| {
        let ok = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        ok.then(|| text.to_string()).with_context(|| format!("{text:?} is no name of a host or SCVM"))
    };
    let refused = |e: anyhow::Error| Refused(e.to_string());
    let (host, scvm) = (plain(&of.host).map_err(refused)?, plain(&of.scvm).map_err(refused)?);
    Ok(format!("host={host}&scvm={scvm}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_bounds() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("30m"), Ok(Duration::from_secs(1800)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "30", "m", "1.5h", "-3s", "0s", "99999999999999999999s", "9999999999d", "3 m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
