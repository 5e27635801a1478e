//! Output of a sweep over tree sizes, for `train` and `models show`.

use crate::models::{CrossValidation, Trial};
use serde::Serialize;

/// A tree size of the sweep, as text and JSON.
#[derive(Serialize)]
pub struct SizeResult {
    max_samples: usize,
    kl_mean: f64,
    kl: Vec<f64>,
    chosen: bool,
}

impl SizeResult {
    /// All sizes of a cross-validation.
    pub fn from_validation(validation: &CrossValidation) -> Vec<Self> {
        let size = |(i, trial): (usize, &Trial)| Self {
            max_samples: trial.max_samples,
            kl_mean: trial.mean_kl(),
            kl: trial.kl.clone(),
            chosen: validation.chosen == i,
        };
        validation.trials.iter().enumerate().map(size).collect()
    }
}

/// The sweep as a table with one line per size.
pub fn format_sweep(sizes: &[SizeResult]) -> String {
    let mut table = String::from("  max_samples   mean KL   KL of each fold\n");
    for size in sizes {
        let folds: Vec<String> = size.kl.iter().map(|kl| format!("{kl:.4}")).collect();
        let marker = if size.chosen { '*' } else { ' ' };
        let (max_samples, mean, folds) = (size.max_samples, size.kl_mean, folds.join("  "));
        table.push_str(&format!("{marker} {max_samples:>11}  {mean:>8.4}   {folds}\n"));
    }
    table
}

/// The legend below the table: the alert rate of the chosen size, in [0, 1].
pub fn format_alert_rate(rate: f64) -> String {
    format!("  * chosen; alert rate on held-out rows: {:.2} %", rate * 100.0)
}
