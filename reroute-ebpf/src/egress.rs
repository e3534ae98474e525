//! What leaves the service port: replies, closings, and what the shield holds back.

use crate::cell::Shared;
use crate::flow::{self, Lines};
use crate::follow::{self, Place, Segment};
use crate::maps::{self, Tables};
use crate::packet::Packet;
use crate::parse::{End, Frame, Glance, Kind, fill, glance, parse, tcp};
use crate::signal::{self, About};
use crate::{Verdict, at, held, kernel, listener, path, stream};
use reroute_common::admission::{Word, rank};
use reroute_common::event::way;
use reroute_common::flow::{Flow, state, stream as bits};
use reroute_common::table::{Client, drop, orphan};

#[inline(always)]
pub fn egress<P: Packet>(packet: P, interface: u32) -> Verdict {
    let Some(config) = maps::config() else { return Verdict::Pass };
    let mut told = Glance::Other;
    // No UDP leaves the service.
    let wanted = maps::wanted(config, End::Source, u32::MAX);
    if let Some(head) = packet.head() {
        told = glance(head, wanted);
        if told == Glance::Foreign {
            return Verdict::Pass;
        }
    }
    let Some(frame) = maps::frame(maps::Way::Out) else { return Verdict::Pass };
    let Some(network) = maps::network(config, interface) else { return Verdict::Pass };
    let filled = told == Glance::Service
        && packet.head().is_some_and(|head| fill(&packet, head, (End::Source, network), frame));
    if !filled {
        *frame = Frame::new();
        parse(&packet, frame);
        if frame.source != at!(config.service_address).address()
            || !frame.may_have_port(End::Source, wanted.port)
        {
            return Verdict::Pass;
        }
        frame.set_key(End::Source, network);
        if frame.kind == Kind::BrokenTcp {
            count_apart(frame, packet.segments(), frame.len);
            return Verdict::Pass;
        }
    }
    service(packet, frame)
}

/// Counts a packet that no line counts.
#[inline(always)]
fn count_apart(frame: &Frame, segments: u32, bytes: u32) -> Option<Shared<Client>> {
    let client = maps::client(maps::slot(frame.key.network, &frame.key.remote))?;
    at!(client.tx_packets).count(segments as u64);
    at!(client.tx_bytes).count(bytes as u64);
    Some(client)
}

/// A segment of the service.
#[inline(always)]
fn service<P: Packet>(packet: P, frame: &mut Frame) -> Verdict {
    let Some(server) = maps::server() else { return Verdict::Pass };
    let segments = packet.segments();
    let bytes = frame.wire_bytes(segments);
    let tick = at!(server.tick_at).get();
    let ends = frame.flags & (tcp::FIN | tcp::RST) != 0;
    let Some((index, line)) = maps::locate(frame) else {
        let Some(client) = count_apart(frame, segments, bytes) else {
            return Verdict::Pass;
        };
        return if ends { closing(packet, client) } else { Verdict::Pass };
    };
    let slot = at!(line.client).get();
    let Some(client) = maps::client(slot) else { return Verdict::Pass };
    let tx = at!(line.tx);
    at!(line.last_at).set(tick);
    at!(tx.packets).set(at!(tx.packets).get() + segments as u64);
    at!(tx.bytes).set(at!(tx.bytes).get() + bytes as u64);
    let rx = at!(line.rx);
    if at!(rx.flags).get() & bits::RESET != 0 {
        return if ends { closing(packet, client) } else { Verdict::Pass };
    }
    acknowledges(line, client, frame);
    let about = About { slot, index, line, way: way::OUT };
    signal::window(&about, frame);
    if frame.flags & tcp::SYN != 0 {
        if !path::greets(line, frame) {
            stream::again(tx);
        }
    } else if frame.payload_len > 0 {
        if is_middle(line, frame) {
            at!(tx.next_seq).set(frame.sequence.wrapping_add(frame.payload_len));
            at!(tx.remaining).set(at!(tx.remaining).get() - frame.payload_len);
            signal::retransmission(&about, false, true);
        } else {
            let (again, next) = (at!(tx.retransmitted).get(), at!(tx.next_seq).get());
            let place = Place { slot, index, line, client, server, now: kernel::now() };
            let segment = Segment { seq: frame.sequence, offset: frame.payload, len: frame.payload_len };
            follow::replies(packet, &place, segment);
            let again = at!(tx.retransmitted).get() != again;
            signal::retransmission(&about, again, at!(tx.next_seq).get() != next);
        }
        // After `next_seq`: whoever takes an ACK in looks at it again.
        if at!(line.unacked_since).get() == 0 {
            // Atomic, so that it stands before the watch is looked at: the timer does it the other way round.
            at!(line.unacked_since).swap(tick);
            Tables.wake(index);
        }
    }
    if !ends {
        return Verdict::Pass;
    }
    if frame.flags & tcp::RST != 0 {
        signal::reset(&about, client);
    } else if at!(tx.flags).or(bits::FIN) & bits::FIN == 0 {
        if at!(rx.flags).get() & bits::FIN == 0 {
            at!(client.closed).count(1);
        }
        at!(line.state).replace(state::OPEN, state::CLOSED);
    } else if frame.payload_len == 0 {
        stream::again(tx);
    }
    flow::abandon(line, client, 0, orphan::ENDED);
    closing(packet, client)
}

/// Whether it is the middle of a reply, in its turn.
#[inline(always)]
fn is_middle(line: Shared<Flow>, frame: &Frame) -> bool {
    let tx = at!(line.tx);
    at!(tx.flags).get() & bits::SYNCED != 0
        && at!(tx.next_seq).get() == frame.sequence
        && at!(tx.remaining).get() >= frame.payload_len
}

/// Takes in what the server acknowledges.
#[inline(always)]
fn acknowledges(line: Shared<Flow>, client: Shared<Client>, frame: &Frame) {
    if frame.flags & tcp::ACK == 0 {
        return;
    }
    let (rx, tx) = (at!(line.rx), at!(line.tx));
    at!(line.server_acked).set(frame.acknowledgment);
    let flags = at!(tx.flags).get();
    if flags & bits::ACKED == 0 {
        at!(tx.flags).set(flags | bits::ACKED);
    }
    // The server has bytes that never came by here: calls may be among them.
    let followed = at!(rx.flags).get() & bits::SYNCED != 0 && at!(line.state).get() == state::OPEN;
    if followed && held::passed_us(line) {
        flow::uncertain(line, client);
    }
}

/// A FIN or RST. The server's death shows here first, where its listener is closed before its connections are. And a
/// client that is shut out must not be told so: it would come back to a closed door, while its host resets it at the
/// open one.
#[inline(always)]
fn closing<P: Packet>(packet: P, client: Shared<Client>) -> Verdict {
    let (Some(config), Some(server)) = (maps::config(), maps::server()) else { return Verdict::Pass };
    let now = kernel::now();
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
