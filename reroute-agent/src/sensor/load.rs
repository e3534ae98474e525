//! Loading the programs over maps that may be there already.

use super::{SensorError, Settings};
use aya::maps::{Map, MapData};
use aya::programs::{Program, ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use reroute_common::flow::{Flow, MAX_FLOWS, MAX_PIECES, Piece, Watch};
use reroute_common::table::{AddressKey, Client, Config, MAX_CLIENTS, Server, pin};
use std::path::Path;

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/reroute-ebpf.o"));

/// Verbosity of the programs themselves, for those who debug them: error, warn, info, debug or trace. Read when the
/// programs are loaded; unset, what they would log is cut out by the verifier.
const LOG_LEVEL: &str = "REROUTE_BPF_LOG";

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
    // The verifier's log costs more than its verdict: it is asked for only when there is something to read.
    load_with(settings, VerifierLogLevel::DISABLE)
        .or_else(|_| load_with(settings, VerifierLogLevel::default()))
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
        classifier(&mut bpf, name)?.load().map_err(|source| SensorError::Program { name, source })?;
    }
    Ok(bpf)
}

fn load_xdp(bpf: &mut Ebpf, name: &'static str) -> Result<(), SensorError> {
    xdp(bpf, name)?.load().map_err(|source| SensorError::Program { name, source })
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
