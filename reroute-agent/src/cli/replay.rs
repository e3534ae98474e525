//! `replay`: a recording told to a fresh machine, and what it made of it.

use super::{Output, Refused};
use reroute_core::ids::BootNs;
use reroute_core::recording::{self, Machine, ReplayError};
use reroute_core::timeline::Event;
use reroute_core::{host, meta, scvm};
use serde_json::json;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Seek, Write};
use std::ops::ControlFlow;
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

/// Errors: [`Refused`] if the file is no recording, or cannot be replayed to its end; [`Differs`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    until_closed(show(args, BufWriter::new(io::stdout().lock())))
}

/// Whoever reads what is printed may have seen enough.
fn until_closed(shown: anyhow::Result<()>) -> anyhow::Result<()> {
    match shown {
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => Ok(()),
        other => other,
    }
}

fn show(args: &Args, out: impl Write) -> anyhow::Result<()> {
    let unreadable = |error: io::Error| Refused(format!("{}: {error}", args.file.display()));
    let mut file = BufReader::new(File::open(&args.file).map_err(unreadable)?);
    let mut first = String::new();
    file.read_line(&mut first).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    match recording::role(&first).map_err(|error| refused(&args.file, error))?.as_str() {
        "host" => tell::<host::Machine>(args, file, out, |e| match e {
            host::Effect::Journal(event) => Some(event),
            _ => None,
        }),
        "scvm" => tell::<scvm::Scvm>(args, file, out, |e| match e {
            scvm::Effect::Journal { event, .. } => Some(event),
            _ => None,
        }),
        "meta" => tell::<meta::SessionMaster>(args, file, out, |e| match e {
            meta::Effect::Journal(event) => Some(event),
            _ => None,
        }),
        other => Err(Refused(format!("{}: no role {other}", args.file.display())).into()),
    }
}

fn refused(file: &Path, error: ReplayError) -> Refused {
    Refused(format!("{}: {error}", file.display()))
}

fn tell<M: Machine>(
    args: &Args,
    file: impl BufRead,
    mut out: impl Write,
    event: fn(&M::Effect) -> Option<&Event>,
) -> anyhow::Result<()> {
    let mut began: Option<BootNs> = None;
    let (mut inputs, mut count, mut first) = (0, 0, 0);
    let mut printed = Ok(());
    let replayed = recording::replay::<M>(file, |_, told| {
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
            printed = match (shown, args.output) {
                (None, _) => Ok(()),
                (Some(shown), Output::Json) => {
                    writeln!(out, "{}", json!({ "line": told.line, "at": told.now, "effect": shown }))
                }
                (Some(shown), Output::Text) => writeln!(out, "{:>12.3} ms  {shown}", since as f64 / 1e6),
            };
            if printed.is_err() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    });
    printed?;
    out.flush()?;
    match replayed {
        // Both are said: the difference decides.
        Err(error) if count > 0 => eprintln!("reroute-agent: {}", refused(&args.file, error)),
        Err(error) => return Err(refused(&args.file, error).into()),
        Ok(_) => {}
    }
    if count > 0 {
        return Err(Differs { count, inputs, first }.into());
    }
    if let Output::Text = args.output {
        writeln!(out, "{inputs} inputs, every effect as recorded")?;
        out.flush()?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    struct Echo;

    impl Machine for Echo {
        const ROLE: &'static str = "echo";
        type Start = ();
        type Input = u64;
        type Effect = u64;
        fn begin((): (), _: BootNs) -> Echo {
            Echo
        }
        fn take(&mut self, input: u64, _: BootNs) -> Vec<u64> {
            vec![input]
        }
    }

    fn recorded(inputs: u64) -> String {
        let lines = (0..inputs).map(|i| recording::take(&mut Echo, i, BootNs(i)).1.unwrap());
        let first = recording::start_line::<Echo>(&(), "1", BootNs(0)).unwrap();
        std::iter::once(first).chain(lines).map(|line| line + "\n").collect()
    }

    /// Takes so many lines, and is closed then.
    struct Pipe(u32);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let lines = bytes.iter().filter(|b| **b == b'\n').count() as u32;
            self.0 = self.0.checked_sub(lines).ok_or(ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn told(text: &str, out: impl Write) -> anyhow::Result<()> {
        let args = Args { file: "x".into(), effects: true, output: Output::Text };
        tell::<Echo>(&args, text.as_bytes(), out, |_| None)
    }

    #[test]
    fn a_closed_pipe_ends_it_quietly() {
        for lines in 0..4 {
            let shown = told(&recorded(3), Pipe(lines));
            assert!(shown.is_err(), "{lines}");
            until_closed(shown).unwrap();
        }
        let mut out = Vec::new();
        told(&recorded(3), &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().ends_with("3 inputs, every effect as recorded\n"));
        until_closed(Err(io::Error::from(ErrorKind::StorageFull).into())).unwrap_err();
    }

    #[test]
    fn a_gap_and_an_end_are_reported_and_a_difference_goes_before() {
        for (last, word) in [
            (recording::lost_line(7), "7 lines were lost"),
            (recording::ended_line("long"), "was ended there: long"),
        ] {
            let text = recorded(2) + &last + "\n";
            let error = told(&text, io::sink()).unwrap_err();
            assert!(error.is::<Refused>() && error.to_string().contains(word), "{error}");
            let other = text.replace("\"input\":1,", "\"input\":9,");
            assert_ne!(other, text);
            assert!(told(&other, io::sink()).unwrap_err().is::<Differs>());
        }
    }
}
