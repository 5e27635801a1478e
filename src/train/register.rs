//! A trained model enters the registry, and service if the gate lets it: the one way for the command
//! line and for the sidecar.

use super::fit::Trained;
use super::report;
use super::training_set::TrainingSet;
use crate::detector::PromotionGate;
use crate::models::registry::{self, NewVersion, Registry};
use crate::report::training::PromotionDecision;

/// What is said of a model when it enters the registry.
#[derive(Clone, Debug)]
pub struct RegistrationDraft {
    /// Is it let into service?
    pub promotion: PromotionDecision,
    /// The page of its training.
    pub report: String,
    note: String,
}

/// Judges a model and writes its page. Without a gate it serves as it is: where nothing else could, it is
/// better than nothing. Takes some tenths of a second for days of rows.
pub fn prepare(
    name: &str,
    alias: &str,
    gate: Option<&PromotionGate>,
    trained: &Trained,
    training_set: &TrainingSet,
) -> RegistrationDraft {
    let reasons = gate.map(|gate| check_gate(gate, trained)).unwrap_or_default();
    let promotion = if reasons.is_empty() {
        PromotionDecision::Promoted(alias.into())
    } else {
        PromotionDecision::Gated(reasons)
    };
    let report = report::build_report(name, trained, training_set, promotion.clone()).html();
    let note = note(trained, &promotion);
    RegistrationDraft { promotion, report, note }
}

/// Registers a model and, if nothing speaks against it, promotes it. Returns its version.
///
/// # Errors
/// The registry's.
pub async fn register(
    registry: &Registry,
    name: &str,
    trained: &Trained,
    draft: &RegistrationDraft,
) -> Result<u64, registry::Error> {
    let version = NewVersion { model: &trained.model, report: Some(&draft.report), note: draft.note.clone() };
    let version = registry.register(name, &version).await?;
    if let PromotionDecision::Promoted(alias) = &draft.promotion {
        registry.promote(name, alias, version).await?;
    }
    Ok(version)
}

/// What speaks against a model. One without validation had too few rows for it, and is better than none.
pub fn check_gate(gate: &PromotionGate, trained: &Trained) -> Vec<String> {
    let n_rows = trained.model.card.training_range.as_ref().map_or(0, |history| history.n_rows);
    trained.sweep.as_ref().map(|sweep| gate.check(&sweep.validation, n_rows)).unwrap_or_default()
}

fn note(trained: &Trained, promotion: &PromotionDecision) -> String {
    let card = &trained.model.card;
    let rows = card.training_range.as_ref().map_or(0, |history| history.n_rows);
    let kind = trained.model.fitted.kind();
    let kl = match &card.validation {
        Some(validation) => format!(", KL divergence {:.4}", validation.best().mean_kl()),
        None => String::new(),
    };
    let not_promoted = match promotion {
        PromotionDecision::Gated(reasons) => format!("; not promoted: {}", reasons.join("; ")),
        _ => String::new(),
    };
    format!("{kind} on {rows} rows{kl}{not_promoted}")
}
