//! What comes in: told apart, judged, counted, followed.

use crate::cell::Shared;
use crate::flow;
use crate::follow::{self, Place, Segment};
use crate::hold::{self, fate};
use crate::maps::{self, Tables};
use crate::packet::Packet;
use crate::parse::{End, Frame, Glance, Kind, NOWHERE, fill, glance, parse, tcp};
use crate::signal::{self, About};
use crate::{Verdict, admit, at, held, kernel, listener, path, pulse, rpc, stream};
use reroute_common::admission::Word;
use reroute_common::event::way;
use reroute_common::flow::{Flow, state, stream as bits};
use reroute_common::table::{Client, Config, Server, drop, mode, orphan};

/// Judges a frame that came in by `interface`.
#[inline(always)]
pub fn ingress<P: Packet>(packet: P, interface: u32) -> Verdict {
    let Some(config) = maps::config() else { return Verdict::Pass };
    let wanted = maps::wanted(config, End::Destination, at!(config.pulse_port).get());
    let mut told = Glance::Other;
    if let Some(head) = packet.head() {
        told = glance(head, wanted);
        if told == Glance::Foreign {
            return Verdict::Pass;
        }
    }
    let Some(frame) = maps::frame(maps::Way::In) else { return Verdict::Pass };
    let Some(network) = maps::network(config, interface) else { return Verdict::Pass };
    let filled = told == Glance::Service
        && packet.head().is_some_and(|head| fill(&packet, head, (End::Destination, network), frame));
    if !filled {
        match parsed(packet, frame, network) {
            Parsed::Foreign => return Verdict::Pass,
            Parsed::Pulse => return pulse::reflect(packet, frame, network),
            Parsed::Ours => {}
        }
    }
    match quickly(packet, frame) {
        quick::PASS => Verdict::Pass,
        quick::DROP => Verdict::Drop,
        index => match whole(packet, frame, index) {
            quick::PASS => Verdict::Pass,
            quick::DROP => Verdict::Drop,
            _ => held_back(packet, frame, index),
        },
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parsed {
    Foreign,
    Pulse,
    Ours,
}

/// Reads a frame that a glance does not tell: tags, options, IPv6, pulses. Not inlined: its stack is given back.
#[inline(never)]
fn parsed<P: Packet>(packet: P, frame: &mut Frame, network: u32) -> Parsed {
    let Some(config) = maps::config() else { return Parsed::Foreign };
    *frame = Frame::new();
    parse(&packet, frame);
    frame.set_key(End::Destination, network);
    if frame.kind == Kind::Udp && frame.destination_port as u32 == at!(config.pulse_port).get() {
        return Parsed::Pulse;
    }
    if frame.destination != at!(config.service_address).address() {
        return Parsed::Foreign;
    }
    let port = at!(config.service_port).get();
    // NFSv3 may be spoken by datagrams, too. They are not followed, so none gets past the fence.
    if frame.kind == Kind::Udp && frame.destination_port as u32 == port {
        frame.kind = Kind::BrokenTcp;
    }
    if frame.may_have_port(End::Destination, port) { Parsed::Ours } else { Parsed::Foreign }
}

/// What becomes of a segment that is in its turn and within one call, as almost all are. Any other number says that it
/// is not such a segment, and which line it is of: a number fits into a register, what an enum holds beside does not.
mod quick {
    pub const PASS: u32 = u32::MAX - 1;
    pub const DROP: u32 = u32::MAX - 2;
    /// Bytes of a client that may be held back: see [`super::held_back`].
    pub const HOLD: u32 = u32::MAX - 3;
}

/// What such a segment brings.
struct Brings {
    /// Bytes of the record that are left after it.
    left: u32,
    /// A call begins with it ...
    begins: bool,
    /// ... or is complete with it.
    completes: bool,
}

/// An ACK, or bytes of one call. Not inlined: its stack is given back before [`whole`] takes its own.
#[inline(never)]
fn quickly<P: Packet>(packet: P, frame: &mut Frame) -> u32 {
    let (Some(config), Some(server)) = (maps::config(), maps::server()) else { return quick::PASS };
    let found = if frame.kind == Kind::Tcp { maps::locate(frame) } else { None };
    let Some((index, line)) = found else { return NOWHERE };
    if at!(line.registered).get() != at!(config.registered).get() {
        return index;
    }
    let slot = at!(line.client).get();
    let Some(client) = maps::client(slot) else { return quick::PASS };
    if !path::is_settled(line, client) {
        return index;
    }
    let Some(brings) = in_turn(&packet, line, frame) else { return index };
    let tick = at!(server.tick_at).get();
    let mode = at!(config.mode).get();
    // A lease is held against the clock, and a call begins by it; what shadow mode counts goes by the tick.
    let now = if mode == mode::ENFORCE || brings.completes { kernel::now() } else { tick };
    if brings.completes {
        // Before the word is read: whoever closes it and then counts sees this call, or this call sees it closed.
        at!(client.in_progress).increase(1);
    }
    if mode != mode::BYPASS
        && let Some(reason) = admit::refusal(client, server, slot, now)
    {
        // What may be held back is judged where there is room for it.
        let apart = hold::applies(client, slot, mode, reason);
        if apart || refuse(packet, frame, client, mode, reason) {
            if brings.completes {
                at!(client.in_progress).decrease(1);
            }
            return if apart { index } else { quick::DROP };
        }
    }
    let rx = at!(line.rx);
    count(line, packet.segments(), frame, tick);
    if frame.payload_len > 0 {
        at!(rx.next_seq).set(frame.sequence.wrapping_add(frame.payload_len));
        at!(rx.remaining).set(brings.left);
        // Changed bit by bit: egress sets some of them meanwhile.
        if brings.completes {
            if !brings.begins {
                at!(rx.flags).and(!bits::PENDING);
            }
            flow::accept(&Tables, (index, line), client, server, rpc::call(rx), now);
        } else if brings.begins {
            at!(rx.flags).or(bits::PENDING);
        }
    }
    let about = About { slot, index, line, way: way::IN };
    acknowledged(line, frame, tick);
    signal::window(&about, frame);
    signal::retransmission(&about, false, frame.payload_len > 0);
    quick::PASS
}

/// None: a connection begins or ends with it, or it has bytes out of turn, or of more than one record.
#[inline(always)]
fn in_turn<P: Packet>(packet: &P, line: Shared<Flow>, frame: &Frame) -> Option<Brings> {
    if frame.flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 || at!(line.state).get() != state::OPEN {
        return None;
    }
    if frame.payload_len == 0 {
        return Some(Brings { left: 0, begins: false, completes: false });
    }
    let rx = at!(line.rx);
    let flags = at!(rx.flags).get();
    let ready = flags & bits::SYNCED != 0
        && at!(rx.next_seq).get() == frame.sequence
        && at!(line.first_piece).get() == 0
        && at!(rx.gathered).get() == 0
        && !held::passed_us(line);
    if !ready {
        return None;
    }
    let mut remaining = at!(rx.remaining).get();
    let begins = remaining == 0;
    if begins {
        let between = flags & bits::PENDING == 0 && at!(rx.more).get() == 0;
        if !between || !stream::peek(packet, rx, frame.payload, frame.payload_len, rpc::CALL_HEAD) {
            return None;
        }
        let mark = rpc::word(rx, 0);
        let length = mark & 0x7fff_ffff;
        if mark >> 31 == 0 || !(rpc::CALL_HEAD..=rpc::MAX_FRAGMENT).contains(&length) || !rpc::is_call(rx) {
            return None;
        }
        remaining = 4 + length;
    }
    if frame.payload_len > remaining {
        return None;
    }
    let left = remaining - frame.payload_len;
    let is_last = begins || (flags & bits::PENDING != 0 && at!(rx.more).get() == 0);
    Some(Brings { left, begins, completes: left == 0 && is_last })
}

#[inline(always)]
fn count(line: Shared<Flow>, segments: u32, frame: &Frame, tick: u64) {
    let rx = at!(line.rx);
    at!(line.last_at).set(tick);
    at!(rx.packets).set(at!(rx.packets).get() + segments as u64);
    at!(rx.bytes).set(at!(rx.bytes).get() + frame.wire_bytes(segments) as u64);
}

/// Takes in what the client acknowledges.
#[inline(always)]
fn acknowledged(line: Shared<Flow>, frame: &Frame, tick: u64) {
    if frame.flags & tcp::ACK == 0 {
        return;
    }
    let (rx, tx) = (at!(line.rx), at!(line.tx));
    let flags = at!(rx.flags).get();
    let ahead = frame.acknowledgment.wrapping_sub(at!(line.client_acked).get()) as i32;
    if flags & bits::ACKED != 0 && ahead <= 0 {
        return;
    }
    at!(line.client_acked).set(frame.acknowledgment);
    if flags & bits::ACKED == 0 {
        at!(rx.flags).or(bits::ACKED);
    }
    if at!(line.unacked_since).get() != 0 {
        let sent = at!(tx.next_seq).get();
        let owed = sent.wrapping_sub(frame.acknowledgment) as i32 > 0;
        at!(line.unacked_since).set(if owed { tick } else { 0 });
        // The server may have sent more in between, on another CPU.
        if !owed && at!(tx.next_seq).get() != sent {
            at!(line.unacked_since).set(tick);
        }
    }
}

/// Counts a refused packet. False: the mode lets it pass all the same.
#[inline(always)]
fn refuse<P: Packet>(packet: P, frame: &Frame, client: Shared<Client>, mode: u32, reason: usize) -> bool {
    if mode != mode::ENFORCE {
        at!(client.would_drop).count(1);
        return false;
    }
    at!(client.drops).element(reason as u32).count(1);
    apart(packet, frame, client);
    true
}

/// Counts a packet that no line counts.
#[inline(always)]
fn apart<P: Packet>(packet: P, frame: &Frame, client: Shared<Client>) {
    let segments = packet.segments();
    at!(client.rx_packets).count(segments as u64);
    at!(client.rx_bytes).count(frame.wire_bytes(segments) as u64);
}

/// A segment that may begin a call or end a connection, or no segment at all. Not inlined: its stack and that of the
/// pulses take turns. One of [`quick`].
#[inline(never)]
fn whole<P: Packet>(packet: P, frame: &Frame, index: u32) -> u32 {
    let (Some(config), Some(server)) = (maps::config(), maps::server()) else { return quick::PASS };
    let found = maps::flow(index).map(|line| (index, line));
    // Before the address is looked up: whoever registers it does that the other way round.
    let registered = at!(config.registered).get();
    let slot = maps::slot(frame.key.network, &frame.key.remote);
    let Some(client) = maps::client(slot) else { return quick::PASS };
    let now = kernel::now();
    let mode = at!(config.mode).get();

    at!(client.in_progress).increase(1);
    let refusal = match mode {
        mode::BYPASS => None,
        _ if frame.kind == Kind::BrokenTcp => Some(drop::UNPARSABLE),
        _ => admit::refusal(client, server, slot, now),
    };
    let mut verdict = quick::PASS;
    let fate = match refusal {
        None => fate::FOLLOW,
        Some(reason) if frame.kind == Kind::Tcp && hold::applies(client, slot, mode, reason) => {
            hold::without_bytes(frame, found.is_some())
        }
        Some(_) => fate::DROP,
    };
    if fate == fate::JUDGE {
        verdict = quick::HOLD;
    } else if fate == fate::PASS {
        apart(packet, frame, client);
    } else if fate == fate::DROP
        && let Some(reason) = refusal
        && refuse(packet, frame, client, mode, reason)
    {
        verdict = quick::DROP;
    } else if frame.kind != Kind::Tcp {
        apart(packet, frame, client);
    } else if slot != 0
        && !speaks(packet, frame, found, (slot, client))
        && mode != mode::BYPASS
        && refuse(packet, frame, client, mode, drop::OLD_PATH)
    {
        verdict = quick::DROP;
    } else if is_syn(frame) && hidden(packet, config, client, server, now) {
        at!(client.drops).element(drop::SHIELD as u32).count(1);
        apart(packet, frame, client);
        verdict = quick::DROP;
    } else if !track(packet, frame, found, registered, (slot, client, server, now)) {
        apart(packet, frame, client);
    }
    at!(client.in_progress).decrease(1);
    verdict
}

/// Bytes of a client without an agent that is not admitted: dropped, unless nobody would take them. Not inlined: rare,
/// and its stack is given back.
#[inline(never)]
fn held_back<P: Packet>(packet: P, frame: &Frame, index: u32) -> Verdict {
    let slot = maps::slot(frame.key.network, &frame.key.remote);
    let Some(client) = maps::client(slot) else { return Verdict::Pass };
    apart(packet, frame, client);
    if hold::judge(packet.context(), frame, slot, index, kernel::now()) == fate::PASS {
        return Verdict::Pass;
    }
    let is_lapsed = Word(at!(client.word).get()).is_admitted();
    let reason = if is_lapsed { drop::LEASE_EXPIRED } else { drop::NOT_ADMITTED };
    at!(client.drops).element(reason as u32).count(1);
    Verdict::Drop
}

#[inline(always)]
fn is_syn(frame: &Frame) -> bool {
    frame.flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// Whether the segment comes by the path that its host has chosen last. A SYN chooses, and a RST does no harm.
#[inline(always)]
fn speaks<P: Packet>(
    packet: P,
    frame: &Frame,
    found: Option<(u32, Shared<Flow>)>,
    (slot, client): (u32, Shared<Client>),
) -> bool {
    if is_syn(frame) || frame.flags & tcp::RST != 0 {
        return true;
    }
    match found {
        // Until now another client's.
        Some((_, line)) if at!(line.client).get() != slot => true,
        Some((_, line)) => path::speaks(line, client, frame.key.network, path::answers(line, frame)),
        None => path::is_known(client, frame.key.network) || !kernel::established(packet.context(), frame),
    }
}

/// Whether nobody listens, and this client is spared the refusal.
#[inline(always)]
fn hidden<P: Packet>(
    packet: P,
    config: Shared<Config>,
    client: Shared<Client>,
    server: Shared<Server>,
    now: u64,
) -> bool {
    !listener::look(packet.context(), config, server, now) && listener::shields(config, client, server, now)
}

/// A connection begins with this SYN.
#[inline(always)]
fn begin(line: Shared<Flow>, client: Shared<Client>, frame: &Frame) {
    path::begin(line, client, frame.key.network);
    stream::begin(at!(line.rx), frame.sequence);
    at!(line.client_syn).set(frame.sequence);
    at!(client.opened).count(1);
}

/// A segment that gets in: its flow, its calls. False: no line counts it.
#[inline(always)]
fn track<P: Packet>(
    packet: P,
    frame: &Frame,
    found: Option<(u32, Shared<Flow>)>,
    registered: u32,
    (slot, client, server, now): (u32, Shared<Client>, Shared<Server>, u64),
) -> bool {
    let syn = is_syn(frame);
    let established = || kernel::established(packet.context(), frame);
    let (index, line) = match found {
        Some(found) => {
            let line = found.1;
            let rx = at!(line.rx);
            if at!(line.client).get() != slot {
                flow::readdress(line, client, slot, server);
                path::adopt(line, client, frame.key.network);
            }
            if syn {
                let again = at!(line.state).get() == state::OPEN
                    && at!(rx.flags).get() & bits::SEEN != 0
                    && at!(line.client_syn).get() == frame.sequence;
                if again {
                    // Bytes that come with it count for it.
                    if frame.payload_len == 0 {
                        stream::again(rx);
                    }
                } else if at!(line.state).get() == state::OPEN && established() {
                    // The server answers a SYN inside an open connection with an ACK, and goes on.
                } else {
                    flow::reopen(line, client, now);
                    begin(line, client, frame);
                }
            }
            found
        }
        None => {
            // Nobody takes a segment that has neither line nor socket: it begins nothing and leaves nothing behind.
            if !syn && !established() {
                return false;
            }
            if frame.flags & tcp::RST != 0 {
                // The end of a connection that was there before us: its calls may outlive it.
                flow::orphan(client, orphan::UNSEEN);
                return false;
            }
            let Some(found) = flow::claim(&Tables, server, &frame.key, slot, now) else {
                at!(server.untracked_flows).count(1);
                if !syn && at!(client.orphans).get() == 0 {
                    // Its calls are counted nowhere: this client is never called idle.
                    flow::orphan(client, orphan::UNSEEN);
                }
                return false;
            };
            let line = found.1;
            if syn {
                begin(line, client, frame);
            } else {
                path::adopt(line, client, frame.key.network);
                flow::uncertain(line, client);
            }
            found
        }
    };
    let rx = at!(line.rx);
    if at!(line.registered).get() != registered {
        at!(line.registered).set(registered);
    }
    count(line, packet.segments(), frame, now);
    let about = About { slot, index, line, way: way::IN };
    if frame.flags & tcp::RST != 0 {
        signal::reset(&about, client);
        flow::abandon(line, client, 0, orphan::ENDED);
        return true;
    }
    if at!(rx.flags).get() & bits::RESET != 0 {
        if frame.payload_len > 0 && established() {
            flow::uncertain(line, client);
        }
        return true;
    }
    acknowledged(line, frame, now);
    signal::window(&about, frame);
    if frame.payload_len > 0 {
        if at!(line.state).get() == state::OPEN {
            let (again, next) = (at!(rx.retransmitted).get(), at!(rx.next_seq).get());
            let seq = frame.sequence.wrapping_add(syn as u32);
            let place = Place { slot, index, line, client, server, now };
            let segment = Segment { seq, offset: frame.payload, len: frame.payload_len };
            follow::calls(packet, Tables, &place, segment);
            let again = at!(rx.retransmitted).get() != again;
            signal::retransmission(&about, again, at!(rx.next_seq).get() != next);
        } else {
            if stream::is_behind(rx, frame.sequence) {
                stream::again(rx);
            }
            if established() {
                flow::uncertain(line, client);
            }
        }
    }
    if frame.flags & tcp::FIN != 0 {
        let tx = at!(line.tx);
        if at!(rx.flags).or(bits::FIN) & bits::FIN != 0 {
            if frame.payload_len == 0 {
                stream::again(rx);
            }
        } else if at!(tx.flags).get() & bits::FIN == 0 {
            at!(client.closed).count(1);
        }
        // Calls still waiting may be answered yet, and bytes may be missing before it: the server's own FIN ends that.
        let is_next = at!(rx.next_seq).get() == frame.sequence.wrapping_add(frame.payload_len);
        if at!(line.waiting).get() == 0 && is_next {
            at!(line.state).replace(state::OPEN, state::CLOSED);
        }
    }
    true
}
