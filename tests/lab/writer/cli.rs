//! Flags of `reroute-writer`.

use clap::Parser;
use std::path::PathBuf;

/// NFSv3 writer on libnfs that proves what was lost, what was applied late, and how long nothing was completed.
///
/// Prints one JSON result when it ends (`stop`, SIGTERM, SIGINT, end of --max-seconds) and exits with 0; with 1 when
/// writes were lost or stale (not with --expect-damage); with 2 when it could not run.
///
/// Commands, one per line, by --control or --stdin; each is answered by one line of JSON:
/// `snapshot`: counts so far, after a check of every block; `gap FROM TO`: longest gap between completed sync writes
/// that touches the window (CLOCK_BOOTTIME ns, from the writer's start on; TO 0: now); `stop`: drain, verify, result.
#[derive(Clone, Debug, Parser)]
#[command(name = "reroute-writer", version)]
pub struct Cli {
    /// nfs://ADDRESS/EXPORT?version=3&nfsport=2049&mountport=2049
    #[arg(long)]
    pub url: String,
    /// The exported directory as seen locally: the ground truth.
    #[arg(long)]
    pub backing: PathBuf,
    /// Names this writer's files and blocks; unique among writers of one export.
    #[arg(long, default_value_t = 1)]
    pub id: u64,
    /// FILE_SYNC writes outstanding at once.
    #[arg(long, default_value_t = 1)]
    pub outstanding: usize,
    /// READs outstanding at once, of blocks that are not being written; each is checked.
    #[arg(long, default_value_t = 0)]
    pub reads: usize,
    /// Slots of the ring that is overwritten all the time.
    #[arg(long, default_value_t = 256)]
    pub hot_slots: usize,
    /// Size of the append file, bytes. Then each block is verified again and its place used anew.
    #[arg(long, default_value_t = 256 << 20)]
    pub max_bytes: u64,
    /// Least time between two issued sync writes, and between two READs, µs; 0: as fast as it goes.
    #[arg(long, default_value_t = 0)]
    pub interval_us: u64,
    /// Also UNSTABLE writes with COMMIT, and CREATE, RENAME, REMOVE.
    #[arg(long)]
    pub metadata: bool,
    /// Ends by itself after this time.
    #[arg(long, default_value_t = 600)]
    pub max_seconds: u64,
    /// How long `stop` waits for outstanding calls.
    #[arg(long, default_value_t = 30)]
    pub drain_seconds: u64,
    /// How long to try to mount.
    #[arg(long, default_value_t = 30)]
    pub mount_seconds: u64,
    /// Unix socket for commands.
    #[arg(long)]
    pub control: Option<PathBuf>,
    /// Commands on standard input; its end stops the writer. Answers go to standard output, then the result.
    #[arg(long)]
    pub stdin: bool,
    /// Log of every operation: 40-byte records, see record.rs.
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// Write the result there as well.
    #[arg(long)]
    pub result: Option<PathBuf>,
    /// Exit 0 also when writes were lost or stale.
    #[arg(long)]
    pub expect_damage: bool,
}
