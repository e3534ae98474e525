//! What comes in: counted, judged, followed.

use crate::flow::{self, Key};
use crate::follow::{self, Place, Segment};
use crate::maps::{self, Tables};
use crate::packet::Packet;
use crate::parse::{Frame, Kind, parse, tcp};
use crate::{Verdict, admit, at, kernel, listener, pulse, stream};
use reroute_common::flow::{FlowKey, state, stream as bits};
use reroute_common::table::{drop, mode, orphan};

/// Judges a frame that came in by `interface`.
#[inline(always)]
pub fn ingress<P: Packet>(packet: P, interface: u32) -> Verdict {
    let Some(network) = maps::network(interface) else { return Verdict::Pass };
    let (Some(config), Some(server)) = (maps::config(), maps::server()) else { return Verdict::Pass };
    let Some(frame) = maps::frame(maps::Way::In) else { return Verdict::Pass };
    parse(&packet, frame);
    if frame.kind == Kind::Udp && frame.destination_port as u32 == at!(config.pulse_port).get() {
        return pulse::reflect(packet, frame, network);
    }
    let service = at!(config.service_address).address();
    let ours = frame.destination == service
        && match frame.kind {
            Kind::Tcp => frame.destination_port as u32 == at!(config.service_port).get(),
            Kind::BrokenTcp => true,
            _ => false,
        };
    if !ours {
        at!(server.foreign_packets).count(1);
        return Verdict::Pass;
    }
    judge(packet, frame, network)
}

/// A frame to the service. Not inlined: its stack and that of the pulses take turns.
#[inline(never)]
fn judge<P: Packet>(packet: P, frame: &Frame, network: u32) -> Verdict {
    let (Some(config), Some(server)) = (maps::config(), maps::server()) else { return Verdict::Pass };
    let slot = maps::slot(network, &frame.source);
    let Some(client) = maps::client(slot) else { return Verdict::Pass };
    let now = kernel::now();
    at!(client.rx_packets).count(packet.segments() as u64);
    at!(client.rx_bytes).count(packet.len() as u64);
    let mode = at!(config.mode).get();

    at!(client.in_progress).increase(1);
    let mut refusal = match mode {
        mode::BYPASS => None,
        _ if frame.kind == Kind::BrokenTcp => Some(drop::UNPARSABLE),
        _ => admit::refusal(client, server, slot, now),
    };
    if refusal.is_some() && mode != mode::ENFORCE {
        at!(client.would_drop).count(1);
        refusal = None;
    }
    if refusal.is_none() && frame.kind == Kind::Tcp {
        let syn = frame.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        if syn
            && !listener::look(packet.context(), config, server, now)
            && listener::shields(config, client, server, now)
        {
            refusal = Some(drop::SHIELD);
        } else {
            track(packet, frame, network, slot);
        }
    }
    at!(client.in_progress).decrease(1);

    match refusal {
        Some(reason) => {
            at!(client.drops).element(reason as u32).count(1);
            Verdict::Drop
        }
        None => Verdict::Pass,
    }
}

/// A segment that gets in: its flow, its calls.
#[inline(always)]
fn track<P: Packet>(packet: P, frame: &Frame, network: u32, slot: u32) {
    let (Some(client), Some(server)) = (maps::client(slot), maps::server()) else { return };
    let now = kernel::now();
    let key = Key(FlowKey {
        remote: frame.source,
        local: frame.destination,
        remote_port: frame.source_port,
        local_port: frame.destination_port,
        network,
    });
    let syn = frame.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let established = || {
        frame.ipv4
            && kernel::established(
                packet.context(),
                &frame.source,
                frame.source_port,
                &frame.destination,
                frame.destination_port,
            )
    };
    let (index, line) = match flow::find(&Tables, &key) {
        Some(found) => {
            let line = found.1;
            let rx = at!(line.rx);
            if syn {
                let again = at!(line.state).get() == state::OPEN
                    && at!(rx.flags).get() & bits::SEEN != 0
                    && at!(rx.next_seq).get() == frame.sequence.wrapping_add(1);
                if again {
                    at!(rx.retransmitted).set(at!(rx.retransmitted).get() + 1);
                    at!(client.rx_retransmitted).count(1);
                } else if at!(line.state).get() == state::OPEN && established() {
                    // The server answers a SYN inside an open connection with an ACK, and goes on.
                } else {
                    flow::reopen(line, client, now);
                    stream::begin(rx, frame.sequence);
                    at!(client.opened).count(1);
                }
            }
            found
        }
        None => {
            // Nobody takes a segment that has neither line nor socket: it begins nothing and leaves nothing behind.
            if !syn && !established() {
                return;
            }
            if frame.flags & tcp::RST != 0 {
                // The end of a connection that was there before us: its calls may outlive it.
                flow::orphan(client, orphan::UNSEEN);
                return;
            }
            let Some(found) = flow::claim(&Tables, server, &key, slot, now) else {
                if syn {
                    at!(server.untracked_flows).count(1);
                } else if at!(client.orphans).get() == 0 {
                    // Its calls are counted nowhere: this client is never called idle.
                    flow::orphan(client, orphan::UNSEEN);
                }
                return;
            };
            let line = found.1;
            if syn {
                stream::begin(at!(line.rx), frame.sequence);
                at!(client.opened).count(1);
            } else {
                flow::uncertain(line, client);
            }
            found
        }
    };
    let rx = at!(line.rx);
    at!(line.last_at).set(now);
    at!(rx.packets).set(at!(rx.packets).get() + packet.segments() as u64);
    at!(rx.bytes).set(at!(rx.bytes).get() + packet.len() as u64);
    if frame.flags & tcp::RST != 0 {
        if at!(line.state).replace(state::OPEN, state::CLOSED) {
            at!(client.reset).count(1);
            flow::abandon(line, client, 0, orphan::ENDED);
        }
        return;
    }
    if frame.payload_len > 0 {
        if at!(line.state).get() == state::OPEN {
            let seq = frame.sequence.wrapping_add(syn as u32);
            let place = Place { slot, index, line, client, server, now };
            let segment = Segment { seq, offset: frame.payload, len: frame.payload_len };
            follow::calls(packet, Tables, &place, segment);
        } else if established() {
            flow::uncertain(line, client);
        }
    }
    if frame.flags & tcp::FIN != 0 {
        let tx = at!(line.tx);
        let flags = at!(rx.flags).get();
        if flags & bits::FIN == 0 {
            at!(rx.flags).or(bits::FIN);
            if at!(tx.flags).get() & bits::FIN == 0 {
                at!(client.closed).count(1);
            }
        }
        // Calls still waiting may be answered yet, and bytes may be missing before it: the server's own FIN ends that.
        let is_next = at!(rx.next_seq).get() == frame.sequence.wrapping_add(frame.payload_len);
        if at!(line.waiting).get() == 0 && is_next {
            at!(line.state).replace(state::OPEN, state::CLOSED);
        }
    }
}
