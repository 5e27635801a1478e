//! `promforest train`: a sweep with cross-validation on the history, a model and its report.

use super::sweep::{SizeResult, format_held_out, format_sweep};
use super::training_data::{self, HistoryRange, TrainingDataArgs, TrainingInput, TrainingInputs};
use super::{OutputFormat, RegistryArgs, print};
use crate::config::Config;
use crate::error::BoxError;
use crate::models::registry::Registry;
use crate::models::{HeldOut, ModelKind, ModelParams, artifact};
use crate::report::training::PromotionDecision;
use crate::report::zone::Zone;
use crate::table::DataTable;
use crate::time;
use crate::train::cross_validation::DEFAULT_SIZES;
use crate::train::register::{self, PromotionTarget};
use crate::train::{ModelFitter, Trained};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    training_data: TrainingDataArgs,
    /// Beginning of the history, as in 2026-01-31T12:00:00Z or in seconds since 1970; without it, training.history before
    /// the end
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    start: Option<i64>,
    /// End of the history; without it, now
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    end: Option<i64>,
    /// Train on a table instead: Parquet or CSV, a column timestamp in ms and one column per feature
    #[arg(long, value_name = "FILE", conflicts_with_all = ["start", "end", "tenant", "group", "shard", "exclude_alert"])]
    input: Option<PathBuf>,
    /// Candidate numbers of rows per tree [default: training.sweep of the detector, or if that is empty
    /// 5,10,50,100,1000,1500,2000,2500,3000,3500,4000,4500,5000]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    sweep: Vec<usize>,
    /// Kind of forest; without it, the detector's
    #[arg(long, value_name = "KIND")]
    kind: Option<ModelKind>,
    /// Write the model to this folder instead of the registry
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Alias of the model if it passes the promotion gate; without it, the registry's, or none for a table
    #[arg(long, value_name = "ALIAS", conflicts_with = "model")]
    alias: Option<String>,
    /// File for an HTML report with plots
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

/// The JSON output for a model.
#[derive(Serialize)]
struct TrainResult {
    model: String,
    version: Option<u64>,
    group: Option<String>,
    promoted: Option<String>,
    gated: Vec<String>,
    /// The pinned version that serves on, if the model became the challenger.
    pinned: Option<u64>,
    max_samples: String,
    n_features: usize,
    n_rows: usize,
    n_excluded: usize,
    /// Rows of a table that lack a value; `null` for a group.
    n_incomplete: Option<usize>,
    #[serde(flatten)]
    held_out: Option<HeldOut>,
    sweep: Vec<SizeResult>,
}

pub async fn run(args: TrainArgs) -> Result<(), BoxError> {
    let config = args.registry.config()?;
    let zone = Zone::from_environment()?;
    let mut training_inputs = match &args.input {
        Some(path) => {
            let training_input = training_data::read_table(
                &args.training_data,
                &config,
                path,
                DataTable::read(path)?,
                i64::MAX,
            )?;
            TrainingInputs::single(training_input)
        }
        None => {
            let to_ms = args.end.unwrap_or_else(time::now_ms);
            let from_ms = args.start;
            let history_range = HistoryRange { from_ms, train_to_ms: to_ms, to_ms };
            let registry = args.registry.open_or_create(&config)?;
            TrainingInputs::from_history(&args.training_data, &config, &registry, history_range, None).await?
        }
    };
    if args.model.is_some() || args.report.is_some() {
        training_inputs.require_single("--model and --report", "model").await?;
    }
    let registry = match &args.model {
        None => Some(args.registry.open_or_create(&config)?),
        Some(_) => None,
    };
    let mut results = Vec::new();
    while let Some(training_input) = training_inputs.next().await? {
        let result = fit_and_register(&args, &config, &zone, registry.as_ref(), &training_input).await?;
        if args.output == OutputFormat::Text {
            print(&format_result(&args, &result))?;
        }
        results.push(result);
    }
    if args.output == OutputFormat::Text && results.is_empty() {
        print("no group lies in the shard\n")?;
    }
    if args.output == OutputFormat::Json {
        print(&format!("{}\n", serde_json::to_string_pretty(&results)?))?;
    }
    Ok(())
}

async fn fit_and_register(
    args: &TrainArgs,
    config: &Config,
    zone: &Zone,
    registry: Option<&Registry>,
    training_input: &TrainingInput,
) -> Result<TrainResult, BoxError> {
    let TrainingInput { detector, group, name, rows, columns, .. } = training_input;
    let params = match args.kind {
        Some(kind) if kind != detector.model.kind() => ModelParams::default_for(kind),
        _ => detector.model.clone(),
    };
    let bar = ProgressBar::new(0).with_message(name.clone());
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} folds, {eta} left")?;
    bar.set_style(style);
    let progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let sizes: &[usize] = match (args.sweep.as_slice(), detector.training.sweep.as_slice()) {
        ([], []) => &DEFAULT_SIZES,
        ([], configured) => configured,
        (given, _) => given,
    };
    let fitter = ModelFitter {
        params: &params,
        sizes,
        on_fold: &progress,
        ..ModelFitter::for_detector(detector, group.clone(), time::now_ms())
    };
    let mut trained = fitter.fit(rows)?;
    trained.model.card.columns = columns.clone();
    bar.finish_and_clear();

    let alias = promotion_alias(args, config);
    let pinned = match (registry, alias) {
        (Some(registry), Some(alias)) => registry.pinned_version(name, alias).await?,
        _ => None,
    };
    let target = alias.map(|alias| PromotionTarget { alias, pinned, exemption: None });
    let draft = register::prepare(name, target, Some(&detector.training.gate), &trained, rows, zone);
    let (version, promotion) = match (registry, &args.model) {
        (_, Some(folder)) => {
            artifact::save(&artifact::to_files(&trained.model), folder)?;
            (None, draft.promotion)
        }
        (Some(registry), None) => {
            let (version, promotion) = register::register(registry, name, &trained, &draft).await?;
            (Some(version), promotion)
        }
        (None, None) => (None, draft.promotion),
    };
    if let Some(path) = &args.report {
        std::fs::write(path, draft.report)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(to_result(training_input, &trained, version, promotion))
}

/// The alias to promote to. A model of a table would serve every group instead of the group's own model, so that it
/// is promoted on request only.
fn promotion_alias<'a>(args: &'a TrainArgs, config: &'a Config) -> Option<&'a str> {
    let default = Some(config.registry.alias.as_str()).filter(|_| args.input.is_none());
    args.alias.as_deref().or(default).filter(|_| args.model.is_none())
}

fn to_result(
    training_input: &TrainingInput,
    trained: &Trained,
    version: Option<u64>,
    promotion: PromotionDecision,
) -> TrainResult {
    let validation = trained.sweep.as_ref().map(|sweep| &sweep.validation);
    let card = &trained.model.card;
    let (promoted, gated, pinned) = match promotion {
        PromotionDecision::Promoted(alias) => (Some(alias), Vec::new(), None),
        PromotionDecision::Gated(reasons) => (None, reasons, None),
        PromotionDecision::Challenger { pinned, .. } => (None, Vec::new(), Some(pinned)),
        PromotionDecision::Saved => (None, Vec::new(), None),
    };
    let max_samples = card.params.iter().find(|(name, _)| name == "max_samples");
    let n_rows = training_input.rows.len();
    let n_excluded = card.training_range.as_ref().map_or(0, |training_range| training_range.n_excluded);
    TrainResult {
        model: training_input.name.clone(),
        version,
        group: training_input.group.as_ref().map(ToString::to_string),
        promoted,
        gated,
        pinned,
        max_samples: max_samples.map(|(_, value)| value.clone()).unwrap_or_default(),
        n_features: trained.model.schema.features.len(),
        n_rows,
        n_excluded,
        n_incomplete: training_input
            .n_table_rows
            .map(|n_table_rows| n_table_rows.saturating_sub(n_rows + n_excluded)),
        held_out: validation.map(|validation| validation.held_out),
        sweep: validation.map(SizeResult::from_validation).unwrap_or_default(),
    }
}

/// The text output for a model.
fn format_result(args: &TrainArgs, result: &TrainResult) -> String {
    let group = result.group.as_ref().map(|group| format!(" {group}")).unwrap_or_default();
    let incomplete = result.n_incomplete.map(|n_rows| format!(", {n_rows} incomplete")).unwrap_or_default();
    let mut lines = vec![format!(
        "{}{group}: {} features, {} rows, {} excluded{incomplete}",
        result.model, result.n_features, result.n_rows, result.n_excluded
    )];
    if !result.sweep.is_empty() {
        lines.push(format_sweep(&result.sweep).trim_end().into());
    }
    lines.extend(result.held_out.as_ref().map(format_held_out));
    match (&args.model, result.version) {
        (Some(folder), _) => lines.push(format!("written to {}", folder.display())),
        (None, Some(version)) => {
            lines.push(format!("registered as version {version}"));
            let command = || args.registry.promote_command(&result.model, version);
            if let Some(pinned) = result.pinned {
                let reason = format!("version {pinned} is pinned, so that this one is the challenger");
                lines.push(format!("not promoted: {reason}; put it into service: {}", command()));
            } else if result.promoted.is_none() && result.gated.is_empty() {
                lines.push(format!("put it into service for every group: {}", command()));
            }
        }
        (None, None) => {}
    }
    lines.extend(result.promoted.iter().map(|alias| format!("promoted to {alias}")));
    if !result.gated.is_empty() {
        lines.push(format!("not promoted: {}", result.gated.join(", and ")));
    }
    lines.extend(args.report.iter().map(|report| format!("report: {}", report.display())));
    lines.join("\n") + "\n"
}
