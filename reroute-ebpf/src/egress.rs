//! What leaves the service port: replies, closings, and what the shield holds back.

use crate::flow::{self, Key};
use crate::follow::{self, Place, Segment};
use crate::packet::Packet;
use crate::parse::{Kind, parse, tcp};
use crate::{Verdict, at, held, kernel, listener, maps, stream};
use reroute_common::admission::{Word, rank};
use reroute_common::flow::{FlowKey, state, stream as bits};
use reroute_common::table::{drop, orphan};

#[inline(always)]
pub fn egress<P: Packet>(packet: P, interface: u32) -> Verdict {
    let Some(network) = maps::network(interface) else { return Verdict::Pass };
    let (Some(config), Some(server)) = (maps::config(), maps::server()) else { return Verdict::Pass };
    let Some(frame) = maps::frame(maps::Way::Out) else { return Verdict::Pass };
    parse(&packet, frame);
    let service = at!(config.service_address).address();
    if frame.kind != Kind::Tcp
        || frame.source != service
        || frame.source_port as u32 != at!(config.service_port).get()
    {
        return Verdict::Pass;
    }
    let slot = maps::slot(network, &frame.destination);
    let Some(client) = maps::client(slot) else { return Verdict::Pass };
    let now = kernel::now();
    let segments = packet.segments();
    // Each wire segment of a super-packet repeats the headers.
    let bytes = packet.len() + (segments - 1) * frame.payload;
    at!(client.tx_packets).count(segments as u64);
    at!(client.tx_bytes).count(bytes as u64);
    let key = Key(FlowKey {
        remote: frame.destination,
        local: frame.source,
        remote_port: frame.destination_port,
        local_port: frame.source_port,
        network,
    });
    if let Some((index, line)) = flow::find(&maps::Tables, &key) {
        let tx = at!(line.tx);
        at!(line.last_at).set(now);
        at!(tx.packets).set(at!(tx.packets).get() + segments as u64);
        at!(tx.bytes).set(at!(tx.bytes).get() + bytes as u64);
        if frame.flags & tcp::ACK != 0 {
            at!(line.acked).set(frame.acknowledgment);
            let flags = at!(tx.flags).get();
            if flags & bits::ACKED == 0 {
                at!(tx.flags).set(flags | bits::ACKED);
            }
            // The server has bytes that never came by here: calls may be among them.
            let rx = at!(line.rx);
            let followed = at!(rx.flags).get() & bits::SYNCED != 0 && at!(line.state).get() == state::OPEN;
            if followed && held::passed_us(line) {
                flow::uncertain(line, client);
            }
        }
        if frame.flags & tcp::SYN != 0 {
            stream::begin(tx, frame.sequence);
        } else if frame.payload_len > 0 {
            let place = Place { slot, index, line, client, server, now };
            let segment = Segment { seq: frame.sequence, offset: frame.payload, len: frame.payload_len };
            follow::replies(packet, &place, segment);
        }
        if frame.flags & (tcp::FIN | tcp::RST) != 0 {
            let rx = at!(line.rx);
            let flags = at!(tx.flags).get();
            if frame.flags & tcp::RST != 0 {
                if at!(line.state).replace(state::OPEN, state::CLOSED) {
                    at!(client.reset).count(1);
                }
            } else if flags & bits::FIN == 0 {
                at!(tx.flags).set(flags | bits::FIN);
                if at!(rx.flags).get() & bits::FIN == 0 {
                    at!(client.closed).count(1);
                }
                at!(line.state).replace(state::OPEN, state::CLOSED);
            }
            flow::abandon(line, client, 0, orphan::ENDED);
        }
    }
    if frame.flags & (tcp::FIN | tcp::RST) == 0 {
        return Verdict::Pass;
    }
    // The server's death shows here first, where its listener is closed before its connections are. And a client that
    // is shut out must not be told so: it would come back to a closed door, while its host resets it at the open one.
    let gone = !listener::look(packet.context(), config, server, now)
        && listener::shields(config, client, server, now);
    let shut_out =
        Word(at!(client.word).get()).rank() >= rank::RELEASED && listener::may_spare(config, client, now);
    if gone || shut_out {
        at!(client.drops).element(drop::SHIELD as u32).count(1);
        return Verdict::Drop;
    }
    Verdict::Pass
}
