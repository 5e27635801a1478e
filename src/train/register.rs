//! Registers a trained model, and promotes it if it passes the promotion gate. The command line and the sidecar share this
//! code.

use super::fit::{Sweep, Trained};
use super::report;
use super::training_set::TrainingSet;
use crate::detector::PromotionGate;
use crate::models::registry::{self, ModelVersion, NewVersion, Registry};
use crate::report::training::PromotionDecision;
use crate::report::zone::Zone;

/// Beginning of the reasons for which the gate rejected a version, in its note.
const NOT_PROMOTED: &str = "; not promoted: ";

/// The alias that a model should have.
#[derive(Clone, Copy, Debug)]
pub struct PromotionTarget<'a> {
    /// The alias.
    pub alias: &'a str,
    /// The version that it points to, if that is pinned.
    pub pinned: Option<u64>,
    /// The reason why the model serves in spite of gate and pin, if it does: the version before cannot serve.
    pub exemption: Option<&'static str>,
}

/// The report, the note and the promotion decision of a model to register.
#[derive(Clone, Debug)]
pub struct RegistrationDraft {
    /// The decision of the promotion gate.
    pub promotion: PromotionDecision,
    /// Report of the training, as HTML.
    pub report: String,
    note: String,
    is_exempt: bool,
}

/// Checks a model against the gate and renders its report with times in the zone. Without a gate, the model passes: a group without a model
/// accepts any. Without a target, a model that passes is not promoted. Takes some tenths of a second for days of rows.
pub fn prepare(
    name: &str,
    target: Option<PromotionTarget<'_>>,
    gate: Option<&PromotionGate>,
    trained: &Trained,
    training_set: &TrainingSet,
    zone: &Zone,
) -> RegistrationDraft {
    let exemption = target.and_then(|target| target.exemption);
    let gate = gate.filter(|_| exemption.is_none());
    let reasons = gate.map(|gate| check_gate(gate, trained)).unwrap_or_default();
    let promotion = match target {
        _ if !reasons.is_empty() => PromotionDecision::Gated(reasons),
        Some(PromotionTarget { alias, pinned: Some(pinned), exemption: None }) => {
            PromotionDecision::Challenger { alias: alias.into(), pinned }
        }
        Some(PromotionTarget { alias, .. }) => PromotionDecision::Promoted(alias.into()),
        None => PromotionDecision::Saved,
    };
    let report = report::build_report(name, trained, training_set, promotion.clone(), zone).html();
    let note = note(trained, &promotion, exemption);
    RegistrationDraft { promotion, report, note, is_exempt: exemption.is_some() }
}

/// Registers a model, and promotes it if it passed the gate. If its alias is pinned by then, it becomes the challenger.
/// Returns its version and the final decision.
///
/// # Errors
/// Those of the registry.
pub async fn register(
    registry: &Registry,
    name: &str,
    trained: &Trained,
    draft: &RegistrationDraft,
) -> Result<(u64, PromotionDecision), registry::Error> {
    let version = NewVersion { model: &trained.model, report: Some(&draft.report), note: draft.note.clone() };
    let version = registry.register(name, &version).await?;
    let promotion = match &draft.promotion {
        PromotionDecision::Promoted(alias) if draft.is_exempt => {
            registry.replace_unusable(name, alias, version).await?;
            draft.promotion.clone()
        }
        PromotionDecision::Promoted(alias) | PromotionDecision::Challenger { alias, .. } => {
            match registry.promote_trained(name, alias, version).await? {
                None => PromotionDecision::Promoted(alias.clone()),
                Some(pinned) => PromotionDecision::Challenger { alias: alias.clone(), pinned },
            }
        }
        decision @ (PromotionDecision::Gated(_) | PromotionDecision::Saved) => decision.clone(),
    };
    Ok((version, promotion))
}

/// The bounds that a model exceeds, as sentences. A model without cross-validation passes: it had too few rows for one.
pub fn check_gate(gate: &PromotionGate, trained: &Trained) -> Vec<String> {
    let n_rows = trained.model.card.training_range.as_ref().map_or(0, |history| history.n_rows);
    let Some(Sweep { validation, .. }) = &trained.sweep else { return Vec::new() };
    gate.check(validation.best(), &validation.held_out, n_rows)
}

/// True if the gate rejected this version when it was registered, and nobody has promoted it since.
pub fn is_gated(version: &ModelVersion) -> bool {
    version.promoted_ms.is_none() && version.note.contains(NOT_PROMOTED)
}

fn note(trained: &Trained, promotion: &PromotionDecision, exemption: Option<&str>) -> String {
    let card = &trained.model.card;
    let rows = card.training_range.as_ref().map_or(0, |history| history.n_rows);
    let kind = trained.model.fitted.kind();
    let kl = match &card.validation {
        Some(validation) => format!(", KL divergence {:.4}", validation.best().mean_kl()),
        None => String::new(),
    };
    let decision = match (promotion, exemption) {
        (PromotionDecision::Gated(reasons), _) => format!("{NOT_PROMOTED}{}", reasons.join("; ")),
        (PromotionDecision::Challenger { alias, pinned }, _) => {
            format!("; challenger: {alias} is pinned to version {pinned}")
        }
        (_, Some(exemption)) => format!("; promoted without a check: {exemption}"),
        _ => String::new(),
    };
    format!("{kind} on {rows} rows{kl}{decision}")
}
