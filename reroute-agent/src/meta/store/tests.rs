use super::*;
use reroute_core::ids::{Epoch, ScvmId, WallMs};
use reroute_core::proto::{FenceProof, Login, LoginState};

fn record(host: u32, epoch: u64) -> Record {
    let state = LoginState::At { scvm: ScvmId(1), epoch: Epoch(epoch), proof: FenceProof::FirstLogin };
    let login = Login { host: HostId(host), state, term: Term(1), reason: "test".into() };
    Record { login, from: None, evidence: vec![] }
}

/// What every store must do.
fn contract(make: impl Fn() -> Box<dyn Store>) {
    let host = HostId(7);
    let mut store = make();
    let opened = store.open("c1").unwrap();
    assert_eq!((opened.term, opened.logins.len()), (Term(1), 0));
    assert_eq!(store.read(host).unwrap(), None);
    assert_eq!(store.compare_and_set(host, None, &record(7, 1)).unwrap(), 1);
    for expected in [None, Some(0), Some(2)] {
        let error = store.compare_and_set(host, expected, &record(7, 9)).unwrap_err();
        let StoreError::Conflict { found, .. } = error else { panic!("{error}") };
        assert_eq!(found.unwrap().record, record(7, 1));
    }
    assert_eq!(store.compare_and_set(host, Some(1), &record(7, 2)).unwrap(), 2);
    assert_eq!(store.read_blocks().unwrap(), BlockList::default());
    let list = |version| BlockList { version, written: WallMs(version), blocks: vec![] };
    store.compare_and_set_blocks(0, &list(1)).unwrap();
    for expected in [0, 2] {
        let error = store.compare_and_set_blocks(expected, &list(9)).unwrap_err();
        let StoreError::BlocksConflict { found } = error else { panic!("{error}") };
        assert_eq!(*found, list(1));
    }
    store.compare_and_set_blocks(1, &list(2)).unwrap();
    assert_eq!(store.read_blocks().unwrap(), list(2));
    drop(store);

    let mut again = make();
    assert!(matches!(again.open("c2"), Err(StoreError::OtherCluster { .. })));
    let opened = again.open("c1").unwrap();
    assert_eq!(opened.term, Term(2), "a refused claim begins no term");
    assert_eq!(opened.logins[&host], Versioned { version: 2, record: record(7, 2) });
    assert_eq!(opened.blocks, list(2), "blocks outlive their Meta");
}

#[test]
fn memory_keeps_the_contract() {
    let shared = Memory::default();
    contract(|| Box::new(shared.clone()));
}

#[test]
fn redb_keeps_the_contract_over_restarts_and_is_locked() {
    let dir = crate::meta::testing::Dir::new("store");
    contract(|| Box::new(Redb::at(dir.path()).unwrap()));
    let _held = Redb::at(dir.path()).unwrap();
    assert!(matches!(Redb::at(dir.path()), Err(StoreError::InUse { .. })));
}

/// What a killed process leaves is its file as it is on the disk: a copy of it, taken while the store is open, is enough.
#[test]
fn what_was_confirmed_survives_a_kill() {
    let dir = crate::meta::testing::Dir::new("store-kill");
    let copy = crate::meta::testing::Dir::new("store-copy");
    let mut store = Redb::at(dir.path()).unwrap();
    store.open("c1").unwrap();
    store.compare_and_set(HostId(1), None, &record(1, 5)).unwrap();
    std::fs::copy(dir.path().join("meta.redb"), copy.path().join("meta.redb")).unwrap();
    let opened = Redb::at(copy.path()).unwrap().open("c1").unwrap();
    assert_eq!(opened.term, Term(2));
    assert_eq!(opened.logins[&HostId(1)].record, record(1, 5));
}

#[test]
fn the_thread_answers_every_write() {
    let (answers, got) = std::sync::mpsc::channel();
    let mut store = Memory::default();
    store.open("c1").unwrap();
    let queue = spawn(store, move |w| answers.send(w.input).unwrap()).unwrap();
    let write = |expected| Write::Login { host: HostId(1), expected, record: record(1, 1) };
    queue.send(write(None)).unwrap();
    queue.send(write(None)).unwrap();
    assert_eq!(got.recv().unwrap(), Input::StoreDone { host: HostId(1), version: 1 });
    let Input::StoreFailed { found: Some(Some(found)), .. } = got.recv().unwrap() else { panic!() };
    assert_eq!(found.version, 1);
}
