//! What a seed draws: the cluster, the network's manners, the faults and when each is mended.

use crate::world::clock::{Clock, FASTEST, SLOWEST};
use crate::world::{Fault, Link, Load, Node, Safeguard, Settings};
use fastrand::Rng;
use reroute_core::ids::*;
use std::collections::BTreeSet;

/// What is the same for all seeds of a run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub off: BTreeSet<Safeguard>,
    /// Every seed has a server that is cut off while its host or its agent stumbles; else one in four has.
    pub pressed: bool,
}

impl Options {
    /// To see what a safeguard is for.
    pub fn without(safeguard: Safeguard) -> Options {
        Options { off: BTreeSet::from([safeguard]), pressed: true }
    }
}

/// How the network and the disks treat what they carry. Shares are per 10,000.
#[derive(Clone, Debug)]
pub struct Manners {
    pub loss: u32,
    pub double: u32,
    /// Held up for 1 ms to `late_most`.
    pub late: u32,
    pub late_most: u64,
    /// Disks and stores that say no.
    pub disk_fails: u32,
    /// Calls that take up to 200 ms.
    pub slow_calls: u32,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub settings: Settings,
    pub clocks: Vec<(Node, Clock)>,
    pub manners: Manners,
    /// By true time.
    pub faults: Vec<(u64, Fault)>,
    /// When everything is mended.
    pub mended_at: u64,
    /// How long to go on after all hosts do I/O again: long enough for a return, or not.
    pub stay: u64,
}

/// Log-uniform.
pub fn between(rng: &mut Rng, least: u64, most: u64) -> u64 {
    let (a, b) = ((least as f64).ln(), (most as f64).ln());
    (a + (b - a) * rng.f64()).exp() as u64
}

pub fn chance(rng: &mut Rng, share: u32) -> bool {
    share > 0 && rng.u32(0..10_000) < share
}

fn policies(rng: &mut Rng, scvms: usize) -> Vec<FencePolicy> {
    let any = [FencePolicy::Storage, FencePolicy::Kill, FencePolicy::Wait];
    match rng.u32(0..10) {
        0..=4 => vec![FencePolicy::Storage; scvms],
        5..=6 => vec![FencePolicy::Kill; scvms],
        7 => vec![FencePolicy::Wait; scvms],
        _ => (0..scvms).map(|_| any[rng.usize(0..3)]).collect(),
    }
}

impl Plan {
    pub fn draw(rng: &mut Rng, options: &Options) -> Plan {
        let scvms = [2, 2, 3, 3, 3, 4, 5][rng.usize(0..7)];
        let hosts = rng.u32(2..=scvms.min(3)).max(if rng.u32(0..8) == 0 { scvms } else { 2 });
        let mut settings = Settings::new(hosts, policies(rng, scvms as usize));
        settings.off = options.off.clone();
        settings.load = Load {
            window: rng.usize(1..=3),
            blocks: rng.usize(3..=4),
            think: between(rng, 2 * MS, 30 * MS),
            writes: u64::MAX,
        };
        let clocks = Plan::draw_clocks(rng, &settings);
        let manners = match rng.u32(0..6) {
            0 => Manners::good(),
            1 => Manners { loss: 300, double: 100, late: 500, late_most: 2 * SEC, ..Manners::draw(rng) },
            _ => Manners::draw(rng),
        };
        let begin = 700 * MS;
        let span = between(rng, 500 * MS, 4 * SEC);
        let mut faults = Vec::new();
        let victim = ScvmId(rng.u32(1..=scvms));
        for _ in 0..rng.u32(1..=5) {
            let at = begin + rng.u64(0..span);
            let scvm = if rng.u32(0..10) < 7 { victim } else { ScvmId(rng.u32(1..=scvms)) };
            let host = HostId(rng.u32(1..=hosts));
            incident(rng, at, scvm, host, &mut faults);
        }
        if rng.u32(0..4) == 0 || options.pressed {
            let host = HostId(rng.u32(1..=hosts));
            let at = begin + rng.u64(0..span);
            let scvm = settings.local(host);
            let paused = rng.bool();
            cut_off_and_restarted(rng, at, paused, (scvm, host), &mut faults);
        }
        faults.sort_by_key(|(at, _)| *at);
        let stay = if rng.u32(0..6) == 0 { 5 * SEC } else { 200 * MS };
        Plan { settings, clocks, manners, mended_at: begin + span + SEC, faults, stay }
    }

    pub fn draw_clocks(rng: &mut Rng, settings: &Settings) -> Vec<(Node, Clock)> {
        let mut nodes: Vec<Node> = settings.host_ids().map(Node::Host).collect();
        nodes.extend(settings.scvm_ids().map(Node::Scvm));
        nodes.extend((0..settings.metas).map(Node::Meta));
        let exact = rng.u32(0..3) == 0;
        nodes
            .into_iter()
            .map(|node| {
                let rate = match rng.u32(0..4) {
                    _ if exact => crate::world::clock::TRUE_RATE,
                    0 => SLOWEST,
                    1 => FASTEST,
                    _ => rng.u64(SLOWEST..=FASTEST),
                };
                (node, Clock::new(rng.u64(SEC..1_000_000 * SEC), rate))
            })
            .collect()
    }
}

impl Manners {
    pub fn good() -> Manners {
        Manners { loss: 0, double: 0, late: 0, late_most: 0, disk_fails: 0, slow_calls: 0 }
    }

    fn draw(rng: &mut Rng) -> Manners {
        Manners {
            loss: [0, 5, 20, 100, 300][rng.usize(0..5)],
            double: [0, 0, 20, 200][rng.usize(0..4)],
            late: [0, 5, 50, 300][rng.usize(0..4)],
            late_most: between(rng, 20 * MS, 2 * SEC),
            disk_fails: [0, 0, 100, 1000][rng.usize(0..4)],
            slow_calls: [0, 0, 20, 200][rng.usize(0..4)],
        }
    }
}

/// A server's agent is cut off from Meta, or gets no CPU, and for a shorter time the server is cut off from its host
/// too; in the first case the host's agent is restarted meanwhile. So many things at once seldom meet by chance.
fn cut_off_and_restarted(
    rng: &mut Rng,
    at: u64,
    paused: bool,
    (scvm, host): (ScvmId, HostId),
    out: &mut Vec<(u64, Fault)>,
) {
    let mut both = |other: Node, until: u64| {
        for network in [Network::Storage, Network::Management, Network::Private] {
            let (a, b) = (Some(Node::Scvm(scvm)), Some(other));
            for link in [Link { from: a, to: b, network }, Link { from: b, to: a, network }] {
                out.push((at, Fault::Cut(link)));
                out.push((until, Fault::Heal(link)));
            }
        }
    };
    let back = at + rng.u64(150 * MS..1200 * MS);
    both(Node::Host(host), back);
    let late = back + rng.u64(200 * MS..2 * SEC);
    if paused {
        out.push((at, Fault::PauseAgent(scvm)));
        out.push((late, Fault::GoOn(scvm)));
        return;
    }
    both(Node::Meta(0), late);
    let crash = at + rng.u64(80 * MS..back - at);
    out.push((crash, Fault::CrashHost(host)));
    out.push((crash.max(back) + rng.u64(MS..200 * MS), Fault::StartHost(host)));
}

/// One thing that goes wrong, and is mended some time later.
fn incident(rng: &mut Rng, at: u64, scvm: ScvmId, host: HostId, out: &mut Vec<(u64, Fault)>) {
    let until = at + between(rng, 20 * MS, 5 * SEC);
    let networks = [Network::Storage, Network::Management];
    let mut cut = |from: Option<Node>, to: Option<Node>, which: &[Network], ways: u32| {
        for &network in which {
            for (bit, link) in [(1, Link { from, to, network }), (2, Link { from: to, to: from, network })] {
                if ways & bit != 0 {
                    out.push((at, Fault::Cut(link)));
                    out.push((until, Fault::Heal(link)));
                }
            }
        }
    };
    let node = Some(Node::Scvm(scvm));
    let ways = [3, 3, 3, 1, 2][rng.usize(0..5)];
    let all = [Network::Storage, Network::Management, Network::Private];
    match rng.u32(0..16) {
        0 => cut(node, None, &networks[..1], ways),
        1 => cut(node, None, &networks, ways),
        2 => cut(node, None, &all, ways),
        3 => cut(node, Some(Node::Host(host)), &all, ways),
        4 | 5 => cut(node, Some(Node::Meta(0)), &networks, ways),
        6 => cut(Some(Node::Host(host)), Some(Node::Meta(0)), &networks, ways),
        7 => {
            let network = networks[rng.usize(0..2)];
            out.push((at, Fault::Carrier(host, network, false)));
            out.push((until, Fault::Carrier(host, network, true)));
        }
        8 | 9 => {
            out.push((at, Fault::HangServer(scvm)));
            out.push((until, Fault::ResumeServer(scvm)));
        }
        10 => {
            out.push((at, Fault::KillServer(scvm)));
            out.push((until, Fault::StartServer(scvm)));
        }
        11 => {
            out.push((at, Fault::Freeze(scvm)));
            out.push((until, Fault::Thaw(scvm)));
        }
        12 => {
            out.push((at, Fault::PowerOff(scvm)));
            out.push((until, Fault::PowerOn(scvm)));
        }
        13 => {
            out.push((at, Fault::CrashAgent(scvm)));
            out.push((until, Fault::StartAgent(scvm)));
        }
        14 => {
            out.push((at, Fault::CrashHost(host)));
            out.push((at + between(rng, 5 * MS, 2 * SEC), Fault::StartHost(host)));
        }
        _ => {
            out.push((at, Fault::CrashMeta(0)));
            out.push((at + between(rng, 5 * MS, 3 * SEC), Fault::StartMeta(0)));
        }
    }
}
