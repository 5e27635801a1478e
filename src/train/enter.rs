//! A trained model enters the registry, and service if the gate lets it: the one way for the command
//! line and for the sidecar.

use super::rows::Rows;
use super::{Gate, Trained, page};
use crate::models::registry::{self, Entry, Registry};
use crate::report::training::Verdict;

/// What became of a model.
#[derive(Debug)]
pub struct Entered {
    /// Its version.
    pub version: u64,
    /// Was it let into service?
    pub verdict: Verdict,
    /// The page of its training.
    pub report: String,
}

/// Judges, reports, registers and, if nothing speaks against it, promotes a model. Without a gate it
/// serves as it is: where nothing else could, it is better than nothing.
///
/// # Errors
/// The registry's.
pub async fn enter(
    registry: &Registry,
    name: &str,
    alias: &str,
    gate: Option<&Gate>,
    trained: &Trained,
    rows: &Rows,
) -> Result<Entered, registry::Error> {
    let reasons = gate.map(|gate| judge(gate, trained)).unwrap_or_default();
    let verdict = if reasons.is_empty() { Verdict::Promoted(alias.into()) } else { Verdict::Held(reasons) };
    let report = page::training(name, trained, rows, verdict.clone()).html();
    let note = note(trained, &verdict);
    let entry = Entry { model: &trained.model, report: Some(&report), note };
    let version = registry.register(name, &entry).await?;
    if let Verdict::Promoted(alias) = &verdict {
        registry.promote(name, alias, version).await?;
    }
    Ok(Entered { version, verdict, report })
}

/// What speaks against a model. One without validation had too few rows for it, and is better than none.
pub fn judge(gate: &Gate, trained: &Trained) -> Vec<String> {
    let n_rows = trained.model.card.history.as_ref().map_or(0, |history| history.n_rows);
    trained.sweep.as_ref().map(|sweep| gate.judge(&sweep.validation, n_rows)).unwrap_or_default()
}

fn note(trained: &Trained, verdict: &Verdict) -> String {
    let card = &trained.model.card;
    let rows = card.history.as_ref().map_or(0, |history| history.n_rows);
    let kind = trained.model.fitted.kind();
    let kl = match &card.validation {
        Some(validation) => format!(", KL divergence {:.4}", validation.best().mean_kl()),
        None => String::new(),
    };
    let held = match verdict {
        Verdict::Held(reasons) => format!("; not promoted: {}", reasons.join("; ")),
        _ => String::new(),
    };
    format!("{kind} on {rows} rows{kl}{held}")
}
