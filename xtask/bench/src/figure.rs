//! Figures as they are handed to `cargo xtask bench`, and what is computed from samples.

use serde_json::json;

/// Prints a figure on standard output.
pub fn print(name: &str, value: f64, unit: &str) {
    println!("{}", json!({"name": name, "value": value, "unit": unit}));
}

/// The sample below which the share `rank` (0 to 1) of them lies; 0 of none.
pub fn percentile(samples: &mut [f64], rank: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1);
    // The product is at most `last`.
    samples.get((last as f64 * rank.clamp(0.0, 1.0)).round() as usize).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_and_of_no_samples() {
        assert_eq!(percentile(&mut [], 0.5), 0.0);
        assert_eq!(percentile(&mut [3.0], 0.99), 3.0);
        assert_eq!(percentile(&mut [5.0, 1.0, 3.0], 0.5), 3.0);
        assert_eq!(percentile(&mut [5.0, 1.0, 3.0], 1.0), 5.0);
    }
}
