//! A host agent as it ships, against a real Meta, real routes and real TCP connections, in two network namespaces.
//! The SCVMs are played: their pulses are reflected from user space, their agents' answers given by hand.

use super::*;
use crate::config::ClusterKey;
use crate::keys::pulse_key;
use crate::meta::Meta;
use crate::meta::testing::Dir;
use crate::meta_client::{LinkEvent, MetaClient};
use crate::netlink::namespace::{self, eventually, ip, ip_shows};
use crate::service;
use axum::http::Method;
use reroute_common::admission::{Word, rank};
use reroute_common::pulse::{LEN, MAC_OFFSET, PORT, Pulse, direction_key, flags, kind, server};
use reroute_common::siphash;
use reroute_core::ids::*;
use reroute_core::proto::*;
use reroute_core::timeline::{Entry, Event};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::mem::offset_of;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const SHOW: &str = "route show 192.168.33.2/32";

/// What the played SCVMs are like.
#[derive(Default)]
struct Site {
    /// Networks on which an SCVM does not answer.
    cut: BTreeSet<(u32, Network)>,
    no_listener: BTreeSet<u32>,
    words: BTreeMap<u32, Word>,
}

type Shared = Arc<Mutex<Site>>;

fn config(dir: &Dir, section: &str) -> Config {
    let d = dir.path().display();
    std::fs::write(dir.path().join("key"), "ab".repeat(32)).unwrap();
    let mut text = format!(
        "[cluster]\nid = \"t\"\nkey_file = \"{d}/key\"\nservice_address = \"192.168.33.2\"\n\
         meta = [\"10.1.0.250:7480\"]\n\
         [[cluster.hosts]]\nid = 1\nname = \"x1\"\nprivate = \"192.168.33.1\"\nstorage = \"10.0.0.101\"\n\
         management = \"10.1.0.101\"\nlocal_scvm = 1\n"
    );
    for i in 1..=3 {
        text += &format!(
            "[[cluster.scvms]]\nid = {i}\nname = \"s{i}\"\nstorage = \"10.0.0.{i}\"\nmanagement = \"10.1.0.{i}\"\n\
             server = {{ name = \"nfsd\", pidfile = \"/run/nfsd.pid\", policy = \"storage\" }}\n"
        );
    }
    text += section;
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path).unwrap()
}

fn host_config(dir: &Dir) -> Config {
    let d = dir.path().display();
    let section = format!(
        "[timing]\nhold_down_ms = 500\n[host]\nid = 1\nmode = \"auto\"\nstate_dir = \"{d}/host\"\nsocket = \"{d}/host.sock\"\n\
         interfaces = {{ private = \"priv\", storage = \"sto\", management = \"mgmt\" }}\n"
    );
    config(dir, &section)
}

fn word_at(bytes: &[u8; LEN], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn mac(key: [u64; 2], bytes: &[u8; LEN]) -> u64 {
    let words: [u64; MAC_OFFSET / 8] = std::array::from_fn(|i| word_at(bytes, 8 * i));
    siphash::hash(key, &words)
}

/// Does for one SCVM on one network what its XDP program does.
fn reflect(site: Shared, scvm: u32, network: Network, address: String, key: ClusterKey) {
    let socket = UdpSocket::bind(format!("{address}:{PORT}")).unwrap();
    let key = pulse_key(&key, HostId(1), ScvmId(scvm));
    let mut stamp = 0u64;
    std::thread::spawn(move || {
        // The kernel answers pulses whatever the load.
        realtime::enter().unwrap();
        loop {
            let mut bytes = [0; LEN];
            let Ok((LEN, from)) = socket.recv_from(&mut bytes) else { continue };
            assert_eq!(mac(direction_key(key, kind::REQUEST), &bytes), word_at(&bytes, MAC_OFFSET));
            let mut site = site.lock().unwrap();
            if site.cut.contains(&(scvm, network)) {
                continue;
            }
            let epoch = word_at(&bytes, offset_of!(Pulse, epoch));
            let word = site.words.entry(scvm).or_insert(Word::NONE);
            let flag = u16::from_le_bytes([bytes[6], bytes[7]]);
            if flag == flags::RELEASE {
                *word = (*word).max(Word::new(epoch, rank::RELEASED));
            }
            let word = *word;
            let listening = if site.no_listener.contains(&scvm) { 0 } else { server::LISTENING };
            drop(site);
            stamp += 1;
            bytes[offset_of!(Pulse, kind)] = kind::REPLY;
            let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
            put(offset_of!(Pulse, scvm_boot), &1u64.to_le_bytes());
            put(offset_of!(Pulse, scvm_stamp), &stamp.to_le_bytes());
            put(offset_of!(Pulse, server_incarnation), &5u64.to_le_bytes());
            put(offset_of!(Pulse, word), &word.0.to_le_bytes());
            put(offset_of!(Pulse, server_state), &(server::ENFORCING | listening).to_le_bytes());
            let mac = mac(direction_key(key, kind::REPLY), &bytes);
            bytes[MAC_OFFSET..].copy_from_slice(&mac.to_le_bytes());
            let _ = socket.send_to(&bytes, from);
        }
    });
}

/// Answers Meta's orders as a well SCVM does.
async fn play_agent(config: Config, site: Shared, scvm: u32) {
    let node = NodeId::Scvm(ScvmId(scvm));
    let (client, mut events) = MetaClient::start(&config, node, Incarnation(u64::from(scvm))).unwrap();
    let health = ServerHealth { listening: true, process_alive: true, ..ServerHealth::default() };
    let mut term = Term(0);
    let mut beat = tokio::time::interval(Duration::from_millis(100));
    loop {
        let message = tokio::select! {
            _ = beat.tick() => ToMeta::KeepAlive { term, health: health.clone() },
            event = events.recv() => {
                let Some(LinkEvent::Order(FromMeta { order, .. })) = event else { continue };
                let mut site = site.lock().unwrap();
                let mut raise = |word: Word| {
                    let at = site.words.entry(scvm).or_insert(Word::NONE);
                    *at = (*at).max(word);
                };
                match order {
                    Order::Prepare { host, epoch } => ToMeta::Prepared { host, epoch, error: None },
                    Order::Revoke { host, epoch, .. } => {
                        raise(Word::new(epoch.0, rank::FENCED));
                        ToMeta::Fenced { host, epoch, proof: FenceProof::Storage }
                    }
                    Order::Admit { host, epoch } => {
                        raise(Word::new(epoch.0, rank::ADMITTED));
                        ToMeta::Admitted { host, epoch, error: None }
                    }
                    _ => continue,
                }
            }
        };
        if let Ok(MetaReply::Refused { error: Refusal::NoSession }) = client.send(message).await {
            let open = ToMeta::SessionOpen { boot: Incarnation(1), health: health.clone() };
            if let Ok(MetaReply::Session { term: new, .. }) = client.send(open).await {
                term = new;
            }
        }
    }
}

/// The other end of the host's networks: three SCVMs, the service address, Meta. Ends with the world.
struct World {
    site: Shared,
    dir: Dir,
    config: Config,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl World {
    /// In a host's namespace: makes the networks and the far namespace behind them.
    fn new() -> World {
        let dir = Dir::new("host");
        let site = Shared::default();
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        for (name, address) in
            [("priv", "192.168.33.1/24"), ("sto", "10.0.0.101/24"), ("mgmt", "10.1.0.101/24")]
        {
            ip(&format!("link add {name} type veth peer name {name}-far"));
            ip(&format!("addr add {address} dev {name}"));
            ip(&format!("link set {name} up"));
        }
        let d = dir.path().display();
        let meta_config = config(
            &dir,
            &format!(
                "[meta]\nlisten = [\"10.1.0.250:7480\"]\nstate_dir = \"{d}/meta\"\nsocket = \"{d}/meta.sock\"\n"
            ),
        );
        let far_site = site.clone();
        let thread = std::thread::spawn(move || {
            namespace::run(move || {
                let far = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
                let far_path = format!("/proc/{}/fd/{}", std::process::id(), far.as_raw_fd());
                namespace::within(home.as_fd(), || {
                    for name in ["priv", "sto", "mgmt"] {
                        ip(&format!("link set {name}-far netns {far_path}"));
                    }
                });
                for (name, addresses) in [
                    ("priv", "192.168.33.2/24"),
                    ("sto", "10.0.0.1/24 10.0.0.2/24 10.0.0.3/24"),
                    ("mgmt", "10.1.0.1/24 10.1.0.2/24 10.1.0.3/24 10.1.0.250/24"),
                ] {
                    for address in addresses.split(' ') {
                        ip(&format!("addr add {address} dev {name}-far"));
                    }
                    ip(&format!("link set {name}-far up"));
                }
                let key = &meta_config.key;
                for scvm in 1..=3 {
                    let storage = format!("10.0.0.{scvm}");
                    let management = format!("10.1.0.{scvm}");
                    reflect(far_site.clone(), scvm, Network::Storage, storage, key.clone());
                    reflect(far_site.clone(), scvm, Network::Management, management, key.clone());
                }
                reflect(far_site.clone(), 1, Network::Private, "192.168.33.2".into(), key.clone());
                let nfs = TcpListener::bind("192.168.33.2:2049").unwrap();
                std::thread::spawn(move || {
                    // Connections stay open until the client or its kernel ends them.
                    let mut open = Vec::new();
                    for stream in nfs.incoming() {
                        open.push(stream);
                    }
                });
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let meta = Meta::bind(meta_config.clone()).unwrap();
                    for scvm in 1..=3 {
                        tokio::spawn(play_agent(meta_config.clone(), far_site.clone(), scvm));
                    }
                    ready.send(()).unwrap();
                    meta.serve(|| Ok(()), async move {
                        let _ = stopped.await;
                    })
                    .await
                    .unwrap();
                });
            });
        });
        is_ready.recv_timeout(Duration::from_secs(10)).expect("the far side is up");
        let config = host_config(&dir);
        World { site, dir, config, stop: Some(stop), thread: Some(thread) }
    }

    fn start_agent(&self) -> Agent {
        let parts = prepare(self.config.clone()).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = realtime::run("host", async move || {
            driver::run(parts, async move {
                let _ = stopped.await;
            })
            .await
        })
        .unwrap();
        let agent =
            Agent { stop: Some(stop), thread: Some(thread), socket: self.dir.path().join("host.sock") };
        eventually("the agent answers", || agent.try_status().is_some());
        agent
    }

    fn journal(&self) -> Vec<Event> {
        let text = std::fs::read_to_string(self.dir.path().join("host/journal.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str::<Entry>(line).unwrap().event).collect()
    }

    fn with(&self, change: impl FnOnce(&mut Site)) {
        change(&mut self.site.lock().unwrap());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Agent {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    socket: std::path::PathBuf,
}

impl Agent {
    fn try_status(&self) -> Option<Status> {
        service::ask_blocking(&self.socket, Method::GET, "/v1/status").ok()
    }
    fn status(&self) -> Status {
        self.try_status().expect("the agent answers")
    }
    fn settled_at(&self, epoch: u64) -> bool {
        let local = self.status().local;
        local.phase == "settled" && local.report.epoch == Epoch(epoch) && local.affirms.is_some()
    }
    fn stop(mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

fn connect() -> TcpStream {
    let stream = TcpStream::connect_timeout(&"192.168.33.2:2049".parse().unwrap(), Duration::from_secs(5));
    let stream = stream.expect("the service answers");
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

fn position(events: &[Event], what: &str, is: impl Fn(&Event) -> bool) -> usize {
    events.iter().position(is).unwrap_or_else(|| panic!("no {what} in {events:#?}"))
}

#[test]
fn a_dead_server_is_left_and_the_route_follows_meta() {
    namespace::run(|| {
        let world = World::new();
        let agent = world.start_agent();
        eventually("the first login", || agent.settled_at(1));
        assert_eq!(ip_shows(SHOW), "192.168.33.2 via 10.0.0.1 dev sto proto 199 src 10.0.0.101");
        let mut client = connect();
        assert_eq!(client.local_addr().unwrap().ip().to_string(), "10.0.0.101");

        world.with(|site| {
            site.no_listener.insert(1);
        });
        let died = Instant::now();
        let error = client.read(&mut [0]).expect_err("its socket is destroyed");
        let gap = died.elapsed();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
        println!("listener gone to sockets reset: {gap:?}");
        eventually("settled at the next epoch", || agent.settled_at(2));
        let to = agent.status().local.report.scvm.unwrap().0;
        assert!(ip_shows(SHOW).contains(&format!("via 10.0.0.{to} dev sto proto 199")), "{}", ip_shows(SHOW));
        assert_ne!(to, 1);
        connect();

        let reset = |e: &Event| matches!(e, Event::SocketsReset { count } if *count >= 1);
        eventually("the journal's own thread has written it", || world.journal().iter().any(reset));
        let events = world.journal();
        let verdict = position(
            &events,
            "verdict",
            |e| matches!(e, Event::Verdict { evidence, .. } if evidence.iter().any(|e| e.kind == EvidenceKind::ListenerGone)),
        );
        let route = position(&events, "route", |e| matches!(e, Event::RouteReplaced { epoch: Epoch(2), .. }));
        assert!(verdict < route, "{events:#?}");
        assert!(events[route..].iter().any(reset), "{events:#?}");
        // Meta may have its proof from elsewhere before this host's disk has taken the record of the release.
        let released = events.iter().position(|e| matches!(e, Event::Released { epoch: Epoch(1) }));
        assert!(released.is_none_or(|at| verdict < at && at < route), "{events:#?}");

        world.with(|site| site.no_listener.clear());
        eventually("back at home", || {
            agent.status().local.report.scvm == Some(ScvmId(1)) && agent.settled_at(3)
        });
        assert!(ip_shows(SHOW).contains("via 10.0.0.1 dev sto"));

        let route = ip_shows(SHOW);
        agent.stop();
        assert_eq!(ip_shows(SHOW), route, "the agent's end changes no route");
        let agent = world.start_agent();
        assert!(agent.status().local.affirms.is_some(), "the next instance affirms at once");
        eventually("it is settled", || agent.settled_at(3));
        assert_eq!(ip_shows(SHOW), route);
        agent.stop();
    });
}

#[test]
fn the_storage_network_dead_means_management_without_meta_and_back() {
    namespace::run(|| {
        let world = World::new();
        let agent = world.start_agent();
        eventually("the first login", || agent.settled_at(1));
        world.with(|site| site.cut.extend([1, 2, 3].map(|scvm| (scvm, Network::Storage))));
        eventually("by management", || ip_shows(SHOW).contains("via 10.1.0.1 dev mgmt"));
        assert_eq!(agent.status().local.report.epoch, Epoch(1), "{:#?}", world.journal());
        world.with(|site| site.cut.clear());
        eventually("by storage again", || ip_shows(SHOW).contains("via 10.0.0.1 dev sto"));
        assert_eq!(agent.status().local.report.epoch, Epoch(1), "{:#?}", world.journal());
        agent.stop();
    });
}

#[test]
fn a_link_flap_that_flushes_the_route_is_made_good() {
    namespace::run(|| {
        let world = World::new();
        let agent = world.start_agent();
        eventually("the first login", || agent.settled_at(1));
        ip("link set sto down");
        assert!(!ip_shows(SHOW).contains("dev sto"), "flushed");
        eventually("by management", || ip_shows(SHOW).contains("via 10.1.0.1 dev mgmt"));
        ip("link set sto up");
        eventually("by storage again", || ip_shows(SHOW).contains("via 10.0.0.1 dev sto"));
        // Removed by hand, with the interface up.
        ip("route del 192.168.33.2/32");
        eventually("put back", || ip_shows(SHOW).contains("via 10.0.0.1 dev sto proto 199"));
        agent.stop();
    });
}

#[test]
fn a_foreign_route_is_untouched_until_adopted() {
    namespace::run(|| {
        let world = World::new();
        ip("route add 192.168.33.2/32 via 10.0.0.2 proto static");
        let before = ip_shows(SHOW);
        let agent = world.start_agent();
        eventually("it is named in the status", || {
            agent.status().local.report.error.is_some_and(|e| e.contains("route adopt"))
        });
        let started = Instant::now();
        eventually("Meta's view", || agent.status().view.is_some());
        eventually("time enough for a first login", || started.elapsed() > Duration::from_millis(800));
        assert_eq!(agent.status().local.report.epoch, Epoch(0));
        assert_eq!(ip_shows(SHOW), before);
        let adopted: Adopted = service::ask_blocking(&agent.socket, Method::POST, "/v1/route/adopt").unwrap();
        assert!(adopted.found.contains("10.0.0.2"), "{adopted:?}");
        eventually("logged in where the route led", || agent.settled_at(1));
        assert!(ip_shows(SHOW).contains("via 10.0.0.2 dev sto proto 199"), "{}", ip_shows(SHOW));
        let again = service::ask_blocking::<Adopted>(&agent.socket, Method::POST, "/v1/route/adopt");
        assert!(again.unwrap_err().is::<crate::cli::Refused>());
        agent.stop();
    });
}
