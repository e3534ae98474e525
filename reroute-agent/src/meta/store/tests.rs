use super::*;
use reroute_core::ids::{Epoch, ScvmId, WallMs};
use reroute_core::proto::{Draining, FenceProof, Login, LoginState};

fn record(host: u32, epoch: u64) -> Record {
    of_term(1, host, epoch)
}

fn of_term(term: u64, host: u32, epoch: u64) -> Record {
    let state = LoginState::At { scvm: ScvmId(1), epoch: Epoch(epoch), proof: FenceProof::FirstLogin };
    let login = Login { host: HostId(host), state, term: Term(term), reason: "test".into() };
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
    assert!(opened.draining.is_empty());
    let draining = Draining { actor: "a".into(), at_unix_ms: 1 };
    for scvm in [1, 2] {
        store.set_draining(ScvmId(scvm), Some(&draining)).unwrap();
    }
    store.set_draining(ScvmId(1), None).unwrap();
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
    assert_eq!(opened.draining, [(ScvmId(2), draining)].into());
    assert_eq!(opened.logins[&host], Versioned { version: 2, record: record(7, 2) });

    // Whoever had the term before leads no more, and writes no more.
    again.confirm(Term(2)).unwrap();
    let later =
        |result: Result<(), StoreError>| matches!(result, Err(StoreError::LaterTerm { later: Term(2) }));
    assert!(later(again.confirm(Term(1))));
    assert!(later(again.compare_and_set(host, Some(2), &record(7, 3)).map(|_| ())));
    assert_eq!(again.read(host).unwrap().unwrap().version, 2, "nothing was written");
    assert_eq!(again.compare_and_set(host, Some(2), &of_term(2, 7, 3)).unwrap(), 3);
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
    let queue = spawn(store, || Ok(()), move |w| answers.send(w.input).unwrap()).unwrap();
    let write = |expected| Write::Login { host: HostId(1), expected, record: record(1, 1) };
    queue.write(write(None)).unwrap();
    queue.write(write(None)).unwrap();
    assert_eq!(got.recv().unwrap(), Input::StoreDone { host: HostId(1), version: 1 });
    let Input::StoreFailed { found: Some(Some(found)), .. } = got.recv().unwrap() else { panic!() };
    assert_eq!(found.version, 1);
}

/// A store that waits for leave before each thing it does.
struct Slow {
    store: Memory,
    leave: std::sync::mpsc::Receiver<()>,
}

impl Store for Slow {
    fn open(&mut self, cluster: &str) -> Result<Opened, StoreError> {
        self.store.open(cluster)
    }
    fn read(&mut self, host: HostId) -> Result<Option<Versioned>, StoreError> {
        self.store.read(host)
    }
    fn read_blocks(&mut self) -> Result<BlockList, StoreError> {
        self.store.read_blocks()
    }
    fn compare_and_set_blocks(&mut self, expected: u64, list: &BlockList) -> Result<(), StoreError> {
        self.store.compare_and_set_blocks(expected, list)
    }
    fn set_draining(&mut self, scvm: ScvmId, draining: Option<&Draining>) -> Result<(), StoreError> {
        self.leave.recv().unwrap();
        self.store.set_draining(scvm, draining)
    }
    fn confirm(&mut self, term: Term) -> Result<(), StoreError> {
        self.leave.recv().unwrap();
        self.store.confirm(term)
    }
    fn compare_and_set(
        &mut self,
        host: HostId,
        expected: Option<u64>,
        record: &Record,
    ) -> Result<u64, StoreError> {
        self.leave.recv().unwrap();
        self.store.compare_and_set(host, expected, record)
    }
}

#[test]
fn the_lease_is_confirmed_before_the_writes_that_wait() {
    let (answers, got) = std::sync::mpsc::channel();
    let (go, leave) = std::sync::mpsc::channel();
    let mut store = Slow { store: Memory::default(), leave };
    store.open("c1").unwrap();
    let queue = spawn(store, || Ok(()), move |w| answers.send(w.input).unwrap()).unwrap();
    for host in 1..=3 {
        queue.write(Write::Login { host: HostId(host), expected: None, record: record(host, 1) }).unwrap();
    }
    // Whether or not the first write has been taken up already, the question goes before all others.
    queue.confirm(Term(1)).unwrap();
    for _ in 0..4 {
        go.send(()).unwrap();
    }
    let order: Vec<Input> = (0..4).map(|_| got.recv().unwrap()).collect();
    assert!(order[..2].contains(&Input::LeaseConfirmed), "{order:?}");
}

#[test]
fn a_later_term_is_named_whatever_was_asked() {
    let (answers, got) = std::sync::mpsc::channel();
    let mut ours = Memory::default();
    let mut theirs = ours.clone();
    ours.open("c1").unwrap();
    let queue = spawn(ours, || Ok(()), move |w| answers.send(w.input).unwrap()).unwrap();
    queue.confirm(Term(1)).unwrap();
    assert_eq!(got.recv().unwrap(), Input::LeaseConfirmed);
    theirs.open("c1").unwrap();
    queue.confirm(Term(1)).unwrap();
    assert_eq!(got.recv().unwrap(), Input::LeaseOver { later: Term(2) });
    queue.write(Write::Login { host: HostId(1), expected: None, record: record(1, 1) }).unwrap();
    assert_eq!(got.recv().unwrap(), Input::LeaseOver { later: Term(2) });
}

#[test]
fn a_thread_that_died_is_noticed() {
    let (go, leave) = std::sync::mpsc::channel();
    let mut store = Slow { store: Memory::default(), leave };
    store.open("c1").unwrap();
    let queue = spawn(store, || Ok(()), |_| ()).unwrap();
    drop(go); // its next step panics
    queue.confirm(Term(1)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while queue.confirm(Term(1)).is_ok() {
        assert!(Instant::now() < deadline, "not noticed");
        std::thread::yield_now();
    }
}
