//! The packet parser. The input is a frame.

use reroute_common::mapped_ipv4;
use reroute_ebpf::packet::Packet;
use reroute_ebpf::parse::{End, Frame, Glance, Kind, Wanted, fill, glance, parse};

fn parsed(bytes: &[u8]) -> Frame {
    let mut frame = Frame::new();
    parse(&bytes, &mut frame);
    frame
}

/// Parses `data` as it is, with a tag more, with padding, and cut short.
///
/// # Panics
/// When one of them says what it must not.
pub fn run(data: &[u8]) {
    let frame = parsed(data);
    match frame.kind {
        Kind::Tcp => stands_where_it_says(data, &frame),
        Kind::Udp => {
            assert!(frame.transport > frame.ip && frame.payload == frame.transport + 8);
            assert!(end(&frame) <= data.len());
            ports(data, &frame);
        }
        Kind::BrokenTcp | Kind::Other => assert_eq!(frame.payload_len, 0),
    }
    glanced(data, &frame);
    tagged(data, &frame);
    padded(data, &frame);
    cut(data, &frame);
}

fn end(frame: &Frame) -> usize {
    (frame.payload + frame.payload_len) as usize
}

fn be16(data: &[u8], at: u32) -> u16 {
    let at = at as usize;
    u16::from_be_bytes([data[at], data[at + 1]])
}

fn be32(data: &[u8], at: u32) -> u32 {
    u32::from(be16(data, at)) << 16 | u32::from(be16(data, at + 2))
}

fn ports(data: &[u8], frame: &Frame) {
    let ports = (be16(data, frame.transport), be16(data, frame.transport + 2));
    assert_eq!((frame.source_port, frame.destination_port), ports);
}

fn stands_where_it_says(data: &[u8], frame: &Frame) {
    let Frame { ip, transport, payload, .. } = *frame;
    assert!(end(frame) <= data.len(), "{frame:?}");
    assert!([14, 18, 22].contains(&ip), "behind Ethernet and up to two tags: {frame:?}");
    let (from, to, len) = if frame.ipv4 { (12, 16, 4) } else { (8, 24, 16) };
    let at = |offset: u32| (ip + offset) as usize..(ip + offset + len) as usize;
    assert_eq!(frame.source[16 - len as usize..], data[at(from)]);
    assert_eq!(frame.destination[16 - len as usize..], data[at(to)]);
    assert!(transport >= ip + if frame.ipv4 { 20 } else { 40 }, "{frame:?}");
    assert_eq!(payload, transport + u32::from(data[transport as usize + 12] >> 4) * 4);
    assert!(payload >= transport + 20, "{frame:?}");
    ports(data, frame);
    assert_eq!(frame.sequence, be32(data, transport + 4));
    assert_eq!(frame.acknowledgment, be32(data, transport + 8));
    assert_eq!(frame.flags, data[transport as usize + 13]);
}

const PULSE_PORT: u16 = 7481;

/// What a glance tells is what parsing tells, whoever the service is.
fn glanced(data: &[u8], frame: &Frame) {
    let Some(head) = data.head() else { return };
    for end in [End::Source, End::Destination] {
        let (at, address, port) = match end {
            End::Source => (26, frame.source, frame.source_port),
            End::Destination => (30, frame.destination, frame.destination_port),
        };
        let own = [head[at], head[at + 1], head[at + 2], head[at + 3]];
        for (service, wanted_port) in [(own, port), (own, port ^ 1), ([1, 2, 3, 4], port)] {
            let wanted = Wanted {
                end,
                is_ipv4: true,
                service: u32::from_ne_bytes(service),
                port: wanted_port.into(),
                pulse_port: PULSE_PORT.into(),
            };
            let is_ours =
                frame.ipv4 && address == mapped_ipv4(service) && frame.may_have_port(end, wanted_port.into());
            let is_pulse =
                frame.kind == Kind::Udp && end == End::Destination && frame.destination_port == PULSE_PORT;
            match glance(head, wanted) {
                Glance::Other => {}
                Glance::Foreign => assert!(!is_ours && !is_pulse, "{wanted:?}: {frame:?}"),
                Glance::Service => filled(data, end, frame),
            }
        }
    }
}

/// What is filled in from a head is what parsing finds.
fn filled(data: &[u8], end: End, parsed: &Frame) {
    let Some(head) = data.head() else { return };
    let mut frame = Frame::new();
    if !fill(&data, head, (end, 3), &mut frame) {
        // Where the end is left open, parsing has to look.
        assert!(parsed.kind != Kind::Tcp || is_open_ended(data, parsed), "{parsed:?}");
        return;
    }
    let mut named = *parsed;
    named.set_key(end, 3);
    let told = |f: &Frame| {
        let numbers = (f.kind, f.flags, f.sequence, f.acknowledgment, f.window);
        (f.key, numbers, (f.len, f.payload, f.payload_len))
    };
    assert_eq!(told(&frame), told(&named));
}

fn is_tag(data: &[u8], at: u32) -> bool {
    matches!(be16(data, at), 0x8100 | 0x88a8)
}

/// A VLAN tag moves everything by four bytes, and changes nothing else.
fn tagged(data: &[u8], frame: &Frame) {
    if data.len() < 18 || (is_tag(data, 12) && is_tag(data, 16)) {
        return;
    }
    let bytes = [&data[..12], &[0x81, 0, 0, 7], &data[12..]].concat();
    let moved = |offset: u32| if offset == 0 { 0 } else { offset + 4 };
    let expected = Frame {
        ip: moved(frame.ip),
        transport: moved(frame.transport),
        payload: moved(frame.payload),
        len: frame.len + 4,
        ..*frame
    };
    assert_eq!(parsed(&bytes), expected);
}

/// Whether the IP header leaves the packet's end to the frame's (BIG TCP).
fn is_open_ended(data: &[u8], frame: &Frame) -> bool {
    be16(data, frame.ip + if frame.ipv4 { 2 } else { 4 }) == 0
}

/// Padding is no payload.
fn padded(data: &[u8], frame: &Frame) {
    if matches!(frame.kind, Kind::Tcp | Kind::Udp) && !is_open_ended(data, frame) {
        assert_eq!(parsed(&[data, &[0xee; 7]].concat()), Frame { len: frame.len + 7, ..*frame });
    }
}

/// Of a packet that is not all there, nothing is taken for payload.
fn cut(data: &[u8], frame: &Frame) {
    if frame.kind == Kind::Tcp && !is_open_ended(data, frame) {
        let end = end(frame);
        assert_eq!(parsed(&data[..end]), Frame { len: end as u32, ..*frame });
        for len in [end - 1, frame.payload as usize - 1, frame.transport as usize] {
            let short = parsed(&data[..len]);
            assert_eq!((short.kind, short.payload_len), (Kind::BrokenTcp, 0), "cut at {len}");
        }
    }
}
