//! What can go wrong between the agent and the kernel, and what to do about it.

use reroute_core::ids::HostId;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    #[error("{dir}: cannot be made: {source}; mount a bpffs first (`mount -t bpf bpf /sys/fs/bpf`)")]
    Directory { dir: PathBuf, source: std::io::Error },
    #[error("the eBPF object cannot be loaded: {0}")]
    Load(#[from] Box<aya::EbpfError>),
    #[error("program {name}: {source}")]
    Program { name: &'static str, source: aya::programs::ProgramError },
    #[error("the end of the verifier's log:\n{log}\nprogram {name}: the kernel refuses it: {source}")]
    Unloaded { name: &'static str, log: String, source: std::io::Error },
    #[error("map {name}: {source}")]
    Map { name: &'static str, source: aya::maps::MapError },
    #[error("map {name} is missing from the eBPF object")]
    NoMap { name: &'static str },
    #[error("map {name} pinned in {dir} has another layout: stop the agent, remove {dir}, start it again")]
    Layout { name: &'static str, dir: PathBuf },
    #[error("{dir} holds only some of the maps: stop the agent, remove {dir}, start it again")]
    Incomplete { dir: PathBuf },
    #[error("program {name} is missing from the eBPF object, or did not answer")]
    NoProgram { name: &'static str },
    #[error("{path}: cannot be pinned: {why}; is it on a bpffs (`mount -t bpf bpf /sys/fs/bpf`)?")]
    Pin { path: PathBuf, why: String },
    #[error("interface {interface}: {why}")]
    Attach { interface: String, why: String },
    #[error("{host} is not registered here: add it to [[cluster.hosts]] and restart the agent")]
    UnknownHost { host: HostId },
    #[error("more than {max} hosts are registered")]
    TooManyHosts { max: u32 },
    #[error("more than {max} interfaces are named in [scvm.interfaces]")]
    TooManyInterfaces { max: usize },
    #[error("the kernel refused command {op} (result {result})")]
    Refused { op: u32, result: u32 },
    #[error("mode {mode} is none of shadow (0), enforce (1), bypass (2)")]
    Mode { mode: u32 },
    #[error("the programs' log cannot be read: {why}; unset REROUTE_BPF_LOG to go without")]
    Log { why: String },
    #[error("events were taken already")]
    EventsTaken,
    #[error("{what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
}
