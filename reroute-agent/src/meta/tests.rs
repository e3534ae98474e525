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
    let journal = std::fs::read_to_string(dir.path().join("meta/journal.jsonl")).unwrap();
    for event in ["move_recorded", "revoke_sent", "fence_proven", "login_stored"] {
        assert!(journal.contains(event), "{event} is not in the journal: {journal}");
    }

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
    let lines = [first.clone(), forged, elsewhere, "noise\n".into(), first, line(4, &config.key, &direction)];
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
