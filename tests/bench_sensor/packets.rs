//! ns per packet: what ingress and egress add to a frame that nobody judges.
//!
//! A program run repeatedly on one buffer would see one and the same segment again, a retransmission. So each run moves the frame on
//! first (`reroute_common::measure`), and what that costs is measured beside it, in turns, and taken off.
//! After each kind of packet the sensor's own counts must say that all of them were what they were meant to be.

mod cases;

use crate::programs::{Bench, Hook, XDP_PASS};
use crate::space::{Space, run as command};
use anyhow::ensure;
use lab::figures::Report;
use lab::figures::stats::{Spread, round, spread};
use reroute_agent::config::Timing;
use reroute_common::measure::Plan;
use reroute_common::table::{Client, mode};
use serde_json::{Map, json};
use std::net::TcpListener;

/// One kind of packet.
pub trait Case {
    fn hook(&self) -> Hook {
        Hook::Ingress
    }
    /// Packets in a row, before the flow needs something that is not measured.
    fn batch(&self) -> u32 {
        5000
    }
    /// Brings the flow to where `rows` packets begin. Gives the frame *before* the first one, and how it moves.
    fn begin(&mut self, bench: &mut Bench, rows: u32) -> anyhow::Result<(Plan, Vec<u8>)>;
    /// After `rows` packets.
    fn end(&mut self, _bench: &mut Bench, _rows: u32) -> anyhow::Result<()> {
        Ok(())
    }
    fn verdict(&self) -> u32 {
        match self.hook() {
            Hook::Ingress => XDP_PASS,
            Hook::Egress => crate::programs::TC_NEXT,
        }
    }
    /// How often the client's counts say that such a packet was seen.
    fn seen(&self, client: &Client) -> u64;
    /// How often that must be, of `packets` in so many `batches`.
    fn wanted(&self, packets: u64, _batches: u64) -> u64 {
        packets
    }
    /// What is measured, in words.
    fn what(&self) -> &'static str;
}

/// Repetitions: rounds of so many packets each.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    packets: u32,
}

struct Figure {
    name: &'static str,
    what: &'static str,
    /// Over the base.
    net: Spread,
    base: f64,
    effort: Effort,
    batch: u32,
}

/// Shorter rows are timed by the kernel's account, whose unit is a ns: a system call would weigh too much.
const SHORT: u32 = 1000;
/// The first packets of a short row find caches as a system call left them. They are measured alone as well: what the rest
/// costs is the difference.
const FIRST: u32 = 8;

/// One row, judged and not, ns in all.
fn row(
    bench: &mut Bench,
    name: &str,
    case: &mut dyn Case,
    rows: u32,
    seen: &mut (u64, u64),
) -> anyhow::Result<(f64, f64)> {
    let hook = case.hook();
    let (plan, frame) = case.begin(bench, rows)?;
    bench.plan(&plan)?;
    let time = |(kernel, spent, _): (f64, f64, u32)| {
        f64::from(rows) * if case.batch() < SHORT { kernel } else { spent }
    };
    let base = time(bench.measure(hook, true, &frame, rows)?);
    let result = bench.measure(hook, false, &frame, rows)?;
    ensure!(result.2 == case.verdict(), "{name}: the last packet got verdict {}", result.2);
    let full = time(result);
    case.end(bench, rows)?;
    *seen = (seen.0 + u64::from(rows), seen.1 + 1);
    Ok((full, base))
}

fn measure(
    bench: &mut Bench,
    name: &'static str,
    case: &mut dyn Case,
    effort: Effort,
) -> anyhow::Result<Figure> {
    let batch = case.batch();
    let short = batch < SHORT;
    let batches = effort.packets.div_ceil(batch);
    let counted_packets = f64::from(if short { batch - FIRST } else { batch });
    let (mut nets, mut bases) = (Vec::new(), Vec::new());
    let before = bench.client()?;
    let mut packets = (0, 0);
    // The first round warms up, and is not counted.
    for round in 0..=effort.rounds {
        let (mut net, mut base) = (Vec::new(), Vec::new());
        for _ in 0..batches {
            let (mut full, mut bare) = row(bench, name, case, batch, &mut packets)?;
            if short {
                let first = row(bench, name, case, FIRST, &mut packets)?;
                (full, bare) = (full - first.0, bare - first.1);
            }
            net.push((full - bare) / counted_packets);
            base.push(bare / counted_packets);
        }
        if round > 0 {
            nets.push(spread(&net).p50);
            bases.push(spread(&base).p50);
        }
    }
    let after = bench.client()?;
    let seen = case.seen(&after) - case.seen(&before);
    let wanted = case.wanted(packets.0, packets.1);
    ensure!(seen == wanted, "{name}: {seen} packets were seen as such, not {wanted}");
    let clean = |c: &Client| (c.rx_retransmitted, c.tx_retransmitted, c.streams_lost, c.drops);
    ensure!(clean(&before) == clean(&after), "{name}: {:?} became {:?}", clean(&before), clean(&after));
    let effort = Effort { packets: batches * batch, ..effort };
    Ok(Figure { name, what: case.what(), net: spread(&nets), base: spread(&bases).p50, effort, batch })
}

pub fn run(space: &Space, quick: bool, report: &mut Report) -> anyhow::Result<()> {
    let effort =
        if quick { Effort { rounds: 3, packets: 20_000 } } else { Effort { rounds: 21, packets: 100_000 } };
    command("ip addr replace 192.168.33.2/32 dev lo")?;
    // What pulses and SYNs look for.
    let _listener = TcpListener::bind("192.168.33.2:2049")?;
    let mut bench = Bench::new(space, "packets", Timing::default())?;
    println!("ns per packet: median, minimum and quartiles of {} runs of {}", effort.rounds, effort.packets);
    let mut figures = Vec::new();
    for (name, enforce, mut case) in cases::all() {
        bench.sensor.set_mode(if enforce { mode::ENFORCE } else { mode::SHADOW })?;
        let figure = measure(&mut bench, name, case.as_mut(), effort)?;
        let n = figure.net;
        println!(
            "  {:20} {:7.1}  min {:6.1}  p25 {:6.1}  p75 {:6.1}  (base {:.1})  {}",
            figure.name, n.p50, n.min, n.p25, n.p75, figure.base, figure.what
        );
        figures.push(figure);
    }
    let (mut medians, mut details) = (Map::new(), Map::new());
    for f in &figures {
        medians.insert(f.name.into(), json!(round(f.net.p50, 1)));
        let mut detail = f.net.json(1);
        detail["base"] = json!(round(f.base, 1));
        detail["runs"] = json!(f.effort.rounds);
        detail["packets_per_run"] = json!(f.effort.packets);
        detail["packets_in_a_row"] = json!(f.batch);
        detail["what"] = json!(f.what);
        details.insert(f.name.into(), detail);
    }
    // Of the two ways of being foreign over IPv4, the dearer one is the figure.
    let of = |name: &str| figures.iter().find(|f| f.name == name).map_or(0.0, |f| round(f.net.p50, 1));
    medians.insert("foreign".into(), json!(of("foreign_address").max(of("foreign_port"))));
    println!("  foreign: the dearer of foreign_address and foreign_port");
    report.set("ns_per_packet", json!(medians));
    report.set("ns_per_packet_spread", json!(details));
    report.part("packets", json!({ "runs": effort.rounds, "quick": quick }));
    Ok(())
}
