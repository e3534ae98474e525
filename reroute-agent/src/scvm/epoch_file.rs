//! The epoch of each admitted host, for an access server that checks ownership itself.
//!
//! Replaced by a rename, so that a reader sees the old file or the new one. Not synced: the reader is on the same
//! node, and after a crash of that node the agent writes the file anew before it admits anybody.

use crate::realtime;
use reroute_core::ids::{Epoch, HostId};
use reroute_core::scvm::{Input, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tokio::sync::mpsc::UnboundedSender;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub epochs: Vec<Line>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub host: HostId,
    pub addresses: Vec<Ipv4Addr>,
    pub epoch: Epoch,
}

/// Writes on a thread of its own: the disk may be slow. That thread is real-time too, as admission waits for it.
pub struct Publisher {
    queue: mpsc::Sender<BTreeMap<HostId, Epoch>>,
}

impl Publisher {
    /// Results come back as [`Input::EpochsPublished`], in order.
    pub fn start(
        path: PathBuf,
        addresses: BTreeMap<HostId, Vec<Ipv4Addr>>,
        results: UnboundedSender<Input>,
    ) -> std::io::Result<Publisher> {
        let (queue, jobs) = mpsc::channel::<BTreeMap<HostId, Epoch>>();
        std::thread::Builder::new().name("epoch-file".into()).spawn(move || {
            if let Err(error) = realtime::enter() {
                tracing::warn!(%error, "the epoch file is written without real-time priority");
            }
            for epochs in jobs {
                if results.send(Input::EpochsPublished(write(&path, &addresses, &epochs))).is_err() {
                    return;
                }
            }
        })?;
        Ok(Publisher { queue })
    }

    pub fn publish(&self, epochs: BTreeMap<HostId, Epoch>) -> Outcome<()> {
        self.queue.send(epochs).map_err(|_| "the writer has ended".to_string())
    }
}

fn write(
    path: &Path,
    addresses: &BTreeMap<HostId, Vec<Ipv4Addr>>,
    epochs: &BTreeMap<HostId, Epoch>,
) -> Outcome<()> {
    let lines = epochs.iter().map(|(&host, &epoch)| {
        // Without addresses the reader could not tell whose epoch it is.
        let addresses = addresses.get(&host).ok_or_else(|| format!("{host} is not configured here"))?;
        Ok(Line { host, addresses: addresses.clone(), epoch })
    });
    let file = File { epochs: lines.collect::<Outcome<_>>()? };
    let text = serde_json::to_vec(&file).map_err(|e| e.to_string())?;
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_published_is_what_a_reader_finds() {
        let dir = std::env::temp_dir().join(format!("reroute-epochs-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("epochs.json");
        let own = vec!["192.168.33.1".parse().unwrap(), "10.10.85.11".parse().unwrap()];
        let (tx, mut results) = tokio::sync::mpsc::unbounded_channel();
        let publisher =
            Publisher::start(path.clone(), BTreeMap::from([(HostId(1), own.clone())]), tx).unwrap();
        publisher.publish(BTreeMap::from([(HostId(1), Epoch(3))])).unwrap();
        assert_eq!(results.recv().await, Some(Input::EpochsPublished(Ok(()))));
        let read = || serde_json::from_slice::<File>(&std::fs::read(&path).unwrap()).unwrap();
        let line = Line { host: HostId(1), addresses: own, epoch: Epoch(3) };
        assert_eq!(read(), File { epochs: vec![line] });

        publisher.publish(BTreeMap::from([(HostId(9), Epoch(1))])).unwrap();
        assert!(
            matches!(results.recv().await, Some(Input::EpochsPublished(Err(why))) if why.contains("host 9"))
        );
        assert_eq!(read().epochs.len(), 1, "a failed change leaves the file as it was");

        publisher.publish(BTreeMap::new()).unwrap();
        assert_eq!(results.recv().await, Some(Input::EpochsPublished(Ok(()))));
        assert_eq!(read(), File { epochs: vec![] });
        std::fs::remove_dir_all(&dir).unwrap();
        publisher.publish(BTreeMap::new()).unwrap();
        assert!(matches!(results.recv().await, Some(Input::EpochsPublished(Err(_)))));
    }
}
