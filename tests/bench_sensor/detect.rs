//! From the fault to the event, by signal: live TCP between two namespaces, idle and while SCHED_FIFO threads spin on
//! every CPU.
//!
//! The fault's stamp is taken right before the act that is the fault, the event's by the program that tells it: what
//! userspace takes to read it is no part of this. Client, server and faults are one SCHED_FIFO thread, so that the act follows its stamp.

mod faults;
mod tap;
mod world;

use crate::space::{Hogs, PRIORITY, Space, fifo};
use faults::{SIGNALS, Signal};
use lab::figures::Report;
use lab::figures::stats::{round, spread};
use serde_json::{Map, Value, json};
use std::time::Duration;
use world::World;

/// How often a trial is tried again that was spoilt by something else than the signal's absence.
const SPOILT: usize = 10;

/// One trial: how long until the event, and the limit that it was held against, ns.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub took: i64,
    pub limit: u64,
}

/// A tick so much later than due (ms) says that the machine stood still: ages count from there.
const STOOD_STILL: f64 = 9.0;

/// Whether every signal was told in every trial.
pub fn run(space: &Space, quick: bool, report: &mut Report) -> anyhow::Result<bool> {
    let trials = if quick { 10 } else { 100 };
    let mut world = World::new(space)?;
    let hogs = Hogs::new()?;
    fifo(PRIORITY)?;
    println!(
        "detection, ms from the fault to the event: {trials} trials each; goal: p99 within limit + 2 ms"
    );
    let mut rows = Map::new();
    let mut complete = true;
    for signal in SIGNALS {
        for (suffix, hogged) in [("", None), ("_fifo_hogs", Some(&hogs))] {
            let name = format!("{}{suffix}", signal.name);
            let row = match measure(&mut world, signal, hogged, trials) {
                Ok(told) => {
                    let gap = world.sensor.server()?.worst_tick_gap_ns as f64 / 1e6;
                    row(&name, signal, &told, gap)
                }
                Err(why) => {
                    println!("  {name:24} FAILED: {why:#}");
                    complete = false;
                    json!({ "error": format!("{why:#}") })
                }
            };
            rows.insert(name, row);
        }
    }
    report.set("detect_ms", Value::Object(rows));
    report.set("mode", json!(world.attached()));
    report.part(
        "detect",
        json!({
            "trials": trials, "quick": quick, "attached": world.attached(),
            "fifo_hogs": "one SCHED_FIFO thread per CPU spins through each trial",
            "goal": "p99 <= limit + 2 ms",
        }),
    );
    // Back to where other parts expect to be.
    crate::space::timeshared()?;
    Ok(complete)
}

fn measure(
    world: &mut World,
    signal: &Signal,
    hogs: Option<&Hogs>,
    trials: usize,
) -> anyhow::Result<Vec<Told>> {
    let mut told = Vec::new();
    let mut spoilt = 0;
    for trial in 0..trials {
        loop {
            // Where between two ticks or pulses the fault falls is left to neither.
            std::thread::sleep(Duration::from_micros(5_000 + (trial as u64 * 7_919) % 10_000));
            if let Some(hogs) = hogs {
                hogs.spin(signal.at_most);
            }
            let result = (signal.provoke)(world);
            if let Some(hogs) = hogs {
                hogs.rest();
            }
            world.settle()?;
            match result {
                Ok(one) => {
                    told.push(one);
                    break;
                }
                Err(why) if told.is_empty() || spoilt == SPOILT => return Err(why),
                Err(why) => {
                    spoilt += 1;
                    println!("  {}: trial {trial} once more: {why:#}", signal.name);
                }
            }
        }
    }
    Ok(told)
}

/// `tick_gap`: the longest time between two ticks of the timer since the programs were loaded, ms.
fn row(name: &str, signal: &Signal, told: &[Told], tick_gap: f64) -> Value {
    let ms = |ns: f64| ns / 1e6;
    let limits = spread(&told.iter().map(|t| ms(t.limit as f64)).collect::<Vec<_>>());
    let took = spread(&told.iter().map(|t| ms(t.took as f64)).collect::<Vec<_>>());
    // Each against the limit of its own: limits may follow the client's latency.
    let over = spread(&told.iter().map(|t| ms(t.took as f64 - t.limit as f64)).collect::<Vec<_>>());
    let met = over.p99 <= 2.0;
    println!(
        "  {name:24} limit {:6.2}  p50 {:7.3}  p99 {:7.3}  over the limit: p50 {:6.3}  p99 {:6.3}  {}  {}{}",
        limits.p50,
        took.p50,
        took.p99,
        over.p50,
        over.p99,
        if met { "met" } else { "MISSED" },
        signal.what,
        if tick_gap > STOOD_STILL {
            format!("; the timer was {tick_gap:.0} ms late so far")
        } else {
            String::new()
        }
    );
    json!({
        "limit": round(limits.p50, 3), "p50": round(took.p50, 3), "p99": round(took.p99, 3),
        "max": round(took.max, 3), "min": round(took.min, 3), "over_p50": round(over.p50, 3), "over_p99": round(over.p99, 3),
        "worst_tick_gap_so_far": round(tick_gap, 2),
        "trials": told.len(), "met": met, "what": signal.what,
    })
}
