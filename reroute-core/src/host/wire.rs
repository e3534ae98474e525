//! A pulse as bytes: what a host asks, and what it takes for an answer.

use super::{Facts, PulseFlag};
use crate::ids::*;
use reroute_common::admission::Word;
use reroute_common::pulse::{LEN, MAC_OFFSET, MAGIC, Pulse, VERSION, direction_key, flags, kind, server};
use reroute_common::siphash;
use std::mem::offset_of;

/// Why a datagram on a pulse socket was not taken for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reject {
    Size,
    Address,
    Magic,
    Version,
    Kind,
    Host,
    Scvm,
    Mac,
    /// Of a former run of this agent.
    Incarnation,
    /// Never sent, answered already, or too long ago.
    Sequence,
}

impl Reject {
    pub fn name(self) -> &'static str {
        match self {
            Reject::Size => "size",
            Reject::Address => "address",
            Reject::Magic => "magic",
            Reject::Version => "version",
            Reject::Kind => "kind",
            Reject::Host => "host",
            Reject::Scvm => "scvm",
            Reject::Mac => "mac",
            Reject::Incarnation => "incarnation",
            Reject::Sequence => "sequence",
        }
    }
}

/// What is asked of one SCVM.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub flag: PulseFlag,
    pub epoch: Epoch,
    pub scvm_boot: u64,
    pub scvm_stamp: u64,
}

/// A request, before it is bytes.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Of this host and that SCVM.
    pub key: [u64; 2],
    pub host: HostId,
    pub scvm: ScvmId,
    pub incarnation: Incarnation,
    pub sequence: u64,
    pub time: BootNs,
    pub request: Request,
}

/// [`reroute_common::pulse::Pulse`] in its wire order.
pub fn encode(header: &Header) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let mut at = 0;
    let mut put = |part: &[u8]| {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    };
    let flag = match header.request.flag {
        PulseFlag::Affirm => flags::AFFIRM,
        PulseFlag::Release => flags::RELEASE,
        PulseFlag::Probe => flags::PROBE,
    };
    put(&MAGIC.to_le_bytes());
    put(&[VERSION, kind::REQUEST]);
    put(&flag.to_le_bytes());
    put(&header.host.0.to_le_bytes());
    put(&header.scvm.0.to_le_bytes());
    for word in [
        header.incarnation.0,
        header.sequence,
        header.time.0,
        header.request.epoch.0,
        header.request.scvm_boot,
        header.request.scvm_stamp,
    ] {
        put(&word.to_le_bytes());
    }
    let mac = mac(direction_key(header.key, kind::REQUEST), &bytes);
    bytes[MAC_OFFSET..].copy_from_slice(&mac.to_le_bytes());
    bytes
}

/// Whose reply is expected.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Of this host and that SCVM.
    pub key: [u64; 2],
    pub host: HostId,
    pub scvm: ScvmId,
    pub incarnation: Incarnation,
}

/// What a reply says: which request it answers, by number and time, and what the SCVM's kernel knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    pub sequence: u64,
    pub time: BootNs,
    pub facts: Facts,
}

/// Reads a reply. Whether that request was sent, the caller knows.
///
/// # Errors
/// The first thing that shows it to be none: never [`Reject::Size`], [`Reject::Address`] or [`Reject::Sequence`].
pub fn decode(bytes: &[u8; LEN], expected: &Expected) -> Result<Answer, Reject> {
    let fields = Fields(bytes);
    let checks = [
        (fields.u32(offset_of!(Pulse, magic)) == MAGIC, Reject::Magic),
        (bytes[offset_of!(Pulse, version)] == VERSION, Reject::Version),
        (bytes[offset_of!(Pulse, kind)] == kind::REPLY, Reject::Kind),
        (fields.u32(offset_of!(Pulse, host)) == expected.host.0, Reject::Host),
        (fields.u32(offset_of!(Pulse, scvm)) == expected.scvm.0, Reject::Scvm),
        (mac(direction_key(expected.key, kind::REPLY), bytes) == fields.u64(MAC_OFFSET), Reject::Mac),
        (fields.u64(offset_of!(Pulse, host_incarnation)) == expected.incarnation.0, Reject::Incarnation),
    ];
    if let Some((_, reject)) = checks.into_iter().find(|(holds, _)| !holds) {
        return Err(reject);
    }
    Ok(Answer {
        sequence: fields.u64(offset_of!(Pulse, seq)),
        time: BootNs(fields.u64(offset_of!(Pulse, host_time))),
        facts: fields.facts(),
    })
}

/// What stands at [`MAC_OFFSET`], under the key of a direction.
pub fn mac(key: [u64; 2], bytes: &[u8; LEN]) -> u64 {
    let fields = Fields(bytes);
    let words: [u64; MAC_OFFSET / 8] = std::array::from_fn(|i| fields.u64(8 * i));
    siphash::hash(key, &words)
}

/// Little-endian fields by offset.
struct Fields<'a>(&'a [u8; LEN]);

impl Fields<'_> {
    fn u32(&self, offset: usize) -> u32 {
        let b = self.0;
        u32::from_le_bytes([b[offset], b[offset + 1], b[offset + 2], b[offset + 3]])
    }
    fn u64(&self, offset: usize) -> u64 {
        u64::from(self.u32(offset)) | u64::from(self.u32(offset + 4)) << 32
    }

    fn facts(&self) -> Facts {
        let word = Word(self.u64(offset_of!(Pulse, word)));
        let state = self.u32(offset_of!(Pulse, server_state));
        let has = |bit: u32| state & bit != 0;
        Facts {
            scvm_boot: self.u64(offset_of!(Pulse, scvm_boot)),
            scvm_stamp: self.u64(offset_of!(Pulse, scvm_stamp)),
            server: Incarnation(self.u64(offset_of!(Pulse, server_incarnation))),
            word_epoch: Epoch(word.epoch()),
            word_rank: word.into(),
            lease_ns: self.u64(offset_of!(Pulse, lease_ns)),
            listening: has(server::LISTENING),
            silent: has(server::SILENT),
            null_failed: has(server::NULL_FAILED),
            enforcing: has(server::ENFORCING),
            data_silent: has(server::DATA_SILENT),
            data_reply_age_ns: match has(server::DATA_REPLIES) {
                true => self.u64(offset_of!(Pulse, data_reply_age_ns)),
                false => u64::MAX,
            },
            calls_waiting: self.u32(offset_of!(Pulse, calls_waiting)),
            in_progress: self.u32(offset_of!(Pulse, in_progress)),
            orphans: self.u32(offset_of!(Pulse, orphans)),
            oldest_call_age_ns: self.u64(offset_of!(Pulse, oldest_call_age_ns)),
            agent_age_ns: self.u64(offset_of!(Pulse, agent_age_ns)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_order_is_that_of_the_kernels_struct() {
        let bytes = encode(&Header {
            key: [11, 22],
            host: HostId(5),
            scvm: ScvmId(2),
            incarnation: Incarnation(77),
            sequence: 6,
            time: BootNs(8),
            request: Request { flag: PulseFlag::Affirm, epoch: Epoch(9), scvm_boot: 3, scvm_stamp: 4 },
        });
        let fields = Fields(&bytes);
        assert_eq!(bytes[offset_of!(Pulse, flags)], flags::AFFIRM as u8);
        assert_eq!(fields.u32(offset_of!(Pulse, host)), 5);
        assert_eq!(fields.u32(offset_of!(Pulse, scvm)), 2);
        let word = |offset| fields.u64(offset);
        assert_eq!(word(offset_of!(Pulse, host_incarnation)), 77);
        assert_eq!(word(offset_of!(Pulse, seq)), 6);
        assert_eq!(word(offset_of!(Pulse, host_time)), 8);
        assert_eq!(word(offset_of!(Pulse, epoch)), 9);
        assert_eq!(word(offset_of!(Pulse, scvm_boot)), 3);
        assert_eq!(word(offset_of!(Pulse, scvm_stamp)), 4);
        assert_eq!(offset_of!(Pulse, mac), MAC_OFFSET);
        assert!(bytes[offset_of!(Pulse, server_incarnation)..MAC_OFFSET].iter().all(|b| *b == 0));
    }
}
