use super::*;
use crate::netlink::namespace;
use reroute_common::admission::{Word, rank};
use reroute_common::pulse::{MAC_OFFSET, Pulse, direction_key, kind, server};
use reroute_core::host::wire::mac;
use reroute_core::host::{PulseFlag, Rank};
use std::mem::offset_of;

const KEY: [u64; 2] = [11, 22];

fn path() -> Path {
    Path { scvm: ScvmId(2), network: Network::Storage }
}

/// Pulses from 127.0.0.1 to a peer at 127.0.0.2, without a configuration file.
fn pulses() -> Pulses {
    let address = Ipv4Addr::LOCALHOST;
    let socket = bind("lo", address).unwrap();
    let target =
        Target { address: "127.0.0.2:7481".parse().unwrap(), key: KEY, outstanding: VecDeque::new() };
    Pulses {
        host: HostId(5),
        incarnation: Incarnation(77),
        sequence: 0,
        links: [(Network::Storage, Link { interface: "lo".into(), address, socket })].into(),
        by_address: [((Network::Storage, target.address), path())].into(),
        targets: [(path(), target)].into(),
    }
}

fn request() -> Request {
    Request { flag: PulseFlag::Affirm, epoch: Epoch(9), scvm_boot: 3, scvm_stamp: 4 }
}

/// What an SCVM does with a request.
fn reflect(request: &[u8; LEN]) -> [u8; LEN] {
    assert_eq!(request[MAC_OFFSET..], mac(direction_key(KEY, kind::REQUEST), request).to_le_bytes());
    let mut reply = *request;
    let mut put = |offset: usize, bytes: &[u8]| reply[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(offset_of!(Pulse, kind), &[kind::REPLY]);
    put(offset_of!(Pulse, scvm_boot), &70u64.to_le_bytes());
    put(offset_of!(Pulse, scvm_stamp), &71u64.to_le_bytes());
    put(offset_of!(Pulse, server_incarnation), &72u64.to_le_bytes());
    put(offset_of!(Pulse, word), &Word::new(9, rank::RELEASED).0.to_le_bytes());
    put(offset_of!(Pulse, lease_ns), &73u64.to_le_bytes());
    put(
        offset_of!(Pulse, server_state),
        &(server::LISTENING | server::NULL_FAILED | server::DATA_SILENT | server::DATA_REPLIES).to_le_bytes(),
    );
    put(offset_of!(Pulse, calls_waiting), &74u32.to_le_bytes());
    put(offset_of!(Pulse, in_progress), &75u32.to_le_bytes());
    put(offset_of!(Pulse, orphans), &76u32.to_le_bytes());
    put(offset_of!(Pulse, oldest_call_age_ns), &78u64.to_le_bytes());
    put(offset_of!(Pulse, agent_age_ns), &77u64.to_le_bytes());
    put(offset_of!(Pulse, data_reply_age_ns), &79u64.to_le_bytes());
    sign(&mut reply);
    reply
}

fn sign(reply: &mut [u8; LEN]) {
    let mac = mac(direction_key(KEY, kind::REPLY), reply);
    reply[MAC_OFFSET..].copy_from_slice(&mac.to_le_bytes());
}

#[test]
fn a_reflected_pulse_comes_back_over_the_wire() {
    namespace::run_async(async || {
        let mut pulses = pulses();
        let scvm = UdpSocket::bind("127.0.0.2:7481").await.unwrap();
        let sent_at = pulses.send(path(), request()).unwrap();
        let mut bytes = [0; LEN];
        let (length, from) = scvm.recv_from(&mut bytes).await.unwrap();
        assert_eq!(length, LEN);
        scvm.send_to(&reflect(&bytes), from).await.unwrap();
        pulses.readable().await;
        let [Ok(reply)] = &pulses.receive()[..] else { panic!("one good reply") };
        assert_eq!((reply.path, reply.sent_at), (path(), sent_at));
        assert!(reply.received_at >= sent_at);
        assert_eq!(
            reply.facts,
            Facts {
                scvm_boot: 70,
                scvm_stamp: 71,
                server: Incarnation(72),
                word_epoch: Epoch(9),
                word_rank: Rank::Released,
                lease_ns: 73,
                listening: true,
                silent: false,
                null_failed: true,
                enforcing: false,
                in_progress: 75,
                orphans: 76,
                calls_waiting: 74,
                oldest_call_age_ns: 78,
                agent_age_ns: 77,
                data_silent: true,
                data_reply_age_ns: 79,
            }
        );
    });
}

/// Its field held the age of any reply.
#[test]
fn an_older_scvm_says_nothing_of_its_storage() {
    namespace::run_async(async || {
        let mut pulses = pulses();
        let scvm = UdpSocket::bind("127.0.0.2:7481").await.unwrap();
        pulses.send(path(), request()).unwrap();
        let mut bytes = [0; LEN];
        let (_, from) = scvm.recv_from(&mut bytes).await.unwrap();
        let mut reply = reflect(&bytes);
        let at = offset_of!(Pulse, server_state);
        reply[at..at + 4].copy_from_slice(&server::LISTENING.to_le_bytes());
        sign(&mut reply);
        scvm.send_to(&reply, from).await.unwrap();
        pulses.readable().await;
        let [Ok(reply)] = &pulses.receive()[..] else { panic!("one good reply") };
        assert_eq!(reply.facts.data_reply_age_ns, u64::MAX);
    });
}

#[test]
fn what_is_no_reply_to_us_is_rejected_by_name() {
    namespace::run_async(async || {
        let mut pulses = pulses();
        let from: SocketAddr = "127.0.0.2:7481".parse().unwrap();
        let scvm = UdpSocket::bind(from).await.unwrap();
        pulses.send(path(), request()).unwrap();
        let mut bytes = [0; LEN];
        scvm.recv_from(&mut bytes).await.unwrap();
        let good = reflect(&bytes);
        let now = clock::now();
        let spoilt = |offset: usize, signed: bool| {
            let mut reply = good;
            reply[offset] ^= 1;
            if signed {
                sign(&mut reply);
            }
            reply
        };
        for (reply, reject) in [
            (spoilt(offset_of!(Pulse, magic), true), Reject::Magic),
            (spoilt(offset_of!(Pulse, version), true), Reject::Version),
            (spoilt(offset_of!(Pulse, kind), true), Reject::Kind),
            (spoilt(offset_of!(Pulse, host), true), Reject::Host),
            (spoilt(offset_of!(Pulse, scvm), true), Reject::Scvm),
            (spoilt(offset_of!(Pulse, server_state), false), Reject::Mac),
            (spoilt(offset_of!(Pulse, mac), false), Reject::Mac),
            (spoilt(offset_of!(Pulse, host_incarnation), true), Reject::Incarnation),
            (spoilt(offset_of!(Pulse, seq), true), Reject::Sequence),
            (spoilt(offset_of!(Pulse, host_time), true), Reject::Sequence),
            // A request that somebody sends back as it was.
            (bytes, Reject::Kind),
        ] {
            assert_eq!(pulses.decode(Network::Storage, &reply, from, now), Err(reject));
        }
        assert_eq!(pulses.decode(Network::Storage, &good[1..], from, now), Err(Reject::Size));
        let stranger = "127.0.0.3:7481".parse().unwrap();
        assert_eq!(pulses.decode(Network::Storage, &good, stranger, now), Err(Reject::Address));
        assert_eq!(pulses.decode(Network::Management, &good, from, now), Err(Reject::Address));
        assert!(pulses.decode(Network::Storage, &good, from, now).is_ok());
        let again = pulses.decode(Network::Storage, &good, from, now);
        assert_eq!(again, Err(Reject::Sequence), "a copy proves nothing");
    });
}
