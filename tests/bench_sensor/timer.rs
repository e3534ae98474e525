//! What a tick of the timer costs, by connections in the table and how many of them wait.
//!
//! The measuring program does what the timer's callback does, but for starting the timer again. It is run once per millisecond, as the
//! timer would be, with whatever else the machine does in between; and many times in a row, with hot caches. All calls that wait are over
//! their limit, which is the most there is to do. Lines with calls are looked at once in 10 ms: the mean tells, not the median.

use crate::frames::*;
use crate::programs::{Bench, Hook};
use crate::space::Space;
use anyhow::ensure;
use lab::figures::Report;
use lab::figures::stats::{Spread, round, spread};
use reroute_agent::config::Timing;
use serde_json::{Map, json};
use std::time::Duration;

const TICK_NS: f64 = 1e6;

struct Table {
    name: &'static str,
    flows: usize,
    waiting: usize,
}

const TABLES: [Table; 4] = [
    Table { name: "16", flows: 16, waiting: 16 },
    Table { name: "512", flows: 512, waiting: 500 },
    Table { name: "10000", flows: 10_000, waiting: 500 },
    Table { name: "10000_all", flows: 10_000, waiting: 10_000 },
];

/// Opens connections, by frames through ingress, until the table has `flows` of them; a call on every so-maniest.
fn fill(bench: &mut Bench, table: &Table) -> anyhow::Result<(usize, usize)> {
    let mut port = 1_u16;
    let mut open = 0;
    while open < table.flows {
        // One that finds its set full is not in the table: look how many are.
        for _ in 0..table.flows - open {
            let mut c = Connection::new(port);
            bench.pass(Hook::Ingress, &c.up(c.client_seq, SYN, &[]))?;
            c.client_seq += 1;
            ensure!(port < u16::MAX, "{} connections do not fit into the table", table.flows);
            port += 1;
        }
        open = bench.sensor.flows()?.len();
    }
    let flows = bench.sensor.flows()?;
    // Spread evenly over the lines.
    let (mut waiting, mut due) = (0, 0);
    for (_, flow) in &flows {
        due += table.waiting;
        if due >= flows.len() {
            due -= flows.len();
            let mut c = Connection::new(flow.key.remote_port);
            c.client_seq += 1;
            bench.pass(Hook::Ingress, &c.send(&call(1)))?;
            waiting += 1;
        }
    }
    Ok((flows.len(), waiting))
}

fn call(xid: u32) -> Vec<u8> {
    let mut call = call_head(xid, READ, 64);
    call.resize(call.len() + 64, 0);
    call
}

/// Ticks over a table: once per millisecond, and in a row. ns each.
struct Ticks {
    flows: usize,
    waiting: usize,
    paced: Spread,
    hot: Spread,
}

/// `over`: whether the calls are over their limit.
fn measure(space: &Space, table: &Table, over: bool, ticks: usize) -> anyhow::Result<Ticks> {
    // The real timer stands aside: one tick a minute.
    let mut timing = Timing { timer_us: 60_000_000, ..Timing::default() };
    if !over {
        (timing.unanswered_ms, timing.silent_ms) = (3_600_000, 3_600_000);
    }
    let limit = Duration::from_millis(if over { timing.unanswered_ms } else { 0 });
    let mut bench = Bench::new(space, &format!("timer{}{over}", table.name), timing)?;
    let (flows, waiting) = fill(&mut bench, table)?;
    std::thread::sleep(limit + Duration::from_millis(10));
    // Every stall is told once, here.
    bench.scan(1)?;
    let server = bench.sensor.server()?;
    let stalled = if over { waiting } else { 0 };
    ensure!(
        (server.waiting as usize, server.stalled_flows as usize) == (waiting, stalled),
        "{waiting} calls wait, {stalled} for too long; the timer saw {} and {}",
        server.waiting,
        server.stalled_flows
    );
    let (mut paced, mut hot) = (Vec::new(), Vec::new());
    for _ in 0..ticks {
        std::thread::sleep(Duration::from_millis(1));
        paced.push(bench.scan(1)?);
    }
    for _ in 0..ticks / 10 {
        hot.push(bench.scan(20)?);
    }
    Ok(Ticks { flows, waiting, paced: spread(&paced), hot: spread(&hot) })
}

pub fn run(space: &Space, quick: bool, report: &mut Report) -> anyhow::Result<()> {
    let ticks = if quick { 100 } else { 1000 };
    let (mut percent, mut details) = (Map::new(), Map::new());
    let share = |ns: f64| round(100.0 * ns / TICK_NS, 3);
    println!("timer, percent of a core: mean of {ticks} ticks; all that wait are over their limit");
    for table in &TABLES {
        let over = measure(space, table, true, ticks)?;
        let young = measure(space, table, false, ticks)?;
        println!(
            "  {:10} {:7.3}  one tick: mean {:.1} µs, min {:.1} µs, p99 {:.1} µs; in a row {:.1} µs  ({} connections, {} waiting; \
             no new call since the last tick, none over its limit: {:.1} µs, {:.3} %)",
            table.name,
            share(over.paced.mean),
            over.paced.mean / 1e3,
            over.paced.min / 1e3,
            over.paced.p99 / 1e3,
            over.hot.mean / 1e3,
            over.flows,
            over.waiting,
            young.paced.mean / 1e3,
            share(young.paced.mean),
        );
        percent.insert(table.name.into(), json!(share(over.paced.mean)));
        details.insert(
            table.name.into(),
            json!({
                "flows": over.flows, "waiting": over.waiting, "tick_ns": over.paced.json(0),
                "tick_ns_in_a_row": over.hot.json(0), "in_a_row_percent": share(over.hot.mean),
                "young_tick_ns": young.paced.json(0), "young_percent": share(young.paced.mean),
            }),
        );
    }
    report.set("timer_core_percent", json!(percent));
    report.set("timer_spread", json!(details));
    report.part(
        "timer",
        json!({ "ticks": ticks, "period_ms": 1, "calls": "all over their limit", "quick": quick }),
    );
    Ok(())
}
