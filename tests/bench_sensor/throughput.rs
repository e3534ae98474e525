//! With and without the programs, in turns in one run: NFS operations per second, and TCP bytes of NFS writes.
//!
//! "With" is what `xdp = "auto"` chooses on a veth pair: TC both ways. A native XDP program costs something there by itself: the
//! other end sends no super-packets any more. A state of its own, native with a program that passes everything, says how much.

mod traffic;

use crate::programs::{Programs, admit, settings};
use crate::space::{Space, Wire};
use anyhow::Context;
use aya::programs::tc::SchedClassifierLinkId;
use aya::programs::tc::TcAttachOptions;
use aya::programs::xdp::{XdpLinkId, XdpMode as Driver};
use aya::programs::{LinkOrder, TcAttachType};
use lab::figures::Report;
use lab::figures::stats::{round, spread};
use reroute_agent::config::XdpMode;
use reroute_agent::sensor::Sensor;
use reroute_common::table::mode;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use traffic::{Bulk, Nfs, Traffic};

/// What is attached to the server's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Nothing,
    Pass,
    Programs,
    /// Ingress by TC, where no XDP program changes the way of a packet.
    ByTc,
}
const STATES: [State; 4] = [State::Nothing, State::Programs, State::ByTc, State::Pass];

/// Passes everything that it has no plan for; takes multi-buffer packets, as `ingress` does.
const PASS: &str = "measure_ingress_base";

struct Switch {
    programs: Programs,
    xdp: Option<(&'static str, XdpLinkId)>,
    tc: Vec<(&'static str, SchedClassifierLinkId)>,
}

impl Switch {
    fn set(&mut self, state: State) -> anyhow::Result<()> {
        if let Some((name, link)) = self.xdp.take() {
            self.programs.xdp(name)?.detach(link)?;
        }
        for (name, link) in std::mem::take(&mut self.tc) {
            self.programs.classifier(name)?.detach(link)?;
        }
        let native = match state {
            State::Pass => Some(PASS),
            State::Programs => Some("ingress"),
            _ => None,
        };
        if let Some(name) = native {
            let link = self.programs.xdp(name)?.attach("s0", Driver::Driver).context("attaching to s0")?;
            self.xdp = Some((name, link));
        }
        let by_tc: &[_] = match state {
            State::Programs => &[("egress", TcAttachType::Egress)],
            State::ByTc => &[("egress", TcAttachType::Egress), ("ingress_tc", TcAttachType::Ingress)],
            _ => &[],
        };
        for (name, way) in by_tc {
            let options = TcAttachOptions::TcxOrder(LinkOrder::default());
            let link = self.programs.classifier(name)?.attach_with_options("s0", *way, options)?;
            self.tc.push((name, link));
        }
        Ok(())
    }
}

pub fn run(space: &Space, quick: bool, report: &mut Report) -> anyhow::Result<()> {
    let (pairs, slice) = if quick { (4, 250) } else { (60, 250) };
    let slice = Duration::from_millis(slice);
    let wire = Wire::new()?;
    let dir = space.pins("throughput");
    let mut sensor = Sensor::start(settings(dir.clone(), "s0", XdpMode::Auto)?)?;
    admit(&sensor)?;
    sensor.set_mode(mode::ENFORCE)?;
    let [attached] = sensor.attachments() else { anyhow::bail!("not attached to one interface") };
    let mode = format!("{}, {}", attached.ingress, attached.egress);
    // Its tables stay; attached and detached are they below.
    for entry in std::fs::read_dir(&dir)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link_")) {
            std::fs::remove_file(path)?;
        }
    }
    let names = ["ingress", "ingress_tc", "egress", PASS];
    let mut switch = Switch { programs: Programs::load(&dir, &names)?, xdp: None, tc: Vec::new() };

    println!("throughput: means of {pairs} slices of {slice:?} in each state, in turns ({mode})");
    let nfs =
        ratios(&mut switch, &mut Nfs::start(space, &wire)?, &sensor, pairs, slice, "operations/s", 1.0)?;
    let tcp = ratios(&mut switch, &mut Bulk::start(&wire)?, &sensor, pairs, slice, "MB/s", 1e6)?;
    switch.set(State::Nothing)?;
    report.set("nfs_ops_ratio", nfs["ratio"].clone());
    report.set("tcp_throughput_ratio", tcp["ratio"].clone());
    report.set("nfs_ops", nfs);
    report.set("tcp_throughput", tcp);
    report.set("mode", json!(mode));
    report.part(
        "throughput",
        json!({
            "slices": pairs, "slice_ms": slice.as_millis() as u64, "quick": quick, "admission": "enforce",
            "link": "veth pair between two namespaces, MTU 1500",
        }),
    );
    Ok(())
}

fn ratios(
    switch: &mut Switch,
    traffic: &mut dyn Traffic,
    sensor: &Sensor,
    pairs: usize,
    slice: Duration,
    unit: &str,
    scale: f64,
) -> anyhow::Result<Value> {
    let mut rates = [const { Vec::<f64>::new() }; STATES.len()];
    let mut seen = 0;
    for round in 0..pairs {
        for turn in 0..STATES.len() {
            // Each state comes after each other one, early and late.
            let which = if round % 2 == 0 { turn } else { STATES.len() - 1 - turn };
            let which = (which + round / 2) % STATES.len();
            switch.set(STATES[which])?;
            let before = packets(sensor)?;
            // What was lost when the device changed its ways, and the time until that is sent again, is none of the state's own.
            traffic.flows()?;
            std::thread::sleep(Duration::from_millis(100));
            let (from, start) = (traffic.done()?, Instant::now());
            std::thread::sleep(slice);
            let done = traffic.done()? - from;
            rates[which].push(done as f64 / start.elapsed().as_secs_f64() / scale);
            let counted = packets(sensor)? - before;
            let attached = matches!(STATES[which], State::Programs | State::ByTc);
            anyhow::ensure!(done > 0, "{:?}: nothing was done in a slice", STATES[which]);
            anyhow::ensure!((counted > 0) == attached, "{:?}: {counted} packets were counted", STATES[which]);
            seen += counted;
        }
    }
    let of = |state: State| {
        let index = STATES.iter().position(|s| *s == state).unwrap_or_default();
        spread(&rates[index])
    };
    let (nothing, native, on, pass) =
        (of(State::Nothing), of(State::Programs), of(State::ByTc), of(State::Pass));
    // Of neighbours in time: what the machine does besides strikes both.
    let each: Vec<f64> = rates[2].iter().zip(&rates[0]).map(|(on, off)| on / off).collect();
    let each = spread(&each);
    let ratio = on.mean / nothing.mean;
    println!(
        "  {:9} ratio {:.3} (of pairs: median {:.3}, p25 {:.3}, p75 {:.3}); native XDP {:.3}, of that a program that passes all {:.3}",
        traffic.name(),
        ratio,
        each.p50,
        each.p25,
        each.p75,
        native.mean / nothing.mean,
        pass.mean / nothing.mean,
    );
    println!(
        "            {unit}: without {:.0} ({:.0}-{:.0}), with {:.0} ({:.0}-{:.0}), native XDP {:.0}, a program that passes all {:.0}",
        nothing.mean, nothing.min, nothing.max, on.mean, on.min, on.max, native.mean, pass.mean
    );
    Ok(json!({
        "ratio": round(ratio, 4), "ratio_of_pairs": each.json(4), "unit": unit,
        "ratio_native": round(native.mean / nothing.mean, 4), "ratio_pass": round(pass.mean / nothing.mean, 4),
        "without": nothing.json(1), "with": on.json(1), "native": native.json(1), "pass": pass.json(1),
        "packets_seen": seen, "what": traffic.what(),
    }))
}

fn packets(sensor: &Sensor) -> anyhow::Result<u64> {
    Ok(sensor.clients()?.iter().map(|c| c.rx_packets + c.tx_packets).sum())
}
