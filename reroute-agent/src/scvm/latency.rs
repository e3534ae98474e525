//! Quantiles of the kernel's log2 histograms.

use reroute_common::class;
use reroute_common::table::{Client, LATENCY_BUCKETS};
use serde::{Deserialize, Serialize};

/// Latency quantiles of replies, µs. Each is the *upper bound of the bucket* that holds the quantile, not interpolated:
/// the quantile itself lies in `[bound / 2, bound)`, below 2 in `[0, 2)`. The last bucket has no upper bound, and shows
/// its lower one (8,388,608: that long or longer). `None`: no replies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Replies that were matched with their calls and timed.
    pub replies: u64,
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
    pub p999_us: Option<u64>,
}

/// One client's, by class and over all classes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    pub all: Quantiles,
    pub null: Quantiles,
    pub read: Quantiles,
    pub write: Quantiles,
    pub metadata: Quantiles,
}

impl Latencies {
    pub fn of(client: &Client) -> Latencies {
        let class = |class: u32| Quantiles::of(&client.latency[class as usize]);
        let all = std::array::from_fn(|bucket| client.latency.iter().map(|c| c[bucket]).sum());
        Latencies {
            all: Quantiles::of(&all),
            null: class(class::NULL),
            read: class(class::READ),
            write: class(class::WRITE),
            metadata: class(class::METADATA),
        }
    }
}

impl Quantiles {
    pub fn of(histogram: &[u64; LATENCY_BUCKETS]) -> Quantiles {
        Quantiles {
            replies: histogram.iter().sum(),
            p50_us: bound_us(histogram, 500),
            p99_us: bound_us(histogram, 990),
            p999_us: bound_us(histogram, 999),
        }
    }
}

/// Bound of the bucket that holds the `per_mille` quantile by nearest rank: the smallest value that so many of a thousand
/// replies do not exceed.
fn bound_us(histogram: &[u64; LATENCY_BUCKETS], per_mille: u128) -> Option<u64> {
    let total: u128 = histogram.iter().map(|n| u128::from(*n)).sum();
    let rank = (total * per_mille).div_ceil(1000).max(1);
    let mut seen = 0;
    let bucket = histogram.iter().position(|n| {
        seen += u128::from(*n);
        seen >= rank
    })?;
    Some(1 << if bucket + 1 == LATENCY_BUCKETS { bucket } else { bucket + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(counts: &[(usize, u64)]) -> [u64; LATENCY_BUCKETS] {
        let mut all = [0; LATENCY_BUCKETS];
        counts.iter().for_each(|(bucket, n)| all[*bucket] += n);
        all
    }

    fn quantiles(counts: &[(usize, u64)]) -> (Option<u64>, Option<u64>, Option<u64>) {
        let q = Quantiles::of(&histogram(counts));
        (q.p50_us, q.p99_us, q.p999_us)
    }

    #[test]
    fn quantiles_are_the_upper_bounds_of_their_buckets() {
        assert_eq!(quantiles(&[]), (None, None, None));
        assert_eq!(quantiles(&[(0, 1)]), (Some(2), Some(2), Some(2)));
        // 99 of 100 are below 256 µs: the 99th by rank is the last of them, the 100th is p99.9.
        assert_eq!(quantiles(&[(7, 99), (16, 1)]), (Some(256), Some(256), Some(131_072)));
        assert_eq!(quantiles(&[(7, 98), (16, 2)]), (Some(256), Some(131_072), Some(131_072)));
        assert_eq!(quantiles(&[(7, 1), (8, 1)]).0, Some(256), "the lower of two");
        assert_eq!(quantiles(&[(7, 999), (8, 1)]).2, Some(256));
        assert_eq!(quantiles(&[(7, 9989), (8, 11)]).2, Some(512));
        assert_eq!(quantiles(&[(LATENCY_BUCKETS - 1, 3)]).0, Some(8_388_608), "no upper bound");
        assert_eq!(quantiles(&[(3, u64::MAX / 2), (5, u64::MAX / 2)]).0, Some(16), "no overflow");
    }

    /// The bound is right for the values themselves: against a plain sorted list.
    #[test]
    fn the_quantile_of_the_values_lies_in_the_bucket() {
        let mut values: Vec<u64> = (0..5000_u64).map(|i| 1 + i * i % 70_001 + i % 7 * 300).collect();
        values.sort_unstable();
        let mut counts = [0; LATENCY_BUCKETS];
        values.iter().for_each(|v| counts[v.ilog2() as usize] += 1);
        let q = Quantiles::of(&counts);
        assert_eq!(q.replies, 5000);
        for (rank, bound) in [(2500, q.p50_us), (4950, q.p99_us), (4995, q.p999_us)] {
            let (value, bound) = (values[rank - 1], bound.unwrap());
            assert!((bound / 2..bound).contains(&value), "{value} in {bound}");
        }
    }
}
