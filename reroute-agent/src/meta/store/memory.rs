use super::{Opened, Store, StoreError};
use reroute_core::block::BlockList;
use reroute_core::ids::{HostId, ScvmId, Term};
use reroute_core::meta::{Record, Versioned};
use reroute_core::proto::Draining;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// A store for tests: clones share what is kept, so one outlives its Meta.
#[derive(Clone, Default)]
pub struct Memory {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    cluster: Option<String>,
    term: Term,
    logins: BTreeMap<HostId, Versioned>,
    draining: BTreeMap<ScvmId, Draining>,
    blocks: BlockList,
}

fn check(last: Term, ours: Term) -> Result<(), StoreError> {
    if last > ours { Err(StoreError::LaterTerm { later: last }) } else { Ok(()) }
}

impl Store for Memory {
    fn open(&mut self, cluster: &str) -> Result<Opened, StoreError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.cluster.get_or_insert_with(|| cluster.to_string()).clone();
        if found != cluster {
            let (path, ours) = (PathBuf::from("memory"), cluster.to_string());
            return Err(StoreError::OtherCluster { path, found, ours });
        }
        kept.term = Term(kept.term.0 + 1);
        Ok(Opened {
            term: kept.term,
            logins: kept.logins.clone(),
            draining: kept.draining.clone(),
            blocks: kept.blocks.clone(),
        })
    }

    fn read(&mut self, host: HostId) -> Result<Option<Versioned>, StoreError> {
        Ok(self.kept.lock().unwrap_or_else(PoisonError::into_inner).logins.get(&host).cloned())
    }

    fn confirm(&mut self, term: Term) -> Result<(), StoreError> {
        check(self.kept.lock().unwrap_or_else(PoisonError::into_inner).term, term)
    }

    fn compare_and_set(
        &mut self,
        host: HostId,
        expected: Option<u64>,
        record: &Record,
    ) -> Result<u64, StoreError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        check(kept.term, record.login.term)?;
        let found = kept.logins.get(&host).cloned();
        if found.as_ref().map(|v| v.version) != expected {
            return Err(StoreError::Conflict { host, found: found.map(Box::new) });
        }
        let version = expected.unwrap_or(0) + 1;
        kept.logins.insert(host, Versioned { version, record: record.clone() });
        Ok(version)
    }

    fn set_draining(&mut self, scvm: ScvmId, draining: Option<&Draining>) -> Result<(), StoreError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match draining {
            Some(draining) => kept.draining.insert(scvm, draining.clone()),
            None => kept.draining.remove(&scvm),
        };
        Ok(())
    }

    fn read_blocks(&mut self) -> Result<BlockList, StoreError> {
        Ok(self.kept.lock().unwrap_or_else(PoisonError::into_inner).blocks.clone())
    }

    fn compare_and_set_blocks(&mut self, expected: u64, list: &BlockList) -> Result<(), StoreError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.blocks.version != expected {
            return Err(StoreError::BlocksConflict { found: Box::new(kept.blocks.clone()) });
        }
        kept.blocks = list.clone();
        Ok(())
    }
}
