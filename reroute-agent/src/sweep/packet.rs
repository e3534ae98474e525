//! ICMP echoes as bytes (RFC 792), and what comes back.
//!
//! An error message brings back only the first eight bytes of what it is about: everything that tells one request from
//! another is in identifier and sequence number. Answers carry a token besides, which nobody off the path can guess.

use reroute_core::sweep::{Index, MAX_TRIES, Obstacle, Probe, Size};
use std::net::Ipv4Addr;

pub const ECHO_REPLY: u8 = 0;
pub const UNREACHABLE: u8 = 3;
const ECHO: u8 = 8;
const IP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
const TOKEN: usize = 8;
/// Payload of a small echo.
const SMALL: usize = TOKEN;
/// Addresses in one sweep: what a sequence number can tell apart.
pub const MOST: usize = 1 << 12;
const _: () = assert!(MAX_TRIES <= 1 << 3);

/// What tells a sweep's packets from others'.
#[derive(Clone, Copy, Debug)]
pub struct Id {
    pub identifier: u16,
    pub token: [u8; TOKEN],
}

fn sequence(probe: Probe) -> u16 {
    let size = u16::from(probe.size == Size::Full);
    probe.target.0 << 4 | u16::from(probe.round & 7) << 1 | size
}

fn probe(sequence: u16) -> Probe {
    let size = if sequence & 1 == 1 { Size::Full } else { Size::Small };
    Probe { target: Index(sequence >> 4), size, round: (sequence >> 1 & 7) as u8 }
}

/// The internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| match *pair {
        [a, b] => u64::from(u16::from_be_bytes([a, b])),
        [a] => u64::from(u16::from_be_bytes([a, 0])),
        _ => 0,
    };
    let mut sum: u64 = bytes.chunks(2).map(word).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The ICMP message; a full one fills `mtu` with its IP header.
pub fn encode(id: Id, probe: Probe, mtu: u16) -> Vec<u8> {
    let payload = match probe.size {
        Size::Full => usize::from(mtu).saturating_sub(IP_HEADER + ICMP_HEADER).max(SMALL),
        Size::Small => SMALL,
    };
    let mut bytes = vec![0; ICMP_HEADER + payload];
    let header = [[ECHO, 0], [0, 0], id.identifier.to_be_bytes(), sequence(probe).to_be_bytes()].concat();
    for (to, from) in bytes.iter_mut().zip(header.into_iter().chain(id.token)) {
        *to = from;
    }
    let sum = checksum(&bytes).to_be_bytes();
    for (to, from) in bytes.iter_mut().skip(2).zip(sum) {
        *to = from;
    }
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    Reply { from: Ipv4Addr, probe: Probe },
    Obstacle { about: Ipv4Addr, probe: Probe, what: Obstacle },
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(four.into())
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The packet behind an IPv4 header that carries ICMP.
fn behind_ip(packet: &[u8]) -> Option<&[u8]> {
    let first = *packet.first()?;
    let is_icmp = packet.get(9) == Some(&1);
    (first >> 4 == 4 && is_icmp).then(|| packet.get(usize::from(first & 0xf) * 4..)).flatten()
}

/// What a packet says of one of ours; None: it is not about one.
pub fn decode(id: Id, packet: &[u8]) -> Option<Decoded> {
    let (from, icmp) = (address(packet, 12)?, behind_ip(packet)?);
    match *icmp.first()? {
        ECHO_REPLY => {
            let ours = short(icmp, 4)? == id.identifier && icmp.get(8..8 + TOKEN)? == id.token;
            ours.then_some(Decoded::Reply { from, probe: probe(short(icmp, 6)?) })
        }
        UNREACHABLE => {
            let original = icmp.get(ICMP_HEADER..)?;
            let (about, request) = (address(original, 16)?, behind_ip(original)?);
            if *request.first()? != ECHO || short(request, 4)? != id.identifier {
                return None;
            }
            let what = match *icmp.get(1)? {
                4 => Obstacle::FragmentationNeeded { by: from, mtu: short(icmp, 6)? },
                9 | 10 | 13 => Obstacle::Prohibited { by: from },
                _ => Obstacle::Unreachable { by: from },
            };
            Some(Decoded::Obstacle { about, probe: probe(short(request, 6)?), what })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = Id { identifier: 0xbeef, token: *b"a token!" };
    const P: Probe = Probe { target: Index(4095), size: Size::Full, round: 7 };

    fn ip(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend([from, to].concat());
        packet.extend(payload);
        packet
    }

    fn answered(mut echo: Vec<u8>) -> Vec<u8> {
        echo[0] = ECHO_REPLY;
        ip([10, 0, 0, 9], [10, 0, 0, 1], &echo)
    }

    #[test]
    fn a_full_echo_fills_the_mtu_and_its_checksum_is_right() {
        let bytes = encode(ID, P, 1500);
        assert_eq!(bytes.len() + IP_HEADER, 1500);
        assert_eq!(checksum(&bytes), 0, "with its own checksum the sum is zero");
        assert_eq!(encode(ID, Probe { size: Size::Small, ..P }, 1500).len(), 16);
    }

    #[test]
    fn an_answer_names_its_request() {
        let from = [10, 0, 0, 9].into();
        for round in 0..8 {
            for size in [Size::Full, Size::Small] {
                let p = Probe { target: Index(17), size, round };
                let got = decode(ID, &answered(encode(ID, p, 1500)));
                assert_eq!(got, Some(Decoded::Reply { from, probe: p }));
            }
        }
    }

    #[test]
    fn answers_of_others_and_guesses_are_none() {
        let other = Id { identifier: 1, ..ID };
        let guess = Id { token: [0; 8], ..ID };
        assert_eq!(decode(ID, &answered(encode(other, P, 1500))), None);
        assert_eq!(decode(ID, &answered(encode(guess, P, 1500))), None);
        let whole = answered(encode(ID, P, 100));
        for cut in 0..36 {
            assert_eq!(decode(ID, &whole[..cut]), None, "cut to {cut}");
        }
    }

    #[test]
    fn obstacles_by_code() {
        let original = ip([10, 0, 0, 1], [10, 0, 0, 9], &encode(ID, P, 1500)[..8]);
        let by: Ipv4Addr = [10, 0, 0, 254].into();
        for (code, what) in [
            (1, Obstacle::Unreachable { by }),
            (4, Obstacle::FragmentationNeeded { by, mtu: 1400 }),
            (13, Obstacle::Prohibited { by }),
        ] {
            let mut icmp = vec![UNREACHABLE, code, 0, 0, 0, 0, 5, 0x78];
            icmp.extend(&original);
            let about = [10, 0, 0, 9].into();
            let got = decode(ID, &ip(by.octets(), [10, 0, 0, 1], &icmp));
            assert_eq!(got, Some(Decoded::Obstacle { about, probe: P, what }));
        }
    }
}
