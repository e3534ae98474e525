//! A service with an IPv6 address, counted to the unit.

use super::cases::{Stretch, answers, calls};
use super::compare::{Counts, HOSTS, Records, SERVICE6, V4, V6, address, address6};
use super::odd::fragmented;
use super::traffic::{Conn, Extension, Path, Rng, Traffic, Way, ipv6};
use crate::bench::{Bench, PORT, SERVICE, XDP_DROP};
use crate::frames::{ACK, FIN, RST, SYN, WRITE};
use std::net::Ipv6Addr;

/// 20 bytes less than over IPv4.
const MSS: usize = 1428;

fn path(host: u32) -> Path {
    Path::new(address6(host), SERVICE6)
}

fn exact(t: &Traffic) -> Counts {
    V6.check(&t.frames, Records::Both)
}

fn extension(kind: u8, len: usize) -> Extension {
    Extension { kind, len }
}

#[test]
fn connections_and_clients() {
    for (hosts, connections) in [(1, 1), (1, 64), (HOSTS, HOSTS), (HOSTS, 64)] {
        let (mut t, mut rng) = (Traffic::default(), Rng(107));
        let mut all: Vec<Conn> = (0..connections)
            .map(|i| t.open(&path(1 + i % hosts), 700 + (i / hosts) as u16, rng.next() as u32))
            .collect();
        t.work(&mut all, &mut rng, 400, MSS);
        for (i, c) in all.iter_mut().enumerate() {
            match i % 3 {
                0 => t.close(c),
                1 => t.reset(c, if i % 2 == 0 { Way::In } else { Way::Out }),
                _ => {}
            }
        }
        let counts = exact(&t);
        assert_eq!(counts.sum(|h| h.opened), u64::from(connections));
        assert_eq!(counts.sum(|h| h.closed), u64::from(connections.div_ceil(3)));
        assert!(counts.sum(|h| h.calls.iter().sum()) >= 400);
        assert_eq!(counts.sum(|h| h.calls.iter().sum()), counts.sum(|h| h.replies.iter().sum()));
        assert_eq!(counts.hosts[&0].rx_packets + counts.foreign, 0);
    }
}

#[test]
fn tags_and_extension_headers() {
    use Extension as E;
    let (hop, to) = (extension(E::HOP_BY_HOP, 8), extension(E::DESTINATION, 8));
    let cases = [
        (vec![7], vec![]),
        (vec![7, 4095], vec![]),
        (vec![], vec![hop]),
        (vec![], vec![to]),
        (vec![9], vec![hop, to]),
        (vec![9, 10], vec![extension(E::HOP_BY_HOP, 264), extension(E::DESTINATION, 40)]),
        (vec![], vec![extension(E::ROUTING, 24)]),
        (vec![], vec![extension(E::AUTHENTICATION, 24)]),
        (vec![], vec![extension(E::FRAGMENT, 8)]),
        (vec![], vec![hop, to, extension(E::ROUTING, 8), extension(E::FRAGMENT, 8), to]),
        // As many as the programs follow.
        (vec![3], vec![hop, to, to, to, to, to, to, to]),
    ];
    for (tags, extensions) in cases {
        let what = format!("{tags:?} {extensions:?}");
        let (mut t, mut rng) = (Traffic::default(), Rng(111));
        let path = Path { tags, extensions, ..path(3) };
        let mut all = vec![t.open(&path, 700, 1), t.open(&path, 701, 2)];
        t.work(&mut all, &mut rng, 60, 1000);
        t.close(&mut all[0]);
        t.reset(&all[1], Way::In);
        let counts = exact(&t);
        let host = &counts.hosts[&3];
        assert_eq!((host.opened, host.closed, host.reset), (2, 1, 1), "{what}");
        assert!(host.calls.iter().sum::<u64>() >= 60 && host.calls == host.replies, "{what}");
    }
}

#[test]
fn jumbo_frames_and_frames_of_many_buffers() {
    for extensions in [vec![], vec![extension(Extension::DESTINATION, 16)]] {
        let mut t = Traffic::default();
        let mut c = t.open(&Path { extensions, ..path(1) }, 700, 99);
        // 8928: an MTU of 9000.
        for (i, mss) in [8928, 8928, 3500, 4096, 30_000, 65_000].into_iter().enumerate() {
            let records: Vec<u8> = (0..3).flat_map(|n| c.call(WRITE, 30_000 + 4 * n + i)).collect();
            for part in records.chunks(mss) {
                t.send(&mut c, Way::In, part);
            }
            while !c.waiting.is_empty() {
                let answer = c.reply(0, 0);
                t.send(&mut c, Way::Out, &answer);
            }
        }
        let long = t.frames.iter().filter(|f| f.bytes.len() > 4096).count();
        assert!(long > 20, "{long}");
        assert_eq!(exact(&t).hosts[&1].calls, [0, 0, 18, 0]);
    }
}

/// 4 KB of extension headers: TCP's own lies behind the first buffer of a frame.
#[test]
fn headers_behind_the_first_buffer() {
    let mut t = Traffic::default();
    let long = vec![extension(Extension::HOP_BY_HOP, 2048), extension(Extension::DESTINATION, 2048)];
    let (short, long) = (path(1), Path { extensions: long, ..path(1) });
    let mut c = t.open(&short, 700, 99);
    for data in [0, 100, 4000, 20_000] {
        let call = c.call(WRITE, data);
        c.path = long.clone();
        for part in call.chunks(1 + call.len() / 3) {
            t.send(&mut c, Way::In, part);
        }
        c.path = short.clone();
        let answer = c.reply(0, 0);
        t.send(&mut c, Way::Out, &answer);
    }
    c.path = long;
    t.reset(&c, Way::In);
    let counts = exact(&t);
    let host = &counts.hosts[&1];
    assert_eq!((host.calls, host.replies, host.reset), ([0, 0, 4, 0], [0, 0, 4, 0], 1));
}

#[test]
fn super_packets_count_as_the_segments_they_are_cut_to() {
    for extensions in [vec![], vec![extension(Extension::DESTINATION, 24)]] {
        let mut t = Traffic::default();
        let mut c = t.open(&Path { tags: vec![5], extensions, ..path(2) }, 700, 3);
        for data in [3000, 2000, 700, 1] {
            let call = c.call(6, 0);
            t.send(&mut c, Way::In, &call);
            let answer = c.reply(0, data);
            t.send_super(&mut c, &answer, 536);
        }
        exact(&t);
    }
}

#[test]
fn segments_sent_again_cut_otherwise() {
    let (mut t, mut rng) = (Traffic::default(), Rng(117));
    let mut c = t.open(&Path { tags: vec![12], ..path(1) }, 700, 0xffff_f000);
    for round in 0..40 {
        for way in [Way::In, Way::Out] {
            let bytes = if way == Way::In { calls(&mut c, 6, 500) } else { answers(&mut c, 400) };
            let s = Stretch::new(&mut c, way, bytes);
            let mut sent = 0;
            while sent < s.bytes.len() {
                let from = if rng.below(2) == 0 { sent } else { rng.below(sent + 1) };
                let to = (from + 1 + rng.below(700)).min(s.bytes.len());
                s.put(&mut t, &c, way, from, to);
                sent = sent.max(to);
            }
            s.done(&mut t, &mut c, way);
        }
        assert!(c.waiting.is_empty(), "round {round}");
    }
    let counts = V6.check(&t.frames, Records::Reference);
    let host = &counts.hosts[&1];
    assert!(host.rx_retransmitted > 40 && host.tx_retransmitted > 20);
    assert_eq!(host.calls.iter().sum::<u64>(), 240);
}

/// Segments are lost before us, and come again behind later ones.
#[test]
fn segments_lost_and_in_another_order() {
    for (seed, repeats) in (0..4).map(|s| (s, s % 2 == 1)) {
        let (mut t, mut rng) = (Traffic::default(), Rng(seed));
        let extensions = vec![extension(Extension::HOP_BY_HOP, 16)];
        let mut c = t.open(&Path { extensions, ..path(1) }, 700, 0x7fff_f000);
        for _ in 0..10 {
            let bytes = calls(&mut c, 8, 600);
            let s = Stretch::new(&mut c, Way::In, bytes);
            let all = (0..s.bytes.len()).step_by(300).map(|from| (from, from + 300));
            let (lost, mut cuts): (Vec<_>, Vec<_>) = all.partition(|_| rng.below(4) == 0);
            if repeats {
                cuts.extend((0..4).map(|_| rng.below(s.bytes.len())).map(|from| (from, from + 450)));
            }
            for (from, to) in cuts.into_iter().chain(lost) {
                s.put(&mut t, &c, Way::In, from, to);
            }
            s.done(&mut t, &mut c, Way::In);
            let answers = answers(&mut c, 300);
            t.cut_anywhere(&mut c, Way::Out, &answers, &mut rng, MSS);
        }
        let counts = V6.check(&t.frames, Records::Reference);
        assert_eq!(counts.hosts[&1].rx_retransmitted > 0, repeats);
        assert_eq!(counts.hosts[&1].calls.iter().sum::<u64>(), 80);
    }
}

#[test]
fn handshakes_and_farewells_sent_again() {
    let mut t = Traffic::default();
    let mut c = Conn::new(&path(1), 700, 0xffff_fffe, 0xffff_ffff);
    let syn = c.frame(Way::In, c.client_seq, SYN, &[]);
    c.client_seq = c.client_seq.wrapping_add(1);
    c.server_has = c.client_seq;
    let syn_ack = c.frame(Way::Out, c.server_seq, SYN | ACK, &[]);
    c.server_seq = c.server_seq.wrapping_add(1);
    c.client_has = c.server_seq;
    for _ in 0..3 {
        t.push(Way::In, syn.clone());
        t.push(Way::Out, syn_ack.clone());
    }
    t.acknowledge(&mut c, Way::In);
    let fin = Traffic::next(&mut c, Way::In, FIN | ACK, &[]);
    for _ in 0..3 {
        t.push(Way::In, fin.clone());
    }
    let counts = exact(&t);
    let host = &counts.hosts[&1];
    assert_eq!((host.opened, host.closed), (1, 1));
    assert_eq!((host.rx_retransmitted, host.tx_retransmitted), (4, 2));
}

#[test]
fn fragments_to_and_from_the_service() {
    let hop = extension(Extension::HOP_BY_HOP, 8);
    let to = extension(Extension::DESTINATION, 16);
    for (tags, extensions) in
        [(vec![], vec![]), (vec![4], vec![]), (vec![], vec![hop]), (vec![4], vec![hop, to])]
    {
        for way in [Way::In, Way::Out] {
            let t = fragmented(&Path { tags: tags.clone(), extensions: extensions.clone(), ..path(4) }, way);
            let records = if way == Way::In { Records::Both } else { Records::Reference };
            let counts = V6.check(&t.frames, records);
            let host = &counts.hosts[&4];
            let packets = if way == Way::In { host.rx_packets } else { host.tx_packets };
            assert!(packets > 300, "{packets}");
            assert_eq!((host.calls, host.replies), ([0, 0, 4, 0], [0, 0, 4, 0]));
            assert_eq!(counts.foreign, if way == Way::In { 4 } else { 0 });
        }
    }
}

#[test]
fn headers_cut_short() {
    let mut t = Traffic::default();
    let c = t.open(&path(4), 700, 5);
    let ends = (address6(4).octets(), SERVICE6.octets());
    let whole = c.tcp(Way::In, c.client_seq, ACK, &[]);
    for len in 0..20 {
        t.push(Way::In, ipv6(ends.0, ends.1, 6, &whole[..len], &[]));
    }
    // A TCP header of 60 bytes in 40.
    let mut long = c.tcp(Way::In, c.client_seq, ACK, &[0; 20]);
    long[12] = 0xf0;
    t.push(Way::In, ipv6(ends.0, ends.1, 6, &long, &[]));
    let counts = exact(&t);
    assert_eq!((counts.hosts[&4].rx_packets, counts.foreign), (2 + 21, 0));
}

/// Everything that is near the service and not it.
#[test]
fn what_is_foreign() {
    let (mut t, mut rng) = (Traffic::default(), Rng(143));
    let mut c = t.open(&path(1), 700, 1);
    t.work(std::slice::from_mut(&mut c), &mut rng, 20, MSS);
    let known = t.frames.iter().filter(|f| f.way == Way::In).count() as u64;
    // The same client and ports over IPv4; the service's neighbour; other protocols; another port.
    let mut other = Traffic::default();
    let neighbour = Ipv6Addr::from(u128::from(SERVICE6) ^ 1);
    for path in [Path::new(address(1), SERVICE), Path::new(address6(1), neighbour)] {
        let mut c = other.open(&path, 700, 1);
        other.work(std::slice::from_mut(&mut c), &mut rng, 20, MSS);
    }
    let ends = (address6(1).octets(), SERVICE6.octets());
    let tcp = c.tcp(Way::In, 7, ACK, &[]);
    for protocol in [58, 50, 59, 132] {
        other.push(Way::In, ipv6(ends.0, ends.1, protocol, &tcp, &[]));
    }
    let mut elsewhere = tcp;
    elsewhere[2..4].copy_from_slice(&111_u16.to_be_bytes());
    other.push(Way::In, ipv6(ends.0, ends.1, 6, &elsewhere, &[]));
    let foreign = other.frames.iter().filter(|f| f.way == Way::In).count() as u64;
    t.frames.extend(other.frames);
    let counts = exact(&t);
    assert_eq!((counts.sum(|h| h.rx_packets), counts.foreign), (known, foreign));
    // And IPv6 is foreign, all of it, where the service has an IPv4 address.
    let counts = V4.check(&t.frames, Records::Both);
    let six = t.frames.iter().filter(|f| f.way == Way::In && f.bytes[12..14] == [0x86, 0xdd]).count();
    assert_eq!(counts.foreign, six as u64);
    assert!(counts.hosts[&1].rx_packets > 20);
}

#[test]
fn noise_behind_valid_headers_and_strangers() {
    for seed in 0..3 {
        let (mut t, mut rng) = (Traffic::default(), Rng(seed));
        let mut all = [t.open(&path(1), 700, rng.next() as u32), t.open(&path(200), 700, rng.next() as u32)];
        for i in 0..200 {
            let way = if rng.below(2) == 0 { Way::In } else { Way::Out };
            let len = 1 + rng.below(MSS);
            let noise = rng.bytes(len);
            t.send(&mut all[i % 2], way, &noise);
            let c = Conn::new(&path(100 + rng.below(50) as u32), rng.next() as u16, rng.next() as u32, 0);
            t.push(Way::In, c.frame(Way::In, c.client_seq, [SYN, RST, ACK][i % 3], &[]));
        }
        t.close(&mut all[0]);
        let counts = V6.check(&t.frames, Records::Reference);
        assert_eq!(counts.sum(|h| h.calls.iter().sum::<u64>() + h.replies.iter().sum::<u64>()), 0);
        assert!(counts.hosts[&0].rx_packets > 200);
    }
}

/// What follows a fragment header may be another extension header: only the first fragment says that TCP comes at last,
/// and without that one none is put together.
#[test]
fn fragments_of_packets_with_inner_extension_headers() {
    let to = extension(Extension::DESTINATION, 16);
    for inner in [vec![to], vec![to, extension(Extension::ROUTING, 8)]] {
        let t = fragmented(&Path { inner, ..path(4) }, Way::In);
        let counts = V6.check(&t.frames, Records::Reference);
        assert_eq!(counts.hosts[&4].calls, [0, 0, 4, 0]);
    }
}

/// Whatever stands before TCP: what the server's kernel would take gets past no fence.
#[test]
fn no_chain_of_extension_headers_gets_past_a_fence() {
    let bench = Bench::with(|settings| settings.service = (SERVICE6, PORT).into());
    let to = extension(Extension::DESTINATION, 8);
    let hop = extension(Extension::HOP_BY_HOP, 8);
    let mut past = vec![];
    for count in 0..16 {
        let path = Path { extensions: vec![to; count], ..path(1) };
        let c = Conn::new(&path, 700, 1, 1);
        if bench.rx(&c.frame(Way::In, 1, SYN, &[])) != XDP_DROP {
            past.push(format!("a SYN behind {count} headers"));
        }
        let path = Path { extensions: vec![hop], inner: vec![to; count], ..path };
        let fragments = path.fragments(Way::In, &c.tcp(Way::In, 1, SYN, &[7; 64]), 8 * (count + 3));
        if bench.rx(&fragments[0]) != XDP_DROP {
            past.push(format!("a first fragment with TCP behind {count} headers"));
        }
    }
    assert!(past.is_empty(), "{past:#?}");
}
