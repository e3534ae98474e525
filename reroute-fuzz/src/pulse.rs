//! The pulse's codec: what a host sends, and what it takes for an answer.

use crate::input::Input;
use core::hash::Hasher;
use reroute_common::pulse::{LEN, MAC_OFFSET, MAGIC, Pulse, VERSION, flags, kind};
use reroute_core::host::PulseFlag;
use reroute_core::host::wire::{Answer, Expected, Header, Reject, Request, decode, encode};
use reroute_core::ids::*;
use siphasher::sip::SipHasher24;
use std::mem::offset_of;

fn u32_at(bytes: &[u8; LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; LEN], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// By another implementation than ours. `reply`: under the key of that direction.
fn mac(key: [u64; 2], reply: bool, bytes: &[u8; LEN]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(key[0], if reply { !key[1] } else { key[1] });
    hasher.write(&bytes[..MAC_OFFSET]);
    hasher.finish()
}

fn sign(key: [u64; 2], bytes: &mut [u8; LEN]) {
    let mac = mac(key, true, bytes);
    bytes[MAC_OFFSET..].copy_from_slice(&mac.to_le_bytes());
}

/// Sends a pulse that `data` describes, answers it, and spoils the answer.
///
/// # Panics
/// When a pulse is not what its layout says, or a spoilt answer is taken for a good one.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let header = Header {
        key: [input.u64(), input.u64()],
        host: HostId(input.u32()),
        scvm: ScvmId(input.u32()),
        incarnation: Incarnation(input.u64()),
        sequence: input.u64(),
        time: BootNs(input.u64()),
        request: Request {
            flag: [PulseFlag::Affirm, PulseFlag::Release, PulseFlag::Probe][usize::from(input.u8() % 3)],
            epoch: Epoch(input.u64()),
            scvm_boot: input.u64(),
            scvm_stamp: input.u64(),
        },
    };
    let request = encode(&header);
    layout(&header, &request);
    let Header { key, host, scvm, incarnation, .. } = header;
    let expected = Expected { key, host, scvm, incarnation };
    assert_eq!(decode(&request, &expected), Err(Reject::Kind), "a request is no reply");

    let mut good = request;
    good[offset_of!(Pulse, kind)] = kind::REPLY;
    assert_eq!(decode(&good, &expected), Err(Reject::Mac), "signed for the other direction");
    let written = input.bytes(MAC_OFFSET - offset_of!(Pulse, scvm_boot));
    good[offset_of!(Pulse, scvm_boot)..][..written.len()].copy_from_slice(written);
    sign(key, &mut good);
    says_what_it_holds(&good, &decode(&good, &expected));

    let mut spoilt = good;
    while !input.is_empty() {
        let (at, by) = (usize::from(input.u8()) % LEN, input.u8());
        spoilt[at] ^= by;
    }
    spoil(&good, spoilt, &expected);
    if let Some(raw) = data.last_chunk::<LEN>() {
        spoil(&good, *raw, &expected);
    }
}

/// The kernel reads what was meant.
fn layout(header: &Header, bytes: &[u8; LEN]) {
    let flag = match header.request.flag {
        PulseFlag::Affirm => flags::AFFIRM,
        PulseFlag::Release => flags::RELEASE,
        PulseFlag::Probe => flags::PROBE,
    };
    assert_eq!(u32_at(bytes, offset_of!(Pulse, magic)), MAGIC);
    assert_eq!(bytes[offset_of!(Pulse, version)], VERSION);
    assert_eq!(bytes[offset_of!(Pulse, kind)], kind::REQUEST);
    assert_eq!(bytes[offset_of!(Pulse, flags)..][..2], flag.to_le_bytes());
    assert_eq!(u32_at(bytes, offset_of!(Pulse, host)), header.host.0);
    assert_eq!(u32_at(bytes, offset_of!(Pulse, scvm)), header.scvm.0);
    for (at, value) in [
        (offset_of!(Pulse, host_incarnation), header.incarnation.0),
        (offset_of!(Pulse, seq), header.sequence),
        (offset_of!(Pulse, host_time), header.time.0),
        (offset_of!(Pulse, epoch), header.request.epoch.0),
        (offset_of!(Pulse, scvm_boot), header.request.scvm_boot),
        (offset_of!(Pulse, scvm_stamp), header.request.scvm_stamp),
        (MAC_OFFSET, mac(header.key, false, bytes)),
    ] {
        assert_eq!(u64_at(bytes, at), value, "at {at}");
    }
    assert!(bytes[offset_of!(Pulse, server_incarnation)..MAC_OFFSET].iter().all(|b| *b == 0));
}

fn says_what_it_holds(bytes: &[u8; LEN], answer: &Result<Answer, Reject>) {
    let Ok(Answer { sequence, time, facts }) = answer else {
        panic!("a good reply is refused: {answer:?}");
    };
    let word = u64_at(bytes, offset_of!(Pulse, word));
    for (at, value) in [
        (offset_of!(Pulse, seq), *sequence),
        (offset_of!(Pulse, host_time), time.0),
        (offset_of!(Pulse, scvm_boot), facts.scvm_boot),
        (offset_of!(Pulse, scvm_stamp), facts.scvm_stamp),
        (offset_of!(Pulse, server_incarnation), facts.server.0),
        (offset_of!(Pulse, lease_ns), facts.lease_ns),
        (offset_of!(Pulse, oldest_call_age_ns), facts.oldest_call_age_ns),
        (offset_of!(Pulse, agent_age_ns), facts.agent_age_ns),
    ] {
        assert_eq!(u64_at(bytes, at), value, "at {at}");
    }
    assert_eq!(facts.word_epoch.0, word >> 8);
    // What is no rank lets nobody in.
    assert_eq!(facts.word_rank as u64, (word & 0xff).min(3), "{:?}", facts.word_rank);
    assert_eq!(facts.calls_waiting, u32_at(bytes, offset_of!(Pulse, calls_waiting)));
    assert_eq!(facts.in_progress, u32_at(bytes, offset_of!(Pulse, in_progress)));
    assert_eq!(facts.orphans, u32_at(bytes, offset_of!(Pulse, orphans)));
    let state = [facts.listening, facts.silent, facts.enforcing, facts.null_failed];
    let state = (0..4).map(|i| u32::from(state[i]) << i).sum::<u32>();
    assert_eq!(state, u32_at(bytes, offset_of!(Pulse, server_state)) & 0xf);
}

/// Other bytes than the good ones: refused, unless whoever has the key has signed them for this host and SCVM.
fn spoil(good: &[u8; LEN], mut bytes: [u8; LEN], expected: &Expected) {
    let genuine = mac(expected.key, true, &bytes) == u64_at(&bytes, MAC_OFFSET);
    assert!(decode(&bytes, expected).is_err() || genuine, "an unsigned reply is taken");
    sign(expected.key, &mut bytes);
    let same = |from: usize, to: usize| bytes[from..to] == good[from..to];
    let ours = same(0, offset_of!(Pulse, flags)) && same(offset_of!(Pulse, host), offset_of!(Pulse, seq));
    let answer = decode(&bytes, expected);
    if ours {
        says_what_it_holds(&bytes, &answer);
    } else {
        assert!(answer.is_err(), "of another version, kind, host, SCVM or run");
    }
}
