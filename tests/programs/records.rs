//! Record marks followed through any segmentation, and what is said when they cannot be.

use crate::bench::*;
use crate::frames::*;
use reroute_core::ids::Incarnation;
use std::net::{TcpListener, TcpStream};

#[test]
fn a_record_split_at_every_byte_is_one_call() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    let record = call(7, WRITE, 20);
    let mut xid = 0;
    for cut in 1..record.len() {
        xid += 1;
        let record = call(xid, WRITE, 20);
        bench.rx(&c.send(&record[..cut]));
        assert_eq!(bench.counts().in_progress, 0, "cut at {cut}: a half call is no call");
        bench.rx(&c.send(&record[cut..]));
        assert_eq!(bench.counts().in_progress, 1, "cut at {cut}");
        let answer = reply(xid, 12);
        let cut = cut.min(answer.len() - 1);
        bench.tx(&c.answer(&answer[..cut]));
        bench.tx(&c.answer(&answer[cut..]));
        assert_eq!(bench.counts().in_progress, 0, "reply cut at {cut}");
    }
    let client = bench.client(HOST);
    assert_eq!((client.calls[2], client.replies[2]), (xid.into(), xid.into()));
    assert_eq!((client.orphans, client.streams_lost), (0, 0));
}

#[test]
fn byte_by_byte_works_too() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    for byte in [call(1, READ, 5), call(2, GETATTR, 0)].concat() {
        bench.rx(&c.send(&[byte]));
    }
    for byte in [reply(2, 1), reply(1, 3)].concat() {
        bench.tx(&c.answer(&[byte]));
    }
    let client = bench.client(HOST);
    assert_eq!((client.calls, client.replies), ([0, 1, 0, 1], [0, 1, 0, 1]));
    assert_eq!((client.in_progress, client.orphans, client.streams_lost), (0, 0, 0));
}

#[test]
fn many_records_in_a_segment_and_replies_in_any_order() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    let calls: Vec<u8> =
        (1..=30).flat_map(|xid| call(xid, if xid % 2 == 0 { READ } else { WRITE }, 0)).collect();
    bench.rx(&c.send(&calls));
    assert_eq!(bench.counts().in_progress, 30);
    let mut order: Vec<u32> = (1..=30).collect();
    order.reverse();
    order.swap(3, 17);
    let replies: Vec<u8> = order.iter().flat_map(|xid| reply(*xid, 0)).collect();
    bench.tx(&c.answer(&replies));
    let client = bench.client(HOST);
    assert_eq!((client.calls, client.replies), ([0, 15, 15, 0], [0, 15, 15, 0]));
    assert_eq!((client.in_progress, client.orphans), (0, 0));
}

#[test]
fn a_record_of_many_fragments_is_one_call() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    let body = call_body(9, WRITE, 100);
    let parts = [
        fragment(&body[..40], false),
        fragment(&body[40..50], false),
        fragment(&[], false),
        fragment(&body[50..], true),
    ]
    .concat();
    let (most, last) = parts.split_at(parts.len() - 1);
    bench.rx(&c.send(most));
    assert_eq!(bench.counts().in_progress, 0);
    bench.rx(&c.send(last));
    assert_eq!(bench.counts().in_progress, 1);
    bench.rx(&c.send(&call(10, READ, 0)));
    assert_eq!(bench.client(HOST).calls, [0, 1, 1, 0]);
}

#[test]
fn the_same_xid_again_is_the_same_call() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(&call(5, WRITE, 0)));
    bench.rx(&c.send(&call(5, WRITE, 0)));
    assert_eq!(bench.counts().in_progress, 1);
    bench.tx(&c.answer(&reply(5, 0)));
    bench.tx(&c.answer(&reply(5, 0)));
    let client = bench.client(HOST);
    assert_eq!((client.in_progress, client.orphans, client.calls[2], client.replies[2]), (0, 0, 1, 1));
}

#[test]
fn a_call_without_a_slot_stays_counted() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    for xid in 1..=65 {
        bench.rx(&c.send(&call(xid, WRITE, 0)));
    }
    let counts = bench.counts();
    assert_eq!((counts.in_progress, counts.orphans), (64, 1));
    assert_eq!(bench.server().untracked_calls, 1);
}

#[test]
fn slow_calls_are_in_the_way_of_no_other() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    let slow: Vec<u32> = (1..=30).collect();
    for xid in &slow {
        bench.rx(&c.send(&call(*xid, WRITE, 0)));
    }
    for xid in 31..2000 {
        bench.rx(&c.send(&call(xid, WRITE, 0)));
        bench.tx(&c.answer(&reply(xid, 0)));
    }
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (30, 0));
    bench.tx(&c.answer(&slow.iter().flat_map(|xid| reply(*xid, 0)).collect::<Vec<_>>()));
    assert_eq!((bench.counts().in_progress, bench.client(HOST).replies[2]), (0, 1999));
}

#[test]
fn what_is_missing_is_waited_for_and_what_passed_us_is_said() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    let record = call(1, WRITE, 1000);
    bench.rx(&c.send(&record[..200]));
    let lost = c.send(&record[200..400]);
    bench.rx(&c.send(&record[400..]));
    bench.rx(&c.send(&call(2, WRITE, 0)));
    assert_eq!(
        (bench.counts().in_progress, bench.counts().orphans),
        (0, 0),
        "the server has not got it either"
    );
    bench.rx(&lost);
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (2, 0));
    assert_eq!((bench.server().held_segments, bench.client(HOST).rx_retransmitted), (2, 0));

    // The server acknowledges what never came by here, and with it where records begin.
    c.send(&call(3, WRITE, 0));
    bench.tx(&c.acknowledge());
    bench.rx(&c.send(&[0x77; 60]));
    let client = bench.client(HOST);
    assert_eq!((client.in_progress, client.orphans, client.streams_lost), (2, 1, 1));
    // What cannot be read starts nothing; the next record at a segment's start does.
    bench.rx(&c.send(&[0x78; 60]));
    assert_eq!(bench.counts().orphans, 1);
    bench.rx(&c.send(&[call(4, READ, 8), call(5, READ, 8)].concat()));
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (4, 1));
}

#[test]
fn segments_that_changed_places_leave_no_orphan() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    let mut frames: Vec<_> = (1..=40).map(|xid| c.send(&call(xid, WRITE, 500))).collect();
    frames.reverse();
    for frame in &frames {
        bench.rx(frame);
    }
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (40, 0));
    bench.tx(&c.answer(&(1..=40).flat_map(|xid| reply(xid, 4)).collect::<Vec<_>>()));
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (0, 0));
}

#[test]
fn more_than_fits_is_lost_with_an_orphan_and_found_again() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    c.send(&call(1, WRITE, 0)); // lost on the way
    for xid in 2..=600 {
        bench.rx(&c.send(&call(xid, GETATTR, 0)));
    }
    let client = bench.client(HOST);
    assert_eq!((client.orphans, client.streams_lost), (1 + (600 - 514 - 64 + 1), 1), "64 calls are tracked");
    assert_eq!(bench.server().held_segments, 512);
}

#[test]
fn a_new_server_forgets_what_the_old_one_may_have_had() {
    let bench = Bench::admitted();
    bench.sensor.server_started(Incarnation(10)).unwrap();
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(b"no call at all, and long enough to be sure of it"));
    assert_eq!(bench.counts().orphans, 1);
    bench.sensor.server_started(Incarnation(11)).unwrap();
    assert_eq!(bench.counts().orphans, 0);
}

#[test]
fn the_end_of_a_connection_from_before_the_programs_leaves_an_orphan() {
    let bench = Bench::admitted();
    run("ip addr add 192.168.33.2/32 dev lo");
    run("ip addr add 10.10.85.11/32 dev lo");
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    let socket = connect_from(STORAGE_ADDRESS);
    let _accepted = listener.accept().unwrap();
    let c = Connection::new(socket.local_addr().unwrap().port());
    bench.rx(&c.up(1, RST, &[]).frame());
    assert_eq!(bench.counts().orphans, 1, "its calls may run on");
    bench.rx(&Connection::new(9).up(1, RST, &[]).frame());
    assert_eq!(bench.counts().orphans, 1, "this one was nobody's");
}

#[test]
fn garbage_instead_of_a_record_loses_the_stream_once() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    bench.rx(&c.send(b"GET / HTTP/1.1\r\nHost: somebody-else.example\r\n\r\n"));
    bench.rx(&c.send(b"GET / HTTP/1.1\r\nHost: somebody-else.example\r\n\r\n"));
    let client = bench.client(HOST);
    assert_eq!((client.streams_lost, client.orphans, client.in_progress), (1, 1, 0));
}

#[test]
fn a_stray_syn_inside_an_open_connection_changes_nothing() {
    let bench = Bench::admitted();
    run("ip addr add 192.168.33.2/32 dev lo");
    run("ip addr add 10.10.85.11/32 dev lo");
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    let socket = connect_from(STORAGE_ADDRESS);
    let _accepted = listener.accept().unwrap();
    let mut c = Connection::open(socket.local_addr().unwrap().port(), &bench);
    bench.rx(&c.send(&call(1, WRITE, 0)));
    bench.rx(&c.up(c.client_seq.wrapping_add(1 << 30), SYN, &[]).frame());
    bench.rx(&c.send(&call(2, WRITE, 0)));
    let client = bench.client(HOST);
    assert_eq!((client.in_progress, client.orphans, client.opened), (2, 0, 1));
}

#[test]
fn a_fin_before_its_turn_closes_nothing_yet() {
    let bench = Bench::admitted();
    let mut c = Connection::open(700, &bench);
    let late = c.send(&call(1, WRITE, 0));
    bench.rx(&c.send(&call(2, WRITE, 0)));
    bench.rx(&c.up(c.client_seq, FIN | ACK, &[]).frame());
    bench.rx(&late);
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (2, 0));
    bench.tx(&c.answer(&[reply(1, 4), reply(2, 4)].concat()));
    bench.tx(&c.down(c.server_seq, FIN | ACK, &[]).frame());
    let client = bench.client(HOST);
    assert_eq!((client.in_progress, client.orphans, client.closed), (0, 0, 1));
}

#[test]
fn a_connection_met_half_way_is_uncertain_once_and_found_again() {
    let bench = Bench::admitted();
    // A segment that no socket takes begins nothing.
    let mut ghost = Connection::new(701);
    bench.rx(&ghost.send(&call(1, WRITE, 0)));
    assert_eq!((bench.counts().orphans, bench.sensor.flows().unwrap().len()), (0, 0));

    run("ip addr add 192.168.33.2/32 dev lo");
    run("ip addr add 10.10.85.11/32 dev lo");
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    let socket = connect_from(STORAGE_ADDRESS);
    let _accepted = listener.accept().unwrap();
    let mut c = Connection::new(socket.local_addr().unwrap().port());
    bench.rx(&c.send(&[0x11; 30]));
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (0, 1));
    bench.rx(&c.send(&[0x11; 30]));
    assert_eq!(bench.counts().orphans, 1);
    bench.rx(&c.send(&call(1, WRITE, 0)));
    bench.rx(&c.send(&call(2, WRITE, 0)));
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (2, 1));
    // Its replies are found too; what an unread byte may have answered no longer looks unanswered.
    bench.tx(&c.answer(&reply(2, 4)));
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (0, 2));
    bench.rx(&c.send(&call(3, WRITE, 0)));
    bench.tx(&c.answer(&reply(3, 4)));
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (0, 2));
    assert_eq!(bench.client(HOST).replies[2], 2);
}

/// The server's kernel takes a connection with its first bytes: until then there is no established socket.
#[test]
fn a_call_that_completes_a_handshake_we_did_not_see_is_not_missed() {
    use std::os::fd::AsRawFd;
    let bench = Bench::admitted();
    run("ip addr add 192.168.33.2/32 dev lo");
    run("ip addr add 10.10.85.11/32 dev lo");
    let listener = TcpListener::bind("192.168.33.2:2049").unwrap();
    let wait: libc::c_int = 30;
    // SAFETY: the kernel reads the number.
    #[allow(unsafe_code)]
    let rc = unsafe {
        let value = (&raw const wait).cast();
        libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, 4)
    };
    assert_eq!(rc, 0);
    let socket = connect_from(STORAGE_ADDRESS);
    let mut c = Connection::new(socket.local_addr().unwrap().port());
    // Nothing is in progress yet: the end of such a connection leaves nothing behind.
    bench.rx(&c.up(1, ACK, &[]).frame());
    bench.rx(&c.up(1, RST, &[]).frame());
    assert_eq!((bench.counts().orphans, bench.sensor.flows().unwrap().len()), (0, 0));
    bench.rx(&c.send(&call(1, WRITE, 0)));
    assert_eq!((bench.counts().in_progress, bench.counts().orphans), (1, 1));
}

/// A connection to the service from `source`.
pub fn connect_from(source: [u8; 4]) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&fd, &std::net::SocketAddrV4::new(source.into(), 0)).unwrap();
    connect(&fd, &std::net::SocketAddrV4::new(SERVICE.into(), PORT)).unwrap();
    TcpStream::from(fd)
}

/// Whatever the records and however they are cut, doubled or swapped: after each segment as many calls are in progress as
/// have their last byte in the server's hands, on whichever way they were followed.
#[test]
fn any_segments_give_the_calls_that_are_whole() {
    let bench = Bench::admitted();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..400_u16 {
        let mut c = Connection::open(1 + round, &bench);
        let (mut bytes, mut ends) = (vec![], vec![]);
        let calls = 1 + random(12) as u32;
        for xid in 1..=calls {
            let most = [0, 1, 60, 900][random(4)];
            let whole = call_body(xid, WRITE, random(most + 1));
            // In up to three fragments, the last one of nothing now and then.
            let first = if random(3) == 0 { 24 + random(whole.len() - 23) } else { whole.len() };
            if first < whole.len() || random(8) == 0 {
                bytes.extend(fragment(&whole[..first], false));
                let second = first + random(whole.len() - first + 1);
                if random(2) == 0 {
                    bytes.extend(fragment(&whole[first..second], false));
                    bytes.extend(fragment(&whole[second..], true));
                } else {
                    bytes.extend(fragment(&whole[first..], true));
                }
            } else {
                bytes.extend(record(&whole));
            }
            ends.push(bytes.len());
        }
        let mut cuts: Vec<usize> = (0..random(14)).map(|_| random(bytes.len())).collect();
        // At a record's ends, and near them.
        for end in &ends {
            match random(6) {
                0..3 => cuts.push(end - random(3)),
                3 => cuts.push((end + random(40)).min(bytes.len())),
                _ => {}
            }
        }
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        let mut parts: Vec<(usize, usize)> = cuts.windows(2).map(|w| (w[0], w[1])).collect();
        for _ in 0..random(3) {
            let (a, b) = (random(parts.len()), random(parts.len()));
            parts.swap(a, b);
            let (from, to) = parts[random(parts.len())];
            let longer = to + random(bytes.len() - to + 1);
            parts.insert(random(parts.len() + 1), (from, longer));
        }
        let start = c.client_seq;
        let mut have = vec![false; bytes.len()];
        for (from, to) in &parts {
            bench.rx(&c.up(start.wrapping_add(*from as u32), ACK, &bytes[*from..*to]).frame());
            have[*from..*to].fill(true);
            let prefix = have.iter().take_while(|h| **h).count();
            let whole = ends.iter().filter(|end| **end <= prefix).count();
            let counts = bench.counts();
            assert_eq!(
                (counts.in_progress as usize, counts.orphans),
                (whole, 0),
                "round {round}: {ends:?} as {parts:?}, after {from}..{to}"
            );
        }
        for xid in 1..=calls {
            bench.tx(&c.answer(&reply(xid, 0)));
        }
        assert_eq!(bench.counts().in_progress, 0);
    }
}
