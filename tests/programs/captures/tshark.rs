//! A capture file, and what `tshark` reads in it.

use super::traffic::{Frame, Way};
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use std::collections::HashMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Longest frame a capture holds.
const SNAPLEN: u32 = 262_144;

/// A pcap file in the directory for temporary files, for as long as this lives.
pub struct Capture {
    pub file: PathBuf,
}

impl Capture {
    pub fn write(frames: &[Frame]) -> Capture {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("reroute-capture-{}-{n}.pcap", std::process::id());
        let capture = Capture { file: std::env::temp_dir().join(name) };
        let header = PcapHeader { datalink: DataLink::ETHERNET, snaplen: SNAPLEN, ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(File::create(&capture.file).unwrap(), header).unwrap();
        for frame in frames {
            let mut write = |bytes: &[u8]| {
                let at = Duration::from_micros(frame.at);
                writer.write_packet(&PcapPacket::new(at, bytes.len() as u32, bytes)).unwrap();
            };
            match &frame.cut {
                Some(cut) => cut.segments.iter().for_each(|s| write(s)),
                None => write(&frame.bytes),
            }
        }
        capture
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Reads a capture; `way` tells frames apart. Frames that were cut by the capture are no frames.
pub fn read(file: &Path, way: impl Fn(&[u8]) -> Way) -> Vec<Frame> {
    let mut reader = PcapReader::new(File::open(file).unwrap()).unwrap();
    assert_eq!(reader.header().datalink, DataLink::ETHERNET);
    let mut frames = vec![];
    while let Some(packet) = reader.next_packet() {
        let packet = packet.unwrap();
        assert_eq!(packet.orig_len as usize, packet.data.len(), "a frame was not captured whole");
        let bytes = packet.data.into_owned();
        frames.push(Frame { at: packet.timestamp.as_micros() as u64, way: way(&bytes), bytes, cut: None });
    }
    frames
}

/// One frame, as tshark dissects it.
#[derive(Debug, Clone)]
pub struct Row {
    pub len: u64,
    pub source: Option<IpAddr>,
    pub destination: Option<IpAddr>,
    /// IP says TCP, behind extension headers too.
    pub is_tcp: bool,
    pub is_fragment: bool,
    /// None: too short, or a fragment without header.
    pub tcp: Option<Tcp>,
    /// Records whose last byte is in this frame.
    pub messages: Vec<Message>,
}

#[derive(Debug, Clone)]
pub struct Tcp {
    pub source_port: u16,
    pub destination_port: u16,
    pub seq: u32,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Call { xid: u32, program: u32, version: u32, procedure: u32 },
    Reply { xid: u32 },
}

/// Fragments stay as they are (each is a frame of its own); streams are put together whatever the order of their segments;
/// RPC is told by its looks, not by what else may use the client's port.
const OPTIONS: &[&str] = &[
    "ip.defragment:FALSE",
    "ipv6.defragment:FALSE",
    "tcp.analyze_sequence_numbers:TRUE",
    "tcp.relative_sequence_numbers:FALSE",
    "tcp.desegment_tcp_streams:TRUE",
    "tcp.reassemble_out_of_order:TRUE",
    "tcp.try_heuristic_first:TRUE",
    "rpc.desegment_rpc_over_tcp:TRUE",
    "rpc.defragment_rpc_over_tcp:TRUE",
    "rpc.find_fragment_start:FALSE",
];
const FIELDS: &[&str] = &[
    "frame.len",
    "ip.src",
    "ip.dst",
    "ip.proto",
    "ip.flags.mf",
    "ip.frag_offset",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.nxt",
    "ipv6.hopopts.nxt",
    "ipv6.dstopts.nxt",
    "ipv6.routing.nxt",
    "ah.next_header",
    "ipv6.fraghdr.nxt",
    "ipv6.fraghdr.offset",
    "ipv6.fraghdr.more",
    "tcp.srcport",
    "tcp.dstport",
    "tcp.seq_raw",
    "tcp.flags",
    "tcp.stream",
    "tcp.payload",
    "rpc.xid",
    "rpc.msgtyp",
    "rpc.program",
    "rpc.programversion",
    "rpc.procedure",
];

/// Those that say what an IP header, or one of its extensions, is followed by.
const NEXT: &[&str] = &[
    "ip.proto",
    "ipv6.nxt",
    "ipv6.hopopts.nxt",
    "ipv6.dstopts.nxt",
    "ipv6.routing.nxt",
    "ah.next_header",
    "ipv6.fraghdr.nxt",
];

pub fn dissect(file: &Path) -> Vec<Row> {
    let mut command = Command::new("tshark");
    // Not this user's preferences.
    command.env("WIRESHARK_CONFIG_DIR", "/nonexistent");
    command.args([
        "-n",
        "-T",
        "fields",
        "-E",
        "separator=/t",
        "-E",
        "occurrence=a",
        "-E",
        "aggregator=,",
        "-r",
    ]);
    command.arg(file);
    command.args(OPTIONS.iter().flat_map(|o| ["-o", o]));
    command.args(FIELDS.iter().flat_map(|f| ["-e", f]));
    let out = command.output().expect("tshark: see `cargo xtask setup`");
    assert!(out.status.success(), "tshark: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(row).collect()
}

fn row(line: &str) -> Row {
    let fields: HashMap<&str, Vec<&str>> = FIELDS
        .iter()
        .zip(line.split('\t'))
        .map(|(name, text)| (*name, text.split(',').filter(|t| !t.is_empty()).collect()))
        .collect();
    assert_eq!(fields.len(), FIELDS.len(), "{line}");
    let first = |name: &str| fields[name].first().copied();
    let number = |name: &str| first(name).map(parse);
    let address = |v4: &str, v6: &str| first(v4).or(first(v6)).map(|t| t.parse().unwrap());
    let not_zero = |name: &str| number(name).is_some_and(|n| n != 0);
    let port = |name: &str| number(name).map(|n| n as u16);
    let tcp = port("tcp.srcport").zip(port("tcp.dstport")).zip(number("tcp.flags")).map(
        |((source_port, destination_port), flags)| Tcp {
            source_port,
            destination_port,
            seq: number("tcp.seq_raw").unwrap(),
            flags: flags as u8,
            stream: number("tcp.stream").unwrap_or(u32::MAX),
            payload: bytes(first("tcp.payload").unwrap_or("")),
        },
    );
    Row {
        len: number("frame.len").unwrap().into(),
        source: address("ip.src", "ipv6.src"),
        destination: address("ip.dst", "ipv6.dst"),
        is_tcp: NEXT.iter().any(|name| fields[name].iter().any(|t| parse(t) == 6)),
        is_fragment: ["ip.flags.mf", "ip.frag_offset", "ipv6.fraghdr.offset", "ipv6.fraghdr.more"]
            .into_iter()
            .any(not_zero),
        tcp,
        messages: messages(&fields, line),
    }
}

/// Frames carry calls or replies, never both; tshark repeats a reply's procedure from its call.
fn messages(fields: &HashMap<&str, Vec<&str>>, line: &str) -> Vec<Message> {
    let numbers = |name: &str| -> Vec<u32> { fields[name].iter().map(|t| parse(t)).collect() };
    let (xids, types) = (numbers("rpc.xid"), numbers("rpc.msgtyp"));
    let calls = types.iter().filter(|t| **t == 0).count();
    if calls == 0 {
        return xids.into_iter().zip(types).map(|(xid, _)| Message::Reply { xid }).collect();
    }
    let all = ["rpc.program", "rpc.programversion", "rpc.procedure"].map(numbers);
    assert!(xids.len() == calls && types.len() == calls, "{line}");
    // A dissector of the program itself repeats the version.
    let what = all.map(|n| {
        assert!(n.len() >= calls && n.len() % calls == 0, "{line}");
        n.iter().step_by(n.len() / calls).copied().collect::<Vec<_>>()
    });
    let call =
        |(i, xid)| Message::Call { xid, program: what[0][i], version: what[1][i], procedure: what[2][i] };
    xids.into_iter().enumerate().map(call).collect()
}

fn parse(text: &str) -> u32 {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    number.unwrap_or_else(|| panic!("no number: {text}"))
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
