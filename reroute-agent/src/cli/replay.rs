//! `replay`: a recording told to a fresh machine, and what it made of it.

use super::{Output, Refused};
use reroute_core::ids::BootNs;
use reroute_core::recording::{self, Machine, ReplayError};
use reroute_core::timeline::Event;
use reroute_core::{host, meta, scvm};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// Written by `--record`.
    file: PathBuf,
    /// Every effect, not only what goes into the journal.
    #[arg(long)]
    effects: bool,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The machines did something else than when they were recorded.
#[derive(Debug, thiserror::Error)]
#[error(
    "{count} of {inputs} inputs had other effects than recorded, the first in line {first}: another release?"
)]
pub struct Differs {
    count: usize,
    inputs: usize,
    first: usize,
}

/// Errors: [`Refused`] if the file is no recording; [`Differs`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.file)
        .map_err(|error| Refused(format!("{}: {error}", args.file.display())))?;
    let role = recording::role(text.lines().next().unwrap_or_default());
    match role.map_err(|error| refused(&args.file, error))?.as_str() {
        "host" => tell::<host::Machine>(args, &text, |e| match e {
            host::Effect::Journal(event) => Some(event),
            _ => None,
        }),
        "scvm" => tell::<scvm::Scvm>(args, &text, |e| match e {
            scvm::Effect::Journal { event, .. } => Some(event),
            _ => None,
        }),
        "meta" => tell::<meta::SessionMaster>(args, &text, |e| match e {
            meta::Effect::Journal(event) => Some(event),
            _ => None,
        }),
        other => Err(Refused(format!("{}: no role {other}", args.file.display())).into()),
    }
}

fn refused(file: &Path, error: ReplayError) -> Refused {
    Refused(format!("{}: {error}", file.display()))
}

fn tell<M: Machine>(args: &Args, text: &str, event: fn(&M::Effect) -> Option<&Event>) -> anyhow::Result<()> {
    let mut began: Option<BootNs> = None;
    let (mut inputs, mut count, mut first) = (0, 0, 0);
    recording::replay::<M>(text, |_, told| {
        inputs += 1;
        let since = told.now.since(*began.get_or_insert(told.now));
        if told.differs {
            count += 1;
            first = if count == 1 { told.line } else { first };
        }
        for effect in told.effects {
            let shown = match (args.effects, event(effect)) {
                (true, _) => serde_json::to_value(effect).ok(),
                (false, Some(event)) => serde_json::to_value(event).ok(),
                (false, None) => None,
            };
            match (shown, args.output) {
                (None, _) => {}
                (Some(shown), Output::Json) => {
                    println!("{}", json!({ "line": told.line, "at": told.now, "effect": shown }));
                }
                (Some(shown), Output::Text) => println!("{:>12.3} ms  {shown}", since as f64 / 1e6),
            }
        }
    })
    .map_err(|error| refused(&args.file, error))?;
    if count > 0 {
        return Err(Differs { count, inputs, first }.into());
    }
    if let Output::Text = args.output {
        println!("{inputs} inputs, every effect as recorded");
    }
    Ok(())
}
