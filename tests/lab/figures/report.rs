//! The figures: printed as they come, kept as JSON.

use anyhow::Context;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Report {
    path: PathBuf,
    values: Map<String, Value>,
}

impl Report {
    /// Goes on with the figures that are in the file, if there are any.
    pub fn open(path: &Path) -> anyhow::Result<Report> {
        // Before the namespaces change what lies under it.
        let path = std::path::absolute(path)?;
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let values = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("{} holds something else than figures", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        Ok(Report { path, values })
    }

    pub fn set(&mut self, name: &str, value: Value) {
        self.values.insert(name.into(), value);
    }

    /// Says when and how a part was measured.
    pub fn part(&mut self, name: &str, how: Value) {
        let parts = self.values.entry("parts").or_insert_with(|| json!({}));
        parts[name] = json!({
            "date": date(),
            "load": std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
            "how": how,
        });
    }

    pub fn save(mut self) -> anyhow::Result<()> {
        self.set("kernel", json!(kernel()));
        self.set("cpu", json!(cpu()));
        self.set("cpus", json!(std::thread::available_parallelism().map_or(0, |n| n.get())));
        let text = serde_json::to_string_pretty(&Value::Object(self.values))?;
        std::fs::write(&self.path, format!("{text}\n"))
            .with_context(|| format!("writing {}", self.path.display()))?;
        println!("figures in {}", self.path.display());
        Ok(())
    }
}

/// Now, UTC.
pub fn date() -> String {
    output("date", &["-u", "+%FT%TZ"])
}

/// Its release.
pub fn kernel() -> String {
    output("uname", &["-r"])
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string()).unwrap_or_default()
}

fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    name.map(|(_, name)| name.to_string()).unwrap_or_default()
}
