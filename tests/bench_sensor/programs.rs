//! A sensor, and the measuring programs over its tables.

use crate::frames::{CLIENT, PORT, SERVICE};
use crate::space::{Space, run};
use anyhow::{Context, ensure};
use aya::maps::Array;
use aya::programs::xdp::XdpMode as Driver;
use aya::programs::{Program, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use reroute_agent::config::{AdmissionMode, Timing, XdpMode};
use reroute_agent::sensor::{Registration, Sensor, Settings, object};
use reroute_common::measure::Plan;
use reroute_common::table::Client;
use reroute_core::ids::{BootNs, Epoch, HostId, Network, ScvmId};
use rustix::time::{ClockId, clock_gettime};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

pub const HOST: HostId = HostId(1);
pub const SCVM: ScvmId = ScvmId(1);
pub const BOOT: u64 = 0x7777;
pub const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
const HOUR: u64 = 3_600_000_000_000;

pub fn settings(dir: PathBuf, interface: &str, xdp: XdpMode) -> anyhow::Result<Settings> {
    Ok(Settings {
        bpf_dir: dir,
        scvm: SCVM,
        scvm_boot: BOOT,
        mode: AdmissionMode::Enforce,
        service: format!("{}:{PORT}", Ipv4Addr::from(SERVICE)).parse()?,
        timing: Timing::default(),
        interfaces: vec![(Network::Storage, interface.into())],
        clients: vec![Registration {
            host: HOST,
            addresses: vec![
                (Network::Private, IpAddr::from([192, 168, 33, 1])),
                (Network::Storage, IpAddr::from(CLIENT)),
                (Network::Management, IpAddr::from([192, 168, 85, 11])),
            ],
            pulse_key: KEY,
            has_agent: true,
        }],
        xdp,
    })
}

/// The one host is admitted at epoch 1 for hours.
pub fn admit(sensor: &Sensor) -> anyhow::Result<()> {
    let until = BootNs(reroute_agent::clock::now().0 + 12 * HOUR);
    sensor.renew(until, until)?;
    let answer = sensor.admit(HOST, Epoch(1))?;
    ensure!(!answer.stale, "the host was not admitted");
    Ok(())
}

/// Which program a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Ingress,
    Egress,
}

pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;
/// What passes is left to the next program.
pub const TC_NEXT: u32 = u32::MAX;

/// The object loaded once more, over the maps of a sensor.
pub struct Programs {
    pub bpf: Ebpf,
}

impl Programs {
    /// Loads `names`. `dir`: where the sensor's maps are pinned.
    pub fn load(dir: &Path, names: &[&'static str]) -> anyhow::Result<Programs> {
        // The verifier's log costs more than its verdict: it is asked for only when there is something to read.
        Programs::load_with(dir, names, VerifierLogLevel::DISABLE)
            .or_else(|_| Programs::load_with(dir, names, VerifierLogLevel::default()))
    }

    fn load_with(dir: &Path, names: &[&'static str], log: VerifierLogLevel) -> anyhow::Result<Programs> {
        let mut pins = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with("link_") && !name.starts_with("program_") {
                pins.push(name);
            }
        }
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(log);
        for name in &pins {
            loader.map_pin_path(name.as_str(), dir.join(name));
        }
        let mut bpf = loader.load(object()).context("the object over the sensor's maps")?;
        for name in names {
            match bpf.program_mut(name) {
                Some(Program::Xdp(program)) => program.load(),
                Some(Program::SchedClassifier(program)) => program.load(),
                _ => anyhow::bail!("the object has no program {name}"),
            }
            .with_context(|| format!("loading {name}"))?;
        }
        Ok(Programs { bpf })
    }

    pub fn xdp(&mut self, name: &'static str) -> anyhow::Result<&mut Xdp> {
        Ok(self.bpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
    }
    pub fn classifier(&mut self, name: &'static str) -> anyhow::Result<&mut SchedClassifier> {
        Ok(self.bpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
    }

    /// Runs a program on `frame`, `repeat` times on the same buffer.
    pub fn run(
        &mut self,
        hook: Hook,
        name: &'static str,
        frame: &[u8],
        repeat: u32,
    ) -> anyhow::Result<TestRunResult> {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
        let result = match hook {
            Hook::Ingress => self.xdp(name)?.test_run(options),
            Hook::Egress => self.classifier(name)?.test_run(options),
        };
        result.with_context(|| format!("running {name}"))
    }
}

/// The sensor on the loopback device, by which test runs come in; the real programs, and the measuring ones.
pub struct Bench {
    pub sensor: Sensor,
    programs: Programs,
    plan: Array<aya::maps::MapData, Plan>,
}

const INGRESS: &str = "ingress";
const EGRESS: &str = "egress";
const MEASURING: [&str; 5] =
    ["measure_ingress", "measure_ingress_base", "measure_egress", "measure_egress_base", "measure_scan"];

impl Bench {
    pub fn new(space: &Space, name: &str, timing: Timing) -> anyhow::Result<Bench> {
        let dir = space.pins(name);
        let sensor = Sensor::start(Settings { timing, ..settings(dir.clone(), "lo", XdpMode::Generic)? })?;
        admit(&sensor)?;
        let mut programs = Programs::load(&dir, &[&[INGRESS, EGRESS], &MEASURING[..]].concat())?;
        // A program that is attached nowhere is put into the kernel's XDP dispatcher for each test run, and taken out again:
        // that takes longer than what is measured.
        for (i, name) in
            [INGRESS, "measure_ingress", "measure_ingress_base", "measure_scan"].into_iter().enumerate()
        {
            let device = format!("x{i}");
            if !Path::new("/proc/sys/net/ipv4/conf").join(&device).exists() {
                run(&format!("ip link add {device} type veth peer name y{i}"))?;
            }
            programs
                .xdp(name)?
                .attach(&device, Driver::Skb)
                .with_context(|| format!("{name} to {device}"))?;
        }
        let plan = programs.bpf.take_map("MEASURE").context("the object has no map MEASURE")?;
        Ok(Bench { sensor, programs, plan: Array::try_from(plan)? })
    }

    pub fn plan(&mut self, plan: &Plan) -> anyhow::Result<()> {
        self.plan.set(0, plan, 0).context("writing the plan")
    }

    /// The real program, once; the frame must pass.
    pub fn pass(&mut self, hook: Hook, frame: &[u8]) -> anyhow::Result<()> {
        let (name, wanted) = match hook {
            Hook::Ingress => (INGRESS, XDP_PASS),
            Hook::Egress => (EGRESS, TC_NEXT),
        };
        let verdict = self.programs.run(hook, name, frame, 1)?.return_value;
        ensure!(verdict == wanted, "a frame to {name} got verdict {verdict}");
        Ok(())
    }

    /// ns per run by the kernel's own account, which is in whole ns, and by this thread's CPU time; the last verdict.
    pub fn measure(
        &mut self,
        hook: Hook,
        base: bool,
        frame: &[u8],
        repeat: u32,
    ) -> anyhow::Result<(f64, f64, u32)> {
        let name = match (hook, base) {
            (Hook::Ingress, false) => "measure_ingress",
            (Hook::Ingress, true) => "measure_ingress_base",
            (Hook::Egress, false) => "measure_egress",
            (Hook::Egress, true) => "measure_egress_base",
        };
        let before = cpu_time();
        let result = self.programs.run(hook, name, frame, repeat)?;
        let spent = (cpu_time() - before) as f64 / f64::from(repeat);
        Ok((result.duration.as_nanos() as f64, spent, result.return_value))
    }

    /// ns per look of the timer at all lines.
    pub fn scan(&mut self, repeat: u32) -> anyhow::Result<f64> {
        let result = self.programs.run(Hook::Ingress, "measure_scan", &[0; 64], repeat)?;
        ensure!(result.return_value == XDP_PASS, "the scan ended with {}", result.return_value);
        Ok(result.duration.as_nanos() as f64)
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        let clients = self.sensor.clients()?;
        clients.into_iter().find(|c| c.host == HOST.0).context("the host is not registered")
    }
}

fn cpu_time() -> i64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}
