//! `promforest models`: lists, promotes, imports, exports and scores models.

use super::model_location::{ModelLocation, load_model, rate_semantics, resolve_version, select_columns};
use super::sweep::{SizeResult, format_held_out, format_sweep};
use super::{OutputFormat, RegistryArgs, print};
use crate::config::Config;
use crate::detector;
use crate::error::BoxError;
use crate::forest::Table;
use crate::models::artifact::{self, Files};
use crate::models::import::{self, ColumnMapping};
use crate::models::registry::{ModelAliases, ModelVersion, NewVersion, Registry};
use crate::models::{Model, columns, onnx};
use crate::table::DataTable;
use crate::time;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// List the versions of every model, and the aliases that point to them
    List(ListArgs),
    /// Show the origin, validation and columns of a model
    Show(ShowArgs),
    /// Load a model and score its golden rows
    Verify(VerifyArgs),
    /// Point an alias to a version, which the sidecar then serves; an older version than before is pinned
    Promote(PromoteArgs),
    /// Point an alias back to the version that it pointed to before, and pin that version
    Rollback(AliasArgs),
    /// Keep the version of an alias in service: trainings register as challenger until a version is promoted
    Pin(AliasArgs),
    /// Release the version of an alias: trainings promote again
    Unpin(AliasArgs),
    /// Remove an alias: a group's own model serves instead of one that served every group
    Unalias(AliasArgs),
    /// Import a model of scikit-learn, MLflow or ONNX without running its code
    Import(ImportArgs),
    /// Write a model in another format
    Export(ExportArgs),
    /// Score a table that has the columns of the model
    Score(ScoreArgs),
}

/// Help of the argument for a model.
const MODEL_HELP: &str = "A folder, NAME@ALIAS, NAME/VERSION, or NAME for the one that serves";

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Prefix of the listed models' names
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    #[arg(help = MODEL_HELP)]
    model: String,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    #[arg(help = MODEL_HELP)]
    model: String,
}

#[derive(Debug, Args)]
pub struct PromoteArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// The model
    name: String,
    /// Its version
    version: u64,
    /// The alias; without it, the registry's
    #[arg(long, value_name = "ALIAS")]
    alias: Option<String>,
}

#[derive(Debug, Args)]
pub struct AliasArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// The model
    name: String,
    /// The alias; without it, the registry's
    #[arg(long, value_name = "ALIAS")]
    alias: Option<String>,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// A folder or file, or in the configured MLflow models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN/PATH
    source: String,
    /// Write the model to this folder instead of the registry
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Register it under this name; without it, the detector's
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    name: Option<String>,
    /// Series of the columns, in YAML or JSON: NAME: SERIES for some of them, or a list of all in their order
    #[arg(long, value_name = "FILE")]
    mapping: Option<PathBuf>,
    /// The detector that it is for; without it, the first
    #[arg(long, value_name = "NAME")]
    detector: Option<String>,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    #[arg(help = MODEL_HELP)]
    model: String,
    /// The format
    #[arg(long, value_name = "FORMAT")]
    to: ExportFormat,
    /// The file to write
    file: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ExportFormat {
    /// A graph for ONNX runtimes; isolation_forest alone
    Onnx,
}

#[derive(Debug, Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    #[arg(long, help = MODEL_HELP)]
    model: String,
    /// Table to score, Parquet or CSV, with the model's columns
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// CSV file for score_samples, decision_function and predict of each row; - for standard output
    #[arg(long, value_name = "FILE.csv")]
    output: PathBuf,
}

pub async fn run(command: ModelsCommand) -> Result<(), BoxError> {
    match command {
        ModelsCommand::List(args) => list(args).await,
        ModelsCommand::Show(args) => show(args).await,
        ModelsCommand::Verify(args) => verify(args).await,
        ModelsCommand::Promote(args) => promote(args).await,
        ModelsCommand::Rollback(args) => roll_back(args).await,
        ModelsCommand::Pin(args) => pin(args).await,
        ModelsCommand::Unpin(args) => unpin(args).await,
        ModelsCommand::Unalias(args) => unalias(args).await,
        ModelsCommand::Import(args) => import(args).await,
        ModelsCommand::Export(args) => export(args).await,
        ModelsCommand::Score(args) => score(args).await,
    }
}

/// A version in a list.
#[derive(Serialize)]
struct ListedVersion {
    model: String,
    version: u64,
    aliases: Vec<String>,
    /// The aliases whose version is pinned here.
    pinned: Vec<String>,
    created: String,
    promoted: Option<String>,
    rolled_back: bool,
    note: String,
}

impl ListedVersion {
    fn new(model: &str, version: ModelVersion, aliases: &ModelAliases) -> Self {
        let points_here =
            |(alias, number): (&String, &u64)| (*number == version.number).then(|| alias.clone());
        let here: Vec<String> = aliases.versions.iter().filter_map(points_here).collect();
        Self {
            model: model.into(),
            version: version.number,
            pinned: here.iter().filter(|alias| aliases.pinned_version(alias).is_some()).cloned().collect(),
            aliases: here,
            created: time::format_timestamp(version.created_ms),
            promoted: version.promoted_ms.map(time::format_timestamp),
            rolled_back: version.rolled_back,
            note: version.note,
        }
    }

    fn cells(&self) -> [String; 6] {
        let promoted = self.promoted.clone().unwrap_or_else(|| "-".into());
        let alias = |alias: &String| match self.pinned.contains(alias) {
            true => format!("{alias} (pinned)"),
            false => alias.clone(),
        };
        let aliases: Vec<String> = self.aliases.iter().map(alias).collect();
        [
            self.model.clone(),
            self.version.to_string(),
            if aliases.is_empty() { "-".into() } else { aliases.join(",") },
            self.created.clone(),
            if self.rolled_back { format!("{promoted}, rolled back") } else { promoted },
            // Notes from MLflow's pages may have several lines.
            self.note.lines().next().unwrap_or_default().into(),
        ]
    }
}

async fn list(args: ListArgs) -> Result<(), BoxError> {
    let registry = args.registry.open(&args.registry.config()?)?;
    let mut listed = Vec::new();
    for (model, aliases) in registry.aliases(&args.prefix).await? {
        let versions = registry.versions(&model).await?;
        listed.extend(versions.into_iter().map(|version| ListedVersion::new(&model, version, &aliases)));
    }
    let text = match args.output {
        OutputFormat::Json => serde_json::to_string_pretty(&listed)? + "\n",
        OutputFormat::Text => {
            let head = ["MODEL", "VERSION", "ALIASES", "CREATED", "PROMOTED", "NOTE"].map(String::from);
            let rows: Vec<[String; 6]> =
                [head].into_iter().chain(listed.iter().map(ListedVersion::cells)).collect();
            format_table(&rows)
        }
    };
    Ok(print(&text)?)
}

/// Rows of cells as lines, columns aligned.
fn format_table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The JSON output for a model.
#[derive(Serialize)]
struct ShownModel {
    model: Option<String>,
    version: Option<u64>,
    folder: Option<PathBuf>,
    card: serde_json::Value,
}

async fn show(args: ShowArgs) -> Result<(), BoxError> {
    let (location, model) = load_model(&args.registry, &args.model).await?;
    let text = match args.output {
        OutputFormat::Text => format_card(&location, &model),
        OutputFormat::Json => {
            let card = serde_json::from_str(&artifact::model_json(&model))?;
            let shown = match location {
                ModelLocation::Folder(path) => {
                    ShownModel { model: None, version: None, folder: Some(path), card }
                }
                ModelLocation::Registered { name, version, .. } => {
                    ShownModel { model: Some(name), version: Some(version), folder: None, card }
                }
            };
            serde_json::to_string_pretty(&shown)? + "\n"
        }
    };
    Ok(print(&text)?)
}

/// The text output for a model.
fn format_card(location: &ModelLocation, model: &Model) -> String {
    let Model { schema, fitted, card } = model;
    let params: Vec<String> = card.params.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let training_range = card.training_range.as_ref().map(|range| {
        let (from, to) = (time::format_timestamp(range.from_ms), time::format_timestamp(range.to_ms));
        format!("{from} to {to}, {} rows, {} excluded", range.n_rows, range.n_excluded)
    });
    let group = card.group.as_ref().map_or_else(|| "every one".into(), ToString::to_string);
    let rows = [
        ("kind", Some(fitted.kind().to_string())),
        ("origin", Some(card.origin.clone())),
        ("created", Some(time::format_timestamp(card.created_ms))),
        ("detector", card.detector.clone()),
        ("group", Some(group)),
        ("offset", Some(fitted.offset().to_string())),
        ("params", Some(params.join(" "))),
        ("training", training_range),
    ];
    let mut text = match location {
        ModelLocation::Registered { alias: Some(alias), .. } => format!("{location}, {alias}\n"),
        _ => format!("{location}\n"),
    };
    for (name, value) in rows {
        text.extend(value.map(|value| format!("  {name:<8}  {value}\n")));
    }
    if let Some(validation) = &card.validation {
        text.push_str("\nvalidation\n");
        text.push_str(&format_sweep(&SizeResult::from_validation(validation)));
        text.push_str(&format_held_out(&validation.held_out));
        text.push('\n');
    }
    text.push_str(&format!("\n{} features\n", schema.features.len()));
    for (feature, column) in schema.features.iter().zip(columns::names(model)) {
        let expression = schema.transform.expression(feature);
        let from = if column == expression { String::new() } else { format!("  from column {column:?}") };
        text.push_str(&format!("  {expression}{from}\n"));
    }
    text
}

async fn verify(args: VerifyArgs) -> Result<(), BoxError> {
    let (location, model) = load_model(&args.registry, &args.model).await?;
    println!("{location} is valid: {}", summary(&model));
    Ok(())
}

fn summary(model: &Model) -> String {
    let Model { schema, fitted, card } = model;
    format!("{} of {} features, from {}", fitted.kind(), schema.features.len(), card.origin)
}

async fn promote(args: PromoteArgs) -> Result<(), BoxError> {
    let config = args.registry.config()?;
    let registry = args.registry.open(&config)?;
    let alias = args.alias.as_ref().unwrap_or(&config.registry.alias);
    // A version that does not load must not serve.
    registry.load(&args.name, args.version, rate_semantics(&config, &args.name)).await?;
    registry.promote(&args.name, alias, args.version).await?;
    println!("{}: {alias} {}", args.name, args.version);
    Ok(())
}

async fn roll_back(args: AliasArgs) -> Result<(), BoxError> {
    let config = args.registry.config()?;
    let registry = args.registry.open(&config)?;
    let alias = args.alias.as_ref().unwrap_or(&config.registry.alias);
    let (from, to) = registry.roll_back(&args.name, alias).await?;
    println!("{}: {alias} {from} -> {to}", args.name);
    Ok(())
}

async fn pin(args: AliasArgs) -> Result<(), BoxError> {
    let config = args.registry.config()?;
    let alias = args.alias.as_ref().unwrap_or(&config.registry.alias);
    let version = args.registry.open(&config)?.pin(&args.name, alias).await?;
    println!("{}: {alias} {version} is pinned", args.name);
    Ok(())
}

async fn unpin(args: AliasArgs) -> Result<(), BoxError> {
    let config = args.registry.config()?;
    let alias = args.alias.as_ref().unwrap_or(&config.registry.alias);
    let version = args.registry.open(&config)?.unpin(&args.name, alias).await?;
    println!("{}: {alias} {version} is not pinned", args.name);
    Ok(())
}

async fn unalias(args: AliasArgs) -> Result<(), BoxError> {
    let config = args.registry.config()?;
    let registry = args.registry.open(&config)?;
    let alias = args.alias.as_ref().unwrap_or(&config.registry.alias);
    let version = registry.remove_alias(&args.name, alias).await?;
    println!("{}: {alias} {version} -> none", args.name);
    Ok(())
}

async fn import(args: ImportArgs) -> Result<(), BoxError> {
    let config = args.registry.config()?;
    let detector = detector::select(&config.detectors, args.detector.as_deref())?;
    let detector = detector.first().ok_or("there is no detector")?;
    let mapping =
        args.mapping.as_deref().map_or_else(|| Ok(ColumnMapping::default()), import::read_mapping)?;
    let files = read_source(&args, &config).await?;
    let semantics = detector.transform.rate_semantics().unwrap_or_default();
    let model = import::read_model(&files, &mapping, semantics)?;
    if let Some(folder) = &args.model {
        artifact::save(&artifact::to_files(&model), folder)?;
        println!("{}: {}", folder.display(), summary(&model));
        return Ok(());
    }
    let name = args.name.clone().unwrap_or_else(|| config.registry.model_name(&detector.name));
    let note = format!("imported from {}", model.card.origin);
    let new_version = NewVersion { model: &model, report: None, note };
    let version = args.registry.open_or_create(&config)?.register(&name, &new_version).await?;
    println!("{name} version {version}: {}", summary(&model));
    println!("put it into service: {}", args.registry.promote_command(&name, version));
    Ok(())
}

async fn read_source(args: &ImportArgs, config: &Config) -> Result<Files, BoxError> {
    let registered = args.source.strip_prefix("models:/");
    let run_path = args.source.strip_prefix("runs:/");
    if registered.is_none() && run_path.is_none() {
        return Ok(import::read_files(Path::new(&args.source))?);
    }
    let Registry::Mlflow(mlflow) = args.registry.open_or_create(config)? else {
        return Err(
            format!("{} is in MLflow, but the configuration has no registry.mlflow", args.source).into()
        );
    };
    if let Some(run_path) = run_path {
        let (run, path) =
            run_path.split_once('/').ok_or_else(|| format!("{} is not runs:/RUN/PATH", args.source))?;
        return Ok(mlflow.run_files(run, path).await?);
    }
    let model = registered.unwrap_or_default();
    if !model.contains(['/', '@']) {
        return Err(format!("{} is not models:/NAME@ALIAS or models:/NAME/VERSION", args.source).into());
    }
    let registry = Registry::Mlflow(mlflow);
    let (name, version, _) = resolve_version(&registry, model, &config.registry.alias).await?;
    Ok(registry.files(&name, version).await?)
}

async fn export(args: ExportArgs) -> Result<(), BoxError> {
    let (location, model) = load_model(&args.registry, &args.model).await?;
    let bytes = match (args.to, model.fitted.as_forest()) {
        (ExportFormat::Onnx, Some(forest)) => onnx::write(forest, &columns::names(&model))?,
        (ExportFormat::Onnx, None) => {
            let kind = model.fitted.kind();
            return Err(format!("{location} is an {kind}: ONNX has no operator for its cuts").into());
        }
    };
    std::fs::write(&args.file, bytes).map_err(|error| cannot_write(&args.file, &error))?;
    println!("{} written from {location}", args.file.display());
    Ok(())
}

fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", path.display())
}

async fn score(args: ScoreArgs) -> Result<(), BoxError> {
    let (_, model) = load_model(&args.registry, &args.model).await?;
    let data_table = DataTable::read(&args.input)?;
    let values = data_table.select(&select_columns(&model, &data_table)?)?;
    let table = Table::new(&values, data_table.n_rows(), model.schema.features.len())?;
    if model.fitted.is_sequential() {
        let times = data_table.timestamps.as_ref().ok_or_else(|| {
            let (input, kind) = (args.input.display(), model.fitted.kind());
            format!("{input} has no column timestamp: an {kind} scores rows in order")
        })?;
        check_order(model.fitted.newest_ms(), times)?;
    }
    let scores = model.fitted.score_samples(data_table.timestamps.as_deref(), &table);
    let csv = format_scores(&scores, model.fitted.offset());
    if args.output == Path::new("-") {
        return Ok(print(&csv)?);
    }
    Ok(std::fs::write(&args.output, csv).map_err(|error| cannot_write(&args.output, &error))?)
}

/// The scores as CSV with scikit-learn's names; the cells of a row without a score are empty.
fn format_scores(scores: &[Option<f64>], offset: f64) -> String {
    let mut csv = String::from("score_samples,decision_function,predict\n");
    for score in scores {
        match score {
            None => csv.push_str(",,\n"),
            Some(score) => {
                let decision = score - offset;
                let predict = if decision < 0.0 { -1 } else { 1 };
                csv.push_str(&format!("{},{},{predict}\n", format_g17(*score), format_g17(decision)));
            }
        }
    }
    csv
}

/// Checks that rows ascend and follow the rows of training.
fn check_order(trained_ms: Option<i64>, times: &[i64]) -> Result<(), BoxError> {
    let mut previous_ms = trained_ms.unwrap_or(i64::MIN);
    for time_ms in times {
        if *time_ms <= previous_ms {
            let (time, previous) = (time::format_timestamp(*time_ms), time::format_timestamp(previous_ms));
            return Err(format!("the row of {time} is not after {previous}: rows must ascend, and follow those that the model was trained on").into());
        }
        previous_ms = *time_ms;
    }
    Ok(())
}

/// A number in [-1, 1] with 17 significant digits, enough to read the same bits back, as C's `%.17g`
/// writes it.
fn format_g17(value: f64) -> String {
    let scientific = format!("{value:.16e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text.to_string(),
    };
    match exponent.parse::<i32>() {
        Ok(exponent @ -4..=0) => trimmed(&format!("{value:.*}", 16 + exponent.unsigned_abs() as usize)),
        Ok(exponent) if exponent < 0 => format!("{}e-{:02}", trimmed(mantissa), exponent.unsigned_abs()),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_equal_those_of_printf() {
        for (value, text) in [
            (-0.5, "-0.5"),
            (0.0, "0"),
            (-1.0, "-1"),
            (0.1, "0.10000000000000001"),
            (0.009_677_535_397_349_168, "0.0096775353973491685"),
            (0.00012345, "0.00012344999999999999"),
            (-5.551_115_123_125_783e-17, "-5.5511151231257827e-17"),
            (0.000012345, "1.2345e-05"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
        ] {
            assert_eq!(format_g17(value), text);
            assert_eq!(format_g17(value).parse::<f64>().expect("a number").to_bits(), value.to_bits());
        }
    }
}
