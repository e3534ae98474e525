//! Packets, bytes, connections, by client and by network; and everything that is not ours passes uncounted.

use crate::bench::*;
use crate::frames::*;
use reroute_common::table::{drop, mode};
use reroute_core::ids::{Epoch, Network};

#[test]
fn one_connection_is_counted_exactly() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    let write = c.send(&call(1, WRITE, 100));
    let read = c.send(&call(2, READ, 16));
    let answer = c.answer(&reply(1, 8));
    for frame in [&write, &read] {
        assert_eq!(bench.rx(frame), XDP_PASS);
    }
    assert_eq!(bench.tx(&answer), TC_NEXT);
    let client = bench.client(HOST);
    // SYN, ACK and two calls; SYN+ACK and a reply.
    assert_eq!((client.rx_packets, client.tx_packets), (4, 2));
    assert_eq!(client.rx_bytes, (54 + 54 + write.len() + read.len()) as u64);
    assert_eq!(client.tx_bytes, (54 + answer.len()) as u64);
    assert_eq!(client.calls, [0, 1, 1, 0]);
    assert_eq!(client.replies, [0, 0, 1, 0]);
    assert_eq!(client.latency[2].iter().sum::<u64>(), 1);
    assert_eq!((client.opened, client.closed, client.reset), (1, 0, 0));
    assert_eq!((client.in_progress, client.orphans), (1, 0));

    // The client says FIN; its call may still be answered.
    assert_eq!(bench.rx(&c.up(c.client_seq, FIN | ACK, &[]).frame()), XDP_PASS);
    assert_eq!(bench.client(HOST).in_progress, 1);
    bench.tx(&c.answer(&reply(2, 8)));
    bench.tx(&c.down(c.server_seq, FIN | ACK, &[]).frame());
    let client = bench.client(HOST);
    assert_eq!((client.closed, client.reset), (1, 0));
    assert_eq!((client.in_progress, client.orphans), (0, 0));
}

#[test]
fn a_reset_leaves_its_calls_as_orphans() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&[call(1, WRITE, 10), call(2, WRITE, 10)].concat()));
    assert_eq!(bench.counts().in_progress, 2);
    bench.rx(&c.up(c.client_seq, RST, &[]).frame());
    let counts = bench.counts();
    assert_eq!((counts.in_progress, counts.orphans), (0, 2));
    assert_eq!(bench.client(HOST).reset, 1);
    // Stale segments of it change nothing: no socket takes them.
    bench.rx(&c.send(&call(3, WRITE, 10)));
    assert_eq!(bench.counts().orphans, 2);
    // The same port again is a new connection.
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&call(4, WRITE, 10)));
    assert_eq!(bench.counts().in_progress, 1);
    assert_eq!(bench.client(HOST).opened, 2);
}

#[test]
fn retransmissions_are_counted_and_followed_once() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    let again = c.send(&call(1, WRITE, 10));
    for _ in 0..3 {
        bench.rx(&again);
    }
    let answer = c.answer(&reply(1, 0));
    bench.tx(&answer);
    bench.tx(&answer);
    let client = bench.client(HOST);
    assert_eq!((client.rx_retransmitted, client.tx_retransmitted), (2, 1));
    assert_eq!((client.calls[2], client.replies[2]), (1, 1));
    assert_eq!((client.in_progress, client.orphans), (0, 0));
    // Half old, half new: the new half is followed.
    let both = [call(2, WRITE, 10), call(3, WRITE, 10)].concat();
    let first = call(2, WRITE, 10).len();
    let seq = c.client_seq;
    bench.rx(&c.up(seq, ACK, &both[..first]).frame());
    bench.rx(&c.up(seq, ACK, &both).frame());
    assert_eq!(bench.counts().in_progress, 2);
    assert_eq!(bench.client(HOST).rx_retransmitted, 3);
}

#[test]
fn tags_options_and_padding_are_seen_through() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    for (xid, tags, options) in [(1, vec![10], 0), (2, vec![10, 20], 0), (3, vec![], 40), (4, vec![5, 6], 12)]
    {
        let payload = call(xid, WRITE, 3);
        let tcp = Tcp { tags, ip_options: options, ..c.up(c.client_seq, ACK, &payload) };
        c.client_seq = c.client_seq.wrapping_add(payload.len() as u32);
        let mut frame = tcp.frame();
        frame.extend([0xee; 9]);
        assert_eq!(bench.rx(&frame), XDP_PASS);
        assert_eq!(bench.counts().in_progress, xid);
    }
    assert_eq!(bench.client(HOST).streams_lost, 0);
}

#[test]
fn fragments_and_cut_headers_to_the_service_are_dropped_and_foreign_ones_pass() {
    let bench = Bench::admitted();
    let c = Connection::new(700);
    let whole = c.up(1, ACK, &call(1, WRITE, 10));
    let first = Tcp { fragment: 0x2000, ..whole.clone() };
    let later = Tcp { fragment: 0x0003, ..whole.clone() };
    assert_eq!(bench.rx(&first.frame()), XDP_DROP);
    assert_eq!(bench.rx(&later.frame()), XDP_DROP);
    let cut = [&[3, 0], &PORT.to_be_bytes()[..], &[0; 8]].concat();
    assert_eq!(bench.rx(&ipv4(STORAGE_ADDRESS, SERVICE, 6, &cut, &[], 0, 0)), XDP_DROP);
    assert_eq!(
        bench.rx(&ipv4(STORAGE_ADDRESS, SERVICE, 6, &cut[..3], &[], 0, 0)),
        XDP_DROP,
        "no port to read"
    );
    let mut data_offset = whole.frame();
    data_offset[14 + 20 + 12] = 0xf0;
    data_offset[16..18].copy_from_slice(&60_u16.to_be_bytes());
    assert_eq!(bench.rx(&data_offset), XDP_DROP, "a TCP header of 60 bytes in 40");
    assert_eq!(bench.client(HOST).drops[drop::UNPARSABLE], 5);

    let before = bench.client(HOST);
    let elsewhere = Tcp { destination: [10, 10, 85, 1], fragment: 0x2000, ..whole.clone() };
    assert_eq!(bench.rx(&elsewhere.frame()), XDP_PASS);
    let other_port = Tcp { destination_port: 111, ..whole };
    assert_eq!(bench.rx(&other_port.frame()), XDP_PASS);
    assert_eq!(bench.rx(&[0xff; 60]), XDP_PASS);
    assert_eq!(bench.rx(&udp(STORAGE_ADDRESS, SERVICE, 111, b"datagram")), XDP_PASS);
    assert_eq!(bench.rx(&udp(SERVICE, STORAGE_ADDRESS, 2049, b"datagram")), XDP_PASS);
    assert_eq!(bench.client(HOST), before, "nothing of it is counted as the client's");
}

/// NFSv3 may be spoken by datagrams, too: calls that no fence would know of.
#[test]
fn no_datagram_gets_past_the_fence() {
    let mut bench = Bench::admitted();
    let calls = &call_body(1, WRITE, 100);
    let datagram = udp(STORAGE_ADDRESS, SERVICE, PORT, calls);
    let first = ipv4(STORAGE_ADDRESS, SERVICE, 17, &datagram[34..], &[], 0, 0x2000);
    let later = ipv4(STORAGE_ADDRESS, SERVICE, 17, calls, &[], 0, 0x0003);
    let tagged = ipv4(STORAGE_ADDRESS, SERVICE, 17, &datagram[34..], &[7], 4, 0);
    for frame in [&datagram, &first, &later, &tagged] {
        assert_eq!(bench.rx(frame), XDP_DROP, "also of the admitted: it would not be followed");
    }
    assert_eq!(bench.client(HOST).drops[drop::UNPARSABLE], 4);
    bench.sensor.fence(HOST, Epoch(1)).unwrap();
    assert_eq!(bench.rx(&datagram), XDP_DROP);
    bench.sensor.set_mode(mode::SHADOW).unwrap();
    assert_eq!(bench.rx(&datagram), XDP_PASS);
    assert_eq!(bench.client(HOST).would_drop, 1);
    bench.sensor.set_mode(mode::BYPASS).unwrap();
    assert_eq!(bench.rx(&datagram), XDP_PASS);
}

/// By TC, GRO has put segments together before: they count as they were on the wire.
#[test]
fn what_gro_has_merged_counts_by_the_segment() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    let before = bench.client(HOST);
    let frame = c.send(&call(1, WRITE, 3000));
    let (headers, payload) = (54, frame.len() - 54);
    let segments = payload.div_ceil(1000);
    assert_eq!(bench.rx_super(&frame, segments, 1000), TC_NEXT);
    let after = bench.client(HOST);
    assert_eq!(after.rx_packets - before.rx_packets, segments as u64);
    assert_eq!(after.rx_bytes - before.rx_bytes, (payload + segments * headers) as u64);
    assert_eq!((after.calls[2], after.rx_retransmitted), (1, 0));
}

#[test]
fn a_client_is_its_address_on_its_network() {
    let mut bench = Bench::admitted();
    let private = Connection { client: PRIVATE_ADDRESS, ..Connection::new(700) };
    let syn = private.up(1, SYN, &[]).frame();
    assert_eq!(bench.rx(&syn), XDP_DROP, "33.1 on the storage network is nobody");
    bench.by(Network::Private);
    assert_eq!(bench.rx(&syn), XDP_PASS);
    let storage = Connection::new(700).up(1, SYN, &[]).frame();
    assert_eq!(bench.rx(&storage), XDP_DROP, "a storage address on the private network is nobody");
    let nobody = &bench.sensor.clients().unwrap()[0];
    assert_eq!((nobody.host, nobody.drops[drop::UNREGISTERED], nobody.rx_packets), (0, 2, 2));
    assert_eq!(bench.client(HOST).opened, 1);
}

#[test]
fn a_full_set_costs_no_packet_and_never_looks_idle() {
    let bench = Bench::admitted();
    bench.sensor.admit(MUTE, Epoch(1)).unwrap();
    // Far more connections than lines: sets overflow.
    let mut untracked = 0;
    for port in 1..40_000_u16 {
        Connection::open(port, &bench);
        untracked = bench.server().untracked_flows;
        if untracked > 0 {
            break;
        }
    }
    assert!(untracked > 0);
    assert_eq!(bench.client(HOST).drops.iter().sum::<u64>(), 0);
}
