//! Records on the wire (RFC 5531 §11), as clients and servers write them.

use reroute_common::class;

/// Program, version, procedure, and the class they are counted in.
pub const PROCEDURES: &[(u32, u32, u32, u32)] = &[
    (100_003, 3, 0, class::NULL),
    (100_003, 3, 6, class::READ),
    (100_003, 3, 7, class::WRITE),
    (100_003, 3, 21, class::WRITE),
    (100_003, 3, 1, class::METADATA),
    (100_003, 3, 20, class::METADATA),
    (100_005, 3, 1, class::METADATA),
    (100_021, 4, 2, class::METADATA),
    (100_227, 3, 0, class::NULL),
    (100_003, 4, 1, class::METADATA),
];

/// Bytes of a call before its body, of a reply before its.
pub const CALL: usize = 24;
pub const REPLY: usize = 8;

/// What bodies are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    Zeros,
    Text,
    /// Record marks of one empty last fragment.
    Marks,
    /// Calls, as a copied capture holds them.
    Calls,
    Replies,
}

fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_be_bytes).collect()
}

pub fn call(xid: u32, procedure: usize, body: usize, filling: Filling) -> Vec<u8> {
    let (program, version, number, _) = PROCEDURES[procedure % PROCEDURES.len()];
    let mut bytes = words([xid, 0, 2, program, version, number]);
    fill(&mut bytes, body, filling);
    bytes
}

pub fn reply(xid: u32, body: usize, filling: Filling) -> Vec<u8> {
    let mut bytes = words([xid, 1]);
    fill(&mut bytes, body, filling);
    bytes
}

fn fill(bytes: &mut Vec<u8>, body: usize, filling: Filling) {
    let xid = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let pattern = match filling {
        Filling::Zeros => vec![0],
        Filling::Text => vec![0x5a],
        Filling::Marks => words([0x8000_0000]),
        Filling::Calls => words([0x8000_0028, xid.wrapping_add(1), 0, 2, 100_003, 3, 7, 0, 0, 0, 0]),
        Filling::Replies => words([0x8000_0018, xid, 1, 0, 0, 0, 0]),
    };
    bytes.extend(pattern.iter().cycle().take(body));
}

/// `payload` as one record, cut into fragments at `cuts` (16ths of what lies behind the first `head` bytes); the same
/// cut twice makes an empty fragment. Appends to `stream`; gives where each mark stands.
pub fn record(stream: &mut Vec<u8>, payload: &[u8], head: usize, cuts: &[u8]) -> Vec<usize> {
    let mut ends: Vec<usize> =
        cuts.iter().map(|c| head + (payload.len() - head) * usize::from(*c).min(16) / 16).collect();
    ends.push(payload.len());
    ends.sort_unstable();
    let (mut from, last) = (0, ends.len() - 1);
    let mut marks = vec![];
    for (i, to) in ends.into_iter().enumerate() {
        marks.push(stream.len());
        let mark = (u32::from(i == last) << 31) | (to - from) as u32;
        stream.extend(mark.to_be_bytes());
        stream.extend(&payload[from..to]);
        from = to;
    }
    marks
}
