//! `promforest backtest`: scores past rows with the models of their time and reports the incidents.

use super::training_data::{self, HistoryRange, TrainingDataArgs, TrainingInput, TrainingInputs};
use super::{RegistryArgs, model_location, print};
use crate::backtest::{self, BacktestResult, ReplayModel, ReplayRange, Retraining};
use crate::config::Config;
use crate::detect::{self, AlertBudget, OnlineDetector, SuspendedTimes};
use crate::detector::{self, Detector};
use crate::error::BoxError;
use crate::features::{Schema, Transform};
use crate::forest::{self, ExtendedParams};
use crate::models::{Model, columns};
use crate::report::text::plain_plural;
use crate::report::zone::Zone;
use crate::table::DataTable;
use crate::time;
use crate::train::training_set::TrainingSet;
use crate::window::MAX_FEATURES;
use crate::window::grid::Grid;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct BacktestArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    training_data: TrainingDataArgs,
    /// Beginning of the range, as in 2026-01-31T12:00:00Z or in seconds since 1970; training uses the rows before it, as far
    /// back as training.history
    #[arg(long, value_name = "TIME", required_unless_present = "input", value_parser = time::parse)]
    start: Option<i64>,
    /// End of the range; without it, now
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    end: Option<i64>,
    /// Replay a table instead: Parquet or CSV, a column timestamp in ms and one column per feature
    #[arg(long, value_name = "FILE", conflicts_with_all = ["start", "end", "tenant", "group", "shard", "exclude_alert"])]
    input: Option<PathBuf>,
    /// Table of the rows before it, with the same columns: the rows to train on, or to bring a model up to date
    #[arg(long, value_name = "FILE", requires = "input")]
    history: Option<PathBuf>,
    /// Replay this model, from the end of its training, instead of training one: a folder, NAME@ALIAS, NAME/VERSION
    /// or NAME
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["exclude", "exclude_alert"])]
    model: Option<String>,
    /// Replay the first model to the end instead of fitting a new one after each training.interval
    #[arg(long, conflicts_with = "model")]
    no_renewal: bool,
    /// Alert budget of the threshold, as in 1/day or 1/week; without it, the detector's
    #[arg(long, value_name = "BUDGET")]
    budget: Option<AlertBudget>,
    /// File for the score of every row: Parquet, or CSV if it ends in .csv
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// File for an HTML report with plots
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// A model that is given.
struct GivenModel {
    model: Model,
    online_detector: OnlineDetector,
}

pub async fn run(args: BacktestArgs) -> Result<(), BoxError> {
    let config = args.registry.config()?;
    let zone = args.report.as_ref().map_or_else(|| Ok(Zone::default()), |_| Zone::from_environment())?;
    let replay_model = match &args.model {
        Some(name) => Some(load_replay_model(&args.registry, name).await?),
        None => None,
    };
    let (mut training_inputs, mut table_labels, start_ms) = match (&args.input, &args.history, &replay_model)
    {
        (Some(input), None, None) => {
            return Err(format!("--history or --model is needed: the rows before {}", input.display()).into());
        }
        (Some(input), history, _) => {
            inputs_from_tables(&args, &config, input, history.as_deref(), replay_model.as_ref())?
        }
        (None, ..) => inputs_from_history(&args, &config, replay_model.as_ref()).await?,
    };
    if args.output.is_some() || args.report.is_some() {
        training_inputs.require_single("--output and --report", "group").await?;
    }
    while let Some(training_input) = training_inputs.next().await? {
        let table_labels = std::mem::take(&mut table_labels);
        let budget =
            args.budget.map_or(training_input.detector.alerts.budget, |AlertBudget(per_day)| per_day);
        let replay = BacktestRun {
            args: &args,
            training_input: &training_input,
            given: replay_model.as_ref(),
            budget,
        };
        let result = replay.run(table_labels, start_ms)?;
        if let Some(path) = &args.output {
            backtest::write(path, &result)?;
        }
        let source = describe_source(&args, &training_input);
        if let Some(path) = &args.report {
            let page = backtest::build_report(&source, budget, &result, zone.clone()).html();
            std::fs::write(path, page)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        print(&format_result(&args, &source, budget, &result))?;
    }
    Ok(())
}

async fn load_replay_model(registry: &RegistryArgs, name: &str) -> Result<GivenModel, BoxError> {
    let (location, model) = model_location::load_model(registry, name).await?;
    let Some(online_detector) = model.fitted.as_online().cloned() else {
        let kind = model.fitted.kind();
        return Err(format!(
            "{location} is an {kind}: it has no incidents; `promforest models score` replays its scores"
        )
        .into());
    };
    Ok(GivenModel { model, online_detector })
}

/// Timestamps and labels of a replayed table.
#[derive(Default)]
struct TableLabels {
    /// All timestamps, ascending, also of incomplete rows; empty to use those of the rows.
    timestamps: Vec<i64>,
    /// One label per timestamp: true for an anomaly. `None` if the table has no labels.
    labels: Option<Vec<bool>>,
}

/// The groups to replay, the labels of a table, and the start of the range.
type ReplayInputs<'a> = (TrainingInputs<'a>, TableLabels, i64);

async fn inputs_from_history<'a>(
    args: &'a BacktestArgs,
    config: &'a Config,
    replay_model: Option<&'a GivenModel>,
) -> Result<ReplayInputs<'a>, BoxError> {
    let start_ms = args.start.ok_or("--start or --input is needed")?;
    let to_ms = args.end.unwrap_or_else(time::now_ms);
    if start_ms >= to_ms {
        return Err(training_data::empty_range("the range", (start_ms, to_ms)).into());
    }
    let mut history_range = HistoryRange { from_ms: None, train_to_ms: start_ms - 1, to_ms };
    if let Some(GivenModel { model, online_detector }) = replay_model {
        let trained_ms = online_detector.newest_ms().unwrap_or(start_ms);
        if start_ms <= trained_ms {
            let trained = time::format_timestamp(trained_ms);
            return Err(
                format!("the model was trained on rows up to {trained}: --start must be after it").into()
            );
        }
        history_range.from_ms = Some(trained_ms - model.schema.transform.lookback_ms());
    }
    let model = replay_model.map(|replay_model| &replay_model.model);
    let registry = args.registry.open_or_create(config)?;
    let training_inputs =
        TrainingInputs::from_history(&args.training_data, config, &registry, history_range, model).await?;
    Ok((training_inputs, TableLabels::default(), start_ms))
}

/// Reads the tables as one, because rates at the start of the range use rows of the history.
fn inputs_from_tables<'a>(
    args: &'a BacktestArgs,
    config: &'a Config,
    input: &Path,
    history: Option<&Path>,
    replay_model: Option<&GivenModel>,
) -> Result<ReplayInputs<'a>, BoxError> {
    let mut replay_table = DataTable::read(input)?;
    let times = replay_table.unique_timestamps(input)?.to_vec();
    let start_ms = *times.iter().min().expect("a table has rows");
    let label_column = replay_table.label.take();
    let (path, table) = match history {
        Some(history) => (history, concatenate(history, input, replay_table, &times, start_ms)?),
        None => (input, replay_table),
    };
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|row| times[*row]);
    let table_labels = TableLabels {
        timestamps: order.iter().map(|row| times[*row]).collect(),
        labels: label_column.map(|values| order.iter().map(|row| values[*row] > 0.0).collect()),
    };
    let training_input = match replay_model {
        Some(replay_model) => input_for_model(&args.training_data, config, replay_model, path, table)?,
        None => training_data::read_table(&args.training_data, config, path, table, start_ms - 1)?,
    };
    Ok((TrainingInputs::single(training_input), table_labels, start_ms))
}

/// The rows of the history followed by those of the table.
fn concatenate(
    history: &Path,
    input: &Path,
    replay_table: DataTable,
    times: &[i64],
    start_ms: i64,
) -> Result<DataTable, BoxError> {
    let mut combined = DataTable::read(history)?;
    let mut timestamps = combined.unique_timestamps(history)?.to_vec();
    if let Some(late) = timestamps.iter().find(|time| **time >= start_ms) {
        return Err(format!(
            "{} has timestamp {late}, must be before {start_ms}, where {} begins",
            history.display(),
            input.display()
        )
        .into());
    }
    timestamps.extend(times);
    combined.timestamps = Some(timestamps);
    let is_missing =
        |(name, _): &&(String, Vec<f64>)| !combined.columns.iter().any(|(column, _)| column == name);
    if let Some((name, _)) = replay_table.columns.iter().find(is_missing) {
        return Err(format!("{} has no column {name:?}", history.display()).into());
    }
    for (name, values) in &mut combined.columns {
        let found = replay_table.columns.iter().find(|(column, _)| column == name);
        let (_, more) = found.ok_or_else(|| format!("{} has no column {name:?}", input.display()))?;
        values.extend(more);
    }
    Ok(combined)
}

/// The columns of a model from a table.
fn input_for_model(
    args: &TrainingDataArgs,
    config: &Config,
    GivenModel { model, online_detector }: &GivenModel,
    path: &Path,
    table: DataTable,
) -> Result<TrainingInput, BoxError> {
    let times = table.unique_timestamps(path)?;
    let trained_ms = online_detector.newest_ms().unwrap_or(i64::MIN);
    if let Some(early) = times.iter().find(|time| **time <= trained_ms) {
        let (early, trained) = (time::format_timestamp(*early), time::format_timestamp(trained_ms));
        return Err(format!(
            "{} has a row of {early}, but the model was trained on rows up to {trained}",
            path.display()
        )
        .into());
    }
    let names = model_location::select_columns(model, &table)?;
    let column = |name: &String| {
        let found = table.columns.iter().find(|(column, _)| column == name);
        found.map(|(_, values)| values.clone()).unwrap_or_default()
    };
    let values: Vec<Vec<f64>> = names.iter().map(column).collect();
    let rows = TrainingSet::from_values(model.schema.clone(), times, &values, &[], i64::MAX)
        .map_err(|_| format!("{}: no row has a finite value in every column", path.display()))?;
    let detector = detector::select(&config.detectors, args.detector.as_deref())?
        .first()
        .ok_or("there is no detector")?
        .clone();
    let name = config.registry.model_name(&detector.name);
    let window = training_data::table_window(&model.schema.features, times, &values);
    let columns = Some(columns::names(model));
    Ok(TrainingInput {
        detector,
        group: None,
        name,
        rows,
        window,
        is_raw: false,
        exclusions: Vec::new(),
        suspended: SuspendedTimes::default(),
        columns,
        n_table_rows: Some(times.len()),
    })
}

/// The backtest of one group or file.
struct BacktestRun<'a> {
    args: &'a BacktestArgs,
    training_input: &'a TrainingInput,
    given: Option<&'a GivenModel>,
    /// Alerts per day.
    budget: f64,
}

impl BacktestRun<'_> {
    fn run(&self, table_labels: TableLabels, start_ms: i64) -> Result<BacktestResult, BoxError> {
        let TrainingInput { detector, rows, window, .. } = self.training_input;
        let n_features = rows.schema.features.len();
        if n_features > MAX_FEATURES {
            return Err(format!("{n_features} columns, a group has at most {MAX_FEATURES}").into());
        }
        let retraining = Retraining {
            detector,
            params: extended_params(detector, self.given)?,
            alerts: detect::Config { budget: self.budget, ..detector.alerts.clone() },
            exclusions: self.training_input.exclusions.clone(),
            suspended: self.training_input.suspended.clone(),
            is_raw: self.training_input.is_raw,
            is_renewing: !self.args.no_renewal,
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        let model = self.first_model(&retraining)?;
        let n_rows = window.timestamps(start_ms - 1, i64::MAX).count();
        let bar = ProgressBar::new(n_rows as u64).with_message(self.training_input.name.clone());
        bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} rows, {eta} left")?);
        let mut done = || bar.inc(1);
        let range = ReplayRange {
            window,
            group: self.training_input.group.clone().unwrap_or_default(),
            start_ms,
            timestamps: table_labels.timestamps,
            labels: table_labels.labels,
        };
        let result = match self.given {
            Some(_) => backtest::replay(range, model, &mut done),
            None => backtest::replay_with_retraining(range, &retraining, model, &mut done),
        };
        bar.finish_and_clear();
        Ok(result)
    }

    /// The given model, or one that is fitted to the rows before the range.
    fn first_model(&self, retraining: &Retraining) -> Result<ReplayModel, BoxError> {
        let TrainingInput { rows, columns, is_raw, .. } = self.training_input;
        let detector = match self.given {
            Some(given) => {
                retraining.with_alerts(given.online_detector.clone(), &given.model.schema.features)
            }
            None => retraining.fit(rows).map_err(|error| match error {
                forest::Error::Empty { .. } => too_few_rows(rows.len()),
                error => error.into(),
            })?,
        };
        // The columns of a table hold transformed values.
        let schema = match is_raw {
            true => rows.schema.clone(),
            false => Schema { transform: Transform::Value, grid: Grid::Exact, ..rows.schema.clone() },
        };
        let names = columns.clone().or_else(|| Some(columns::default_names(&rows.schema)));
        Ok(ReplayModel { schema, names, detector, observed_ms: rows.observed_ms })
    }
}

/// The parameters of a detector to train; any with a model that is given.
fn extended_params(detector: &Detector, given: Option<&GivenModel>) -> Result<ExtendedParams, BoxError> {
    match detector.model.as_extended() {
        Some(params) => Ok(params.clone()),
        None if given.is_some() => Ok(ExtendedParams::default()),
        None => Err(format!(
            "detector {} trains an {}: it has no incidents; `promforest models score` replays its scores",
            detector.name,
            detector.model.kind()
        )
        .into()),
    }
}

fn too_few_rows(n_training_rows: usize) -> BoxError {
    format!("too few rows to train on: {n_training_rows} rows lie before the range, and the columns reach back 12m or 12 rows").into()
}

/// The name of the replayed group or file in the output.
fn describe_source(args: &BacktestArgs, training_input: &TrainingInput) -> String {
    match (&args.input, &training_input.group) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(group)) => format!("{} {group}", training_input.detector.name),
        (None, None) => training_input.name.clone(),
    }
}

fn format_result(args: &BacktestArgs, source: &str, budget: f64, result: &BacktestResult) -> String {
    let (n_rows, n_scored) = (result.timestamps.len(), result.n_scored());
    let incidents = result.incidents();
    let days = result.days();
    let mut lines = vec![
        format!("{source}: {n_scored} of {n_rows} rows scored, {days:.1} days"),
        format!(
            "  {}, {:.2} a day, for a budget of {budget} a day",
            plain_plural(incidents.len(), "incident"),
            incidents.len() as f64 / days.max(f64::MIN_POSITIVE),
        ),
    ];
    if let Some(recall) = result.event_recall() {
        lines.push(format!(
            "  {} of {} labelled anomalies found, {} outside of them",
            recall.n_detected,
            recall.n_events,
            plain_plural(recall.n_outside, "incident")
        ));
    }
    lines.extend(result.events().into_iter().map(|event| format!("  {event}")));
    lines.extend(args.output.iter().map(|path| format!("scores: {}", path.display())));
    lines.extend(args.report.iter().map(|path| format!("report: {}", path.display())));
    lines.join("\n") + "\n"
}
