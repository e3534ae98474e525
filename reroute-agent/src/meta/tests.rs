//! Meta and agents' links to it, over real sockets on this machine.

use super::testing::{Dir, config, free_port};
use super::*;
use crate::keys::{self, MAC_HEADER};
use crate::meta_client::{LinkEvent, MetaClient, SendError, push_direction};
use reroute_core::ids::*;
use reroute_core::proto::*;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);
const HOST: NodeId = NodeId::Host(HostId(1));
const A: ScvmId = ScvmId(1);
const C: ScvmId = ScvmId(3);

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Starts Meta; the store of one just stopped may be in use for a moment.
    async fn start(config: &Config) -> Running {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let meta = loop {
            match Meta::bind(config.clone()) {
                Ok(meta) => break meta,
                Err(error) if tokio::time::Instant::now() > deadline => panic!("{error:#}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(meta.serve(async move {
            let _ = stopped.await;
        }));
        Running { stop, task }
    }

    async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap().unwrap();
    }
}

fn well() -> ServerHealth {
    ServerHealth { listening: true, process_alive: true, ..ServerHealth::default() }
}

/// An agent played by hand.
struct Agent {
    client: MetaClient,
    events: tokio::sync::mpsc::UnboundedReceiver<LinkEvent>,
}

impl Agent {
    fn start(config: &Config, node: NodeId) -> Agent {
        let (client, events) = MetaClient::start(config, node, clock::new_incarnation()).unwrap();
        Agent { client, events }
    }

    async fn send(&self, msg: ToMeta) -> MetaReply {
        timeout(PATIENCE, async {
            loop {
                match self.client.send(msg.clone()).await {
                    Ok(reply) => return reply,
                    Err(SendError::Unreachable { .. }) => continue,
                    Err(other) => panic!("{other}"),
                }
            }
        })
        .await
        .unwrap()
    }

    async fn event<T>(&mut self, what: &str, mut pick: impl FnMut(&LinkEvent) -> Option<T>) -> T {
        timeout(PATIENCE, async {
            loop {
                let event = self.events.recv().await.unwrap();
                if let Some(found) = pick(&event) {
                    return found;
                }
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no {what} in time"))
    }

    async fn order<T>(&mut self, what: &str, mut pick: impl FnMut(&Order) -> Option<T>) -> T {
        self.event(what, |e| match e {
            LinkEvent::Order(line) => pick(&line.order),
            _ => None,
        })
        .await
    }

    async fn open_session(&self) -> (Term, Vec<(HostId, Epoch)>) {
        let msg = ToMeta::SessionOpen { boot: Incarnation(1), health: well() };
        match self.send(msg).await {
            MetaReply::Session { term, logins, .. } => (term, logins),
            other => panic!("{other:?}"),
        }
    }

    /// Answers orders as a well SCVM does, and keeps its session alive.
    fn play_scvm(mut self) -> JoinHandle<()> {
        tokio::spawn(async move {
            let (mut term, _) = self.open_session().await;
            let mut beat = tokio::time::interval(Duration::from_millis(100));
            loop {
                let answer = tokio::select! {
                    _ = beat.tick() => ToMeta::KeepAlive { term, health: well() },
                    event = self.events.recv() => match event {
                        Some(LinkEvent::Order(FromMeta { order, .. })) => match order {
                            Order::Prepare { host, epoch } => ToMeta::Prepared { host, epoch, error: None },
                            Order::Revoke { host, epoch, .. } => {
                                ToMeta::Fenced { host, epoch, proof: FenceProof::Drained }
                            }
                            Order::Admit { host, epoch } => ToMeta::Admitted { host, epoch, error: None },
                            _ => continue,
                        },
                        Some(_) => continue,
                        None => return,
                    },
                };
                if let Ok(MetaReply::Refused { error: Refusal::NoSession }) = self.client.send(answer).await {
                    term = self.open_session().await.0;
                }
            }
        })
    }
}

fn wish(from_epoch: u64, to: ScvmId) -> ToMeta {
    let reason = "test".to_string();
    ToMeta::Move { from_epoch: Epoch(from_epoch), to, planned: false, reason, evidence: vec![] }
}

async fn status(config: &Config) -> serde_json::Value {
    service::ask(&config.meta().unwrap().socket, axum::http::Method::GET, "/v1/status").await.unwrap()
}

/// Waits until the target can be moved to, and asks for it.
async fn ask(host: &Agent, from_epoch: u64, to: ScvmId) {
    timeout(PATIENCE, async {
        loop {
            match host.send(wish(from_epoch, to)).await {
                MetaReply::Ok { .. } => return,
                MetaReply::Refused { error: Refusal::TargetNotReady { .. } } => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await
    .unwrap();
}

/// Waits until the host is told that it stands there; orders come more than once.
async fn stands(host: &mut Agent, want: (ScvmId, u64)) {
    let want = Order::At { scvm: want.0, epoch: Epoch(want.1) };
    host.order("At", |o| (*o == want).then_some(())).await
}

/// Waits until these are in Meta's journal: it is written a little later than acted upon.
async fn recorded(dir: &Dir, events: &[&str]) {
    let path = dir.path().join("meta/journal.jsonl");
    let mut journal = String::new();
    let all = async {
        while !events.iter().all(|event| journal.contains(event)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            journal = std::fs::read_to_string(&path).unwrap();
        }
    };
    let found = timeout(PATIENCE, all).await;
    assert!(found.is_ok(), "{events:?} are not all in the journal: {journal}");
}

#[tokio::test]
async fn first_login_move_and_restart() {
    let dir = Dir::new("meta");
    let config = config(&dir, "c1", &[free_port(), free_port()], "");
    let mut host = Agent::start(&config, HOST);
    // Meta is not there yet: said once, and tried for ever.
    host.event("Down", |e| matches!(e, LinkEvent::Down { .. }).then_some(())).await;
    assert!(matches!(
        host.client.send(ToMeta::Released { epoch: Epoch(0) }).await,
        Err(SendError::Unreachable { .. })
    ));
    let meta = Running::start(&config).await;
    for _ in 0..2 {
        host.event("Up", |e| matches!(e, LinkEvent::Up { .. }).then_some(())).await;
    }
    let scvms: Vec<JoinHandle<()>> =
        [A, C].into_iter().map(|id| Agent::start(&config, NodeId::Scvm(id)).play_scvm()).collect();

    ask(&host, 0, A).await;
    stands(&mut host, (A, 1)).await;
    ask(&host, 1, C).await;
    let moving = host
        .order("Moving", |o| match o {
            Order::Moving { from, from_epoch, to, epoch } if epoch.0 == 2 => Some((*from, *from_epoch, *to)),
            _ => None,
        })
        .await;
    assert_eq!(moving, (Some(A), Epoch(1), C));
    host.send(ToMeta::Released { epoch: Epoch(1) }).await;
    stands(&mut host, (C, 2)).await;
    let path = Path { scvm: C, network: Network::Storage };
    assert!(matches!(host.send(ToMeta::Arrived { epoch: Epoch(2), path }).await, MetaReply::Ok { .. }));
    assert_eq!(
        host.send(wish(1, A)).await,
        MetaReply::Refused { error: Refusal::StaleEpoch { got: Epoch(1), current: Epoch(2) } }
    );
    let before = status(&config).await;
    assert_eq!(before["view"]["logins"][0]["state"]["epoch"], 2, "{before}");
    recorded(&dir, &["move_recorded", "revoke_sent", "fence_proven", "login_stored"]).await;

    meta.stop().await;
    host.event("Down", |e| matches!(e, LinkEvent::Down { .. }).then_some(())).await;
    let meta = Running::start(&config).await;
    // After the restart the login stands, the term is higher, and the host is told.
    stands(&mut host, (C, 2)).await;
    let after = status(&config).await;
    assert_eq!(after["view"]["term"].as_u64(), before["view"]["term"].as_u64().map(|t| t + 1));
    let again = Agent::start(&config, NodeId::Scvm(ScvmId(2)));
    assert_eq!(again.open_session().await, (Term(2), vec![]));
    ask(&host, 2, A).await;
    stands(&mut host, (A, 3)).await;
    scvms.iter().for_each(JoinHandle::abort);
    meta.stop().await;
}

#[tokio::test]
async fn what_is_not_ours_is_counted_and_changes_nothing() {
    let dir = Dir::new("meta-bad");
    let (port, metrics) = (free_port(), free_port());
    let config = config(&dir, "c1", &[port], &format!("metrics = \"127.0.0.1:{metrics}\"\n"));
    let meta = Running::start(&config).await;
    let good = Envelope {
        version: VERSION,
        cluster: "c1".into(),
        from: NodeId::Scvm(A),
        incarnation: Incarnation(1),
        seq: 1,
        msg: ToMeta::SessionOpen { boot: Incarnation(1), health: well() },
    };
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = async |body: Vec<u8>, mac: String| {
        let url = format!("http://127.0.0.1:{port}/v1/message");
        let answer = http.post(url).header(MAC_HEADER, mac).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let signed = async |envelope: &Envelope| {
        let body = serde_json::to_vec(envelope).unwrap();
        let mac = keys::message_mac(&config.key, "/v1/message", &body);
        post(body, mac).await
    };
    let body = serde_json::to_vec(&good).unwrap();
    let mac = keys::message_mac(&config.key, "/v1/message", &body);
    let forged = keys::message_mac(&crate::config::ClusterKey(vec![1; 32]), "/v1/message", &body);
    assert_eq!(post(body.clone(), forged).await.0, 401);
    assert_eq!(post(body.clone(), String::new()).await.0, 401);
    let mut bent = body.clone();
    bent[20] ^= 1;
    assert_eq!(post(bent, mac.clone()).await.0, 401);
    assert_eq!(post(body[..body.len() - 5].to_vec(), mac.clone()).await.0, 401);
    let cut = body[..body.len() - 5].to_vec();
    let cut_mac = keys::message_mac(&config.key, "/v1/message", &cut);
    assert_eq!(post(cut, cut_mac).await.0, 400);
    assert_eq!(post(vec![b' '; http::BODY_LIMIT + 1], mac.clone()).await.0, 413);
    let named = [
        (Envelope { version: 9, ..good.clone() }, 400, r#""name":"version""#),
        (Envelope { cluster: "c2".into(), ..good.clone() }, 403, r#""name":"cluster""#),
        (Envelope { from: NodeId::Scvm(ScvmId(9)), ..good.clone() }, 403, r#""name":"unknown_node""#),
        (Envelope { from: HOST, ..good.clone() }, 403, r#""name":"wrong_sender""#),
        (Envelope { from: HOST, seq: 2, msg: wish(4, A), ..good.clone() }, 409, r#""name":"stale_epoch""#),
    ];
    for (envelope, want, name) in named {
        let (code, text) = signed(&envelope).await;
        assert!(code == want && text.contains(name), "{envelope:?}: {code} {text}");
    }
    let stream = http.get(format!("http://127.0.0.1:{port}/v1/push/host/1")).send().await.unwrap();
    assert_eq!(stream.status().as_u16(), 401, "a push stream needs the key too");

    let view = &status(&config).await["view"];
    assert!(view["sessions"].as_array().unwrap().iter().all(|s| s["state"] == "absent"), "{view}");
    assert_eq!(view["logins"].as_array().unwrap().len(), 0);
    let text =
        http.get(format!("http://127.0.0.1:{metrics}/metrics")).send().await.unwrap().text().await.unwrap();
    for (reason, count) in [
        ("mac", 5),
        ("malformed", 2),
        ("version", 1),
        ("cluster", 1),
        ("node", 1),
        ("sender", 1),
        ("epoch", 1),
    ] {
        let line = format!("reroute_meta_messages_rejected_total{{reason=\"{reason}\"}} {count}");
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(text.lines().any(|l| l == "reroute_meta_sessions{state=\"absent\"} 3.0"), "{text}");
    assert!(text.trim_end().ends_with("# EOF"));
    assert_eq!(signed(&good).await.0, 200, "and what is ours is taken in");
    meta.stop().await;
}

/// A line that is not Meta's is dropped and counted, and does not keep the stream alive; genuine ones around it pass.
#[tokio::test]
async fn forged_push_lines_are_dropped() {
    let dir = Dir::new("push");
    let port = free_port();
    let config = config(&dir, "c1", &[port], "");
    let direction = push_direction(HOST);
    let line = |seq: u64, key: &crate::config::ClusterKey, direction: &str| {
        let order = Order::At { scvm: A, epoch: Epoch(seq) };
        let json = serde_json::to_string(&FromMeta { term: Term(1), seq, order }).unwrap();
        format!("{} {json}\n", keys::message_mac(key, direction, json.as_bytes()))
    };
    let forged = line(2, &crate::config::ClusterKey(vec![1; 32]), &direction);
    let elsewhere = line(3, &config.key, "push/host/2");
    let first = line(1, &config.key, &direction);
    let json = serde_json::to_string(&FromMeta {
        term: Term(1),
        seq: 0,
        order: Order::Hello { cluster: "c1".into() },
    });
    let json = json.unwrap();
    let hello = format!("{} {json}\n", keys::message_mac(&config.key, &direction, json.as_bytes()));
    let lines =
        [hello, first.clone(), forged, elsewhere, "noise\n".into(), first, line(4, &config.key, &direction)];
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let router = axum::Router::new().route(
        "/v1/push/host/1",
        axum::routing::get(move || async move {
            use futures_util::StreamExt;
            let sent = futures_util::stream::iter(lines.map(Ok::<_, std::convert::Infallible>));
            axum::body::Body::from_stream(sent.chain(futures_util::stream::pending()))
        }),
    );
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let mut host = Agent::start(&config, HOST);
    stands(&mut host, (A, 1)).await;
    stands(&mut host, (A, 4)).await;
    let counters = host.client.counters();
    assert_eq!((counters.bad_mac.get(), counters.malformed.get(), counters.copies.get()), (2, 1, 1));
    // Then it says nothing more: dropped as silent.
    let why = host
        .event("Down", |e| match e {
            LinkEvent::Down { why, .. } => Some(why.clone()),
            _ => None,
        })
        .await;
    assert!(why.contains("silent"), "{why}");
    server.abort();
}

/// What was ordered before a session is told from what is ordered in it; what still holds is ordered again.
#[tokio::test]
async fn a_session_names_the_orders_from_before_it() {
    let dir = Dir::new("meta-orders");
    let config = config(&dir, "c1", &[free_port()], "");
    let meta = Running::start(&config).await;
    let mut scvm = Agent::start(&config, NodeId::Scvm(A));
    let open = ToMeta::SessionOpen { boot: Incarnation(1), health: well() };
    scvm.send(open.clone()).await;
    ask(&Agent::start(&config, HOST), 0, A).await;
    let prepare = |e: &LinkEvent| match e {
        LinkEvent::Order(FromMeta { seq, order: Order::Prepare { .. }, .. }) => Some(*seq),
        _ => None,
    };
    let before = scvm.event("Prepare", prepare).await;
    let MetaReply::Session { orders_to, .. } = scvm.send(open).await else { panic!("no session") };
    assert!(before > 0 && orders_to >= before, "{before} {orders_to}");
    let again = scvm.event("Prepare again", |e| prepare(e).filter(|seq| *seq > orders_to)).await;
    assert!(again > before);
    meta.stop().await;
}

/// Where every client has an agent, nobody holds a lease longer than a session's after a restart; else some may.
#[test]
fn after_a_start_expiry_waits_for_the_leases_that_there_are() {
    let dir = Dir::new("meta-lease");
    let mut config = config(&dir, "c1", &[free_port()], "");
    let (_store, opened) = open(&dir.path().join("meta"), "c1").unwrap();
    let timing = config.timing;
    assert!(timing.session_no_agent_ms > timing.session_ms);
    assert_eq!(settings(&config, &opened).longest_session_ns, ns(timing.session_ms));
    config.cluster.hosts[0].agent = false;
    assert_eq!(settings(&config, &opened).longest_session_ns, ns(timing.session_no_agent_ms));
}

#[tokio::test]
async fn one_store_one_cluster_one_meta() {
    let dir = Dir::new("meta-two");
    let first = config(&dir, "c1", &[free_port()], "");
    let meta = Running::start(&first).await;
    let busy = Meta::bind(first.clone()).err().unwrap();
    assert!(format!("{busy:#}").contains("cannot listen on"), "{busy:#}");
    let second = config(&dir, "c1", &[free_port()], "");
    let in_use = Meta::bind(second).err().unwrap();
    assert!(format!("{in_use:#}").contains("another Meta runs on it"), "{in_use:#}");
    meta.stop().await;
    let other = config(&dir, "c2", &[free_port()], "");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let error = format!("{:#}", Meta::bind(other.clone()).err().unwrap());
        if error.contains("belongs to cluster \"c1\"") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_address_that_is_not_here_is_a_named_error() {
    let dir = Dir::new("meta-addr");
    let mut config_file = config(&dir, "c1", &[free_port()], "");
    let text = std::fs::read_to_string(&config_file.path).unwrap();
    std::fs::write(&config_file.path, text.replace("listen = [\"127.0.0.1", "listen = [\"203.0.113.1"))
        .unwrap();
    config_file = Config::load(&config_file.path).unwrap();
    let error = format!("{:#}", Meta::bind(config_file).err().unwrap());
    assert!(error.contains("cannot listen on 203.0.113.1"), "{error}");
    assert!(!dir.path().join("meta").exists(), "nothing was touched");
}

/// A network that is down costs nothing as long as another one leads to Meta; and a copy changes nothing.
#[tokio::test]
async fn one_live_address_is_enough() {
    let dir = Dir::new("meta-one");
    let (dead, live) = (free_port(), free_port());
    let both = config(&dir, "c1", &[dead, live], "");
    let text = std::fs::read_to_string(&both.path).unwrap();
    let only = text.replace(
        &format!("listen = [\"127.0.0.1:{dead}\", \"127.0.0.1:{live}\"]"),
        &format!("listen = [\"127.0.0.1:{live}\"]"),
    );
    assert_ne!(text, only);
    std::fs::write(&both.path, only).unwrap();
    let config = Config::load(&both.path).unwrap();
    assert_eq!(config.cluster.meta.len(), 2);
    let meta = Running::start(&config).await;
    let scvm = Agent::start(&config, NodeId::Scvm(A));
    let (term, _) = scvm.open_session().await;
    for _ in 0..20 {
        let beat = scvm.client.send(ToMeta::KeepAlive { term, health: well() }).await;
        assert_eq!(beat, Ok(MetaReply::Ok { term }));
    }
    let view = &status(&config).await["view"];
    assert_eq!(view["sessions"][0]["state"], "alive", "{view}");
    assert_eq!(scvm.client.counters().unreachable.get(), 0);
    meta.stop().await;
}

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
        let queue = store::spawn(store, move |done| {
            let _ = write_done.send(done);
        })
        .unwrap();
        let settings = settings(config, &opened);
        let master = SessionMaster::new(settings, opened.logins, clock::now());
        let journal = Journal::open(config.path.parent().unwrap(), "meta").unwrap();
        let driver = Driver::new(config, vec![], master, queue, journal, Metrics::new());
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

async fn asked<T: serde::de::DeserializeOwned>(
    config: &Config,
    method: axum::http::Method,
    path: &str,
) -> anyhow::Result<T> {
    service::ask(&config.meta().unwrap().socket, method, path).await
}

/// Added, told to an SCVM with its session and by push, confirmed, kept over a restart, removed once.
#[tokio::test]
async fn a_block_by_the_operators_socket() {
    use axum::http::Method;
    use reroute_core::block::{BlockView, Done};
    let dir = Dir::new("meta-block");
    let config = config(&dir, "c1", &[free_port()], "");
    let meta = Running::start(&config).await;
    let mut scvm = Agent::start(&config, NodeId::Scvm(A));
    scvm.event("Up", |e| matches!(e, LinkEvent::Up { .. }).then_some(())).await;
    scvm.open_session().await;
    let add = "/v1/blocks?client=x&for_ms=60000&reason=why%20not&sure=true&actor=jane";
    let done: Done = asked(&config, Method::POST, add).await.unwrap();
    let Done::Blocked { block, version: 1 } = done else { panic!("{done:?}") };
    assert!(block.actor.starts_with("jane (") && block.actor.ends_with(')'), "{}", block.actor);
    let told = scvm.order("Blocks", |o| match o {
        Order::Blocks { list } => Some(list.clone()),
        _ => None,
    });
    let told = told.await;
    assert_eq!((told.version, told.blocks.len(), told.blocks[0].host), (1, 1, HostId(1)));
    assert!((50 * SEC..=60 * SEC).contains(&told.blocks[0].remaining_ns), "{told:?}");
    for wrong in [
        "/v1/blocks?client=y&for_ms=60000&reason=r",
        "/v1/blocks?client=x&for_ms=0&reason=r",
        "/v1/blocks?client=x&for_ms=60000&reason=",
        "/v1/blocks?client=x&for_ms=60000",
    ] {
        let error = asked::<Done>(&config, Method::POST, wrong).await.unwrap_err();
        assert!(error.is::<Refused>(), "{wrong}: {error:#}");
    }
    let host = Agent::start(&config, HOST);
    let refused = host.send(wish(0, A)).await;
    let MetaReply::Refused { error: Refusal::Blocked { reason, .. } } = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(reason, "why not");
    meta.stop().await;

    let meta = Running::start(&config).await;
    let open = ToMeta::SessionOpen { boot: Incarnation(1), health: well() };
    let MetaReply::Session { blocks, .. } = scvm.send(open).await else { panic!("no session") };
    assert_eq!((blocks.version, blocks.blocks.len()), (1, 1));
    assert!(blocks.blocks[0].remaining_ns <= told.blocks[0].remaining_ns, "a restart makes it no longer");
    let _: Done = asked(&config, Method::DELETE, "/v1/blocks/1").await.unwrap();
    for (path, named) in [("/v1/blocks/1", "removed already"), ("/v1/blocks/9", "there is no block 9")] {
        let error = asked::<Done>(&config, Method::DELETE, path).await.unwrap_err();
        assert!(error.is::<Refused>() && error.to_string().contains(named), "{error:#}");
    }
    let all: Vec<BlockView> = asked(&config, Method::GET, "/v1/blocks").await.unwrap();
    assert!(all.len() == 1 && all[0].block.removed.is_some(), "{all:?}");
    let nobody = asked::<Done>(&config, Method::POST, "/v1/logins/x/evict?reason=r").await.unwrap_err();
    assert!(nobody.to_string().contains("has no login"), "{nobody:#}");
    meta.stop().await;
}

/// Another cluster's Meta at one of our addresses, with our key: its stream and its answers are refused by name, once, and
/// ours goes on.
#[tokio::test]
async fn a_meta_of_another_cluster_is_refused_by_name() {
    let (dir, other_dir) = (Dir::new("meta-ours"), Dir::new("meta-other"));
    let (ours_at, theirs_at) = (free_port(), free_port());
    let ours = config(&dir, "c1", &[ours_at], "");
    let theirs = config(&other_dir, "c2", &[theirs_at], "");
    let both = {
        let mut both = ours.clone();
        both.cluster.meta.insert(0, ([127, 0, 0, 1], theirs_at).into());
        both
    };
    let (meta, other) = (Running::start(&ours).await, Running::start(&theirs).await);
    let mut scvm = Agent::start(&both, NodeId::Scvm(A));
    let why = scvm.event("Stranger", |e| match e {
        LinkEvent::Stranger { why, .. } => Some(why.clone()),
        _ => None,
    });
    let why = why.await;
    assert!(why.contains("\"c2\"") && why.contains("[cluster]"), "{why}");
    assert_eq!(scvm.client.strangers(), [why]);
    for _ in 0..20 {
        let (term, _) = scvm.open_session().await;
        assert_eq!(term, Term(1));
    }
    // Said once, however often it is tried again.
    let again =
        async { scvm.event("no other", |e| matches!(e, LinkEvent::Stranger { .. }).then_some(())).await };
    assert!(timeout(Duration::from_secs(2), again).await.is_err());
    meta.stop().await;
    let lone = scvm.client.send(ToMeta::SessionOpen { boot: Incarnation(1), health: well() }).await;
    assert!(matches!(lone, Err(SendError::Stranger { .. })), "{lone:?}");
    other.stop().await;
}

/// Two Metas of one cluster on stores of their own: whoever has the lower term is refused by name.
#[tokio::test]
async fn of_two_metas_the_lower_term_is_refused() {
    let (dir, other_dir) = (Dir::new("meta-high"), Dir::new("meta-low"));
    let (high_at, low_at) = (free_port(), free_port());
    let high = config(&dir, "c1", &[high_at], "");
    let low = config(&other_dir, "c1", &[low_at], "");
    for _ in 0..2 {
        Running::start(&high).await.stop().await;
    }
    let (meta, other) = (Running::start(&high).await, Running::start(&low).await);
    let both = {
        let mut both = low.clone();
        both.cluster.meta.push(([127, 0, 0, 1], high_at).into());
        both
    };
    let mut scvm = Agent::start(&both, NodeId::Scvm(A));
    let why = scvm.event("Stranger", |e| match e {
        LinkEvent::Stranger { why, .. } => Some(why.clone()),
        _ => None,
    });
    let why = why.await;
    assert!(why.contains("two Metas") && why.contains(&low_at.to_string()), "{why}");
    for _ in 0..20 {
        let (term, _) = scvm.open_session().await;
        assert_eq!(term, Term(3));
    }
    meta.stop().await;
    other.stop().await;
}
