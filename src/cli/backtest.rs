//! `promforest backtest`: the past once more, scored as it would have been.

use super::lessons::{self, Lesson, LessonArgs, Span};
use super::{Failure, load, plural, say};
use crate::backtest::{self, Range, Replayed};
use crate::config::Config;
use crate::detect;
use crate::forest::{self, ExtendedParams};
use crate::input::Input;
use crate::models::{Params, columns};
use crate::prom::duration;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct BacktestArgs {
    /// Configuration file; without one, node_network against http://localhost:9090
    #[arg(long = "config.file", value_name = "FILE")]
    config_file: Option<PathBuf>,
    #[command(flatten)]
    lesson: LessonArgs,
    /// Beginning of the range, RFC 3339; what lies before it, as far as training.history, is learned
    #[arg(long, value_name = "TIME", required_unless_present = "input")]
    start: Option<Timestamp>,
    /// End of the range, RFC 3339; without it, now
    #[arg(long, value_name = "TIME")]
    end: Option<Timestamp>,
    /// Replay a table instead: Parquet or CSV, a column timestamp in ms and one column a feature
    #[arg(long, value_name = "FILE", conflicts_with_all = ["start", "end", "group"], requires = "history")]
    input: Option<PathBuf>,
    /// The table of what lies before it, with the same columns: what is learned
    #[arg(long, value_name = "FILE", requires = "input")]
    history: Option<PathBuf>,
    /// Alerts a day that the threshold keeps to
    #[arg(long, value_name = "PER_DAY", default_value_t = detect::BUDGET, value_parser = budget)]
    budget: f64,
    /// Write every row's score to this file: Parquet, or CSV if it ends in .csv
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a page with plots
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// Alerts a day beyond which nobody reads them.
const MAX_BUDGET: f64 = 100.0;

fn budget(text: &str) -> Result<f64, String> {
    let budget: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if budget > 0.0 && budget <= MAX_BUDGET {
        return Ok(budget);
    }
    Err(format!("{budget} is not above 0 and at most {MAX_BUDGET}"))
}

pub async fn run(args: BacktestArgs) -> Result<(), Failure> {
    let config = load(args.config_file.as_deref())?;
    let (replays, start_ms) = match (&args.input, &args.history) {
        (Some(input), Some(history)) => of_tables(&args, &config, input, history)?,
        _ => of_history(&args, &config).await?,
    };
    if replays.len() > 1 && (args.output.is_some() || args.report.is_some()) {
        let names: Vec<String> = replays.iter().map(|(lesson, _)| lesson.name.clone()).collect();
        return Err(format!(
            "--output and --report take one group, but there are {}: {}; choose one by --detector and --group",
            names.len(),
            names.join(", ")
        )
        .into());
    }
    for (lesson, known) in replays {
        let replayed = replay(&args, &lesson, known, start_ms)?;
        if let Some(path) = &args.output {
            backtest::write(path, &replayed)?;
        }
        let source = source(&args, &lesson);
        if let Some(path) = &args.report {
            let page = backtest::page(&source, args.budget, &replayed).html();
            std::fs::write(path, page)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        say(&text(&args, &source, &replayed))?;
    }
    Ok(())
}

/// What is known of the range besides its rows.
#[derive(Default)]
struct Known {
    /// Every timestamp, ascending, whether its row is complete or not; empty for those of the rows.
    timestamps: Vec<i64>,
    /// A mark for each, where the table has them.
    labels: Option<Vec<bool>>,
}

type Replays = (Vec<(Lesson, Known)>, i64);

async fn of_history(args: &BacktestArgs, config: &Config) -> Result<Replays, Failure> {
    let start_ms = args.start.ok_or("--start or --input is needed")?.as_millisecond();
    let to_ms = args.end.map_or_else(duration::now_ms, Timestamp::as_millisecond);
    if start_ms >= to_ms {
        return Err("the range ends before it begins: --start must be before --end".into());
    }
    let span = Span { from_ms: None, learn_to_ms: start_ms, to_ms };
    let lessons = lessons::of_history(&args.lesson, config, span).await?;
    Ok((lessons.into_iter().map(|lesson| (lesson, Known::default())).collect(), start_ms))
}

/// One table after the other: rates at the beginning of the second reach back into the first.
fn of_tables(args: &BacktestArgs, config: &Config, input: &Path, history: &Path) -> Result<Replays, Failure> {
    let (mut past, present) = (Input::read(history)?, Input::read(input)?);
    let no_time = |path: &Path| format!("{} has no column timestamp", path.display());
    let times = present.timestamps.clone().ok_or_else(|| no_time(input))?;
    let start_ms = *times.iter().min().expect("a table has rows");
    let past_times = past.timestamps.as_mut().ok_or_else(|| no_time(history))?;
    if let Some(late) = past_times.iter().find(|time| **time >= start_ms) {
        return Err(format!(
            "{} has timestamp {late}, must be before {start_ms}, where {} begins",
            history.display(),
            input.display()
        )
        .into());
    }
    past_times.extend(&times);
    let mut sorted = past_times.clone();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        let file = if twice[0] < start_ms { history } else { input };
        return Err(format!("{} has timestamp {} twice", file.display(), twice[0]).into());
    }
    let unknown = |(name, _): &&(String, Vec<f64>)| !past.columns.iter().any(|(known, _)| known == name);
    if let Some((name, _)) = present.columns.iter().find(unknown) {
        return Err(format!("{} has no column {name:?}", history.display()).into());
    }
    for (name, values) in &mut past.columns {
        let found = present.columns.iter().find(|(known, _)| known == name);
        let (_, more) = found.ok_or_else(|| format!("{} has no column {name:?}", input.display()))?;
        values.extend(more);
    }
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|row| times[*row]);
    let known = Known {
        timestamps: order.iter().map(|row| times[*row]).collect(),
        labels: present.label.map(|marks| order.iter().map(|row| marks[*row] > 0.0).collect()),
    };
    let lesson = lessons::of_table(&args.lesson, config, history, past, start_ms)?;
    Ok((vec![(lesson, known)], start_ms))
}

fn replay(args: &BacktestArgs, lesson: &Lesson, known: Known, start_ms: i64) -> Result<Replayed, Failure> {
    let rows = &lesson.rows;
    let params = match &lesson.detector.model {
        Params::Extended(params) => params.clone(),
        Params::IsolationForest(_) => ExtendedParams::default(),
    };
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let n_rows = rows.timestamps.iter().filter(|time| **time >= start_ms).count();
    let bar = ProgressBar::new(n_rows as u64).with_message(lesson.name.clone());
    bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} rows, {eta} left")?);
    let range = Range {
        rows,
        metrics: lesson.columns.clone().unwrap_or_else(|| columns::defaults(&rows.schema)),
        group: lesson.group.clone().unwrap_or_default(),
        start_ms,
        timestamps: known.timestamps,
        labels: known.labels,
    };
    let n_learned = rows.len() - n_rows;
    let replayed = backtest::replay(range, &params, args.budget, threads, || bar.inc(1)).map_err(
        |error| match error {
            forest::Error::Empty { .. } => too_little(n_learned),
            error => error.into(),
        },
    )?;
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

fn text(args: &BacktestArgs, source: &str, replayed: &Replayed) -> String {
    let (n_rows, n_scored) = (replayed.timestamps.len(), replayed.n_scored());
    let incidents = replayed.incidents();
    let days = replayed.days();
    let mut lines = vec![
        format!("{source}: {n_scored} of {n_rows} rows scored, {days:.1} days"),
        format!(
            "  {}, {:.2} a day, for a budget of {} a day",
            plural(incidents.len(), "incident"),
            incidents.len() as f64 / days.max(f64::MIN_POSITIVE),
            args.budget
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
    for incident in &incidents {
        lines.push(format!("  {}", replayed.sentence(incident)));
    }
    lines.extend(args.output.iter().map(|path| format!("scores: {}", path.display())));
    lines.extend(args.report.iter().map(|path| format!("report: {}", path.display())));
    lines.join("\n") + "\n"
}
