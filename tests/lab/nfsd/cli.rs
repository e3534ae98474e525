//! Flags of `reroute-nfsd`.

use clap::{Args, Parser};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Other things this program does; without one of these it serves, with the flags of [`Serve`].
#[derive(Clone, Debug, Parser)]
#[command(name = "reroute-nfsd")]
pub enum Command {
    /// Counts what was applied to a store, and what of it late: {"writes","late_epoch","late_sequence",...}.
    Applied {
        #[arg(long)]
        store: PathBuf,
        #[arg(long)]
        meta: Option<PathBuf>,
    },
    /// The storage side of one instance; started by it, with a socket as standard input.
    Storage {
        #[command(flatten)]
        place: Place,
    },
}

/// What the command line asks for.
pub enum Task {
    Other(Command),
    Serve(Box<Serve>),
}

pub fn parse() -> Task {
    match std::env::args().nth(1).as_deref() {
        Some("applied" | "storage") => Task::Other(Command::parse()),
        _ => Task::Serve(Box::new(Serve::parse())),
    }
}

#[derive(Clone, Debug, Args)]
pub struct Place {
    /// The exported directory, shared by all instances.
    #[arg(long)]
    pub store: PathBuf,
    /// Leases and the log of applied writes, shared as well; default: STORE.meta
    #[arg(long)]
    pub meta: Option<PathBuf>,
    /// Names this instance in the log; default: its process id.
    #[arg(long)]
    pub server_id: Option<u64>,
    /// Do not fdatasync what must be stable (kernel and disk outlive every process of a lab).
    #[arg(long)]
    pub no_fsync: bool,
    /// UNSTABLE writes stay in this instance's memory until COMMIT, unseen by READ, and are lost with it.
    #[arg(long)]
    pub volatile: bool,
    /// Write verifier; default: from the time of the start.
    #[arg(long, hide = true)]
    pub verifier: Option<u64>,
}

/// An access server for labs: NFSv3 over a directory that several instances share, each refused by the storage below
/// it once a higher epoch of a client has written. Exit codes: 0 stopped, 2 could not run.
///
/// Commands on --control, one per line, each answered by one line of JSON; CLASS is null, read, write or metadata:
/// `slow CLASS MS` answers that class late, `stuck CLASS on|off` not at all until released, `wedge ADDRESS on|off` likewise
/// whatever that client calls on the connections it has then, `clear`, `stats`.
///
/// `reroute-nfsd applied --store DIR` counts what was applied to a store, and what of it late.
#[derive(Clone, Debug, Parser)]
#[command(name = "reroute-nfsd", version)]
pub struct Serve {
    #[command(flatten)]
    pub place: Place,
    /// Serves NFS and MOUNT.
    #[arg(long, default_value = "0.0.0.0:2049")]
    pub listen: SocketAddr,
    /// The same on a second port (e.g. 0.0.0.0:20048).
    #[arg(long)]
    pub mount_listen: Option<SocketAddr>,
    /// Path to mount.
    #[arg(long, default_value = "/export")]
    pub export: String,
    /// The SCVM agent's epoch file: a connection is bound to its client's epoch at its first call, and closed when the
    /// file has none for it.
    #[arg(long)]
    pub epoch_file: Option<PathBuf>,
    /// Apply every write, whatever its epoch: shows the damage.
    #[arg(long)]
    pub no_storage_check: bool,
    #[arg(long)]
    pub pidfile: Option<PathBuf>,
    /// Process id of the storage side, which must go on while this one is stopped or frozen.
    #[arg(long)]
    pub storage_pidfile: Option<PathBuf>,
    /// Unix socket for commands.
    #[arg(long)]
    pub control: Option<PathBuf>,
    /// SIGKILL when the thread that started this process ends.
    #[arg(long)]
    pub die_with_parent: bool,
}

impl Place {
    pub fn meta(&self) -> PathBuf {
        meta(&self.store, self.meta.as_ref())
    }
}

pub fn meta(store: &std::path::Path, given: Option<&PathBuf>) -> PathBuf {
    given.cloned().unwrap_or_else(|| {
        let mut name = store.as_os_str().to_owned();
        name.push(".meta");
        PathBuf::from(name)
    })
}
