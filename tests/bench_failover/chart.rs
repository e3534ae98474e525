//! The figures as a picture (SVG 1.1): a band for each fault, a line for each system, ms on a log scale.
//!
//! A dot is the median, a tick the 99th percentile, the line goes on to the maximum; an arrow at its end says that some
//! trials, or all, did not recover before the cut-off.

use crate::cases::System;
use crate::rows::Row;
use std::fmt::Write as _;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 170.0;
const RIGHT: f64 = 800.0;
const TOP: f64 = 86.0;
const LANE: f64 = 16.0;
const BAND: f64 = LANE * 3.0 + 14.0;
const BOTTOM: f64 = 46.0;
/// Of the scale, ms, as powers of ten.
const FIRST: i32 = 0;
const LAST: i32 = 5;

fn colour(system: System) -> &'static str {
    match system {
        System::Reroute => "#0072b2",
        System::Legacy => "#d55e00",
        System::Keepalived => "#6f6f6f",
    }
}

fn said(system: System) -> &'static str {
    match system {
        System::Reroute => "reroute",
        System::Legacy => "the old loop (3 s poll)",
        System::Keepalived => "keepalived, BFD 10 ms x3",
    }
}

/// Where so many ms lie.
fn x(ms: f64) -> f64 {
    let (first, last) = (f64::from(FIRST), f64::from(LAST));
    let share = (ms.max(1e-3).log10().clamp(first, last) - first) / (last - first);
    LEFT + share * (RIGHT - LEFT)
}

fn ms_text(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1}"),
        ms if ms < 10_000.0 => format!("{ms:.0}"),
        ms => format!("{:.0} s", ms / 1e3),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// `note`: where and when it was measured.
pub fn svg(rows: &[Row], note: &str) -> String {
    let mut faults: Vec<&str> = Vec::new();
    for row in rows {
        if !faults.contains(&row.fault.as_str()) {
            faults.push(&row.fault);
        }
    }
    let end = TOP + BAND * faults.len() as f64;
    let height = end + BOTTOM;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"20\" y=\"26\" font-size=\"16\" font-weight=\"bold\">Longest time without a completed write, by fault \
         (ms, log scale)</text>\n\
         <text x=\"20\" y=\"44\" fill=\"#555\">dot: median; tick: p99; end of the line: maximum; arrow: not recovered at the \
         cut-off (60 s the old loop, 10 s the others)</text>\n"
    );
    legend(&mut out);
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"68\" font-size=\"11\" fill=\"#555\">p50 / p99, ms (trials)</text>",
        RIGHT + 12.0
    );
    for power in FIRST..=LAST {
        let at = x(10_f64.powi(power));
        let label = if power < 3 {
            format!("{} ms", 10_i32.pow(power as u32))
        } else {
            format!("{} s", 10_i32.pow(power as u32 - 3))
        };
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{end}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{label}</text>",
            end + 18.0
        );
    }
    for (nth, fault) in faults.iter().enumerate() {
        band(&mut out, rows, fault, TOP + BAND * nth as f64);
    }
    let _ = write!(
        out,
        "<text x=\"20\" y=\"{:.1}\" fill=\"#777\" font-size=\"11\">{}</text>\n</svg>\n",
        end + 36.0,
        escaped(note)
    );
    out
}

fn legend(out: &mut String) {
    for (nth, system) in System::ALL.into_iter().enumerate() {
        let at = LEFT + 230.0 * nth as f64;
        let _ = writeln!(
            out,
            "<circle cx=\"{at}\" cy=\"64\" r=\"5\" fill=\"{}\"/><text x=\"{}\" y=\"68\">{}</text>",
            colour(system),
            at + 11.0,
            said(system)
        );
    }
}

fn band(out: &mut String, rows: &[Row], fault: &str, top: f64) {
    let middle = top + 7.0 + LANE * 1.5 + 4.0;
    let _ = writeln!(
        out,
        "<line x1=\"20\" y1=\"{top}\" x2=\"{}\" y2=\"{top}\" stroke=\"#eee\"/>\
         <text x=\"{}\" y=\"{middle}\" text-anchor=\"end\" font-weight=\"bold\">{}</text>",
        WIDTH - 20.0,
        LEFT - 16.0,
        escaped(fault)
    );
    for (nth, system) in System::ALL.into_iter().enumerate() {
        let y = top + 7.0 + LANE * (nth as f64 + 0.5);
        if let Some(row) = rows.iter().find(|r| r.fault == fault && r.system == system.name()) {
            lane(out, row, colour(system), y);
        }
    }
}

fn lane(out: &mut String, row: &Row, colour: &str, y: f64) {
    let gap = &row.gap_ms;
    let (Some(p50), Some(p99), Some(max)) = (gap.p50, gap.p99, gap.max) else { return };
    let (from, tick, to) = (x(p50), x(p99), x(max));
    let _ = writeln!(
        out,
        "<g stroke=\"{colour}\" fill=\"{colour}\"><line x1=\"{from:.1}\" y1=\"{y}\" x2=\"{to:.1}\" y2=\"{y}\" stroke-width=\"3\"/>\
         <line x1=\"{tick:.1}\" y1=\"{:.1}\" x2=\"{tick:.1}\" y2=\"{:.1}\" stroke-width=\"2\"/>",
        y - 5.0,
        y + 5.0
    );
    let mut text = format!("{} / {}", ms_text(p50), ms_text(p99));
    if row.recovered > 0 {
        let _ = writeln!(out, "<circle cx=\"{from:.1}\" cy=\"{y}\" r=\"4.5\"/>");
    } else {
        text = "never".into();
    }
    if row.recovered < row.trials {
        let _ = writeln!(
            out,
            "<line x1=\"{to:.1}\" y1=\"{y}\" x2=\"{:.1}\" y2=\"{y}\" stroke-width=\"3\"/>\
             <polygon points=\"{:.1},{:.1} {:.1},{y} {:.1},{:.1}\" stroke=\"none\"/>",
            to + 10.0,
            to + 8.0,
            y - 6.0,
            to + 18.0,
            to + 8.0,
            y + 6.0
        );
        let _ = write!(text, ", {} of {} recovered", row.recovered, row.trials);
    } else {
        let _ = write!(text, " ({})", row.trials);
    }
    let _ = writeln!(
        out,
        "</g><text x=\"{}\" y=\"{:.1}\" font-size=\"11\" fill=\"{colour}\">{}</text>",
        RIGHT + 12.0,
        y + 4.0,
        escaped(&text)
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::Trial;

    #[test]
    fn the_scale_is_logarithmic_and_has_ends() {
        let step = x(10.0) - x(1.0);
        assert!((x(1000.0) - x(100.0) - step).abs() < 1e-9);
        assert_eq!(x(0.0), LEFT);
        assert_eq!(x(1e9), RIGHT);
        assert!(x(60_000.0) < RIGHT);
    }

    #[test]
    fn each_system_has_its_line_and_who_never_recovered_an_arrow() {
        let trial = |gap_ms, recovered| Trial { gap_ms, recovered, ..Trial::default() };
        let rows = [
            Row::of("a<b", System::Reroute, &[trial(12.0, true)]),
            Row::of("a<b", System::Legacy, &[trial(60_000.0, false)]),
            Row::of("other", System::Keepalived, &[]),
        ];
        let picture = svg(&rows, "here & now");
        assert!(picture.contains("a&lt;b") && picture.contains("here &amp; now"));
        assert_eq!(picture.matches("<polygon").count(), 1);
        assert!(picture.contains("never, 0 of 1 recovered"));
        // The row without trials shows nothing.
        assert_eq!(picture.matches("stroke-width=\"2\"").count(), 2);
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
        for tag in ["svg", "g", "text"] {
            let (begun, ended) = (format!("<{tag} "), format!("</{tag}>"));
            assert_eq!(picture.matches(&begun).count(), picture.matches(&ended).count(), "{tag}");
        }
    }
}
