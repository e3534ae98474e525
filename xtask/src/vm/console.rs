//! What the guest says on its serial console, line by line, and what that means.

use anyhow::bail;
use std::collections::VecDeque;

/// Lines shown when something went wrong.
const TAIL: usize = 60;
/// Interfaces of the agent.
const NETWORKS: usize = 3;

/// Everything that decides whether a kernel passed.
#[derive(Default)]
pub struct Console {
    pub up: bool,
    /// What the agent's `status` said of each interface.
    first: Vec<String>,
    second: Vec<String>,
    passed: usize,
    failed: Vec<String>,
    panic: bool,
    /// The guest's last word.
    result: Option<String>,
    tail: VecDeque<String>,
}

impl Console {
    pub fn hear(&mut self, line: &str) {
        let line = line.trim_end();
        if line.contains("Kernel panic") {
            self.panic = true;
        }
        if let Some(said) = line.strip_prefix("vm: ") {
            let words: Vec<&str> = said.split_whitespace().collect();
            match words[..] {
                ["up", ..] => self.up = true,
                ["first", ..] => self.first.push(said.to_string()),
                ["second", ..] => self.second.push(said.to_string()),
                ["test", _, "ok", ..] => self.passed += 1,
                ["test", name, ..] => self.failed.push(name.to_string()),
                ["result", ..] => self.result = Some(said.to_string()),
                _ => {}
            }
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_string());
    }

    /// How many tests passed: all of the `wanted` ones, and the agent's egress programs were attached by `egress`, if that
    /// was tried, and then adopted. Errors: what is missing.
    pub fn verdict(&self, wanted: usize, egress: Option<&str>) -> anyhow::Result<usize> {
        let egress_says = |lines: &[String], adopted: bool| {
            let Some(egress) = egress else { return true };
            let right = |line: &String| {
                line.contains(&format!("\"egress\":\"{egress}\""))
                    && line.contains(&format!("{egress}:adopted")) == adopted
            };
            lines.len() == NETWORKS && lines.iter().all(right)
        };
        if self.panic {
            bail!("the kernel panicked");
        }
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        match &self.result {
            None => bail!("no result line"),
            Some(result) if result != "result 0 failed" => bail!("{result}"),
            Some(_) if !egress_says(&self.first, false) => bail!("`status` does not say {egress:?}"),
            Some(_) if !egress_says(&self.second, true) => bail!("`status` does not say {egress:?}, adopted"),
            Some(_) if self.passed != wanted => bail!("{} of {wanted} tests passed", self.passed),
            Some(_) => Ok(self.passed),
        }
    }

    pub fn tail(&self) -> impl Iterator<Item = &str> {
        self.tail.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> anyhow::Result<usize> {
        let mut console = Console::default();
        for line in lines {
            console.hear(line);
        }
        console.verdict(2, Some("clsact"))
    }
    const UP: &str = "vm: up 6.1.0-56-cloud-amd64\r";
    const FIRST: &str = "vm: first {\"egress\":\"clsact\",\"ingress\":\"xdpnative\",\"reason\":\"tcx:no\"}\r";
    const SECOND: &str =
        "vm: second {\"egress\":\"clsact\",\"reason\":\"xdpnative:adopted;clsact:adopted\"}\r";
    const ONE: &str = "vm: test a::one ok (2.10 to 3.40 s)\r";
    const TWO: &str = "vm: test a::two ok (3.40 to 8.01 s)\r";
    const FINE: &str = "vm: result 0 failed\r";
    const AGENT: [&str; 7] = [UP, FIRST, FIRST, FIRST, SECOND, SECOND, SECOND];

    #[test]
    fn only_a_complete_run_passes() {
        let after = |more: &[&str]| heard(&[&AGENT, more].concat());
        assert_eq!(after(&[ONE, TWO, FINE]).ok(), Some(2));
        assert!(after(&[ONE, FINE]).is_err(), "one did not run");
        assert!(after(&[ONE, TWO]).is_err(), "no last word");
        assert!(after(&[ONE, TWO, "vm: result 1 failed"]).is_err());
        let failed = after(&[ONE, "vm: test a::two FAILED (3.40 to 8.01 s)", "vm: result 1 failed"]);
        assert!(failed.is_err_and(|error| error.to_string().contains("a::two")));
        assert!(after(&[ONE, TWO, FINE, "[    3.1] Kernel panic - not syncing: Fatal exception"]).is_err());
    }

    #[test]
    fn the_agent_must_have_attached_and_adopted_all_three() {
        let before = |lines: &[&str]| heard(&[lines, &[ONE, TWO, FINE]].concat());
        assert!(before(&[UP]).is_err());
        assert!(before(&[UP, FIRST, FIRST, FIRST]).is_err());
        assert!(before(&[UP, FIRST, FIRST, SECOND, SECOND, SECOND]).is_err());
        assert!(before(&[UP, FIRST, FIRST, FIRST, FIRST, FIRST, FIRST]).is_err());
        let other: Vec<String> = AGENT.iter().map(|line| line.replace("clsact", "tcx")).collect();
        assert!(before(&other.iter().map(String::as_str).collect::<Vec<_>>()).is_err());
    }
}
