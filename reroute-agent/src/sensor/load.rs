//! Loading the programs over maps that may be there already.

use super::{SensorError, Settings};
use aya::maps::{Map, MapData};
use aya::programs::{Program, ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use reroute_common::flow::{Flow, MAX_FLOWS, MAX_PIECES, Piece, Watch};
use reroute_common::table::{AddressKey, Client, Config, MAX_CLIENTS, Server, pin};
use std::path::Path;
use std::time::Duration;

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/reroute-ebpf.o"));

/// Verbosity of the programs themselves, for those who debug them: error, warn, info, debug or trace. Read when the
/// programs are loaded; unset, what they would log is cut out by the verifier.
const LOG_LEVEL: &str = "REROUTE_BPF_LOG";

/// How much of the verifier's log an error carries.
const LOG_LINES: usize = 40;

/// Between attempts that circumstances prevent.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(500)];

/// Maps that outlive the agent: name, key size, value size, entries (0: whatever).
const PINNED: [(&str, usize, usize, u32); 9] = [
    (pin::CONFIG, 4, size_of::<Config>(), 1),
    (pin::CLIENTS, 4, size_of::<Client>(), MAX_CLIENTS),
    (pin::ADDRESSES, size_of::<AddressKey>(), 4, 0),
    (pin::FLOWS, 4, size_of::<Flow>(), MAX_FLOWS),
    (pin::WATCHES, 4, size_of::<Watch>(), MAX_FLOWS / 64),
    (pin::PIECES, 4, size_of::<Piece>(), MAX_PIECES),
    (pin::SERVER, 4, size_of::<Server>(), 1),
    (pin::EVENTS, 0, 0, 0),
    (pin::TIMER, 4, 40, 1),
];

pub(super) const INGRESS: &str = "ingress";
pub(super) const INGRESS_TC: &str = "ingress_tc";
pub(super) const EGRESS: &str = "egress";
pub(super) const CONTROL: &str = "control";
pub(super) const PASS: &str = "pass";

/// Whether an earlier agent left its maps; an error if they are not laid out as ours.
pub(super) fn adoptable(dir: &Path) -> Result<bool, SensorError> {
    let mut found = 0;
    for (name, key, value, entries) in PINNED {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        found += 1;
        let wrong = SensorError::Layout { name, dir: dir.to_path_buf() };
        let Ok(info) = MapData::from_pin(&path).and_then(|map| map.info()) else { return Err(wrong) };
        let same = info.key_size() as usize == key
            && info.value_size() as usize == value
            && (entries == 0 || info.max_entries() == entries);
        if !same {
            return Err(wrong);
        }
    }
    match found {
        0 => Ok(false),
        n if n == PINNED.len() => Ok(true),
        _ => Err(SensorError::Incomplete { dir: dir.to_path_buf() }),
    }
}

fn log_level() -> u8 {
    match std::env::var(LOG_LEVEL).as_deref() {
        Ok("error") => 1,
        Ok("warn") => 2,
        Ok("info") => 3,
        Ok("debug") => 4,
        Ok("trace") => 5,
        _ => 0,
    }
}

/// Loads the object; maps come from their pins where these exist, and are pinned where they do not.
pub(super) fn load(settings: &Settings) -> Result<Ebpf, SensorError> {
    // The verifier's log costs more than its verdict: it is asked for only when there is something to read. Its
    // statistics cost nothing, and without a level the kernel's own error would be lost (aya asks again with a buffer,
    // which the kernel takes for an invalid argument).
    let quiet = || load_with(settings, VerifierLogLevel::STATS);
    patient(&PAUSES, quiet).or_else(|_| load_with(settings, VerifierLogLevel::default()))
}

/// Tries again, after each of `pauses`, what circumstances prevented: no verdict on the program.
fn patient<T>(
    pauses: &[Duration],
    mut attempt: impl FnMut() -> Result<T, SensorError>,
) -> Result<T, SensorError> {
    for pause in pauses {
        match attempt() {
            Err(SensorError::Unloaded { source, .. }) if circumstance(&source) => std::thread::sleep(*pause),
            answer => return answer,
        }
    }
    attempt()
}

/// EAGAIN: the verifier was interrupted by a signal (libbpf tries five times). ENOMEM, ENOTSUPP: no memory for the
/// verifier's states, or for the machine's code of a program that is in order.
fn circumstance(error: &std::io::Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM | ENOTSUPP))
}

/// A refusal with the end of the verifier's log, where it says why.
fn refused(name: &'static str, error: ProgramError) -> SensorError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            SensorError::Unloaded { name, log: end(&verifier_log.to_string()), source: io_error }
        }
        source => SensorError::Program { name, source },
    }
}

fn end(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

fn load_with(settings: &Settings, log: VerifierLogLevel) -> Result<Ebpf, SensorError> {
    let mut loader = EbpfLoader::new();
    let level = log_level();
    loader.verifier_log_level(log);
    loader.override_global(aya_log::LEVEL, &level, false);
    for (name, ..) in PINNED {
        loader.map_pin_path(name, settings.bpf_dir.join(name));
    }
    let mut bpf = loader.load(OBJECT).map_err(Box::new)?;
    for name in [INGRESS, CONTROL] {
        load_xdp(&mut bpf, name)?;
    }
    for name in [EGRESS, INGRESS_TC] {
        classifier(&mut bpf, name)?.load().map_err(|error| refused(name, error))?;
    }
    Ok(bpf)
}

fn load_xdp(bpf: &mut Ebpf, name: &'static str) -> Result<(), SensorError> {
    xdp(bpf, name)?.load().map_err(|error| refused(name, error))
}

/// Hands what the programs log to `tracing`, if they were loaded to log at all.
pub(super) fn start_log(bpf: &mut Ebpf) -> Result<(), SensorError> {
    if log_level() == 0 {
        return Ok(());
    }
    let mut logger =
        aya_log::EbpfLogger::init(bpf).map_err(|error| SensorError::Log { why: error.to_string() })?;
    std::thread::Builder::new()
        .name("bpf-log".into())
        .spawn(move || {
            loop {
                logger.flush();
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        })
        .map(drop)
        .map_err(|source| SensorError::Io { what: "starting the log thread", source })
}

/// Only the program that lets everything through, with no table behind it.
pub(super) fn load_pass() -> Result<Ebpf, SensorError> {
    let mut loader = EbpfLoader::new();
    for name in [pin::CLIENTS, pin::ADDRESSES, pin::FLOWS, pin::WATCHES, pin::PIECES] {
        loader.map_max_entries(name, 1);
    }
    let mut bpf = loader.load(OBJECT).map_err(Box::new)?;
    load_xdp(&mut bpf, PASS)?;
    Ok(bpf)
}

fn program<'a>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, SensorError> {
    bpf.program_mut(name).ok_or(SensorError::NoProgram { name })
}

pub(super) fn xdp<'a>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, SensorError> {
    program(bpf, name)?.try_into().map_err(|source: ProgramError| SensorError::Program { name, source })
}

pub(super) fn classifier<'a>(
    bpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, SensorError> {
    program(bpf, name)?.try_into().map_err(|source: ProgramError| SensorError::Program { name, source })
}

/// Pins the programs beside the maps, in place of an earlier agent's: `bpftool` and tests find them there.
pub(super) fn pin_programs(bpf: &mut Ebpf, dir: &Path) -> Result<(), SensorError> {
    for name in [INGRESS, INGRESS_TC, EGRESS, CONTROL] {
        let path = dir.join(format!("program_{name}"));
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(SensorError::Io { what: "removing the pin of an earlier program", source });
            }
            _ => {}
        }
        program(bpf, name)?
            .pin(&path)
            .map_err(|error| SensorError::Pin { path: path.clone(), why: error.to_string() })?;
    }
    Ok(())
}

pub(super) fn take_map(bpf: &mut Ebpf, name: &'static str) -> Result<Map, SensorError> {
    bpf.take_map(name).ok_or(SensorError::NoMap { name })
}

/// The data behind an array map, for a view of it.
pub(super) fn take_array(bpf: &mut Ebpf, name: &'static str) -> Result<MapData, SensorError> {
    match take_map(bpf, name)? {
        Map::Array(data) => Ok(data),
        _ => Err(SensorError::NoMap { name }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn attempts(errors: &[i32]) -> (usize, Result<(), SensorError>) {
        let mut left = errors.iter();
        let mut tried = 0;
        let answer = patient(&[Duration::ZERO; 4], || {
            tried += 1;
            left.next().map_or(Ok(()), |code| {
                let log = end(&(0..90).map(|n| format!("{n}\n")).collect::<String>());
                Err(SensorError::Unloaded { name: EGRESS, log, source: io::Error::from_raw_os_error(*code) })
            })
        });
        (tried, answer)
    }

    #[test]
    fn what_circumstances_prevented_is_tried_again() {
        assert!(matches!(attempts(&[]), (1, Ok(()))));
        assert!(matches!(attempts(&[libc::EAGAIN, libc::ENOMEM, 524]), (4, Ok(()))));
        assert!(matches!(attempts(&[libc::EAGAIN; 9]), (5, Err(SensorError::Unloaded { .. }))));
    }

    #[test]
    fn a_verdict_on_the_program_stands_and_says_why_last() {
        let (tried, answer) = attempts(&[libc::EACCES]);
        assert_eq!(tried, 1);
        let said = answer.unwrap_err().to_string();
        assert!(said.contains("\n50\n") && !said.contains("\n49\n"), "{said}");
        assert!(
            said.ends_with("program egress: the kernel refuses it: Permission denied (os error 13)"),
            "{said}"
        );
    }
}
