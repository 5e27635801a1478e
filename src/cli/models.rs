//! `promforest models`: what is in the registry, what serves, and models from and to elsewhere.
//!
//! A model is named like a place: a folder, `NAME@ALIAS`, `NAME/VERSION`, or `NAME` for what serves
//! under it. Wherever it comes from it is loaded whole, so that no command says anything of a model
//! that would not serve.

use super::train::{SizeResult, table_of_sizes};
use super::{Failure, Output, RegistryArgs, detectors, say};
use crate::config::{Config, Detector};
use crate::detect::Detection;
use crate::features::rate::Semantics;
use crate::forest::Table;
use crate::input::{self, Input};
use crate::models::artifact::{self, Files};
use crate::models::import::{self, Mapping};
use crate::models::registry::{self, Entry, Registry, Version};
use crate::models::{EXTENDED_OFFSET, Fitted, Model, columns, onnx};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Subcommand)]
pub enum Models {
    /// List the versions of every model, and the aliases that point to them
    List(ListArgs),
    /// Show where a model comes from, how it was chosen, and its columns
    Show(ShowArgs),
    /// Load a model and score its golden rows
    Verify(VerifyArgs),
    /// Point an alias to a version: the sidecar serves it from then on
    Promote(PromoteArgs),
    /// Point an alias back to the version that it pointed to before
    Rollback(RollbackArgs),
    /// Take over a model of scikit-learn, MLflow or ONNX, without running anything of it
    Import(ImportArgs),
    /// Write a model in another format
    Export(ExportArgs),
    /// Score a table of ready-made columns
    Score(ScoreArgs),
}

/// What every command that reads a model says of it.
const MODEL_HELP: &str = "A folder, NAME@ALIAS, NAME/VERSION, or NAME for the one that serves";

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Only models whose names begin like this
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// Format of what is printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    #[arg(help = MODEL_HELP)]
    model: String,
    /// Format of what is printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
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
pub struct RollbackArgs {
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
    /// What its columns are, in YAML or JSON: NAME: SERIES for some of them, or a list of all in their order
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
    /// Where score_samples, decision_function and predict of each row go, as CSV; - for standard output
    #[arg(long, value_name = "FILE.csv")]
    output: PathBuf,
}

pub async fn run(command: Models) -> Result<(), Failure> {
    match command {
        Models::List(args) => list(args).await,
        Models::Show(args) => show(args).await,
        Models::Verify(args) => verify(args).await,
        Models::Promote(args) => promote(args).await,
        Models::Rollback(args) => roll_back(args).await,
        Models::Import(args) => import(args).await,
        Models::Export(args) => export(args).await,
        Models::Score(args) => score(args).await,
    }
}

/// Where a model is.
pub enum Place {
    Folder(PathBuf),
    Registered { name: String, version: u64, alias: Option<String> },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Registered { name, version, .. } => write!(f, "{name} version {version}"),
        }
    }
}

/// Finds and loads a model.
pub async fn load(args: &RegistryArgs, model: &str) -> Result<(Place, Model), Failure> {
    let config = args.config()?;
    let path = Path::new(model);
    if path.exists() {
        let loaded = import::model(&import::files(path)?, &Mapping::default(), semantics(&config, model))?;
        return Ok((Place::Folder(path.into()), loaded));
    }
    let registry = args.open(&config)?;
    let (name, version, alias) = resolve(&registry, model, &config.registry.alias).await?;
    let loaded = registry.load(&name, version, semantics(&config, &name)).await?;
    Ok((Place::Registered { name, version, alias }, loaded))
}

/// Whose rates a model's columns are if it does not say so itself: those of the detector that it is
/// registered for, or else of the first.
fn semantics(config: &Config, name: &str) -> Semantics {
    let is_its = |detector: &&Arc<Detector>| name.starts_with(&config.registry.model(&detector.name));
    let detector = config.detectors.iter().find(is_its).or(config.detectors.first());
    detector.and_then(|detector| detector.transform.semantics()).unwrap_or_default()
}

/// The version that `NAME@ALIAS`, `NAME/VERSION` or `NAME` says, with the alias that led to it.
async fn resolve(
    registry: &Registry,
    model: &str,
    default_alias: &str,
) -> Result<(String, u64, Option<String>), Failure> {
    if let Some((name, version)) = model.rsplit_once('/') {
        let no_number = |_| format!("{model} is neither a folder nor NAME/VERSION with a number for VERSION");
        return Ok((name.into(), version.parse().map_err(no_number)?, None));
    }
    let (name, alias) = model.split_once('@').unwrap_or((model, default_alias));
    let aliases = registry.aliases(name).await?;
    let Some(aliases) = aliases.get(name) else {
        return Err(format!("{name} is neither a folder nor a model of the registry").into());
    };
    let version = aliases.get(alias);
    let version =
        version.ok_or_else(|| registry::Error::NoAlias { model: name.into(), alias: alias.into() })?;
    Ok((name.into(), *version, Some(alias.into())))
}

/// A version in a list.
#[derive(Serialize)]
struct Listed {
    model: String,
    version: u64,
    aliases: Vec<String>,
    created: String,
    promoted: Option<String>,
    rolled_back: bool,
    note: String,
}

impl Listed {
    fn new(model: &str, version: Version, aliases: &BTreeMap<String, u64>) -> Self {
        let points_here =
            |(alias, number): (&String, &u64)| (*number == version.number).then(|| alias.clone());
        Self {
            model: model.into(),
            version: version.number,
            aliases: aliases.iter().filter_map(points_here).collect(),
            created: artifact::timestamp(version.created_ms),
            promoted: version.promoted_ms.map(artifact::timestamp),
            rolled_back: version.rolled_back,
            note: version.note,
        }
    }

    fn cells(&self) -> [String; 6] {
        let promoted = self.promoted.clone().unwrap_or_else(|| "-".into());
        [
            self.model.clone(),
            self.version.to_string(),
            if self.aliases.is_empty() { "-".into() } else { self.aliases.join(",") },
            self.created.clone(),
            if self.rolled_back { format!("{promoted}, rolled back") } else { promoted },
            // People write notes of several lines in MLflow's pages.
            self.note.lines().next().unwrap_or_default().into(),
        ]
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let registry = args.registry.open(&args.registry.config()?)?;
    let mut listed = Vec::new();
    for (model, aliases) in registry.aliases(&args.prefix).await? {
        let versions = registry.versions(&model).await?;
        listed.extend(versions.into_iter().map(|version| Listed::new(&model, version, &aliases)));
    }
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&listed)? + "\n",
        Output::Text => {
            let head = ["MODEL", "VERSION", "ALIASES", "CREATED", "PROMOTED", "NOTE"].map(String::from);
            let rows: Vec<[String; 6]> = [head].into_iter().chain(listed.iter().map(Listed::cells)).collect();
            table(&rows)
        }
    };
    Ok(say(&text)?)
}

/// Rows of cells as lines, columns aligned.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
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

/// A model with its place, for scripts.
#[derive(Serialize)]
struct Shown {
    model: Option<String>,
    version: Option<u64>,
    folder: Option<PathBuf>,
    card: serde_json::Value,
}

async fn show(args: ShowArgs) -> Result<(), Failure> {
    let (place, model) = load(&args.registry, &args.model).await?;
    let text = match args.output {
        Output::Text => card(&place, &model),
        Output::Json => {
            let card = serde_json::from_str(&artifact::document(&model))?;
            let shown = match place {
                Place::Folder(path) => Shown { model: None, version: None, folder: Some(path), card },
                Place::Registered { name, version, .. } => {
                    Shown { model: Some(name), version: Some(version), folder: None, card }
                }
            };
            serde_json::to_string_pretty(&shown)? + "\n"
        }
    };
    Ok(say(&text)?)
}

/// The card of a model, for people.
fn card(place: &Place, model: &Model) -> String {
    let Model { schema, fitted, card } = model;
    let params: Vec<String> = card.params.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let history = card.history.as_ref().map(|history| {
        let (from, to) = (artifact::timestamp(history.from_ms), artifact::timestamp(history.to_ms));
        format!("{from} to {to}, {} rows, {} excluded", history.n_rows, history.n_excluded)
    });
    let group = card.group.as_ref().map_or_else(|| "every one".into(), ToString::to_string);
    let rows = [
        ("kind", Some(fitted.kind().to_string())),
        ("origin", Some(card.origin.clone())),
        ("created", Some(artifact::timestamp(card.created_ms))),
        ("detector", card.detector.clone()),
        ("group", Some(group)),
        ("offset", Some(fitted.offset().to_string())),
        ("params", Some(params.join(" "))),
        ("history", history),
    ];
    let mut text = match place {
        Place::Registered { alias: Some(alias), .. } => format!("{place}, {alias}\n"),
        _ => format!("{place}\n"),
    };
    for (name, value) in rows {
        text.extend(value.map(|value| format!("  {name:<8}  {value}\n")));
    }
    if let Some(validation) = &card.validation {
        let rate = validation.alert_rate * 100.0;
        text.push_str("\nvalidation\n");
        text.push_str(&table_of_sizes(&SizeResult::of(validation)));
        text.push_str(&format!(
            "  * chosen; it called {rate:.2} % of the rows that it had not seen anomalous\n"
        ));
    }
    text.push_str(&format!("\n{} features\n", schema.features.len()));
    for (feature, column) in schema.features.iter().zip(columns::names(model)) {
        let expression = schema.transform.expression(feature);
        let from = if column == expression { String::new() } else { format!("  from column {column:?}") };
        text.push_str(&format!("  {expression}{from}\n"));
    }
    text
}

async fn verify(args: VerifyArgs) -> Result<(), Failure> {
    let (place, model) = load(&args.registry, &args.model).await?;
    println!("{place} is valid: {}", summary(&model));
    Ok(())
}

fn summary(model: &Model) -> String {
    let Model { schema, fitted, card } = model;
    format!("{} of {} features, from {}", fitted.kind(), schema.features.len(), card.origin)
}

async fn promote(args: PromoteArgs) -> Result<(), Failure> {
    let config = args.registry.config()?;
    let registry = args.registry.open(&config)?;
    let alias = args.alias.as_ref().unwrap_or(&config.registry.alias);
    // What does not load must not serve.
    registry.load(&args.name, args.version, semantics(&config, &args.name)).await?;
    registry.promote(&args.name, alias, args.version).await?;
    println!("{}: {alias} {}", args.name, args.version);
    Ok(())
}

async fn roll_back(args: RollbackArgs) -> Result<(), Failure> {
    let config = args.registry.config()?;
    let registry = args.registry.open(&config)?;
    let alias = args.alias.as_ref().unwrap_or(&config.registry.alias);
    let (from, to) = registry.roll_back(&args.name, alias).await?;
    println!("{}: {alias} {from} -> {to}", args.name);
    Ok(())
}

async fn import(args: ImportArgs) -> Result<(), Failure> {
    let config = args.registry.config()?;
    let detector = detectors(&config, args.detector.as_deref())?;
    let detector = detector.first().ok_or("there is no detector")?;
    let mapping = args.mapping.as_deref().map_or_else(|| Ok(Mapping::default()), import::mapping)?;
    let files = source(&args, &config).await?;
    let semantics = detector.transform.semantics().unwrap_or_default();
    let model = import::model(&files, &mapping, semantics)?;
    if let Some(folder) = &args.model {
        artifact::save(&artifact::files(&model), folder)?;
        println!("{}: {}", folder.display(), summary(&model));
        return Ok(());
    }
    let name = args.name.clone().unwrap_or_else(|| config.registry.model(&detector.name));
    let note = format!("imported from {}", model.card.origin);
    let entry = Entry { model: &model, report: None, note };
    let version = args.registry.open(&config)?.register(&name, &entry).await?;
    println!("{name} version {version}: {}", summary(&model));
    println!("put it into service: promforest models promote{} {name} {version}", args.registry.given());
    Ok(())
}

async fn source(args: &ImportArgs, config: &Config) -> Result<Files, Failure> {
    let registered = args.source.strip_prefix("models:/");
    let of_run = args.source.strip_prefix("runs:/");
    if registered.is_none() && of_run.is_none() {
        return Ok(import::files(Path::new(&args.source))?);
    }
    let Registry::Mlflow(mlflow) = args.registry.open(config)? else {
        return Err(
            format!("{} is in MLflow, but the configuration has no registry.mlflow", args.source).into()
        );
    };
    if let Some(run) = of_run {
        let (run, path) =
            run.split_once('/').ok_or_else(|| format!("{} is not runs:/RUN/PATH", args.source))?;
        return Ok(mlflow.run_files(run, path).await?);
    }
    let model = registered.unwrap_or_default();
    if !model.contains(['/', '@']) {
        return Err(format!("{} is not models:/NAME@ALIAS or models:/NAME/VERSION", args.source).into());
    }
    let registry = Registry::Mlflow(mlflow);
    let (name, version, _) = resolve(&registry, model, &config.registry.alias).await?;
    Ok(registry.files(&name, version).await?)
}

async fn export(args: ExportArgs) -> Result<(), Failure> {
    let (place, model) = load(&args.registry, &args.model).await?;
    let bytes = match (args.to, &model.fitted) {
        (ExportFormat::Onnx, Fitted::IsolationForest(forest)) => {
            onnx::write(forest, &columns::names(&model))?
        }
        (ExportFormat::Onnx, other) => {
            return Err(format!("{place} is an {}: ONNX has no operator for its cuts", other.kind()).into());
        }
    };
    std::fs::write(&args.file, bytes).map_err(|error| cannot_write(&args.file, &error))?;
    println!("{} written from {place}", args.file.display());
    Ok(())
}

fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", path.display())
}

async fn score(args: ScoreArgs) -> Result<(), Failure> {
    let (_, model) = load(&args.registry, &args.model).await?;
    let input = Input::read(&args.input)?;
    let values = input.select(&selected(&model, &input)?)?;
    let table = Table::new(&values, input.n_rows(), model.schema.features.len())?;
    let csv = match &model.fitted {
        Fitted::IsolationForest(forest) => {
            scores(&table, forest.offset(), |row| Some(forest.score_samples(row)))
        }
        Fitted::Extended(detection) => {
            let none = || {
                format!(
                    "{} has no column timestamp: an {} judges one row after the other",
                    args.input.display(),
                    model.fitted.kind()
                )
            };
            let times = input.timestamps.as_ref().ok_or_else(none)?;
            in_order(detection, times, &table)?
        }
    };
    if args.output == Path::new("-") {
        return Ok(say(&csv)?);
    }
    Ok(std::fs::write(&args.output, csv).map_err(|error| cannot_write(&args.output, &error))?)
}

/// The input's names of the model's columns: those of the model itself, or else any that mean the same.
pub fn selected(model: &Model, input: &Input) -> Result<Vec<String>, input::Error> {
    let transform = model.schema.transform;
    let semantics = transform.semantics().unwrap_or_default();
    let meaning = |name: &String| {
        let read = columns::features(std::slice::from_ref(name), &columns::Mapping::new(), semantics);
        let (features, transform) = read.ok()?;
        Some((features.into_iter().next()?, transform))
    };
    let names: Vec<&String> = input.columns.iter().map(|(name, _)| name).collect();
    let meanings: Vec<_> = names.iter().map(|name| meaning(name)).collect();
    let wanted = columns::names(model).into_iter().zip(&model.schema.features);
    wanted
        .map(|(name, feature)| {
            if names.contains(&&name) {
                return Ok(name);
            }
            let means =
                |meaning: &Option<_>| meaning.as_ref().is_some_and(|(f, t)| f == feature && *t == transform);
            match meanings.iter().position(means) {
                Some(position) => Ok(names[position].clone()),
                None => Err(input::Error::Missing(name)),
            }
        })
        .collect()
}

/// What scikit-learn says of each row, as CSV; nothing of a row without a score.
fn scores(table: &Table, offset: f64, mut score: impl FnMut(&[f32]) -> Option<f64>) -> String {
    let mut csv = String::from("score_samples,decision_function,predict\n");
    let mut row = vec![0.0; table.n_features()];
    for i in 0..table.n_rows() {
        table.copy_row(i, &mut row);
        match score(&row) {
            None => csv.push_str(",,\n"),
            Some(score) => {
                let decision = score - offset;
                let predict = if decision < 0.0 { -1 } else { 1 };
                csv.push_str(&format!("{},{},{predict}\n", digits(score), digits(decision)));
            }
        }
    }
    csv
}

/// The scores of rows that follow those of training.
fn in_order(detection: &Detection, times: &[i64], table: &Table) -> Result<String, Failure> {
    let trained_ms = detection.newest_ms().unwrap_or(i64::MIN);
    let mut before_ms = trained_ms;
    for time in times {
        if *time <= before_ms {
            let (time, before) = (artifact::timestamp(*time), artifact::timestamp(before_ms));
            return Err(format!("the row of {time} is not after {before}: rows must ascend, and follow those that the model was trained on").into());
        }
        before_ms = *time;
    }
    let mut detection = detection.clone();
    let mut times = times.iter();
    Ok(scores(table, EXTENDED_OFFSET, |row| {
        let seen = detection.observe(*times.next()?, row)?;
        Some(seen.decision + EXTENDED_OFFSET)
    }))
}

/// A number in [-1, 1] with 17 significant digits, enough to read the same bits back, as C's `%.17g`
/// writes it.
fn digits(value: f64) -> String {
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
    fn numbers_are_those_of_printf() {
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
            assert_eq!(digits(value), text);
            assert_eq!(digits(value).parse::<f64>().expect("a number").to_bits(), value.to_bits());
        }
    }
}
