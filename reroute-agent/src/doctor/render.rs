//! Findings for people: the worst first.

use super::{Level, Report};

pub fn text(report: &Report) -> String {
    let names =
        report.nodes.iter().map(|(role, name)| format!("{name} ({})", format!("{role:?}").to_lowercase()));
    let mut out = names.collect::<Vec<_>>().join(", ") + "\n";
    let mut findings: Vec<_> = report.findings.iter().collect();
    findings.sort_by_key(|f| std::cmp::Reverse(f.level));
    for finding in findings {
        let mark = match finding.level {
            Level::Ok => "ok",
            Level::Unknown => "unknown",
            Level::Warning => "WARNING",
            Level::Critical => "CRITICAL",
        };
        out += &format!("{mark:8}  {:14}  {}\n", finding.check, finding.found);
        if !finding.advice.is_empty() {
            out += &format!("{:26}-> {}\n", "", finding.advice);
        }
    }
    let count = |level| report.findings.iter().filter(|f| f.level == level).count();
    out + &format!(
        "{} critical, {} warnings, {} unknown, {} ok\n",
        count(Level::Critical),
        count(Level::Warning),
        count(Level::Unknown),
        count(Level::Ok)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Finding, facts::Role};

    #[test]
    fn the_worst_stands_first_with_what_to_do() {
        let finding = |check, level, found: &str, advice: &str| Finding {
            check,
            level,
            found: found.into(),
            advice: advice.into(),
        };
        let report = Report {
            nodes: vec![(Role::Scvm, "scvm1".into())],
            worst: Level::Critical,
            findings: vec![
                finding("kernel", Level::Ok, "6.1", ""),
                finding("listener", Level::Critical, "nothing listens", "start the server"),
            ],
        };
        let text = text(&report);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "scvm1 (scvm)");
        assert!(
            lines[1].starts_with("CRITICAL  listener") && lines[1].ends_with("nothing listens"),
            "{text}"
        );
        assert_eq!(lines[2].trim(), "-> start the server");
        assert!(lines[3].starts_with("ok        kernel"), "{text}");
        assert_eq!(lines[4], "1 critical, 0 warnings, 0 unknown, 1 ok");
    }
}
