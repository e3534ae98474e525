//! Traffic of every kind, counted to the unit.

use super::compare::{Counts, HOSTS, Records, V4, address};
use super::nfs;
use super::traffic::{Conn, Path, Rng, Traffic, Way};
use crate::bench::SERVICE;
use crate::frames::{ACK, RST, SYN, WRITE};

const MSS: usize = 1448;

fn path(host: u32) -> Path {
    Path::new(address(host), SERVICE)
}

fn open_many(t: &mut Traffic, hosts: u32, connections: u32, rng: &mut Rng) -> Vec<Conn> {
    (0..connections)
        .map(|i| t.open(&path(1 + i % hosts), 700 + (i / hosts) as u16, rng.next() as u32))
        .collect()
}

fn exact(t: &Traffic) -> Counts {
    V4.check(&t.frames, Records::Both)
}

#[test]
fn connections_and_clients() {
    for (hosts, connections) in [(1, 1), (1, 64), (HOSTS, HOSTS), (HOSTS, 64)] {
        let (mut t, mut rng) = (Traffic::default(), Rng(7));
        let mut all = open_many(&mut t, hosts, connections, &mut rng);
        t.work(&mut all, &mut rng, 400, MSS);
        for (i, c) in all.iter_mut().enumerate() {
            match i % 3 {
                0 => t.close(c),
                1 => t.reset(c, Way::In),
                _ => {}
            }
        }
        let counts = exact(&t);
        assert_eq!(counts.sum(|h| h.opened), u64::from(connections));
        assert!(counts.sum(|h| h.calls.iter().sum()) >= 400);
        assert_eq!(counts.sum(|h| h.calls.iter().sum()), counts.sum(|h| h.replies.iter().sum()));
    }
}

#[test]
fn tags_and_options() {
    for (tags, options) in
        [(vec![7], 0), (vec![7, 4095], 0), (vec![], 4), (vec![], 40), (vec![1], 12), (vec![2, 3], 40)]
    {
        let (mut t, mut rng) = (Traffic::default(), Rng(11));
        let path = Path { tags, options, ..path(3) };
        let mut all = vec![t.open(&path, 700, 1), t.open(&path, 701, 2)];
        t.work(&mut all, &mut rng, 60, 1400);
        t.close(&mut all[0]);
        assert_eq!(exact(&t).hosts[&3].closed, 1);
    }
}

#[test]
fn jumbo_frames_and_frames_of_many_buffers() {
    let mut t = Traffic::default();
    let mut c = t.open(&path(1), 700, 99);
    // 8948: an MTU of 9000. 65,000: as much as IPv4 can say, in 17 pages.
    for (i, mss) in [8948, 8948, 3500, 4096, 30_000, 65_000].into_iter().enumerate() {
        let records: Vec<u8> = (0..3).flat_map(|n| c.call(WRITE, 30_000 + 4 * n + i)).collect();
        for part in records.chunks(mss) {
            t.send(&mut c, Way::In, part);
        }
        while !c.waiting.is_empty() {
            let answer = c.reply(0, 0);
            t.send(&mut c, Way::Out, &answer);
        }
    }
    let longest = t.frames.iter().map(|f| f.bytes.len()).max();
    assert!(longest.is_some_and(|l| l > 60_000), "{longest:?}");
    exact(&t);
}

#[test]
fn super_packets_count_as_the_segments_they_are_cut_to() {
    let mut t = Traffic::default();
    let mut c = t.open(&Path { tags: vec![5], ..path(2) }, 700, 3);
    for data in [3000, 2000, 700, 1] {
        let call = c.call(6, 0);
        t.send(&mut c, Way::In, &call);
        let answer = c.reply(0, data);
        t.send_super(&mut c, &answer, 536);
    }
    exact(&t);
}

/// Frames of a connection, and where each stands: to be sent again, or in another order.
pub struct Stretch {
    start: u32,
    pub bytes: Vec<u8>,
}

impl Stretch {
    /// Bytes that nobody has sent yet.
    pub fn new(c: &mut Conn, way: Way, bytes: Vec<u8>) -> Stretch {
        let seq = if way == Way::In { &mut c.client_seq } else { &mut c.server_seq };
        let start = *seq;
        *seq = start.wrapping_add(bytes.len() as u32);
        Stretch { start, bytes }
    }
    pub fn put(&self, t: &mut Traffic, c: &Conn, way: Way, from: usize, to: usize) {
        let to = to.min(self.bytes.len());
        t.push(way, c.frame(way, self.start.wrapping_add(from as u32), ACK, &self.bytes[from..to]));
    }
    /// The other end has it all, and says so.
    pub fn done(self, t: &mut Traffic, c: &mut Conn, way: Way) {
        c.server_has = c.client_seq;
        c.client_has = c.server_seq;
        t.acknowledge(c, if way == Way::In { Way::Out } else { Way::In });
    }
}

pub fn calls(c: &mut Conn, n: usize, data: usize) -> Vec<u8> {
    (0..n).flat_map(|i| c.call(nfs::PROCEDURES[i % nfs::PROCEDURES.len()], data)).collect()
}

pub fn answers(c: &mut Conn, data: usize) -> Vec<u8> {
    (0..c.waiting.len()).flat_map(|_| c.reply(0, data)).collect()
}

#[test]
fn segments_sent_again_whole() {
    let mut t = Traffic::default();
    let mut c = t.open(&path(1), 700, 5);
    for _ in 0..3 {
        for way in [Way::In, Way::Out] {
            let bytes = if way == Way::In { calls(&mut c, 6, 300) } else { answers(&mut c, 200) };
            let s = Stretch::new(&mut c, way, bytes);
            let cuts: Vec<(usize, usize)> =
                (0..s.bytes.len()).step_by(400).map(|from| (from, from + 400)).collect();
            for (from, to) in &cuts {
                s.put(&mut t, &c, way, *from, *to);
            }
            // The second twice, then all from the third.
            for (from, to) in [cuts[1], cuts[1]].iter().chain(&cuts[2..]) {
                s.put(&mut t, &c, way, *from, *to);
            }
            s.done(&mut t, &mut c, way);
        }
    }
    let counts = V4.check(&t.frames, Records::Reference);
    assert!(counts.hosts[&1].rx_retransmitted >= 6 && counts.hosts[&1].tx_retransmitted >= 6);
}

#[test]
fn segments_sent_again_cut_otherwise() {
    let (mut t, mut rng) = (Traffic::default(), Rng(17));
    let mut c = t.open(&path(1), 700, 5);
    for round in 0..40 {
        for way in [Way::In, Way::Out] {
            let bytes = if way == Way::In { calls(&mut c, 6, 500) } else { answers(&mut c, 400) };
            let s = Stretch::new(&mut c, way, bytes);
            let mut sent = 0;
            while sent < s.bytes.len() {
                // From anywhere in what was sent, or from its end, to anywhere behind it or inside.
                let from = if rng.below(2) == 0 { sent } else { rng.below(sent + 1) };
                let to = (from + 1 + rng.below(700)).min(s.bytes.len());
                s.put(&mut t, &c, way, from, to);
                sent = sent.max(to);
            }
            s.done(&mut t, &mut c, way);
        }
        assert!(c.waiting.is_empty(), "round {round}");
    }
    V4.check(&t.frames, Records::Reference);
}

/// Segments on their way to the service overtake each other; some of them come twice or cut otherwise. From the
/// service they pass in the order in which its TCP has made them: there is nothing before us that could change it.
#[test]
fn segments_in_another_order() {
    for (seed, repeats) in (0..8).map(|s| (s, s % 2 == 1)) {
        let (mut t, mut rng) = (Traffic::default(), Rng(seed));
        let mut c = t.open(&path(1), 700, 0x7fff_f000);
        for _ in 0..10 {
            let bytes = calls(&mut c, 8, 600);
            let s = Stretch::new(&mut c, Way::In, bytes);
            let mut cuts: Vec<(usize, usize)> =
                (0..s.bytes.len()).step_by(300).map(|from| (from, from + 300)).collect();
            if repeats {
                for _ in 0..6 {
                    let from = rng.below(s.bytes.len());
                    cuts.push((from, from + 1 + rng.below(900)));
                }
            }
            for i in 0..cuts.len() {
                let other = i + rng.below((cuts.len() - i).min(6));
                cuts.swap(i, other);
            }
            for (from, to) in cuts {
                s.put(&mut t, &c, Way::In, from, to);
            }
            s.done(&mut t, &mut c, Way::In);
            let answers = answers(&mut c, 300);
            t.cut_anywhere(&mut c, Way::Out, &answers, &mut rng, MSS);
        }
        let counts = V4.check(&t.frames, Records::Reference);
        assert_eq!(counts.hosts[&1].rx_retransmitted > 0, repeats);
        assert_eq!(counts.hosts[&1].calls.iter().sum::<u64>(), 80);
    }
}

/// Each frame comes two or three times, as by a mirror port or a loop.
#[test]
fn every_segment_duplicated() {
    let (mut once, mut rng) = (Traffic::default(), Rng(19));
    let mut all = vec![once.open(&path(1), 700, 1), once.open(&path(2), 700, 2)];
    once.work(&mut all, &mut rng, 50, MSS);
    let mut t = Traffic::default();
    for frame in &once.frames {
        // The handshake comes once: of that, see `handshakes_and_farewells_sent_again`.
        let times = if t.frames.len() < 6 { 1 } else { 2 + rng.below(2) };
        for _ in 0..times {
            t.push(frame.way, frame.bytes.clone());
        }
    }
    V4.check(&t.frames, Records::Reference);
}

#[test]
fn sequence_numbers_wrap() {
    for isn in [0xffff_ffff, 0xffff_fffe, 0xffff_ff00, 0xffff_0000, 0x7fff_ff00] {
        let (mut t, mut rng) = (Traffic::default(), Rng(isn.into()));
        let mut c = t.open(&path(1), 700, isn);
        // The service's wrap as well.
        let mut d = t.open(&path(2), 700, isn.wrapping_mul(0x9e37_79b9_u32.wrapping_pow(0x3fff_ffff)));
        for c in [&mut c, &mut d] {
            t.work(std::slice::from_mut(c), &mut rng, 20, 97);
            let bytes = calls(c, 6, 9000);
            let s = Stretch::new(c, Way::In, bytes);
            for (from, to) in
                [(0, 1000), (2000, 3000), (500, 2500), (2500, 9000), (9000, 70_000), (0, 70_000)]
            {
                s.put(&mut t, c, Way::In, from, to.min(60_000));
            }
            s.done(&mut t, c, Way::In);
            let answers = answers(c, 40);
            t.cut_anywhere(c, Way::Out, &answers, &mut rng, 13);
            t.close(c);
        }
        let counts = V4.check(&t.frames, Records::Reference);
        assert_eq!(counts.sum(|h| h.closed), 2);
    }
}

#[test]
fn keepalives_with_and_without_a_byte() {
    let mut t = Traffic::default();
    let mut c = t.open(&path(1), 700, 0xffff_fff0);
    let (mut with, mut without) = (0, 0);
    for round in 0..20 {
        for way in [Way::In, Way::Out] {
            if round % 3 == 0 {
                let bytes = if way == Way::In { calls(&mut c, 2, 20) } else { answers(&mut c, 20) };
                t.send(&mut c, way, &bytes);
            }
            let last = (if way == Way::In { c.client_seq } else { c.server_seq }).wrapping_sub(1);
            let payload = &[0][..round % 2];
            let keepalive = c.frame(way, last, ACK, payload);
            t.push(way, keepalive);
            *(if payload.is_empty() { &mut without } else { &mut with }) += 1;
            t.acknowledge(&mut c, if way == Way::In { Way::Out } else { Way::In });
        }
    }
    let counts = exact(&t);
    let host = &counts.hosts[&1];
    assert_eq!((host.rx_retransmitted + host.tx_retransmitted, without), (with, 20));
}

#[test]
fn rst_storms() {
    let (mut t, mut rng) = (Traffic::default(), Rng(23));
    let mut all = open_many(&mut t, 8, 32, &mut rng);
    t.work(&mut all, &mut rng, 60, MSS);
    for _ in 0..500 {
        let host = 1 + rng.below(HOSTS as usize + 2) as u32;
        match rng.below(4) {
            // Of connections there are, again and again, ...
            0 | 1 => {
                t.reset(&all[rng.below(all.len() / 2)], if rng.below(2) == 0 { Way::In } else { Way::Out })
            }
            // ... and of none.
            2 => {
                let c = Conn::new(&path(host), rng.next() as u16, rng.next() as u32, 0);
                t.reset(&c, Way::In);
            }
            _ => {
                let c = Conn::new(&path(host), rng.next() as u16, rng.next() as u32, 0);
                t.push(Way::Out, c.frame(Way::Out, 0, RST, &[]));
            }
        }
    }
    let counts = exact(&t);
    assert_eq!(counts.sum(|h| h.reset), 16);
    assert!(counts.hosts[&0].rx_packets > 0, "addresses of nobody count at host 0");
}

#[test]
fn half_open_connections() {
    let (mut t, mut rng) = (Traffic::default(), Rng(29));
    for port in 1..=200 {
        let host = 1 + (port % HOSTS as u16) as u32;
        let mut c = Conn::new(&path(host), port, rng.next() as u32, rng.next() as u32);
        // Unanswered, sent again, answered and left at that, or given up.
        for _ in 0..1 + port % 3 {
            t.push(Way::In, c.frame(Way::In, c.client_seq, SYN, &[]));
        }
        c.server_has = c.client_seq.wrapping_add(1);
        if port % 4 > 0 {
            t.push(Way::Out, c.frame(Way::Out, c.server_seq, SYN | ACK, &[]));
        }
        if port % 4 == 3 {
            c.client_seq = c.client_seq.wrapping_add(1);
            t.push(Way::In, c.frame(Way::In, c.client_seq, RST, &[]));
        }
    }
    let counts = exact(&t);
    assert_eq!((counts.sum(|h| h.opened), counts.sum(|h| h.reset)), (200, 50));
}

#[test]
fn a_port_used_again_is_another_connection() {
    let (mut t, mut rng) = (Traffic::default(), Rng(31));
    for round in 0..12 {
        let mut c = t.open(&path(1), 700, rng.next() as u32);
        t.work(std::slice::from_mut(&mut c), &mut rng, 5, MSS);
        match round % 3 {
            0 => t.close(&mut c),
            1 => t.reset(&c, Way::Out),
            // Forgotten by the client, which has lost power.
            _ => {}
        }
    }
    let counts = exact(&t);
    let host = &counts.hosts[&1];
    assert_eq!((host.opened, host.closed, host.reset), (12, 4, 4));
}

/// A capture that begins in the middle: segments count, and nothing else is made up.
#[test]
fn connections_that_were_there_before() {
    let (mut t, mut rng) = (Traffic::default(), Rng(37));
    let mut c = t.open(&path(1), 700, 1);
    t.work(std::slice::from_mut(&mut c), &mut rng, 20, MSS);
    t.close(&mut c);
    t.frames.drain(..3);
    let counts = V4.check(&t.frames, Records::Reference);
    let host = &counts.hosts[&1];
    assert!(host.rx_packets > 20 && host.tx_packets > 20);
    assert_eq!((host.opened, host.closed, host.calls.iter().sum::<u64>()), (0, 0, 0));
}

#[test]
fn records_of_many_fragments() {
    let (mut t, mut rng) = (Traffic::default(), Rng(41));
    let mut c = t.open(&path(1), 700, 1);
    for _ in 0..30 {
        let mut record = c.call(WRITE, 400).split_off(4);
        let mut bytes = vec![];
        // The first fragment holds the header at least.
        let mut len = 40 + rng.below(60);
        while !record.is_empty() {
            let rest = record.split_off(len.min(record.len()));
            bytes.extend(crate::frames::fragment(&record, rest.is_empty()));
            record = rest;
            len = 44 + rng.below(200);
        }
        t.cut(&mut c, Way::In, &bytes, &mut rng, 300);
        let answer = answers(&mut c, 0);
        t.send(&mut c, Way::Out, &answer);
    }
    let counts = exact(&t);
    assert_eq!(counts.hosts[&1].calls, [0, 0, 30, 0]);
}
