//! Medians and percentiles of few numbers.

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub mean: f64,
    pub min: f64,
    pub p25: f64,
    pub p50: f64,
    pub p75: f64,
    pub p99: f64,
    pub max: f64,
}

/// Of the values in any order; zeroes of none.
pub fn spread(values: &[f64]) -> Spread {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // The nearest rank: a value that was seen.
    let at = |share: f64| {
        let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize - 1;
        sorted.get(rank.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    Spread { mean, min: at(0.0), p25: at(0.25), p50: at(0.5), p75: at(0.75), p99: at(0.99), max: at(1.0) }
}

impl Spread {
    pub fn json(&self, digits: i32) -> Value {
        let r = |v| round(v, digits);
        json!({
            "min": r(self.min), "p25": r(self.p25), "p50": r(self.p50), "p75": r(self.p75), "p99": r(self.p99),
            "mean": r(self.mean), "max": r(self.max),
        })
    }
}

pub fn round(value: f64, digits: i32) -> f64 {
    let unit = 10_f64.powi(digits);
    (value * unit).round() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_values_that_were_seen() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let s = spread(&hundred);
        assert_eq!((s.min, s.p25, s.p50, s.p75, s.p99, s.max), (1.0, 25.0, 50.0, 75.0, 99.0, 100.0));
        let one = spread(&[7.0]);
        assert_eq!((one.min, one.p50, one.p99, one.max), (7.0, 7.0, 7.0, 7.0));
        assert_eq!(spread(&[]).p50, 0.0);
    }
}
