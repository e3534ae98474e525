//! A sensor of its own for each test.

use reroute_agent::config::{AdmissionMode, Timing, XdpMode};
use reroute_agent::sensor::{Registration, Sensor, Settings};
use reroute_core::ids::{HostId, Network, ScvmId};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

pub struct Bench {
    pub sensor: Sensor,
    pub dir: PathBuf,
}

impl Bench {
    pub fn new() -> Bench {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = PathBuf::from(format!(
            "/sys/fs/bpf/reroute-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        let settings = Settings {
            bpf_dir: dir.clone(),
            scvm: ScvmId(1),
            scvm_boot: 77,
            mode: AdmissionMode::Enforce,
            service: SocketAddrV4::new(Ipv4Addr::new(192, 168, 33, 2), 2049),
            timing: Timing::default(),
            interfaces: vec![],
            clients: vec![Registration {
                host: HostId(1),
                addresses: [
                    (Network::Private, IpAddr::from([192, 168, 33, 1])),
                    (Network::Storage, IpAddr::from([10, 10, 85, 11])),
                    (Network::Management, IpAddr::from([192, 168, 85, 11])),
                ],
                pulse_key: [1, 2],
                has_agent: true,
            }],
            xdp: XdpMode::Auto,
        };
        let sensor = Sensor::start(settings).unwrap();
        Bench { sensor, dir }
    }
}
