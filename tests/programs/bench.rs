//! A sensor in namespaces of its own, and the programs as functions: frames in, verdicts out.
#![allow(unsafe_code)]

use aya::maps::{Array, Map, MapData};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use reroute_agent::config::{AdmissionMode, Timing, XdpMode};
use reroute_agent::sensor::{Answer, Registration, Sensor, Settings};
use reroute_common::table::{Client, Config, Interface, Server};
use reroute_core::ids::{BootNs, Epoch, HostId, Network, ScvmId};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const SERVICE: [u8; 4] = [192, 168, 33, 2];
pub const PORT: u16 = 2049;
pub const SCVM: ScvmId = ScvmId(1);
pub const BOOT: u64 = 0x7777;
pub const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
pub const HOST: HostId = HostId(1);
pub const STORAGE_ADDRESS: [u8; 4] = [10, 10, 85, 11];
pub const PRIVATE_ADDRESS: [u8; 4] = [192, 168, 33, 1];
/// A second host, without an agent.
pub const MUTE: HostId = HostId(2);
pub const MUTE_ADDRESS: [u8; 4] = [10, 10, 85, 12];

pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;
/// What passes is left to the next program.
pub const TC_NEXT: u32 = u32::MAX;
pub const TC_SHOT: u32 = 2;

/// Network and mount namespaces of this thread alone, with a bpffs mounted. What is pinned there ends with it.
pub struct Space {
    pub bpffs: PathBuf,
}

impl Space {
    pub fn new() -> Space {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // SAFETY: changes the calling thread's namespaces alone.
        let rc = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
        assert_eq!(rc, 0, "needs root: {}", std::io::Error::last_os_error());
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let bpffs = std::env::temp_dir().join(format!("reroute-programs-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&bpffs).unwrap();
        run("mount --make-rprivate /");
        run(&format!("mount -t bpf bpf {}", bpffs.display()));
        run("ip link set lo up");
        Space { bpffs }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l".as_ref(), self.bpffs.as_os_str()]).status();
        let _ = std::fs::remove_dir(&self.bpffs);
    }
}

/// A network namespace for the calling thread alone.
pub fn unshare_network() {
    // SAFETY: changes the calling thread's namespace alone.
    let rc = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(rc, 0, "needs root: {}", std::io::Error::last_os_error());
}

pub fn run(command: &str) {
    let mut words = command.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

pub struct Bench {
    pub sensor: Sensor,
    ingress: Xdp,
    ingress_tc: SchedClassifier,
    egress: SchedClassifier,
    config: Array<MapData, Config>,
    pub dir: PathBuf,
    _space: Space,
}

pub fn settings(dir: &Path) -> Settings {
    let registration = |host, storage: [u8; 4], management: [u8; 4], has_agent| Registration {
        host,
        addresses: vec![
            (
                Network::Private,
                if has_agent { IpAddr::from(PRIVATE_ADDRESS) } else { IpAddr::from([192, 168, 33, 9]) },
            ),
            (Network::Storage, IpAddr::from(storage)),
            (Network::Management, IpAddr::from(management)),
        ],
        pulse_key: KEY,
        has_agent,
    };
    Settings {
        bpf_dir: dir.to_path_buf(),
        scvm: SCVM,
        scvm_boot: BOOT,
        mode: AdmissionMode::Enforce,
        service: SocketAddr::from((SERVICE, PORT)),
        timing: Timing::default(),
        interfaces: vec![],
        clients: vec![
            registration(HOST, STORAGE_ADDRESS, [192, 168, 85, 11], true),
            registration(MUTE, MUTE_ADDRESS, [192, 168, 85, 12], false),
        ],
        xdp: XdpMode::Native,
    }
}

impl Bench {
    /// Enforces; frames come by the storage network; nobody is admitted.
    pub fn new() -> Bench {
        Bench::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Settings)) -> Bench {
        let space = Space::new();
        let dir = space.bpffs.join("scvm");
        let mut settings = settings(&dir);
        change(&mut settings);
        let sensor = Sensor::start(settings).unwrap();
        let mut bench = Bench {
            ingress: Xdp::from_pin(dir.join("program_ingress"), aya_obj::programs::XdpAttachType::Interface)
                .unwrap(),
            ingress_tc: SchedClassifier::from_pin(dir.join("program_ingress_tc")).unwrap(),
            egress: SchedClassifier::from_pin(dir.join("program_egress")).unwrap(),
            config: Array::try_from(
                Map::from_map_data(MapData::from_pin(dir.join("CONFIG")).unwrap()).unwrap(),
            )
            .unwrap(),
            sensor,
            dir,
            _space: space,
        };
        bench.by(Network::Storage);
        bench
    }

    /// HOST admitted at epoch 1 with a long lease.
    pub fn admitted() -> Bench {
        let bench = Bench::new();
        bench.lease(Duration::from_secs(3600));
        assert!(!bench.sensor.admit(HOST, Epoch(1)).unwrap().stale);
        bench
    }

    pub fn lease(&self, time: Duration) {
        let until = BootNs(now() + time.as_nanos() as u64);
        self.sensor.renew(until, until).unwrap();
    }

    /// Frames come by this network from now on: test runs come in by the loopback device.
    pub fn by(&mut self, network: Network) {
        let number = match network {
            Network::Private => 0,
            Network::Storage => 1,
            Network::Management => 2,
        };
        let mut config = self.config.get(&0, 0).unwrap();
        config.interfaces[0] = Interface { index: 1, network: number };
        self.config.set(0, config, 0).unwrap();
    }

    /// What ingress says to a frame.
    pub fn rx(&self, frame: &[u8]) -> u32 {
        self.reflect(frame).0
    }

    /// What ingress says to a frame, and what the frame is then.
    pub fn reflect(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; frame.len()];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        (self.ingress.test_run(options).unwrap().return_value, out)
    }

    /// What egress says to a frame.
    pub fn tx(&self, frame: &[u8]) -> u32 {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        self.egress.test_run(options).unwrap().return_value
    }

    /// What egress says to a super-packet that stands for `segments` of `size` payload bytes.
    pub fn tx_super(&self, frame: &[u8], segments: usize, size: usize) -> u32 {
        super_packet(&self.egress, frame, segments, size)
    }
    /// What ingress by TC says to one.
    pub fn rx_super(&self, frame: &[u8], segments: usize, size: usize) -> u32 {
        super_packet(&self.ingress_tc, frame, segments, size)
    }

    pub fn client(&self, host: HostId) -> Client {
        self.sensor.clients().unwrap().into_iter().find(|c| c.host == host.0).unwrap()
    }
    pub fn server(&self) -> Server {
        self.sensor.server().unwrap()
    }
    pub fn counts(&self) -> Answer {
        self.sensor.read(HOST).unwrap()
    }
}

fn super_packet(program: &SchedClassifier, frame: &[u8], segments: usize, size: usize) -> u32 {
    // struct __sk_buff; all else must be 0.
    let mut context = [0; 192];
    context[164..168].copy_from_slice(&(segments as u32).to_ne_bytes());
    context[176..180].copy_from_slice(&(size as u32).to_ne_bytes());
    let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::new() };
    program.test_run(options).unwrap().return_value
}

pub fn now() -> u64 {
    reroute_agent::clock::now().0
}

/// Waits for `what` to become true.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 10 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Segments that this end of a connection has sent again, as its kernel counts them.
pub fn sent_again(socket: &TcpStream) -> u64 {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let to = info.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `len` bytes; whatever it leaves is zero, and integers all of it.
    let info = unsafe {
        let rc = libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, to, &mut len);
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
        info.assume_init()
    };
    info.tcpi_total_retrans.into()
}
