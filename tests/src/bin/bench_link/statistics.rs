//! Means that say how far they can be trusted.

use serde_json::{Value, json};

/// A sample's mean and spread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Statistics {
    pub(crate) count: usize,
    pub(crate) mean: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) deviation: f64,
}

impl Statistics {
    /// Of all these values.
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes are far below 2^52")]
    pub(crate) fn of(values: &[f64]) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self {
            count,
            mean,
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            deviation: if count > 1 { (squares / (count - 1) as f64).sqrt() } else { 0.0 },
        }
    }

    /// Of a total that `count` parts share.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub(crate) fn shared(total: f64, count: usize) -> Self {
        let mean = total / count.max(1) as f64;
        Self { count, mean, least: mean, most: mean, deviation: 0.0 }
    }

    pub(crate) fn json(self) -> Value {
        let Self { count, mean, least, most, deviation } = self;
        json!({ "n": count, "mean": mean, "min": least, "max": most, "stddev": deviation })
    }
}
