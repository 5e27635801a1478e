//! Training data of commands: the rows of each group in the history, or those of a table.

use crate::config::Config;
use crate::detect::SuspendedTimes;
use crate::detector::{self, Detector, FeatureIdentity, check_sharding};
use crate::error::BoxError;
use crate::features::{Schema, Transform};
use crate::history::{HistoryClient, Metrics as HistoryMetrics, Pace, SeriesSamples};
use crate::models::registry::periods::{GroupSelector, Period};
use crate::models::registry::{Registry, group_model_name};
use crate::models::{Model, columns};
use crate::prom::matcher::Matcher;
use crate::prom::shard::Shard;
use crate::prom::{Labels, METRIC_NAME, Sample, duration};
use crate::table::DataTable;
use crate::tenant::Tenant;
use crate::time;
use crate::train::{Exclusion, TrainingSet, TrainingSetError};
use crate::train::{exclusion, history};
use crate::window::Window;
use crate::window::build;
use crate::window::grid::Grid;
use clap::Args;
use indicatif::ProgressBar;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The groups to train on, and the excluded ranges.
#[derive(Debug, Args)]
pub struct TrainingDataArgs {
    /// Only this detector; without it, all
    #[arg(long, value_name = "NAME")]
    pub detector: Option<String>,
    /// The tenant whose history is read; needed if the configuration has `tenants`
    #[arg(long, value_name = "ID")]
    tenant: Option<Tenant>,
    /// Only the groups of a selector, such as {job="node"}
    #[arg(long, value_name = "SELECTOR", default_value = "{}", hide_default_value = true)]
    group: GroupSelector,
    /// Only the groups of a part of the targets, as in 0/3 or $JOB_COMPLETION_INDEX/3: those whose hash of job and
    /// instance, as in Prometheus' hashmod modulo COUNT, is INDEX
    #[arg(long, value_name = "INDEX/COUNT")]
    shard: Option<Shard>,
    /// Range to exclude from training, as in 2026-01-31T12:00:00Z..2026-01-31T13:00:00Z; may be repeated
    #[arg(long, value_name = "START..END", value_parser = parse_exclusion)]
    exclude: Vec<Exclusion>,
    /// Alert to treat as one of training.exclude_alerts: its firing times are excluded from training, and a backtest
    /// opens no incident in them; may be repeated
    #[arg(long, value_name = "ALERT")]
    exclude_alert: Vec<String>,
}

/// A stretch of history.
#[derive(Clone, Copy, Debug)]
pub struct HistoryRange {
    /// Its beginning; by default, `training.history` before the end of training.
    pub from_ms: Option<i64>,
    /// Last millisecond of the training rows.
    pub train_to_ms: i64,
    /// Its end.
    pub to_ms: i64,
}

/// Reads `START..END`.
pub fn parse_exclusion(text: &str) -> Result<Exclusion, String> {
    let no_range = || format!("{text:?} is not START..END, as in 2026-01-31T12:00:00Z..2026-01-31T13:00:00Z");
    let (from, to) = text.split_once("..").ok_or_else(no_range)?;
    let (from_ms, to_ms) = (time::parse(from)?, time::parse(to)?);
    if from_ms > to_ms {
        let [from, to] = [from_ms, to_ms].map(time::format_timestamp);
        return Err(format!("the range from {from} to {to} is empty: it must not end before its start"));
    }
    Ok(Exclusion { from_ms, to_ms, reason: text.into() })
}

/// The error of a range that has no row.
pub fn empty_range(range: &str, (from_ms, to_ms): (i64, i64)) -> String {
    let [from, to] = [from_ms, to_ms].map(time::format_timestamp);
    format!("{range} from {from} to {to} is empty: its start must be before its end")
}

/// Rows of one group, or of a file.
pub struct TrainingInput {
    pub detector: Arc<Detector>,
    pub group: Option<Labels>,
    /// The registered name of the model.
    pub name: String,
    /// The rows of training; with a given model, the rows of its features.
    pub rows: TrainingSet,
    /// All features in the whole range.
    pub window: Window,
    /// True for raw samples, false for transformed values.
    pub is_raw: bool,
    /// The ranges excluded from training.
    pub exclusions: Vec<Exclusion>,
    /// The times of maintenance and of firing alerts.
    pub suspended: SuspendedTimes,
    /// The file's names of the columns, if they differ from the default names.
    pub columns: Option<Vec<String>>,
    /// Number of rows of the file up to the end of training; `None` for a group.
    pub n_table_rows: Option<usize>,
}

/// The training inputs in order.
pub struct TrainingInputs<'a> {
    /// An input that was read already.
    ready: Option<TrainingInput>,
    /// Number of inputs that were returned.
    n_inputs: usize,
    /// The source of further inputs; `None` for a table.
    history: Option<HistoryReader<'a>>,
}

/// Reads one group after the other from the history. The samples of one group are in memory at a time.
struct HistoryReader<'a> {
    args: &'a TrainingDataArgs,
    config: &'a Config,
    model: Option<&'a Model>,
    train_to_ms: i64,
    clients: Vec<HistoryClient>,
    /// Maintenance, and feedback on incidents.
    periods: Vec<Period>,
    groups: VecDeque<HistoryGroup>,
    coverage: HistoryCoverage,
    progress: ReadProgress,
}

/// The extent of the history, for the message that no group can be trained on.
struct HistoryCoverage {
    /// Groups with samples.
    n_groups: usize,
    /// Groups of other shards.
    n_other_shards: usize,
    /// Longest history of a group that has too little.
    longest_ms: i64,
    /// True if the whole history of a group is excluded.
    is_excluded: bool,
}

/// A counter of samples on standard error.
struct ReadProgress {
    bar: ProgressBar,
    n_samples: usize,
}

/// A group with samples in the range.
struct HistoryGroup {
    detector: Arc<Detector>,
    labels: Labels,
    range: (i64, i64),
}

impl<'a> TrainingInputs<'a> {
    /// A single input.
    pub fn single(training_input: TrainingInput) -> Self {
        Self { ready: Some(training_input), n_inputs: 0, history: None }
    }

    /// Every group with samples in the range; with a model, only its group and the rows of its columns.
    pub async fn from_history(
        args: &'a TrainingDataArgs,
        config: &'a Config,
        registry: &Registry,
        history_range: HistoryRange,
        model: Option<&'a Model>,
    ) -> Result<Self, BoxError> {
        let periods = registry.periods().await?;
        let history = HistoryReader::new(args, config, periods, history_range, model).await?;
        Ok(Self { ready: None, n_inputs: 0, history: Some(history) })
    }

    /// The next input.
    ///
    /// # Errors
    /// Those of the sources, and an error if there is no input at all.
    pub async fn next(&mut self) -> Result<Option<TrainingInput>, BoxError> {
        if let Some(training_input) = self.ready.take() {
            self.n_inputs = 1;
            return Ok(Some(training_input));
        }
        let Some(history) = &mut self.history else { return Ok(None) };
        match history.next().await? {
            Some(training_input) => {
                self.n_inputs += 1;
                Ok(Some(training_input))
            }
            // Of few groups, a shard may have none.
            None if history.is_empty_shard() => Ok(None),
            None if self.n_inputs == 0 => Err(history.no_data_message().into()),
            None => Ok(None),
        }
    }

    /// Checks that there is one input only, and makes it the next.
    ///
    /// # Errors
    /// An error if there are several inputs, and those of [`next`](Self::next).
    pub async fn require_single(&mut self, options: &str, what: &str) -> Result<(), BoxError> {
        let (mut single, mut names) = (None, Vec::new());
        while let Some(training_input) = self.next().await? {
            names.push(training_input.name.clone());
            single.get_or_insert(training_input);
        }
        if names.len() > 1 {
            return Err(format!(
                "{options} take one {what}, but there are {}: {}; choose one by --detector and --group",
                names.len(),
                names.join(", ")
            )
            .into());
        }
        self.ready = single;
        Ok(())
    }
}

impl<'a> HistoryReader<'a> {
    /// Finds the groups.
    ///
    /// One pass over all samples finds the groups and stores no samples. Reading parts of the range would miss groups
    /// that exist for a short time.
    async fn new(
        args: &'a TrainingDataArgs,
        config: &'a Config,
        periods: Vec<Period>,
        history_range: HistoryRange,
        model: Option<&'a Model>,
    ) -> Result<Self, BoxError> {
        let bar = ProgressBar::new_spinner().with_message("looking for groups");
        bar.enable_steady_tick(Duration::from_millis(100));
        if config.history.is_empty() {
            return Err("there is no history: neither history nor remote_read has an endpoint".into());
        }
        config.check_tenant(args.tenant.as_ref())?;
        let clients = config
            .history
            .iter()
            .map(|source| HistoryClient::new(source, &HistoryMetrics::default()))
            .collect::<Result<Vec<_>, _>>()?;
        let mut reader = Self {
            args,
            config,
            model,
            train_to_ms: history_range.train_to_ms,
            clients,
            periods,
            groups: VecDeque::new(),
            coverage: HistoryCoverage {
                n_groups: 0,
                n_other_shards: 0,
                longest_ms: i64::MIN,
                is_excluded: false,
            },
            progress: ReadProgress { bar, n_samples: 0 },
        };
        let detectors = detector::select(&config.detectors, args.detector.as_deref())?;
        if args.shard.is_some() {
            check_sharding(&detectors)?;
        }
        args.group.check_labels(detectors.iter().flat_map(|detector| &detector.by))?;
        for detector in detectors {
            let history_ms = time::millis(detector.training.history);
            let range = (
                history_range.from_ms.unwrap_or(history_range.train_to_ms - history_ms),
                history_range.to_ms,
            );
            if range.0 >= range.1 {
                return Err(empty_range("the history", range).into());
            }
            let group_matchers = args.group.matchers().iter();
            let of_groups = |matcher: &&Matcher| detector.by.iter().any(|name| name == matcher.name());
            let matchers: Vec<Matcher> = group_matchers.filter(of_groups).cloned().collect();
            let mut groups = BTreeSet::new();
            for client in &reader.clients {
                let of_tenant = (args.tenant.as_ref(), &matchers[..]);
                history::read_samples(client, &detector, of_tenant, range, Pace::Immediate, |series| {
                    groups.extend(series.iter().map(|(labels, _)| labels.split(&detector.by).0));
                    Ok(())
                })
                .await?;
            }
            groups.retain(|group| args.group.matches(group));
            let n_found = groups.len();
            groups.retain(|group| args.shard.is_none_or(|shard| shard.contains(group)));
            reader.coverage.n_groups += groups.len();
            reader.coverage.n_other_shards += n_found - groups.len();
            if let Some(group) = model.and_then(|model| model.card.group.as_ref()) {
                groups.retain(|found| found == group);
            }
            let group = |labels| HistoryGroup { detector: detector.clone(), labels, range };
            reader.groups.extend(groups.into_iter().map(group));
        }
        Ok(reader)
    }

    /// The next group that can be trained on; `None` after the last.
    async fn next(&mut self) -> Result<Option<TrainingInput>, BoxError> {
        while let Some(group) = self.groups.pop_front() {
            if let Some(training_input) = self.read_group(group).await? {
                return Ok(Some(training_input));
            }
        }
        self.progress.bar.finish_and_clear();
        Ok(None)
    }

    async fn read_group(&mut self, group: HistoryGroup) -> Result<Option<TrainingInput>, BoxError> {
        let HistoryGroup { detector, labels: group, range } = group;
        let matchers = history::group_matchers(&detector, &group);
        let tenant = self.args.tenant.as_ref();
        let alerts: Vec<String> =
            self.args.exclude_alert.iter().chain(&detector.training.exclude_alerts).cloned().collect();
        let (mut series, mut firing) = (Vec::new(), Vec::new());
        let ReadProgress { bar, n_samples } = &mut self.progress;
        for client in &self.clients {
            let of_group = (tenant, &matchers[..]);
            history::read_samples(client, &detector, of_group, range, Pace::Immediate, |slice| {
                for (labels, samples) in slice {
                    *n_samples += samples.len();
                    series.push((labels, samples));
                }
                bar.set_message(format!("reading history: {n_samples} samples"));
                Ok(())
            })
            .await?;
            firing.extend(history::read_firing_alerts(client, tenant, &alerts, range).await?);
        }
        let mut exclusions = self.args.exclude.clone();
        exclusions.extend(exclusion::of_group(&self.periods, &firing, &detector.name, &group));
        let suspended = exclusion::suspended_times(&self.periods, firing.iter(), &detector.name, &group);
        let of_model = self.model.iter().flat_map(|model| &model.schema.features);
        FeatureIdentity::of_features(&detector, of_model).rename(&detector, &mut series);
        let window = build::from_series(series.iter(), range.1 - range.0);
        drop(series);
        let training_set = match self.model {
            Some(model) => TrainingSet::from_schema(model.schema.clone(), &window, &[], i64::MAX),
            None => read_training_set(&detector, &window, &exclusions, self.train_to_ms),
        };
        match training_set {
            Ok(rows) => {
                let model = self.config.registry.model_name(&detector.name);
                let name = group_model_name(&model, &detector.by, tenant, &group);
                Ok(Some(TrainingInput {
                    detector,
                    group: Some(group),
                    name,
                    rows,
                    window,
                    is_raw: true,
                    exclusions,
                    suspended,
                    columns: None,
                    n_table_rows: None,
                }))
            }
            Err(TrainingSetError::TooShort { have_ms }) => {
                self.coverage.longest_ms = self.coverage.longest_ms.max(have_ms);
                Ok(None)
            }
            Err(TrainingSetError::NeverComplete { .. }) => Ok(None),
            Err(TrainingSetError::AllExcluded { .. }) => {
                self.coverage.is_excluded = true;
                Ok(None)
            }
        }
    }

    /// True if all groups lie in other shards.
    fn is_empty_shard(&self) -> bool {
        self.coverage.n_groups == 0 && self.coverage.n_other_shards > 0
    }

    /// The reason why there is no input.
    fn no_data_message(&self) -> String {
        let group = self.model.and_then(|model| model.card.group.as_ref());
        let longest = Duration::from_millis(u64::try_from(self.coverage.longest_ms).unwrap_or(0));
        match (self.coverage.n_groups, group) {
            (0, _) => "the history has no series that a detector selects".into(),
            (_, Some(group)) => format!("the history has no samples of {group}, the group of the model"),
            (_, None) if self.coverage.is_excluded => "all of the history is excluded from training".into(),
            (_, None) => format!(
                "no group has enough history: the longest has {}, training.min_history requires more",
                duration::Display(longest)
            ),
        }
    }
}

/// The training rows of a window: complete rows of the features that exist at that time.
fn read_training_set(
    detector: &Detector,
    window: &Window,
    exclusions: &[Exclusion],
    train_to_ms: i64,
) -> Result<TrainingSet, TrainingSetError> {
    match window.newest_ms() {
        Some(newest_ms) if train_to_ms < newest_ms => {
            let training_window = build::truncated(window, train_to_ms, i64::MAX / 4);
            TrainingSet::from_window(detector, &training_window, exclusions, i64::MAX)
        }
        _ => TrainingSet::from_window(detector, window, exclusions, i64::MAX),
    }
}

/// The rows of a table. Columns named like series that the detector selects hold raw samples and are transformed like
/// live ones; other columns hold transformed values. Training uses the rows up to `train_to_ms`.
pub fn read_table(
    args: &TrainingDataArgs,
    config: &Config,
    path: &Path,
    data_table: DataTable,
    train_to_ms: i64,
) -> Result<TrainingInput, BoxError> {
    let detectors = detector::select(&config.detectors, args.detector.as_deref())?;
    let detector = detectors.first().ok_or("there is no detector")?.clone();
    let timestamps = data_table.unique_timestamps(path)?.to_vec();
    let exclusions = args.exclude.clone();
    let (names, values): (Vec<String>, Vec<Vec<f64>>) = data_table.columns.into_iter().unzip();
    let name = config.registry.model_name(&detector.name);
    let (features, transform, is_raw) = resolve_columns(&names, &detector)?;
    let window = table_window(&features, &timestamps, &values);
    let (rows, columns) = if is_raw {
        (read_training_set(&detector, &window, &exclusions, train_to_ms), None)
    } else {
        let schema = Schema { features, transform, grid: Grid::Exact };
        let columns = (names != columns::default_names(&schema)).then_some(names);
        (TrainingSet::from_values(schema, &timestamps, &values, &exclusions, train_to_ms), columns)
    };
    let rows = rows.map_err(|error| training_set_message(&error))?;
    let n_table_rows = Some(timestamps.iter().filter(|time| **time <= train_to_ms).count());
    let suspended = SuspendedTimes::default();
    Ok(TrainingInput {
        detector,
        group: None,
        name,
        rows,
        window,
        is_raw,
        exclusions,
        suspended,
        columns,
        n_table_rows,
    })
}

/// A window of the columns of a table, without empty cells.
pub fn table_window(features: &[Labels], timestamps: &[i64], columns: &[Vec<f64>]) -> Window {
    let series = features.iter().zip(columns).map(|(feature, values)| {
        let cells = timestamps.iter().zip(values).filter(|(_, value)| !value.is_nan());
        let sample =
            |(timestamp_ms, value): (&i64, &f64)| Sample { timestamp_ms: *timestamp_ms, value: *value };
        (feature.clone(), cells.map(sample).collect())
    });
    build::from_series(series.collect::<Vec<SeriesSamples>>().iter(), i64::MAX / 4)
}

/// Resolves names to features, and tells whether the columns hold raw samples: then the detector selects every one of
/// them. In a table without such a column and without a rate, a name that is no series becomes a metric name.
fn resolve_columns(
    names: &[String],
    detector: &Detector,
) -> Result<(Vec<Labels>, Transform, bool), BoxError> {
    let semantics = detector.transform.rate_semantics().unwrap_or_default();
    let resolve = |names: &[String]| columns::resolve_features(names, &BTreeMap::new(), semantics);
    let is_selected = |feature: &Labels| detector.matchers.iter().any(|selector| selector.matches(feature));
    let (mut selected, mut others, mut has_rate) = (None, None, false);
    for name in names {
        let resolved = resolve(std::slice::from_ref(name));
        let is_series =
            matches!(&resolved, Ok((features, Transform::Value)) if features.iter().all(is_selected));
        has_rate |= matches!(resolved, Ok((_, Transform::Rate { .. })));
        if is_series { &mut selected } else { &mut others }.get_or_insert(name);
    }
    match (selected, others) {
        (Some(selected), Some(other)) => Err(format!(
            "column {other:?} is no series that detector {} selects, but {selected:?} is one: a table has raw samples only, or none",
            detector.name
        )
        .into()),
        (None, _) if !has_rate && matches!(resolve(names), Err(columns::Error::Unknown { .. })) => {
            let feature = |name: &String| Labels::new([(METRIC_NAME, name.as_str())]);
            Ok((names.iter().map(feature).collect::<Result<_, _>>()?, Transform::Value, false))
        }
        (selected, _) => {
            let (features, transform) = resolve(names)?;
            Ok((features, transform, selected.is_some()))
        }
    }
}

fn training_set_message(error: &TrainingSetError) -> String {
    match error {
        TrainingSetError::TooShort { have_ms } => {
            let have = Duration::from_millis(u64::try_from(*have_ms).unwrap_or(0));
            format!("the file covers {}, training.min_history requires more", duration::Display(have))
        }
        TrainingSetError::NeverComplete { .. } => "no row has a finite value in every column".into(),
        TrainingSetError::AllExcluded { n_rows } => format!("all {n_rows} rows are excluded"),
    }
}
