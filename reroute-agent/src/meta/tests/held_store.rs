//! A store that says nothing, and one that knows a later term.

use super::*;

/// A store whose every answer waits while `held` is locked.
struct Held {
    store: store::Memory,
    held: Arc<std::sync::Mutex<()>>,
}

impl Held {
    fn wait(&self) {
        drop(self.held.lock().unwrap());
    }
}

impl Store for Held {
    fn open(&mut self, cluster: &str) -> Result<Opened, StoreError> {
        self.store.open(cluster)
    }
    fn read(&mut self, host: HostId) -> Result<Option<reroute_core::meta::Versioned>, StoreError> {
        self.store.read(host)
    }
    fn read_blocks(&mut self) -> Result<reroute_core::block::BlockList, StoreError> {
        self.store.read_blocks()
    }
    fn compare_and_set_blocks(
        &mut self,
        expected: u64,
        list: &reroute_core::block::BlockList,
    ) -> Result<(), StoreError> {
        self.store.compare_and_set_blocks(expected, list)
    }
    fn set_draining(&mut self, scvm: ScvmId, draining: Option<&Draining>) -> Result<(), StoreError> {
        self.wait();
        self.store.set_draining(scvm, draining)
    }
    fn confirm(&mut self, term: Term) -> Result<(), StoreError> {
        self.wait();
        self.store.confirm(term)
    }
    fn compare_and_set(
        &mut self,
        host: HostId,
        expected: Option<u64>,
        record: &reroute_core::meta::Record,
    ) -> Result<u64, StoreError> {
        self.wait();
        self.store.compare_and_set(host, expected, record)
    }
}

/// The driver alone, over a store that can be held; ends with why it ended.
struct Alone {
    calls: mpsc::Sender<driver::Call>,
    asking: mpsc::Sender<operator::Question>,
    seq: u64,
    task: JoinHandle<Result<(), StoreError>>,
}

impl Alone {
    fn start(config: &Config, mut store: Held) -> Alone {
        let opened = store.open("c1").unwrap();
        let (calls, called) = mpsc::channel(16);
        let (asking, questions) = mpsc::channel(16);
        let (write_done, written) = mpsc::unbounded_channel();
        let queue = store::spawn(
            store,
            || Ok(()),
            move |done| {
                let _ = write_done.send(done);
            },
        )
        .unwrap();
        let settings = settings(config, &opened);
        let master = reroute_core::meta::SessionMaster::new(settings, opened.logins, clock::now());
        let journal = Journal::open(config.path.parent().unwrap(), "meta").unwrap();
        let driver = Driver::new(config, vec![], master.into(), queue, journal, Metrics::new());
        let task = tokio::spawn(driver.run(called, written, questions, std::future::pending()));
        Alone { calls, asking, seq: 0, task }
    }

    async fn say(&mut self, msg: ToMeta) -> MetaReply {
        self.seq += 1;
        let (answer, answered) = oneshot::channel();
        let envelope = Envelope {
            version: VERSION,
            cluster: "c1".into(),
            from: NodeId::Scvm(A),
            incarnation: Incarnation(1),
            seq: self.seq,
            msg,
        };
        assert!(self.calls.send(driver::Call::Message { envelope, answer }).await.is_ok());
        timeout(PATIENCE, answered).await.unwrap().unwrap()
    }

    async fn local(&self) -> serde_json::Value {
        let (answer, answered) = oneshot::channel();
        assert!(self.asking.send(operator::Question::Status(answer)).await.is_ok());
        timeout(PATIENCE, answered).await.unwrap().unwrap()["local"].clone()
    }
}

/// While the store says nothing, nothing is renewed; keepalives are refused by name, status says why; then it goes on.
#[tokio::test]
async fn a_store_that_hangs_ends_the_lease_and_not_meta() {
    let dir = Dir::new("meta-hang");
    let config = config(&dir, "c1", &[free_port()], "");
    let held = Arc::new(std::sync::Mutex::new(()));
    let mut meta = Alone::start(&config, Held { store: store::Memory::default(), held: held.clone() });
    let open = ToMeta::SessionOpen { boot: Incarnation(1), health: well() };
    let beat = ToMeta::KeepAlive { term: Term(1), health: well() };
    assert!(matches!(meta.say(open.clone()).await, MetaReply::Session { term: Term(1), .. }));
    assert_eq!(meta.say(beat.clone()).await, MetaReply::Ok { term: Term(1) });

    let (hold, release) = std::sync::mpsc::channel::<()>();
    let (holds, is_held) = std::sync::mpsc::channel();
    let holder = std::thread::spawn(move || {
        let _guard = held.lock().unwrap();
        holds.send(()).unwrap();
        let _ = release.recv();
    });
    is_held.recv().unwrap();
    // One confirmation may have come through before; the lease of 300 ms runs out all the same.
    timeout(PATIENCE, async {
        loop {
            match meta.say(beat.clone()).await {
                MetaReply::Refused { error: Refusal::NotLeader { .. } } => return,
                MetaReply::Ok { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await
    .unwrap();
    timeout(PATIENCE, async {
        while meta.local().await["leads"] != false {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let local = meta.local().await;
    assert!(local["alarms"][0].as_str().unwrap().contains("does not lead now"), "{local}");
    drop(hold);
    holder.join().unwrap();
    timeout(PATIENCE, async {
        loop {
            if let MetaReply::Session { .. } = meta.say(open.clone()).await {
                return;
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(meta.local().await["leads"], true);
    assert!(!meta.task.is_finished());
}

/// A second Meta over the same store: the first one ends, and says why.
#[tokio::test]
async fn a_later_term_ends_meta_with_a_named_error() {
    let dir = Dir::new("meta-over");
    let config = config(&dir, "c1", &[free_port()], "");
    let mut store = store::Memory::default();
    let held = Arc::new(std::sync::Mutex::new(()));
    let first = Alone::start(&config, Held { store: store.clone(), held });
    store.open("c1").unwrap();
    let ended = timeout(PATIENCE, first.task).await.unwrap().unwrap();
    let error = ended.unwrap_err();
    assert!(matches!(error, StoreError::LaterTerm { later: Term(2) }), "{error}");
    assert!(error.to_string().contains("this one has to stop"), "{error}");
}
