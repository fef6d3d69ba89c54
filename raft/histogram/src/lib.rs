//! Stands in for the crate of this name, with which openraft counts the sizes of its batches.
//!
//! The crate itself makes tables for all its sixteen precisions when the first histogram is made: 25
//! MiB that every node would keep for ever, as much as all else that an idle node holds. This one
//! counts by powers of two, in half a KiB.
//!
//! Non-goal: what openraft does not use. When the crate makes only the tables that are needed, this
//! folder and its `[patch]` can go.

use std::fmt;
use std::marker::PhantomData;

/// One for each number of significant bits of a value, and one for zero.
const BUCKETS: usize = u64::BITS as usize + 1;

/// Counts values by their powers of two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    buckets: [u64; BUCKETS],
    of: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    #[must_use]
    pub const fn new() -> Self {
        Self { buckets: [0; BUCKETS], of: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value so many times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let bits = u64::BITS - value.leading_zeros();
        if let Some(bucket) = self.buckets.get_mut(bits as usize) {
            *bucket = bucket.saturating_add(times);
        }
    }

    /// Where the values lie.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.samples(),
            p0_1: self.percentile(1),
            p1: self.percentile(10),
            p5: self.percentile(50),
            p10: self.percentile(100),
            p50: self.percentile(500),
            p90: self.percentile(900),
            p99: self.percentile(990),
            p99_9: self.percentile(999),
        }
    }

    fn samples(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The power of two at or below the value that so many of a thousand do not exceed.
    fn percentile(&self, permille: u64) -> u64 {
        let rank = u128::from(self.samples()) * u128::from(permille);
        let mut seen = 0_u128;
        for (bits, count) in self.buckets.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen * 1000 >= rank {
                return bits.checked_sub(1).map_or(0, |power| 1 << power);
            }
        }
        0
    }
}

/// Percentiles of what a [`Histogram`] counted, each rounded down to a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, p99_9, .. } = self;
        write!(f, "[samples: {samples}, P50: {p50}, P90: {p90}, P99: {p99}, P99.9: {p99_9}]")
    }
}

/// Several histograms, line by line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AsciiChart {
    lines: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    #[must_use]
    pub const fn new() -> Self {
        Self { lines: Vec::new() }
    }

    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.lines.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|(name, stats)| writeln!(f, "{name} {stats}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_powers_of_two_at_or_below() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p99, 0);
        histogram.record_n(5, 89);
        histogram.record_n(100, 10);
        histogram.record(u64::MAX);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p0_1, stats.p50, stats.p90), (100, 4, 4, 64));
        assert_eq!((stats.p99, stats.p99_9), (64, 1 << 63));
    }

    #[test]
    fn zero_is_a_value() {
        let mut histogram = Histogram::<()>::new();
        histogram.record_n(0, 9);
        histogram.record(1);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p50, stats.p99), (10, 0, 1));
    }
}
