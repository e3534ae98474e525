//! Whether a burden is felt: one that nobody feels shows nothing.

use crate::Lab;
use crate::faults::Load;
use crate::handle::sample;
use anyhow::{Context, bail};
use std::time::Duration;

/// Of `utime` and `stime`.
const TICK: Duration = Duration::from_millis(10);
/// Of 20,000 packets a second a third is forged; a full machine sends fewer.
const FORGED_PER_S: f64 = 1000.0;

/// What a burden at an SCVM has cost so far.
#[derive(Clone, Debug)]
pub struct Burden {
    load: Load,
    scvm: String,
    /// `node/what` of the process.
    process: String,
    /// Forged pulses that the SCVM had rejected before.
    rejected_before: f64,
    rejected: f64,
    /// Of all the processes that were counted.
    cpu: Duration,
}

impl Burden {
    /// Before it is laid on.
    pub fn before(lab: &Lab, fault: &str, load: Load, scvm: &str) -> anyhow::Result<Burden> {
        Ok(Burden {
            load,
            scvm: scvm.into(),
            process: format!("{scvm}/{fault}"),
            rejected_before: match load {
                Load::Packets => rejected_pulses(lab, scvm)?,
                Load::Cpu | Load::Fifo | Load::Timers => 0.0,
            },
            rejected: 0.0,
            cpu: Duration::ZERO,
        })
    }

    /// Right before it is taken off; again for each time that it was laid on.
    ///
    /// # Errors
    /// It has ended by itself.
    pub fn count(&mut self, lab: &Lab) -> anyhow::Result<()> {
        if self.load == Load::Packets {
            self.rejected = rejected_pulses(lab, &self.scvm)? - self.rejected_before;
            return Ok(());
        }
        let stat = lab.process_stat(&self.process).context("the burden runs no more")?;
        // utime and stime, counted from the state.
        for field in [11, 12] {
            let ticks: u32 = stat.get(field).context("a short stat")?.parse().context("ticks")?;
            self.cpu += TICK * ticks;
        }
        Ok(())
    }

    /// What it has cost, in words. Errors: too little for the time that it was `held`.
    pub fn felt(&self, held: Duration) -> anyhow::Result<String> {
        let (enough, cost) = match self.load {
            Load::Packets => (
                self.rejected > FORGED_PER_S * held.as_secs_f64(),
                format!("{} forged pulses rejected", self.rejected),
            ),
            Load::Cpu | Load::Fifo | Load::Timers => {
                (self.cpu > held / 2, format!("{:.1?} of CPU time", self.cpu))
            }
        };
        if !enough {
            bail!("a burden that nobody feels shows nothing: {cost} in {held:.1?}");
        }
        Ok(format!("{cost} in {held:.1?}"))
    }
}

fn rejected_pulses(lab: &Lab, scvm: &str) -> anyhow::Result<f64> {
    let text = lab.metrics(scvm)?;
    Ok(sample(&text, "reroute_pulses_rejected_total", &["\"mac\""]).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burden_that_costs_too_little_is_none() {
        let burden = |load, rejected, cpu_ms| Burden {
            load,
            scvm: "scvm1".into(),
            process: "scvm1/hogs".into(),
            rejected_before: 7.0,
            rejected,
            cpu: Duration::from_millis(cpu_ms),
        };
        let held = Duration::from_secs(4);
        for load in [Load::Cpu, Load::Fifo, Load::Timers] {
            assert!(burden(load, 1e9, 1900).felt(held).is_err());
            assert!(burden(load, 0.0, 2100).felt(held).is_ok_and(|cost| cost.contains("2.1s")));
        }
        let why = burden(Load::Packets, 3900.0, 60_000).felt(held).unwrap_err().to_string();
        assert!(why.contains("nobody feels") && why.contains("3900"), "{why}");
        assert!(burden(Load::Packets, 4100.0, 0).felt(held).is_ok());
    }
}
