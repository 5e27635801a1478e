//! Metrics of a sweep, as MLflow logs them: name, value and step.

use crate::models::Trial;

/// The divergences of a size: those of the folds with the fold as the step, and their means.
pub(super) fn kl_metrics(trial: &Trial) -> Vec<(String, f64, usize)> {
    let folds = |name: &'static str, values: &[f64]| {
        values
            .iter()
            .copied()
            .enumerate()
            .map(move |(fold, kl)| (name.to_string(), kl, fold))
            .collect::<Vec<_>>()
    };
    let mut metrics = folds("kl_divergence", &trial.kl);
    metrics.extend(folds("quantile_kl_divergence", &trial.quantile_kl));
    metrics.push(("kl_divergence_mean".into(), trial.mean_kl(), 0));
    metrics.push(("quantile_kl_divergence_mean".into(), trial.mean_quantile_kl(), 0));
    metrics
}

/// The mean divergences of a size with the size as the step, which MLflow draws as a curve over the sizes.
pub(super) fn sweep_metrics(trial: &Trial) -> [(String, f64, usize); 2] {
    [
        ("sweep_kl_divergence".into(), trial.mean_kl(), trial.max_samples),
        ("sweep_quantile_kl_divergence".into(), trial.mean_quantile_kl(), trial.max_samples),
    ]
}
