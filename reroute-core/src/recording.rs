//! What a machine was told, line by line, so that it can be told again: a field incident becomes a test.
//!
//! JSON lines. The first says which machine was started with what; each further one is an input, when it came, and a
//! digest of the effects it had. Machines read no clock and draw no numbers: whoever replays a recording gets the same
//! effects, or has another machine.

use crate::ids::BootNs;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::BufRead;
use std::ops::ControlFlow;

/// Of the format of the lines; not of the machines, which differ from release to release.
pub const VERSION: u32 = 1;

/// A machine of this crate: [`crate::host`], [`crate::scvm`], [`crate::meta`].
pub trait Machine: Sized {
    const ROLE: &'static str;
    /// All it is told once.
    type Start: Serialize + DeserializeOwned + Clone;
    type Input: Serialize + DeserializeOwned;
    type Effect: Serialize;
    fn begin(start: Self::Start, now: BootNs) -> Self;
    fn take(&mut self, input: Self::Input, now: BootNs) -> Vec<Self::Effect>;
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<S, I> {
    Started {
        version: u32,
        role: String,
        release: String,
        now: BootNs,
        start: S,
    },
    Input {
        now: BootNs,
        input: I,
        effects: String,
    },
    /// So many lines were not written here: what follows cannot be replayed.
    Lost {
        lines: u64,
    },
    /// The recording was ended here, and the machine went on.
    Ended {
        why: String,
    },
}

/// Why a recording cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("line {line}: {source}: is this a recording of `--record`, by this release?")]
    Syntax { line: usize, source: serde_json::Error },
    #[error("the recording is empty")]
    Empty,
    #[error("line 1 does not say what was started: the beginning is missing")]
    NoStart,
    #[error(
        "format {found}, this release reads {VERSION}: replay it with the release that wrote it ({release})"
    )]
    Version { found: u32, release: String },
    #[error("recorded by role {found}, not {expected}")]
    Role { found: String, expected: &'static str },
    #[error("line {line}: another start: cut the recording in two there")]
    StartedAgain { line: usize },
    #[error("line {line}: {lost} lines were lost when this was recorded: nothing after them can be replayed")]
    Lost { line: usize, lost: u64 },
    #[error("line {line}: the recording was ended there: {why}; what came after is not known")]
    Ended { line: usize, why: String },
    #[error("line {line} cannot be read: {source}")]
    Unreadable { line: usize, source: std::io::Error },
}

/// One input told again.
pub struct Told<'a, M: Machine> {
    pub line: usize,
    pub now: BootNs,
    pub effects: &'a [M::Effect],
    /// Not those that were recorded.
    pub differs: bool,
}

/// The first line of a recording.
///
/// # Errors
/// What cannot be written as JSON.
pub fn start_line<M: Machine>(start: &M::Start, release: &str, now: BootNs) -> serde_json::Result<String> {
    let line: Line<&M::Start, ()> =
        Line::Started { version: VERSION, role: M::ROLE.into(), release: release.into(), now, start };
    serde_json::to_string(&line)
}

/// Takes an input and gives its line with the effects. The line is not there when something cannot be written as JSON.
pub fn take<M: Machine>(
    machine: &mut M,
    input: M::Input,
    now: BootNs,
) -> (Vec<M::Effect>, serde_json::Result<String>) {
    let json = serde_json::to_string(&input);
    let effects = machine.take(input, now);
    // As `Line::Input` is read: the input is JSON already.
    let line = json.and_then(|input| {
        let digest = digest::<M>(&effects)?;
        Ok(format!(r#"{{"input":{{"now":{},"input":{input},"effects":"{digest}"}}}}"#, now.0))
    });
    (effects, line)
}

pub fn lost_line(lines: u64) -> String {
    serde_json::json!({ "lost": { "lines": lines } }).to_string()
}

pub fn ended_line(why: &str) -> String {
    serde_json::json!({ "ended": { "why": why } }).to_string()
}

/// The role a recording is of, by its first line.
///
/// # Errors
/// Why it is none.
pub fn role(first: &str) -> Result<String, ReplayError> {
    let line: Line<serde::de::IgnoredAny, serde::de::IgnoredAny> =
        serde_json::from_str(first).map_err(|source| ReplayError::Syntax { line: 1, source })?;
    match line {
        Line::Started { version: VERSION, role, .. } => Ok(role),
        Line::Started { version: found, release, .. } => Err(ReplayError::Version { found, release }),
        _ => Err(ReplayError::NoStart),
    }
}

/// Tells a fresh machine everything again, line by line; `told` hears of each input, and may stop it. Returns the machine
/// as it stands then.
///
/// # Errors
/// The first line that cannot be replayed; everything before it was.
pub fn replay<M: Machine>(
    mut recording: impl BufRead,
    mut told: impl FnMut(&M, Told<'_, M>) -> ControlFlow<()>,
) -> Result<M, ReplayError> {
    let mut line = 0;
    let mut next = || -> Result<Option<(usize, String)>, ReplayError> {
        loop {
            line += 1;
            let mut text = String::new();
            recording.read_line(&mut text).map_err(|source| ReplayError::Unreadable { line, source })?;
            // Whoever is killed leaves half a line.
            if text.is_empty() || (line > 1 && !text.ends_with('\n')) {
                return Ok(None);
            }
            if !text.trim_end().is_empty() {
                return Ok(Some((line, text)));
            }
        }
    };
    let (_, first) = next()?.ok_or(ReplayError::Empty)?;
    let found = role(&first)?;
    if found != M::ROLE {
        return Err(ReplayError::Role { found, expected: M::ROLE });
    }
    let parse = |line: usize, text: &str| -> Result<Line<M::Start, M::Input>, ReplayError> {
        serde_json::from_str(text).map_err(|source| ReplayError::Syntax { line, source })
    };
    let Line::Started { now, start, .. } = parse(1, &first)? else { return Err(ReplayError::NoStart) };
    let mut machine = M::begin(start, now);
    while let Some((line, text)) = next()? {
        match parse(line, &text)? {
            Line::Input { now, input, effects: recorded } => {
                let effects = machine.take(input, now);
                let differs = digest::<M>(&effects).ok() != Some(recorded);
                if told(&machine, Told { line, now, effects: &effects, differs }).is_break() {
                    break;
                }
            }
            Line::Started { .. } => return Err(ReplayError::StartedAgain { line }),
            Line::Lost { lines } => return Err(ReplayError::Lost { line, lost: lines }),
            Line::Ended { why } => return Err(ReplayError::Ended { line, why }),
        }
    }
    Ok(machine)
}

/// FNV-1a of the effects as JSON: enough to see that they are others.
fn digest<M: Machine>(effects: &[M::Effect]) -> serde_json::Result<String> {
    let json = serde_json::to_vec(effects)?;
    let hash = json.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    Ok(format!("{hash:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says each word and how many there were.
    #[derive(Clone)]
    struct Counter {
        words: u64,
    }

    impl Machine for Counter {
        const ROLE: &'static str = "counter";
        type Start = u64;
        type Input = String;
        type Effect = (String, u64);
        fn begin(start: u64, _: BootNs) -> Counter {
            Counter { words: start }
        }
        fn take(&mut self, input: String, _: BootNs) -> Vec<(String, u64)> {
            self.words += 1;
            vec![(input, self.words)]
        }
    }

    fn recorded(words: &[&str]) -> String {
        let mut machine = Counter::begin(5, BootNs(1));
        let mut lines = vec![start_line::<Counter>(&5, "0.1.0", BootNs(1)).unwrap()];
        for (i, word) in words.iter().enumerate() {
            let (effects, line) = take(&mut machine, (*word).to_string(), BootNs(10 + i as u64));
            assert_eq!(effects.len(), 1);
            lines.push(line.unwrap());
        }
        lines.join("\n") + "\n"
    }

    fn differences(text: &str) -> Result<Vec<usize>, ReplayError> {
        let mut lines = Vec::new();
        replay::<Counter>(text.as_bytes(), |_, told| {
            if told.differs {
                lines.push(told.line);
            }
            ControlFlow::Continue(())
        })?;
        Ok(lines)
    }

    #[test]
    fn what_was_recorded_happens_again() {
        let text = recorded(&["a", "b\"{}", "c"]);
        assert_eq!(role(text.lines().next().unwrap()).unwrap(), "counter");
        assert_eq!(differences(&text).unwrap(), Vec::<usize>::new());
        let machine = replay::<Counter>(text.as_bytes(), |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(machine.words, 8);
        // As far as somebody listens.
        let machine = replay::<Counter>(text.as_bytes(), |_, _| ControlFlow::Break(())).unwrap();
        assert_eq!(machine.words, 6);
    }

    #[test]
    fn another_machine_is_noticed() {
        let text = recorded(&["a", "b"]).replacen("\"start\":5", "\"start\":6", 1);
        assert_eq!(differences(&text).unwrap(), [2, 3]);
    }

    #[test]
    fn what_cannot_be_replayed_says_why() {
        let text = recorded(&["a", "b"]);
        let lines: Vec<&str> = text.lines().collect();
        let why = |text: &str| differences(text).unwrap_err().to_string();
        assert_eq!(why(""), "the recording is empty");
        assert!(why(lines[1]).contains("does not say what was started"));
        assert!(why(&text.replacen("counter", "host", 1)).contains("recorded by role host"));
        assert!(why(&text.replacen("\"version\":1", "\"version\":2", 1)).contains("format 2"));
        assert!(why(&format!("{text}{}\n", lost_line(7))).contains("line 4: 7 lines were lost"));
        let ended = why(&format!("{text}{}\n", ended_line("it is long enough")));
        assert!(ended.contains("line 4: the recording was ended there: it is long enough"), "{ended}");
        assert!(why(&format!("{text}{}\n", lines[0])).contains("line 4: another start"));
        assert!(why(&text.replacen("\"input\"", "\"inputs\"", 1)).starts_with("line 2: "));
        assert_eq!(differences(&text[..text.len() - 3]).unwrap(), Vec::<usize>::new(), "half a line is none");
    }
}
