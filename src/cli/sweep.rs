//! Output of a sweep over tree sizes, for `train` and `models show`.

use crate::models::{CrossValidation, HeldOut, Trial};
use serde::Serialize;

/// A tree size of the sweep, as text and JSON.
#[derive(Serialize)]
pub struct SizeResult {
    max_samples: usize,
    kl_mean: f64,
    kl: Vec<f64>,
    quantile_kl_mean: f64,
    quantile_kl_error: f64,
    quantile_kl: Vec<f64>,
    chosen: bool,
}

impl SizeResult {
    /// All sizes of a cross-validation.
    pub fn from_validation(validation: &CrossValidation) -> Vec<Self> {
        let size = |(i, trial): (usize, &Trial)| Self {
            max_samples: trial.max_samples,
            kl_mean: trial.mean_kl(),
            kl: trial.kl.clone(),
            quantile_kl_mean: trial.mean_quantile_kl(),
            quantile_kl_error: trial.quantile_kl_error(),
            quantile_kl: trial.quantile_kl.clone(),
            chosen: validation.chosen == i,
        };
        validation.trials.iter().enumerate().map(size).collect()
    }
}

/// The sweep as a table with one line per size.
pub fn format_sweep(sizes: &[SizeResult]) -> String {
    let mut table = String::from("  max_samples   mean KL   in quantile bins    KL of each fold\n");
    for size in sizes {
        let folds: Vec<String> = size.kl.iter().map(|kl| format!("{kl:.4}")).collect();
        let marker = if size.chosen { '*' } else { ' ' };
        let quantile_kl = format!("{:.4} ± {:.4}", size.quantile_kl_mean, size.quantile_kl_error);
        let (max_samples, mean, folds) = (size.max_samples, size.kl_mean, folds.join("  "));
        table.push_str(&format!("{marker} {max_samples:>11}  {mean:>8.4}    {quantile_kl:>15}    {folds}\n"));
    }
    table
}

/// The legend below the table: the alerts of the chosen size.
pub fn format_held_out(held_out: &HeldOut) -> String {
    let rate = format!("  * chosen; alert rate on held-out rows: {:.2} %", held_out.alert_rate * 100.0);
    match held_out.incidents_per_day {
        Some(incidents) => format!("{rate}, {incidents:.2} incidents a day"),
        None => rate,
    }
}
