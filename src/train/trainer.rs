//! The task that trains: one group after another, network first, then the processors.
//!
//! A group without a model takes the one that the registry holds for it, and learns its own only when
//! there is none. So a restart goes on with the model of before, whoever chose it.

use super::enter;
use super::pool::Pool;
use super::rows::{NoRows, Rows, join};
use super::{Purpose, Trained, past, replay, train};
use crate::config::Detector;
use crate::detect::Detection;
use crate::forest;
use crate::history::{Series, Source};
use crate::http::client::Url;
use crate::models::registry::{self, Registry};
use crate::models::{Card, Deployed, Model};
use crate::prom::matcher::Matcher;
use crate::prom::{Labels, duration};
use crate::report::training::Verdict;
use crate::snapshot::Mark;
use crate::window::Window;
use crate::yaml;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

/// How long a source or a registry that did not answer is left alone.
const REST: Duration = Duration::from_secs(60);

/// How long a group that goes on from a snapshot waits for what came since: without it nothing is as it was.
const PATIENCE_FOR_PAST: Duration = Duration::from_secs(120);

/// How long a group without a model waits for the registry before it is trained without.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is none yet.
    First,
    /// `training.every` is over.
    Scheduled,
    /// A feature came to stay, or went for good.
    Schema,
}

impl Reason {
    /// For logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Scheduled => "scheduled",
            Self::Schema => "schema",
        }
    }
}

/// A training that is asked for.
pub struct Job {
    /// The group's number.
    pub group: u32,
    /// Its detector.
    pub detector: Arc<Detector>,
    /// Its labels.
    pub labels: Labels,
    /// What it holds now.
    pub window: Window,
    /// When its first sample came.
    pub since: Instant,
    /// How far its model was before this process.
    pub mark: Option<Mark>,
    /// Why.
    pub reason: Reason,
    /// Length of the history that the model in service has learned from, in milliseconds.
    pub learned_ms: Option<i64>,
    /// Later rows are for the model to judge: remote read may have them before remote write brings them, and one
    /// that had learned from them would never go back.
    pub judged_to_ms: i64,
    /// Other groups that it can learn from while it has too little history, if nothing serves yet.
    pub pool: Option<Pool>,
}

/// What a first model has to know of the time before this process.
#[derive(Default)]
pub struct Before {
    /// Samples, features for labels.
    pub recent: Vec<Series>,
    /// How far scores are written.
    pub written: Written,
    /// What the model has become by the rows since its training, as far as the past knows them, or by a snapshot.
    pub advanced: Option<Box<Detection>>,
}

/// Timestamps of the newest scores that are held elsewhere, or later ones: what is older than the window is not
/// written any more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// By any source.
    pub to_ms: Option<i64>,
    /// By each target, as far as its own remote read is among the sources.
    pub by_target: Vec<Option<i64>>,
}

impl Written {
    /// Every target that is read has the scores up to here.
    pub fn everywhere_ms(&self) -> Option<i64> {
        self.by_target.iter().chain([&self.to_ms]).flatten().min().copied()
    }
}

/// What came of it.
pub enum Learned {
    /// A model to serve.
    Model {
        /// The model.
        deployed: Deployed,
        /// Was it fitted, or did the registry have it?
        fitted: bool,
        /// What was before this process.
        before: Before,
        /// How long it took.
        seconds: f64,
    },
    /// A model that stays out of service.
    Held {
        /// Its registered name.
        name: String,
        /// Its version.
        version: u64,
        /// Where it comes from.
        card: Box<Card>,
        /// What speaks against it.
        reasons: Vec<String>,
    },
    /// The registry has a model, and not all of its features have come yet.
    Expected,
    /// Not enough history yet.
    TooShort {
        /// How much there is, in milliseconds.
        have_ms: i64,
    },
    /// Not enough history yet, but that of other groups has made a model to serve until there is.
    Pooled {
        /// How much there is, in milliseconds.
        have_ms: i64,
        /// The model.
        deployed: Deployed,
        /// What was before this process.
        before: Before,
        /// How long it took.
        seconds: f64,
    },
    /// Most of the history is gone that the model in service has learned from: it stays.
    HistoryLost {
        /// How much there is, in milliseconds.
        have_ms: i64,
    },
    /// It failed, for this reason.
    Failed(String),
}

/// What a configuration leads to outside of this process.
pub struct Outside {
    /// What is watched.
    pub detectors: Vec<Arc<Detector>>,
    /// Where history is read.
    pub sources: Vec<Source>,
    /// Where scores are written.
    pub targets: Vec<Url>,
    /// Where models are kept.
    pub registry: Registry,
    /// And how.
    pub registry_config: registry::Config,
}

/// Trains what is asked for until nobody can ask any more; `report` takes the results.
pub async fn run<F: Future<Output = ()>>(
    mut jobs: mpsc::Receiver<Job>,
    outside: watch::Receiver<Arc<Outside>>,
    mut report: impl FnMut(u32, Learned) -> F,
) {
    let mut resting = Resting::default();
    while let Some(job) = jobs.recv().await {
        let outside = outside.borrow().clone();
        let group = job.group;
        let learned = learn(job, &outside, &mut resting).await.unwrap_or_else(Learned::Failed);
        report(group, learned).await;
    }
}

/// What did not answer, until when it is left alone: what hangs would hold up the trainings of all groups.
#[derive(Default)]
pub struct Resting {
    sources: Vec<(Url, Instant)>,
    registry: Option<Instant>,
}

impl Resting {
    /// Forgets what has rested.
    fn wake(&mut self, now: Instant) {
        self.sources.retain(|(_, until)| now < *until);
        self.registry = self.registry.filter(|until| now < *until);
    }

    fn rests(&self, url: &Url) -> bool {
        self.sources.iter().any(|(resting, _)| resting == url)
    }
}

/// What the registry has for a group without a model.
enum Kept {
    Model(Deployed),
    /// A model of which the group lacks features.
    Lacking,
    Nothing,
}

async fn learn(job: Job, outside: &Outside, resting: &mut Resting) -> Result<Learned, String> {
    let started = Instant::now();
    let now_ms = duration::now_ms();
    resting.wake(started);
    let detector = job.detector.clone();
    let group = past::of_group(&detector, &job.labels);
    let config = &outside.registry_config;
    let model = config.model(&detector.name);
    let name = registry::group_model(&model, &job.labels);

    let kept = match job.reason {
        Reason::First => kept(&job, outside, &model, &name, resting).await,
        Reason::Scheduled | Reason::Schema => Kept::Nothing,
    };
    match kept {
        Kept::Model(deployed) => {
            let Some(before) = before(&job, outside, &group, &deployed, now_ms, resting).await else {
                return Ok(Learned::Expected);
            };
            let seconds = started.elapsed().as_secs_f64();
            return Ok(Learned::Model { deployed, fitted: false, before, seconds });
        }
        // One scrape may come in several requests.
        Kept::Lacking if started.duration_since(job.since) < detector.grace => return Ok(Learned::Expected),
        Kept::Lacking | Kept::Nothing => {}
    }

    let range = (now_ms - duration::millis(detector.training.history), now_ms);
    let read = read_past(&outside.sources, &detector, &group, &job.labels, range, resting).await;
    let past = match read {
        Ok(past) => past,
        Err((past, _)) if job.reason == Reason::First => past,
        // A model of days is not replaced by one of the window's hours because Prometheus restarts.
        Err((_, error)) => return Err(format!("no history: {error}")),
    };
    let mut exclusions = Vec::new();
    for source in &outside.sources {
        match past::firing(source, &detector.training.exclude_alerts, &job.labels, range).await {
            Ok(fired) => exclusions.extend(fired),
            // A first model with an incident in it is better than none.
            Err(_) if job.reason == Reason::First => {}
            Err(error) => return Err(format!("alerts unknown: {}", yaml::chain(&error))),
        }
        match past::incidents(source, &detector, &job.labels, range).await {
            Ok(own) => exclusions.extend(own),
            Err(_) if job.reason == Reason::First => {}
            Err(error) => return Err(format!("incidents unknown: {}", yaml::chain(&error))),
        }
    }
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let fit = {
        let (detector, labels, name, alias) =
            (detector.clone(), job.labels.clone(), name.clone(), config.alias.clone());
        // What a group without a usable model learns serves whatever it is worth.
        let has_gate = job.reason == Reason::Scheduled;
        let history_ms = duration::millis(detector.training.history);
        // A Prometheus that has lost its storage knows hours where there were days.
        let learned_ms = job.learned_ms.filter(|_| job.reason == Reason::Scheduled);
        move || {
            let window = join(&past, &job.window, history_ms);
            let rows = Rows::read(&detector, &window, &exclusions, job.judged_to_ms);
            let purpose = Purpose { detector: Some(detector.name.clone()), group: Some(labels) };
            let sizes = &detector.training.sweep;
            let fit = |rows: Rows| {
                let trained = train(&detector.model, &rows, sizes, purpose, now_ms, threads, &|_, _| {})?;
                let gate = has_gate.then_some(&detector.training.gate);
                let draft = enter::draft(&name, &alias, gate, &trained, &rows);
                Ok::<_, forest::Error>((trained, draft))
            };
            let lost = |rows: &Rows| learned_ms.is_some_and(|learned_ms| 2 * rows.observed_ms < learned_ms);
            if let Some(have_ms) = rows.as_ref().ok().filter(|rows| lost(rows)).map(|rows| rows.observed_ms) {
                return (Err(Unfit::HistoryLost { have_ms }), past);
            }
            // A detection needs some minutes more than the rates in it.
            let have_ms = rows.as_ref().map_or(0, |rows| rows.observed_ms);
            let fitted = rows.and_then(|rows| match fit(rows) {
                Err(forest::Error::Empty { .. }) => Err(NoRows::TooShort { have_ms }),
                fitted => Ok(fitted),
            });
            (fitted.map_err(Unfit::NoRows), past)
        }
    };
    let (fitted, past) = tokio::task::spawn_blocking(fit)
        .await
        .map_err(|panic| format!("the training thread ended: {panic}"))?;
    let (trained, draft) = match fitted {
        Ok(fitted) => fitted.map_err(|error| yaml::chain(&error))?,
        Err(Unfit::HistoryLost { have_ms }) => return Ok(Learned::HistoryLost { have_ms }),
        Err(Unfit::NoRows(NoRows::TooShort { have_ms })) => {
            let Some(pool) = job.pool else { return Ok(Learned::TooShort { have_ms }) };
            let of_pool = {
                let detector = detector.clone();
                move || pool.train(&detector, now_ms, threads)
            };
            let pooled = tokio::task::spawn_blocking(of_pool)
                .await
                .map_err(|panic| format!("the training thread ended: {panic}"))?
                .map_err(|error| yaml::chain(&error))?;
            let Some(pooled) = pooled else { return Ok(Learned::TooShort { have_ms }) };
            let before = before_first(outside, resting, &detector, &job.labels, &past, now_ms).await;
            let deployed = Deployed { model: Arc::new(pooled), name: model, version: None };
            let seconds = started.elapsed().as_secs_f64();
            return Ok(Learned::Pooled { have_ms, deployed, before, seconds });
        }
        Err(Unfit::NoRows(NoRows::NeverComplete { n_features })) => {
            return Err(format!("no row of the history has settled values of all {n_features} features"));
        }
    };

    let entered = match resting.registry {
        Some(_) => Err("the registry rests".to_string()),
        None => enter::enter(&outside.registry, &name, &trained, &draft)
            .await
            .map_err(|error| yaml::chain(&error)),
    };
    let version = match (entered, draft.verdict) {
        (Ok(version), Verdict::Held(reasons)) => {
            let card = Box::new(trained.model.card);
            return Ok(Learned::Held { name, version, card, reasons });
        }
        (Ok(version), _) => Some(version),
        // What serves now goes on; a group that has nothing to go on with takes the model as it is.
        (Err(error), _) if job.reason == Reason::Scheduled => return Err(error),
        (Err(error), _) => {
            warn!(component = "models", model = name, err = error, "model not registered");
            None
        }
    };
    let before = match job.reason {
        Reason::First => before_first(outside, resting, &detector, &job.labels, &past, now_ms).await,
        Reason::Scheduled | Reason::Schema => Before::default(),
    };
    let Trained { model, .. } = trained;
    let deployed = Deployed { model: Arc::new(model), name, version };
    let seconds = started.elapsed().as_secs_f64();
    Ok(Learned::Model { deployed, fitted: true, before, seconds })
}

/// What a model that has not served yet has to know.
async fn before_first(
    outside: &Outside,
    resting: &Resting,
    detector: &Detector,
    labels: &Labels,
    past: &[Series],
    now_ms: i64,
) -> Before {
    let earliest_ms = reaches_to(detector, detector.transform.reach_ms(), now_ms);
    let written = written(outside, resting, detector, labels, earliest_ms, now_ms).await;
    let recent = after(past, window_start(detector, now_ms));
    Before { recent, written: written.unwrap_or_default(), advanced: None }
}

/// The model after the rows of a group since its training, up to `to_ms`, as far as remote read knows them:
/// one that is chosen goes on as if it had served all the while. `None` for a model that judges every row alone.
pub async fn advanced(
    outside: &Outside,
    resting: &mut Resting,
    detector: &Detector,
    labels: &Labels,
    model: &Model,
    to_ms: i64,
) -> Option<Box<Detection>> {
    replay::newest_ms(model)?;
    let since_ms = unseen_since(model, detector, to_ms);
    let range = (since_ms - model.schema.transform.reach_ms(), to_ms);
    resting.wake(Instant::now());
    let group = past::of_group(detector, labels);
    let read = read_past(&outside.sources, detector, &group, labels, range, resting).await;
    let past = read.unwrap_or_else(|(past, _)| past);
    Some(replay::advance(replay::trained(model)?, model, &past, to_ms))
}

/// From when on a model has to see rows to be up to date at `to_ms`; history counts for no longer than training's.
fn unseen_since(model: &Model, detector: &Detector, to_ms: i64) -> i64 {
    let longest_ms = to_ms.saturating_sub(duration::millis(detector.training.history));
    replay::newest_ms(model).map_or(to_ms, |newest_ms| newest_ms.max(longest_ms))
}

/// Samples after this time are in the window.
fn window_start(detector: &Detector, now_ms: i64) -> i64 {
    now_ms - duration::millis(detector.window)
}

/// Rows after this time are in the window with all that their rates reach back to.
fn reaches_to(detector: &Detector, reach_ms: i64, now_ms: i64) -> i64 {
    window_start(detector, now_ms) + reach_ms
}

/// Why nothing was fitted.
enum Unfit {
    NoRows(NoRows),
    HistoryLost { have_ms: i64 },
}

/// What a model that served before this process has to know to go on: the samples that came since, how far its
/// scores are written, and what it had become, by a snapshot or by going over the rows since its training. None
/// while that is worth waiting for.
async fn before(
    job: &Job,
    outside: &Outside,
    group: &[Matcher],
    deployed: &Deployed,
    now_ms: i64,
    resting: &mut Resting,
) -> Option<Before> {
    let waits = job.mark.is_some() && job.since.elapsed() < PATIENCE_FOR_PAST;
    let (detector, model) = (&job.detector, &deployed.model);
    let reach_ms = model.schema.transform.reach_ms();
    let earliest_ms = reaches_to(detector, reach_ms, now_ms);
    let written = match written(outside, resting, detector, &job.labels, earliest_ms, now_ms).await {
        Err(()) if waits => return None,
        known => known.unwrap_or_default(),
    };
    let resumed = job.mark.as_ref().and_then(|mark| Some((mark.passed_ms, mark.resume(deployed)?)));
    // What is not written yet is for the group to score; what is older than its window it cannot.
    let (done_ms, replay_to_ms) = match &resumed {
        Some((passed_ms, _)) => (*passed_ms, earliest_ms),
        None => {
            let replay_to_ms = written.everywhere_ms().unwrap_or(now_ms);
            (replay::newest_ms(model).unwrap_or(now_ms).min(replay_to_ms), replay_to_ms)
        }
    };
    let start_ms = window_start(detector, now_ms);
    let since_ms = done_ms.max(now_ms - duration::millis(detector.training.history)) - reach_ms;
    // The window of a snapshot that the model goes on from is whole; any other is filled again.
    let range = (if resumed.is_some() { since_ms } else { since_ms.min(start_ms) }, now_ms);
    let read = read_past(&outside.sources, detector, group, &job.labels, range, resting).await;
    let past = match read {
        Err(_) if waits => return None,
        read => read.unwrap_or_else(|(past, _)| past),
    };
    let start = match resumed {
        Some((_, detection)) => detection,
        None => replay::trained(model),
    };
    let advanced = start.map(|detection| replay::advance(detection, model, &past, replay_to_ms));
    let recent = after(&past, start_ms);
    Some(Before { recent, written, advanced })
}

/// The model that the registry holds for a group, if the group has its features.
async fn kept(job: &Job, outside: &Outside, model: &str, name: &str, resting: &mut Resting) -> Kept {
    if resting.registry.is_some() {
        return Kept::Nothing;
    }
    let find = async {
        let registry = &outside.registry;
        let aliases = registry.aliases_of([model, name]).await?;
        let Some((name, version)) = registry::of_group(&aliases, model, name, &outside.registry_config.alias)
        else {
            return Ok(None);
        };
        let model = Arc::new(
            registry.load(&name, version, job.detector.transform.semantics().unwrap_or_default()).await?,
        );
        Ok::<_, registry::Error>(Some(Deployed { model, name, version: Some(version) }))
    };
    let found = match tokio::time::timeout(PATIENCE, find).await {
        Ok(found) => found.map_err(|error| yaml::chain(&error)),
        Err(_) => {
            resting.registry = Some(Instant::now() + REST);
            Err(format!("no answer within {PATIENCE:?}"))
        }
    };
    let deployed = found.unwrap_or_else(|error| {
        warn!(component = "models", group = %job.labels, err = error, "the registry does not help");
        None
    });
    let Some(deployed) = deployed.filter(|deployed| deployed.model.suits(job.detector.window, &job.labels))
    else {
        return Kept::Nothing;
    };
    let features = &deployed.model.schema.features;
    match features.iter().find(|feature| job.window.find(feature).is_none()) {
        None => Kept::Model(deployed),
        Some(feature) => {
            let Deployed { name, version, .. } = &deployed;
            debug!(component = "models", group = %job.labels, model = name, version, feature = %feature, "the group does not have the features of its model yet");
            Kept::Lacking
        }
    }
}

/// Samples of a group's past, features for labels. What was read before a source failed comes with the
/// error; a source that knows no remote read is left out.
async fn read_past(
    sources: &[Source],
    detector: &Detector,
    group: &[Matcher],
    labels: &Labels,
    range: (i64, i64),
    resting: &mut Resting,
) -> Result<Vec<Series>, (Vec<Series>, String)> {
    let mut past: Vec<Series> = Vec::new();
    let mut failed = None;
    for source in sources {
        let url = &source.config.url;
        if resting.rests(url) {
            failed = Some("the source rests".to_string());
            continue;
        }
        if let Err(error) = past::samples(source, detector, group, range, |series| past.extend(series)).await
        {
            let reason = yaml::chain(&error);
            warn!(component = "history", url = %url, group = %labels, err = reason, "no history by remote read");
            if error.is_passing() {
                resting.sources.push((url.clone(), Instant::now() + REST));
                failed = Some(reason);
            }
        }
    }
    for (labels, _) in &mut past {
        *labels = labels.split(&detector.by).1;
    }
    match failed {
        None => Ok(past),
        Some(error) => Err((past, error)),
    }
}

fn after(series: &[Series], since_ms: i64) -> Vec<Series> {
    let recent = series.iter().map(|(labels, samples)| {
        let start = samples.partition_point(|sample| sample.timestamp_ms <= since_ms);
        (labels.clone(), samples[start..].to_vec())
    });
    recent.filter(|(_, samples)| !samples.is_empty()).collect()
}

/// Up to where a group's scores were written before this process began: after a restart, publishing
/// goes on there, or at `earliest_ms` if that is later. An error when a source that may know does not answer, and no
/// other has any.
async fn written(
    outside: &Outside,
    resting: &Resting,
    detector: &Detector,
    labels: &Labels,
    earliest_ms: i64,
    now_ms: i64,
) -> Result<Written, ()> {
    let range = (now_ms - duration::millis(detector.training.history), now_ms);
    let mut written = Written { to_ms: None, by_target: vec![None; outside.targets.len()] };
    let mut is_known = true;
    for source in &outside.sources {
        let url = &source.config.url;
        if resting.rests(url) {
            is_known = false;
            continue;
        }
        match past::newest_score(source, detector, labels, range).await {
            Ok(newest_ms) => {
                let to_ms = newest_ms.map(|newest_ms| newest_ms.max(earliest_ms));
                written.to_ms = written.to_ms.max(to_ms);
                let targets = outside.targets.iter().zip(&mut written.by_target);
                targets.filter(|(target, _)| target.is_beside(url)).for_each(|(_, held_ms)| *held_ms = to_ms);
            }
            Err(error) => {
                debug!(component = "history", url = %url, err = yaml::chain(&error), "newest score unknown");
                is_known &= !error.is_passing();
            }
        }
    }
    if is_known || written.to_ms.is_some() { Ok(written) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::features::Schema;
    use crate::models::registry::directory::Directory;
    use crate::prom::{METRIC_NAME, Sample};
    use crate::window::row::Grid;
    use std::path::Path;
    use tempfile::TempDir;

    const STEP_MS: i64 = 15_000;

    fn feature(device: &str) -> Labels {
        Labels::new([(METRIC_NAME, "rx"), ("device", device)]).expect("valid")
    }

    /// A window with an hour of these counters.
    fn window(devices: &[&str]) -> Window {
        window_of(devices, 240)
    }

    /// A window with so many steps of these counters.
    fn window_of(devices: &[&str], steps: i64) -> Window {
        let mut window = Window::new(2 * 3_600_000);
        let now_ms = duration::now_ms();
        for device in devices {
            let column = window.column(&feature(device)).expect("few");
            for i in 0..=steps {
                let timestamp_ms = now_ms - (steps - i) * STEP_MS;
                window.push(column, Sample { timestamp_ms, value: (i * i % 97 + i * 1500) as f64 });
            }
        }
        window
    }

    fn job(outside: &Outside, devices: &[&str]) -> Job {
        Job {
            group: 0,
            detector: outside.detectors[0].clone(),
            labels: Labels::new([("job", "node")]).expect("valid"),
            window: window(devices),
            since: Instant::now(),
            mark: None,
            learned_ms: None,
            judged_to_ms: i64::MAX,
            reason: Reason::First,
            pool: None,
        }
    }

    fn outside(registry: Registry) -> Outside {
        let text = "detectors: [{name: net, match: [rx], by: [job], training: {minimum: 10m}}]";
        let config = Config::parse(text).expect("a valid configuration");
        let (detectors, registry_config) = (config.detectors, config.registry);
        Outside { detectors, sources: Vec::new(), targets: Vec::new(), registry, registry_config }
    }

    #[tokio::test]
    async fn the_model_of_the_registry_waits_for_its_features() {
        let folder = TempDir::new().expect("a temporary folder");
        let outside = outside(Registry::Directory(Directory::new(folder.path().into(), 30)));
        let learn = async |job| learn(job, &outside, &mut Resting::default()).await.expect("it works");
        let first = learn(job(&outside, &["eth0", "lo"])).await;
        assert!(matches!(first, Learned::Model { fitted: true, .. }));
        assert!(matches!(learn(job(&outside, &["eth0"])).await, Learned::Expected));
        let again = learn(job(&outside, &["eth0", "lo"])).await;
        assert!(matches!(again, Learned::Model { fitted: false, .. }));
        // A feature that does not come is gone.
        let old = Job { since: Instant::now() - outside.detectors[0].grace, ..job(&outside, &["eth0"]) };
        let Learned::Model { deployed, fitted: true, .. } = learn(old).await else { panic!("a new model") };
        assert_eq!((deployed.model.schema.features.len(), deployed.version), (1, Some(2)));
    }

    /// Two minutes are too short; the past of other groups makes a model that the registry does not get.
    #[tokio::test]
    async fn others_make_a_model_until_there_is_history() {
        let folder = TempDir::new().expect("a temporary folder");
        let outside = outside(Registry::Directory(Directory::new(folder.path().into(), 30)));
        let learn = async |job| learn(job, &outside, &mut Resting::default()).await.expect("it works");
        let transform = outside.detectors[0].transform;
        let schema = Schema { features: vec![feature("eth0")], transform, grid: Grid::Exact };
        let pool = |windows| Some(Pool { schema: schema.clone(), windows });
        let short = |pool| Job { window: window_of(&["eth0"], 8), pool, ..job(&outside, &["eth0"]) };
        assert!(matches!(learn(short(None)).await, Learned::TooShort { have_ms: 60_000 }));
        let too_few = pool(vec![window_of(&["eth0"], 8)]);
        assert!(matches!(learn(short(too_few)).await, Learned::TooShort { .. }));
        let others = || pool(vec![window(&["eth0"]), window(&["eth0"])]);
        let learned = learn(short(others())).await;
        let Learned::Pooled { have_ms: 60_000, deployed, .. } = learned else { panic!("a model of others") };
        assert!(deployed.is_pooled());
        assert_eq!((deployed.name.as_str(), deployed.version), ("net", None));
        // With history of its own it needs no others.
        let own = learn(Job { pool: others(), ..job(&outside, &["eth0"]) }).await;
        let Learned::Model { deployed, fitted: true, .. } = own else { panic!("a model of its own") };
        assert_eq!(deployed.version, Some(1));
        assert!(!deployed.is_pooled());
    }

    #[tokio::test]
    async fn f15_a_model_of_days_is_not_replaced_by_one_of_hours() {
        let folder = TempDir::new().expect("a temporary folder");
        let outside = outside(Registry::Directory(Directory::new(folder.path().into(), 30)));
        let learn = async |job| learn(job, &outside, &mut Resting::default()).await.expect("it works");
        let scheduled =
            |learned_ms| Job { reason: Reason::Scheduled, learned_ms, ..job(&outside, &["eth0"]) };
        // The window has an hour.
        let lost = learn(scheduled(Some(5 * 86_400_000))).await;
        assert!(matches!(lost, Learned::HistoryLost { have_ms: 3_500_000..=3_600_000 }));
        assert!(matches!(learn(scheduled(Some(3_600_000))).await, Learned::Model { .. }));
        // A feature that came or went is silence without a new model.
        let schema = Job { reason: Reason::Schema, ..scheduled(Some(5 * 86_400_000)) };
        assert!(matches!(learn(schema).await, Learned::Model { .. }));
    }

    #[tokio::test]
    async fn a_registry_that_hung_is_left_alone() {
        // It takes connections and never answers.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let text = format!("registry: {{mlflow: {{tracking_uri: 'http://{address}'}}}}");
        let config = Config::parse(&text).expect("a valid configuration");
        let registry = Registry::open(&config.registry, Path::new("")).expect("a client");
        let outside = outside(registry);
        let started = Instant::now();
        let mut resting = Resting { registry: Some(started + REST), ..Resting::default() };
        let first = learn(job(&outside, &["eth0"]), &outside, &mut resting).await;
        assert!(matches!(first, Ok(Learned::Model { deployed: Deployed { version: None, .. }, .. })));
        let scheduled = Job { reason: Reason::Scheduled, ..job(&outside, &["eth0"]) };
        let Err(reason) = learn(scheduled, &outside, &mut resting).await else { panic!("not registered") };
        assert_eq!(reason, "the registry rests");
        assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    }
}
