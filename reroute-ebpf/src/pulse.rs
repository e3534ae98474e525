//! Pulses: checked, acted on, and sent back with the health this kernel sees (design §5).

use crate::cell::Shared;
use crate::packet::Packet;
use crate::parse::Frame;
use crate::{Verdict, admit, at, kernel, listener, maps};
use reroute_common::admission::{Word, rank};
use reroute_common::event::{Event, kind as event};
use reroute_common::pulse::{self, LEN, Pulse, flags, kind, server as bits};
use reroute_common::siphash;
use reroute_common::table::{Client, Config, Server, mode, pulse_reject};

const WORDS: usize = LEN / 8;
const MAC: u32 = WORDS as u32 - 1;
/// An agent that has not been seen for longer speaks for nobody: three of its beats.
const AGENT_ALIVE_NS: u64 = 300_000_000;

/// A datagram to the pulse port: reflected, or counted by the reason why not, and gone either way.
#[inline(never)]
pub fn reflect<P: Packet>(packet: P, frame: &Frame, network: u32) -> Verdict {
    let (Some(config), Some(server), Some(words)) = (maps::config(), maps::server(), maps::scratch()) else {
        return Verdict::Pass;
    };
    match answer(&packet, frame, network, (config, server, words)) {
        Ok(()) if send_back(&packet, frame, words) => Verdict::Reflect,
        Ok(()) => Verdict::Drop,
        Err(reason) => {
            at!(server.pulse_rejects).element(reason as u32).count(1);
            Verdict::Drop
        }
    }
}

type Words = Shared<[u64; WORDS]>;

#[inline(always)]
fn mac(words: Words, key: [u64; 2]) -> u64 {
    // SAFETY: this CPU's scratch, which nothing else touches while the program runs.
    let covered = unsafe { &*words.as_ptr().cast::<[u64; WORDS - 1]>() };
    siphash::hash(key, covered)
}

#[inline(always)]
fn answer<P: Packet>(
    packet: &P,
    frame: &Frame,
    network: u32,
    (config, server, words): (Shared<Config>, Shared<Server>, Words),
) -> Result<(), usize> {
    if !frame.ipv4 || frame.payload_len != LEN as u32 || !packet.load_pulse(frame.payload, words) {
        return Err(pulse_reject::SIZE);
    }
    // SAFETY: a pulse is LEN bytes of integers, as the scratch is.
    let request: Shared<Pulse> = unsafe { Shared::new(words.as_ptr().cast()) };
    // Magic, version, kind and flags share the first word.
    let first = words.element(0).get();
    if first as u32 != pulse::MAGIC {
        return Err(pulse_reject::SIZE);
    }
    if (first >> 32) as u8 != pulse::VERSION || (first >> 40) as u8 != kind::REQUEST {
        return Err(pulse_reject::VERSION);
    }
    let asked = (first >> 48) as u16;
    let slot = maps::slot(network, &frame.source);
    let Some(client) = maps::client(slot) else { return Err(pulse_reject::UNKNOWN_HOST) };
    if slot == 0 || at!(client.host).get() != at!(request.host).get() {
        return Err(pulse_reject::UNKNOWN_HOST);
    }
    if at!(request.scvm).get() != at!(config.scvm).get() {
        return Err(pulse_reject::WRONG_SCVM);
    }
    let key = at!(client.pulse_key);
    let key = [key.element(0).get(), key.element(1).get()];
    if mac(words, key) != words.element(MAC).get() {
        return Err(pulse_reject::MAC);
    }

    let now = kernel::now();
    at!(client.pulse_at).set(now);
    at!(client.pulses).count(1);
    if asked & flags::RELEASE != 0 {
        release(client, slot, at!(request.epoch).get(), now);
    } else if asked & flags::AFFIRM != 0 {
        affirm(config, client, request, now);
    }

    let word = at!(client.word).get();
    let lease_end = admit::lease_end(client, server);
    let mode = at!(config.mode).get();
    // What an agent said before it died is no news.
    let agent_age = now.saturating_sub(at!(config.agent_seen_at).get());
    let mut state = bits::DATA_REPLIES;
    if agent_age <= AGENT_ALIVE_NS {
        state |= at!(config.agent_state).get() & bits::NULL_FAILED;
    }
    if listener::look(packet.context(), config, server, now) {
        state |= bits::LISTENING;
    }
    if at!(server.silent).get() != 0 {
        state |= bits::SILENT;
    }
    if at!(server.data_silent).get() != 0 {
        state |= bits::DATA_SILENT;
    }
    if mode == mode::ENFORCE {
        state |= bits::ENFORCING;
    }
    let last_data = at!(server.data_reply_at).get();
    words.element(0).set(first & !(0xff << 40) | (kind::REPLY as u64) << 40);
    at!(request.scvm_boot).set(at!(config.scvm_boot).get());
    at!(request.scvm_stamp).set(now);
    at!(request.server_incarnation).set(at!(server.incarnation).get());
    at!(request.word).set(word);
    at!(request.lease_ns).set(lease_end.saturating_sub(now));
    at!(request.server_state).set(state);
    at!(request.calls_waiting).set(at!(server.waiting).get());
    at!(request.data_reply_age_ns).set(if last_data == 0 { u64::MAX } else { now.saturating_sub(last_data) });
    at!(request.oldest_call_age_ns).set(at!(server.oldest_call_age_ns).get());
    at!(request.stalled_flows).set(at!(server.stalled_flows).get());
    // After the word, in this order: a call that becomes an orphan in between is seen twice, not never.
    at!(request.in_progress).set(at!(client.in_progress).get());
    at!(request.orphans).set(at!(client.orphans).get());
    at!(request.network).set(network);
    at!(request.agent_age_ns).set(agent_age);
    words.element(MAC).set(mac(words, pulse::direction_key(key, kind::REPLY)));
    Ok(())
}

/// The client's host lets go of the epoch that stands here.
#[inline(always)]
fn release(client: Shared<Client>, slot: u32, epoch: u64, now: u64) {
    let word = Word(at!(client.word).get());
    if epoch == 0 || word.epoch() != epoch || word.rank() >= rank::RELEASED {
        return;
    }
    at!(client.released_at).raise(now);
    if admit::raise(client, Word::new(epoch, rank::RELEASED)) {
        maps::emit(&Event {
            client: slot,
            waiting: at!(client.in_progress).get(),
            limit: epoch,
            ..Event::new(now, event::RELEASED)
        });
    }
}

/// The client's host holds on to its epoch: the lease runs from *our* stamp that it echoes.
#[inline(always)]
fn affirm(config: Shared<Config>, client: Shared<Client>, request: Shared<Pulse>, now: u64) {
    let stamp = at!(request.scvm_stamp).get();
    let admitted = Word::new(at!(request.epoch).get(), rank::ADMITTED);
    if at!(client.word).get() == admitted.0
        && at!(request.scvm_boot).get() == at!(config.scvm_boot).get()
        && stamp != 0
        && stamp <= now
        && stamp >= at!(client.released_at).get()
    {
        at!(client.affirm_deadline).raise(stamp + at!(config.affirm_ns).get());
    }
}

/// Turns the datagram round: addresses and ports change places, so the IP checksum still holds; UDP goes without.
#[inline(always)]
fn send_back<P: Packet>(packet: &P, frame: &Frame, words: Words) -> bool {
    // SAFETY: this CPU's scratch, LEN bytes.
    let bytes = unsafe { &*words.as_ptr().cast::<[u8; LEN]>() };
    // One after the other: judged together, the verifier of Linux 6.1 would follow what a failed load has left unset.
    let Some(eth) = packet.load::<12>(0) else { return false };
    let Some(ip) = packet.load::<8>(frame.ip + 12) else { return false };
    let Some(udp) = packet.load::<8>(frame.transport) else { return false };
    let eth =
        [eth[6], eth[7], eth[8], eth[9], eth[10], eth[11], eth[0], eth[1], eth[2], eth[3], eth[4], eth[5]];
    let ip = [ip[4], ip[5], ip[6], ip[7], ip[0], ip[1], ip[2], ip[3]];
    let udp = [udp[2], udp[3], udp[0], udp[1], udp[4], udp[5], 0, 0];
    packet.store(frame.payload, bytes)
        && packet.store(0, &eth)
        && packet.store(frame.ip + 12, &ip)
        && packet.store(frame.transport, &udp)
}
