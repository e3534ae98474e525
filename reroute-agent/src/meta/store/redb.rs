//! The embedded store: one file, one process, every write synced before it counts.

use super::{Opened, Store, StoreError};
use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use reroute_core::block::BlockList;
use reroute_core::ids::{HostId, ScvmId, Term};
use reroute_core::meta::{Record, Versioned};
use reroute_core::proto::Draining;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const ABOUT: TableDefinition<&str, &[u8]> = TableDefinition::new("about");
/// Host id → [`Versioned`] as JSON.
const LOGINS: TableDefinition<u32, &[u8]> = TableDefinition::new("logins");
/// SCVM id → [`Draining`] as JSON.
const DRAINING: TableDefinition<u32, &[u8]> = TableDefinition::new("draining");
/// Under "list": the [`BlockList`] as JSON.
const BLOCKS: TableDefinition<&str, &[u8]> = TableDefinition::new("blocks");
const LIST: &str = "list";
/// Records are small and few; the process locks its memory.
const CACHE: usize = 8 << 20;

pub struct Redb {
    db: Database,
    path: PathBuf,
}

impl Redb {
    /// Opens or makes `dir/meta.redb` and locks it.
    pub fn at(dir: &Path) -> Result<Redb, StoreError> {
        let path = dir.join("meta.redb");
        let unusable = |why: String| StoreError::Unusable { path: path.clone(), why };
        std::fs::create_dir_all(dir).map_err(|e| unusable(e.to_string()))?;
        let db = Database::builder().set_cache_size(CACHE).create(&path).map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.clone() },
            other => unusable(other.to_string()),
        })?;
        Ok(Redb { db, path })
    }

    fn unusable(&self, error: impl std::fmt::Display) -> StoreError {
        StoreError::Unusable { path: self.path.clone(), why: error.to_string() }
    }

    fn parse(&self, host: u32, bytes: &[u8]) -> Result<Versioned, StoreError> {
        serde_json::from_slice(bytes).map_err(|e| StoreError::Malformed {
            path: self.path.clone(),
            key: format!("logins/{host}"),
            why: e.to_string(),
        })
    }

    /// The last term that has begun; 0: none.
    fn last_term(&self, about: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Term, StoreError> {
        let Some(bytes) = about.get("term").map_err(|e| self.unusable(e))? else { return Ok(Term(0)) };
        let bytes: [u8; 8] = bytes.value().try_into().map_err(|_| StoreError::Malformed {
            path: self.path.clone(),
            key: "about/term".into(),
            why: "not 8 bytes".into(),
        })?;
        Ok(Term(u64::from_le_bytes(bytes)))
    }

    fn check_term(
        &self,
        about: &impl ReadableTable<&'static str, &'static [u8]>,
        ours: Term,
    ) -> Result<(), StoreError> {
        let later = self.last_term(about)?;
        if later > ours { Err(StoreError::LaterTerm { later }) } else { Ok(()) }
    }

    fn parse_blocks(&self, bytes: Option<&[u8]>) -> Result<BlockList, StoreError> {
        let Some(bytes) = bytes else { return Ok(BlockList::default()) };
        serde_json::from_slice(bytes).map_err(|e| StoreError::Malformed {
            path: self.path.clone(),
            key: format!("blocks/{LIST}"),
            why: e.to_string(),
        })
    }

    /// Runs `change` in one durable transaction; an error leaves everything as it was.
    fn write<T>(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut txn = self.db.begin_write().map_err(|e| self.unusable(e))?;
        txn.set_durability(Durability::Immediate).map_err(|e| self.unusable(e))?;
        let result = change(&txn)?;
        txn.commit().map_err(|e| self.unusable(e))?;
        Ok(result)
    }
}

impl Store for Redb {
    fn open(&mut self, cluster: &str) -> Result<Opened, StoreError> {
        self.write(|txn| {
            let mut about = txn.open_table(ABOUT).map_err(|e| self.unusable(e))?;
            let found = about.get("cluster").map_err(|e| self.unusable(e))?.map(|v| v.value().to_vec());
            match found {
                Some(found) if found != cluster.as_bytes() => {
                    return Err(StoreError::OtherCluster {
                        path: self.path.clone(),
                        found: String::from_utf8_lossy(&found).into_owned(),
                        ours: cluster.to_string(),
                    });
                }
                Some(_) => {}
                None => {
                    about.insert("cluster", cluster.as_bytes()).map_err(|e| self.unusable(e))?;
                }
            }
            let last = self.last_term(&about)?.0;
            let term = Term(last + 1);
            about.insert("term", &term.0.to_le_bytes()[..]).map_err(|e| self.unusable(e))?;
            let table = txn.open_table(LOGINS).map_err(|e| self.unusable(e))?;
            let mut logins = BTreeMap::new();
            for entry in table.iter().map_err(|e| self.unusable(e))? {
                let (host, value) = entry.map_err(|e| self.unusable(e))?;
                let host = host.value();
                logins.insert(HostId(host), self.parse(host, value.value())?);
            }
            let table = txn.open_table(DRAINING).map_err(|e| self.unusable(e))?;
            let mut draining = BTreeMap::new();
            for entry in table.iter().map_err(|e| self.unusable(e))? {
                let (scvm, value) = entry.map_err(|e| self.unusable(e))?;
                let scvm = scvm.value();
                let parsed = serde_json::from_slice(value.value()).map_err(|e| StoreError::Malformed {
                    path: self.path.clone(),
                    key: format!("draining/{scvm}"),
                    why: e.to_string(),
                })?;
                draining.insert(ScvmId(scvm), parsed);
            }
            let table = txn.open_table(BLOCKS).map_err(|e| self.unusable(e))?;
            let kept = table.get(LIST).map_err(|e| self.unusable(e))?;
            let blocks = self.parse_blocks(kept.as_ref().map(|v| v.value()))?;
            Ok(Opened { term, logins, draining, blocks })
        })
    }

    fn read(&mut self, host: HostId) -> Result<Option<Versioned>, StoreError> {
        let txn = self.db.begin_read().map_err(|e| self.unusable(e))?;
        let table = txn.open_table(LOGINS).map_err(|e| self.unusable(e))?;
        let value = table.get(host.0).map_err(|e| self.unusable(e))?;
        value.map(|v| self.parse(host.0, v.value())).transpose()
    }

    fn confirm(&mut self, term: Term) -> Result<(), StoreError> {
        let txn = self.db.begin_read().map_err(|e| self.unusable(e))?;
        let about = txn.open_table(ABOUT).map_err(|e| self.unusable(e))?;
        self.check_term(&about, term)
    }

    fn compare_and_set(
        &mut self,
        host: HostId,
        expected: Option<u64>,
        record: &Record,
    ) -> Result<u64, StoreError> {
        self.write(|txn| {
            let about = txn.open_table(ABOUT).map_err(|e| self.unusable(e))?;
            self.check_term(&about, record.login.term)?;
            let mut table = txn.open_table(LOGINS).map_err(|e| self.unusable(e))?;
            let found = match table.get(host.0).map_err(|e| self.unusable(e))? {
                Some(value) => Some(self.parse(host.0, value.value())?),
                None => None,
            };
            if found.as_ref().map(|v| v.version) != expected {
                return Err(StoreError::Conflict { host, found: found.map(Box::new) });
            }
            let version = expected.unwrap_or(0) + 1;
            let bytes = serde_json::to_vec(&Versioned { version, record: record.clone() })
                .map_err(|e| self.unusable(e))?;
            table.insert(host.0, bytes.as_slice()).map_err(|e| self.unusable(e))?;
            Ok(version)
        })
    }

    fn set_draining(&mut self, scvm: ScvmId, draining: Option<&Draining>) -> Result<(), StoreError> {
        self.write(|txn| {
            let mut table = txn.open_table(DRAINING).map_err(|e| self.unusable(e))?;
            match draining {
                Some(draining) => {
                    let bytes = serde_json::to_vec(draining).map_err(|e| self.unusable(e))?;
                    table.insert(scvm.0, bytes.as_slice()).map_err(|e| self.unusable(e))?;
                }
                None => {
                    table.remove(scvm.0).map_err(|e| self.unusable(e))?;
                }
            }
            Ok(())
        })
    }

    fn read_blocks(&mut self) -> Result<BlockList, StoreError> {
        let txn = self.db.begin_read().map_err(|e| self.unusable(e))?;
        let table = txn.open_table(BLOCKS).map_err(|e| self.unusable(e))?;
        let kept = table.get(LIST).map_err(|e| self.unusable(e))?;
        self.parse_blocks(kept.as_ref().map(|v| v.value()))
    }

    fn compare_and_set_blocks(&mut self, expected: u64, list: &BlockList) -> Result<(), StoreError> {
        self.write(|txn| {
            let mut table = txn.open_table(BLOCKS).map_err(|e| self.unusable(e))?;
            let found = {
                let kept = table.get(LIST).map_err(|e| self.unusable(e))?;
                self.parse_blocks(kept.as_ref().map(|v| v.value()))?
            };
            if found.version != expected {
                return Err(StoreError::BlocksConflict { found: Box::new(found) });
            }
            let bytes = serde_json::to_vec(list).map_err(|e| self.unusable(e))?;
            table.insert(LIST, bytes.as_slice()).map_err(|e| self.unusable(e))?;
            Ok(())
        })
    }
}
