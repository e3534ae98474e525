//! Meta and agents' links to it, over real sockets on this machine.

mod held_store;
mod strangers;

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
        let task = tokio::spawn(meta.serve(|| Ok(()), async move {
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
