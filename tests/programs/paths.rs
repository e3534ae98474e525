//! A host's connections from before it changed its path are shut, and no others.

use crate::bench::*;
use crate::frames::*;
use reroute_common::table::drop;
use reroute_core::ids::Network;

const MANAGEMENT_ADDRESS: [u8; 4] = [192, 168, 85, 11];

fn by_management(port: u16) -> Connection {
    Connection { client: MANAGEMENT_ADDRESS, ..Connection::new(port) }
}

/// SYN and SYN+ACK: what the client says next completes it.
fn begin(c: &mut Connection, bench: &Bench) {
    assert_eq!(bench.rx(&c.up(c.client_seq, SYN, &[]).frame()), XDP_PASS);
    bench.tx(&c.down(c.server_seq, SYN | ACK, &[]).frame());
    c.client_seq = c.client_seq.wrapping_add(1);
    c.server_seq = c.server_seq.wrapping_add(1);
}

#[test]
fn a_call_by_the_old_path_is_dropped_once_the_new_one_is_used() {
    let mut bench = Bench::admitted();
    let mut old = Connection::open(700, &bench);
    assert_eq!(bench.rx(&old.send(&call(1, WRITE, 100))), XDP_PASS);
    bench.tx(&old.answer(&reply(1, 20)));

    bench.by(Network::Management);
    let mut new = by_management(701);
    begin(&mut new, &bench);
    bench.by(Network::Storage);
    assert_eq!(bench.rx(&old.send(&call(2, WRITE, 100))), XDP_PASS, "a SYN may be late itself");
    bench.tx(&old.answer(&reply(2, 20)));

    bench.by(Network::Management);
    assert_eq!(bench.rx(&new.send(&call(3, WRITE, 100))), XDP_PASS);
    bench.by(Network::Storage);
    let late = old.send(&call(4, WRITE, 100));
    assert_eq!(bench.rx(&late), XDP_DROP);
    assert_eq!(bench.rx(&late), XDP_DROP);
    let client = bench.client(HOST);
    assert_eq!(client.drops[drop::OLD_PATH], 2);
    assert_eq!(client.in_progress, 1, "the call by the new path, and no guard is kept");
    assert_eq!(bench.rx(&old.up(old.client_seq, RST, &[]).frame()), XDP_PASS, "an end does no harm");

    // And back, by a new connection: that old one stays shut.
    let mut back = Connection::open(702, &bench);
    assert_eq!(bench.rx(&back.send(&call(5, WRITE, 100))), XDP_PASS);
    bench.by(Network::Management);
    assert_eq!(bench.rx(&new.send(&call(6, WRITE, 100))), XDP_DROP);
}

#[test]
fn a_late_handshake_shuts_nobody() {
    let mut bench = Bench::admitted();
    Connection::open(710, &bench);
    bench.by(Network::Management);
    let mut late = by_management(711);
    begin(&mut late, &bench);
    bench.by(Network::Storage);
    let mut now = Connection::open(712, &bench);
    bench.by(Network::Management);
    assert_eq!(bench.rx(&late.send(&call(1, WRITE, 100))), XDP_DROP, "its host has gone on without it");
    bench.by(Network::Storage);
    assert_eq!(bench.rx(&now.send(&call(2, WRITE, 100))), XDP_PASS);
}

/// Whoever has not seen our SYN+ACK only says that it is the host.
#[test]
fn a_forged_handshake_shuts_nobody() {
    let mut bench = Bench::admitted();
    let mut own = Connection::open(715, &bench);
    assert_eq!(bench.rx(&own.send(&call(1, WRITE, 100))), XDP_PASS);
    bench.tx(&own.answer(&reply(1, 20)));

    bench.by(Network::Management);
    let mut forged = by_management(716);
    begin(&mut forged, &bench);
    for wrong in [1, u32::MAX, 1 << 20, 1 << 31] {
        let guess = Connection { server_seq: forged.server_seq.wrapping_add(wrong), ..forged.clone() };
        assert_eq!(bench.rx(&guess.up(guess.client_seq, ACK, &[]).frame()), XDP_DROP);
        assert_eq!(bench.rx(&guess.clone().send(&call(9, WRITE, 100))), XDP_DROP);
    }
    assert_eq!(bench.rx(&forged.up(forged.client_seq, 0, &[]).frame()), XDP_DROP, "acknowledges nothing");
    bench.by(Network::Storage);
    assert_eq!(bench.rx(&own.send(&call(2, WRITE, 100))), XDP_PASS, "the host's own connection goes on");

    // A SYN+ACK under a cookie comes again with another number; the client may answer either.
    bench.by(Network::Management);
    let mut cookie = by_management(717);
    begin(&mut cookie, &bench);
    cookie.server_seq = 77_000;
    bench.tx(&cookie.down(cookie.server_seq, SYN | ACK, &[]).frame());
    cookie.server_seq += 1;
    assert_eq!(bench.rx(&cookie.send(&call(3, WRITE, 100))), XDP_PASS);
}

#[test]
fn several_connections_by_one_path_live_side_by_side() {
    let mut bench = Bench::admitted();
    bench.by(Network::Management);
    let mut first = by_management(720);
    begin(&mut first, &bench);
    bench.rx(&first.send(&[]));
    bench.by(Network::Storage);
    let (mut slow, mut quick) = (Connection::new(721), Connection::new(722));
    begin(&mut slow, &bench);
    begin(&mut quick, &bench);
    assert_eq!(bench.rx(&quick.send(&call(1, WRITE, 100))), XDP_PASS);
    assert_eq!(bench.rx(&slow.send(&call(2, WRITE, 100))), XDP_PASS);
    assert_eq!(bench.rx(&quick.send(&call(3, WRITE, 100))), XDP_PASS);
    assert_eq!(bench.client(HOST).drops[drop::OLD_PATH], 0);
}
