//! The figures: a row for each fault and system, a rung for each fault that must move nothing; as JSON and as a table.

use crate::cases::{CASES, System};
use crate::trial::Trial;
use anyhow::Context;
use lab::figures::stats::{round, spread};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    pub rows: Vec<Row>,
    pub ladder: Vec<Rung>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub fault: String,
    pub system: String,
    pub trials: usize,
    /// In how many of them writes went on before the cut-off.
    pub recovered: usize,
    /// Longest time without a completed write; that of a trial without a recovery is the cut-off.
    pub gap_ms: Percentiles,
    /// From the fault until a move was asked for, where it was.
    pub detect_ms: Percentiles,
    pub lost_writes: u64,
    pub stale_writes: u64,
}

/// None: of no values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Percentiles {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub max: Option<f64>,
}

/// A fault that must move nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rung {
    pub fault: String,
    /// For how long it stood.
    pub seconds: u64,
    /// Moves recorded, and routes changed.
    pub moves: u64,
    pub max_gap_ms: f64,
    /// How often a client that was served was not any more: fences, and leases that ran out.
    pub admission_closed: u64,
    pub servers_killed: u64,
}

impl Percentiles {
    fn of(values: &[f64]) -> Percentiles {
        if values.is_empty() {
            return Percentiles::default();
        }
        let s = spread(values);
        let [p50, p99, max] = [s.p50, s.p99, s.max].map(|v| Some(round(v, 3)));
        Percentiles { p50, p99, max }
    }

    fn cells(&self) -> String {
        let cell = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.1}"));
        format!("{:>9} {:>9} {:>9}", cell(self.p50), cell(self.p99), cell(self.max))
    }
}

impl Row {
    pub fn of(fault: &str, system: System, trials: &[Trial]) -> Row {
        let gaps: Vec<f64> = trials.iter().map(|t| t.gap_ms).collect();
        let detected: Vec<f64> = trials.iter().filter_map(|t| t.detect_ms).collect();
        Row {
            fault: fault.into(),
            system: system.name().into(),
            trials: trials.len(),
            recovered: trials.iter().filter(|t| t.recovered).count(),
            gap_ms: Percentiles::of(&gaps),
            detect_ms: Percentiles::of(&detected),
            lost_writes: trials.iter().map(|t| t.lost_writes).sum(),
            stale_writes: trials.iter().map(|t| t.stale_writes).sum(),
        }
    }

    fn rank(&self) -> (usize, usize) {
        let fault = CASES.iter().position(|c| c.name == self.fault);
        let system = System::ALL.iter().position(|s| s.name() == self.system);
        (fault.unwrap_or(usize::MAX), system.unwrap_or(usize::MAX))
    }
}

/// The file.
pub struct Kept {
    path: PathBuf,
    pub figures: Figures,
}

impl Kept {
    /// With what is in the file, but (`anew`) for the rows: rungs are measured by themselves.
    ///
    /// # Errors
    /// A file that holds something else.
    pub fn open(path: &Path, anew: bool) -> anyhow::Result<Kept> {
        let path = std::path::absolute(path)?;
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let mut figures: Figures = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| {
                format!(
                    "{} holds something else than figures: remove it, or name another file (--json)",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Figures::default(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        if anew {
            figures.rows.clear();
        }
        Ok(Kept { path, figures })
    }

    pub fn row(&mut self, row: Row) -> anyhow::Result<()> {
        let rows = &mut self.figures.rows;
        rows.retain(|r| (&r.fault, &r.system) != (&row.fault, &row.system));
        rows.push(row);
        rows.sort_by_key(Row::rank);
        self.save()
    }

    pub fn rung(&mut self, rung: Rung) -> anyhow::Result<()> {
        match self.figures.ladder.iter_mut().find(|r| r.fault == rung.fault) {
            Some(old) => *old = rung,
            None => self.figures.ladder.push(rung),
        }
        self.save()
    }

    /// What an interrupted run has measured is there.
    fn save(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.figures)? + "\n";
        // Beside it may lie the figures of another run, by another extension.
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &self.path))
            .with_context(|| format!("writing {}", self.path.display()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// For people.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<18} {:<10} {:>9}  {:^29}  {:^29} {:>5} {:>5}\n{:<18} {:<10} {:>9}  {:>9} {:>9} {:>9}  {:>9} {:>9} {:>9}",
        "",
        "",
        "",
        "longest gap, ms",
        "detected after, ms",
        "lost",
        "stale",
        "fault",
        "system",
        "recovered",
        "p50",
        "p99",
        "max",
        "p50",
        "p99",
        "max"
    );
    for r in rows {
        let recovered = format!("{}/{}", r.recovered, r.trials);
        text += &format!(
            "\n{:<18} {:<10} {:>9}  {}  {} {:>5} {:>5}",
            r.fault,
            r.system,
            recovered,
            r.gap_ms.cells(),
            r.detect_ms.cells(),
            r.lost_writes,
            r.stale_writes
        );
    }
    text
}

pub fn ladder_table(rungs: &[Rung]) -> String {
    let mut text = format!(
        "{:<18} {:>7} {:>5} {:>12} {:>16} {:>14}",
        "fault", "seconds", "moves", "max gap, ms", "admission closed", "servers killed"
    );
    for r in rungs {
        text += &format!(
            "\n{:<18} {:>7} {:>5} {:>12.1} {:>16} {:>14}",
            r.fault, r.seconds, r.moves, r.max_gap_ms, r.admission_closed, r.servers_killed
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn trial(gap_ms: f64, detect_ms: Option<f64>, recovered: bool) -> Trial {
        Trial { gap_ms, detect_ms, recovered, ..Trial::default() }
    }

    #[test]
    fn the_file_has_the_shape_that_others_read() {
        let trials = [
            trial(20.0, Some(5.0), true),
            Trial { stale_writes: 1, ..trial(30.5, Some(7.0), true) },
            Trial { lost_writes: 2, ..trial(10_000.0, None, false) },
        ];
        let rung = Rung {
            fault: "lossy-5".into(),
            seconds: 60,
            moves: 0,
            max_gap_ms: 12.5,
            admission_closed: 0,
            servers_killed: 0,
        };
        let figures =
            Figures { rows: vec![Row::of("server-hung", System::Keepalived, &trials)], ladder: vec![rung] };
        let wanted = json!({
            "rows": [{
                "fault": "server-hung", "system": "keepalived", "trials": 3, "recovered": 2,
                "gap_ms": { "p50": 30.5, "p99": 10_000.0, "max": 10_000.0 },
                "detect_ms": { "p50": 5.0, "p99": 7.0, "max": 7.0 },
                "lost_writes": 2, "stale_writes": 1,
            }],
            "ladder": [{
                "fault": "lossy-5", "seconds": 60, "moves": 0, "max_gap_ms": 12.5, "admission_closed": 0,
                "servers_killed": 0,
            }],
        });
        assert_eq!(serde_json::to_value(&figures).expect("JSON"), wanted);
        let nobody = Row::of("server-hung", System::Legacy, &[trial(60_000.0, None, false)]);
        assert_eq!(
            serde_json::to_value(nobody.detect_ms).expect("JSON"),
            json!({"p50": null, "p99": null, "max": null})
        );
        assert!(table(&figures.rows).contains("2/3"));
    }

    #[test]
    fn a_row_measured_again_replaces_the_old_one_and_others_stay() {
        let dir = std::env::temp_dir().join(format!("reroute-bench-rows-{}", std::process::id()));
        let path = dir.join("bench/failover.json");
        let row = |fault: &str, system, gap| Row::of(fault, system, &[trial(gap, None, true)]);
        let mut kept = Kept::open(&path, false).expect("none yet");
        kept.row(row("server-hung", System::Legacy, 3.0)).expect("kept");
        kept.row(row("server-hung", System::Reroute, 2.0)).expect("kept");
        kept.row(row("server-killed", System::Reroute, 1.0)).expect("kept");
        let mut kept = Kept::open(&path, false).expect("read again");
        kept.row(row("server-hung", System::Reroute, 4.0)).expect("kept");
        let all = Kept::open(&path, false).expect("read again").figures.rows;
        let all: Vec<_> = all.iter().map(|r| (r.fault.as_str(), r.system.as_str(), r.gap_ms.max)).collect();
        let wanted = [
            ("server-killed", "reroute", Some(1.0)),
            ("server-hung", "reroute", Some(4.0)),
            ("server-hung", "legacy", Some(3.0)),
        ];
        assert_eq!(all, wanted);
        kept.rung(Rung { fault: "lossy-5".into(), seconds: 60, ..Rung::default() }).expect("kept");
        let mut anew = Kept::open(&path, true).expect("anew");
        assert!(anew.figures.rows.is_empty());
        anew.row(row("planned", System::Reroute, 5.0)).expect("kept");
        let left = Kept::open(&path, false).expect("read again").figures;
        assert_eq!((left.rows.len(), left.rows[0].fault.as_str()), (1, "planned"));
        assert_eq!((left.ladder.len(), left.ladder[0].fault.as_str()), (1, "lossy-5"));
        std::fs::write(&path, "{}").expect("written");
        assert!(Kept::open(&path, false).is_err() && Kept::open(&path, true).is_err());
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
