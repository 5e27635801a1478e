//! `promforest train`: history in, a sweep with cross-validation, a model and its page out.

use super::{Failure, Output, RegistryArgs, detectors, label, say};
use crate::config::{Config, Detector};
use crate::features::{Schema, Transform};
use crate::history::{Series, Source};
use crate::input::Input;
use crate::models::registry::{Registry, group_model};
use crate::models::{Kind, Params, Trial, Validation, artifact, columns};
use crate::prom::{Labels, METRIC_NAME, Sample, duration};
use crate::report::training::Verdict;
use crate::train::enter;
use crate::train::rows::{self, Exclusion, NoRows, Rows};
use crate::train::validate::SIZES;
use crate::train::{Purpose, Trained, page, past, train};
use crate::window::row::Grid;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Train for this detector; without it, for every one
    #[arg(long, value_name = "NAME")]
    detector: Option<String>,
    /// Train for the groups with these labels alone, as in job=node,instance=web1:9100
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = label)]
    group: Vec<(String, String)>,
    /// Beginning of the history, RFC 3339; without it, training.history before the end
    #[arg(long, value_name = "TIME")]
    start: Option<Timestamp>,
    /// End of the history, RFC 3339; without it, now
    #[arg(long, value_name = "TIME")]
    end: Option<Timestamp>,
    /// Train on a table instead: Parquet or CSV, a column timestamp in ms and one column a feature
    #[arg(long, value_name = "FILE", conflicts_with_all = ["start", "end", "group"])]
    input: Option<PathBuf>,
    /// Rows a tree to choose from
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_values_t = SIZES, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    sweep: Vec<usize>,
    /// Kind of forest; without it, the detector's
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// Leave this time out, as in 2026-01-31T12:00:00Z..2026-01-31T13:00:00Z; may be repeated
    #[arg(long, value_name = "START..END", value_parser = exclusion)]
    exclude: Vec<Exclusion>,
    /// Leave out the time in which this alert fired; may be repeated
    #[arg(long, value_name = "ALERT")]
    exclude_alert: Vec<String>,
    /// Write the model to this folder instead of the registry
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Alias of the model if the gate lets it into service; without it, the registry's
    #[arg(long, value_name = "ALIAS", conflicts_with = "model")]
    alias: Option<String>,
    /// Write a page with plots
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Format of what is printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

fn exclusion(text: &str) -> Result<Exclusion, String> {
    let (from, to) = text.split_once("..").ok_or_else(|| format!("{text:?} is not START..END"))?;
    let time = |text: &str| text.parse::<Timestamp>().map_err(|error| format!("{text:?}: {error}"));
    let (from_ms, to_ms) = (time(from)?.as_millisecond(), time(to)?.as_millisecond());
    if from_ms > to_ms {
        return Err(format!("{text:?} ends before it begins"));
    }
    Ok(Exclusion { from_ms, to_ms, reason: text.into() })
}

/// Rows of one group, or of a file.
struct Lesson {
    detector: Arc<Detector>,
    group: Option<Labels>,
    /// The registered name of the model.
    name: String,
    rows: Rows,
    /// The file's names of the columns, where they are others than ours.
    columns: Option<Vec<String>>,
}

/// What is printed of a model.
#[derive(Serialize)]
struct Outcome {
    model: String,
    version: Option<u64>,
    group: Option<String>,
    promoted: Option<String>,
    held: Vec<String>,
    max_samples: String,
    n_features: usize,
    n_rows: usize,
    n_excluded: usize,
    alert_rate: Option<f64>,
    sweep: Vec<SizeResult>,
}

/// A size of the sweep, for people and scripts.
#[derive(Serialize)]
pub struct SizeResult {
    max_samples: usize,
    kl_mean: f64,
    kl: Vec<f64>,
    chosen: bool,
}

impl SizeResult {
    /// Every size that was tried.
    pub fn of(validation: &Validation) -> Vec<Self> {
        let size = |(i, trial): (usize, &Trial)| Self {
            max_samples: trial.max_samples,
            kl_mean: trial.mean_kl(),
            kl: trial.kl.clone(),
            chosen: validation.chosen == i,
        };
        validation.trials.iter().enumerate().map(size).collect()
    }
}

pub async fn run(args: TrainArgs) -> Result<(), Failure> {
    let config = args.registry.config()?;
    let lessons = match &args.input {
        Some(_) => vec![of_file(&args, &config)?],
        None => of_history(&args, &config).await?,
    };
    if lessons.len() > 1 && (args.model.is_some() || args.report.is_some()) {
        let names: Vec<String> = lessons.iter().map(|lesson| lesson.name.clone()).collect();
        return Err(format!(
            "--model and --report take one model, but there are {}: {}; choose one by --detector and --group",
            names.len(),
            names.join(", ")
        )
        .into());
    }
    let store = match args.model {
        None => Some(args.registry.open(&config)?),
        Some(_) => None,
    };
    let mut results = Vec::new();
    for lesson in &lessons {
        let result = learn(&args, &config, store.as_ref(), lesson).await?;
        if args.output == Output::Text {
            say(&text(&args, &result))?;
        }
        results.push(result);
    }
    if args.output == Output::Json {
        say(&format!("{}\n", serde_json::to_string_pretty(&results)?))?;
    }
    Ok(())
}

async fn learn(
    args: &TrainArgs,
    config: &Config,
    registry: Option<&Registry>,
    lesson: &Lesson,
) -> Result<Outcome, Failure> {
    let Lesson { detector, group, name, rows, columns } = lesson;
    let params = match args.kind {
        Some(kind) if kind != detector.model.kind() => Params::of(kind),
        _ => detector.model.clone(),
    };
    let bar = ProgressBar::new(0).with_message(name.clone());
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} folds, {eta} left")?;
    bar.set_style(style);
    let progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let purpose = Purpose { detector: Some(detector.name.clone()), group: group.clone() };
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut trained = train(&params, rows, &args.sweep, purpose, duration::now_ms(), threads, &progress)?;
    trained.model.card.columns = columns.clone();
    bar.finish_and_clear();

    let gate = &detector.training.gate;
    let (version, verdict, report) = match registry {
        Some(registry) => {
            let alias = args.alias.as_deref().unwrap_or(&config.registry.alias);
            let draft = enter::draft(name, alias, Some(gate), &trained, rows);
            let version = enter::enter(registry, name, &trained, &draft).await?;
            (Some(version), draft.verdict, draft.report)
        }
        None => {
            let folder = args.model.as_deref().expect("without a registry there is a folder");
            artifact::save(&artifact::files(&trained.model), folder)?;
            let reasons = enter::judge(gate, &trained);
            let verdict = if reasons.is_empty() { Verdict::Saved } else { Verdict::Held(reasons) };
            let report = page::training(name, &trained, rows, verdict.clone()).html();
            (None, verdict, report)
        }
    };
    if let Some(path) = &args.report {
        std::fs::write(path, report).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(result(lesson, &trained, version, verdict))
}

fn result(lesson: &Lesson, trained: &Trained, version: Option<u64>, verdict: Verdict) -> Outcome {
    let validation = trained.sweep.as_ref().map(|sweep| &sweep.validation);
    let card = &trained.model.card;
    let (promoted, held) = match verdict {
        Verdict::Promoted(alias) => (Some(alias), Vec::new()),
        Verdict::Held(reasons) => (None, reasons),
        Verdict::Saved => (None, Vec::new()),
    };
    let max_samples = card.params.iter().find(|(name, _)| name == "max_samples");
    Outcome {
        model: lesson.name.clone(),
        version,
        group: lesson.group.as_ref().map(ToString::to_string),
        promoted,
        held,
        max_samples: max_samples.map(|(_, value)| value.clone()).unwrap_or_default(),
        n_features: trained.model.schema.features.len(),
        n_rows: lesson.rows.len(),
        n_excluded: card.history.as_ref().map_or(0, |history| history.n_excluded),
        alert_rate: validation.map(|validation| validation.alert_rate),
        sweep: validation.map(SizeResult::of).unwrap_or_default(),
    }
}

/// What is printed of a model.
fn text(args: &TrainArgs, result: &Outcome) -> String {
    let group = result.group.as_ref().map(|group| format!(" {group}")).unwrap_or_default();
    let mut lines = vec![format!(
        "{}{group}: {} features, {} rows, {} excluded",
        result.model, result.n_features, result.n_rows, result.n_excluded
    )];
    if !result.sweep.is_empty() {
        lines.push(table_of_sizes(&result.sweep).trim_end().into());
    }
    if let Some(rate) = result.alert_rate {
        lines.push(format!(
            "  * chosen; it calls {:.2} % of the rows that it has not seen anomalous",
            rate * 100.0
        ));
    }
    match (&args.model, result.version) {
        (Some(folder), _) => lines.push(format!("written to {}", folder.display())),
        (None, Some(version)) => lines.push(format!("registered as version {version}")),
        (None, None) => {}
    }
    lines.extend(result.promoted.iter().map(|alias| format!("promoted to {alias}")));
    lines.extend(result.held.iter().map(|reason| format!("not promoted: {reason}")));
    lines.extend(args.report.iter().map(|report| format!("report: {}", report.display())));
    lines.join("\n") + "\n"
}

/// The table of a sweep, a line a size.
pub fn table_of_sizes(sizes: &[SizeResult]) -> String {
    let mut table = String::from("  max_samples   mean KL   KL of each fold\n");
    for size in sizes {
        let folds: Vec<String> = size.kl.iter().map(|kl| format!("{kl:.4}")).collect();
        let mark = if size.chosen { '*' } else { ' ' };
        let (max_samples, mean, folds) = (size.max_samples, size.kl_mean, folds.join("  "));
        table.push_str(&format!("{mark} {max_samples:>11}  {mean:>8.4}   {folds}\n"));
    }
    table
}

/// Every group that the sources know in the range.
async fn of_history(args: &TrainArgs, config: &Config) -> Result<Vec<Lesson>, Failure> {
    let detectors = detectors(config, args.detector.as_deref())?;
    let to_ms = args.end.map_or_else(duration::now_ms, |end| end.as_millisecond());
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    let (mut lessons, mut found, mut n_samples, mut longest_ms) = (Vec::new(), 0, 0, i64::MIN);
    for detector in detectors {
        let history_ms = duration::millis(detector.training.history);
        let from_ms = args.start.map_or(to_ms - history_ms, |start| start.as_millisecond());
        if from_ms >= to_ms {
            return Err("the history ends before it begins: --start must be before --end".into());
        }
        let mut groups: BTreeMap<Labels, Vec<Series>> = BTreeMap::new();
        let mut sources = Vec::new();
        for source in &config.remote_read {
            let source = Source::new(source)?;
            past::samples(&source, &detector, &[], (from_ms, to_ms), |series| {
                for (labels, samples) in series {
                    n_samples += samples.len();
                    let (group, feature) = labels.split(&detector.by);
                    groups.entry(group).or_default().push((feature, samples));
                }
                bar.set_message(format!("reading history: {n_samples} samples"));
            })
            .await?;
            sources.push(source);
        }
        let alerts: Vec<String> =
            args.exclude_alert.iter().chain(&detector.training.exclude_alerts).cloned().collect();
        for (group, series) in groups {
            if !args.group.iter().all(|(name, value)| group.get(name) == value) {
                continue;
            }
            found += 1;
            let mut exclusions = args.exclude.clone();
            for source in &sources {
                exclusions.extend(past::firing(source, &alerts, &group, (from_ms, to_ms)).await?);
            }
            let window = rows::window(series.iter(), to_ms - from_ms);
            match Rows::read(&detector, &window, &exclusions) {
                Ok(rows) => lessons.push(Lesson {
                    detector: detector.clone(),
                    name: group_model(&config.registry.model(&detector.name), &group),
                    group: Some(group),
                    rows,
                    columns: None,
                }),
                Err(NoRows::TooShort { have_ms }) => longest_ms = longest_ms.max(have_ms),
                Err(NoRows::NeverComplete { .. }) => {}
            }
        }
    }
    bar.finish_and_clear();
    if lessons.is_empty() {
        let longest = Duration::from_millis(u64::try_from(longest_ms).unwrap_or(0));
        return Err(match found {
            0 => "the history has no series that is watched".into(),
            _ => format!(
                "no group has enough history: the longest has {}, training.minimum asks for more",
                duration::Display(longest)
            ),
        }
        .into());
    }
    Ok(lessons)
}

/// The rows of a file. A column that is named like a series that the detector watches has raw samples,
/// and goes the way of live ones; any other has values that are ready.
fn of_file(args: &TrainArgs, config: &Config) -> Result<Lesson, Failure> {
    let path = args.input.as_deref().expect("it is given");
    let detectors = detectors(config, args.detector.as_deref())?;
    let detector = detectors.first().ok_or("there is no detector")?.clone();
    let input = Input::read(path)?;
    let timestamps = input.timestamps.ok_or_else(|| format!("{} has no column timestamp", path.display()))?;
    let (names, values): (Vec<String>, Vec<Vec<f64>>) = input.columns.into_iter().unzip();
    let name = config.registry.model(&detector.name);
    let (features, transform) = meaning(&names, &detector)?;
    let is_watched = |feature: &Labels| detector.matchers.iter().any(|selector| selector.matches(feature));
    if transform == Transform::Value && features.iter().all(is_watched) {
        let series: Vec<Series> = features
            .into_iter()
            .zip(values)
            .map(|(feature, values)| (feature, samples(&timestamps, values)))
            .collect();
        let window = rows::window(series.iter(), i64::MAX / 4);
        let rows = Rows::read(&detector, &window, &args.exclude).map_err(|none| no_rows(&none))?;
        return Ok(Lesson { detector, group: None, name, rows, columns: None });
    }
    let schema = Schema { features, transform, grid: Grid::Exact };
    let columns = (names != columns::defaults(&schema)).then_some(names);
    let rows = Rows::of_values(schema, &timestamps, &values, &args.exclude).map_err(|none| no_rows(&none))?;
    Ok(Lesson { detector, group: None, name, rows, columns })
}

/// What columns of these names are. Names that are no series stand for themselves.
fn meaning(names: &[String], detector: &Detector) -> Result<(Vec<Labels>, Transform), Failure> {
    let semantics = detector.transform.semantics().unwrap_or_default();
    match columns::features(names, &BTreeMap::new(), semantics) {
        Err(columns::Error::Unknown { .. }) => {
            let feature = |name: &String| Labels::new([(METRIC_NAME, name.as_str())]);
            let features = names.iter().map(feature).collect::<Result<_, _>>()?;
            Ok((features, Transform::Value))
        }
        known => Ok(known?),
    }
}

fn samples(timestamps: &[i64], values: Vec<f64>) -> Vec<Sample> {
    let mut samples: Vec<_> = timestamps
        .iter()
        .zip(values)
        .filter(|(_, value)| !value.is_nan())
        .map(|(timestamp_ms, value)| Sample { timestamp_ms: *timestamp_ms, value })
        .collect();
    samples.sort_by_key(|sample| sample.timestamp_ms);
    samples
}

fn no_rows(none: &NoRows) -> String {
    match none {
        NoRows::TooShort { have_ms } => {
            let have = Duration::from_millis(u64::try_from(*have_ms).unwrap_or(0));
            format!("the file covers {}, training.minimum asks for more", duration::Display(have))
        }
        NoRows::NeverComplete { .. } => {
            "no row has a finite value in every column and is not excluded".into()
        }
    }
}
