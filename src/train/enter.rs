//! A trained model enters the registry, and service if the gate lets it: the one way for the command
//! line and for the sidecar.

use super::rows::Rows;
use super::{Gate, Trained, page};
use crate::models::registry::{self, Entry, Registry};
use crate::report::training::Verdict;

/// What is said of a model when it enters the registry.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Is it let into service?
    pub verdict: Verdict,
    /// The page of its training.
    pub report: String,
    note: String,
}

/// Judges a model and writes its page. Without a gate it serves as it is: where nothing else could, it is
/// better than nothing. Takes some tenths of a second for days of rows.
pub fn draft(name: &str, alias: &str, gate: Option<&Gate>, trained: &Trained, rows: &Rows) -> Draft {
    let reasons = gate.map(|gate| judge(gate, trained)).unwrap_or_default();
    let verdict = if reasons.is_empty() { Verdict::Promoted(alias.into()) } else { Verdict::Held(reasons) };
    let report = page::training(name, trained, rows, verdict.clone()).html();
    let note = note(trained, &verdict);
    Draft { verdict, report, note }
}

/// Registers a model and, if nothing speaks against it, promotes it. Returns its version.
///
/// # Errors
/// The registry's.
pub async fn enter(
    registry: &Registry,
    name: &str,
    trained: &Trained,
    draft: &Draft,
) -> Result<u64, registry::Error> {
    let entry = Entry { model: &trained.model, report: Some(&draft.report), note: draft.note.clone() };
    let version = registry.register(name, &entry).await?;
    if let Verdict::Promoted(alias) = &draft.verdict {
        registry.promote(name, alias, version).await?;
    }
    Ok(version)
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
