//! What commands learn from: the rows of each group that the sources know, or those of a table.

use super::{Failure, detectors, label};
use crate::config::{Config, Detector};
use crate::features::{Schema, Transform};
use crate::history::{self, Series, Source};
use crate::input::Input;
use crate::models::columns;
use crate::models::registry::group_model;
use crate::prom::{Labels, METRIC_NAME, Sample, duration};
use crate::train::past;
use crate::train::rows::{self, Exclusion, NoRows, Rows};
use crate::window::row::Grid;
use clap::Args;
use indicatif::ProgressBar;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Whose history is learned from, and what of it is not.
#[derive(Debug, Args)]
pub struct LessonArgs {
    /// For this detector; without it, for every one
    #[arg(long, value_name = "NAME")]
    pub detector: Option<String>,
    /// For the groups with these labels alone, as in job=node,instance=web1:9100
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = label)]
    pub group: Vec<(String, String)>,
    /// Leave this time out, as in 2026-01-31T12:00:00Z..2026-01-31T13:00:00Z; may be repeated
    #[arg(long, value_name = "START..END", value_parser = exclusion)]
    exclude: Vec<Exclusion>,
    /// Leave out the time in which this alert fired; may be repeated
    #[arg(long, value_name = "ALERT")]
    exclude_alert: Vec<String>,
}

/// A stretch of history.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Its beginning; without one, `training.history` before what is learned ends.
    pub from_ms: Option<i64>,
    /// Where what is learned ends: exclusions do not reach beyond.
    pub learn_to_ms: i64,
    /// Its end.
    pub to_ms: i64,
}

impl Span {
    /// What of these lies in the time that is learned.
    fn learned(&self, exclusions: Vec<Exclusion>) -> Vec<Exclusion> {
        let before = exclusions.into_iter().filter(|exclusion| exclusion.from_ms < self.learn_to_ms);
        before.map(|e| Exclusion { to_ms: e.to_ms.min(self.learn_to_ms - 1), ..e }).collect()
    }
}

/// Reads `START..END`.
pub fn exclusion(text: &str) -> Result<Exclusion, String> {
    let (from, to) = text.split_once("..").ok_or_else(|| format!("{text:?} is not START..END"))?;
    let time = |text: &str| text.parse::<Timestamp>().map_err(|error| format!("{text:?}: {error}"));
    let (from_ms, to_ms) = (time(from)?.as_millisecond(), time(to)?.as_millisecond());
    if from_ms > to_ms {
        return Err(format!("{text:?} ends before it begins"));
    }
    Ok(Exclusion { from_ms, to_ms, reason: text.into() })
}

/// Rows of one group, or of a file.
pub struct Lesson {
    pub detector: Arc<Detector>,
    pub group: Option<Labels>,
    /// The registered name of the model.
    pub name: String,
    pub rows: Rows,
    /// The file's names of the columns, where they are others than ours.
    pub columns: Option<Vec<String>>,
}

/// Every group that the sources know in the range.
///
/// With a schema, its rows instead of those that training would take.
pub async fn of_history(
    args: &LessonArgs,
    config: &Config,
    span: Span,
    schema: Option<&Schema>,
) -> Result<Vec<Lesson>, Failure> {
    let detectors = detectors(config, args.detector.as_deref())?;
    let to_ms = span.to_ms;
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    let (mut lessons, mut found, mut n_samples, mut longest_ms) = (Vec::new(), 0, 0, i64::MIN);
    for detector in detectors {
        let history_ms = duration::millis(detector.training.history);
        let from_ms = span.from_ms.unwrap_or(span.learn_to_ms - history_ms);
        if from_ms >= to_ms {
            return Err("the history ends before it begins: --start must be before --end".into());
        }
        let mut groups: BTreeMap<Labels, Vec<Series>> = BTreeMap::new();
        let mut sources = Vec::new();
        for source in &config.remote_read {
            let source = Source::new(source, &history::Metrics::default())?;
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
            let matchers = past::of_group(&detector, &group);
            for source in &sources {
                exclusions.extend(past::firing(source, &alerts, &group, (from_ms, to_ms)).await?);
                exclusions.extend(past::incidents(source, &detector, &matchers, (from_ms, to_ms)).await?);
            }
            let window = rows::window(series.iter(), to_ms - from_ms);
            let read = match schema {
                Some(schema) => Rows::of_schema(schema.clone(), &window),
                None => Rows::read(&detector, &window, &span.learned(exclusions), i64::MAX),
            };
            match read {
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

/// The rows of a table. A column that is named like a series that the detector watches has raw samples,
/// and goes the way of live ones; any other has values that are ready. Learned is what lies before
/// `learn_to_ms`.
pub fn of_table(
    args: &LessonArgs,
    config: &Config,
    path: &Path,
    input: Input,
    learn_to_ms: i64,
) -> Result<Lesson, Failure> {
    let detectors = detectors(config, args.detector.as_deref())?;
    let detector = detectors.first().ok_or("there is no detector")?.clone();
    let timestamps = input.timestamps.ok_or_else(|| format!("{} has no column timestamp", path.display()))?;
    let exclusions = Span { from_ms: None, learn_to_ms, to_ms: i64::MAX }.learned(args.exclude.clone());
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
        let rows = Rows::read(&detector, &window, &exclusions, i64::MAX).map_err(|none| no_rows(&none))?;
        return Ok(Lesson { detector, group: None, name, rows, columns: None });
    }
    let schema = Schema { features, transform, grid: Grid::Exact };
    let columns = (names != columns::defaults(&schema)).then_some(names);
    let rows = Rows::of_values(schema, &timestamps, &values, &exclusions).map_err(|none| no_rows(&none))?;
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
