//! Registers a trained model, and promotes it if it passes the promotion gate. The command line and the sidecar share this
//! code.

use super::fit::{Sweep, Trained};
use super::report;
use super::training_set::TrainingSet;
use crate::detector::PromotionGate;
use crate::models::registry::{self, NewVersion, Registry};
use crate::report::training::PromotionDecision;

/// The report, the note and the promotion decision of a model to register.
#[derive(Clone, Debug)]
pub struct RegistrationDraft {
    /// The decision of the promotion gate.
    pub promotion: PromotionDecision,
    /// Report of the training, as HTML.
    pub report: String,
    note: String,
}

/// Checks a model against the gate and renders its report. Without a gate, the model passes: a group without a model
/// accepts any. Without an alias, a model that passes is not promoted. Takes some tenths of a second for days of rows.
pub fn prepare(
    name: &str,
    alias: Option<&str>,
    gate: Option<&PromotionGate>,
    trained: &Trained,
    training_set: &TrainingSet,
) -> RegistrationDraft {
    let reasons = gate.map(|gate| check_gate(gate, trained)).unwrap_or_default();
    let promotion = match alias {
        _ if !reasons.is_empty() => PromotionDecision::Gated(reasons),
        Some(alias) => PromotionDecision::Promoted(alias.into()),
        None => PromotionDecision::Saved,
    };
    let report = report::build_report(name, trained, training_set, promotion.clone()).html();
    let note = note(trained, &promotion);
    RegistrationDraft { promotion, report, note }
}

/// Registers a model, and promotes it if it passed the gate. Returns its version.
///
/// # Errors
/// Those of the registry.
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

/// The bounds that a model exceeds, as sentences. A model without cross-validation passes: it had too few rows for one.
pub fn check_gate(gate: &PromotionGate, trained: &Trained) -> Vec<String> {
    let n_rows = trained.model.card.training_range.as_ref().map_or(0, |history| history.n_rows);
    let Some(Sweep { validation, .. }) = &trained.sweep else { return Vec::new() };
    gate.check(validation.best(), &validation.held_out, n_rows)
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
