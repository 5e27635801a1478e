//! `promforest backtest`: the past once more, scored as it would have been.

use super::lessons::{self, Lesson, LessonArgs, Lessons, Span};
use super::{Failure, RegistryArgs, detectors, models, plural, say};
use crate::backtest::{self, Learning, Range, Replayed};
use crate::config::Config;
use crate::detect::{self, Budget, Detection};
use crate::features::{Schema, Transform};
use crate::forest::{self, ExtendedParams};
use crate::input::Input;
use crate::models::{Fitted, Model, Params, artifact, columns};
use crate::prom::duration;
use crate::train::rows::Rows;
use crate::window::MAX_FEATURES;
use crate::window::row::Grid;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct BacktestArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    lesson: LessonArgs,
    /// Beginning of the range, RFC 3339; what lies before it, as far as training.history, is learned
    #[arg(long, value_name = "TIME", required_unless_present = "input")]
    start: Option<Timestamp>,
    /// End of the range, RFC 3339; without it, now
    #[arg(long, value_name = "TIME")]
    end: Option<Timestamp>,
    /// Replay a table instead: Parquet or CSV, a column timestamp in ms and one column a feature
    #[arg(long, value_name = "FILE", conflicts_with_all = ["start", "end", "group"])]
    input: Option<PathBuf>,
    /// The table of what lies before it, with the same columns: what is learned, or what a model has to see before
    #[arg(long, value_name = "FILE", requires = "input")]
    history: Option<PathBuf>,
    /// Replay this model, from the end of its training, instead of learning one: a folder, NAME@ALIAS, NAME/VERSION
    /// or NAME
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Alerts that the threshold keeps to, as in 1/day or 1/week; without it, the detector's
    #[arg(long, value_name = "BUDGET")]
    budget: Option<Budget>,
    /// Write every row's score to this file: Parquet, or CSV if it ends in .csv
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a page with plots
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// A model to replay.
struct Chosen {
    model: Model,
    detection: Detection,
}

pub async fn run(args: BacktestArgs) -> Result<(), Failure> {
    let config = args.registry.config()?;
    let chosen = match &args.model {
        Some(name) => Some(chosen(&args.registry, name).await?),
        None => None,
    };
    let (mut lessons, mut known, start_ms) = match (&args.input, &args.history, &chosen) {
        (Some(input), None, None) => {
            return Err(
                format!("--history or --model is needed: what is known before {}", input.display()).into()
            );
        }
        (Some(input), history, _) => of_tables(&args, &config, input, history.as_deref(), chosen.as_ref())?,
        (None, ..) => of_history(&args, &config, chosen.as_ref()).await?,
    };
    if args.output.is_some() || args.report.is_some() {
        lessons.only_one("--output and --report", "group").await?;
    }
    while let Some(lesson) = lessons.next().await? {
        let known = std::mem::take(&mut known);
        let budget = args.budget.map_or(lesson.detector.alerts.budget, |Budget(a_day)| a_day);
        let replayed = replay(&lesson, known, start_ms, chosen.as_ref(), budget)?;
        if let Some(path) = &args.output {
            backtest::write(path, &replayed)?;
        }
        let source = source(&args, &lesson);
        if let Some(path) = &args.report {
            let page = backtest::page(&source, budget, &replayed).html();
            std::fs::write(path, page)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        say(&text(&args, &source, budget, &replayed))?;
    }
    Ok(())
}

async fn chosen(registry: &RegistryArgs, name: &str) -> Result<Chosen, Failure> {
    let (place, model) = models::load(registry, name).await?;
    let Fitted::Extended(detection) = &model.fitted else {
        let kind = model.fitted.kind();
        return Err(format!(
            "{place} is an {kind}: it knows no incidents, `promforest models score` replays its scores"
        )
        .into());
    };
    let detection = detection.as_ref().clone();
    Ok(Chosen { model, detection })
}

/// What is known of the range besides its rows.
#[derive(Default)]
struct Known {
    /// Every timestamp, ascending, whether its row is complete or not; empty for those of the rows.
    timestamps: Vec<i64>,
    /// A mark for each, where the table has them.
    labels: Option<Vec<bool>>,
}

/// What is replayed, what is known of a table, and where the range begins.
type Replays<'a> = (Lessons<'a>, Known, i64);

async fn of_history<'a>(
    args: &'a BacktestArgs,
    config: &'a Config,
    chosen: Option<&'a Chosen>,
) -> Result<Replays<'a>, Failure> {
    let start_ms = args.start.ok_or("--start or --input is needed")?.as_millisecond();
    let to_ms = args.end.map_or_else(duration::now_ms, Timestamp::as_millisecond);
    if start_ms >= to_ms {
        return Err("the range ends before it begins: --start must be before --end".into());
    }
    let mut span = Span { from_ms: None, learn_to_ms: start_ms - 1, to_ms };
    if let Some(Chosen { model, detection }) = chosen {
        let trained_ms = detection.newest_ms().unwrap_or(start_ms);
        if start_ms <= trained_ms {
            let trained = artifact::timestamp(trained_ms);
            return Err(format!(
                "the model has learned what happened up to {trained}: --start must be after it"
            )
            .into());
        }
        span.from_ms = Some(trained_ms - model.schema.transform.reach_ms());
    }
    let model = chosen.map(|chosen| &chosen.model);
    let lessons = Lessons::of_history(&args.lesson, config, span, model).await?;
    Ok((lessons, Known::default(), start_ms))
}

/// One table after the other: rates at the beginning of the second reach back into the first.
fn of_tables<'a>(
    args: &'a BacktestArgs,
    config: &'a Config,
    input: &Path,
    history: Option<&Path>,
    chosen: Option<&Chosen>,
) -> Result<Replays<'a>, Failure> {
    let mut present = Input::read(input)?;
    let no_time = |path: &Path| format!("{} has no column timestamp", path.display());
    let times = present.timestamps.clone().ok_or_else(|| no_time(input))?;
    let start_ms = *times.iter().min().expect("a table has rows");
    let marks = present.label.take();
    let (path, table) = match history {
        Some(history) => (history, joined(history, input, present, &times, start_ms)?),
        None => (input, present),
    };
    let all_times = table.timestamps.as_deref().unwrap_or_default();
    let mut sorted = all_times.to_vec();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        let file = if twice[0] < start_ms { path } else { input };
        return Err(format!("{} has timestamp {} twice", file.display(), twice[0]).into());
    }
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|row| times[*row]);
    let known = Known {
        timestamps: order.iter().map(|row| times[*row]).collect(),
        labels: marks.map(|marks| order.iter().map(|row| marks[*row] > 0.0).collect()),
    };
    let lesson = match chosen {
        Some(chosen) => of_model(&args.lesson, config, chosen, path, table)?,
        None => lessons::of_table(&args.lesson, config, path, table, start_ms - 1)?,
    };
    Ok((Lessons::one(&args.lesson, config, lesson), known, start_ms))
}

/// What lies before a table, and then the table.
fn joined(
    history: &Path,
    input: &Path,
    present: Input,
    times: &[i64],
    start_ms: i64,
) -> Result<Input, Failure> {
    let mut past = Input::read(history)?;
    let past_times =
        past.timestamps.as_mut().ok_or_else(|| format!("{} has no column timestamp", history.display()))?;
    if let Some(late) = past_times.iter().find(|time| **time >= start_ms) {
        return Err(format!(
            "{} has timestamp {late}, must be before {start_ms}, where {} begins",
            history.display(),
            input.display()
        )
        .into());
    }
    past_times.extend(times);
    let unknown = |(name, _): &&(String, Vec<f64>)| !past.columns.iter().any(|(known, _)| known == name);
    if let Some((name, _)) = present.columns.iter().find(unknown) {
        return Err(format!("{} has no column {name:?}", history.display()).into());
    }
    for (name, values) in &mut past.columns {
        let found = present.columns.iter().find(|(known, _)| known == name);
        let (_, more) = found.ok_or_else(|| format!("{} has no column {name:?}", input.display()))?;
        values.extend(more);
    }
    Ok(past)
}

/// Ready-made columns of a model.
fn of_model(
    args: &LessonArgs,
    config: &Config,
    Chosen { model, detection }: &Chosen,
    path: &Path,
    table: Input,
) -> Result<Lesson, Failure> {
    let times =
        table.timestamps.clone().ok_or_else(|| format!("{} has no column timestamp", path.display()))?;
    let trained_ms = detection.newest_ms().unwrap_or(i64::MIN);
    if let Some(early) = times.iter().find(|time| **time <= trained_ms) {
        let (early, trained) = (artifact::timestamp(*early), artifact::timestamp(trained_ms));
        return Err(format!(
            "{} has a row of {early}, but the model has learned what happened up to {trained}",
            path.display()
        )
        .into());
    }
    let names = models::selected(model, &table)?;
    let column = |name: &String| {
        let found = table.columns.iter().find(|(known, _)| known == name);
        found.map(|(_, values)| values.clone()).unwrap_or_default()
    };
    let values: Vec<Vec<f64>> = names.iter().map(column).collect();
    let rows = Rows::of_values(model.schema.clone(), &times, &values, &[], i64::MAX)
        .map_err(|_| format!("{}: no row has a finite value in every column", path.display()))?;
    let detector =
        detectors(config, args.detector.as_deref())?.first().ok_or("there is no detector")?.clone();
    let name = config.registry.model(&detector.name);
    let window = lessons::window(&model.schema.features, &times, &values);
    let columns = Some(columns::names(model));
    Ok(Lesson { detector, group: None, name, rows, window, is_raw: false, exclusions: Vec::new(), columns })
}

fn replay(
    lesson: &Lesson,
    known: Known,
    start_ms: i64,
    chosen: Option<&Chosen>,
    budget: f64,
) -> Result<Replayed, Failure> {
    let Lesson { detector, rows, window, .. } = lesson;
    let n_features = rows.schema.features.len();
    if n_features > MAX_FEATURES {
        return Err(format!("{n_features} columns, a group has at most {MAX_FEATURES}").into());
    }
    let params = match &detector.model {
        Params::Extended(params) => params.clone(),
        Params::IsolationForest(_) => ExtendedParams::default(),
    };
    let learning = Learning {
        detector,
        params,
        alerts: detect::Config { budget, ..detector.alerts.clone() },
        exclusions: lesson.exclusions.clone(),
        threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    let detection = match chosen {
        Some(chosen) => chosen.detection.clone().with_alerts(&learning.alerts, &chosen.model.schema.features),
        None => learning.learn(rows).map_err(|error| match error {
            forest::Error::Empty { .. } => too_little(rows.len()),
            error => error.into(),
        })?,
    };
    let n_rows = window.timestamps(start_ms - 1, i64::MAX).count();
    let bar = ProgressBar::new(n_rows as u64).with_message(lesson.name.clone());
    bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} rows, {eta} left")?);
    let mut done = || bar.inc(1);
    let range = Range {
        window,
        group: lesson.group.clone().unwrap_or_default(),
        start_ms,
        timestamps: known.timestamps,
        labels: known.labels,
    };
    let replayed = match chosen {
        None if lesson.is_raw => {
            backtest::follow(range, &learning, (rows.schema.clone(), detection), &mut done)
        }
        _ => {
            let names = lesson.columns.clone().unwrap_or_else(|| columns::defaults(&rows.schema));
            // What is ready is taken as it is.
            let schema = match lesson.is_raw {
                true => rows.schema.clone(),
                false => Schema { transform: Transform::Value, grid: Grid::Exact, ..rows.schema.clone() },
            };
            backtest::replay(range, &schema, names, detection, &mut done)
        }
    };
    bar.finish_and_clear();
    Ok(replayed)
}

fn too_little(n_learned: usize) -> Failure {
    format!("too little to learn from: {n_learned} rows lie before the range, and the columns reach back 12m or 12 rows").into()
}

/// What is replayed, for people.
fn source(args: &BacktestArgs, lesson: &Lesson) -> String {
    match (&args.input, &lesson.group) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(group)) => format!("{} {group}", lesson.detector.name),
        (None, None) => lesson.name.clone(),
    }
}

fn text(args: &BacktestArgs, source: &str, budget: f64, replayed: &Replayed) -> String {
    let (n_rows, n_scored) = (replayed.timestamps.len(), replayed.n_scored());
    let incidents = replayed.incidents();
    let days = replayed.days();
    let mut lines = vec![
        format!("{source}: {n_scored} of {n_rows} rows scored, {days:.1} days"),
        format!(
            "  {}, {:.2} a day, for a budget of {budget} a day",
            plural(incidents.len(), "incident"),
            incidents.len() as f64 / days.max(f64::MIN_POSITIVE),
        ),
    ];
    if let Some(found) = replayed.found() {
        lines.push(format!(
            "  {} of {} labelled anomalies found, {} outside of them",
            found.found,
            found.labelled,
            plural(found.outside, "incident")
        ));
    }
    lines.extend(replayed.happenings().into_iter().map(|what| format!("  {what}")));
    lines.extend(args.output.iter().map(|path| format!("scores: {}", path.display())));
    lines.extend(args.report.iter().map(|path| format!("report: {}", path.display())));
    lines.join("\n") + "\n"
}
