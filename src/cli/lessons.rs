//! What commands learn from: the rows of each group that the sources know, or those of a table.

use super::{Failure, detectors, label};
use crate::config::{Config, Detector};
use crate::features::{Schema, Transform};
use crate::history::{self, Series, Source};
use crate::input::Input;
use crate::models::registry::group_model;
use crate::models::{Model, columns};
use crate::prom::matcher::Matcher;
use crate::prom::{Labels, METRIC_NAME, Sample, duration};
use crate::train::past;
use crate::train::rows::{self, Exclusion, NoRows, Rows};
use crate::window::Window;
use crate::window::row::Grid;
use clap::Args;
use indicatif::ProgressBar;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
    /// Last millisecond of what is learned.
    pub learn_to_ms: i64,
    /// Its end.
    pub to_ms: i64,
}

/// Reads `START..END`.
pub fn exclusion(text: &str) -> Result<Exclusion, String> {
    let (from, to) = text.split_once("..").ok_or_else(|| format!("{text:?} is not START..END"))?;
    let time = |text: &str| text.parse::<Timestamp>().map_err(|error| format!("{text:?}: {error}"));
    let (from_ms, to_ms) = (time(from)?.as_millisecond(), time(to)?.as_millisecond());
    if from_ms > to_ms {
        return Err(format!("{text:?} ends before it begins"));
    }
    Ok(Exclusion { from_ms, to_ms, reason: text.into(), is_found: false })
}

/// Rows of one group, or of a file.
pub struct Lesson {
    pub detector: Arc<Detector>,
    pub group: Option<Labels>,
    /// The registered name of the model.
    pub name: String,
    /// What is learned; of a model that is there its rows.
    pub rows: Rows,
    /// What there is of all features in the whole span.
    pub window: Window,
    /// Does it hold samples, or values that are ready?
    pub is_raw: bool,
    /// What stays out of training.
    pub exclusions: Vec<Exclusion>,
    /// The file's names of the columns, where they are others than ours.
    pub columns: Option<Vec<String>>,
}

/// The lessons one after the other. Of a fleet's history, one group's samples are in memory at a time.
pub struct Lessons<'a> {
    args: &'a LessonArgs,
    config: &'a Config,
    span: Span,
    model: Option<&'a Model>,
    sources: Vec<Source>,
    groups: VecDeque<Group>,
    /// One that has its rows already.
    first: Option<Lesson>,
    n_found: usize,
    n_lessons: usize,
    longest_ms: i64,
    bar: ProgressBar,
    n_samples: usize,
}

/// A group that the sources know in the range.
struct Group {
    detector: Arc<Detector>,
    labels: Labels,
    range: (i64, i64),
}

impl<'a> Lessons<'a> {
    /// This one.
    pub fn one(args: &'a LessonArgs, config: &'a Config, lesson: Lesson) -> Self {
        let span = Span { from_ms: None, learn_to_ms: i64::MAX, to_ms: i64::MAX };
        Self { first: Some(lesson), ..Self::new(args, config, span, None) }
    }

    fn new(args: &'a LessonArgs, config: &'a Config, span: Span, model: Option<&'a Model>) -> Self {
        Self {
            args,
            config,
            span,
            model,
            sources: Vec::new(),
            groups: VecDeque::new(),
            first: None,
            n_found: 0,
            n_lessons: 0,
            longest_ms: i64::MIN,
            bar: ProgressBar::hidden(),
            n_samples: 0,
        }
    }

    /// Every group that the sources know in the range; with a model, its group alone and the rows of its
    /// columns, instead of those that training would take.
    ///
    /// Which groups there are is seen in the samples, all of which are read for it once and kept nowhere: a
    /// look at parts of the range would miss groups that come and go.
    pub async fn of_history(
        args: &'a LessonArgs,
        config: &'a Config,
        span: Span,
        model: Option<&'a Model>,
    ) -> Result<Self, Failure> {
        let mut lessons = Self::new(args, config, span, model);
        lessons.bar = ProgressBar::new_spinner().with_message("looking for groups");
        lessons.bar.enable_steady_tick(Duration::from_millis(100));
        for source in &config.remote_read {
            lessons.sources.push(Source::new(source, &history::Metrics::default())?);
        }
        for detector in detectors(config, args.detector.as_deref())? {
            let history_ms = duration::millis(detector.training.history);
            let range = (span.from_ms.unwrap_or(span.learn_to_ms - history_ms), span.to_ms);
            if range.0 >= range.1 {
                return Err("the history ends before it begins: --start must be before --end".into());
            }
            let by_these = args.group.iter().filter(|(name, _)| detector.by.contains(name));
            let matchers: Vec<_> = by_these.map(|(name, value)| Matcher::equal(name, value)).collect();
            let mut groups = BTreeSet::new();
            for source in &lessons.sources {
                past::samples(source, &detector, &matchers, range, |series| {
                    groups.extend(series.iter().map(|(labels, _)| labels.split(&detector.by).0));
                })
                .await?;
            }
            groups.retain(|group| args.group.iter().all(|(name, value)| group.get(name) == value));
            lessons.n_found += groups.len();
            if let Some(group) = model.and_then(|model| model.card.group.as_ref()) {
                groups.retain(|found| found == group);
            }
            let group = |labels| Group { detector: detector.clone(), labels, range };
            lessons.groups.extend(groups.into_iter().map(group));
        }
        Ok(lessons)
    }

    /// The next lesson.
    ///
    /// # Errors
    /// Those of the sources, and that there is not a single lesson.
    pub async fn next(&mut self) -> Result<Option<Lesson>, Failure> {
        if let Some(lesson) = self.first.take() {
            self.n_lessons = 1;
            return Ok(Some(lesson));
        }
        while let Some(group) = self.groups.pop_front() {
            if let Some(lesson) = self.read(group).await? {
                self.n_lessons += 1;
                return Ok(Some(lesson));
            }
        }
        self.bar.finish_and_clear();
        match self.n_lessons {
            0 => Err(self.nothing().into()),
            _ => Ok(None),
        }
    }

    /// Makes sure that there is one lesson only, which is the next.
    ///
    /// # Errors
    /// That there are more, which these options cannot take; and as [`next`](Self::next).
    pub async fn only_one(&mut self, options: &str, what: &str) -> Result<(), Failure> {
        let (mut first, mut names) = (None, Vec::new());
        while let Some(lesson) = self.next().await? {
            names.push(lesson.name.clone());
            first.get_or_insert(lesson);
        }
        if names.len() > 1 {
            return Err(format!(
                "{options} take one {what}, but there are {}: {}; choose one by --detector and --group",
                names.len(),
                names.join(", ")
            )
            .into());
        }
        self.first = first;
        Ok(())
    }

    async fn read(&mut self, group: Group) -> Result<Option<Lesson>, Failure> {
        let Group { detector, labels: group, range } = group;
        let matchers = past::of_group(&detector, &group);
        let alerts: Vec<String> =
            self.args.exclude_alert.iter().chain(&detector.training.exclude_alerts).cloned().collect();
        let (mut series, mut exclusions) = (Vec::new(), self.args.exclude.clone());
        let (n_samples, bar) = (&mut self.n_samples, &self.bar);
        for source in &self.sources {
            past::samples(source, &detector, &matchers, range, |slice| {
                for (labels, samples) in slice {
                    *n_samples += samples.len();
                    series.push((labels.split(&detector.by).1, samples));
                }
                bar.set_message(format!("reading history: {n_samples} samples"));
            })
            .await?;
            exclusions.extend(past::firing(source, &alerts, &group, range).await?);
            exclusions.extend(past::incidents(source, &detector, &group, range).await?);
        }
        let window = rows::window(series.iter(), range.1 - range.0);
        drop(series);
        let read = match self.model {
            Some(model) => Rows::of_schema(model.schema.clone(), &window),
            None => learned(&detector, &window, &exclusions, self.span.learn_to_ms),
        };
        match read {
            Ok(rows) => {
                let name = group_model(&self.config.registry.model(&detector.name), &group);
                Ok(Some(Lesson {
                    detector,
                    group: Some(group),
                    name,
                    rows,
                    window,
                    is_raw: true,
                    exclusions,
                    columns: None,
                }))
            }
            Err(NoRows::TooShort { have_ms }) => {
                self.longest_ms = self.longest_ms.max(have_ms);
                Ok(None)
            }
            Err(NoRows::NeverComplete { .. }) => Ok(None),
        }
    }

    /// Why there is no lesson.
    fn nothing(&self) -> String {
        let group = self.model.and_then(|model| model.card.group.as_ref());
        let longest = Duration::from_millis(u64::try_from(self.longest_ms).unwrap_or(0));
        match (self.n_found, group) {
            (0, _) => "the history has no series that is watched".into(),
            (_, Some(group)) => format!("the history has nothing of {group}, the group of the model"),
            (_, None) => format!(
                "no group has enough history: the longest has {}, training.minimum asks for more",
                duration::Display(longest)
            ),
        }
    }
}

/// What of a window is learned: the rows of the features that are there at that time.
fn learned(
    detector: &Detector,
    window: &Window,
    exclusions: &[Exclusion],
    learn_to_ms: i64,
) -> Result<Rows, NoRows> {
    match window.newest_ms() {
        Some(newest_ms) if learn_to_ms < newest_ms => {
            let known = rows::until(window, learn_to_ms, i64::MAX / 4);
            Rows::read(detector, &known, exclusions, i64::MAX)
        }
        _ => Rows::read(detector, window, exclusions, i64::MAX),
    }
}

/// The rows of a table. A column that is named like a series that the detector watches has raw samples,
/// and goes the way of live ones; any other has values that are ready. Learned is what lies up to
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
    let exclusions = args.exclude.clone();
    let (names, values): (Vec<String>, Vec<Vec<f64>>) = input.columns.into_iter().unzip();
    let name = config.registry.model(&detector.name);
    let (features, transform) = meaning(&names, &detector)?;
    let is_watched = |feature: &Labels| detector.matchers.iter().any(|selector| selector.matches(feature));
    let is_raw = transform == Transform::Value && features.iter().all(is_watched);
    let window = window(&features, &timestamps, &values);
    let (rows, columns) = if is_raw {
        (learned(&detector, &window, &exclusions, learn_to_ms), None)
    } else {
        let schema = Schema { features, transform, grid: Grid::Exact };
        let columns = (names != columns::defaults(&schema)).then_some(names);
        (Rows::of_values(schema, &timestamps, &values, &exclusions, learn_to_ms), columns)
    };
    let rows = rows.map_err(|none| no_rows(&none))?;
    Ok(Lesson { detector, group: None, name, rows, window, is_raw, exclusions, columns })
}

/// A window of the columns of a table, without cells that are empty.
pub fn window(features: &[Labels], timestamps: &[i64], columns: &[Vec<f64>]) -> Window {
    let series = features.iter().zip(columns).map(|(feature, values)| {
        let cells = timestamps.iter().zip(values).filter(|(_, value)| !value.is_nan());
        let sample =
            |(timestamp_ms, value): (&i64, &f64)| Sample { timestamp_ms: *timestamp_ms, value: *value };
        (feature.clone(), cells.map(sample).collect())
    });
    rows::window(series.collect::<Vec<Series>>().iter(), i64::MAX / 4)
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
