//! More connections than there are lines: those of known clients stay exact.

use crate::bench::*;
use crate::frames::*;
use aya::maps::{Array, Map, MapData};
use reroute_agent::config::AdmissionMode;
use reroute_common::flow::{Flow, MAX_FLOWS};
use reroute_common::table::{drop, mode};
use reroute_core::ids::{Epoch, HostId};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Lines a connection may stand in.
const WAYS: u32 = 8;

/// Source addresses of a flood, each another one, none of a known client's network.
const ADDRESSES: u32 = 1_000_000;

fn admitted(mode: AdmissionMode) -> Bench {
    let bench = Bench::with(|settings| settings.mode = mode);
    bench.lease(Duration::from_secs(3600));
    for host in [HOST, MUTE] {
        assert!(!bench.sensor.admit(host, Epoch(1)).unwrap().stale);
    }
    wait_for("the first tick", || bench.server().tick_at != 0);
    bench
}

/// The SYN of number `i` of a flood, made of another one: its own address, port and sequence number.
fn spoof(frame: &mut [u8], i: u32) {
    // Odd: a bijection of 32-bit numbers. The first byte is that of no client.
    let scattered = i.wrapping_mul(0x9e37_79b1);
    let [a, b, c, d] = (i & 0x00ff_ffff).wrapping_mul(0x009e_37b1).to_be_bytes();
    frame[26..30].copy_from_slice(&[100 + (a & 7), b, c, d]);
    frame[34..36].copy_from_slice(&((scattered >> 16) as u16 | 1).to_be_bytes());
    frame[38..42].copy_from_slice(&scattered.to_be_bytes());
}

fn syn() -> Vec<u8> {
    Connection::new(1).up(1, SYN, &[]).frame()
}

/// What a known client has said and heard, to be found to the unit.
#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
struct Tally {
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
    rx_retransmitted: u64,
    tx_retransmitted: u64,
    opened: u64,
    writes: u64,
    reads: u64,
    written: u64,
    read: u64,
    in_progress: u32,
    orphans: u32,
    streams_lost: u64,
    dropped: u64,
    would_drop: u64,
}

impl Tally {
    fn of(bench: &Bench, host: HostId) -> Tally {
        let c = bench.client(host);
        Tally {
            rx_packets: c.rx_packets,
            rx_bytes: c.rx_bytes,
            tx_packets: c.tx_packets,
            tx_bytes: c.tx_bytes,
            rx_retransmitted: c.rx_retransmitted,
            tx_retransmitted: c.tx_retransmitted,
            opened: c.opened,
            writes: c.calls[2],
            reads: c.calls[1],
            written: c.replies[2],
            read: c.replies[1],
            in_progress: c.in_progress,
            orphans: c.orphans,
            streams_lost: c.streams_lost,
            dropped: c.drops.iter().sum(),
            would_drop: c.would_drop,
        }
    }
}

/// A known client: its connections, and what is to be found of them.
struct Known {
    host: HostId,
    address: [u8; 4],
    connections: Vec<Connection>,
    tally: Tally,
    xid: u32,
}

impl Known {
    fn new(host: HostId, address: [u8; 4]) -> Known {
        Known { host, address, connections: vec![], tally: Tally::default(), xid: 0 }
    }
    fn rx(&mut self, bench: &Bench, frame: &[u8]) {
        assert_eq!(bench.rx(frame), XDP_PASS);
        self.tally.rx_packets += 1;
        self.tally.rx_bytes += frame.len() as u64;
    }
    fn tx(&mut self, bench: &Bench, frame: &[u8]) {
        assert_eq!(bench.tx(frame), TC_NEXT);
        self.tally.tx_packets += 1;
        self.tally.tx_bytes += frame.len() as u64;
    }
    fn open(&mut self, bench: &Bench, port: u16) {
        let mut c = Connection { client: self.address, ..Connection::new(port) };
        self.rx(bench, &c.up(c.client_seq, SYN, &[]).frame());
        self.tx(bench, &c.down(c.server_seq, SYN | ACK, &[]).frame());
        c.client_seq = c.client_seq.wrapping_add(1);
        c.server_seq = c.server_seq.wrapping_add(1);
        self.rx(bench, &c.up(c.client_seq, ACK, &[]).frame());
        self.tally.opened += 1;
        self.connections.push(c);
    }
    /// A call in two segments, the first of them twice or the second one early; its reply, once or twice.
    fn talk(&mut self, bench: &Bench, at: usize, answered: bool) {
        let mut c = self.connections[at].clone();
        self.xid += 1;
        let (xid, is_write) = (self.xid, !self.xid.is_multiple_of(3));
        let bytes = call(xid, if is_write { WRITE } else { READ }, 120);
        let (one, two) = bytes.split_at(1 + (xid as usize % 90));
        let (one, two) = (c.send(one), c.send(two));
        let order: &[&Vec<u8>] = match xid % 4 {
            0 => &[&one, &one, &two],
            1 => &[&two, &one],
            _ => &[&one, &two],
        };
        for frame in order {
            self.rx(bench, frame);
        }
        self.tally.rx_retransmitted += u64::from(xid.is_multiple_of(4));
        *(if is_write { &mut self.tally.writes } else { &mut self.tally.reads }) += 1;
        if answered {
            c.acked = c.client_seq;
            let answer = c.answer(&reply(xid, 20));
            self.tx(bench, &answer);
            if xid.is_multiple_of(5) {
                self.tx(bench, &answer);
                self.tally.tx_retransmitted += 1;
            }
            *(if is_write { &mut self.tally.written } else { &mut self.tally.read }) += 1;
        } else {
            self.tally.in_progress += 1;
        }
        self.connections[at] = c;
    }
    fn check(&self, bench: &Bench) {
        assert_eq!(Tally::of(bench, self.host), self.tally, "host {}", self.host.0);
    }
    /// Each of its connections stands in a line, as a known client's.
    fn all_stand(&self, bench: &Bench) {
        let stands = standing(bench);
        let ends = self.connections.iter().map(|c| (c.client, c.port));
        let gone: Vec<_> = ends.filter(|end| !stands.contains(end)).collect();
        assert!(gone.is_empty(), "{} of {} evicted: {gone:?}", gone.len(), self.connections.len());
    }
}

fn remote(flow: &Flow) -> ([u8; 4], u16) {
    let [.., a, b, c, d] = flow.key.remote;
    ([a, b, c, d], flow.key.remote_port)
}

/// Connections of known clients in the table.
fn standing(bench: &Bench) -> HashSet<([u8; 4], u16)> {
    let flows = bench.sensor.flows().unwrap();
    flows.iter().filter(|(_, flow)| flow.client != 0).map(|(_, flow)| remote(flow)).collect()
}

#[test]
fn a_million_spoofed_addresses_leave_known_clients_exact() {
    let bench = admitted(AdmissionMode::Shadow);
    let mut known = [Known::new(HOST, STORAGE_ADDRESS), Known::new(MUTE, MUTE_ADDRESS)];
    for client in &mut known {
        for port in 600..728 {
            client.open(&bench, port);
        }
        for at in 0..128 {
            client.talk(&bench, at, true);
        }
    }
    let mut frame = syn();
    let mut seen = HashSet::with_capacity(ADDRESSES as usize);
    let began = Instant::now();
    for i in 0..ADDRESSES {
        spoof(&mut frame, i);
        assert!(seen.insert([frame[26], frame[27], frame[28], frame[29]]), "{i}: another address each");
        assert_eq!(bench.rx(&frame), XDP_PASS, "{i}");
        // Alone at first; then amid the traffic of known clients, who also come with new connections.
        if i >= ADDRESSES / 4 && i % 200 == 0 {
            let client = &mut known[(i / 200 % 2) as usize];
            let at = i as usize / 400 % client.connections.len();
            client.talk(&bench, at, true);
            if i % 20_000 == 0 {
                client.open(&bench, 2000 + (i / 20_000) as u16);
            }
        }
    }
    let took = began.elapsed();
    // Each leaves a call behind that waits.
    for client in &mut known {
        for at in 0..client.connections.len() {
            client.talk(&bench, at, false);
        }
        client.check(&bench);
        client.all_stand(&bench);
        assert_eq!(bench.sensor.read(client.host).unwrap().in_progress, client.connections.len() as u32);
    }
    let (server, nobody) = (bench.server(), bench.sensor.clients().unwrap().remove(0));
    let opened = u64::from(ADDRESSES) + known.iter().map(|k| k.tally.opened).sum::<u64>();
    let lines = bench.sensor.flows().unwrap().len() as u64;
    println!(
        "{ADDRESSES} SYNs in {took:?}: {} evicted, {} untracked, {lines} lines",
        server.evicted_flows, server.untracked_flows
    );
    assert_eq!(server.evicted_flows + server.untracked_flows + lines, opened, "each was somewhere");
    assert!(server.evicted_flows > opened - u64::from(2 * MAX_FLOWS), "{}", server.evicted_flows);
    assert_eq!((nobody.host, nobody.rx_packets), (0, u64::from(ADDRESSES)));
    assert_eq!(nobody.rx_bytes, u64::from(ADDRESSES) * frame.len() as u64);
    assert_eq!(nobody.opened, u64::from(ADDRESSES) - server.untracked_flows);
    assert_eq!((nobody.would_drop, nobody.drops), (u64::from(ADDRESSES), [0; drop::COUNT]));
    assert_eq!(server.untracked_calls, 0);
}

#[test]
fn an_enforced_fence_keeps_a_flood_out_of_the_table() {
    let bench = admitted(AdmissionMode::Enforce);
    let mut client = Known::new(HOST, STORAGE_ADDRESS);
    for port in 600..664 {
        client.open(&bench, port);
    }
    let mut frame = syn();
    for i in 0..50_000 {
        spoof(&mut frame, i);
        assert_eq!(bench.rx(&frame), XDP_DROP);
        if i % 200 == 0 {
            client.talk(&bench, i as usize / 200 % 64, true);
        }
    }
    client.check(&bench);
    client.all_stand(&bench);
    let nobody = bench.sensor.clients().unwrap().remove(0);
    assert_eq!((nobody.drops[drop::UNREGISTERED], nobody.rx_packets), (50_000, 50_000));
    assert_eq!((bench.server().evicted_flows, bench.server().untracked_flows), (0, 0));
    assert_eq!(bench.sensor.flows().unwrap().len(), 64);
}

/// A flood in a known client's own name takes lines half open; its connections stay, and those of others.
#[test]
fn a_flood_in_a_clients_own_name_takes_no_connection_that_is_open() {
    let bench = admitted(AdmissionMode::Enforce);
    let mut known = [Known::new(HOST, STORAGE_ADDRESS), Known::new(MUTE, MUTE_ADDRESS)];
    for client in &mut known {
        for port in 1..=128 {
            client.open(&bench, port);
        }
    }
    let mut frame = Connection::new(1).up(1, SYN, &[]).frame();
    let spoofed = 129..=u16::MAX;
    for port in spoofed.clone() {
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        known[0].rx(&bench, &frame);
        if port % 200 == 0 {
            let (client, at) = (usize::from(port / 200 % 2), usize::from(port / 400 % 128));
            known[client].talk(&bench, at, true);
        }
    }
    known.iter().for_each(|client| client.all_stand(&bench));
    let server = bench.server();
    known[0].tally.opened += spoofed.len() as u64 - server.untracked_flows;
    for client in &known {
        client.check(&bench);
    }
    assert!(server.evicted_flows > 40_000, "{}", server.evicted_flows);
    let lines = bench.sensor.flows().unwrap().len() as u64;
    assert_eq!(server.evicted_flows + server.untracked_flows + lines, 256 + spoofed.len() as u64);
}

/// Lines of the table, as userspace may write them.
fn lines_of(bench: &Bench) -> Array<MapData, Flow> {
    let data = MapData::from_pin(bench.dir.join("FLOWS")).unwrap();
    Array::try_from(Map::from_map_data(data).unwrap()).unwrap()
}

#[test]
fn more_connections_of_known_clients_than_lines() {
    let bench = admitted(AdmissionMode::Shadow);
    let mut known = [Known::new(HOST, STORAGE_ADDRESS), Known::new(MUTE, MUTE_ADDRESS)];
    // All are live: none makes room for another, and what finds none is counted as such.
    let (mut placed, mut untracked) = (HashMap::new(), 0);
    for port in 1..=14_000 {
        for (i, client) in known.iter_mut().enumerate() {
            client.open(&bench, port);
            let now = bench.server().untracked_flows;
            if now == untracked {
                let at = client.connections.len() - 1;
                client.talk(&bench, at, true);
                placed.insert((client.address, port), i);
            } else {
                assert_eq!(now, untracked + 1, "once");
                untracked = now;
                // Its packets count, though nobody knows of a connection.
                client.tally.opened -= 1;
                client.connections.pop();
            }
        }
    }
    let lines = bench.sensor.flows().unwrap();
    assert_eq!(bench.server().evicted_flows, 0, "all are live");
    assert!(untracked > 1000, "{untracked}");
    assert_eq!(lines.len() as u64 + untracked, 28_000);
    for client in &known {
        client.check(&bench);
        client.all_stand(&bench);
    }

    // More than a minute ago each of them said its last word, each at another time.
    let aged = Duration::from_secs(62).as_nanos() as u64;
    // The kernel itself must be older.
    while now() < aged + aged / 8 {
        std::thread::sleep(Duration::from_millis(100));
    }
    let map = &mut lines_of(&bench);
    let began = now() - aged;
    let mut last_at = HashMap::new();
    for (index, flow) in &lines {
        let at = began - u64::from(index.wrapping_mul(0x9e37_79b1) >> 8) * 256;
        map.set(*index, Flow { last_at: at, ..*flow }, 0).unwrap();
        last_at.insert(*index, (at, remote(flow)));
    }

    // A stranger is given none of them ...
    let mut frame = syn();
    let mut turned_away = 0;
    for i in 0..2000 {
        spoof(&mut frame, i);
        assert_eq!(bench.rx(&frame), XDP_PASS);
        let now = bench.server().untracked_flows;
        turned_away += now - untracked;
        untracked = now;
    }
    assert!(turned_away > 1000, "{turned_away}");
    known.iter().for_each(|client| client.all_stand(&bench));
    // ... but a known client is: a stranger's, which had the last free ones, or the one that is idle for longest.
    let (mut evicted, mut oldest) = (bench.server().evicted_flows, 0);
    for port in 30_000..30_300 {
        let before: HashMap<u32, Flow> = bench.sensor.flows().unwrap().into_iter().collect();
        known[0].open(&bench, port);
        let after = bench.sensor.flows().unwrap();
        let wanted = (STORAGE_ADDRESS, port);
        let (index, _) = after.iter().find(|(_, flow)| remote(flow) == wanted).unwrap();
        let now = bench.server().evicted_flows;
        let Some(former) = before.get(index) else {
            assert_eq!(now, evicted, "a free line");
            continue;
        };
        assert_eq!(now, evicted + 1);
        evicted = now;
        if former.client != 0 {
            let set = index / WAYS * WAYS;
            let rest: Vec<&Flow> = (set..set + WAYS).map(|i| &before[&i]).collect();
            assert!(rest.iter().all(|flow| flow.client != 0), "strangers go first");
            assert_eq!(rest.iter().map(|flow| flow.last_at).min(), Some(former.last_at));
            assert_eq!(last_at[index], (former.last_at, remote(former)));
            oldest += 1;
        }
    }
    assert!(oldest > 200, "{oldest} of {evicted}");
    // Not one count has gone with a line.
    for client in &known {
        client.check(&bench);
    }
    // What was young, or has spoken since, stands.
    let stands = standing(&bench);
    assert!((30_000..30_300).all(|port| stands.contains(&(STORAGE_ADDRESS, port))));
    assert_eq!(bench.sensor.config().unwrap().mode, mode::SHADOW);
    assert_eq!(placed.keys().filter(|c| !stands.contains(*c)).count(), oldest);
}

/// Frames that come before the timer's first tick, when the sensor has just started.
#[test]
fn connections_opened_before_the_first_tick_are_not_idle() {
    let bench = Bench::with(|settings| settings.mode = AdmissionMode::Shadow);
    let began = now();
    for port in 1..=200 {
        Connection::open(port, &bench);
    }
    let idle = |flow: &Flow| Duration::from_nanos(now().saturating_sub(flow.last_at));
    let all = bench.sensor.flows().unwrap();
    let longest = all.iter().map(|(_, flow)| idle(flow)).max().unwrap();
    let most = Duration::from_nanos(now() - began) + Duration::from_secs(1);
    assert!(longest < most, "said to be idle for {longest:?}");
}
