use super::*;

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next, 64]);
    frame.extend([1; 16]);
    frame.extend([2; 16]);
    frame.extend(payload);
    frame
}

fn tcp() -> Vec<u8> {
    let mut h = vec![0x03, 0xe8, 0x08, 0x01, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, tcp::ACK, 0, 0, 0, 0, 0, 0];
    h.extend(b"abc");
    h
}

fn parsed(bytes: &[u8]) -> Frame {
    let mut frame = Frame::new();
    parse(&bytes, &mut frame);
    frame
}

#[test]
fn ipv6_extension_headers_are_walked() {
    let plain = parsed(&ipv6(6, &tcp()));
    assert_eq!((plain.kind, plain.source, plain.destination), (Kind::Tcp, [1; 16], [2; 16]));
    assert_eq!((plain.source_port, plain.destination_port, plain.sequence), (1000, 2049, 9));
    assert_eq!((plain.payload, plain.payload_len), (14 + 40 + 20, 3));
    let hop_by_hop = [&[60, 1][..], &[0; 14]].concat();
    let destination = [&[44, 0][..], &[0; 6]].concat();
    let atomic_fragment = [6, 0, 0, 0, 0, 0, 0, 1];
    let chain = [&hop_by_hop[..], &destination, &atomic_fragment, &tcp()].concat();
    let far = parsed(&ipv6(0, &chain));
    assert_eq!((far.kind, far.payload, far.payload_len), (Kind::Tcp, 14 + 40 + 16 + 8 + 8 + 20, 3));
    let fragment = [6, 0, 0, 1, 0, 0, 0, 1];
    assert_eq!(parsed(&ipv6(44, &[&fragment[..], &tcp()].concat())).kind, Kind::BrokenTcp);
}

#[test]
fn no_cut_is_read_beyond_its_end() {
    let whole = ipv6(6, &tcp());
    for len in 0..whole.len() {
        let frame = parsed(&whole[..len]);
        assert_ne!(frame.kind, Kind::Tcp, "{len}");
    }
}
