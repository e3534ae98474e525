//! `reroute-nfsd`: the controllable access server of the lab, over real files that several instances share.
//! `reroute-nfsd --help` gives flags and commands.
//!
//! ```text
//! reroute-nfsd --store /dev/shm/store --listen 0.0.0.0:2049 --pidfile /run/nfsd.pid --control /run/nfsd.sock \
//!     --epoch-file /run/reroute/epochs.json --server-id 1
//! printf 'stuck write on\nstats\n' | socat - UNIX-CONNECT:/run/nfsd.sock
//! reroute-nfsd applied --store /dev/shm/store
//! ```
//!
//! NFS and MOUNT are served on one port. A NULL call needs no epoch. What a connection may write is decided at its
//! first other call; the storage side (a process of its own, see `storage`) checks it in each operation. Freeze the
//! server by its pidfile; a lab that freezes whole groups of processes keeps the storage side (`--storage-pidfile`) out.
//! FILE_SYNC costs an fdatasync of the store's file system: keep the store in memory, or say `--no-fsync`.
//!
//! - `rpc`, `server`: records, connections, calls. `gate`: slow and stuck classes. `control`: commands.
//! - `read`, `mutate`, `store`: procedures over files. `ownership`, `storage`: leases, and the log of what was applied.

mod cli;
mod control;
mod gate;
mod mutate;
mod ownership;
mod read;
mod rpc;
mod server;
mod storage;
mod store;

#[path = "../writer/block.rs"]
#[allow(dead_code, reason = "the writer's half of the format")]
mod block;

use anyhow::{Context, bail};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let done = match cli::parse() {
        cli::Task::Other(cli::Command::Storage { place }) => storage::serve(&place),
        cli::Task::Other(cli::Command::Applied { store, meta }) => applied(&cli::meta(&store, meta.as_ref())),
        cli::Task::Serve(cli) => run(*cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("reroute-nfsd: {why:#}");
            ExitCode::from(2)
        }
    }
}

fn applied(meta: &Path) -> anyhow::Result<()> {
    let summary = ownership::summarize(meta).with_context(|| format!("applied.log in {}", meta.display()))?;
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}

fn run(mut cli: cli::Serve) -> anyhow::Result<()> {
    if cli.die_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    if !cli.place.store.is_dir() {
        bail!("--store {} is not a directory", cli.place.store.display());
    }
    let check = cli.epoch_file.is_some() && !cli.no_storage_check;
    cli.place.server_id.get_or_insert(u64::from(std::process::id()));
    cli.place.verifier.get_or_insert(reroute_agent::clock::new_incarnation().0);
    let store = Arc::new(store::Store::open(&cli.place.store)?);
    let storage = if check {
        let (storage, pid) = storage::Storage::side(&cli.place)?;
        if let Some(path) = &cli.storage_pidfile {
            pidfile(path, pid)?;
        }
        storage
    } else {
        storage::Storage::direct(&cli.place, store.clone())?
    };
    let server = Arc::new(server::Server {
        store,
        storage,
        gate: gate::Gate::default(),
        counts: server::Counts::default(),
        export: cli.export.clone(),
        epoch_file: cli.epoch_file.clone(),
        check,
        clients: Default::default(),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("tokio")?;
    runtime.block_on(serve(server.clone(), &cli))?;
    server.storage.end().context("ending the storage side")?;
    // Calls that are stuck do not hold up the end.
    runtime.shutdown_background();
    for path in [&cli.pidfile, &cli.storage_pidfile, &cli.control].into_iter().flatten() {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

async fn serve(server: Arc<server::Server>, cli: &cli::Serve) -> anyhow::Result<()> {
    let mut listeners = Vec::new();
    for address in [Some(cli.listen), cli.mount_listen].into_iter().flatten() {
        listeners.push(TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?);
    }
    if let Some(path) = &cli.control {
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).with_context(|| format!("control socket {}", path.display()))?;
        tokio::spawn(control::listen(server.clone(), listener));
    }
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    // Last: whoever waits for the pidfile finds a server that serves.
    for listener in listeners {
        tokio::spawn(server.clone().listen(listener));
    }
    if let Some(path) = &cli.pidfile {
        pidfile(path, std::process::id())?;
    }
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    Ok(())
}

fn pidfile(path: &Path, pid: u32) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, format!("{pid}\n"))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("pidfile {}", path.display()))
}
