//! Frames that are hard to read, or not meant to be: fragments, noise, what is sent again at the ends.

use super::compare::{Records, V4, address};
use super::nfs;
use super::traffic::{Conn, Frame, Path, Rng, Traffic, Way};
use crate::bench::{PORT, SERVICE};
use crate::frames::{ACK, FIN, SYN, WRITE, ipv4, udp};
use std::net::IpAddr;

fn path(host: u32) -> Path {
    Path::new(address(host), SERVICE)
}

/// Frames of one packet in fragments, between whole ones.
pub fn fragmented(path: &Path, way: Way) -> Traffic {
    let mut t = Traffic::default();
    let mut c = t.open(path, 700, 5);
    for size in [8, 24, 552, 1480] {
        let call = c.call(WRITE, 1000);
        t.send(&mut c, Way::In, &call);
        let answer = c.reply(0, 0);
        t.send(&mut c, Way::Out, &answer);
        let (seq, bytes) = (c.client_seq.wrapping_add(100_000), nfs::call(1, WRITE, 3000));
        for fragment in path.fragments(way, &c.tcp(way, seq, ACK, &bytes), size) {
            t.push(way, fragment);
        }
    }
    // Somebody else's.
    let other = Path {
        service: if path.service.is_ipv4() { [10, 9, 9, 9].into() } else { IpAddr::from([9; 16]) },
        ..path.clone()
    };
    for fragment in other.fragments(way, &c.tcp(way, 0, ACK, &[1; 600]), 200) {
        t.push(way, fragment);
    }
    t
}

#[test]
fn fragments_to_the_service() {
    let t = fragmented(&path(4), Way::In);
    let counts = V4.check(&t.frames, Records::Both);
    assert!(counts.hosts[&4].rx_packets > 300);
    assert_eq!((counts.hosts[&4].calls, counts.foreign), ([0, 0, 4, 0], 4));
}

#[test]
fn fragments_from_the_service() {
    let t = fragmented(&path(4), Way::Out);
    let counts = V4.check(&t.frames, Records::Reference);
    assert!(counts.hosts[&4].tx_packets > 300);
}

#[test]
fn headers_cut_short() {
    let mut t = Traffic::default();
    let c = t.open(&path(4), 700, 5);
    let whole = c.tcp(Way::In, c.client_seq, ACK, &[]);
    for len in 0..20 {
        t.push(Way::In, ipv4(address(4), SERVICE, 6, &whole[..len], &[], 0, 0));
    }
    // A TCP header of 60 bytes in 40.
    let mut long = c.tcp(Way::In, c.client_seq, ACK, &[0; 20]);
    long[12] = 0xf0;
    t.push(Way::In, ipv4(address(4), SERVICE, 6, &long, &[], 0, 0));
    V4.check(&t.frames, Records::Both);
}

#[test]
fn noise_behind_valid_headers() {
    for seed in 0..3 {
        let (mut t, mut rng) = (Traffic::default(), Rng(seed));
        let mut all = [t.open(&path(1), 700, rng.next() as u32), t.open(&path(2), 700, rng.next() as u32)];
        for i in 0..200 {
            let way = if rng.below(2) == 0 { Way::In } else { Way::Out };
            let len = 1 + rng.below(1448);
            let noise = rng.bytes(len);
            let c = &mut all[i % 2];
            t.send(c, way, &noise);
            if rng.below(5) == 0 {
                let frame = t.frames.last().cloned().unwrap();
                t.push(frame.way, frame.bytes);
            }
        }
        t.close(&mut all[0]);
        let counts = V4.check(&t.frames, Records::Reference);
        assert_eq!(counts.sum(|h| h.calls.iter().sum::<u64>() + h.replies.iter().sum::<u64>()), 0);
        assert!(counts.hosts[&1].rx_retransmitted > 0);
    }
}

#[test]
fn pure_noise() {
    let (mut t, mut rng) = (Traffic::default(), Rng(47));
    for i in 0..2000 {
        let len = if i % 10 == 0 { 3000 } else { 300 };
        // What leaves has an IP header, whatever is in it; test runs of egress insist.
        let len = if i % 3 == 0 { 54 } else { 14 } + rng.below(len);
        let mut bytes = rng.bytes(len);
        // Half of them say that they are IP.
        match i % 4 {
            0 => bytes[12..14].copy_from_slice(&[8, 0]),
            1 => bytes[12..14].copy_from_slice(&[0x86, 0xdd]),
            _ => {}
        }
        t.push(if i % 3 == 0 { Way::Out } else { Way::In }, bytes);
    }
    t.push(Way::In, udp(address(1), SERVICE, PORT + 1, b"a datagram"));
    let counts = V4.check(&t.frames, Records::Both);
    assert_eq!(counts.sum(|h| h.rx_packets + h.tx_packets), 0);
    assert!(counts.foreign > 1000);
}

/// Whether a frame of IPv4 without tags is TCP to the service's port, or TCP to the service whose port cannot be read.
fn is_counted(b: &[u8]) -> bool {
    if b[12..14] != [8, 0] || b[23] != 6 || b[30..34] != SERVICE {
        return false;
    }
    let word = |at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
    let header = usize::from(b[14] & 15) * 4;
    let tcp = 14 + header;
    b[14] >> 4 != 4 || header < 20 || word(20) & 0x3fff != 0 || tcp + 4 > b.len() || word(tcp + 2) == PORT
}

/// Good frames with some bits of their headers turned: whatever they are then, none is dropped or counted twice, and
/// those that are left as they were count as ever.
#[test]
fn bits_turned() {
    for seed in 0..6 {
        let (mut good, mut rng) = (Traffic::default(), Rng(seed));
        let mut all = vec![good.open(&path(1), 700, 9), good.open(&path(2), 701, 9)];
        good.work(&mut all, &mut rng, 60, 1448);
        let mut turned = vec![];
        for frame in good.frames.iter().filter(|f| f.way == Way::In) {
            let mut bytes = frame.bytes.clone();
            for _ in 0..1 + rng.below(4) {
                let bit = rng.below(8 * 54.min(bytes.len()));
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            turned.push(Frame { bytes, ..frame.clone() });
        }
        let counted = turned.iter().filter(|f| is_counted(&f.bytes)).count() as u64;
        let counts = V4.replay(&turned);
        assert_eq!(counts.values().map(|h| h.rx_packets).sum::<u64>(), counted, "seed {seed}");
        assert_eq!(counts.values().map(|h| h.dropped).sum::<u64>(), 0);
        // What TCP makes of the turned ones is not asked; the good ones on other connections are exact among them.
        let mut others = Traffic::default();
        let mut c = others.open(&path(16), 900, 77);
        others.work(std::slice::from_mut(&mut c), &mut rng, turned.len() / 2, 1448);
        let alone = V4.expected(&others.frames, Records::Both);
        let mixed: Vec<Frame> = others
            .frames
            .iter()
            .cloned()
            .enumerate()
            .flat_map(|(i, f)| [Some(f), turned.get(i).cloned()])
            .flatten()
            .collect();
        assert!(V4.replay(&mixed)[&16] == alone.hosts[&16], "seed {seed}");
    }
}

/// SYN, SYN+ACK and FIN have sequence numbers of their own: sent again, they are retransmissions.
#[test]
fn handshakes_sent_again() {
    let mut t = Traffic::default();
    let mut c = Conn::new(&path(1), 700, 0xffff_fffe, 0xffff_ffff);
    let syn = c.frame(Way::In, c.client_seq, SYN, &[]);
    c.client_seq = c.client_seq.wrapping_add(1);
    c.server_has = c.client_seq;
    let syn_ack = c.frame(Way::Out, c.server_seq, SYN | ACK, &[]);
    for _ in 0..3 {
        t.push(Way::In, syn.clone());
        t.push(Way::Out, syn_ack.clone());
    }
    t.push(Way::Out, syn_ack);
    let counts = V4.check(&t.frames, Records::Both);
    let host = &counts.hosts[&1];
    assert_eq!((host.opened, host.rx_retransmitted, host.tx_retransmitted), (1, 2, 3));
}

#[test]
fn farewells_sent_again() {
    let mut t = Traffic::default();
    let mut c = t.open(&path(1), 700, 5);
    let fin = Traffic::next(&mut c, Way::In, FIN | ACK, &[]);
    for _ in 0..3 {
        t.push(Way::In, fin.clone());
    }
    c.server_has = c.client_seq;
    let fin = Traffic::next(&mut c, Way::Out, FIN | ACK, &[]);
    for _ in 0..4 {
        t.push(Way::Out, fin.clone());
    }
    let counts = V4.check(&t.frames, Records::Both);
    let host = &counts.hosts[&1];
    assert_eq!((host.closed, host.rx_retransmitted, host.tx_retransmitted), (1, 2, 3));
}

/// The client's last bytes and its FIN are lost behind us, or the ACK of them is: they come again.
#[test]
fn bytes_sent_again_after_the_client_has_closed() {
    let mut t = Traffic::default();
    let mut c = t.open(&path(1), 700, 5);
    let call = c.call(WRITE, 100);
    let data = Traffic::next(&mut c, Way::In, ACK, &call);
    t.push(Way::In, data.clone());
    c.server_has = c.client_seq;
    let answer = c.reply(0, 0);
    t.send(&mut c, Way::Out, &answer);
    let fin = Traffic::next(&mut c, Way::In, FIN | ACK, &[]);
    t.push(Way::In, fin);
    t.push(Way::In, data.clone());
    t.push(Way::In, data);
    let counts = V4.check(&t.frames, Records::Reference);
    assert_eq!(counts.hosts[&1].rx_retransmitted, 2);
}

/// A connection ends once, whichever comes first.
#[test]
fn a_fin_with_calls_waiting_and_then_an_rst() {
    for way in [Way::In, Way::Out] {
        let mut t = Traffic::default();
        let mut c = t.open(&path(1), 700, 5);
        let call = c.call(WRITE, 100);
        t.send(&mut c, Way::In, &call);
        let fin = Traffic::next(&mut c, Way::In, FIN | ACK, &[]);
        t.push(Way::In, fin);
        c.server_has = c.client_seq;
        t.acknowledge(&mut c, Way::Out);
        t.reset(&c, way);
        let counts = V4.check(&t.frames, Records::Both);
        assert_eq!((counts.hosts[&1].closed, counts.hosts[&1].reset), (1, 0));
    }
}

/// What leaves after a reset belongs to no connection.
#[test]
fn bytes_sent_again_after_a_reset() {
    for end in [Way::In, Way::Out] {
        let mut t = Traffic::default();
        let mut c = t.open(&path(1), 700, 5);
        let call = c.call(WRITE, 100);
        t.send(&mut c, Way::In, &call);
        let answer = c.reply(0, 0);
        t.send(&mut c, Way::Out, &answer);
        let sent: Vec<Frame> = t.frames[3..].to_vec();
        t.reset(&c, end);
        for frame in sent {
            t.push(frame.way, frame.bytes);
        }
        let counts = V4.check(&t.frames, Records::Reference);
        assert_eq!((counts.hosts[&1].reset, counts.hosts[&1].rx_retransmitted), (1, 0));
    }
}

/// A segment that fills a hole and goes on over bytes that came early.
#[test]
fn a_hole_filled_beyond_its_end() {
    let mut t = Traffic::default();
    let mut c = t.open(&path(1), 700, 5);
    let bytes = c.call(WRITE, 800);
    let part = |from: usize, to: usize| {
        c.frame(Way::In, c.client_seq.wrapping_add(from as u32), ACK, &bytes[from..to])
    };
    for (from, to) in [(0, 100), (200, 300), (100, bytes.len())] {
        t.push(Way::In, part(from, to));
    }
    let counts = V4.check(&t.frames, Records::Reference);
    assert_eq!((counts.hosts[&1].calls[2], counts.hosts[&1].rx_retransmitted), (1, 1));
}

/// An early segment around another, and then one inside the first, behind the second.
#[test]
fn an_early_segment_inside_another() {
    let mut t = Traffic::default();
    let mut c = t.open(&path(1), 700, 5);
    let bytes = c.call(WRITE, 800);
    let part = |from: usize, to: usize| {
        c.frame(Way::In, c.client_seq.wrapping_add(from as u32), ACK, &bytes[from..to])
    };
    for (from, to) in [(300, 400), (200, 700), (500, 600), (0, 200), (700, bytes.len())] {
        t.push(Way::In, part(from, to));
    }
    let counts = V4.check(&t.frames, Records::Reference);
    assert_eq!((counts.hosts[&1].calls[2], counts.hosts[&1].rx_retransmitted), (1, 2));
}

/// A SYN that brings its first bytes (RFC 7413) and comes again is one segment.
#[test]
fn a_syn_with_bytes_sent_again() {
    let mut t = Traffic::default();
    let mut c = Conn::new(&path(1), 700, 77, 99);
    let call = c.call(WRITE, 100);
    let syn = c.frame(Way::In, c.client_seq, SYN, &call);
    t.push(Way::In, syn.clone());
    t.push(Way::In, syn);
    let counts = V4.check(&t.frames, Records::Reference);
    assert_eq!((counts.hosts[&1].opened, counts.hosts[&1].rx_retransmitted), (1, 1));
    assert_eq!(counts.hosts[&1].calls, [0, 0, 1, 0]);
}
